"""The noise of a planned sweep, estimated from earlier trainings of its data set in the tracking store."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fgst.errors import InputError, StoreUnavailable
from fgst.sweep.correctness import CorrectClips, paired_table, read_correct
from fgst.sweep.noise import residual_variance, variances
from fgst.sweep.planning.resolution import Noise, default_noise
from fgst.sweep.spec import SweepSpec
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

MOST_RUNS = 500  # the newest ones that are looked at
MOST_PAIRS = 4  # pairs of configurations whose scores are read
MOST_SEEDS = 4  # of each pair
FARTHEST = math.log(4)  # of comparable trainings: four times the passes, or the width
_NOT_COMPARED = ("train.seed", "data.fold", "data.dataset")
_SAME = ("data.validation_by", "data.validation", "data.validation_seed", "data.folds")


@dataclass(frozen=True)
class _Training:
    """A finished training: configuration without its seed, seed, top-1 in %, and run."""

    config: tuple[tuple[str, str], ...]
    seed: int
    top1: float
    run_id: str


def earlier_noise(store: TrackingStore | None, spec: SweepSpec, clips: int) -> Noise:
    """Estimate the noise of a sweep; without comparable trainings, or a store, it is a default.

    Trainings are comparable if they were validated on the same clips, and if passes and width of their network differ
    by a factor of at most 4 in total; the nearest ones with a second seed are used.

    Args:
        clips: number of clips of a training.
    """
    try:
        return _estimate(store, spec, clips) if store is not None else default_noise(clips)
    except (InputError, StoreUnavailable):  # the sweep itself reports what is wrong with the store
        return default_noise(clips)


def _estimate(store: TrackingStore, spec: SweepSpec, clips: int) -> Noise:
    planned = {name: str(value) for name, value in spec.base.flat().items()}
    groups: dict[tuple[str, ...], list[_Training]] = defaultdict(list)
    for training in _trainings(store, spec):
        settings = dict(training.config)
        if spec.compared_split == "test" or all(settings.get(name) == planned[name] for name in _SAME):
            groups[_kind(settings)].append(training)
    near = {kind: distance for kind in groups if (distance := _distance(kind, _kind(planned))) <= FARTHEST}
    for kind in sorted(near, key=lambda kind: near[kind]):
        if noise := _noise_of(store, spec, groups[kind], clips):
            return noise
    nearest = min(near, key=lambda kind: near[kind], default=None)
    if nearest is None:
        return default_noise(clips)
    return default_noise(clips, statistics.fmean(training.top1 for training in groups[nearest]))


def _trainings(store: TrackingStore, spec: SweepSpec) -> list[_Training]:
    """The newest finished trainings of this data set, benchmark and protocol, one for each configuration and seed."""
    experiment = store.client.get_experiment_by_name(spec.experiment)
    if experiment is None:
        return []
    query = (
        f"tags.`{Tags.KIND}` = 'trial' and attributes.status = 'FINISHED' and "
        f"tags.`{Tags.DATASET_DIGEST}` = '{spec.dataset_digest}' and "
        f"tags.`{Tags.PROTOCOL}` = '{spec.base.data.protocol}'"
    )
    found: dict[tuple[Any, int], _Training] = {}
    for run in store.client.search_runs(
        [experiment.experiment_id], query, max_results=MOST_RUNS, order_by=["start_time DESC"]
    ):
        params, top1 = run.data.params, run.data.metrics.get(spec.compared_metric)
        if top1 is None or not params.get("train.seed", "").isdecimal():
            continue
        config = tuple(sorted((name, value) for name, value in params.items() if name not in _NOT_COMPARED))
        training = _Training(config, int(params["train.seed"]), top1, run.info.run_id)
        found.setdefault((config, training.seed), training)
    return list(found.values())


def _kind(settings: Mapping[str, str]) -> tuple[str, ...]:
    """What the noise of a training depends on most: its passes, its width and its modality."""
    return (
        settings.get("train.epochs", ""),
        settings.get("train.repeat", ""),
        settings.get("model.channels", ""),
        settings.get("data.modality", ""),
    )


def _distance(one: tuple[str, ...], other: tuple[str, ...]) -> float:
    """A distance of two kinds: the logarithms of the ratios of passes and widths; infinite if they are unknown."""
    sizes = [_size(kind) for kind in (one, other)]
    if 0 in (*sizes[0], *sizes[1]):
        return math.inf
    distance = sum(abs(math.log(mine / theirs)) for mine, theirs in zip(*sizes, strict=True))
    return distance + 0.5 * (one[3] != other[3])


def _size(kind: tuple[str, ...]) -> tuple[float, float]:
    """Passes, and mean number of channels; 0 if they are unknown."""
    try:
        passes = float(kind[0]) * float(kind[1])
        width = statistics.fmean(float(part) for part in kind[2].strip("[]()").split(","))
    except (ValueError, statistics.StatisticsError):
        return 0.0, 0.0
    return passes, width


def _noise_of(store: TrackingStore, spec: SweepSpec, trainings: Sequence[_Training], clips: int) -> Noise | None:
    """Estimate the noise from trainings of one kind; ``None`` without a second seed."""
    table: dict[Any, dict[int, _Training]] = defaultdict(dict)
    for training in trainings:
        table[training.config][training.seed] = training
    table = {config: seeds for config, seeds in table.items() if len(seeds) > 1}
    accuracies = {str(number): {s: t.top1 for s, t in seeds.items()} for number, seeds in enumerate(table.values())}
    variance, freedom = residual_variance(accuracies)
    if not freedom and len(accuracies) == 1:  # a single configuration: the noise that seeds share is not known
        values = list(next(iter(accuracies.values())).values())
        variance, freedom = statistics.variance(values), len(values) - 1
    if not freedom:
        return None
    passes, _ = _size(_kind(dict(next(iter(table)))))
    count = sum(map(len, table.values()))
    source = f"{count} earlier trainings of {passes:g} passes, {freedom} degrees of freedom"
    default = default_noise(clips, statistics.fmean(training.top1 for training in trainings))
    discordance, persistent, clip_source = default.discordance, default.persistent, default.clip_source
    if measured := _clip_variances(store, spec, list(table.values())):
        discordance, persistent, clip_source = measured
    std = math.sqrt(2 * variance)
    # One clip is the least that accuracies differ by: equal ones are equal by chance.
    std = max(std, 100 / clips / math.sqrt(12))
    return Noise(std, freedom, discordance, persistent, source, clip_source)


def _clip_variances(
    store: TrackingStore, spec: SweepSpec, rows: Sequence[Mapping[int, _Training]]
) -> tuple[float, float, str] | None:
    """Discordance, its persistent part, and their source, from the stored scores of pairs of configurations."""
    pairs = []
    for one, other in itertools.combinations(rows, 2):
        if len(seeds := sorted(one.keys() & other.keys())[:MOST_SEEDS]) > 1:
            pairs.append([(one[seed].run_id, other[seed].run_id) for seed in seeds])
    pairs = pairs[:MOST_PAIRS]
    runs = dict.fromkeys(run_id for pair in pairs for both in pair for run_id in both)
    correct: dict[str, CorrectClips] = read_correct(store, list(runs), spec.compared_split)
    tables = [table for pair in pairs if (table := paired_table(pair, correct)) is not None]
    if not tables:
        return None
    discordance = float(np.mean([np.abs(table).mean() for table in tables]))
    persistent = float(np.mean([variances(table).clips for table in tables])) / 100**2
    return discordance, persistent, f"from {len(tables)} pairs of configurations, {len(runs)} networks"
