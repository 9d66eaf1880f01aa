"""Train, validation and test splits of benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from tests.support.small import motion_clips, write_small


def split_ids(dataset: ArrowDataset, benchmark: str = "", **options: Any) -> dict[str, set[str]]:
    """Return the clip ids of each split."""
    splits = dataset.splits(benchmark, **options)
    return {name: set(dataset.clip_ids[getattr(splits, name)]) for name in ("train", "val", "test")}


@pytest.fixture
def dataset(tmp_path: Path) -> ArrowDataset:
    return write_small(tmp_path / "set", shard_bytes=4000)


def test_validation_holds_out_whole_training_subjects(dataset: ArrowDataset) -> None:
    subject_of = {clip.clip_id: clip.subject for clip in motion_clips()}
    splits, ids = dataset.splits(), split_ids(dataset)
    subjects = {name: {subject_of[clip] for clip in members} for name, members in ids.items()}
    assert subjects["test"] == {5, 6}
    assert subjects["train"] | subjects["val"] == {1, 2, 3, 4}
    assert not subjects["train"] & subjects["val"]
    assert {(subject,) for subject in subjects["val"]} == set(splits.val_groups)
    assert len(splits.val_groups) == 1  # round(0.2 * 4)
    assert splits.held_out == f"1 of 4 subjects ({splits.val_groups[0][0]}): {len(ids['val'])} clips"
    assert ids["train"] | ids["val"] | ids["test"] == set(subject_of)
    assert sum(map(len, ids.values())) == len(subject_of)
    assert all(rows.tolist() == sorted(set(rows.tolist())) for rows in (splits.train, splits.val, splits.test))


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.75, 3), (0.99, 3)])
def test_number_of_validation_subjects_leaves_one_for_training(dataset: ArrowDataset, share: float, count: int) -> None:
    assert len(dataset.splits(validation=share).val_groups) == count


def test_equal_seeds_hold_out_the_same_subjects(dataset: ArrowDataset) -> None:
    reopened = ArrowDataset(dataset.path)
    for seed in range(20):
        assert split_ids(dataset, seed=seed) == split_ids(reopened, seed=seed)
    assert {dataset.splits(seed=seed).val_groups for seed in range(20)} == {((1,),), ((2,),), ((3,),), ((4,),)}
    assert len({frozenset(split_ids(dataset, seed=seed)["test"]) for seed in range(20)}) == 1


def test_paper_protocol_trains_on_all_training_clips(dataset: ArrowDataset) -> None:
    validation, paper = split_ids(dataset), split_ids(dataset, validation=0)
    assert paper["val"] == set()
    assert paper["train"] == validation["train"] | validation["val"]
    assert paper["test"] == validation["test"]
    assert dataset.splits(validation=0).val_groups == ()


def test_validation_with_single_subject_is_rejected_with_remedy(tmp_path: Path) -> None:
    dataset = write_small(tmp_path / "set", benchmarks=[Benchmark("x-sub", "subject", (3,))])
    with pytest.raises(InputError, match=r"x-sub.*one subject.*data\.validation_by=clip.*--protocol paper"):
        dataset.splits(by="subject")
    assert len(dataset.splits(validation=0).train) == 6


def test_benchmarks_split_by_column(tmp_path: Path) -> None:
    clips = [*motion_clips()]
    dataset = write_small(
        tmp_path / "set",
        clips,
        benchmarks=[
            Benchmark("x-set", "setup", (1, 3)),
            Benchmark("x-view", "camera", (1,), (2,)),
            Benchmark("part", "replication", (1,), (1, 2)),
            Benchmark("few", "subject", (1,), (6,)),
        ],
    )
    expected: dict[str, tuple[Callable[[Clip], bool], Callable[[Clip], bool]]] = {
        "": (lambda clip: clip.setup in (1, 3), lambda clip: clip.setup not in (1, 3)),
        "x-set": (lambda clip: clip.setup in (1, 3), lambda clip: clip.setup not in (1, 3)),
        "x-view": (lambda clip: clip.camera == 1, lambda clip: clip.camera == 2),
        "part": (lambda clip: clip.replication == 1, lambda clip: clip.replication == 2),
        "few": (lambda clip: clip.subject == 1, lambda clip: clip.subject == 6),
    }
    for name, (is_train, is_test) in expected.items():
        ids = split_ids(dataset, name, validation=0)
        assert ids["train"] == {clip.clip_id for clip in clips if is_train(clip)}
        assert ids["test"] == {clip.clip_id for clip in clips if is_test(clip)}
        assert ids["train"]
        assert ids["test"]


def test_validation_subjects_of_camera_benchmark(dataset: ArrowDataset) -> None:
    clips = {clip.clip_id: clip for clip in motion_clips()}
    [(held_out,)] = dataset.splits("x-view", seed=1).val_groups
    ids = split_ids(dataset, "x-view", seed=1)
    assert ids["val"] == {name for name, clip in clips.items() if clip.camera == 1 and clip.subject == held_out}
    assert ids["train"] == {name for name, clip in clips.items() if clip.camera == 1 and clip.subject != held_out}
    assert ids["test"] == {name for name, clip in clips.items() if clip.camera == 2}


def test_unknown_benchmark_is_rejected_with_known_ones(dataset: ArrowDataset) -> None:
    with pytest.raises(InputError, match=r"data\.benchmark is 'x-sup'.*x-sub, x-view"):
        dataset.splits("x-sup")


@pytest.mark.parametrize(("train", "test", "split"), [((9,), None, "training"), ((1, 2), (9,), "test")])
def test_benchmark_with_empty_split_is_rejected(
    tmp_path: Path, train: tuple[int, ...], test: tuple[int, ...] | None, split: str
) -> None:
    dataset = write_small(tmp_path / "set", benchmarks=[Benchmark("x-sub", "subject", train, test)])
    with pytest.raises(InputError, match=rf"x-sub has no {split} clip"):
        dataset.splits(validation=0)
