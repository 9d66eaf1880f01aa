"""The argument parser of a sweep's script, derived from :class:`~fgst.sweep.options.SweepOptions`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from fgst.cli.command import CommandParser
from fgst.cli.options import add_system_metrics_option, add_tracking_option, add_trial_options
from fgst.sweep.definition import SweepDefinition
from fgst.sweep.options import Group, Option, SweepOptions, flag_name


def build_parser(definition: SweepDefinition, doc: str | None) -> argparse.ArgumentParser:
    """The parser of a sweep's script, derived from :class:`~fgst.sweep.options.SweepOptions`."""
    parser = CommandParser(f"python sweeps/{definition.name}.py", doc)
    groups = {Group.SWEEP: parser.add_argument_group(Group.SWEEP.value)}
    groups[Group.STOPPING] = parser.add_argument_group(Group.STOPPING.value)
    add_trial_options(parser, dataset_required=False)
    groups[Group.ENVIRONMENT] = parser.add_argument_group(Group.ENVIRONMENT.value)
    for name, default, declared in SweepOptions.declarations():
        if declared.group is not None and (definition.builds_ensemble or not declared.ensemble_only):
            _add_option(groups[declared.group], definition, name, default, declared)
    add_tracking_option(parser)
    add_system_metrics_option(parser)
    return parser


def _add_option(
    group: argparse._ArgumentGroup, definition: SweepDefinition, name: str, default: Any, declared: Option
) -> None:
    details: dict[str, Any] = {"dest": name, "default": default}
    details["help"] = declared.help.replace("{search}", definition.search)
    if declared.flag == "negatable":
        group.add_argument(flag_name(name), action=argparse.BooleanOptionalAction, **details)
        return
    if declared.flag:
        group.add_argument(flag_name(name), action="store_true", **details)
        return
    if declared.repeatable:
        details["action"] = "append"
    if declared.choices is not None:
        details["choices"] = declared.choices
    else:
        details |= {"metavar": declared.metavar, "type": _argparse_type(declared.parse)}
    group.add_argument(flag_name(name), **details)


def _argparse_type(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a converter for argparse that keeps the messages of this package and replaces Python's own."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            message = str(error)
            own = " is not above " in message or " is below " in message
            raise argparse.ArgumentTypeError(message if own else f"{text!r} is not a number") from None

    return convert
