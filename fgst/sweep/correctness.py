"""Which clips each trial classified correctly, read from the scores that its run stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fgst.errors import InputError
from fgst.sweep.noise import Difference, crossed
from fgst.sweep.results import TrialResult
from fgst.tracking.store import TrackingStore

THREADS = 8  # that read scores at a time: each file takes a few requests to a server


@dataclass(frozen=True)
class CorrectClips:
    """Which clips of a split a trial classified correctly.

    Attributes:
        clip_ids: ``(n,)`` clip ids, sorted.
        correct: ``(n,)`` booleans.
    """

    clip_ids: np.ndarray
    correct: np.ndarray


ByRun = Mapping[str, CorrectClips]


def read_correct(store: TrackingStore, run_ids: Sequence[str], split: str) -> dict[str, CorrectClips]:
    """Read the stored scores of runs, by run id; runs without (valid) scores are left out.

    Args:
        split: "val" or "test".
    """

    def read(run_id: str) -> CorrectClips | None:
        try:
            scores = store.scores(run_id, split)
        except InputError:
            return None
        order = np.argsort(scores.clip_ids)
        return CorrectClips(scores.clip_ids[order], (scores.predictions == scores.labels)[order])

    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(run_ids, pool.map(read, run_ids), strict=True))
    return {run_id: clips for run_id, clips in found.items() if clips is not None}
