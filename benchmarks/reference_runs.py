"""The runs behind the reference results; see :mod:`benchmarks.reference`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fgst.config import TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, align, fuse
from fgst.evaluation.metrics import Scores
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

FUSED = "fused"


@dataclass(frozen=True)
class Training:
    """A finished training: its run id, seed, metrics by name, and values by metric and epoch."""

    run_id: str
    seed: int
    metrics: Mapping[str, float]
    curves: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Reference:
    """What was trained for the page.

    Attributes:
        ensemble, sweep, validation_sweep: run ids of the ensemble of the first seed, the sweep that trained on all
            training clips, and the sweep that held out validation clips.
        card: members, weights and sharpness of the ensemble.
        config: settings of the networks.
        data: the data set.
        trainings: on all training clips, by modality, in the order of their seeds.
        validation: those with validation clips, by modality.
        scores: of the test clips, by modality and for the fused modalities, in the order of the seeds; all list the
            clips in the same order.
        val_scores: the same for the validation clips, in the order of the seeds of ``validation``.
        hours: from the start of the first training to the end of the last one, interruptions included.
    """

    ensemble: str
    sweep: str
    validation_sweep: str
    card: EnsembleCard
    config: TrialConfig
    data: ArrowDataset
    trainings: Mapping[str, Sequence[Training]]
    validation: Mapping[str, Sequence[Training]]
    scores: Mapping[str, Sequence[Scores]]
    val_scores: Mapping[str, Sequence[Scores]]
    hours: float

    @cached_property
    def clip_ids(self) -> np.ndarray:
        """The test clips."""
        return self.scores[FUSED][0].clip_ids

    @cached_property
    def labels(self) -> np.ndarray:
        """Their classes."""
        return self.scores[FUSED][0].labels

    def correct(self, name: str, split: str = "test") -> np.ndarray:
        """Which clips are classified correctly, ``(seeds, clips)``."""
        everything = self.scores if split == "test" else self.val_scores
        return np.stack([scores.predictions == scores.labels for scores in everything[name]])

    @property
    def core_hours(self) -> float:
        """Time of all trainings together, with one thread each."""
        everything = [
            t for group in (self.trainings, self.validation) for trainings in group.values() for t in trainings
        ]
        return sum(training.metrics["minutes"] for training in everything) / 60


def load(store: TrackingStore, run_id: str) -> Reference:
    """Read the runs of an ensemble that was retrained on all training clips.

    Raises:
        InputError: if the run is no such ensemble, or a training is missing.
    """
    ensemble = store.run(run_id)
    tags = ensemble.data.tags
    if tags.get(Tags.KIND) != "ensemble" or Tags.WEIGHTS_FROM not in tags:
        raise InputError(f"run {run_id} is not an ensemble that was retrained on all training clips (--refit)")
    sweep = tags[Tags.PARENT]
    validation_sweep = store.run(tags[Tags.WEIGHTS_FROM]).data.tags[Tags.PARENT]
    with store.artifacts(ensemble.info.run_id, "ensemble.json") as file:
        card = EnsembleCard.read(file)
    trainings, validation = (_trainings(store, run, list(card.weights)) for run in (sweep, validation_sweep))
    network = store.model_card(trainings[card.members[0].modality][0].run_id)
    runs = [run for parent in (sweep, validation_sweep) for run in _runs(store, parent)]
    milliseconds = max(run.info.end_time for run in runs) - min(run.info.start_time for run in runs)
    return Reference(
        ensemble.info.run_id, sweep, validation_sweep, card, network.config, ArrowDataset(network.config.data.dataset),
        trainings, validation, _scores(store, trainings, card, "test"), _scores(store, validation, card, "val"),
        milliseconds / 3.6e6,
    )  # fmt: skip


def _scores(
    store: TrackingStore, trainings: Mapping[str, Sequence[Training]], card: EnsembleCard, split: str
) -> dict[str, list[Scores]]:
    scores: dict[str, list[Scores]] = {name: [] for name in (*card.weights, FUSED)}
    for seed in range(min(len(group) for group in trainings.values())):
        members = {name: store.scores(trainings[name][seed].run_id, split) for name in card.weights}
        for name, aligned in align({FUSED: fuse(members, card.weights, card.sharpness), **members}).items():
            scores[name].append(aligned)
    return scores


def _runs(store: TrackingStore, sweep: str) -> list[Any]:
    """The trainings of a sweep, including those of earlier sweeps that it reuses."""
    reused = [run for tag, run in store.run(sweep).data.tags.items() if tag.startswith(Tags.REUSED_TRIAL)]
    return [*store.children(sweep), *map(store.run, reused)]


def _trainings(store: TrackingStore, sweep: str, modalities: Sequence[str]) -> dict[str, list[Training]]:
    found: dict[str, list[Training]] = {name: [] for name in modalities}
    for run in _runs(store, sweep):
        tags = run.data.tags
        if run.info.status == "FINISHED" and tags.get(Tags.MODALITY) in found:
            curves = {
                metric: store.metric_history(run.info.run_id, metric)
                for metric in ("train/top1", "train/loss", "val/top1")
                if metric in run.data.metrics
            }
            found[tags[Tags.MODALITY]].append(
                Training(run.info.run_id, int(tags[Tags.SEED]), dict(run.data.metrics), curves)
            )
    if missing := [name for name, trainings in found.items() if not trainings]:
        raise InputError(f"sweep {sweep} has no finished training of {', '.join(missing)}: resume it first")
    return {name: sorted(trainings, key=lambda training: training.seed) for name, trainings in found.items()}
