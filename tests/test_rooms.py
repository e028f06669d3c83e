"""Arrows go one way: the order of rooms in `lad`'s docstring is the order of imports."""

import ast
import re
from pathlib import Path

import pytest

import lad

PACKAGE = Path(lad.__file__).parent
ROWS = re.findall(r"^    ((?:\w+, )*\w+)  +\S", lad.__doc__ or "", flags=re.M) + re.findall(
    r"^    ((?:\w+, )*\w+) controls", lad.__doc__ or "", flags=re.M
)
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row.split(", ")}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Rooms that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "lad":
                names = parts[1:2] or [alias.name for alias in node.names]
                found.update(names)
    return found & set(LEVEL)


def test_every_room_has_its_place():
    assert {room(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_imports_one_below_it(path):
    below = {other for other in imported(path) if LEVEL[other] > LEVEL[room(path)]}
    assert not below


@pytest.mark.parametrize("name", ["errors", "settings", "assets", "hub", "backbones"])
def test_what_answers_without_a_model_does_not_wait_for_torch(name):
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in top}
    assert not names & {"torch", "transformers", "peft"}
