"""Clips of random walks for the tests of batches, and reference implementations of the modalities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgst.config import DataConfig
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.loader import ClipLoader
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.data.splits import Benchmark
from fgst.data.writer import write_dataset

CPU = torch.device("cpu")
SKELETONS = {"nw-ucla": NW_UCLA_20, "ntu": NTU_25}  # by recipe
LENGTHS = (1, 2, 3, 31, 52, 201)  # numbers of frames
# Bones as (child, parent), with joints counted from 1 as in the literature.
BONES = {
    "nw-ucla-20": [
        (1, 2), (2, 3), (3, 3), (4, 3), (5, 3), (6, 5), (7, 6), (8, 7), (9, 3), (10, 9), (11, 10), (12, 11), (13, 1),
        (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19),
    ],
    "ntu-25": [
        (1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11),
        (13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (21, 21), (22, 23), (23, 8),
        (24, 25), (25, 12),
    ],
}  # fmt: skip

both_recipes = pytest.mark.parametrize("recipe", SKELETONS)


def write(folder: Path, joints: Sequence[np.ndarray], recipe: str, *, shard_bytes: int = 2**20) -> ArrowDataset:
    """Write a data set of these clips; clip i has label i mod 3, subject 1 + i mod 4 and camera 1 + i mod 3."""
    clips = [
        Clip(f"clip {i}", i % 3, clip.astype(np.float32), subject=1 + i % 4, camera=1 + i % 3)
        for i, clip in enumerate(joints)
    ]
    return write_dataset(
        folder / "data", clips, name="test", skeleton=SKELETONS[recipe], classes=("a", "b", "c"), recipe=recipe,
        benchmarks=[Benchmark("x-sub", "subject", (1, 2, 3)), Benchmark("x-view", "camera", (1, 2))], source={},
        shard_bytes=shard_bytes,
    )  # fmt: skip


def random_walks(persons: int, frames: int, joints: int, seed: int) -> np.ndarray:
    """Return persons on random walks, metres from the camera: ``(M, T, N, 3)``, as float32."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(0, 0.4, (persons, 1, joints, 3)) + rng.normal(0, 1, (persons, 1, 1, 3)) + [0, 0, 3]
    path = rng.normal(0, 0.03, (persons, frames, joints, 3)).cumsum(1)
    return (pose + path).astype(np.float32)


def load_all(dataset: ArrowDataset, **config: Any) -> ClipLoader:
    """Return a loader of all clips."""
    return ClipLoader(dataset, np.arange(len(dataset)), DataConfig(**config), CPU)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator(CPU).manual_seed(seed)


def reference_bones(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Compute the vectors from parents to children, ``(…, N, 3)``, bone by bone."""
    bones = np.zeros_like(joints)
    for child, parent in BONES[skeleton.name]:
        bones[..., child - 1, :] = joints[..., child - 1, :] - joints[..., parent - 1, :]
    return bones


def reference_motion(positions: np.ndarray) -> np.ndarray:
    """Compute the differences to the next frame, ``(…, T, N, 3)``, frame by frame; those of the last frame are zero."""
    motion = np.zeros_like(positions)
    for t in range(positions.shape[-3] - 1):
        motion[..., t, :, :] = positions[..., t + 1, :, :] - positions[..., t, :, :]
    return motion


def reference_modality(joints: np.ndarray, modality: str, skeleton: Skeleton) -> np.ndarray:
    """Convert joints ``(…, T, N, 3)`` to a modality; bone motion is the motion of the bones."""
    if modality.startswith("bone"):
        joints = reference_bones(joints, skeleton)
    return reference_motion(joints) if modality.endswith("motion") else joints
