"""Random draws of training batches: their distribution, and their reproducibility.

The draws are recovered from the batches: a "clock" clip is a rigid pose in which one joint moves by a known step per
frame, so that the pose determines the rotation and the moving joint determines the frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fgst.config import MODALITIES
from fgst.data.loader import rotation
from fgst.data.modality import to_modality
from tests.data.helpers import SKELETONS, both_recipes, load_all, random_walks, seeded, write

torch.set_num_threads(1)


def clock(persons: int, frames: int, joints: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a clip of a rigid pose whose last joint moves by a fixed step per frame, and the step."""
    rng = np.random.default_rng(5)
    clip = np.repeat(rng.normal(0, 0.5, (persons, 1, joints, 3)), frames, axis=1)
    step = np.array([0.02, -0.015, 0.01])
    clip[:, :, -1] += np.arange(frames)[:, None] * step
    return clip, step


def read_clock(clip: np.ndarray, step: np.ndarray, result: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recover the draws from one person's frames ``(T, N, 3)`` of a batch.

    Returns:
        The linear map ``(3, 3)`` from the clip to the batch, and the positions of the frames in the clip, ``(T,)``.
    """
    pose = np.c_[clip[0, :-1], np.ones(clip.shape[1] - 1)]
    solution = np.linalg.lstsq(pose, result[:, :-1].mean(0).astype(np.float64), rcond=None)[0]
    linear, offset = solution[:3].T, solution[3]
    assert np.abs(result[:, :-1] - pose @ solution).max() < 1e-5  # the same map in all frames
    moved = np.linalg.solve(linear, (result[:, -1] - offset).T).T - clip[0, -1]
    return linear, moved @ step / (step @ step)


def is_rotation(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix @ matrix.T - np.eye(3)).max() < 1e-4 and np.linalg.det(matrix) > 0)


def test_nw_ucla_rotates_about_y_and_x_by_up_to_60_degrees(tmp_path: Path) -> None:
    clip, step = clock(1, 6, 20)
    loader = load_all(write(tmp_path, [clip], "nw-ucla"), frames=8)
    angles = []
    for result in loader.batch(np.zeros(400, int), seeded(0)).clips[:, 0].numpy():
        linear, _ = read_clock(clip[0], step, result)
        matrix = linear / np.linalg.norm(linear, axis=1, keepdims=True)  # without the scaling of each axis
        assert is_rotation(matrix)
        assert abs(matrix[0, 1]) < 1e-4  # no rotation about z
        angles.append((np.arctan2(matrix[2, 1], matrix[1, 1]), np.arctan2(matrix[0, 2], matrix[0, 0])))
    degrees = np.degrees(np.array(angles))
    assert np.abs(degrees).max() <= 60.01
    assert (degrees.min(0) < -57).all()
    assert (degrees.max(0) > 57).all()
    assert (np.abs(degrees.mean(0)) < 6).all()
    assert (np.abs(degrees.std(0) - 60 / np.sqrt(3)) < 3).all()  # uniform
    assert abs(np.corrcoef(degrees.T)[0, 1]) < 0.15  # independent draws


def test_ntu_rotates_about_each_axis_by_up_to_0_3_radians(tmp_path: Path) -> None:
    clip, step = clock(1, 6, 25)
    loader = load_all(write(tmp_path, [clip], "ntu"), frames=8)
    angles = []
    for result in loader.batch(np.zeros(400, int), seeded(0)).clips[:, 0].numpy():
        matrix, _ = read_clock(clip[0], step, result)
        assert is_rotation(matrix)
        about_y = np.arcsin(-matrix[2, 0])  # the matrix is R_z R_y R_x
        angles.append((np.arctan2(matrix[2, 1], matrix[2, 2]), about_y, np.arctan2(matrix[1, 0], matrix[0, 0])))
    radians = np.array(angles)
    assert np.abs(radians).max() <= 0.3001
    assert (radians.min(0) < -0.28).all()
    assert (radians.max(0) > 0.28).all()
    assert (np.abs(radians.std(0) - 0.3 / np.sqrt(3)) < 0.015).all()
    assert (np.abs(np.corrcoef(radians.T) - np.eye(3)) < 0.15).all()


@both_recipes
def test_both_persons_are_rotated_and_sampled_identically(recipe: str, tmp_path: Path) -> None:
    clip, step = clock(2, 100, SKELETONS[recipe].num_joints)
    for result in load_all(write(tmp_path, [clip], recipe)).batch(np.zeros(5, int), seeded(3)).clips.numpy():
        (first, frames), (second, same_frames) = (read_clock(clip[m], step, result[m]) for m in range(2))
        np.testing.assert_allclose(second, first, atol=1e-4)
        np.testing.assert_allclose(same_frames, frames, atol=0.02)


def test_nw_ucla_draws_sorted_frames_with_replacement(tmp_path: Path) -> None:
    clips = [clock(1, length, 20) for length in (52, 7, 1, 120)]
    loader = load_all(write(tmp_path, [clip for clip, _ in clips], "nw-ucla"))
    drawn: dict[int, list[np.ndarray]] = {row: [] for row in range(len(clips))}
    rows = np.arange(400) % len(clips)
    for row, result in zip(rows.tolist(), loader.batch(rows, seeded(1)).clips[:, 0].numpy(), strict=True):
        clip, step = clips[row]
        _, frames = read_clock(clip[0], step, result)
        assert np.abs(frames - frames.round()).max() < 0.05
        assert (np.diff(frames.round()) >= 0).all()
        assert 0 <= frames.round().min() <= frames.round().max() <= clip.shape[1] - 1
        drawn[row].append(frames.round().astype(int))
    assert all(len(set(frames)) < 52 for frames in drawn[0])
    for row, tolerance in ((0, 0.45), (1, 0.15)):  # about four standard deviations of a count
        counts = np.bincount(np.concatenate(drawn[row]))
        expected = 100 * 52 / clips[row][0].shape[1]
        assert len(counts) == clips[row][0].shape[1]
        assert np.abs(counts / expected - 1).max() < tolerance


def test_nw_ucla_training_values_span_minus_one_to_one(tmp_path: Path) -> None:
    clips = [random_walks(1, length, 20, i) for i, length in enumerate((3, 40, 200))]
    result = load_all(write(tmp_path, clips, "nw-ucla")).batch(np.arange(60) % 3, seeded(2)).clips
    assert result.abs().max() <= 1
    assert (result.amax((1, 2, 3)).amax(0) > 0.999).all()
    assert (result.amin((1, 2, 3)).amin(0) < -0.999).all()


def test_ntu_crops_at_least_half_and_at_least_64_frames(tmp_path: Path) -> None:
    lengths = (5, 40, 64, 65, 100, 300)
    clips = [clock(1, length, 25) for length in lengths]
    loader = load_all(write(tmp_path, [clip for clip, _ in clips], "ntu"))
    rows = np.arange(1200) % len(lengths)
    crops: dict[int, list[tuple[int, int]]] = {length: [] for length in lengths}
    for row, result in zip(rows.tolist(), loader.batch(rows, seeded(4)).clips[:, 0].numpy(), strict=True):
        clip, step = clips[row]
        length = lengths[row]
        _, position = read_clock(clip[0], step, result)
        assert -0.01 < position.min() <= position.max() < length - 1 + 0.01
        # Except near its ends, the crop is sampled at first + (i + 0.5) · cropped / 128 - 0.5.
        middle = np.arange(32, 96)
        slope, intercept = np.polyfit(middle + 0.5, position[middle] + 0.5, 1)
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
    last_start = 300 - long[:, 1]
    assert abs((long[:, 0] / last_start.clip(1)).mean() - 0.5) < 0.08  # uniform over all positions in the clip


@both_recipes
@pytest.mark.parametrize("modality", MODALITIES)
def test_equal_seeds_give_equal_batches(recipe: str, modality: str, tmp_path: Path) -> None:
    N = SKELETONS[recipe].num_joints
    dataset = write(tmp_path, [random_walks(1, length, N, length) for length in (80, 90)], recipe)
    rows = np.array([0, 1, 1])
    loader = load_all(dataset, modality=modality)
    result = loader.batch(rows, seeded(7)).clips
    assert torch.equal(loader.batch(rows, seeded(7)).clips, result)
    assert not torch.equal(loader.batch(rows, seeded(8)).clips, result)
    assert not torch.equal(result[1], result[2])  # the clips of a batch have independent draws
    # The modality is applied last, so that all modalities have the same frames and rotations.
    joints = load_all(dataset).batch(rows, seeded(7)).clips
    assert torch.equal(result, to_modality(joints, modality, dataset.skeleton))


@pytest.mark.parametrize(
    ("axis", "source", "target"),
    [("x", [0, 1, 0], [0, 0, 1]), ("y", [0, 0, 1], [1, 0, 0]), ("z", [1, 0, 0], [0, 1, 0])],
)
def test_rotations_are_right_handed(axis: str, source: list[int], target: list[int]) -> None:
    quarter, third = rotation(torch.tensor([np.pi / 2, np.pi / 3], dtype=torch.float64), axis).numpy()
    np.testing.assert_allclose(quarter @ source, target, atol=1e-12)
    np.testing.assert_allclose(third @ third @ third, np.diag([1 if axis == a else -1 for a in "xyz"]), atol=1e-12)
