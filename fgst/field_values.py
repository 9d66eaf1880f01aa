"""Conversion of JSON values and of text from a command line to the types of dataclass fields."""

from __future__ import annotations

import functools
import json
import types
import typing
from typing import Any, Literal, get_args

from fgst.errors import InputError
from fgst.parsing import convert_json, decode_json, shorten


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
    if isinstance(value, int | float) and annotation in (tuple[int, ...], tuple[float, ...]):
        value = (value,)  # a single number is a tuple of length one
    # The dataclass checks the choices of a Literal.
    kind = str if isinstance(value, str) and any(map(_is_text, options)) else annotation
    try:
        # Through JSON, because numbers may be NaN or infinite, or NumPy's.
        converted = convert_json(json.loads(json.dumps(value, allow_nan=False)), kind)
    except (TypeError, ValueError, RecursionError):
        raise InputError(
            f"{name} is {_shorten(value)}; it must be {' or '.join(map(_describe_type, options))}"
        ) from None
    return converted


def _is_text(option: Any) -> bool:
    return option is str or typing.get_origin(option) is Literal


def _shorten(value: Any) -> str:
    try:
        return shorten(repr(value), 80)
    except ValueError:  # Python does not print integers of thousands of digits
        return "an integer of thousands of digits"
    except RecursionError:
        return "nested too deeply"


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
            return decode_json(candidate.encode(), Any)
        except ValueError:
            continue
    return text
