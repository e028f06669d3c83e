"""pyproject.toml, requirements.lock and environment.yml agree; notebooks are clean pairs.

The comparisons are functions that return problems as lines of text, so that each is also shown to
find what it looks for.
"""

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
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "lm-eval": "lm_eval"}
ACCELERATOR = re.compile(r"^(nvidia|cuda|triton)")  # what a GPU build of torch asks for by itself
MODULES = {"yaml": "pyyaml"}  # imported name -> distribution, where they differ
# Extras for those who ask for them, on their own machine: bitsandbytes, once there, is imported by
# peft at every start, which takes a second and on some CPUs prints a warning each time.
NOT_LOCKED = {"quantized"}


def read_project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def read_lock():
    return (ROOT / "requirements.lock").read_text()


def read_conda():
    return yaml.safe_load((ROOT / "environment.yml").read_text())


def declared(project):
    """What pyproject names and the lock holds: package, extras and build, by canonical name."""
    lists = [project["project"]["dependencies"], project["build-system"]["requires"]]
    extras = project["project"]["optional-dependencies"]
    lists += [extras[name] for name in extras.keys() - NOT_LOCKED]
    found = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pins(lock):
    """Name -> version of a lock's text; a line that is no plain pin maps to None."""
    found = {}
    for line in lock.splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            found[canonicalize_name(pin[1]) if pin else line] = pin[2] if pin else None
    return found


def lock_problems(project, lock):
    """Why the lock is not one for this project."""
    pinned = pins(lock)
    for name, pin in pinned.items():
        if pin is None:
            yield f"not a plain pin: {name}"
        elif ACCELERATOR.match(name):
            yield f"{name} belongs to one kind of machine"
    if "/" in lock:
        yield "the lock names a path or an address"
    for name, requirement in declared(project).items():
        if not pinned.get(name):
            yield f"{name} is not in the lock"
        elif not requirement.specifier.contains(pinned[name]):
            yield f"the lock's {name} {pinned[name]} is outside {requirement.specifier}"


def conda_problems(project, lock, conda):
    """Why environment.yml does not describe the same environment."""
    pinned = pins(lock)
    wanted = {CONDA_NAMES.get(n, n): (n, r.specifier) for n, r in declared(project).items()}
    python = SpecifierSet(project["project"]["requires-python"])
    seen = set()
    for line in conda["dependencies"]:
        name, spec = re.fullmatch(r"([a-z0-9_-]+)(.*)", line).groups()
        name = name if name in wanted else canonicalize_name(name)
        seen.add(name)
        if name == "python":
            if not python.contains(spec.lstrip("=")):
                yield f"python {spec} is outside {python}"
        elif name in wanted:
            pypi, specifier = wanted[name]
            if SpecifierSet(spec) != specifier:
                yield f"{name} is {spec!r}, pyproject says {specifier}"
            if pypi in pinned and not SpecifierSet(spec).contains(pinned[pypi]):
                yield f"the lock's {pypi} {pinned[pypi]} is outside conda's {spec}"
        elif name != "pip":
            yield f"{name} is in environment.yml alone"
    yield from (f"{name} is not in environment.yml" for name in sorted({"python", *wanted} - seen))


def test_the_lock_covers_pyproject():
    assert list(lock_problems(read_project(), read_lock())) == []
    assert pins(read_lock())["torch"] == "2.13.0"


def test_environment_yml_agrees():
    assert list(conda_problems(read_project(), read_lock(), read_conda())) == []


@pytest.mark.parametrize(
    ("pattern", "replacement", "problem"),
    [
        (r"(?m)^torch==.*\n", "", "torch is not in the lock"),
        (r"(?m)^torch==.*", "torch==1.13.0", "torch 1.13.0 is outside"),
        (r"(?m)^torch==.*", "torch==2.13.0+cpu", "not a plain pin"),
        (r"(?m)^torch==.*", "torch @ file:///tmp/torch.whl", "a path or an address"),
        (r"(?m)^torch==", "--index-url https://host/simple\ntorch==", "a path or an address"),
        (r"(?m)^torch==", "nvidia-cublas-cu12==12.8\ntorch==", "one kind of machine"),
    ],
)
def test_a_bad_lock_is_found(pattern, replacement, problem):
    broken, times = re.subn(pattern, replacement, read_lock())
    assert times == 1
    assert any(problem in line for line in lock_problems(read_project(), broken))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("python=3.11", "python=3.9", "python =3.9 is outside"),
        ("pytorch>=2.11,<3", "pytorch>=2.0,<3", "pytorch is '>=2.0,<3'"),
        ("peft>=0.21,<1", "peft>=0.1,<0.2", "is outside conda's"),
        ("  - nbmake>=1.5.5,<2\n", "", "nbmake is not in environment.yml"),
        ("  - pip\n", "  - pip\n  - tensorflow\n", "tensorflow is in environment.yml alone"),
    ],
)
def test_a_bad_environment_yml_is_found(old, new, problem):
    text = (ROOT / "environment.yml").read_text()
    assert text.count(old) == 1
    conda = yaml.safe_load(text.replace(old, new))
    assert any(problem in line for line in conda_problems(read_project(), read_lock(), conda))


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11),
    reason="the lock was made for Linux and Python 3.11; elsewhere pip adds or drops a few",
)
def test_the_lock_holds_what_the_project_needs_and_nothing_else():
    project, pinned = read_project(), pins(read_lock())
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
