"""Which parameters of a definition a sweep varies, and the points that a search tries first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fgst.errors import InputError
from fgst.sweep.definition import Parameter, Params, SweepDefinition, TrialFactory


def varied_parameters(
    definition: SweepDefinition, offered: Sequence[Parameter], values: Sequence[Any] | None, also: Sequence[str]
) -> list[Parameter]:
    """The parameters that a sweep varies: those offered, without optional ones that ``also`` does not name.

    Args:
        values: replace those of the only parameter.

    Raises:
        InputError: if ``also`` or ``values`` do not fit the definition.
    """
    optional = [parameter.name for parameter in offered if parameter.optional]
    if unknown := [name for name in also if name not in optional]:
        raise InputError(f"--also names {unknown[0]}; optional parameters here: {', '.join(optional) or 'none'}")
    parameters = [parameter for parameter in offered if not parameter.optional or parameter.name in also]
    if values is None:
        return parameters
    if len(parameters) != 1:
        names = ", ".join(parameter.name for parameter in parameters)
        raise InputError(
            f"--values needs a sweep with a single parameter, but {definition.name} varies {names}; "
            "--enqueue NAME=VALUE,… with --trials 1 trains one combination"
        )
    [parameter] = parameters
    if wrong := [value for value in values if isinstance(value, str) and _is_numeric(parameter)]:
        raise InputError(f"--values {wrong[0]}: {parameter.name} takes numbers, e.g. {parameter.describe()}")
    if len(set(values)) != len(values):
        raise InputError(f"--values contains a value twice: {', '.join(map(str, values))}")
    return [Parameter(parameter.name, tuple(values), field=parameter.field)]


def check_values_by_row(definition: SweepDefinition, parameters: Sequence[Parameter]) -> None:
    """Raise ValueError if ``published`` or ``baseline`` can never match a row of several parameters."""
    keys = [*definition.published.values] if definition.published else []
    keys += [] if definition.baseline is None else [definition.baseline]
    for key in keys if len(parameters) > 1 else ():
        if not isinstance(key, tuple) or len(key) > len(parameters):
            names = ", ".join(parameter.name for parameter in parameters)
            raise ValueError(
                f"sweep {definition.name}: {key!r} in published or baseline must be a tuple of values of {names}, in "
                "this order, without those whose condition does not hold"
            )


def checked_initial_points(
    factory: TrialFactory, parameters: Sequence[Parameter], given: Sequence[Mapping[str, Any]] | None
) -> list[Params]:
    """Checked parameters that a search tries first."""
    definition, skeleton, base = factory.definition, factory.dataset.skeleton, factory.base
    default = dict(definition.initial_params(skeleton, base)) if definition.initial_params else {}
    # The paper's setting may not exist for this skeleton or preset.
    default = {p.name: default[p.name] for p in parameters if p.name in default and p.allows(default[p.name])}
    if given is None:
        given = [default] if all(p.name in default for p in parameters if p.condition is None) else []
    points = [_complete_params(params, default, parameters) for params in given]
    for params in points:
        factory.make(params, base.train.seed)
    return points


def _complete_params(params: Mapping[str, Any], default: Mapping[str, Any], parameters: Sequence[Parameter]) -> Params:
    """Given parameters in the order of the sweep's parameters; missing ones come from ``default``.

    Raises:
        InputError: if a parameter is unknown, missing or outside its values.
    """
    names = {parameter.field: parameter.name for parameter in parameters if parameter.field}
    params = {names.get(name, name): value for name, value in params.items()}
    known = [parameter.name for parameter in parameters]
    if unknown := [name for name in params if name not in known]:
        raise InputError(f"--enqueue names {unknown[0]}, which is not searched; parameters: {', '.join(known)}")
    params = {**default, **params}
    complete: Params = {}
    for parameter in parameters:
        if not parameter.applies(complete):
            continue
        if parameter.name not in params:
            raise InputError(f"--enqueue lacks {parameter.name}; it takes {parameter.describe()}")
        value = params[parameter.name]
        if not parameter.allows(value):
            raise InputError(f"--enqueue has {parameter.name}={value}; it takes {parameter.describe()}")
        complete[parameter.name] = value
    return complete


def _is_numeric(parameter: Parameter) -> bool:
    return not any(isinstance(value, str) for value in parameter.values)
