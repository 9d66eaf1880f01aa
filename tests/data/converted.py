"""Clips that the tests of the field's layouts convert, and what the data sets must contain."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.clip_source import SourceOptions
from fgst.data.conversion import ConversionReport, write_source
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import SOURCE_FORMATS
from tests.support import field_files as files

CLIPS = files.known_clips()
SIDES = files.split(CLIPS)


def convert(path: Path, out: Path, *, skip_bad: bool = False, **options: Any) -> tuple[ArrowDataset, ConversionReport]:
    [source_format] = [f for f in SOURCE_FORMATS if f.recognizes(path)]
    with source_format.open(path, SourceOptions(**options)) as source:
        return write_source(source, out, skip_bad=skip_bad)


def check(
    dataset: ArrowDataset, expected: Sequence[tuple[str, int, np.ndarray]], *, tolerance: float = 0, order: bool = True
) -> None:
    """Check names, labels and joints."""
    rows = {name: row for row, name in enumerate(dataset.clip_ids)}
    names = [name for name, _, _ in expected]
    assert (list(rows) if order else sorted(rows)) == (names if order else sorted(names))
    for name, label, joints in expected:
        clip = dataset.clip(rows[name])
        assert clip.shape == joints.shape, name
        assert dataset.columns["label"][rows[name]] == label
        np.testing.assert_allclose(clip, joints, rtol=0, atol=tolerance, err_msg=name)


def split_names(dataset: ArrowDataset, benchmark: str) -> tuple[set[str], set[str]]:
    splits = dataset.splits(benchmark, validation=0)
    return set(dataset.clip_ids[splits.train]), set(dataset.clip_ids[splits.test])


def names_of(clips: Sequence[files.Known]) -> set[str]:
    return {clip.name for clip in clips}


def write_annotations(path: Path, clips: Sequence[files.Known], protocol: int = 4, **changes: Any) -> Path:
    content = {"split": files.ntu_lists(clips), "annotations": [files.annotation(clip) for clip in clips]} | changes
    path.write_bytes(pickle.dumps(content, protocol))
    return path
