"""The specification of a sweep: frozen, checked, stored as ``sweep.json`` among the artifacts of the sweep's run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import msgspec

from fgst.config import TrialConfig, resolve_data_defaults
from fgst.data.dataset import ArrowDataset
from fgst.data.public_benchmarks import public_benchmark
from fgst.errors import InputError
from fgst.integrity import check_digest, with_digest
from fgst.parsing import Text, decode_json
from fgst.result_setting import ResultSetting
from fgst.sweep.definition import (
    OBJECTIVES,
    SEARCHES,
    Parameter,
    Params,
    Scalar,
    SweepDefinition,
    Trial,
    TrialContent,
    TrialFactory,
    fold_of_seed,
    format_params,
    grid_points,
)
from fgst.sweep.parameter_choice import check_values_by_row, checked_initial_points, varied_parameters


@dataclass(frozen=True)
class EarlyStopping:
    """Successive halving on epochs: at epochs ``grace_period · reduction_factor^i`` the best 1 / ``reduction_factor``
    of the trials continue.
    """

    grace_period: Annotated[int, msgspec.Meta(ge=1)]
    reduction_factor: Annotated[int, msgspec.Meta(ge=2)]


@dataclass(frozen=True)
class SweepSpec:
    """A sweep; all fields are JSON-compatible.

    Attributes:
        name, title: as in its :class:`~fgst.sweep.definition.SweepDefinition`.
        source: of the published values, e.g. "Table 2".
        parameters: what is varied.
        search: one of ``SEARCHES``.
        seeds: trainings per configuration, counted from the seed of ``base``.
        limit: maximum number of trainings of a search; ``None`` for a grid.
        objectives: one or two names of ``OBJECTIVES``.
        early_stop: ``None`` if every trial is trained to its last epoch.
        initial_points: parameters that a search tries first.
        base: the trial that parameters are applied to; its seed also seeds the search.
        trials: the trials of a grid in order; empty for a search, which creates them one by one.
        published: (value, the paper's top-1 in %); a value is a tuple if several parameters are varied.
        published_setting: what the published values were obtained with; ``None`` in sweeps of earlier versions.
        public_benchmark: the public benchmark that all trials are evaluated on, see
            :func:`fgst.data.public_benchmarks.public_benchmark`; empty if it is none.
        generated: the clips are generated motion.
        baseline: value of the row that other rows are compared with, or ``None``.
        dataset_name, dataset_digest: what all trials are trained on.
        builds_ensemble: the networks of each seed are fused at the end.
        refit: the networks are then retrained on all training clips and fused with the same weights.
        refit_seeds: trainings of each of them; ``None`` means ``seeds``.
        held_out: what is held out for validation, in words; empty for protocol "paper", and in sweeps of earlier
            versions, which hold out subjects.
        fold_clips: number of validation clips of each fold; empty without folds.
        race: further seeds are given only to values that may still be the best; ``seeds`` is the maximum.
        resolve: difference in points that the number of seeds was planned to resolve; ``None`` if it was given.
    """

    name: str
    title: str
    parameters: tuple[Parameter, ...]
    search: str
    seeds: int
    limit: int | None
    objectives: tuple[str, ...]
    early_stop: EarlyStopping | None
    initial_points: tuple[tuple[tuple[str, Any], ...], ...]
    base: TrialConfig
    trials: tuple[Trial, ...]
    published: tuple[tuple[Any, float], ...]
    source: str
    baseline: Any
    dataset_name: str
    dataset_digest: str
    builds_ensemble: bool = False
    refit: bool = False
    refit_seeds: int | None = None
    held_out: str = ""
    fold_clips: tuple[int, ...] = ()
    race: bool = False
    resolve: float | None = None
    published_setting: ResultSetting | None = None
    public_benchmark: str = ""
    generated: bool = False

    @property
    def setting(self) -> ResultSetting:
        """What the results are obtained with, unless varied."""
        setting = ResultSetting.of(self.base, self.public_benchmark or self.experiment, self.seeds)
        modalities = {trial.config.data.modality for trial in self.trials}
        return replace(setting, modality="all modalities") if len(modalities) > 1 else setting

    @property
    def has_comparable_published(self) -> bool:
        """Whether the published values are of the same data set, benchmark and modality."""
        theirs, ours = self.published_setting, self.setting
        if theirs is None or not self.public_benchmark:
            return False
        return (theirs.data, theirs.modality) == (self.public_benchmark, ours.modality)

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment: one per data set and benchmark."""
        return f"{self.dataset_name} {self.base.data.benchmark}"

    @property
    def axis(self) -> str:
        """Heading of the varied parameters, e.g. ``K``."""
        return " ".join(parameter.name for parameter in self.parameters)

    @property
    def total(self) -> int:
        """Maximum number of trainings."""
        return len(self.trials) if self.limit is None else self.limit

    @property
    def compared_split(self) -> str:
        """The split whose accuracy rows are compared by: "val", or "test" where nothing is held out."""
        return "test" if self.base.data.protocol == "paper" else "val"

    @property
    def compared_metric(self) -> str:
        """Top-1 of :attr:`compared_split`, as trials log it."""
        return f"{self.compared_split}/top1"

    @property
    def varies_folds(self) -> bool:
        """Whether trials have different validation clips."""
        return bool(self.fold_clips) and self.seeds > 1

    @property
    def repetitions(self) -> str:
        """What the trainings of a configuration differ in, for texts: seeds, or folds."""
        return "folds" if self.varies_folds and self.seeds <= len(self.fold_clips) else "seeds"

    def fold_of(self, seed: int) -> int:
        """The fold that the trials with this seed hold out; 0 without folds."""
        return fold_of_seed(self.base.data, seed - self.base.train.seed)

    def val_clips(self, seed: int) -> int:
        """Number of validation clips of the trials with this seed, to weigh accuracies of folds; 1 without folds."""
        return self.fold_clips[self.fold_of(seed)] if self.fold_clips else 1

    def moved(self, dataset: ArrowDataset) -> SweepSpec:
        """The same sweep with its data set at another location; trial ids do not depend on it."""
        location = {"data.dataset": dataset.location}
        trials = tuple(replace(trial, config=trial.config.with_values(location)) for trial in self.trials)
        return replace(self, base=self.base.with_values(location), trials=trials)

    def label_of_value(self, value: Any) -> str:
        """Label of the configuration with this value (a tuple of values for several parameters)."""
        values = value if isinstance(value, tuple) and len(self.parameters) > 1 else (value,)
        return format_params(dict(zip((p.name for p in self.parameters), values, strict=False)))

    def published_top1(self, params: Mapping[str, Any]) -> float | None:
        """The paper's top-1 in % for these parameters, if it gives one that can be compared with the sweep's."""
        values = tuple(params.values())
        if not self.has_comparable_published:
            return None
        return dict(self.published).get(values[0] if len(self.parameters) == 1 else values) if values else None

    def to_json(self) -> str:
        """The content of ``sweep.json``."""
        content = asdict(self) | {"base": self.base.flat(), "trials": [trial.to_dict() for trial in self.trials]}
        return json.dumps(with_digest(content), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> SweepSpec:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: if the text is not a specification of this version.
        """
        try:
            content = decode_json(text.encode() if isinstance(text, str) else text, _Content)
            check_digest(json.loads(text))
            fields = msgspec.structs.asdict(content)
            del fields["sha256"]
            trials = tuple(trial.trial() for trial in content.trials)
            return cls(**fields | {"base": TrialConfig.from_flat(content.base), "trials": trials})
        except ValueError as error:
            raise InputError(
                f"sweep.json cannot be read by this version of fgst ({error}); resume the sweep with the version that "
                "started it"
            ) from None


_Value = Scalar | tuple[Scalar, ...]


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    """The content of ``sweep.json``; see :class:`SweepSpec`. Earlier versions had no digest of the other entries."""

    name: Text
    title: Text
    parameters: tuple[Parameter, ...]
    search: Text
    seeds: Annotated[int, msgspec.Meta(ge=1, le=10**6)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | None
    objectives: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)]
    early_stop: EarlyStopping | None
    initial_points: tuple[tuple[tuple[str, Scalar], ...], ...]
    base: dict[str, Any]
    trials: tuple[TrialContent, ...]
    published: tuple[tuple[_Value, float], ...]
    source: Text
    baseline: _Value
    dataset_name: Text
    dataset_digest: Text
    builds_ensemble: bool = False
    refit: bool = False
    refit_seeds: Annotated[int, msgspec.Meta(ge=1)] | None = None
    held_out: Text = ""
    fold_clips: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = ()
    race: bool = False
    resolve: Annotated[float, msgspec.Meta(gt=0)] | None = None
    published_setting: ResultSetting | None = None
    public_benchmark: Text = ""
    generated: bool = False
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search is {self.search!r}; it must be one of {', '.join(SEARCHES)}")
        if unknown := [name for name in self.objectives if name not in OBJECTIVES]:
            raise ValueError(f"objectives contains {unknown[0]!r}; it must be one of {', '.join(OBJECTIVES)}")
        if self.fold_clips and len(self.fold_clips) != TrialConfig.from_flat(self.base).data.folds:
            raise ValueError(f"fold_clips has {len(self.fold_clips)} entries; it must have one for each of data.folds")


def build_spec(
    definition: SweepDefinition,
    base: TrialConfig,
    dataset: ArrowDataset,
    *,
    values: Sequence[Any] | None = None,
    also: Sequence[str] = (),
    seeds: int = 1,
    search: str | None = None,
    limit: int = 20,
    objectives: Sequence[str] = ("val_top1",),
    early_stop: EarlyStopping | None = None,
    initial_points: Sequence[Mapping[str, Any]] | None = None,
    refit: bool = False,
    refit_seeds: int | None = None,
    race: bool = False,
    resolve: float | None = None,
) -> SweepSpec:
    """Check a sweep and create its specification.

    Args:
        values: replace the definition's values; only for a definition with a single parameter.
        also: optional parameters to vary.
        limit: maximum number of trainings of a search.
        initial_points: parameters to try first; ``None`` takes the definition's.
        refit: retrain on all training clips at the end, for definitions that build an ensemble.
        refit_seeds: trainings of each network then; ``None`` means ``seeds``.
        race, resolve: recorded, see :class:`SweepSpec`.

    Raises:
        InputError: if anything is impossible; nothing has been started by then.
    """
    base = resolve_data_defaults(base, dataset)
    search = search or definition.search
    parameters = varied_parameters(definition, definition.parameters(dataset.skeleton, base), values, also)
    check_values_by_row(definition, parameters)
    factory = TrialFactory(definition, base, dataset)
    seed_range = range(base.train.seed, base.train.seed + seeds)
    trials: tuple[Trial, ...] = ()
    points: list[Params] = []
    if search == "grid":
        trials = tuple(factory.make(params, seed) for params in grid_points(parameters) for seed in seed_range)
    else:
        _require_validation(base, "a search chooses by validation accuracy")
        points = checked_initial_points(factory, parameters, initial_points)
    if early_stop is not None:
        _require_validation(base, "--early-stop compares trials by validation accuracy")
        if len(objectives) > 1:
            raise InputError("--early-stop needs a single objective")
        if base.data.folds and seeds > 1:
            raise InputError(
                "--early-stop compares trials on the same validation clips, and with folds those of each seed differ; "
                "use one of them"
            )
    if race:
        _require_raceable(base, search, trials, seeds, early_stop)
    if refit:
        _require_validation(base, "--refit uses fusion weights that were fitted on validation clips")
    elif refit_seeds is not None:
        raise InputError("--refit-seeds is the number of trainings of --refit; add --refit")
    held_out, fold_clips = _validation_clips(base, trials, dataset, seeds)
    published = definition.published
    return SweepSpec(
        name=definition.name,
        title=definition.title,
        parameters=tuple(parameters),
        search=search,
        seeds=seeds,
        limit=None if search == "grid" else limit,
        objectives=("test_top1",) if base.data.protocol == "paper" else tuple(objectives),
        early_stop=early_stop,
        initial_points=tuple(tuple(params.items()) for params in points),
        base=base,
        trials=trials,
        published=tuple(published.values.items()) if published else (),
        source=published.source if published else "",
        baseline=_baseline(definition, parameters, trials, base),
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        builds_ensemble=definition.builds_ensemble,
        refit=refit,
        refit_seeds=refit_seeds,
        held_out=held_out,
        fold_clips=fold_clips,
        race=race,
        resolve=resolve,
        published_setting=published.setting if published else None,
        public_benchmark=public_benchmark(dataset, base.data.benchmark or ""),
        generated=bool(dataset.source.get("generated")),
    )


def _baseline(
    definition: SweepDefinition, parameters: Sequence[Parameter], trials: Sequence[Trial], base: TrialConfig
) -> Any:
    """The definition's baseline or, if a grid over one parameter does not contain it, the value that the base has."""
    if definition.baseline is not None and len(parameters) == 1 and definition.baseline not in parameters[0].values:
        common = {"train.seed": base.train.seed, "data.fold": base.data.fold}
        for trial in trials:
            if trial.config.with_values(common) == base:
                return trial.params[0][1]
    return definition.baseline


def ineffective_overrides(spec: SweepSpec, factory: TrialFactory, fields: Collection[str]) -> dict[str, str]:
    """Fields given by ``--set`` that the sweep itself sets, with the name of the parameter if it is known.

    Such a value only affects the base trial (and with it the first parameters of a search), never what is varied.
    """
    names = {parameter.field: parameter.name for parameter in spec.parameters if parameter.field}
    if not fields:
        return {}
    examples = [dict(trial.params) for trial in spec.trials] or [dict(params) for params in spec.initial_points]
    varied = dict(names)
    for params in examples:
        for name in factory.settings(params):
            varied.setdefault(name, spec.axis if len(spec.parameters) == 1 else "")
    return {name: varied[name] for name in fields if name in varied}


def _validation_clips(
    base: TrialConfig, trials: Sequence[Trial], dataset: ArrowDataset, seeds: int
) -> tuple[str, tuple[int, ...]]:
    """Describe what is held out, and count the clips of each fold.

    Raises:
        InputError: if the base or a trial cannot hold out what its settings ask for.
    """
    # Modality, recipe and frames do not affect the splits.
    for data in {replace(t.config.data, modality="joint", recipe=None, frames=None) for t in trials}:
        dataset.splits_for(data)
    splits, data = dataset.splits_for(base.data), base.data
    if not data.folds or data.protocol == "paper":
        return splits.held_out, ()
    counts = tuple(len(dataset.splits_for(replace(data, fold=fold)).val) for fold in range(data.folds))
    if seeds == 1:
        return splits.held_out, counts
    span = f"{min(counts):,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"
    return f"{data.folds} folds by {data.validation_by}, another one for each seed: {span} clips each", counts


def _require_raceable(
    base: TrialConfig, search: str, trials: Sequence[Trial], seeds: int, early_stop: EarlyStopping | None
) -> None:
    _require_validation(base, "--race compares values by validation accuracy")
    if search != "grid":
        raise InputError("--race drops values of a grid, and a search chooses its own; use one of them")
    if early_stop is not None:
        raise InputError(
            "--race compares accuracies of the last epoch, and --early-stop leaves it out; use one of them"
        )
    if len({trial.label for trial in trials}) < 2:
        raise InputError("--race needs at least two values")
    if seeds < 2:
        raise InputError("--race needs at least two seeds: nothing can be dropped after the first one")


def _require_validation(base: TrialConfig, purpose: str) -> None:
    if base.data.protocol == "paper":
        raise InputError(
            f"{purpose}, and --protocol paper has no validation clips; use --protocol validation first, then train "
            "the result with --protocol paper"
        )
