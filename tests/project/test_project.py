"""What holds for the project as a whole: who may import what, what is packed, and that nothing is ever unpickled."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("fgst", "sweeps", "data_prep", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
CORE = ("training", "batches", "model", "dataset", "metrics", "checkpoint", "config", "skeleton", "modality", "errors")
HEAVY = ("ray", "optuna", "mlflow", "pandas", "matplotlib", "plotly", "sqlalchemy", "rich")
WITH_MLFLOW = ["fgst/registry.py", "fgst/served.py", "fgst/tracked_run.py", "fgst/tracking.py"]
UNPICKLERS = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle")


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level names of all modules that a source imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value.split(".")[0]


def unpickling(tree: ast.AST) -> Iterator[str]:
    """Whatever in a source could run code that a file brings along."""
    yield from (f"imports {name}" for name in imported(tree) if name in UNPICKLERS)
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


def python(script: str) -> str:
    """Run a script as a person would, in the folder of the project."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# The folder mlflow/


def test_mlflow_is_the_library_and_not_the_folder() -> None:
    out = python("import mlflow, mlflow.tracking; print(mlflow.__file__)")
    assert Path(out).name == "__init__.py"
    assert ROOT / "mlflow" not in Path(out).parents


def test_the_folder_mlflow_holds_no_module() -> None:
    assert (ROOT / "mlflow").is_dir()
    modules = [path for path in (ROOT / "mlflow").rglob("*") if path.suffix in (".py", ".pyi", ".pyc", ".so")]
    assert modules == []
    assert not (ROOT / "mlflow.py").exists()


# Who imports what


def test_the_core_imports_nothing_heavy() -> None:
    modules = ", ".join(f"fgst.{name}" for name in CORE)
    out = python(f"import sys, {modules}; print(*(name for name in {HEAVY!r} if name in sys.modules))")
    assert out == ""


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_their_own_modules_import_ray_optuna_and_mlflow(path: Path) -> None:
    names = set(imported(ast.parse(path.read_text())))
    if not {ROOT / "fgst" / "sweep", ROOT / "benchmarks"} & set(path.parents):
        assert not names & {"ray", "optuna"}
    if name_of(path) not in WITH_MLFLOW:
        assert "mlflow" not in names
    assert not names & {"tests", "pytest"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_ever_unpickled(path: Path) -> None:
    assert list(unpickling(ast.parse(path.read_text()))) == []


def test_the_sources_were_found() -> None:
    names = set(map(name_of, SOURCES))
    assert {"fgst/tracking.py", "fgst/sweep/engine.py", "sweeps/focal_k.py", "data_prep/nw_ucla.py"} <= names
    importers = [path for path in SOURCES if "mlflow" in set(imported(ast.parse(path.read_text())))]
    assert list(map(name_of, importers)) == WITH_MLFLOW


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import ray.tune as t, os", {"ray", "os"}),
        ("def f():\n    from ray import tune", {"ray"}),
        ("from . import ray", set()),
        ("import importlib\nimportlib.import_module('optuna.samplers')", {"importlib", "optuna"}),
        ("rays = 'import ray'", set()),
    ],
)
def test_imports_are_found_wherever_they_are(source: str, names: set[str]) -> None:
    assert set(imported(ast.parse(source))) == names


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
def test_unpickling_is_found(source: str) -> None:
    assert list(unpickling(ast.parse(source)))
    assert not list(unpickling(ast.parse("torch.load(path, weights_only=True); np.load(path, allow_pickle=False)")))


# What is packed


def test_every_package_is_listed_and_exists() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in SOURCES if path.parts[len(ROOT.parts)] in ("fgst", "data_prep")}
    assert sorted(listed) == sorted(folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders)
    for package in listed:
        assert (ROOT / package.replace(".", "/") / "__init__.py").is_file(), package


def test_folders_of_scripts_are_no_packages() -> None:
    for folder in ("sweeps", "benchmarks", "mlflow"):
        assert not (ROOT / folder / "__init__.py").exists()
