"""Definitions of sweeps, as in the scripts of ``sweeps/``: their parameters, and the trials that these describe."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fgst.config import DataConfig, TrialConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError
from fgst.parsing import Name, Text, decode_json, shorten
from fgst.result_setting import ResultSetting

Params = dict[str, Any]  # a value (number or text) by parameter name
if TYPE_CHECKING:
    Scalar = Any
    Bound = float
else:  # what the JSON reader accepts: a value of a parameter, and a bound, whose type matters
    Scalar = int | float | str | bool | None
    Bound = int | float
SEARCHES = ("grid", "optuna", "random", "nsga2")
# Objectives by the name used on the command line: direction, and the metric that trials log.
OBJECTIVES = {
    "val_top1": ("maximize", "val/top1"),
    "flops": ("minimize", "model/gflops"),
    "params": ("minimize", "model/parameters"),
    "latency": ("minimize", "model/latency_ms"),
    "test_top1": ("maximize", "test/top1"),  # for tables without validation clips; never a search objective
}


@dataclass(frozen=True)
class Parameter:
    """A parameter that a sweep varies.

    Attributes:
        name: name in tables, e.g. ``K``.
        values: the values of a grid and the choices of a search: numbers or strings.
        low, high: inclusive bounds of a range, for searches, if there are no ``values``; integer bounds make an integer
            range.
        log: sample the range on a logarithmic scale.
        condition: (name of another parameter, its values) for which this parameter exists; ``None`` means always.
        field: the configuration field that the parameter sets directly, if any; ``--enqueue`` accepts it as a name too.
        optional: varied only if ``--also`` names it.
    """

    name: str
    values: tuple[Scalar, ...] = ()
    low: Bound | None = None
    high: Bound | None = None
    log: bool = False
    condition: tuple[str, tuple[Scalar, ...]] | None = None
    field: str = ""
    optional: bool = False

    def applies(self, params: Mapping[str, Any]) -> bool:
        """Whether the parameter exists given the values of the parameters before it."""
        return self.condition is None or params.get(self.condition[0]) in self.condition[1]

    @property
    def integer(self) -> bool:
        """Whether both bounds of the range are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def allows(self, value: Any) -> bool:
        """Whether the value is one of ``values`` or within the range."""
        if self.values:
            return value in self.values
        if not isinstance(value, int | float) or (self.integer and value != int(value)):
            return False
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def describe(self) -> str:
        """The allowed values, for messages."""
        return ", ".join(map(str, self.values)) if self.values else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class Published:
    """A table of a paper that a sweep repeats; the defaults are the settings of the FG-STFormer's.

    Attributes:
        values: top-1 in % by value of the parameter (a tuple of values for several parameters), e.g. ``{15: 89.5}``.
        source: the table, e.g. "Table 2".
        benchmark: data set and benchmark: a key of :data:`fgst.data.public_benchmarks.PUBLIC_BENCHMARKS`, e.g.
            "NTU-60 X-Sub", or the name of another one, with which no data set is compared.
        modality: what the networks saw.
        protocol, preset, passes, seeds: the other settings, as in :class:`~fgst.result_setting.ResultSetting`.
    """

    values: Mapping[Any, float]
    source: str
    benchmark: str
    modality: str = "joint"
    protocol: str = "paper"
    preset: str = "paper"
    passes: str = "80"
    seeds: str = "not stated"

    @property
    def setting(self) -> ResultSetting:
        """What the values were obtained with."""
        return ResultSetting(self.benchmark, self.protocol, self.modality, self.preset, self.passes, self.seeds)


@dataclass(frozen=True)
class SweepDefinition:
    """The definition of a sweep: what a script in ``sweeps/`` varies, and how its results are compared.

    Attributes:
        name: name of the script, e.g. ``focal_k``.
        title: the question in words.
        parameters: (skeleton, base trial) → what is varied.
        settings: (parameter values, base trial) → configuration fields to change, e.g.
            ``lambda params, base: {"model.focal_joints": params["K"]}``.
        published: a paper's results for these parameters; they are in the same table and figure as one's own only if
            data set, benchmark and modality are the same.
        baseline: value of the row that other rows are compared with. If it is not part of the sweep, the row with the
            settings of the base is, or else the first row.
        search: default search method, one of ``SEARCHES``.
        initial_params: (skeleton, base trial) → the parameters that a search tries first: the paper's setting.
        builds_ensemble: the only parameter is the modality, and the trained networks are fused at the end.
        demo_values: the values for generated motion, if they are fewer than those of the parameter.
    """

    name: str
    title: str
    parameters: Callable[[Skeleton, TrialConfig], Sequence[Parameter]]
    settings: Callable[[Mapping[str, Any], TrialConfig], Mapping[str, Any]]
    published: Published | None = None
    baseline: Any = None
    search: str = "grid"
    initial_params: Callable[[Skeleton, TrialConfig], Mapping[str, Any]] | None = None
    builds_ensemble: bool = False
    demo_values: tuple[Scalar, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        label: the parameters as text, for display.
        config: the resolved configuration.
        trial_id: digest of configuration and data set; equal for equal trials, also across sweeps.
        params: parameter values in order.
    """

    label: str
    config: TrialConfig
    trial_id: str
    params: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """Name of the MLflow run, e.g. ``K=15 joint s0``."""
        modality = self.config.data.modality
        # Mention the modality once, also if it is the parameter.
        what = self.label if ("modality", modality) in self.params else f"{self.label} {modality}"
        return f"{what} s{self.config.train.seed}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible content; the inverse of :meth:`from_json`."""
        return {
            "label": self.label,
            "trial_id": self.trial_id,
            "config": self.config.flat(),
            "params": list(self.params),
        }

    @classmethod
    def from_json(cls, text: str) -> Trial:
        """A trial from the JSON of :meth:`to_dict`.

        Raises:
            ValueError: if it is not one; the message names the field.
        """
        return decode_json(text.encode(), TrialContent).trial()


class TrialContent(msgspec.Struct, forbid_unknown_fields=True):
    """The content of :meth:`Trial.to_dict`."""

    label: Text
    trial_id: Name
    config: dict[str, Any]
    params: tuple[tuple[str, Scalar], ...]

    def trial(self) -> Trial:
        """The trial with this content; raises InputError if its configuration is invalid."""
        return Trial(self.label, TrialConfig.from_flat(self.config), self.trial_id, self.params)


def parse_recorded_params(text: str) -> Params:
    """Parse the parameters of a trial as its run records them: a list of pairs in JSON.

    Raises:
        InputError: if it is not such a list.
    """
    try:
        return dict(decode_json(text.encode(), tuple[tuple[str, Scalar], ...]))
    except ValueError as error:
        raise InputError(f"the recorded parameters of a trial, {shorten(text, 80)}, are invalid ({error})") from None


class TrialFactory:
    """Creates the trials of a sweep: parameter values and a seed → :class:`Trial`.

    Args:
        definition: the sweep's definition.
        base: the trial that parameters are applied to.
        dataset: what all trials are trained on.
    """

    def __init__(self, definition: SweepDefinition, base: TrialConfig, dataset: ArrowDataset) -> None:
        self.definition, self.base, self.dataset = definition, base, dataset

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Configuration fields that these parameters set.

        Raises:
            InputError: if ``settings`` of the definition fails for values that the definition does not contain. An
                exception for values of the definition itself is a bug of the script and is raised unchanged.
        """
        try:
            return dict(self.definition.settings(params, self.base))
        except InputError:
            raise
        except Exception:
            offered = self.definition.parameters(self.dataset.skeleton, self.base)
            unknown = [p for p in offered if p.name in params and not p.allows(params[p.name])]
            if not unknown:
                raise
            parameter = unknown[0]
            raise InputError(
                f"--values: there is no {format_params({parameter.name: params[parameter.name]})}; "
                f"{parameter.name}: {parameter.describe()}"
            ) from None

    def make(self, params: Mapping[str, Any], seed: int) -> Trial:
        """The trial for these parameters.

        Raises:
            InputError: naming the field, if the network or the data set does not allow it.
        """
        config = self.base.with_values({**self.settings(params), "train.seed": seed})
        config = config.with_values({"data.fold": fold_of_seed(config.data, seed - self.base.train.seed)})
        config = resolve(config, self.dataset)
        identity = json.dumps([config.digest(without=("data.dataset",)), self.dataset.digest])
        trial_id = hashlib.sha256(identity.encode()).hexdigest()[:32]
        return Trial(format_params(params), config, trial_id, tuple(params.items()))


def fold_of_seed(data: DataConfig, number: int) -> int:
    """The fold that the trials with a sweep's seed of this number, from 0, hold out; 0 without folds.

    The first seed holds out the fold of the settings, and each further seed the next one.
    """
    return (data.fold + number) % data.folds if data.folds else 0


def format_value(value: Any) -> str:
    """A parameter value as shown in labels."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_params(params: Mapping[str, Any]) -> str:
    """``K=15``, or ``K=15 P=10``: the label of a configuration."""
    return " ".join(f"{name}={format_value(value)}" for name, value in params.items())


def grid_points(parameters: Sequence[Parameter]) -> Iterator[Params]:
    """All combinations of values, the last parameter varying fastest.

    Raises:
        InputError: if a parameter is a range.
    """
    for parameter in parameters:
        if not parameter.values:
            raise InputError(f"{parameter.name} is a range, which a grid cannot enumerate; add --search optuna")
    seen = set()
    for chosen in itertools.product(*(parameter.values for parameter in parameters)):
        params: Params = {}
        for parameter, value in zip(parameters, chosen, strict=True):
            if parameter.applies(params):
                params[parameter.name] = value
        if (label := format_params(params)) not in seen:
            seen.add(label)
            yield params
