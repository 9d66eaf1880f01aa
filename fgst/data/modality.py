"""The four usual input modalities of skeleton-based action recognition: joint, bone, joint motion, bone motion."""

from __future__ import annotations

import torch
from torch import Tensor

from fgst.config import MODALITIES
from fgst.data.skeleton import Skeleton


def bones(joints: Tensor, skeleton: Skeleton) -> Tensor:
    """Return the bone vectors child - parent, stored at the child; the root's bone is zero.

    Args:
        joints: ``(…, N, 3)``.
        skeleton: gives the parent of each joint.

    Returns:
        ``(…, N, 3)``.
    """
    return joints - joints[..., list(skeleton.parents), :]


def motion(positions: Tensor) -> Tensor:
    """Return the differences x[t+1] - x[t] between frames; the last one is zero.

    Args:
        positions: ``(…, T, N, 3)``.

    Returns:
        ``(…, T, N, 3)``.
    """
    steps = positions[..., 1:, :, :] - positions[..., :-1, :, :]
    return torch.cat([steps, torch.zeros_like(positions[..., :1, :, :])], dim=-3)


def to_modality(joints: Tensor, modality: str, skeleton: Skeleton) -> Tensor:
    """Convert joint positions to a modality; bone motion is the motion of the bones.

    Args:
        joints: ``(…, T, N, 3)``.
        modality: one of :data:`~fgst.config.MODALITIES`.
        skeleton: gives the parent of each joint.

    Returns:
        ``(…, T, N, 3)``.

    Raises:
        ValueError: if there is no such modality.
    """
    if modality not in MODALITIES:
        raise ValueError(f"data.modality is {modality!r}; choose one of {', '.join(MODALITIES)}")
    result = bones(joints, skeleton) if modality.startswith("bone") else joints
    return motion(result) if modality.endswith("motion") else result
