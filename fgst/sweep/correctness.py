"""Which clips each trial classified correctly, read from the scores that its run stores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fgst.errors import InputError

if TYPE_CHECKING:
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


def paired_table(pairs: Iterable[tuple[str, str]], correct: ByRun) -> np.ndarray | None:
    """Compare pairs of runs clip by clip.

    Args:
        pairs: run ids, a pair for each seed.

    Returns:
        ``(seeds, clips)``: +1 where only the first run of a pair is correct, -1 where only the second is, else 0;
        ``None`` if scores are missing, or are not all of the same clips.
    """
    sides = [correct.get(run_id) for pair in pairs for run_id in pair]
    known = [side for side in sides if side is not None]
    if len(known) < max(2, len(sides)) or not _have_same_clips(known) or len(known[0].clip_ids) < 2:
        return None
    table = np.stack([side.correct for side in known]).astype(int)
    return np.asarray(table[0::2] - table[1::2])


def mean_correct(runs: Iterable[str], correct: ByRun) -> dict[str, float] | None:
    """How often each clip was classified correctly by these runs, by clip id; ``None`` if scores are missing.

    Runs may have different clips, as folds do; each clip counts the runs that scored it.
    """
    counts: dict[str, list[bool]] = {}
    for run_id in runs:
        if (clips := correct.get(run_id)) is None:
            return None
        for clip, is_correct in zip(clips.clip_ids.tolist(), clips.correct.tolist(), strict=True):
            counts.setdefault(clip, []).append(is_correct)
    return {clip: sum(values) / len(values) for clip, values in counts.items()}


def _have_same_clips(sides: Sequence[CorrectClips]) -> bool:
    return all(np.array_equal(side.clip_ids, sides[0].clip_ids) for side in sides[1:])
