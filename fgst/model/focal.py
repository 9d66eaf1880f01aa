"""Inputs of stage 2: focal joint selection (Eq. 2, 3) and the embedding of body parts (§3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgst.config import FocalOrder
from fgst.data.skeleton import Partition


class FocalSelection(nn.Module):
    """Selection of the K most informative joints of each frame.

    Scores are S = sigmoid(X W_p / ‖W_p‖) (Eq. 2), and the K joints with the highest scores are selected in each frame
    (Eq. 3).

    Args:
        channels: C.
        focal_joints: K.
        gate: multiply the features of each selected joint by its score. Indexing passes no gradient to the scores, so
            W_p keeps its initial value without the gate.
        order: "joint" sorts the selected joints by index, so that a slot refers to similar joints in all frames;
            "score" sorts them by descending score, as Eq. 3 does.
    """

    def __init__(self, channels: int, focal_joints: int, *, gate: bool, order: FocalOrder) -> None:
        super().__init__()
        self.focal_joints, self.gate, self.order = focal_joints, gate, order
        self.projection = nn.Parameter(torch.randn(channels), requires_grad=gate)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select the focal joints.

        Args:
            x: ``(B', T, N, C)``.

        Returns:
            Features of the selected joints ``(B', T, K, C)``, their indices ``(B', T, K)``, and the scores of all
            joints ``(B', T, N)``.
        """
        # Not a matrix product, which autocast would compute in lower precision: rounding creates ties between scores,
        # and the choice between tied joints is arbitrary.
        scores = torch.sigmoid((x * (self.projection / self.projection.norm())).sum(-1))
        selected = scores.topk(self.focal_joints, dim=-1).indices  # by descending score
        if self.order == "joint":
            selected = selected.sort(dim=-1).values
        # A product with one-hot rows is cheap, and so is its gradient, which is deterministic; the gradient of a gather
        # is summed in random order on a GPU.
        rows = F.one_hot(selected, x.shape[2]).to(scores.dtype)  # (B', T, K, N)
        if self.gate:
            rows = rows * scores[:, :, None]
        return rows.to(x.dtype) @ x, selected, scores


class PartEmbedding(nn.Module):
    """Embedding of body parts: the concatenated joints of a part, through one linear layer shared by all parts.

    Parts smaller than the largest are padded with zeros.

    Args:
        channels: C.
        partition: the joints of each part.
        joints: N.
    """

    members: Tensor

    def __init__(self, channels: int, partition: Partition, joints: int) -> None:
        super().__init__()
        self.parts, self.largest = len(partition), max(map(len, partition))
        # Row p·largest + i selects the i-th joint of part p and is zero if the part has fewer joints. As in the focal
        # selection, a product with these rows has a deterministic gradient.
        members = torch.zeros(self.parts, self.largest, joints)
        for row, part in zip(members, partition, strict=True):
            row[range(len(part)), part] = 1
        self.register_buffer("members", members.flatten(0, 1), persistent=False)
        self.linear = nn.Linear(self.largest * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Embed the parts, ``(B', T, N, C)`` → ``(B', T, P, C)``."""
        picked = self.members.to(x.dtype) @ x  # (B', T, P·largest, C)
        return self.linear(picked.view(*x.shape[:2], self.parts, -1))
