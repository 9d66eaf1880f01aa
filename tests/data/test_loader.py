"""Batches of a clip loader: contents, passes over the clips, splits, devices, and the location of the frames."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fgst.config import MODALITIES, DataConfig, resolve
from fgst.data.loader import ClipLoader, choose_device, make_loaders
from fgst.errors import InputError
from tests.data.helpers import CPU, SKELETONS, both_recipes, load_all, random_walks, seeded, write
from tests.support.small import motion_clips, small_config, write_small

torch.set_num_threads(1)


# Contents of a batch


@both_recipes
@pytest.mark.parametrize("modality", MODALITIES)
def test_clip_does_not_depend_on_rest_of_batch(recipe: str, modality: str, tmp_path: Path) -> None:
    N = SKELETONS[recipe].num_joints
    clips = [random_walks(1 + i % 2, length, N, i) for i, length in enumerate((5, 90, 1, 33, 7))]
    loader = load_all(write(tmp_path, clips, recipe, shard_bytes=1), modality=modality, frames=20)
    rows = [3, 0, 4, 1, 2]
    together = loader.batch(np.array(rows)).clips
    for position, row in enumerate(rows):
        assert torch.equal(loader.batch(np.array([row])).clips[0], together[position])


@both_recipes
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("modality", MODALITIES)
def test_absent_persons_are_zero(recipe: str, training: bool, modality: str, tmp_path: Path) -> None:
    N = SKELETONS[recipe].num_joints
    loader = load_all(write(tmp_path, [random_walks(2, 9, N, 0), random_walks(1, 12, N, 1)], recipe), modality=modality)
    clips = loader.batch(np.array([0, 1]), seeded(0) if training else None).clips
    assert clips.shape[1] == 2
    assert not clips[1, 1].any()
    assert clips[0, 0].any()
    assert clips[0, 1].any()
    assert clips[1, 0].any()


def test_batch_contains_requested_rows(tmp_path: Path) -> None:
    clips = [np.full((1, 4, 25, 3), float(i)) for i in range(9)]
    dataset = write(tmp_path, clips, "ntu", shard_bytes=3000)
    rows = np.array([8, 2, 3, 7])
    loader = ClipLoader(dataset, rows, DataConfig(), CPU)
    assert loader.clip_ids.tolist() == ["clip 8", "clip 2", "clip 3", "clip 7"]
    batch = loader.batch(np.array([2, 0, 3]))
    assert batch.rows.tolist() == [2, 0, 3]
    assert batch.labels.tolist() == [0, 2, 1]
    assert batch.clips.shape == (3, 1, 128, 25, 3)
    for result, row in zip(batch.clips, (3, 8, 7), strict=True):
        assert (result == row).all()


def test_configuration_overrides_recipe_of_data_set(tmp_path: Path) -> None:
    dataset = write(tmp_path, [random_walks(1, 9, 25, 0) * 5], "ntu")
    default = load_all(dataset).batch(np.array([0])).clips
    other = load_all(dataset, recipe="nw-ucla").batch(np.array([0])).clips
    assert default.shape[2] == 128
    assert default.abs().max() > 1
    assert other.shape[2] == 52
    assert (other.amax((0, 1, 2, 3)) - 1).abs().max() < 1e-6
    assert (other.amin((0, 1, 2, 3)) + 1).abs().max() < 1e-6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("modality", MODALITIES)
def test_clips_without_extent_become_zero(training: bool, modality: str, tmp_path: Path) -> None:
    plane = random_walks(1, 9, 20, 0)
    plane[..., 2] = 1.7
    point = np.full((1, 9, 20, 3), 0.3)
    loader = load_all(write(tmp_path, [plane, point], "nw-ucla"), modality=modality)
    clips = loader.batch(np.array([0, 1]), seeded(0) if training else None).clips
    assert clips.isfinite().all()
    assert not clips[1].any()
    if not training:
        assert not clips[0, ..., 2].any()
        assert clips[0, ..., :2].any()


def test_motionless_person_is_present_in_motion_modalities(tmp_path: Path) -> None:
    clips = list(motion_clips())
    pair = next(clip for clip in clips if clip.joints.shape[0] == 2)
    still = np.repeat(pair.joints[1:, :1], pair.joints.shape[1], axis=1)
    clips.append(dataclasses.replace(pair, clip_id="still", joints=np.concatenate([pair.joints[:1], still])))
    clips.append(dataclasses.replace(pair, clip_id="alone", joints=pair.joints[:1]))
    dataset = write_small(tmp_path / "data", clips)
    config = resolve(small_config(dataset, data__modality="joint_motion"), dataset)
    person_mask: dict[str, list[bool]] = {}
    for loader in make_loaders(dataset, config.data, CPU).values():
        (batch,) = loader.evaluation_batches()
        person_mask |= dict(zip(loader.clip_ids, batch.person_mask.tolist(), strict=True))
    assert person_mask["still"] == [True, True]
    assert person_mask["alone"] == [True, False]


# Passes over the clips


@pytest.mark.parametrize(
    ("clips", "batch_size", "repeat", "sizes"),
    [
        (7, 3, 1, [3, 3]),  # a last batch with a single clip is dropped
        (7, 3, 2, [3, 3, 3, 3, 2]),
        (8, 4, 3, [4] * 6),
        (5, 32, 5, [25]),
        (3, 2, 1, [2]),
        (1, 4, 1, [1]),  # unless it is the only batch
        (1, 4, 5, [4]),
    ],
)
def test_number_and_sizes_of_training_batches(
    clips: int, batch_size: int, repeat: int, sizes: list[int], tmp_path: Path
) -> None:
    loader = load_all(write(tmp_path, [random_walks(1, 3, 20, i) for i in range(clips)], "nw-ucla"), frames=4)
    batches = list(loader.training_batches(batch_size, repeat, seeded(0)))
    assert [len(batch.rows) for batch in batches] == sizes
    assert loader.steps(batch_size, repeat) == len(sizes)
    order = np.concatenate([batch.rows for batch in batches])
    assert len(order) >= clips * repeat - 1
    for start in range(0, len(order), clips):
        one_pass = order[start : start + clips].tolist()
        assert len(set(one_pass)) == len(one_pass)
    for batch in batches:
        assert torch.equal(batch.labels, loader.labels[batch.rows])
        assert batch.clips.shape == (len(batch.rows), 1, 4, 20, 3)


def test_order_differs_between_passes_and_seeds(tmp_path: Path) -> None:
    loader = load_all(write(tmp_path, [random_walks(1, 3, 20, i) for i in range(12)], "nw-ucla"), frames=4)

    def orders(seed: int) -> list[list[int]]:
        return [batch.rows.tolist() for batch in loader.training_batches(12, 3, seeded(seed))]

    first = orders(0)
    assert len({tuple(order) for order in [*first, *orders(1), list(range(12))]}) == 7
    assert orders(0) == first


def test_evaluation_batches_contain_all_clips_in_order(tmp_path: Path) -> None:
    loader = load_all(write(tmp_path, [random_walks(1, 2 + i, 20, i) for i in range(7)], "nw-ucla"), frames=4)
    batches = list(loader.evaluation_batches(3))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), loader.labels)
    assert torch.equal(torch.cat([batch.clips for batch in batches]), loader.batch(np.arange(7)).clips)


# Splits and devices


def test_loaders_of_validation_protocol(tmp_path: Path) -> None:
    dataset = write(tmp_path, [random_walks(1, 3, 20, i) for i in range(24)], "nw-ucla")
    loaders = make_loaders(dataset, DataConfig(benchmark="x-sub", validation=0.3), CPU)
    subjects = {name: set(dataset.columns["subject"][loader.rows].tolist()) for name, loader in loaders.items()}
    assert set(loaders) == {"train", "val", "test"}
    assert subjects["test"] == {4}
    assert len(subjects["val"]) == 1
    assert subjects["val"] | subjects["train"] == {1, 2, 3}
    assert not subjects["val"] & subjects["train"]
    assert sum(len(loader) for loader in loaders.values()) == 24


def test_loaders_of_paper_protocol(tmp_path: Path) -> None:
    dataset = write(tmp_path, [random_walks(1, 3, 20, i) for i in range(24)], "nw-ucla")
    loaders = make_loaders(dataset, DataConfig(benchmark="x-view", protocol="paper"), CPU)
    assert set(loaders) == {"train", "test"}
    assert loaders["train"].rows.tolist() == [row for row in range(24) if row % 3 != 2]
    assert loaders["test"].rows.tolist() == [row for row in range(24) if row % 3 == 2]
    assert loaders["test"].clip_ids.tolist() == [f"clip {row}" for row in range(2, 24, 3)]


def test_unavailable_devices_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(InputError, match="finds no GPU"):
        choose_device("cuda")
    with pytest.raises(InputError, match="'quantum'"):
        choose_device("quantum")


# Location of the frames


@both_recipes
def test_resident_and_mapped_frames_give_equal_batches(recipe: str, tmp_path: Path) -> None:
    joints = SKELETONS[recipe].num_joints
    dataset = write(
        tmp_path, [random_walks(1 + i % 2, 9 + 5 * i, joints, i) for i in range(9)], recipe, shard_bytes=20_000
    )
    assert len(list(dataset.path.glob("*.arrow"))) > 1
    rows = np.array([8, 2, 5, 0, 7])
    loaders = [ClipLoader(dataset, rows, DataConfig(frames=16), CPU, resident=resident) for resident in (True, False)]
    for training in (True, False):
        resident, mapped = (
            loader.batch(np.array([3, 0, 3, 4, 1]), torch.Generator().manual_seed(1) if training else None)
            for loader in loaders
        )
        for field in ("clips", "person_mask", "labels"):
            torch.testing.assert_close(getattr(resident, field), getattr(mapped, field), rtol=0, atol=0)
