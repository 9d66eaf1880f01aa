"""Checks of configuration values, and limits."""

from __future__ import annotations

import typing
from typing import Any, Literal, get_args

from fgst.errors import InputError
from fgst.field_values import alternatives, field_types

# Limits far beyond useful values: a damaged or hostile file must not exhaust time or memory before it is noticed.
MAX_LAYERS, MAX_HEADS, MAX_WIDTH, MAX_FRAMES = 256, 256, 16_384, 10_000


def require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def check_choices(section: str, config: Any) -> None:
    """Require the value of every ``Literal`` field to be one of the literal's arguments."""
    config_type: Any = type(config)
    for name, annotation in field_types(config_type).items():
        value = getattr(config, name)
        for option in alternatives(annotation):
            if typing.get_origin(option) is Literal and value is not None:
                choices = get_args(option)
                require(value in choices, f"{section}.{name} is {value!r}; it must be one of {', '.join(choices)}")
