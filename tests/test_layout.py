"""Imports go one way: the order of subpackages in `lad`'s docstring is the order of imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lad

PACKAGE = Path(lad.__file__).parent
ROOT = PACKAGE.parent
ORDER = re.findall(r"^    (\w+)  +\S", lad.__doc__ or "", flags=re.M)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))


def subpackage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Subpackages that a module imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "lad":
                found.update(parts[1:2] or [alias.name for alias in node.names])
    return found & set(ORDER)


def test_the_docstring_lists_every_subpackage():
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert entries - {"__init__", "__main__", "__pycache__", "assets"} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_later_subpackage(path):
    place = ORDER.index(subpackage(path))
    assert not {other for other in imported(path) if ORDER.index(other) > place}


APP = "from lad.__main__ import make_app; make_app('info', 'figures', 'demo')"


@pytest.mark.parametrize("code", ["import lad", "from lad.models import registry", APP])
def test_what_answers_without_a_model_does_not_load_torch(code):
    check = f"import sys; {code}; assert not {{'torch', 'transformers', 'peft'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *ROOT.glob("docs/*.md")], ids=lambda p: p.stem
)
def test_files_that_a_page_names_or_links_to_exist(path):
    text = path.read_text(encoding="utf-8")
    linked = {path.parent / name for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)}
    named = re.findall(r"`((?:docs|configs|figures|lad|notebooks|tests)/[\w./-]+\.\w+)`", text)
    assert [one for one in linked | {ROOT / name for name in named} if not one.exists()] == []
