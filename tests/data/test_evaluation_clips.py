"""Evaluation clips of both recipes, compared with implementations that process one clip at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fgst.config import MODALITIES, DataConfig, Modality
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import ClipLoader, even_frames
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from tests.data.helpers import CPU, LENGTHS, load_all, random_walks, reference_modality, write

torch.set_num_threads(1)


def reference_nw_ucla_clip(clip: np.ndarray, modality: str) -> np.ndarray:
    """Apply the evaluation recipe of NW-UCLA, ``(1, T, 20, 3)`` → ``(1, 52, 20, 3)``."""
    clip = clip.astype(np.float64)
    clip = clip - clip[0, 0, 1]
    flat = clip.reshape(-1, 3)
    low, high = flat.min(0), flat.max(0)
    clip = (clip - low) / (high - low) * 2 - 1
    positions = np.linspace(0, clip.shape[1] - 1, 52)
    return reference_modality(clip[:, [int(position) for position in positions]], modality, NW_UCLA_20)


def reference_ntu_clip(clip: np.ndarray, frames: int, modality: str) -> np.ndarray:
    """Apply the evaluation recipe of NTU: resize the central 95 %, ``(M, T, 25, 3)`` → ``(M, frames, 25, 3)``."""
    M, T, N, _ = clip.shape
    cut = int((1 - 0.95) * T / 2)
    cropped = torch.from_numpy(clip[:, cut : T - cut].astype(np.float64))
    lines = cropped.permute(0, 2, 3, 1).reshape(1, M * N * 3, -1)
    resized = torch.nn.functional.interpolate(lines, size=frames, mode="linear", align_corners=False)
    return reference_modality(resized.view(M, N, 3, frames).permute(0, 3, 1, 2).numpy(), modality, NTU_25)


@pytest.mark.parametrize("modality", MODALITIES)
def test_nw_ucla_evaluation_clips_match_reference(modality: str, tmp_path: Path) -> None:
    clips = [random_walks(1, length, 20, seed) for seed, length in enumerate(LENGTHS)]
    batch = load_all(write(tmp_path, clips, "nw-ucla"), modality=modality).batch(np.arange(len(clips)))
    assert batch.clips.dtype == torch.float32
    for clip, result in zip(clips, batch.clips.numpy(), strict=True):
        np.testing.assert_allclose(result, reference_nw_ucla_clip(clip, modality), rtol=0, atol=1e-5)


@pytest.mark.parametrize("modality", MODALITIES)
def test_real_nw_ucla_evaluation_clips_match_reference(modality: Modality, nw_ucla: ArrowDataset) -> None:
    rows = nw_ucla.splits(validation=0).test
    assert len(rows) == 464
    loader = ClipLoader(nw_ucla, rows, DataConfig(modality=modality), CPU)
    row = 0
    for batch in loader.evaluation_batches():
        for result in batch.clips.numpy():
            expected = reference_nw_ucla_clip(nw_ucla.clip(rows[row]), modality)
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5, err_msg=nw_ucla.clip_ids[rows[row]])
            row += 1
    assert row == len(rows)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("frames", [16, 128])
def test_ntu_evaluation_clips_match_reference(frames: int, modality: str, tmp_path: Path) -> None:
    lengths = (*LENGTHS, 40, 128, 300)  # 40 is the shortest length that the central 95 % crops
    clips = [random_walks(1 + seed % 2, length, 25, seed) for seed, length in enumerate(lengths)]
    batch = load_all(write(tmp_path, clips, "ntu"), modality=modality, frames=frames).batch(np.arange(len(clips)))
    for clip, result in zip(clips, batch.clips.numpy(), strict=True):
        expected = reference_ntu_clip(clip, frames, modality)
        np.testing.assert_allclose(result[: len(clip)], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 32, 52, 64, 100, 128])
def test_even_frames_match_numpy(count: int) -> None:
    result = even_frames(torch.arange(1, 301), count).numpy()
    for length in range(1, 301):
        np.testing.assert_array_equal(result[length - 1], np.linspace(0, length - 1, count).astype(int))


def test_two_persons_are_scaled_together(tmp_path: Path) -> None:
    """The extent is that of the whole clip, so that relative positions of persons are preserved."""
    clip = random_walks(2, 30, 20, 0)
    result = load_all(write(tmp_path, [clip], "nw-ucla"), frames=30).batch(np.array([0])).clips[0].numpy()
    flat = clip.astype(np.float64).reshape(-1, 3)
    expected = (clip - flat.min(0)) / (flat.max(0) - flat.min(0)) * 2 - 1
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)
