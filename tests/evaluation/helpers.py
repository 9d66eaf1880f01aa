"""Scores, raw files and runs for the tests of evaluation."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.cli.command import run_command
from fgst.evaluation.metrics import Scores
from fgst.tracking.store import TrackingStore


def make_scores(seed: int = 0, clips: int = 12, classes: int = 4, margin: float = 1.0, **changes: Any) -> Scores:
    """Return random scores, with ``margin`` added to the true class; ``changes`` replace fields."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % classes
    values = rng.normal(size=(clips, classes)).astype(np.float32)
    values[np.arange(clips), labels] += margin
    names = np.array([f"clip-{number:02d}" for number in range(clips)], dtype=object)
    return dataclasses.replace(Scores(names, labels.astype(np.int64), values, "val", "d" * 64), **changes)


def shuffled(scores: Scores, seed: int = 1) -> Scores:
    """Return the same scores with the clips in random order."""
    rows = np.random.default_rng(seed).permutation(scores.num_clips)
    return dataclasses.replace(
        scores, clip_ids=scores.clip_ids[rows], labels=scores.labels[rows], scores=scores.scores[rows]
    )


def npy_bytes(array: np.ndarray) -> bytes:
    """Return the content of an ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def log_network(store: TrackingStore, checkpoint: Path, modality: str = "joint") -> str:
    """Store a checkpoint with a new run; return the run's id."""
    run = store.start(store.experiment("small x-sub"), modality, "a trial", {"fgst.kind": "trial"})
    checkpoint.rename(checkpoint.parent / "checkpoint")
    run.log_artifacts(checkpoint.parent)
    return run.run_id


def error_of(main: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line of stderr, besides notes, of a command that exits with code 2 and prints nothing else."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        run_command(lambda: main(arguments))
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [*notes, error] = err.splitlines(keepends=True)
    assert all(note.startswith("note: ") for note in notes)
    return error
