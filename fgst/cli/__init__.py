"""The command lines: one module per command, and what they share.

``fgst COMMAND`` (:mod:`fgst.cli.main`) runs any of them, as does ``python -m fgst.COMMAND``. Only this package parses
arguments and exits the process; all others take values and raise exceptions. Its modules import nothing heavy at
module level, so that ``--help`` and usage errors are immediate.
"""

from fgst.cli.command import CommandParser, format_command, run_command

__all__ = ["CommandParser", "format_command", "run_command"]
