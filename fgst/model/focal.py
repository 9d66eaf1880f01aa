"""The two ways into stage 2: the selection of focal joints (Eq. 2, 3) and the embedding of body parts (paper §3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgst.data.skeleton import Partition


class FocalSelection(nn.Module):
    """Keeps the K most informative joints of each frame.

    Scores are S = sigmoid(X W_p / ‖W_p‖) (Eq. 2). The top K of each frame are kept (Eq. 3), each multiplied by its
    score when ``gate`` is on: a hard index passes no gradient, so without the gate W_p would stay as it began.

    ``order`` is the order of the kept joints: "joint" by their index, so that a slot means much the same joint in
    each frame, or "score" by falling score, as Eq. 3 sorts them.
    """

    def __init__(self, channels: int, focal_joints: int, *, gate: bool, order: str) -> None:
        super().__init__()
        self.focal_joints, self.gate, self.order = focal_joints, gate, order
        self.projection = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(B', T, N, C)`` → kept features ``(B', T, K, C)``, indices ``(B', T, K)``, scores ``(B', T, N)``."""
        # Not a matrix product, which autocast would round: scores that are rounded alike make arbitrary choices.
        scores = torch.sigmoid((x * (self.projection / self.projection.norm())).sum(-1))
        kept = scores.topk(self.focal_joints, dim=-1).indices  # by falling score
        if self.order == "joint":
            kept = kept.sort(dim=-1).values
        # The selection as a product with one-hot rows: small, and its gradient is a product too, so it is the same
        # in every run; the gradient of a gather adds up in any order on a GPU.
        rows = F.one_hot(kept, x.shape[2]).to(scores.dtype)  # (B', T, K, N)
        if self.gate:
            rows = rows * scores[:, :, None]
        return rows.to(x.dtype) @ x, kept, scores


class PartEmbedding(nn.Module):
    """Part features: the joints of a part side by side, through one linear layer shared by all parts.

    Parts differ in size; smaller ones are padded with zeros to the largest.
    """

    members: Tensor

    def __init__(self, channels: int, partition: Partition, joints: int) -> None:
        super().__init__()
        self.parts, self.largest = len(partition), max(map(len, partition))
        # Row p·largest + i picks the i-th joint of part p, and is zero where the part has none. A product with it, as
        # in the focal selection.
        members = torch.zeros(self.parts, self.largest, joints)
        for row, part in zip(members, partition, strict=True):
            row[range(len(part)), part] = 1
        self.register_buffer("members", members.flatten(0, 1), persistent=False)
        self.linear = nn.Linear(self.largest * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B', T, N, C)`` → ``(B', T, P, C)``."""
        picked = self.members.to(x.dtype) @ x  # (B', T, P·largest, C)
        return self.linear(picked.view(*x.shape[:2], self.parts, -1))
