"""pyproject.toml, requirements.lock and environment.yml agree; notebooks are clean pairs."""

import ast
import json
import re
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Where they differ from PyPI's.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
ACCELERATOR = re.compile(r"^(nvidia|cuda|triton)")  # what a GPU build of torch asks for by itself
MODULES = {"yaml": "pyyaml"}  # imported name -> distribution, where they differ
# Extras for those who ask for them, on their own machine: bitsandbytes, once there, is imported by
# peft at every start, which takes a second and on some CPUs prints a warning each time.
NOT_LOCKED = {"quantized"}


def read_project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_lock():
    return (ROOT / "requirements.lock").read_text()


def declared(project):
    """What pyproject names and the lock holds: package, extras and build, by canonical name."""
    lists = [project["project"]["dependencies"], project["build-system"]["requires"]]
    extras = project["project"]["optional-dependencies"]
    lists += [extras[name] for name in extras.keys() - NOT_LOCKED]
    found = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pins():
    """Name -> version of requirements.lock, in which every line is a plain pin."""
    lines = [line for line in read_lock().splitlines() if line and not line.startswith("#")]
    found = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line) for line in lines]
    assert None not in found, lines[found.index(None)]
    return {canonicalize_name(pin[1]): pin[2] for pin in found}


def test_the_lock_covers_pyproject_on_any_machine():
    pinned = pins()
    assert pinned["torch"] == "2.13.0" and not any(map(ACCELERATOR.match, pinned))
    assert "/" not in read_lock(), "a path or an address"
    for name, requirement in declared(read_project()).items():
        assert requirement.specifier.contains(pinned.get(name, "none in the lock")), name


def test_environment_yml_asks_for_the_same():
    lines = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    asked = dict(re.fullmatch(r"([a-z0-9_-]+)(.*)", line).groups() for line in lines)
    project, python = read_project(), asked.pop("python").lstrip("=")
    assert SpecifierSet(project["project"]["requires-python"]).contains(python)
    assert asked.pop("pip") == ""
    found = {canonicalize_name(name): SpecifierSet(spec) for name, spec in asked.items()}
    wanted = {CONDA_NAMES.get(n, n): r.specifier for n, r in declared(project).items()}
    assert found == wanted


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11),
    reason="the lock was made for Linux and Python 3.11; elsewhere pip adds or drops a few",
)
def test_the_lock_holds_what_the_project_needs_and_nothing_else():
    project, pinned = read_project(), pins()
    needed, queue = set(), list(declared(project).values())
    done = set()
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in done or ACCELERATOR.match(name):
            continue
        done.add(key)
        needed.add(name)
        try:
            lines = distribution(name).requires or ()
        except PackageNotFoundError:
            pytest.fail(f"{name} is needed but not installed: run make")
        for inner in map(Requirement, lines):
            extras = requirement.extras or {""}
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                queue.append(inner)
    assert sorted(needed - set(pinned)) == [], "needed, not locked: install it, then make lock"
    assert sorted(set(pinned) - needed) == [], "locked, not needed: a stray in .venv?"


def imported(path):
    """Top-level names of what a source file imports, the package itself and stdlib left out."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"lad"}


def test_every_import_is_declared():
    project = read_project()["project"]
    extras = project["optional-dependencies"]
    runtime = {canonicalize_name(Requirement(r).name) for r in project["dependencies"]}
    notebooks = {canonicalize_name(Requirement(r).name) for r in extras["notebooks"]}
    notebooks |= runtime | {"ipython"}  # comes with ipykernel and ipywidgets
    notebooks |= {"jupyter-server", "tornado", "traitlets"}  # what voila is made of
    needs_extra = {"report.py", "widgets"}
    evaluation = runtime | {canonicalize_name(Requirement(r).name) for r in extras["eval"]}
    asked_by_others = {"evaluation/harness.py"}
    undeclared = []
    for path in sorted((ROOT / "lad").rglob("*.py")):
        within = path.relative_to(ROOT / "lad")
        allowed = notebooks if within.parts[0] in needs_extra else runtime
        allowed = evaluation if within.as_posix() in asked_by_others else allowed
        for module in sorted(imported(path)):
            if canonicalize_name(MODULES.get(module, module)) not in allowed:
                undeclared.append(f"lad/{within} imports {module}")
    assert undeclared == []


def test_opening_and_saving_a_notebook_in_jupyterlab_changes_no_tracked_file(tmp_path):
    jupytext = pytest.importorskip("jupytext")
    shutil.copytree(ROOT / "notebooks", tmp_path, dirs_exist_ok=True)
    manager = jupytext.TextFileContentsManager(root_dir=str(tmp_path))
    for book in tmp_path.glob("*.ipynb"):
        notebook = manager.get(book.name)["content"]
        # From the kernel; its version is that of the Python at hand.
        assert notebook.metadata["language_info"]["nbconvert_exporter"] == "python"
        manager.save({"type": "notebook", "content": notebook, "format": "json"}, book.name)
    for file in tmp_path.glob("[0-9]*"):
        assert file.read_bytes() == (ROOT / "notebooks" / file.name).read_bytes(), file.name


def test_notebooks_are_clean_pairs():
    scripts = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert scripts, "no notebook at all"
    assert [p.stem for p in scripts] == [p.stem for p in books]
    for book in books:
        notebook = json.loads(book.read_text())
        [line] = [c for c in notebook["cells"] if "Run > Run All Cells" in "".join(c["source"])]
        assert "minute" in "".join(line["source"]), f"{book.name}: how long that takes"
        assert "widgets" not in notebook["metadata"], f"{book.name} holds widget state: make sync"
        for cell in notebook["cells"]:
            assert not cell.get("outputs"), f"{book.name} holds outputs: make sync"
            assert cell.get("execution_count") is None, f"{book.name} was run: make sync"
