"""Conversion of JSON values and of text from a command line to the types of dataclass fields."""

from __future__ import annotations

import functools
import json
import types
import typing
from typing import Any, Literal, get_args

from fgst.errors import InputError


@functools.cache
def field_types(section: type) -> dict[str, Any]:
    """Return the resolved type annotations of a dataclass by field name."""
    return typing.get_type_hints(section)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; any other type is its only alternative."""
    return get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else (annotation,)


def convert(name: str, value: Any, annotation: Any) -> Any:
    """Convert a JSON value, or text from a command line, to a field's type.

    Args:
        name: the field's name, for the error message.
        value: the value.
        annotation: the field's resolved type, see :func:`field_types`.

    Raises:
        InputError: if the value has another type; no conversion loses information.
    """
    options = alternatives(annotation)
    if isinstance(value, str):
        if not any(map(_is_text, options)):
            value = _parse_text(value)
        elif type(None) in options and value.lower() in ("none", "null", ""):
            value = None
    for option in options:
        try:
            return _cast(value, option)
        except (TypeError, ValueError, OverflowError):
            continue
    raise InputError(f"{name} is {_shorten(value)}; it must be {' or '.join(map(_describe_type, options))}")


def _is_text(option: Any) -> bool:
    return option is str or typing.get_origin(option) is Literal


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        text = "an integer of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _describe_type(option: Any) -> str:
    if option is type(None):
        return "none"
    if typing.get_origin(option) is Literal:
        return f"one of {', '.join(get_args(option))}"
    if typing.get_origin(option) is tuple:
        element = get_args(option)[0]
        return f"{element.__name__} values separated by commas" if element in (int, float) else "lists of names"
    return {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "text"}[
        option.__name__
    ]


def _parse_text(text: str) -> Any:
    """Parse 12, 0.1, true, none, 1,2 or [1, 2] as a JSON value; return any other text unchanged."""
    if text.lower() in ("none", "null", ""):
        return None
    candidates = (text.lower() if text.lower() in ("true", "false") else text, f"[{text}]" if "," in text else text)
    for candidate in candidates:
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return text


def _cast(value: Any, option: Any) -> Any:
    """Return ``value`` as an instance of one concrete type, without lossy conversions.

    Raises:
        ValueError: if it is not one.
    """
    if option is type(None):
        if value is None:
            return None
    elif option is bool:
        if isinstance(value, bool):
            return value
    elif option is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif option is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
            return float(value)
    elif _is_text(option):
        if isinstance(value, str):
            return value  # the dataclass checks the choices of a Literal
    elif typing.get_origin(option) is tuple:
        element = get_args(option)[0]
        if isinstance(value, list | tuple):
            return tuple(_cast(item, element) for item in value)
        if element in (int, float):
            return (_cast(value, element),)  # a single number is a tuple of length one
    raise ValueError(value)
