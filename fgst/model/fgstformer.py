"""The FG-STFormer (Gao et al., ACCV 2022): the whole network in one screen.

Axes: B clips · M persons · T frames · N joints · C channels · H heads · K focal joints · P body parts. Persons are
folded into the batch, B' = the persons that are there; features are (B', T, N, C).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.data.skeleton import Skeleton
from fgst.model.attention import sine_encoding
from fgst.model.focal import FocalSelection, PartEmbedding
from fgst.model.spatial import BasicSFormer, JointPartCrossAttention
from fgst.model.temporal import FGTFormer


@dataclass
class AttentionMaps:
    """What the network looked at, for figures like the paper's Fig. 5; all on the network's device, detached.

    Lists have an entry per layer; they are empty where the configuration has no such block. An absent person's values
    are zero. T is the number of frames at that layer; the T of stage 2 belongs to every ``stride``-th frame of the
    clip.

    Attributes:
        present: which persons are there, ``(B, M)``.
        stride: clip frames between two frames at the entrance of stage 2.
        focal_joints: indices of the kept joints, ``(B, M, T, K)``, in ``focal_order``; ``None`` without selection.
        focal_scores: S of Eq. 2 for every joint, ``(B, M, T, N)``; ``None`` without selection.
        spatial: Basic-SFormer of stage 1, A_g included, ``(B, M, T, H, N, N)``; a row is a joint that asks.
        joint_spatial, part_spatial: the same in the branches of stage 2.
        part_to_joint: A_jp of Eq. 4, what each focal joint takes from each part, ``(B, M, T, H, K, P)``.
        joint_to_part: A_pj, what each part takes from each focal joint, ``(B, M, T, H, P, K)``.
        temporal: of stage 1, ``(B, M, N, H, T, T)``; a row is a frame that asks.
        joint_temporal, part_temporal: the same in the branches of stage 2.
    """

    person_mask: Tensor
    stride: int = 1
    focal_joints: Tensor | None = None
    focal_scores: Tensor | None = None
    spatial: list[Tensor] = field(default_factory=list)
    joint_spatial: list[Tensor] = field(default_factory=list)
    part_spatial: list[Tensor] = field(default_factory=list)
    part_to_joint: list[Tensor] = field(default_factory=list)
    joint_to_part: list[Tensor] = field(default_factory=list)
    temporal: list[Tensor] = field(default_factory=list)
    joint_temporal: list[Tensor] = field(default_factory=list)
    part_temporal: list[Tensor] = field(default_factory=list)

    def _place(self, value: Tensor) -> Tensor:
        """Values of the persons that went through the network, ``(B', …)`` → ``(B, M, …)``, absent ones zero."""
        value, (B, M) = value.detach(), self.person_mask.shape
        if len(value) == B * M:
            absent = ~self.person_mask.view(B, M, *[1] * (value.dim() - 1))
            return value.unflatten(0, (B, M)).masked_fill(absent, 0)
        placed = value.new_zeros(B, M, *value.shape[1:])
        placed[self.person_mask] = value
        return placed


class Stage1Layer(nn.Module):
    """Basic-SFormer and FG-TFormer over all joints."""

    def __init__(self, channels_in: int, channels: int, joints: int, frames: int, config: ModelConfig) -> None:
        super().__init__()
        self.spatial = BasicSFormer(channels_in, (joints,), config)
        self.temporal = FGTFormer(channels_in, channels, frames, config)

    def forward(self, x: Tensor, encoding: Tensor, maps: AttentionMaps | None = None) -> Tensor:
        """``(B', T, N, C_in)`` → ``(B', T or ⌈T / 2⌉, N, C)``."""
        if maps is None:
            return self.temporal(self.spatial(x, encoding))
        spatial: list[Tensor] = []
        temporal: list[Tensor] = []
        x = self.temporal(self.spatial(x, encoding, spatial), temporal)
        maps.spatial.extend(map(maps._place, spatial))
        maps.temporal.extend(map(maps._place, temporal))
        return x


class Stage2Layer(nn.Module):
    """FG-SFormer, that is a Basic-SFormer in each branch and JP-CA between them, then an FG-TFormer in each.

    ``branches`` hold one tensor each, joints and parts, or with ``shared_branches`` one tensor with the tokens of both.
    """

    def __init__(
        self, channels_in: int, channels: int, tokens: tuple[int, ...], frames: int, config: ModelConfig
    ) -> None:
        super().__init__()
        self.tokens = tokens
        groups = [tokens] if config.shared_branches else [(n,) for n in tokens]
        self.spatial = nn.ModuleList(BasicSFormer(channels_in, group, config) for group in groups)
        self.cross = (
            JointPartCrossAttention(channels_in, (tokens[0], tokens[1]), config) if config.cross_attention else None
        )
        self.temporal = nn.ModuleList(FGTFormer(channels_in, channels, frames, config) for _ in groups)
        self.stride = 1 if channels_in == channels else 2

    def forward(
        self, branches: list[Tensor], encodings: list[Tensor], maps: AttentionMaps | None = None
    ) -> list[Tensor]:
        """``(B', T, K, C_in)`` and ``(B', T, P, C_in)`` → the same with C channels and T or ⌈T / 2⌉ frames."""
        keep = maps is not None
        spatial: list[Tensor] | None = [] if keep else None
        cross: list[Tensor] | None = [] if keep else None
        temporal: list[Tensor] | None = [] if keep else None
        branches = [
            block(x, encoding, spatial) for block, x, encoding in zip(self.spatial, branches, encodings, strict=True)
        ]
        if self.cross is not None:
            branches = self.cross(branches, encodings, cross)
        branches = [block(x, temporal) for block, x in zip(self.temporal, branches, strict=True)]
        if maps is not None:
            if temporal and len(temporal) < len(self.tokens):  # shared branches
                temporal = list(temporal[0].split(self.tokens, dim=1))
            for lists, found in (
                ((maps.joint_spatial, maps.part_spatial), spatial),
                ((maps.part_to_joint, maps.joint_to_part), cross),
                ((maps.joint_temporal, maps.part_temporal), temporal),
            ):
                for kept, values in zip(lists, found or [], strict=False):
                    kept.append(maps._place(values))
        return branches


class FGSTFormer(nn.Module):
    """Focal and Global Spatial-Temporal Transformer (Fig. 2).

    Stage 1 stacks L1 layers of Basic-SFormer and FG-TFormer over all joints. Stage 2 has two branches, the K focal
    joints of each frame and the P body parts, and stacks L2 layers of FG-SFormer and an FG-TFormer per branch. The
    averages of both branches, side by side, are classified by two linear layers.

    Args:
        config: K, P, L1, L2, widths, heads, dilations …; the default is the paper's. What the ablations of Tables 1
            and 3 take away, it takes away.
        skeleton: joints and body parts of the data.
        num_classes: number of scores.
        frames: T of the clips, at most; shorter ones are taken too.

    Raises:
        ValueError: if ``config`` does not fit the skeleton; the message names the field.
    """

    def __init__(self, config: ModelConfig, skeleton: Skeleton, num_classes: int, *, frames: int = 128) -> None:
        super().__init__()
        config.check_skeleton(skeleton)
        if min(num_classes, frames) < 1:
            raise ValueError(f"num_classes and frames must be at least 1, not {num_classes} and {frames}")
        self.config, self.frames, self.num_classes = config, frames, num_classes
        N = skeleton.num_joints
        L1 = config.stage1_layers
        # Each layer's width and the one it gets; where it grows, that layer's FG-TFormer widens and halves T.
        widths = list(zip((config.channels[0], *config.channels), config.channels, strict=False))

        self.input_norm = nn.BatchNorm1d(N * 3)
        self.embedding = nn.Linear(3, config.channels[0])

        self.stage1 = nn.ModuleList()
        for width_in, width in widths[:L1]:
            self.stage1.append(Stage1Layer(width_in, width, N, frames, config))
            frames = _halved(frames) if width > width_in else frames

        width = config.channels[L1 - 1]
        tokens = [config.focal_joints if config.focal_selection else N]
        if config.focal_selection:
            self.focal = FocalSelection(width, config.focal_joints, gate=config.focal_gate, order=config.focal_order)
        if config.part_branch:
            partition = skeleton.partition(config.parts)
            tokens.append(len(partition))
            self.parts = PartEmbedding(width, partition, N)

        self.stage2 = nn.ModuleList()
        for width_in, width in widths[L1:]:
            self.stage2.append(Stage2Layer(width_in, width, tuple(tokens), frames, config))
            frames = _halved(frames) if width > width_in else frames
        self.tokens = tuple(tokens)

        width = config.channels[-1]
        self.head = nn.Sequential(
            nn.Linear(len(tokens) * width, width),
            nn.LeakyReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, num_classes),
        )
        # Encodings of joints and parts, one for each width that is met. They follow from the shapes, so they are
        # not part of the state.
        for channels in sorted({width_in for width_in, _ in widths}):
            self.register_buffer(f"encoding_{channels}", sine_encoding(max(N, *tokens), channels), persistent=False)

    def forward(self, clips: Tensor, person_mask: Tensor | None = None, *, return_maps: bool = False) -> Tensor:
        """Scores of clips, before the softmax.

        Args:
            clips: ``(B, M, T, N, 3)``.
            present: which persons are there, ``(B, M)`` of bool; by default those whose values are not all zero. The
                others are left out of everything, whatever their values. A clip without anybody counts as one of its
                first person.
            return_maps: what the network looked at as well.

        Returns:
            ``(B, num_classes)``; with ``return_maps`` the pair of that and a :class:`Maps`.

        Raises:
            ValueError: if the clips have another shape, or more frames than the network was made for.
        """
        N = self.input_norm.num_features // 3
        if clips.dim() != 5 or clips.shape[3:] != (N, 3):
            raise ValueError(f"clips are {tuple(clips.shape)}, but this network takes (B, M, T, {N}, 3)")
        B, M, T = clips.shape[:3]
        if T > self.frames:
            raise ValueError(f"clips have {T} frames, but this network was made for {self.frames} at most")
        if person_mask is not None and person_mask.shape != (B, M):
            raise ValueError(f"present is {tuple(person_mask.shape)}, but the clips are of (B, M) = ({B}, {M})")
        persons = clips.flatten(0, 1)  # (B·M, T, N, 3)
        if M == 1:
            maps = AttentionMaps(clips.new_ones(B, 1, dtype=torch.bool)) if return_maps else None
            features = self.features(persons, maps)
        else:
            person_mask = (clips != 0).flatten(2).any(-1) if person_mask is None else person_mask.clone()  # (B, M)
            person_mask[:, 0] |= ~person_mask.any(-1)
            maps = AttentionMaps(person_mask) if return_maps else None
            features = self._average(persons, person_mask, maps)
        scores = self.head(features)
        return (scores, maps) if return_maps else scores  # type: ignore[return-value]

    def _average(self, persons: Tensor, person_mask: Tensor, maps: AttentionMaps | None) -> Tensor:
        """Features averaged over the persons of a clip: ``(B·M, T, N, 3)`` and ``(B, M)`` → ``(B, branches·C)``."""
        B, M = person_mask.shape
        count = person_mask.sum(-1, keepdim=True)
        if torch.compiler.is_compiling() and not self.training:
            # How many there are is not known to a compiler. Without batch statistics the others disturb nobody.
            features = self.features(persons, maps).unflatten(0, (B, M))
            return torch.where(person_mask[..., None], features, 0).sum(1) / count
        there = person_mask.flatten().nonzero()[:, 0]
        features = self.features(persons[there], maps)
        # Each to a place of its own, then a sum: it adds up in the same order every time, on a GPU too.
        placed = features.new_zeros(B * M, features.shape[-1]).index_copy(0, there, features)
        return placed.unflatten(0, (B, M)).sum(1) / count

    def features(self, persons: Tensor, maps: AttentionMaps | None = None) -> Tensor:
        """Each branch's average over its tokens and frames: ``(B', T, N, 3)`` → ``(B', branches·C)``."""
        B, T, N, C0 = persons.shape
        device = persons.device.type
        with torch.autocast(device, enabled=False):  # coordinates rounded to 8 bits would lose the small motions
            x = self.input_norm(persons.reshape(B * T, N * C0)).view(B, T, N, C0)
            x = self.embedding(x)  # (B', T, N, C1)
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        for layer in self.stage1:
            x = layer(x, self._encoding(x)[:N], maps)

        branches, codes = [x], [torch.arange(N, device=x.device)]  # a token carries the encoding of its number
        if self.config.focal_selection:
            joints, kept, scores = self.focal(x)  # (B', T, K, C), (B', T, K), (B', T, N)
            branches, codes = [joints], [kept]  # of a focal joint, that of the joint it is, whatever its slot
            if maps is not None:
                maps.focal_joints, maps.focal_scores = maps._place(kept), maps._place(scores)
        if maps is not None:
            maps.stride = -(-T // x.shape[1])
        if self.config.part_branch:
            branches.append(self.parts(x))  # (B', T, P, C)
            codes.append(torch.arange(self.tokens[1], device=x.device))
        if self.config.shared_branches:
            codes = [torch.cat([code.expand(*x.shape[:2], -1) for code in codes], dim=-1)]
            branches = [torch.cat(branches, dim=2)]
        for layer in self.stage2:
            encoding = self._encoding(branches[0])
            branches = layer(branches, [encoding[code] for code in codes], maps)
            codes = [code[:, :: layer.stride] if code.dim() > 1 else code for code in codes]
        if self.config.shared_branches:
            branches = list(branches[0].split(self.tokens, dim=2))
        wide = torch.promote_types(branches[0].dtype, torch.float32)
        return torch.cat([branch.mean((1, 2), dtype=wide) for branch in branches], dim=-1)

    def _encoding(self, x: Tensor) -> Tensor:
        return self.get_buffer(f"encoding_{x.shape[-1]}").to(x.dtype)


def _halved(frames: int) -> int:
    return (frames + 1) // 2
