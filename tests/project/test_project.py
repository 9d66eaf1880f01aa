"""Rules for the whole project: the folder ``mlflow/``, unpickling, packaging and pinned versions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.source import ROOT, imports, parse, relative, source_files

SOURCES = source_files()
UNPICKLERS = (
    "pickle",
    "_pickle",
    "pickletools",
    "copyreg",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
)
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def unpickling(tree: ast.AST) -> Iterator[str]:
    """Yield all constructs of a source that could execute code contained in a file."""
    yield from (f"imports {item.top_level}" for item in imports(tree) if item.top_level in UNPICKLERS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load" and options.get("weights_only") != "True":
                yield f"{called} without weights_only=True"
            if options.get("weights_only", "True") != "True":
                yield f"{called} with weights_only={options['weights_only']}"
            if options.get("allow_pickle", "False") != "False":
                yield f"{called} with allow_pickle={options['allow_pickle']}"
            if called.split(".")[-1] in ("read_pickle", "to_pickle"):
                yield called


# Writing


def test_files_are_renamed_and_synced_by_one_module() -> None:
    """A rename without the syncs of ``fgst.durable`` can lose a file in a power cut."""
    appends = {"fgst/tracking/spool.py:os.fsync", "fgst/sweep/storage.py:os.fsync"}  # nothing is renamed
    found = set()
    for path in SOURCES:
        for node in ast.walk(parse(path)):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("os.fsync", "os.replace", "os.rename", "shutil.move") or called.endswith(".rename"):
                found.add(f"{relative(path)}:{called}")
    own = {"fgst/durable.py:os.fsync", "fgst/durable.py:temporary.rename"}
    assert own <= found
    assert {name for name in found if name.startswith("fgst/") and not name.startswith("fgst/durable.py:")} == appends


# The folder mlflow/


def test_import_mlflow_imports_library() -> None:
    """The folder mlflow/ in the working directory must not shadow the library."""
    script = "import importlib.util; print(importlib.util.find_spec('mlflow').origin)"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    origin = Path(process.stdout.strip())
    assert origin.name == "__init__.py"
    assert ROOT / "mlflow" not in origin.parents
    specification = find_spec("mlflow")
    assert specification is not None
    assert Path(str(specification.origin)) == origin


def test_mlflow_folder_contains_no_module() -> None:
    assert (ROOT / "mlflow").is_dir()
    assert [path for path in (ROOT / "mlflow").rglob("*") if path.suffix in (".py", ".pyi", ".pyc", ".so")] == []
    assert not (ROOT / "mlflow.py").exists()


# Unpickling


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_source_does_not_unpickle(path: Path) -> None:
    assert list(unpickling(parse(path))) == []


def test_source_files_include_all_folders() -> None:
    names = set(map(relative, SOURCES))
    assert {"fgst/tracking/store.py", "fgst/sweep/runner.py", "sweeps/focal_k.py", "data_prep/nw_ucla.py"} <= names


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=trusted)",
        "load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "table.read_pickle(path)",
    ],
)
def test_unpickling_is_detected(source: str) -> None:
    assert list(unpickling(ast.parse(source)))
    assert not list(unpickling(ast.parse("torch.load(path, weights_only=True); np.load(path, allow_pickle=False)")))


# Packaging


def test_every_package_is_listed_and_exists() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in SOURCES if path.relative_to(ROOT).parts[0] in ("fgst", "data_prep")}
    assert sorted(listed) == sorted(relative(folder).replace("/", ".") for folder in folders)
    for package in listed:
        assert (ROOT / package.replace(".", "/") / "__init__.py").is_file(), package


def test_data_files_are_packed() -> None:
    """Files of packages other than Python sources match a pattern of package-data."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for package, globs in patterns.items()
        for pattern in globs
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = {path for path in (ROOT / "fgst").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files <= packed, sorted(map(relative, files - packed))


def test_script_folders_are_not_packages() -> None:
    for folder in ("sweeps", "benchmarks", "mlflow"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_console_script_exists() -> None:
    module, _, function = PYPROJECT["project"]["scripts"]["fgst"].partition(":")
    specification = find_spec(module)
    assert specification is not None
    assert specification.origin is not None
    tree = ast.parse(Path(specification.origin).read_text(encoding="utf-8"))
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def canonical(name: str) -> str:
    """Normalize the name of a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_direct_dependencies_are_pinned() -> None:
    """Each package in pyproject.toml has a version in constraints.txt, so that installations are reproducible."""
    project = PYPROJECT["project"]
    required = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {canonical(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in required} - {"fgst"}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pinned = {canonical(pin.partition("==")[0]) for pin in pins}
    assert all("==" in pin for pin in pins)
    assert names <= pinned, sorted(names - pinned)
