"""Small networks with the paper's ablations and other settings, and clips for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fgst.config import ModelConfig
from fgst.data.skeletons import NW_UCLA_20
from fgst.model import FGSTFormer

# Accumulated roundings of the small network: sums have up to 2^8 terms, with 2^3 blocks and norms in sequence.
EVALUATION_ROUNDINGS = 2**11
# Accumulated roundings in bfloat16: about 150 operations in sequence round the features with random signs, which gives
# sqrt(150) ≈ 12 epsilon, or 10 % of the spread of the scores.
BFLOAT16_ROUNDINGS = 12
SMALL: dict[str, Any] = {"channels": (8, 8, 16), "stage1_layers": 2, "stage2_layers": 1, "focal_joints": 6}
NO_CROSS = {"cross_attention": False}
NO_PARTS = {"part_branch": False, **NO_CROSS}
VARIANTS: dict[str, dict[str, Any]] = {
    "Table 1, Basic-SFormer": {"focal_selection": False, **NO_PARTS},
    "Table 1, A": NO_PARTS,
    "Table 1, B": NO_CROSS,
    "Table 1, C": {},
    **{f"Table 2, K={K}": {"focal_joints": K} for K in (3, 6, 9, 12, 15, 18, 20)},
    "Table 3, Basic-TFormer": {"temporal": "attention"},
    "Table 3, TCN only": {"temporal": "convolution"},
    **{f"Table 4, {L1}/{4 - L1}": {"channels": (8, 8, 16, 16), "stage1_layers": L1, "stage2_layers": 4 - L1}
       for L1 in (1, 2, 3)},
    **{f"P={P}": {"parts": P} for P in (1, 2, 5, 6, 10, 20)},
    "dilations 1, 3": {"dilations": (1, 3)},
    "dilations 1, 2, 3, 4": {"dilations": (1, 2, 3, 4)},
    "one dilation": {"dilations": (1,)},
    "no global map": {"global_map": False},
    "no gate": {"focal_gate": False},
    "order by score": {"focal_order": "score"},
    "layer norm": {"norm": "layer"},
    "no final norm": {"final_norm": False},
    "head width 5": {"head_width": 5},
    "dropout": {"dropout": 0.1},
    "shared branches": {"shared_branches": True},
    "shared branches without JP-CA": {"shared_branches": True, **NO_CROSS},
    "parts without focal joints": {"focal_selection": False},
}  # fmt: skip


def clips_of(B: int, M: int, T: int, N: int) -> Tensor:
    """Return clips of moving persons, of which the last one has only one person."""
    generator = torch.Generator().manual_seed(1)
    pose = torch.randn(B, M, 1, N, 3, generator=generator)
    clips = pose + 0.5 * torch.randn(B, M, T, N, 3, generator=generator)
    clips[-1, 1:] = 0
    return clips


def variant(name: str, **changes: Any) -> FGSTFormer:
    """Return the small network with the settings of a variant and further changes."""
    torch.manual_seed(0)
    return FGSTFormer(ModelConfig(**(SMALL | VARIANTS[name] | changes)), NW_UCLA_20, 4, frames=9)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest deviation relative to the standard deviation of the scores."""
    return float((actual.float() - expected).abs().max() / expected.std())


def gradients(model: FGSTFormer) -> Tensor:
    """Return all gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
