"""Train FG-STFormer networks for skeleton-based action recognition, and sweep their design choices.

Examples:
  fgst data demo datasets/demo                                     generated motion, for trying things out
  fgst data nw-ucla all_sqe.zip datasets/nw-ucla                   real recordings
  fgst train --dataset datasets/nw-ucla --preset small             train one network
  fgst sweep                                                       list the sweeps
  fgst sweep focal_k --dataset datasets/nw-ucla --preset tiny      how many focal joints?
  fgst runs best                                                   the best networks so far
  fgst evaluate --run-id RUN_ID                                    accuracy of each class on the test clips

"fgst COMMAND --help" describes a command, with examples. Runs are recorded in mlflow.db in the working directory, or in
the tracking store that MLFLOW_TRACKING_URI names; "make ui" shows them.
"""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fgst
from fgst.cli.command import invoked_as, run_command
from fgst.errors import InputError


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        module: defines ``main(argv)``; imported when the command is chosen.
        summary: one line for ``fgst --help``.
    """

    module: str
    summary: str


COMMANDS = {
    "train": Command("fgst.cli.train", "train one network"),
    "evaluate": Command("fgst.cli.evaluate", "score a trained network or an ensemble on a data set"),
    "predict": Command("fgst.cli.predict", "classify raw recordings"),
    "explain": Command("fgst.cli.explain", "draw the focal joints that a network selects"),
    "runs": Command("fgst.cli.runs", "list, compare and clean up runs"),
    "model": Command("fgst.cli.model", "print a network layer by layer: shapes, parameters, FLOPs"),
    "server": Command("fgst.cli.server", "start a tracking server for a team"),
    "server-backup": Command("fgst.cli.server_backup", "save or restore the tracking server's database and artifacts"),
}
DATA_COMMANDS = {
    "nw-ucla": Command("fgst.cli.data_nw_ucla", "convert Northwestern-UCLA"),
    "ntu": Command("fgst.cli.data_ntu", "convert NTU RGB+D 60 or 120"),
    "convert": Command("fgst.cli.data_convert", "convert a data set in one of the field's formats"),
    "custom": Command("fgst.cli.data_custom", "convert your own recordings"),
    "demo": Command("fgst.cli.data_demo", "generate motion for trying things out"),
    "export": Command("fgst.cli.data_export", "export a data set for other projects' code"),
    "inspect": Command("fgst.cli.data_inspect", "check and describe a data set, draw a clip"),
}
DATA_DOC = """Convert raw recordings to an Arrow data set, or inspect one.

Examples:
  fgst data nw-ucla all_sqe.zip datasets/nw-ucla
  fgst data ntu nturgbd_skeletons_s001_to_s017.zip datasets/ntu-60 --edition 60
  fgst data inspect datasets/nw-ucla --clip a01_s01_e00_v01 --animate"""
SWEEP_DOC = """Run a sweep: train the network once for each value of a design choice and compare the results.

Examples:
  fgst sweep focal_k                                 sweeps/focal_k.py, on generated motion
  fgst sweep focal_k --dataset datasets/nw-ucla --values 5,15,20
  fgst sweep focal_k --help                          all options
  fgst sweep my/kernel_size.py                       your own script

NAME.py is looked up in sweeps/ of the working directory, then in the sweeps/ that comes with fgst."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fgst`` with the given arguments (default: those of the process) and exit."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    run_command(lambda: dispatch(arguments))


def dispatch(arguments: Sequence[str]) -> None:
    """Run the sub-command that the arguments name.

    Raises:
        InputError: if there is no such sub-command.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        groups = {
            "data": f"prepare data sets: {', '.join(DATA_COMMANDS)}",
            "sweep": "run a sweep; without a name, list them",
        }
        print_help("fgst", __doc__ or "", groups | {n: c.summary for n, c in COMMANDS.items()})
        print("\noptions:\n  -h, --help      show this help\n  --version       show the version")
    elif name == "--version":
        import importlib.metadata

        print(f"fgst {importlib.metadata.version('fgst')}")
    elif name == "data":
        run_data_command(rest)
    elif name == "sweep":
        run_sweep(rest)
    else:
        require_known(name, [*COMMANDS, "data", "sweep"], "fgst")
        run_module(COMMANDS[name], f"fgst {name}", rest)


def run_data_command(arguments: Sequence[str]) -> None:
    """``fgst data NAME …``."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print_help("fgst data", DATA_DOC, {n: c.summary for n, c in DATA_COMMANDS.items()})
        return
    require_known(name, DATA_COMMANDS, "fgst data")
    run_module(DATA_COMMANDS[name], f"fgst data {name}", rest)


def run_module(command: Command, prog: str, arguments: Sequence[str]) -> None:
    """Import a command's module and call its ``main``."""
    command_main: Callable[[Sequence[str]], None] = importlib.import_module(command.module).main
    with invoked_as(prog):
        command_main(arguments)


def require_known(name: str, names: Collection[str], prog: str, kind: str = "command") -> None:
    """Raise an InputError that suggests the closest name if ``name`` is not one of ``names``."""
    if name in names:
        return
    from difflib import get_close_matches

    close = get_close_matches(name, list(names), 1)
    remedy = f"did you mean {close[0]}?" if close else f"choose from {', '.join(names)}"
    raise InputError(f"{prog}: unknown {kind} {name!r}; {remedy}")


def print_help(prog: str, doc: str, commands: Mapping[str, str]) -> None:
    """Print usage, description and the table of sub-commands."""
    print(f"usage: {prog} COMMAND …\n\n{doc.strip()}\n\ncommands:")
    for name, summary in commands.items():
        print(f"  {name:<15} {summary}")


# Sweeps


def run_sweep(arguments: Sequence[str]) -> None:
    """``fgst sweep NAME …``: run a sweep's script as ``python SCRIPT …`` does; without a name, list the scripts."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: fgst sweep NAME|FILE.py …\n\n{SWEEP_DOC}\n\nsweeps:")
        for name, path in sweep_scripts().items():
            print(f"  {name:<17} {first_line_of_docstring(path)}")
        return
    name, *rest = arguments
    script = find_sweep(name)
    before = sys.argv
    # The script derives the resume command from sys.argv[0]: `python SCRIPT --resume …` works for any folder.
    sys.argv = [str(script), *rest]
    try:
        with invoked_as(f"fgst sweep {name}"):
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def find_sweep(name: str) -> Path:
    """The script of a sweep.

    Args:
        name: a path that ends in ``.py``, or the name of a script in one of :func:`sweep_folders`.

    Raises:
        InputError: if there is no such script.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"fgst sweep: {name} does not exist; fgst sweep lists the sweeps")
        return path
    scripts = sweep_scripts()
    if name.startswith("-"):
        raise InputError(f"fgst sweep: name the sweep first, e.g. fgst sweep focal_k {name}")
    require_known(name, scripts, "fgst sweep", "sweep")
    return scripts[name]


def sweep_scripts() -> dict[str, Path]:
    """All sweep scripts by name, in alphabetical order; the working directory takes precedence."""
    scripts: dict[str, Path] = {}
    for folder in reversed(sweep_folders()):
        scripts |= {path.stem: path for path in folder.glob("*.py") if not path.name.startswith("_")}
    return dict(sorted(scripts.items()))


def sweep_folders() -> list[Path]:
    """Where scripts are looked up: ``sweeps`` in the working directory, then in the checkout that contains fgst."""
    return [Path("sweeps"), Path(fgst.__file__).parents[1] / "sweeps"]


def first_line_of_docstring(path: Path) -> str:
    """The summary of a script, without running it."""
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return ""
    return (doc or "").partition("\n")[0]
