"""Attention over the frames of a joint: the FG-TFormer block and its ablations (§3.4, Eq. 5, Table 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.model.attention import NormedLinear, attention_map, sine_encoding


class FGTFormer(nn.Module):
    """FG-TFormer block: self-attention over all frames, with dilated temporal convolutions as values (Eq. 5).

    Head h has its own dilation: V_h = TCN(X)_h with kernel size k_t, head_h = (A_h V_h) W_h + V_h. The concatenated
    heads pass through W_O, a norm and Leaky ReLU, and the shortcut is added. If the width doubles, the number of frames
    is halved: the convolutions have stride 2, Q and K are computed at every second frame, and the shortcut is a linear
    layer at these frames.

    ``config.temporal`` selects the ablations of Table 3: "convolution" (TCN only) has no attention, head_h = V_h;
    "attention" (Basic-TFormer) has linear values, head_h = A_h V_h.

    Args:
        channels_in, channels: C_in and C; C is C_in or twice as much.
        frames: T, at most.
        config: dilations, kernel size, norm and dropout.
    """

    encoding: Tensor

    def __init__(self, channels_in: int, channels: int, frames: int, config: ModelConfig) -> None:
        super().__init__()
        self.heads = len(config.dilations)
        self.stride = 1 if channels_in == channels else 2
        width = channels // self.heads
        self.attends, self.convolves = config.temporal != "convolution", config.temporal != "attention"
        if self.attends:
            # Q and K of all heads, and V if it is not a convolution
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
        """Apply the block.

        Args:
            x: ``(B', T, N, C_in)``.
            maps: list to which the maps ``(B', N, H, T', T')`` are appended, if the block has an attention.

        Returns:
            ``(B', T', N, C)`` with T' = ⌈T / stride⌉.
        """
        encoded = x + self.encoding[: x.shape[1]].to(x.dtype)  # (T, 1, C_in) for every joint
        if self.attends:
            strided = encoded[:, :: self.stride]
            B, T, N, _ = strided.shape
            pieces = 2 if self.convolves else 3
            projected = self.projection(strided).view(B, T, N, pieces, self.heads, -1)
            # A single copy gives Q and K of each head the layout of batched products: pieces·H times (B', N, T', d).
            projections = projected.permute(3, 4, 0, 2, 1, 5).contiguous().flatten(0, 1).unbind(0)
            queries, keys, linear_values = (projections[i * self.heads : (i + 1) * self.heads] for i in range(3))
            head_maps = [attention_map(q, k) for q, k in zip(queries, keys, strict=True)]
            if maps is not None:
                maps.append(torch.stack(head_maps, dim=2))
        if not self.convolves:
            heads = [(a @ v).transpose(1, 2) for a, v in zip(head_maps, linear_values, strict=True)]
        else:
            images = encoded.permute(0, 3, 1, 2)  # (B', C_in, T, N) in channels-last layout, without a copy
            heads = [convolve(images).permute(0, 2, 3, 1) for convolve in self.tcn]  # (B', T', N, d) each
            if self.attends:
                # (A V) W = A (V W). The small product V W comes first, in the convolution's memory layout; the addition
                # below restores the order of the axes.
                attended = [
                    (head_map @ linear(values).transpose(1, 2)).transpose(1, 2)
                    for head_map, linear, values in zip(head_maps, self.head_linear, heads, strict=True)
                ]
                heads = [values + mixed for values, mixed in zip(heads, attended, strict=True)]
        return self.dropout(self.activation(self.out(torch.cat(heads, dim=-1)))) + self.shortcut(x[:, :: self.stride])
