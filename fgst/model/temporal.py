"""Attention over the frames of a joint: the FG-TFormer block and its ablations (paper §3.4, Eq. 5, Table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.model.attention import NormedLinear, attention_map, sine_encoding


class FGTFormer(nn.Module):
    """FG-TFormer block: global self-attention over frames whose values are dilated temporal convolutions.

    Head h has its own dilation d_h: V_h = TCN(X)_h with kernel k_t, head_h = (A_h V_h) W_h + V_h; the heads side by
    side go through W_O, norm and Leaky ReLU, and the shortcut is added (Eq. 5). Where the width grows, frames are
    halved: the convolution has stride 2, Q and K are taken at its frames, the shortcut is a linear at its frames.

    ``config.temporal`` takes half of it away (Table 3): "convolution" has no attention, head_h = V_h;
    "attention" is the Basic-TFormer, whose values are linear too, head_h = A_h V_h.
    """

    encoding: Tensor

    def __init__(self, channels_in: int, channels: int, frames: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = len(config.dilations)
        self.stride = 1 if channels_in == channels else 2
        width = channels // self.heads
        self.attends, self.convolves = config.temporal != "convolution", config.temporal != "attention"
        if self.attends:
            # Q and K of all heads; without convolutions V as well
            self.projection = nn.Linear(channels_in, (2 if self.convolves else 3) * channels)
        if self.convolves:
            self.tcn = nn.ModuleList(
                nn.Conv2d(
                    channels_in,
                    width,
                    (config.kernel_size, 1),
                    stride=(self.stride, 1),
                    padding=(dilation * (config.kernel_size - 1) // 2, 0),
                    dilation=(dilation, 1),
                )
                for dilation in config.dilations
            )
        if self.attends and self.convolves:
            self.head_linear = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in config.dilations)
        self.out = NormedLinear(channels, channels, config.norm)
        self.activation = nn.LeakyReLU()
        self.dropout = nn.Dropout(config.dropout)
        self.shortcut = nn.Identity() if self.stride == 1 else nn.Linear(channels_in, channels)
        self.register_buffer("encoding", sine_encoding(frames, channels_in)[:, None], persistent=False)

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        """A block's pass.

        Args:
            x: ``(B', T, N, C_in)``.
            maps: gets the maps ``(B', N, H, T', T')``, if it is given and the block attends.

        Returns:
            ``(B', T', N, C)`` with T' = ⌈T / stride⌉.
        """
        encoded = x + self.encoding[: x.shape[1]].to(x.dtype)  # (T, 1, C_in) for every joint
        if self.attends:
            kept = encoded[:, :: self.stride]
            B, T, N, _ = kept.shape
            pieces = 2 if self.convolves else 3
            projected = self.projection(kept).view(B, T, N, pieces, self.heads, -1)
            # One copy lays out Q and K of each head as batched products want them: pieces·H times (B', N, T', d)
            projections = projected.permute(3, 4, 0, 2, 1, 5).contiguous().flatten(0, 1).unbind(0)
            queries, keys, linear_values = (projections[i * self.heads : (i + 1) * self.heads] for i in range(3))
            head_maps = [attention_map(q, k) for q, k in zip(queries, keys, strict=True)]
            if maps is not None:
                maps.append(torch.stack(head_maps, dim=2))
        if not self.convolves:
            heads = [(a @ v).transpose(1, 2) for a, v in zip(head_maps, linear_values, strict=True)]
        else:
            images = encoded.permute(0, 3, 1, 2)  # (B', C_in, T, N) without a copy: what PyTorch calls channels last
            heads = [convolve(images).permute(0, 2, 3, 1) for convolve in self.tcn]  # (B', T', N, d) each
            if self.attends:
                # (A V) W = A (V W): the small product comes first, while the frames still lie as the convolution left
                # them, and one addition brings the order of the axes back
                attended = [
                    (head_map @ linear(values).transpose(1, 2)).transpose(1, 2)
                    for head_map, linear, values in zip(head_maps, self.head_linear, heads, strict=True)
                ]
                heads = [values + mixed for values, mixed in zip(heads, attended, strict=True)]
        return self.dropout(self.activation(self.out(torch.cat(heads, dim=-1)))) + self.shortcut(x[:, :: self.stride])
