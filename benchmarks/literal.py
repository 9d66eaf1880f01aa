"""A literal implementation of the FG-STFormer: one line of PyTorch per line of the equations, without fused products.

It is the baseline of ``benchmarks.step_time`` and a second reference for the tests: with the weights of
:class:`fgst.model.FGSTFormer`, converted by :func:`literal_weights`, it computes the same scores. It implements Eq. 1-5
with both branches, without the ablations.

Axes: B' clips times persons; T frames; N joints, K focal joints or P parts; C channels; d width of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.data.skeleton import Skeleton
from fgst.model import FGSTFormer


def literal_weights(model: FGSTFormer) -> dict[str, Tensor]:
    """Convert the weights of a network to the literal network's names, with separate matrices per head."""
    config = model.config
    weights: dict[str, Tensor] = {}

    def norm(new: str, old: nn.Module) -> None:
        weights.update({f"{new}.norm.{name}": value for name, value in old.state_dict().items()})

    def linear(new: str, old: nn.Module) -> None:
        weights.update({f"{new}.{name}": value for name, value in old.state_dict().items()})

    def heads(old: nn.Linear, *names: str) -> None:
        """Split the rows of a merged matrix into pieces (Q, K, V), and these into heads."""
        for name, value in old.state_dict().items():
            pieces = value.unflatten(
                0, (len(names), config.spatial_heads if len(names) == 3 else len(config.dilations), -1)
            )
            for new, piece in zip(names, pieces, strict=True):
                weights.update({f"{new}.{h}.{name}": head for h, head in enumerate(piece)})

    def projections(new: str, old: Any) -> None:
        heads(old.qkv, f"{new}.query", f"{new}.key", f"{new}.value")
        for part, block in (("out", old.out), ("ffn", old.ffn)):
            linear(f"{new}.{part}", block.linear)
            norm(f"{new}.{part}_norm", block.norm)

    def spatial(new: str, old: Any) -> None:
        projections(f"{new}.projections", old.projections)
        weights[f"{new}.global_map"] = old.global_maps[0]

    def temporal(new: str, old: Any) -> None:
        heads(old.projection, f"{new}.query", f"{new}.key")
        linear(f"{new}.tcn", old.tcn)
        linear(f"{new}.W_h", old.head_linear)
        linear(f"{new}.out", old.out.linear)
        norm(f"{new}.norm", old.out.norm)
        linear(f"{new}.shortcut", old.shortcut)

    linear("input_norm", model.input_norm)
    linear("embedding", model.embedding)
    layer: Any
    for i, layer in enumerate(model.stage1):
        spatial(f"spatial.{i}", layer.spatial)
        temporal(f"temporal.{i}", layer.temporal)
    weights["projection"] = model.focal.projection.detach()
    linear("part_linear", model.parts.linear)
    for i, layer in enumerate(model.stage2):
        for side, name in enumerate(("joint", "part")):
            spatial(f"{name}_spatial.{i}", layer.spatial[side])
            projections(f"cross.{i}.{name}s", layer.cross.projections[side])
            temporal(f"{name}_temporal.{i}", layer.temporal[side])
    for side, name in enumerate(("joint", "part")):
        final_norm: Any = model.final_norm[side]
        norm(f"{name}_norm", final_norm.norm)
    hidden, _, _, classifier = model.head
    linear("hidden", hidden)
    linear("classifier", classifier)
    return weights


def sine_cosine(count: int, channels: int, device: torch.device) -> Tensor:
    """Return the sine/cosine encoding of positions 0 to ``count`` - 1, ``(count, channels)``."""
    position = torch.arange(count, device=device, dtype=torch.get_default_dtype())[:, None]
    angle = position / 10_000 ** (torch.arange(0, channels, 2, device=device) / channels)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :channels]


class Norm(nn.Module):
    """Batch norm over channels-last features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Projections(nn.Module):
    """W_Q, W_K and W_V of each head, W_O and the FFN (Fig. 3)."""

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.query = nn.ModuleList(nn.Linear(channels, width) for _ in range(heads))
        self.key = nn.ModuleList(nn.Linear(channels, width) for _ in range(heads))
        self.value = nn.ModuleList(nn.Linear(channels, width) for _ in range(heads))
        self.out, self.out_norm = nn.Linear(heads * width, channels, bias=False), Norm(channels)
        self.ffn, self.ffn_norm = nn.Linear(channels, channels, bias=False), Norm(channels)

    def finish(self, x: Tensor, heads: list[Tensor]) -> Tensor:
        x = x + self.out_norm(self.out(torch.cat(heads, dim=-1)))
        return x + F.leaky_relu(self.ffn_norm(self.ffn(x)))


def attention(query: Tensor, key: Tensor) -> Tensor:
    """Compute the attention map softmax(Q Kᵀ / √d) of Eq. 1."""
    return torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1)


class BasicSFormer(nn.Module):
    """Basic-SFormer (Eq. 1, Fig. 3a)."""

    def __init__(self, channels: int, tokens: int, heads: int, width: int) -> None:
        super().__init__()
        self.projections = Projections(channels, heads, width)
        self.global_map = nn.Parameter(torch.full((heads, tokens, tokens), 1 / tokens))

    def forward(self, x: Tensor, encoding: Tensor) -> Tensor:
        p, encoded, heads = self.projections, x + encoding, []
        for h in range(len(p.query)):
            attended = attention(p.query[h](encoded), p.key[h](encoded)) + self.global_map[h]
            heads.append(attended @ p.value[h](encoded))
        return p.finish(x, heads)


class CrossAttention(nn.Module):
    """JP-CA in both directions (Eq. 4)."""

    def __init__(self, channels: int, heads: int, width: int) -> None:
        super().__init__()
        self.joints, self.parts = Projections(channels, heads, width), Projections(channels, heads, width)

    def forward(self, joints: Tensor, parts: Tensor, code_j: Tensor, code_p: Tensor) -> tuple[Tensor, Tensor]:
        J, P, x_j, x_p = self.joints, self.parts, joints + code_j, parts + code_p
        heads = range(len(J.query))
        to_joints = [attention(J.query[h](x_j), P.key[h](x_p)) @ P.value[h](x_p) for h in heads]
        to_parts = [attention(P.query[h](x_p), J.key[h](x_j)) @ J.value[h](x_j) for h in heads]
        return J.finish(joints, to_joints), P.finish(parts, to_parts)


class FGTFormer(nn.Module):
    """FG-TFormer (Eq. 5)."""

    def __init__(self, channels_in: int, channels: int, config: ModelConfig) -> None:
        super().__init__()
        self.stride = 1 if channels_in == channels else 2
        k, heads = config.kernel_size, len(config.dilations)
        width = channels // heads
        self.query = nn.ModuleList(nn.Linear(channels_in, width) for _ in range(heads))
        self.key = nn.ModuleList(nn.Linear(channels_in, width) for _ in range(heads))
        self.tcn = nn.ModuleList(
            nn.Conv2d(channels_in, width, (k, 1), (self.stride, 1), (d * (k - 1) // 2, 0), (d, 1))
            for d in config.dilations
        )
        self.W_h = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(heads))
        self.out, self.norm = nn.Linear(channels, channels, bias=False), Norm(channels)
        self.shortcut = nn.Linear(channels_in, channels) if self.stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        encoded = x + sine_cosine(x.shape[1], x.shape[3], x.device)[:, None]
        strided = encoded[:, :: self.stride].transpose(1, 2)  # (B', N, T, C)
        heads = []
        for h in range(len(self.query)):
            value = self.tcn[h](encoded.permute(0, 3, 1, 2)).permute(0, 3, 2, 1)  # (B', N, T, d)
            mixed = attention(self.query[h](strided), self.key[h](strided)) @ value
            heads.append(self.W_h[h](mixed) + value)
        out = self.out(torch.cat(heads, dim=-1)).transpose(1, 2)
        return F.leaky_relu(self.norm(out)) + self.shortcut(x[:, :: self.stride])


class LiteralFGSTFormer(nn.Module):
    """The whole network, for clips ``(B, M, T, N, 3)`` in which all persons are present."""

    def __init__(self, config: ModelConfig, skeleton: Skeleton, num_classes: int) -> None:
        super().__init__()
        self.config, self.partition = config, skeleton.partition(config.parts)
        N, P, L1 = skeleton.num_joints, len(self.partition), config.stage1_layers
        widths = [(config.channels[max(i - 1, 0)], config.channels[i]) for i in range(len(config.channels))]

        def spatial(channels: int, tokens: int) -> BasicSFormer:
            return BasicSFormer(channels, tokens, config.spatial_heads, config.spatial_head_width(channels))

        self.input_norm, self.embedding = nn.BatchNorm1d(N * 3), nn.Linear(3, config.channels[0])
        self.spatial = nn.ModuleList(spatial(a, N) for a, _ in widths[:L1])
        self.temporal = nn.ModuleList(FGTFormer(a, b, config) for a, b in widths[:L1])
        split = config.channels[L1 - 1]
        self.projection = nn.Parameter(torch.randn(split))
        self.part_linear = nn.Linear(max(map(len, self.partition)) * split, split)
        self.joint_spatial = nn.ModuleList(spatial(a, config.focal_joints) for a, _ in widths[L1:])
        self.part_spatial = nn.ModuleList(spatial(a, P) for a, _ in widths[L1:])
        self.cross = nn.ModuleList(
            CrossAttention(a, config.spatial_heads, config.spatial_head_width(a)) for a, _ in widths[L1:]
        )
        self.joint_temporal = nn.ModuleList(FGTFormer(a, b, config) for a, b in widths[L1:])
        self.part_temporal = nn.ModuleList(FGTFormer(a, b, config) for a, b in widths[L1:])
        last = config.channels[-1]
        self.joint_norm, self.part_norm = Norm(last), Norm(last)
        self.hidden, self.classifier = nn.Linear(2 * last, last), nn.Linear(last, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        B, M, T, N, _ = clips.shape
        x = self.input_norm(clips.reshape(B * M * T, N * 3)).view(B * M, T, N, 3)
        x = self.embedding(x)
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            x = temporal(spatial(x, sine_cosine(N, x.shape[-1], x.device)))

        score = torch.sigmoid(x @ self.projection / self.projection.norm())  # Eq. 2
        index = score.topk(self.config.focal_joints, dim=-1).indices  # Eq. 3
        if self.config.focal_order == "joint":
            index = index.sort(dim=-1).values
        joints = x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1]))
        if self.config.focal_gate:
            joints = joints * score.gather(2, index)[..., None]
        largest = max(map(len, self.partition))
        parts = [x[:, :, list(part)].flatten(2) for part in self.partition]
        parts = [F.pad(part, (0, largest * x.shape[-1] - part.shape[-1])) for part in parts]
        parts = self.part_linear(torch.stack(parts, dim=2))

        for i, cross in enumerate(self.cross):
            code_j = sine_cosine(N, joints.shape[-1], x.device)[index]
            code_p = sine_cosine(len(self.partition), parts.shape[-1], x.device)
            joints = self.joint_spatial[i](joints, code_j)
            parts = self.part_spatial[i](parts, code_p)
            joints, parts = cross(joints, parts, code_j, code_p)
            joints, parts = self.joint_temporal[i](joints), self.part_temporal[i](parts)
            index = index[:, :: self.joint_temporal[i].stride]
        joints, parts = self.joint_norm(joints), self.part_norm(parts)
        pooled = torch.cat([joints.mean((1, 2)), parts.mean((1, 2))], dim=-1).view(B, M, -1).mean(1)
        return self.classifier(F.leaky_relu(self.hidden(pooled)))
