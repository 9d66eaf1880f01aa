"""What a sweep is, apart from where its trials run: frozen, checked, and with an identity of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fgst.config import TrialConfig, resolve, resolve_data_defaults
from fgst.data.dataset import ArrowDataset
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError

Params = dict[str, Any]  # a value (number or text) by parameter name

SEARCHES = ("grid", "optuna", "random", "nsga2")
# What can be asked for, whether more is better, and the metric that trials log it under.
OBJECTIVES = {
    "val_top1": ("maximize", "val/top1"),
    "flops": ("minimize", "model/gflops"),
    "params": ("minimize", "model/parameters"),
    "latency": ("minimize", "model/latency_ms"),
    "test_top1": ("maximize", "test/top1"),  # of tables where nothing is held out; never to search by
}


@dataclass(frozen=True)
class Parameter:
    """Something that a sweep varies.

    Attributes:
        name: as tables call it, e.g. ``K``.
        values: what a grid goes through and a search chooses from: numbers or texts.
        low, high: both ends of a range, for searches, where there are no ``values``; whole numbers make it integer.
        log: the range is searched by ratios.
        when: another parameter and the values of it for which this one exists; ``None`` is always.
        field: the setting that it is, where it is one; ``--enqueue`` takes that name too.
        on_request: varied only if ``--also`` names it.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    log: bool = False
    condition: tuple[str, tuple[Any, ...]] | None = None
    field: str = ""
    optional: bool = False

    def exists(self, params: Mapping[str, Any]) -> bool:
        """Whether it has a value beside those chosen before it."""
        return self.condition is None or params.get(self.condition[0]) in self.condition[1]

    @property
    def integer(self) -> bool:
        """Whether its range holds whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether a value is among those that it may have."""
        if self.values:
            return value in self.values
        if not isinstance(value, int | float) or (self.integer and value != int(value)):
            return False
        return self.low is not None and self.high is not None and self.low <= value <= self.high

    def in_words(self) -> str:
        return ", ".join(map(str, self.values)) if self.values else f"{self.low} to {self.high}"


@dataclass(frozen=True)
class SweepDefinition:
    """What a script in ``sweeps/`` asks.

    Attributes:
        name: of the script, e.g. ``focal_k``.
        title: the question in words.
        parameters: what is varied, for a skeleton and the trial that everything else is taken from.
        settings: the fields that a point stands for, e.g. ``lambda p, base: {"model.focal_joints": p["K"]}``.
        published: the paper's top-1 in %, by label, e.g. ``{"K=15": 89.5}``.
        source: where these stand, e.g. "Table 2 (NTU-60 X-Sub, joint)".
        baseline: label of the row that the others are compared with; the first row if it is not among them.
        search: how points are chosen unless the command line says otherwise: one of ``SEARCHES``.
        first: the point that a search tries first unless the command line says otherwise: the paper's setting.
        fuses: its one parameter is the modality, and the networks are fused at the end.
    """

    name: str
    title: str
    parameters: Callable[[Skeleton, TrialConfig], Sequence[Parameter]]
    settings: Callable[[Mapping[str, Any], TrialConfig], Mapping[str, Any]]
    published: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    baseline: str = ""
    search: str = "grid"
    initial_points: Callable[[Skeleton, TrialConfig], Mapping[str, Any]] | None = None
    builds_ensemble: bool = False


@dataclass(frozen=True)
class Trial:
    """One training of a sweep. ``key`` is the same whenever the same trial is meant, also after a resume."""

    label: str
    config: TrialConfig
    trial_id: str
    params: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        """What a person reads in the MLflow UI, e.g. ``K=15 joint s0``."""
        modality = self.config.data.modality
        # The modality is said once, also where it is what the sweep varies.
        what = self.label if self.label.endswith(f"={modality}") else f"{self.label} {modality}"
        return f"{what} s{self.config.train.seed}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "trial_id": self.trial_id,
            "config": self.config.flat(),
            "params": list(self.params),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Trial:
        params = tuple((str(name), value) for name, value in content["params"])
        return cls(content["label"], TrialConfig.from_flat(content["config"]), content["trial_id"], params)


@dataclass(frozen=True)
class EarlyStop:
    """Successive halving on epochs: at epochs ``grace``, ``grace · reduction``, … the best 1 / ``reduction`` go on."""

    grace: int
    reduction: int


@dataclass(frozen=True)
class SweepSpec:
    """A sweep: JSON all through.

    Attributes:
        name, title, published, source, baseline: of its question.
        parameters: what is varied.
        search: one of ``SEARCHES``.
        seeds: trainings of each point, from the base's seed on.
        limit: trainings that a search may begin; ``None`` for a grid, which has its own number.
        objectives: of a search, one or two names of ``OBJECTIVES``.
        early_stop: ``None`` if every trial is trained to its end.
        first: points that a search tries before its own.
        base: the trial that points are changes of; its seed is the search's too.
        trials: those of a grid, in order; empty for a search, which makes them one after another.
        dataset_name, dataset_digest: what all are trained on.
        fuses: the networks of each seed become an ensemble at the end.
        refit: which are then trained again on all training clips, and fused with the same weights.
    """

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    search: str
    seeds: int
    limit: int | None
    objectives: tuple[str, ...]
    early_stop: EarlyStop | None
    initial_points: tuple[tuple[tuple[str, Any], ...], ...]
    base: TrialConfig
    trials: tuple[Trial, ...]
    published: tuple[tuple[str, float], ...]
    source: str
    baseline: str
    dataset_name: str
    dataset_digest: str
    builds_ensemble: bool = False
    refit: bool = False

    @property
    def experiment(self) -> str:
        """The MLflow experiment: one per data set and benchmark."""
        return f"{self.dataset_name} {self.base.data.benchmark}"

    @property
    def axis(self) -> str:
        """Heading of what is varied, e.g. ``K``."""
        return " ".join(parameter.name for parameter in self.parameters)

    @property
    def total(self) -> int:
        """How many trainings it is, at most."""
        return len(self.trials) if self.limit is None else self.limit

    def to_json(self) -> str:
        content = asdict(self) | {"base": self.base.flat(), "trials": [trial.to_dict() for trial in self.trials]}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> SweepSpec:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: if the text is something else.
        """
        try:
            content = json.loads(text)
            stop = content["early_stop"]
            return cls(
                **content
                | {
                    "parameters": tuple(_read_parameter(p) for p in content["parameters"]),
                    "objectives": tuple(content["objectives"]),
                    "early_stop": stop and EarlyStop(**stop),
                    "initial_points": tuple(
                        tuple((name, value) for name, value in params) for params in content["initial_points"]
                    ),
                    "base": TrialConfig.from_flat(content["base"]),
                    "trials": tuple(Trial.from_dict(t) for t in content["trials"]),
                    "published": tuple((str(label), float(figure)) for label, figure in content["published"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the sweep's specification cannot be read ({error!r})") from None


def _read_parameter(content: dict[str, Any]) -> Parameter:
    condition = content["condition"]
    return Parameter(
        **content | {"values": tuple(content["values"]), "condition": condition and (condition[0], tuple(condition[1]))}
    )


def format_params(params: Mapping[str, Any]) -> str:
    """``K=15``, or ``K=15 P=10``."""
    texts = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return " ".join(f"{name}={text}" for name, text in texts.items())


def grid_points(parameters: Sequence[Parameter]) -> Iterator[Params]:
    """The grid: every combination that exists, the last parameter fastest.

    Raises:
        InputError: if a parameter is a range.
    """
    for parameter in parameters:
        if not parameter.values:
            raise InputError(
                f"{parameter.name} is a range, which no grid goes through; --search optuna chooses from it"
            )
    seen = set()
    for chosen in itertools.product(*(parameter.values for parameter in parameters)):
        params: Params = {}
        for parameter, value in zip(parameters, chosen, strict=True):
            if parameter.exists(params):
                params[parameter.name] = value
        if (label := format_params(params)) not in seen:
            seen.add(label)
            yield params


class TrialFactory:
    """Makes the trials of a question on a data set: a point and a seed → a :class:`Trial`."""

    def __init__(self, question: SweepDefinition, base: TrialConfig, dataset: ArrowDataset) -> None:
        self.question, self.base, self.dataset = question, base, dataset

    def make(self, params: Mapping[str, Any], seed: int) -> Trial:
        """Raises InputError, naming the field, if the network or the data set cannot be so."""
        try:
            settings = {**self.question.settings(params, self.base), "train.seed": seed}
        except (KeyError, ValueError, TypeError):  # a script's own table has no such row
            offered = self.question.parameters(self.dataset.skeleton, self.base)
            words = "; ".join(f"{p.name}: {p.in_words()}" for p in offered if p.name in params)
            raise InputError(f"--values: there is no {format_params(params)}; {words}") from None
        config = resolve(self.base.with_values(settings), self.dataset)
        identity = json.dumps([config.digest(without=("data.dataset",)), self.dataset.digest])
        trial_id = hashlib.sha256(identity.encode()).hexdigest()[:32]
        return Trial(format_params(params), config, trial_id, tuple(params.items()))


def build_spec(
    question: SweepDefinition,
    base: TrialConfig,
    dataset: ArrowDataset,
    *,
    values: Sequence[Any] | None = None,
    also: Sequence[str] = (),
    seeds: int = 1,
    search: str | None = None,
    limit: int = 20,
    objectives: Sequence[str] = ("val_top1",),
    early_stop: EarlyStop | None = None,
    initial_points: Sequence[Mapping[str, Any]] | None = None,
    refit: bool = False,
) -> SweepSpec:
    """Check a sweep and write it down.

    Args:
        values: instead of the question's own, for its one parameter.
        also: parameters to vary that are varied only on request.
        limit: trainings of a search.
        first: points to try first; ``None`` is the question's own.
        refit: train again on all training clips at the end, of a question that fuses.

    Raises:
        InputError: if anything in it is impossible; before anything is started.
    """
    base = resolve_data_defaults(base, dataset)
    offered = list(question.parameters(dataset.skeleton, base))
    requestable = [p.name for p in offered if p.optional]
    if unknown := [name for name in also if name not in requestable]:
        raise InputError(f"--also names {unknown[0]}; {question.name} has {', '.join(requestable) or 'nothing to add'}")
    parameters = [p for p in offered if not p.optional or p.name in also]
    search = search or question.search
    if values is not None:
        if len(parameters) != 1:
            names = ", ".join(parameter.name for parameter in parameters)
            raise InputError(f"--values is for one parameter, but {question.name} has {names}; fix others by --set")
        if wrong := [v for v in values if isinstance(v, str) and _numeric(parameters[0])]:
            raise InputError(
                f"--values {wrong[0]}: {parameters[0].name} takes numbers, e.g. {parameters[0].in_words()}"
            )
        if len(set(values)) != len(values):
            raise InputError(f"--values names a value twice: {', '.join(map(str, values))}")
        parameters = [Parameter(parameters[0].name, tuple(values))]
    make = TrialFactory(question, base, dataset).make
    range_of_seeds = range(base.train.seed, base.train.seed + seeds)
    trials: tuple[Trial, ...] = ()
    if search == "grid":
        trials = tuple(make(params, seed) for params in grid_points(parameters) for seed in range_of_seeds)
    else:
        if base.data.protocol == "paper":
            raise InputError(
                "a search chooses by validation, and --protocol paper holds nothing out; search first, then train what "
                "it found with --protocol paper"
            )
        own = question.initial_points(dataset.skeleton, base) if question.initial_points else {}
        # What the paper fixes may not exist for this skeleton or preset.
        own = {p.name: own[p.name] for p in parameters if p.name in own and p.holds(own[p.name])}
        if initial_points is None:
            initial_points = [own] if all(p.name in own for p in parameters if p.condition is None) else []
        initial_points = [_checked(params, own, parameters) for params in initial_points]
        for params in initial_points:
            make(params, base.train.seed)
    if early_stop is not None:
        if base.data.protocol == "paper":
            raise InputError("--early-stop compares by validation, and --protocol paper holds nothing out")
        if len(objectives) > 1:
            raise InputError("--early-stop needs one objective; with two, what is behind in one may lead in the other")
    if refit and base.data.protocol == "paper":
        raise InputError(
            "--refit trains on all clips once the weights are fitted on held-out ones; --protocol paper holds none out"
        )
    if base.data.protocol == "paper":
        objectives = ("test_top1",)
    labels = {trial.label for trial in trials}
    return SweepSpec(
        name=question.name,
        title=question.title,
        parameters=tuple(parameters),
        search=search,
        seeds=seeds,
        limit=None if search == "grid" else limit,
        objectives=tuple(objectives),
        early_stop=early_stop,
        initial_points=tuple(tuple(params.items()) for params in initial_points or ()) if search != "grid" else (),
        base=base,
        trials=trials,
        published=tuple((label, f) for label, f in question.published.items() if not trials or label in labels),
        source=question.source,
        baseline=question.baseline,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        builds_ensemble=question.builds_ensemble,
        refit=refit,
    )


def _numeric(parameter: Parameter) -> bool:
    return not any(isinstance(value, str) for value in parameter.values)


def _checked(params: Mapping[str, Any], own: Mapping[str, Any], parameters: Sequence[Parameter]) -> Params:
    """A point that somebody gave, in the order of the parameters; what it leaves out is as in ``own``.

    Raises:
        InputError: if it names one that there is not, leaves one out, or has a value outside of what is searched.
    """
    names = {parameter.field: parameter.name for parameter in parameters if parameter.field}
    params = {names.get(name, name): value for name, value in params.items()}
    known = [parameter.name for parameter in parameters]
    if unknown := [name for name in params if name not in known]:
        raise InputError(f"--enqueue names {unknown[0]}, which is not searched; there are {', '.join(known)}")
    params = {**own, **params}
    whole: Params = {}
    for parameter in parameters:
        if not parameter.exists(whole):
            continue
        if parameter.name not in params:
            raise InputError(f"--enqueue leaves out {parameter.name}; it takes {parameter.in_words()}")
        value = params[parameter.name]
        if not parameter.holds(value):
            raise InputError(f"--enqueue has {parameter.name}={value}; it takes {parameter.in_words()}")
        whole[parameter.name] = value
    return whole
