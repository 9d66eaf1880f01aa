"""The project's source files, and the imports of each."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("fgst", "sweeps", "data_prep", "benchmarks")
"""The folders of Python source files, without the tests."""


@dataclass(frozen=True)
class Import:
    """An import statement, for one of the names that it imports.

    Attributes:
        module: the imported module; for ``from package import module`` that is ``package.module``.
        line: its line number.
        in_function: whether it runs only when a function is called.
        for_typing: whether it is in an ``if TYPE_CHECKING`` block.
    """

    module: str
    line: int
    in_function: bool = False
    for_typing: bool = False

    @property
    def top_level(self) -> str:
        return self.module.partition(".")[0]


def source_files() -> list[Path]:
    """All Python files of :data:`FOLDERS`, sorted."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    """A file's path relative to the repository's root."""
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """``fgst/data/__init__.py`` → ``fgst.data``."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    """The modules of :data:`FOLDERS` by name."""
    return {module_name(path): path for path in source_files()}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(tree: ast.AST) -> list[Import]:
    """All imports of a module, including those in functions and calls of ``import_module`` with a constant name."""
    return list(_imports(tree, in_function=False, for_typing=False))


def _imports(node: ast.AST, *, in_function: bool, for_typing: bool) -> Iterator[Import]:
    context = {"in_function": in_function, "for_typing": for_typing}
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, **context) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            candidate = f"{node.module}.{alias.name}"
            yield Import(candidate if candidate in modules() else node.module, node.lineno, **context)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.args[0].value
        if ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__") and isinstance(name, str):
            yield Import(name, node.lineno, **context)
    if isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
        for statement in node.body:
            yield from _imports(statement, in_function=in_function, for_typing=True)
        for statement in node.orelse:
            yield from _imports(statement, in_function=in_function, for_typing=for_typing)
        return
    in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, in_function=in_function, for_typing=for_typing)
