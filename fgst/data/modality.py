"""The four input modalities of the field: joint, bone, joint motion, bone motion."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fgst.config import MODALITIES
from fgst.data.skeleton import Skeleton

if TYPE_CHECKING:  # fgst.config takes the names from here, and whoever reads a configuration waits for no PyTorch
    from torch import Tensor


def bones(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Bone vectors child - parent, stored at the child; the root's bone is zero. ``(…, N, 3)`` → ``(…, N, 3)``."""
    return joints - joints[..., list(skeleton.parents), :]


def motion(positions: Tensor) -> Tensor:
    """Differences x[t+1] - x[t] along the frames, the last one zero. ``(…, T, N, 3)`` → ``(…, T, N, 3)``."""
    import torch

    steps = positions[..., 1:, :, :] - positions[..., :-1, :, :]
    return torch.cat([steps, torch.zeros_like(positions[..., :1, :, :])], dim=-3)


def to_modality(joints: Tensor, modality: str, skeleton: Skeleton) -> Tensor:
    """Joint positions ``(…, T, N, 3)`` as one of :data:`MODALITIES`, in the same shape; bone comes before motion."""
    if modality not in MODALITIES:
        raise ValueError(f"data.modality is {modality!r}; it is one of {', '.join(MODALITIES)}")
    result = bones(joints, skeleton) if modality.startswith("bone") else joints
    return motion(result) if modality.endswith("motion") else result
