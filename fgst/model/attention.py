"""What the blocks share: position encoding, normalisation, attention maps (Eq. 1), and what surrounds an attention.

Axes: B' clips times persons · T frames · N joints (or K focal joints, or P parts) · C channels · H heads ·
d width of a head. Features are (B', T, N, C), channels last.

Under autocast everything between the embedding and the averages stays in the lower precision: an encoding or a global
map in float32 would lift the features to float32, and each product after it would copy them down again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sine_encoding(positions: int, channels: int) -> Tensor:
    """Sine and cosine position encoding of [41], ``(positions, channels)``: sines on even channels, cosines on odd."""
    position = torch.arange(positions, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float64) * (-math.log(10_000.0) / channels))
    encoding = torch.zeros(positions, channels, dtype=torch.float64)
    encoding[:, 0::2] = torch.sin(position * rate)
    encoding[:, 1::2] = torch.cos(position * rate)[:, : channels // 2]
    return encoding.to(torch.get_default_dtype())


class NormedLinear(nn.Module):
    """A linear layer and the norm after it, ``(…, C_in)`` → ``(…, C)``.

    ``norm`` is "batch" (each channel over all else) or "layer" (each feature vector by itself). A batch norm takes the
    mean away, and with it any bias of the linear layer, so there is none then.
    """

    def __init__(self, channels_in: int, channels: int, norm: str) -> None:
        super().__init__()
        self.linear = nn.Linear(channels_in, channels, bias=norm != "batch")
        self.norm: nn.Module = nn.BatchNorm1d(channels) if norm == "batch" else nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.linear(x).flatten(0, -2))  # a batch norm wants (rows, C)
        return rows.view(*x.shape[:-1], -1)


def attention_map(queries: Tensor, keys: Tensor) -> Tensor:
    """Eq. 1 without the values: softmax(Q Kᵀ / √d), ``(…, n, d)`` and ``(…, m, d)`` → ``(…, n, m)``."""
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    if scores.is_cpu and scores.dtype == torch.bfloat16:
        # PyTorch's bfloat16 softmax over few elements takes twice as long on a CPU, its gradient ten times
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    return torch.softmax(scores, dim=-1)


def split_heads(x: Tensor, pieces: int, heads: int) -> Tensor:
    """``(B', T, N, pieces·H·d)`` → ``(pieces, B'·T, H, N, d)``.

    One copy lays everything out as the batched products of the attention want it; handed strided views, they would
    copy each operand for themselves, in the backward pass again.
    """
    B, T, N, width = x.shape
    return x.view(B * T, N, pieces, heads, width // (pieces * heads)).permute(2, 0, 3, 1, 4).contiguous()


class SpatialProjections(nn.Module):
    """What surrounds the attention in Basic-SFormer and JP-CA (Fig. 3).

    Before it, one product gives Q, K and V of all heads. After it, the heads side by side go through W_O and norm, a
    residual is added, and the FFN follows: one linear layer, norm, Leaky ReLU, residual.
    """

    def __init__(self, channels: int, heads: int, head_width: int, norm: str, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * heads * head_width)
        self.out = NormedLinear(heads * head_width, channels, norm)
        self.ffn = NormedLinear(channels, channels, norm)
        self.activation = nn.LeakyReLU()
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor, encoding: Tensor) -> Tensor:
        """``(B', T, N, C)`` and its encoding → queries, keys, values ``(3, B'·T, H, N, d)``."""
        return split_heads(self.qkv(x + encoding), 3, self.heads)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's input ``(B', T, N, C)`` and what its heads gave, ``(B'·T, H, N, d)`` → ``(B', T, N, C)``."""
        concatenated = attended.transpose(1, 2).flatten(2).view(*x.shape[:3], -1)
        x = x + self.dropout(self.out(concatenated))
        return x + self.dropout(self.activation(self.ffn(x)))
