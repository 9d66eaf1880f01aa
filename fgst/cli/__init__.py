"""The command lines: one module per command, and shared helpers.

``fgst COMMAND`` (:mod:`fgst.cli.main`) runs any of them, as does ``python -m fgst.COMMAND``. Only this package parses
arguments and exits the process; all others take values and raise exceptions. Its modules import no heavy library at
module level, so that ``--help`` and usage errors are immediate.
"""

from fgst.cli.command import CommandParser, format_command, run_command

__all__ = ["CommandParser", "format_command", "run_command"]
