"""The import graph: layers, cycles, public APIs, and where libraries may be imported."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.source import ROOT, Import, imports, modules, parse, relative

# From bottom to top. A module imports only from its own layer and from lower layers.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        *("fgst.errors", "fgst.durable", "fgst.terminal", "fgst.termination", "fgst.network", "fgst.integrity"),
        *("fgst.parsing", "fgst.field_values", "fgst.config", "fgst.result_setting", "fgst.table_files"),
    ),
    ("fgst.data",),
    ("fgst.model",),
    ("fgst.evaluation",),
    ("fgst.training",),
    ("fgst.tracking",),
    ("fgst.sweep",),
    ("fgst.ops",),
    ("fgst.cli",),
)
ENTRY_POINTS = len(LAYERS)  # modules above all layers: `fgst.train`, `fgst.model.__main__` …
FGST = {name: path for name, path in modules().items() if name.partition(".")[0] == "fgst"}
PACKAGES = sorted(name for name, path in FGST.items() if path.name == "__init__.py")
MAX_LINES = 450

# Where a library may be imported: "module" also at the top of a module, "function" only within functions.
LIBRARIES: dict[str, dict[str, tuple[str, ...]]] = {
    "ray": {
        "module": ("fgst/sweep/backends/",),
        "function": ("fgst/sweep/", "fgst/cli/sweep.py"),
    },
    "mlflow": {"module": ("fgst/tracking/",), "function": ()},
    "optuna": {
        "module": ("fgst/sweep/search.py", "fgst/sweep/study_storage.py", "fgst/sweep/report/"),
        "function": ("fgst/sweep/runner.py",),
    },
    "argparse": {"module": ("fgst/cli/",), "function": ()},
}
# Modules whose import must not load any of these libraries.
HEAVY = ("torch", "ray", "optuna", "mlflow", "pandas", "matplotlib", "plotly", "scipy", "sqlalchemy", "rich")
LIGHT = (
    *("fgst", "fgst.config", "fgst.durable", "fgst.errors", "fgst.network"),
    *("fgst.data", "fgst.data.skeleton", "fgst.data.dataset", "fgst.data.writer", "fgst.data.cache"),
    *(name for name in sorted(FGST) if name.startswith("fgst.data.formats")),
    *("fgst.sweep.definition", "fgst.sweep.status"),
    # The tables of a command are imported when they are printed.
    *(name for name in sorted(FGST) if name.startswith("fgst.cli") and not name.endswith("_tables")),
)
# The core is independent of tracking and search: it may import torch, but none of the other libraries.
CORE = tuple(
    name for name in sorted(FGST) if re.match(r"fgst\.(data|model|evaluation|training)\b", name) and "plots" not in name
)
PRIVATE_RAY = re.compile(r"\bray(\.\w+)*\._\w+|\bfrom ray import _\w+")


def layer_of(module: str) -> int:
    """Return the index of a module's layer; entry points are above all layers."""
    if module.endswith("__main__"):
        return ENTRY_POINTS
    for index, packages in enumerate(LAYERS):
        if any(module == package or module.startswith(f"{package}.") for package in packages):
            return index
    return ENTRY_POINTS


def first_party(imported: Iterable[Import]) -> list[Import]:
    """Return the imports of modules of this project."""
    return [item for item in imported if item.module in modules()]


# Layers and cycles


@pytest.mark.parametrize("module", sorted(FGST))
def test_module_imports_only_its_layer_and_lower_ones(module: str) -> None:
    if module == "fgst":  # the lazy public API
        return
    path = FGST[module]
    for item in first_party(imports(parse(path))):
        if item.module == "fgst":
            assert layer_of(module) >= layer_of("fgst.cli"), f"{relative(path)}:{item.line} imports the whole of fgst"
        else:
            # fgst.config names the data set's type in annotations only.
            allowed = item.for_typing and module.startswith("fgst.config.")
            assert allowed or layer_of(item.module) <= layer_of(module), (
                f"{relative(path)}:{item.line} imports {item.module}"
            )


@pytest.mark.parametrize("module", sorted(FGST))
def test_package_does_not_import_scripts(module: str) -> None:
    scripts = {"data_prep", "sweeps", "benchmarks", "tests", "tools", "pytest"}
    for item in imports(parse(FGST[module])):
        assert item.top_level not in scripts, f"{relative(FGST[module])}:{item.line} imports {item.module}"


def test_imports_have_no_cycle() -> None:
    """Imports within functions are included."""
    graph = {
        module: {item.module for item in first_party(imports(parse(path))) if not item.for_typing} - {module}
        for module, path in FGST.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"cycle: {' <- '.join(error.args[1])}")


def test_cycle_is_detected() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


# Imports within functions


def lazy_imports_without_reason(source: str) -> list[int]:
    """Return the lines of first-party imports within functions without a comment that contains the word "lazy".

    The comment is on the import's line, on the line before, or before the first of several imports in a row.
    """
    tree, lines = ast.parse(source), source.splitlines()
    lazy = {item.line for item in imports(tree) if item.in_function and item.top_level == "fgst"}
    starts = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
    ends = {node.end_lineno: node.lineno for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}

    def explained(line: int) -> bool:
        while True:
            if any("#" in text and "lazy" in text.partition("#")[2] for text in lines[max(0, line - 2) : line]):
                return True
            above = line - 1
            while above > 0 and not lines[above - 1].strip():  # the blank line between groups of imports
                above -= 1
            if above not in ends:
                return False
            line = ends[above]

    return sorted(line for line in lazy & starts if not explained(line))


@pytest.mark.parametrize("module", sorted(FGST))
def test_imports_within_functions_have_a_reason(module: str) -> None:
    path = FGST[module]
    lines = lazy_imports_without_reason(path.read_text(encoding="utf-8"))
    assert not lines, f"{relative(path)}: lines {lines} need a comment `# lazy: reason`, or belong to the top"


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("from fgst import errors", []),
        ("def f():\n    from fgst import errors", [2]),
        ("def f():\n    from fgst import errors  # lazy: torch", []),
        ("def f():\n    # lazy: torch\n    from fgst import errors\n    from fgst import config", []),
        (
            "def f():\n    # lazy: torch\n    from fgst import (\n        errors,\n    )\n    from fgst import config",
            [],
        ),
        ("def f():\n    # lazy: torch\n    x = 1\n    from fgst import config", [4]),
        ("def f():\n    import torch", []),
    ],
)
def test_lazy_import_without_reason_is_detected(source: str, lines: list[int]) -> None:
    assert lazy_imports_without_reason(source) == lines


# Libraries


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_is_imported_in_allowed_modules_only(library: str) -> None:
    rule, violations = LIBRARIES[library], []
    for path in FGST.values():
        for item in imports(parse(path)):
            allowed = rule["module"] + (rule["function"] if item.in_function or item.for_typing else ())
            if item.top_level == library and not relative(path).startswith(allowed):
                violations.append(f"{relative(path)}:{item.line}")
    assert violations == []


def test_argparse_namespaces_are_used_in_command_line_package_only() -> None:
    violations = [
        relative(path)
        for path in FGST.values()
        if not relative(path).startswith("fgst/cli/") and re.search(r"\bNamespace\b", path.read_text(encoding="utf-8"))
    ]
    assert violations == []


def test_private_functions_of_ray_are_used_in_one_module() -> None:
    users = [relative(path) for path in FGST.values() if PRIVATE_RAY.search(path.read_text(encoding="utf-8"))]
    assert users == ["fgst/sweep/backends/_ray_private.py"]


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("from ray._private import state", True),
        ("from ray import _raylet", True),
        ("ray.autoscaler._private.util.validate_config(x)", True),
        ("from fgst.sweep.backends import _ray_private", False),
        ("ray.util.placement_group()", False),
        ("array._private", False),
    ],
)
def test_private_function_of_ray_is_detected(text: str, private: bool) -> None:
    assert bool(PRIVATE_RAY.search(text)) == private


def loading_error(names: Iterable[str], libraries: Iterable[str]) -> str:
    """Import modules one by one in a new process, and report the first one that loads one of the libraries."""
    script = f"""
import importlib, sys
for name in {list(names)!r}:
    importlib.import_module(name)
    for library in {list(libraries)!r}:
        if library in sys.modules:
            sys.exit(f"{{name}} loads {{library}}")
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    return process.stderr.strip()


def test_light_modules_load_no_heavy_library() -> None:
    assert loading_error(LIGHT, HEAVY) == ""


def test_core_loads_neither_tracking_nor_search() -> None:
    assert loading_error(CORE, [library for library in HEAVY if library not in ("torch", "scipy")]) == ""


def test_loading_of_heavy_library_is_detected() -> None:
    assert loading_error(["fgst.model.fgstformer"], ["torch"]) == "fgst.model.fgstformer loads torch"


# Packages


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_docstring_and_public_api(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__, f"{package}: the docstring is missing"
    assert isinstance(module.__all__, list | tuple), f"{package}: __all__ is missing"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None, f"{package}.{name}"
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018 (a lazy __getattr__ must raise, too)


@pytest.mark.parametrize("module", sorted(FGST))
def test_module_length_is_limited(module: str) -> None:
    lines = len(FGST[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{relative(FGST[module])} has {lines} lines; split it"


# Helpers of these tests


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ray.tune as t, os", [("ray.tune", False, False), ("os", False, False)]),
        ("def f():\n    from ray import tune", [("ray", True, False)]),
        ("from . import ray", []),
        ("importlib.import_module('optuna.samplers')", [("optuna.samplers", False, False)]),
        ("from fgst.data import skeleton", [("fgst.data.skeleton", False, False)]),
        ("from fgst.data.skeleton import Skeleton", [("fgst.data.skeleton", False, False)]),
        ("if TYPE_CHECKING:\n    import ray\nelse:\n    import os", [("ray", False, True), ("os", False, False)]),
        ("rays = 'import ray'", []),
    ],
)  # fmt: skip
def test_imports_are_listed(source: str, expected: list[tuple[str, bool, bool]]) -> None:
    assert [(i.module, i.in_function, i.for_typing) for i in imports(ast.parse(source))] == expected


@pytest.mark.parametrize(
    ("module", "check"),
    [
        ("fgst.config", lambda layer: layer == 0),
        ("fgst.data.formats.ntu_skeleton", lambda layer: layer == 1),
        ("fgst.model.__main__", lambda layer: layer == ENTRY_POINTS),
        ("fgst.train", lambda layer: layer == ENTRY_POINTS),
        ("fgst.training.trainer", lambda layer: layer == 4),
    ],
)
def test_layer_of_module(module: str, check: Callable[[int], bool]) -> None:
    assert check(layer_of(module))


def test_all_layers_exist() -> None:
    for packages in LAYERS:
        for package in packages:
            assert package in FGST
    assert Path(FGST["fgst.cli.main"]).is_file()
