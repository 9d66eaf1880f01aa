"""Batches compared with recipes that process one clip at a time, and the distribution of the random draws.

The draws are recovered from the batches: a "clock" clip is a rigid pose in which one joint moves by a known step per
frame, so the pose gives the rotation and the moving joint gives the frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fgst.config import MODALITIES, DataConfig
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.loader import ClipLoader, choose_device, even_frames, make_loaders, rotation
from fgst.data.modality import to_modality
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton
from fgst.data.splits import Benchmark
from fgst.data.writer import write_dataset
from fgst.errors import InputError

torch.set_num_threads(1)
CPU = torch.device("cpu")
SKELETONS = {"nw-ucla": NW_UCLA_20, "ntu": NTU_25}
LENGTHS = (1, 2, 3, 31, 52, 201)
# (child, parent), joints counted from 1.
BONES = {
    "nw-ucla": [
        (1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 11), (13, 1),
        (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19),
    ],
    "ntu": [
        (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
        (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (21, 21), (22, 23), (23, 8),
        (24, 25), (25, 12),
    ],
}  # fmt: skip

recipes = pytest.mark.parametrize("recipe", SKELETONS)


# --- data sets ---


def write(path: Path, joints: Sequence[np.ndarray], recipe: str, *, shard_bytes: int = 2**20) -> ArrowDataset:
    """Write a data set of these clips; clip i has label i mod 3, subject i mod 4 and camera i mod 3."""
    clips = [
        Clip(f"clip {i}", i % 3, clip.astype(np.float32), subject=i % 4, camera=i % 3) for i, clip in enumerate(joints)
    ]
    skeleton: Skeleton = SKELETONS[recipe]
    return write_dataset(
        path / "data", clips, name="test", skeleton=skeleton, classes=("a", "b", "c"), recipe=recipe, source={},
        benchmarks=[Benchmark("x-sub", "subject", (0, 1, 2)), Benchmark("x-view", "camera", (0, 1))],
        shard_bytes=shard_bytes,
    )  # fmt: skip


def moving(persons: int, frames: int, joints: int, seed: int) -> np.ndarray:
    """Persons on random walks, metres from the camera: ``(M, T, N, 3)``, exactly representable as float32."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(0, 0.4, (persons, 1, joints, 3)) + rng.normal(0, 1, (persons, 1, 1, 3)) + [0, 0, 3]
    path = rng.normal(0, 0.03, (persons, frames, joints, 3)).cumsum(1)
    return (pose + path).astype(np.float32)


def load_all(dataset: ArrowDataset, **config: object) -> ClipLoader:
    """A loader of all clips."""
    return ClipLoader(dataset, np.arange(len(dataset)), DataConfig(**config), CPU)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(CPU).manual_seed(seed)


# --- the recipes, one clip at a time ---


def as_modality(joints: np.ndarray, modality: str, recipe: str) -> np.ndarray:
    """Convert joints ``(M, T, N, 3)`` to a modality; bone motion is the motion of the bones."""
    if modality.startswith("bone"):
        lengths = np.zeros_like(joints)
        for child, parent in BONES[recipe]:
            lengths[:, :, child - 1] = joints[:, :, child - 1] - joints[:, :, parent - 1]
        joints = lengths
    if modality.endswith("motion"):
        steps = np.zeros_like(joints)
        for t in range(joints.shape[1] - 1):
            steps[:, t] = joints[:, t + 1] - joints[:, t]
        joints = steps
    return joints


def nw_ucla_test_clip(clip: np.ndarray, modality: str) -> np.ndarray:
    """Apply the recipe for evaluation: ``(1, T, 20, 3)`` to ``(1, 52, 20, 3)``."""
    clip = clip.astype(np.float64)
    clip = clip - clip[0, 0, 1]
    flat = clip.reshape(-1, 3)
    low, high = flat.min(0), flat.max(0)
    clip = (clip - low) / (high - low) * 2 - 1
    positions = np.linspace(0, clip.shape[1] - 1, 52)
    return as_modality(clip[:, [int(position) for position in positions]], modality, "nw-ucla")


def ntu_test_clip(clip: np.ndarray, frames: int, modality: str) -> np.ndarray:
    """Apply the recipe for evaluation: the central 95 % of ``(M, T, 25, 3)``, resized to ``(M, frames, 25, 3)``."""
    M, T, N, _ = clip.shape
    cut = int((1 - 0.95) * T / 2)
    cropped = torch.from_numpy(clip[:, cut : T - cut].astype(np.float64))
    lines = cropped.permute(0, 2, 3, 1).reshape(1, M * N * 3, -1)
    resized = torch.nn.functional.interpolate(lines, size=frames, mode="linear", align_corners=False)
    return as_modality(resized.view(M, N, 3, frames).permute(0, 3, 1, 2).numpy(), modality, "ntu")


@pytest.mark.parametrize("modality", MODALITIES)
def test_nw_ucla_evaluation_clips(modality: str, tmp_path: Path) -> None:
    clips = [moving(1, length, 20, seed) for seed, length in enumerate(LENGTHS)]
    batch = load_all(write(tmp_path, clips, "nw-ucla"), modality=modality).batch(np.arange(len(clips)))
    assert batch.clips.dtype == torch.float32
    for clip, result in zip(clips, batch.clips.numpy(), strict=True):
        np.testing.assert_allclose(result, nw_ucla_test_clip(clip, modality), rtol=0, atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_all_real_nw_ucla_evaluation_clips(modality: str, nw_ucla: ArrowDataset) -> None:
    rows = nw_ucla.splits(validation=0).test
    assert len(rows) == 464
    loader = ClipLoader(nw_ucla, rows, DataConfig(modality=modality), CPU)
    row = 0
    for batch in loader.evaluation_batches():
        for result in batch.clips.numpy():
            expected = nw_ucla_test_clip(nw_ucla.clip(rows[row]), modality)
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5, err_msg=nw_ucla.clip_ids[rows[row]])
            row += 1
    assert row == len(rows)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("frames", [16, 128])
def test_ntu_evaluation_clips(frames: int, modality: str, tmp_path: Path) -> None:
    lengths = (*LENGTHS, 40, 128, 300)  # 40 is the shortest length that the central 95 % crops
    clips = [moving(1 + seed % 2, length, 25, seed) for seed, length in enumerate(lengths)]
    batch = load_all(write(tmp_path, clips, "ntu"), modality=modality, frames=frames).batch(np.arange(len(clips)))
    for clip, result in zip(clips, batch.clips.numpy(), strict=True):
        expected = ntu_test_clip(clip, frames, modality)
        np.testing.assert_allclose(result[: len(clip)], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 32, 52, 64, 100, 128])
def test_even_frames_equal_numpy(count: int) -> None:
    result = even_frames(torch.arange(1, 301), count).numpy()
    for length in range(1, 301):
        np.testing.assert_array_equal(result[length - 1], np.linspace(0, length - 1, count).astype(int))


def test_two_persons_are_scaled_together(tmp_path: Path) -> None:
    """The extent is that of the clip, not of each person, so relative positions are preserved."""
    clip = moving(2, 30, 20, 0)
    result = load_all(write(tmp_path, [clip], "nw-ucla"), frames=30).batch(np.array([0])).clips[0].numpy()
    flat = clip.astype(np.float64).reshape(-1, 3)
    expected = (clip - flat.min(0)) / (flat.max(0) - flat.min(0)) * 2 - 1
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


# --- contents of a batch ---


@recipes
@pytest.mark.parametrize("modality", MODALITIES)
def test_clip_does_not_depend_on_the_rest_of_its_batch(recipe: str, modality: str, tmp_path: Path) -> None:
    N = SKELETONS[recipe].num_joints
    clips = [moving(1 + i % 2, length, N, i) for i, length in enumerate((5, 90, 1, 33, 7))]
    loader = load_all(write(tmp_path, clips, recipe, shard_bytes=1), modality=modality, frames=20)
    together = loader.batch(np.array([3, 0, 4, 1, 2])).clips
    for position, number in enumerate([3, 0, 4, 1, 2]):
        assert torch.equal(loader.batch(np.array([number])).clips[0], together[position])


@recipes
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("modality", MODALITIES)
def test_absent_persons_are_zero(recipe: str, training: bool, modality: str, tmp_path: Path) -> None:
    N = SKELETONS[recipe].num_joints
    loader = load_all(write(tmp_path, [moving(2, 9, N, 0), moving(1, 12, N, 1)], recipe), modality=modality)
    clips = loader.batch(np.array([0, 1]), seeded(0) if training else None).clips
    assert clips.shape[1] == 2
    assert not clips[1, 1].any()
    assert clips[0, 0].any()
    assert clips[0, 1].any()
    assert clips[1, 0].any()


def test_rows_labels_and_frames(tmp_path: Path) -> None:
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


def test_configuration_overrides_the_recipe_of_the_data_set(tmp_path: Path) -> None:
    dataset = write(tmp_path, [moving(1, 9, 25, 0) * 5], "ntu")
    own = load_all(dataset).batch(np.array([0])).clips
    other = load_all(dataset, recipe="nw-ucla").batch(np.array([0])).clips
    assert own.shape[2] == 128
    assert own.abs().max() > 1
    assert other.shape[2] == 52
    assert (other.amax((0, 1, 2, 3)) - 1).abs().max() < 1e-6
    assert (other.amin((0, 1, 2, 3)) + 1).abs().max() < 1e-6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("modality", MODALITIES)
def test_clips_without_extent_become_zero_not_nan(training: bool, modality: str, tmp_path: Path) -> None:
    plane = moving(1, 9, 20, 0)
    plane[..., 2] = 1.7
    point = np.full((1, 9, 20, 3), 0.3)
    loader = load_all(write(tmp_path, [plane, point], "nw-ucla"), modality=modality)
    clips = loader.batch(np.array([0, 1]), seeded(0) if training else None).clips
    assert clips.isfinite().all()
    assert not clips[1].any()
    if not training:
        assert not clips[0, ..., 2].any()
        assert clips[0, ..., :2].any()


# --- random draws ---


def clock(persons: int, frames: int, joints: int) -> tuple[np.ndarray, np.ndarray]:
    """A rigid pose whose last joint moves by a fixed step per frame: the clip, and the step."""
    rng = np.random.default_rng(5)
    clip = np.repeat(rng.normal(0, 0.5, (persons, 1, joints, 3)), frames, axis=1)
    step = np.array([0.02, -0.015, 0.01])
    clip[:, :, -1] += np.arange(frames)[:, None] * step
    return clip, step


def read_clock(clip: np.ndarray, step: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From one person's frames ``(T, N, 3)`` of a batch: the linear map ``(3, 3)`` and which frames ``(T,)``."""
    pose = np.c_[clip[0, :-1], np.ones(clip.shape[1] - 1)]
    solution = np.linalg.lstsq(pose, result[:, :-1].mean(0).astype(np.float64), rcond=None)[0]
    linear, offset = solution[:3].T, solution[3]
    assert np.abs(result[:, :-1] - pose @ solution).max() < 1e-5  # the same map in all frames
    moved = np.linalg.solve(linear, (result[:, -1] - offset).T).T - clip[0, -1]
    return linear, moved @ step / (step @ step)


def is_rotation(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix @ matrix.T - np.eye(3)).max() < 1e-4 and np.linalg.det(matrix) > 0)


def test_nw_ucla_rotates_about_y_then_x_by_up_to_60_degrees(tmp_path: Path) -> None:
    clip, step = clock(1, 6, 20)
    loader = load_all(write(tmp_path, [clip], "nw-ucla"), frames=8)
    angles = []
    for result in loader.batch(np.zeros(400, int), seeded(0)).clips[:, 0].numpy():
        linear, _ = read_clock(clip[0], step, result)
        turn = linear / np.linalg.norm(linear, axis=1, keepdims=True)  # undoes the scaling of each axis
        assert is_rotation(turn)
        assert abs(turn[0, 1]) < 1e-4  # no rotation about z
        angles.append((np.arctan2(turn[2, 1], turn[1, 1]), np.arctan2(turn[0, 2], turn[0, 0])))
    degrees = np.degrees(np.array(angles))
    assert np.abs(degrees).max() <= 60.01
    assert (degrees.min(0) < -57).all()
    assert (degrees.max(0) > 57).all()
    assert (np.abs(degrees.mean(0)) < 6).all()
    assert (np.abs(degrees.std(0) - 60 / np.sqrt(3)) < 3).all()  # uniform
    assert abs(np.corrcoef(degrees.T)[0, 1]) < 0.15  # independent draws


def test_ntu_rotates_about_each_axis_by_up_to_0_3(tmp_path: Path) -> None:
    clip, step = clock(1, 6, 25)
    loader = load_all(write(tmp_path, [clip], "ntu"), frames=8)
    angles = []
    for result in loader.batch(np.zeros(400, int), seeded(0)).clips[:, 0].numpy():
        turn, _ = read_clock(clip[0], step, result)
        assert is_rotation(turn)
        about_y = np.arcsin(-turn[2, 0])  # of R_z R_y R_x
        angles.append((np.arctan2(turn[2, 1], turn[2, 2]), about_y, np.arctan2(turn[1, 0], turn[0, 0])))
    radians = np.array(angles)
    assert np.abs(radians).max() <= 0.3001
    assert (radians.min(0) < -0.28).all()
    assert (radians.max(0) > 0.28).all()
    assert (np.abs(radians.std(0) - 0.3 / np.sqrt(3)) < 0.015).all()
    assert (np.abs(np.corrcoef(radians.T) - np.eye(3)) < 0.15).all()


@recipes
def test_both_persons_are_rotated_and_sampled_identically(recipe: str, tmp_path: Path) -> None:
    clip, step = clock(2, 100, SKELETONS[recipe].num_joints)
    for result in load_all(write(tmp_path, [clip], recipe)).batch(np.zeros(5, int), seeded(3)).clips.numpy():
        (first, frames), (second, same_frames) = (read_clock(clip[m], step, result[m]) for m in range(2))
        np.testing.assert_allclose(second, first, atol=1e-4)
        np.testing.assert_allclose(same_frames, frames, atol=0.02)


def test_nw_ucla_draws_sorted_frames_with_replacement(tmp_path: Path) -> None:
    clips = [clock(1, length, 20) for length in (52, 7, 1, 120)]
    loader = load_all(write(tmp_path, [clip for clip, _ in clips], "nw-ucla"))
    drawn: dict[int, list[np.ndarray]] = {number: [] for number in range(len(clips))}
    chosen = np.arange(400) % len(clips)
    for number, result in zip(chosen, loader.batch(chosen, seeded(1)).clips[:, 0].numpy(), strict=True):
        clip, step = clips[number]
        _, frames = read_clock(clip[0], step, result)
        assert np.abs(frames - frames.round()).max() < 0.05
        assert (np.diff(frames.round()) >= 0).all()
        assert 0 <= frames.round().min() <= frames.round().max() <= clip.shape[1] - 1
        drawn[int(number)].append(frames.round().astype(int))
    assert all(len(set(frames)) < 52 for frames in drawn[0])
    for number, tolerance in ((0, 0.45), (1, 0.15)):  # about four standard deviations of a count
        counts = np.bincount(np.concatenate(drawn[number]))
        expected = 100 * 52 / clips[number][0].shape[1]
        assert len(counts) == clips[number][0].shape[1]
        assert np.abs(counts / expected - 1).max() < tolerance


def test_nw_ucla_training_values_span_minus_one_to_one(tmp_path: Path) -> None:
    clips = [moving(1, length, 20, i) for i, length in enumerate((3, 40, 200))]
    result = load_all(write(tmp_path, clips, "nw-ucla")).batch(np.arange(60) % 3, seeded(2)).clips
    assert result.abs().max() <= 1
    assert (result.amax((1, 2, 3)).amax(0) > 0.999).all()
    assert (result.amin((1, 2, 3)).amin(0) < -0.999).all()


def test_ntu_crops_at_least_half_and_at_least_64_frames(tmp_path: Path) -> None:
    lengths = (5, 40, 64, 65, 100, 300)
    clips = [clock(1, length, 25) for length in lengths]
    loader = load_all(write(tmp_path, [clip for clip, _ in clips], "ntu"))
    chosen = np.arange(1200) % len(lengths)
    crops: dict[int, list[tuple[int, int]]] = {length: [] for length in lengths}
    for number, result in zip(chosen, loader.batch(chosen, seeded(4)).clips[:, 0].numpy(), strict=True):
        clip, step = clips[number]
        length = lengths[number]
        _, position = read_clock(clip[0], step, result)
        assert -0.01 < position.min() <= position.max() < length - 1 + 0.01
        # Except near its ends, the crop is sampled at first + (i + 0.5) · cropped / 128 - 0.5.
        inside = np.arange(32, 96)
        slope, intercept = np.polyfit(inside + 0.5, position[inside] + 0.5, 1)
        cropped, first = round(slope * 128), round(intercept)
        assert abs(slope * 128 - cropped) < 0.1
        assert abs(intercept - first) < 0.1
        assert max(min(64, length), length // 2) <= cropped <= length
        assert 0 <= first <= length - cropped
        assert position[0] == pytest.approx(max(first, first + cropped / 256 - 0.5), abs=0.02)
        crops[length].append((first, cropped))
    for length in (5, 40, 64):
        assert set(crops[length]) == {(0, length)}
    assert {cropped for _, cropped in crops[65]} <= {64, 65}
    long = np.array(crops[300])
    assert long[:, 1].min() < 160
    assert long[:, 1].max() > 290
    assert long[:, 0].min() < 5
    assert long[:, 0].max() > 110
    assert abs(long[:, 1].mean() - 225) < 10
    spare = 300 - long[:, 1]
    assert abs((long[:, 0] / spare.clip(1)).mean() - 0.5) < 0.08  # anywhere in the clip


@recipes
@pytest.mark.parametrize("modality", MODALITIES)
def test_equal_seeds_give_equal_batches(recipe: str, modality: str, tmp_path: Path) -> None:
    N = SKELETONS[recipe].num_joints
    dataset = write(tmp_path, [moving(1, length, N, length) for length in (80, 90)], recipe)
    chosen = np.array([0, 1, 1])
    loader = load_all(dataset, modality=modality)
    result = loader.batch(chosen, seeded(7)).clips
    assert torch.equal(loader.batch(chosen, seeded(7)).clips, result)
    assert not torch.equal(loader.batch(chosen, seeded(8)).clips, result)
    assert not torch.equal(result[1], result[2])  # the clips of a batch have independent draws
    # The modality is applied last, so all four see the same frames of the same rotated skeleton.
    joints = load_all(dataset).batch(chosen, seeded(7)).clips
    assert torch.equal(result, to_modality(joints, modality, dataset.skeleton))


@pytest.mark.parametrize(
    ("axis", "source", "target"),
    [("x", [0, 1, 0], [0, 0, 1]), ("y", [0, 0, 1], [1, 0, 0]), ("z", [1, 0, 0], [0, 1, 0])],
)
def test_rotations_are_right_handed(axis: str, source: list[int], target: list[int]) -> None:
    quarter, third = rotation(torch.tensor([np.pi / 2, np.pi / 3], dtype=torch.float64), axis).numpy()
    np.testing.assert_allclose(quarter @ source, target, atol=1e-12)
    np.testing.assert_allclose(third @ third @ third, np.diag([1 if axis == a else -1 for a in "xyz"]), atol=1e-12)


# --- passes over the clips ---


@pytest.mark.parametrize(
    ("clips", "batch_size", "repeat", "sizes"),
    [
        (7, 3, 1, [3, 3]),  # a last batch of a single clip is dropped
        (7, 3, 2, [3, 3, 3, 3, 2]),
        (8, 4, 3, [4] * 6),
        (5, 32, 5, [25]),
        (3, 2, 1, [2]),
        (1, 4, 1, [1]),  # unless it is the only one
        (1, 4, 5, [4]),
    ],
)
def test_number_and_sizes_of_training_batches(
    clips: int, batch_size: int, repeat: int, sizes: list[int], tmp_path: Path
) -> None:
    loader = load_all(write(tmp_path, [moving(1, 3, 20, i) for i in range(clips)], "nw-ucla"), frames=4)
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


def test_each_pass_has_a_new_order_that_depends_on_the_seed(tmp_path: Path) -> None:
    loader = load_all(write(tmp_path, [moving(1, 3, 20, i) for i in range(12)], "nw-ucla"), frames=4)

    def orders(seed: int) -> list[list[int]]:
        return [batch.rows.tolist() for batch in loader.training_batches(12, 3, seeded(seed))]

    first = orders(0)
    assert len({tuple(order) for order in [*first, *orders(1), list(range(12))]}) == 7
    assert orders(0) == first


def test_evaluation_batches_have_every_clip_once_in_order(tmp_path: Path) -> None:
    loader = load_all(write(tmp_path, [moving(1, 2 + i, 20, i) for i in range(7)], "nw-ucla"), frames=4)
    batches = list(loader.evaluation_batches(3))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), loader.labels)
    assert torch.equal(torch.cat([batch.clips for batch in batches]), loader.batch(np.arange(7)).clips)


# --- splits and devices ---


def test_loaders_of_the_validation_protocol(tmp_path: Path) -> None:
    dataset = write(tmp_path, [moving(1, 3, 20, i) for i in range(24)], "nw-ucla")
    loaders = make_loaders(dataset, DataConfig(benchmark="x-sub", validation=0.3), CPU)
    subjects = {name: set(dataset.columns["subject"][loader.rows].tolist()) for name, loader in loaders.items()}
    assert set(loaders) == {"train", "val", "test"}
    assert subjects["test"] == {3}
    assert len(subjects["val"]) == 1
    assert subjects["val"] | subjects["train"] == {0, 1, 2}
    assert not subjects["val"] & subjects["train"]
    assert sum(len(loader) for loader in loaders.values()) == 24


def test_loaders_of_the_paper_protocol(tmp_path: Path) -> None:
    dataset = write(tmp_path, [moving(1, 3, 20, i) for i in range(24)], "nw-ucla")
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


# --- location of the frames ---


@recipes
def test_resident_and_mapped_frames_give_equal_batches(recipe: str, tmp_path: Path) -> None:
    joints = SKELETONS[recipe].num_joints
    dataset = write(tmp_path, [moving(1 + i % 2, 9 + 5 * i, joints, i) for i in range(9)], recipe, shard_bytes=20_000)
    assert len(list(dataset.path.glob("*.arrow"))) > 1
    rows = np.array([8, 2, 5, 0, 7])
    loaders = [ClipLoader(dataset, rows, DataConfig(frames=16), CPU, resident=resident) for resident in (True, False)]
    for training in (True, False):
        a, b = (
            loader.batch(np.array([3, 0, 3, 4, 1]), torch.Generator().manual_seed(1) if training else None)
            for loader in loaders
        )
        for one, other in ((a.clips, b.clips), (a.person_mask, b.person_mask), (a.labels, b.labels)):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
