"""What is held out for validation: the schemes, their choice by the benchmark, and folds."""

from __future__ import annotations

import itertools
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgst.cli.options import trial_config
from fgst.config import PRESETS, DataConfig, TrialConfig, resolve_data_defaults
from fgst.data import splits as splits_module
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.splits import Benchmark, Splits, choose_scheme, make_splits
from fgst.errors import InputError
from tests.support.small import POSE, motion_clips, write_small

SCHEMES = ("subject", "camera", "setup", "subject-camera", "clip")
COLUMNS = ("label", "subject", "camera", "setup", "replication")


@dataclass
class Clips:
    """Columns and names of some clips, and the rule that separates them."""

    ids: list[str]
    columns: dict[str, np.ndarray]
    benchmark: Benchmark

    def split(self, **options: Any) -> Splits:
        return make_splits(self.ids, self.columns, self.benchmark, **options)

    def values(self, *names: str, rows: np.ndarray | None = None) -> list[tuple[int, ...]]:
        """The columns' values of some rows, by default of all."""
        chosen = np.arange(len(self.ids)) if rows is None else rows
        return [tuple(int(self.columns[name][row]) for name in names) for row in chosen]

    @property
    def training_rows(self) -> np.ndarray:
        return np.flatnonzero(np.isin(self.columns[self.benchmark.column], self.benchmark.train))


def make_clips(rows: Sequence[tuple[int, ...]], benchmark: Benchmark) -> Clips:
    """Clips with these values of ``COLUMNS``."""
    table = np.array(rows, dtype=np.int32)
    ids = [f"clip {number:03d}" for number in range(len(rows))]
    return Clips(ids, {name: table[:, i] for i, name in enumerate(COLUMNS)}, benchmark)


def grid(subjects: int = 10, cameras: int = 3, labels: int = 4, replications: int = 2) -> list[tuple[int, ...]]:
    """A clip of every subject, camera, label and replication; subjects 1, 2, … are in setups 1, 1, 2, 2, …"""
    ranges = (range(labels), range(1, subjects + 1), range(1, cameras + 1), range(1, replications + 1))
    return [(label, s, c, (s + 1) // 2, r) for label, s, c, r in itertools.product(*ranges)]


CROSS_VIEW = Benchmark("x-view", "camera", (1, 2), (3,))
CROSS_SUBJECT = Benchmark("x-sub", "subject", tuple(range(1, 9)))


@st.composite
def clips_of_any_kind(draw: st.DrawFn) -> Clips:
    """Clips with any columns, many of them equal or not recorded, and a benchmark with both sides."""
    number = st.integers(0, 3)
    rows = draw(st.lists(st.tuples(st.integers(0, 2), number, number, number, number), min_size=3, max_size=40))
    column = draw(st.sampled_from(COLUMNS[1:]))
    values = sorted({row[COLUMNS.index(column)] for row in rows})
    if len(values) == 1:
        rows.append((0, 4, 4, 4, 4))
        values.append(4)
    count = draw(st.integers(1, len(values) - 1))
    clips = make_clips(rows, Benchmark("any", column, tuple(draw(st.permutations(values))[:count])))
    clips.ids = draw(st.permutations(clips.ids))
    return clips


def may_be_one_recording(clips: Clips, one: int, other: int) -> bool:
    """Whether two clips may show the same performance."""
    a, b = clips.values(*COLUMNS, rows=np.array([one, other]))
    label, subject, _, setup, replication = a
    if (label, subject, setup, replication) != (b[0], b[1], b[3], b[4]):
        return False
    different_cameras = a[2] != b[2] and a[2] > 0 and b[2] > 0
    return replication > 0 or ((subject > 0 or setup > 0) and different_cameras)


@settings(max_examples=200, deadline=None)
@given(
    clips_of_any_kind(), st.sampled_from(("auto", *SCHEMES)), st.integers(0, 3), st.sampled_from((0.1, 0.2, 0.5, 0.9))
)
def test_splits_of_any_clips(clips: Clips, by: str, seed: int, share: float) -> None:
    """Validation clips are a part of the training clips in whole groups, which does not depend on the rows' order."""
    scheme = choose_scheme(clips.columns, clips.benchmark) if by == "auto" else by
    try:
        splits = clips.split(by=by, seed=seed, validation=share)
    except InputError as refusal:
        message = str(refusal)
    else:
        message = ""
    if message:
        assert "so none can be held out for validation; " in message
        assert "--protocol paper" in message
        assert scheme == "clip" or "--set data.validation_by=clip" in message
        return
    assert len(splits.train) > 0
    assert len(splits.val) > 0
    assert sorted([*splits.train, *splits.val]) == clips.training_rows.tolist()
    assert re.search(rf": {len(splits.val)} clips?$", splits.held_out)
    everything = set(range(len(clips.ids)))
    assert set(splits.test.tolist()) == everything - set(clips.training_rows.tolist())

    columns = {"subject-camera": ("subject", "camera"), "clip": ()}.get(scheme, (scheme,))
    if columns:
        assert set(clips.values(*columns, rows=splits.val)) == set(splits.val_groups)
        assert not set(clips.values(*columns, rows=splits.train)) & set(splits.val_groups)
    if scheme == "subject-camera":
        assert max(Counter(subject for subject, _ in splits.val_groups).values()) == 1
        assert set(clips.values("subject", rows=splits.val)) <= set(clips.values("subject", rows=splits.train))
    if scheme == "clip":
        assert not any(may_be_one_recording(clips, one, other) for one in splits.val for other in splits.train)
        labels = clips.values("label", rows=clips.training_rows)
        assert set(clips.values("label", rows=splits.train)) == set(labels)

    order = np.random.default_rng(seed).permutation(len(clips.ids))
    shuffled = Clips(
        [clips.ids[i] for i in order], {name: values[order] for name, values in clips.columns.items()}, clips.benchmark
    )
    again = shuffled.split(by=by, seed=seed, validation=share)
    assert {shuffled.ids[row] for row in again.val} == {clips.ids[row] for row in splits.val}
    assert again.val_groups == splits.val_groups


@settings(max_examples=200, deadline=None)
@given(clips_of_any_kind(), st.sampled_from(SCHEMES), st.integers(0, 3), st.integers(2, 6))
def test_folds_of_any_clips(clips: Clips, by: str, seed: int, folds: int) -> None:
    """Folds are disjoint and together hold out everything that the scheme can hold out."""
    try:
        parts = [clips.split(by=by, seed=seed, folds=folds, fold=fold) for fold in range(folds)]
    except InputError as refusal:
        message = str(refusal)
    else:
        message = ""
    if message:
        assert "none can be held out" in message or f"data.folds is {folds}" in message
        return
    held_out = [row for part in parts for row in part.val.tolist()]
    assert len(held_out) == len(set(held_out))
    assert all(len(part.val) and len(part.train) for part in parts)
    assert [part.held_out.split(",")[0] for part in parts] == [f"fold {fold} of {folds}" for fold in range(folds)]
    missing = set(clips.training_rows.tolist()) - set(held_out)
    if by in ("subject", "camera", "setup"):
        assert not missing
    if by == "subject-camera":  # subjects with a single camera stay in training
        pairs = set(clips.values("subject", "camera", rows=clips.training_rows))
        cameras = Counter(subject for subject, _ in pairs)
        assert {cameras[subject] for (subject,) in clips.values("subject", rows=np.array(sorted(missing), int))} <= {1}
    if by == "clip":  # the only recordings of their classes stay in training
        for label in set(clips.values("label", rows=np.array(sorted(missing), int))):
            rest = [row for row in missing if clips.values("label", rows=np.array([row])) == [label]]
            assert not any(clips.columns["label"][row] == label[0] for row in held_out)
            assert all(may_be_one_recording(clips, rest[0], row) or row == rest[0] for row in rest) or len(rest) == 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=12), st.floats(0.05, 0.5), st.integers(0, 5))
def test_share_of_recordings(sizes: list[int], share: float, seed: int) -> None:
    """The share holds for each class and, without accumulated rounding errors, for all of them."""
    rows = [(label, 1, 0, 0, number + 1) for label, size in enumerate(sizes) for number in range(size)]
    clips = make_clips([*rows, (0, 2, 0, 0, 1)], Benchmark("x-sub", "subject", (1,)))
    splits = clips.split(by="clip", validation=share, seed=seed)
    counts = Counter(label for (label,) in clips.values("label", rows=splits.val))
    assert abs(len(splits.val) - share * len(rows)) <= 0.5 or len(splits.val) == 1
    if len(splits.val) > 1:
        assert all(abs(counts[label] - share * size) < 1 for label, size in enumerate(sizes))


def test_seeds_hold_out_other_recordings() -> None:
    clips = make_clips(grid(), CROSS_SUBJECT)
    assert len({tuple(clips.split(by="clip", seed=seed).val) for seed in range(10)}) == 10


def test_one_camera_of_some_subjects() -> None:
    """Of ten subjects with two cameras, 20 % of the pairs are four, two of each camera."""
    clips = make_clips(grid(), CROSS_VIEW)
    for seed in range(5):
        splits = clips.split(by="subject-camera", seed=seed)
        assert Counter(camera for _, camera in splits.val_groups) == {1: 2, 2: 2}
        assert splits.held_out == "4 of 10 subjects, one camera each: 32 clips"
        assert len(splits.val) == 0.2 * len(clips.training_rows)
        # Every performance in validation is trained on as another camera recorded it.
        performances = ("label", "subject", "replication")
        assert set(clips.values(*performances, rows=splits.val)) <= set(clips.values(*performances, rows=splits.train))
    assert len({clips.split(by="subject-camera", seed=seed).val_groups for seed in range(20)}) > 10


def test_at_most_one_camera_of_each_subject_is_held_out() -> None:
    splits = make_clips(grid(), CROSS_VIEW).split(by="subject-camera", validation=0.9)
    assert splits.held_out.startswith("10 of 10 subjects, one camera each")
    assert Counter(camera for _, camera in splits.val_groups) == {1: 5, 2: 5}


@pytest.mark.parametrize(("cameras", "folds"), [(2, 2), (2, 5), (3, 3), (3, 4), (3, 10)])
def test_folds_deal_subjects_and_cameras_evenly(cameras: int, folds: int) -> None:
    clips = make_clips(grid(12, cameras + 1), Benchmark("x-view", "camera", tuple(range(1, cameras + 1))))
    parts = [clips.split(by="subject-camera", folds=folds, fold=fold).val_groups for fold in range(folds)]
    assert sorted(pair for part in parts for pair in part) == list(
        itertools.product(range(1, 13), range(1, cameras + 1))
    )
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= cameras
    for part in parts:
        per_camera = Counter(camera for _, camera in part)
        assert max(per_camera.values()) - min(per_camera.get(c, 0) for c in range(1, cameras + 1)) <= 1


def test_recordings_keep_their_cameras_together() -> None:
    clips = make_clips(grid(), CROSS_SUBJECT)
    splits = clips.split(by="clip")
    recordings = Counter(clips.values("label", "subject", "replication", rows=splits.val))
    assert set(recordings.values()) == {3}
    assert splits.held_out == "13 of 64 recordings, from all classes: 39 clips"
    assert splits.val_groups == ()


def test_clips_without_replication_are_one_recording_if_several_cameras_are_known() -> None:
    train = Benchmark("x-sub", "subject", (1, 0))
    seen_by_two = [(0, 1, camera, 0, 0) for camera in (1, 2) for _ in range(3)]
    by_one = [(1, 1, 1, 0, 0) for _ in range(5)]
    unknown = [(2, 0, camera, 0, 0) for camera in (1, 2, 3, 4, 5)]
    clips = make_clips([*seen_by_two, *by_one, *unknown, (0, 2, 1, 0, 0)], train)
    counts: Counter[int] = Counter()
    for fold in range(5):
        splits = clips.split(by="clip", folds=5, fold=fold)
        counts += Counter(label for (label,) in clips.values("label", rows=splits.val))
        assert all(label != 0 for (label,) in clips.values("label", rows=splits.val))
    assert counts == {1: 5, 2: 5}


AUTO: list[tuple[str, Benchmark, list[tuple[int, ...]], str]] = [
    ("eight training subjects", CROSS_SUBJECT, grid(), "subject"),
    ("two training subjects", Benchmark("b", "subject", (1, 2)), grid(), "subject"),
    ("one training subject", Benchmark("b", "subject", (1,)), grid(), "clip"),
    ("three training cameras", Benchmark("b", "camera", (1, 2, 4)), grid(cameras=4), "camera"),
    ("two training cameras", CROSS_VIEW, grid(), splits_module.TWO_CAMERAS),
    ("one training camera", Benchmark("b", "camera", (2,)), grid(), "subject"),
    ("two cameras of one subject", CROSS_VIEW, grid(subjects=1), "clip"),
    ("one camera of each subject", CROSS_VIEW, [(0, s, 1 + s % 3, 1, 1) for s in range(1, 9)], "subject"),
    ("two cameras, subjects not recorded", CROSS_VIEW, [(a, 0, c, d, r) for a, _, c, d, r in grid()], "clip"),
    ("some subjects not recorded", CROSS_SUBJECT, [(0, s, 1, 1, 1) for s in (0, 1, 2, 3, 9)], "subject"),
    ("a subject not recorded", Benchmark("b", "subject", (0, 1, 2)), [(0, s, 1, 1, 1) for s in range(5)], "clip"),
    ("training setups", Benchmark("b", "setup", (1, 3, 5)), grid(), "setup"),
    ("one training setup", Benchmark("b", "setup", (1,)), grid(), "subject"),
    ("replications", Benchmark("b", "replication", (1,)), grid(), "clip"),
]  # fmt: skip


@pytest.mark.parametrize(("benchmark", "rows", "expected"), [case[1:] for case in AUTO], ids=[case[0] for case in AUTO])
def test_automatic_scheme_asks_what_the_benchmark_asks(
    benchmark: Benchmark, rows: list[tuple[int, ...]], expected: str
) -> None:
    assert choose_scheme(make_clips(rows, benchmark).columns, benchmark) == expected


def test_automatic_scheme_of_a_list_of_clips_is_recordings() -> None:
    """A column of membership (1 train, 2 test, 0 neither) says nothing about what the list asks."""
    clips = make_clips(grid(), Benchmark("official", "split_official", (1,), (2,)))
    clips.columns["split_official"] = np.arange(len(clips.ids)) % 3
    splits = clips.split()
    assert splits.held_out.endswith(f" recordings, from all classes: {len(splits.val)} clips")
    assert set(clips.values("split_official", rows=splits.val)) == {(1,)}


@pytest.mark.parametrize(
    ("by", "benchmark", "reason"),
    [
        ("subject", Benchmark("b", "subject", (3,)), "come from one subject"),
        ("camera", Benchmark("b", "camera", (2,)), "come from one camera"),
        ("setup", Benchmark("b", "subject", (1, 2)), "come from one setup"),
        ("subject-camera", Benchmark("b", "camera", (2,)), "have a single camera for each subject"),
    ],
)
def test_scheme_that_is_impossible_is_rejected_with_another(by: str, benchmark: Benchmark, reason: str) -> None:
    message = (
        rf"^all training clips of benchmark b {reason}, so none .* data\.validation_by=clip, or .*--protocol paper$"
    )
    with pytest.raises(InputError, match=message):
        make_clips(grid(), benchmark).split(by=by)


def test_single_recording_of_each_class_is_rejected() -> None:
    rows = [(label, 1, camera, 1, 1) for label in range(4) for camera in (1, 2)]
    clips = make_clips([*rows, (0, 2, 1, 1, 1)], Benchmark("b", "subject", (1,)))
    with pytest.raises(InputError, match=r"are a single recording of each class, so none.*; train on all of them with"):
        clips.split()


@pytest.mark.parametrize(
    ("by", "folds", "message"),
    [
        ("subject", 9, "data.folds is 9, but benchmark x-sub has only 8 training subjects; use fewer folds"),
        ("camera", 4, "only 3 training cameras"),
        ("subject-camera", 9, "only 8 training subjects with several cameras"),
        ("subject-camera", 2, "trains on 3 cameras of a subject, of which a fold holds out one; use at least 3 folds"),
        ("clip", 65, "only 64 training recordings"),
    ],
)
def test_too_many_folds_are_rejected(by: str, folds: int, message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        make_clips(grid(), CROSS_SUBJECT).split(by=by, folds=folds)


def test_settings_are_resolved_to_the_scheme_that_is_used(tmp_path: Path) -> None:
    """Runs record the scheme; settings of versions without one hold out subjects, whatever the benchmark."""
    clips = [
        Clip(f"clip {i}", label, np.tile(POSE, (1, 9, 1, 1)).astype(np.float32), s, c, setup, r)
        for i, (label, s, c, setup, r) in enumerate(grid(4, 3, 3))
    ]
    dataset = write_small(tmp_path / "set", clips, benchmarks=[CROSS_VIEW])
    resolved = resolve_data_defaults(PRESETS["tiny"], dataset)
    assert resolved.data.validation_by == splits_module.TWO_CAMERAS
    assert resolve_data_defaults(resolved, dataset) == resolved
    earlier = TrialConfig.from_flat({"data.dataset": str(dataset.path)})
    assert resolve_data_defaults(earlier, dataset).data.validation_by == "subject"
    assert dataset.splits_for(earlier.data).val_groups == dataset.splits(by="subject").val_groups == ((3,),)
    explicit = PRESETS["tiny"].with_values({"data.validation_by": "camera"})
    assert resolve_data_defaults(explicit, dataset).data.validation_by == "camera"


def test_settings_determine_the_clips(tmp_path: Path) -> None:
    dataset = write_small(tmp_path / "set")
    data = DataConfig(validation_by="clip", validation_seed=3, folds=4, fold=2)
    expected = dataset.splits(by="clip", seed=3, folds=4, fold=2)
    assert dataset.splits_for(data).held_out == expected.held_out
    assert np.array_equal(dataset.splits_for(data).val, expected.val)
    paper = dataset.splits_for(DataConfig(protocol="paper", folds=4))
    assert (len(paper.val), paper.held_out) == (0, "")
    half = dataset.splits_for(DataConfig(validation=0.5))
    assert len(half.val_groups) == 2


def test_recorded_scheme_is_that_of_the_recorded_benchmark() -> None:
    """Settings of a training name its scheme; for another benchmark it is chosen again, unless it is given."""
    recorded = TrialConfig().with_values({"data.benchmark": "x-view", "data.validation_by": "subject-camera"})
    options = Namespace(preset=None, epochs=None, modality=None, protocol=None, seed=None, benchmark=None, overrides=[])

    def scheme(**changes: Any) -> str:
        given = Namespace(**vars(options) | changes)
        return trial_config(given, "data", has_gpu=False, base=recorded).data.validation_by

    assert scheme() == scheme(benchmark="x-view") == "subject-camera"
    assert scheme(benchmark="x-sub") == "auto"
    assert scheme(benchmark="x-sub", overrides=["data.validation_by=clip"]) == "clip"


def test_data_set_with_one_subject_can_be_validated(tmp_path: Path) -> None:
    clips = [clip for clip in motion_clips(60) if clip.subject in (1, 5)]
    dataset = write_small(tmp_path / "set", clips, benchmarks=[Benchmark("x-sub", "subject", (1,))])
    assert dataset.validation_scheme() == "clip"
    assert len(dataset.splits().val) > 0


def test_cross_view_of_nw_ucla(nw_ucla: ArrowDataset) -> None:
    """The clips of the field's cross-view split, as counted in the recordings' names."""
    expected = {
        "subject": ("2 of 10 subjects (5, 7): 205 clips", 205),
        "camera": ("1 of 2 cameras (1): 516 clips", 516),
        "subject-camera": ("4 of 10 subjects, one camera each: 206 clips", 206),
        "clip": ("108 of 542 recordings, from all classes: 201 clips", 201),
    }
    for by, (held_out, count) in expected.items():
        splits = nw_ucla.splits("x-view", by=by)  # type: ignore[arg-type]
        assert (splits.held_out, len(splits.val), len(splits.train)) == (held_out, count, 1020 - count)
    assert nw_ucla.validation_scheme("x-view") == splits_module.TWO_CAMERAS
    assert nw_ucla.validation_scheme("x-sub") == "subject"
    # Clips of one performance have the same name but for the view.
    names = nw_ucla.clip_ids
    splits = nw_ucla.splits("x-view", by="clip")
    assert not {names[row][:-2] for row in splits.val} & {names[row][:-2] for row in splits.train}
    folds = [nw_ucla.splits("x-view", by="subject-camera", folds=5, fold=fold).val for fold in range(5)]
    assert sum(map(len, folds)) == len(set(np.concatenate(folds).tolist())) == 1020
