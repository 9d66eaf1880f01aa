"""Components shared by the blocks: position encoding, normalization, attention maps (Eq. 1) and projections.

Axes: B' clips times persons · T frames · N joints (or K focal joints, or P parts) · C channels · H heads ·
d width of a head. Features are (B', T, N, C), channels last.

Under autocast all features between the embedding and the final averages stay in the lower precision. Encodings and
global maps are therefore cast to it: a float32 operand would promote the features to float32, and every product after
it would have to copy them back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fgst.config import Norm


def sine_encoding(positions: int, channels: int) -> Tensor:
    """Return the sine and cosine position encoding of Vaswani et al. (2017), ``(positions, channels)``.

    PE(pos, 2i) = sin(pos / 10000^(2i / C)) and PE(pos, 2i + 1) = cos(pos / 10000^(2i / C)).
    """
    position = torch.arange(positions, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2, dtype=torch.float64) * (-math.log(10_000.0) / channels))
    encoding = torch.zeros(positions, channels, dtype=torch.float64)
    encoding[:, 0::2] = torch.sin(position * rate)
    encoding[:, 1::2] = torch.cos(position * rate)[:, : channels // 2]
    return encoding.to(torch.get_default_dtype())


def make_norm(channels: int, norm: Norm) -> nn.Module:
    """Return a norm for rows of features, ``(rows, C)``."""
    return nn.BatchNorm1d(channels) if norm == "batch" else nn.LayerNorm(channels)


def normalize(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm to features ``(…, C)``; BatchNorm1d itself takes rows only."""
    return norm(x.flatten(0, -2)).view(x.shape)


class FeatureNorm(nn.Module):
    """A norm of features ``(…, C)``.

    "batch" normalizes each channel over all other axes, "layer" each feature vector.
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = make_norm(channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.norm, x)


class NormedLinear(nn.Module):
    """A linear layer followed by a norm, ``(…, C_in)`` → ``(…, C)``.

    Args:
        channels_in, channels: C_in and C.
        norm: "batch" or "layer", see :class:`FeatureNorm`. Batch norm subtracts the mean, and with it any bias of the
            linear layer, which therefore has none.
    """

    def __init__(self, channels_in: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.linear = nn.Linear(channels_in, channels, bias=norm != "batch")
        self.norm = make_norm(channels, norm)

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self.norm, self.linear(x))


def attention_map(queries: Tensor, keys: Tensor) -> Tensor:
    """Compute the attention map of Eq. 1, softmax(Q Kᵀ / √d).

    Args:
        queries: Q, ``(…, n, d)``.
        keys: K, ``(…, m, d)``.

    Returns:
        ``(…, n, m)``; each row sums to 1.
    """
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    if scores.is_cpu and scores.dtype == torch.bfloat16:
        # On a CPU, PyTorch's bfloat16 softmax over short rows takes twice as long, and its gradient ten times.
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    return torch.softmax(scores, dim=-1)


def split_heads(x: Tensor, pieces: int, heads: int) -> Tensor:
    """Split features ``(B', T, N, pieces·H·d)`` into pieces (Q, K, V) and heads, ``(pieces, B'·T, H, N, d)``.

    A single copy gives all pieces the layout that batched matrix products need. Given strided views, these would copy
    each operand separately, in the forward and in the backward pass.
    """
    B, T, N, width = x.shape
    return x.view(B * T, N, pieces, heads, width // (pieces * heads)).permute(2, 0, 3, 1, 4).contiguous()


class SpatialProjections(nn.Module):
    """Layers before and after the attention in Basic-SFormer and JP-CA (Fig. 3).

    Before the attention, one product computes Q, K and V of all heads. After it, the concatenated heads pass through
    W_O and a norm, and a residual is added; then follows the FFN: one linear layer, norm, Leaky ReLU, residual.
    """

    def __init__(self, channels: int, heads: int, head_width: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * heads * head_width)
        self.out = NormedLinear(heads * head_width, channels, norm)
        self.ffn = NormedLinear(channels, channels, norm)
        self.activation = nn.LeakyReLU()
        self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor, encoding: Tensor) -> Tensor:
        """Project features plus position encoding to queries, keys and values.

        Args:
            x: ``(B', T, N, C)``.
            encoding: position encoding of the tokens, broadcastable to ``x``.

        Returns:
            ``(3, B'·T, H, N, d)``.
        """
        return split_heads(self.qkv(x + encoding), 3, self.heads)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Apply W_O and the FFN, each with its residual.

        Args:
            x: input of the block, ``(B', T, N, C)``.
            attended: output of the heads, ``(B'·T, H, N, d)``.

        Returns:
            ``(B', T, N, C)``.
        """
        concatenated = attended.transpose(1, 2).flatten(2).view(*x.shape[:3], -1)
        x = x + self.dropout(self.out(concatenated))
        return x + self.dropout(self.activation(self.ffn(x)))
