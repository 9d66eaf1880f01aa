"""The FG-STFormer (Gao et al., ACCV 2022): the whole network in one screen.

Axes: B clips · M persons · T frames · N joints · C channels · K focal joints · P body parts. Persons are folded into
the batch, B' = the persons that are there; features are (B', T, N, C).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.model.attention import sine_encoding
from fgst.model.focal import FocalSelection, PartEmbedding
from fgst.model.spatial import BasicSFormer, FGSFormer
from fgst.model.temporal import FGTFormer
from fgst.skeleton import Skeleton


class Stage1Layer(nn.Module):
    """Basic-SFormer and FG-TFormer over all joints."""

    def __init__(self, channels_in: int, channels: int, joints: int, frames: int, config: ModelConfig) -> None:
        super().__init__()
        self.spatial = BasicSFormer(channels_in, joints, config)
        self.temporal = FGTFormer(channels_in, channels, frames, config)

    def forward(self, x: Tensor, encoding: Tensor) -> Tensor:
        """``(B', T, N, C_in)`` → ``(B', T or ⌈T / 2⌉, N, C)``."""
        return self.temporal(self.spatial(x, encoding))


class Stage2Layer(nn.Module):
    """FG-SFormer over both branches, then an FG-TFormer for each."""

    def __init__(self, channels_in: int, channels: int, parts: int, frames: int, config: ModelConfig) -> None:
        super().__init__()
        self.spatial = FGSFormer(channels_in, config.focal_joints, parts, config)
        self.joint_temporal = FGTFormer(channels_in, channels, frames, config)
        self.part_temporal = FGTFormer(channels_in, channels, frames, config)
        self.stride = self.joint_temporal.stride

    def forward(
        self, joints: Tensor, parts: Tensor, joint_encoding: Tensor, part_encoding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(B', T, K, C_in)`` and ``(B', T, P, C_in)`` → the same with C channels and T or ⌈T / 2⌉ frames."""
        joints, parts = self.spatial(joints, parts, joint_encoding, part_encoding)
        return self.joint_temporal(joints), self.part_temporal(parts)


class FGSTFormer(nn.Module):
    """Focal and Global Spatial-Temporal Transformer (Fig. 2).

    Stage 1 stacks L1 layers of Basic-SFormer and FG-TFormer over all joints. Stage 2 has two branches, the K focal
    joints of each frame and the P body parts, and stacks L2 layers of FG-SFormer and an FG-TFormer per branch. The
    averages of both branches, side by side, are classified by two linear layers.

    Args:
        config: K, P, L1, L2, widths, heads, dilations …; the default is the paper's.
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
        partition = skeleton.partition(config.parts)
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
        self.focal = FocalSelection(width, config.focal_joints, gate=config.focal_gate, order=config.focal_order)
        self.parts = PartEmbedding(width, partition)

        self.stage2 = nn.ModuleList()
        for width_in, width in widths[L1:]:
            self.stage2.append(Stage2Layer(width_in, width, len(partition), frames, config))
            frames = _halved(frames) if width > width_in else frames

        width = config.channels[-1]
        self.head = nn.Sequential(
            nn.Linear(2 * width, width), nn.LeakyReLU(), nn.Dropout(config.dropout), nn.Linear(width, num_classes)
        )
        # Encodings of joints and parts, one for each width that is met. They follow from the shapes, so they are
        # not part of the state.
        for channels in sorted({width_in for width_in, _ in widths}):
            self.register_buffer(f"joint_encoding_{channels}", sine_encoding(N, channels), persistent=False)
            self.register_buffer(f"part_encoding_{channels}", sine_encoding(len(partition), channels), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Scores of clips, before the softmax.

        Args:
            clips: ``(B, M, T, N, 3)``; a person whose values are all zero is absent, and left out of everything.

        Returns:
            ``(B, num_classes)``.

        Raises:
            ValueError: if the clips have another shape, or more frames than the network was made for.
        """
        N = self.input_norm.num_features // 3
        if clips.dim() != 5 or clips.shape[3:] != (N, 3):
            raise ValueError(f"clips are {tuple(clips.shape)}, but this network takes (B, M, T, {N}, 3)")
        B, M, T = clips.shape[:3]
        if T > self.frames:
            raise ValueError(f"clips have {T} frames, but this network was made for {self.frames} at most")
        persons = clips.flatten(0, 1)  # (B·M, T, N, 3)
        if M == 1:
            return self.head(self.features(persons))
        present = (clips != 0).flatten(2).any(-1)  # (B, M)
        present[:, 0] |= ~present.any(-1)  # a clip of nobody at all counts as one person who does not move
        owner = present.nonzero()[:, 0]
        features = self.features(persons[present.flatten()])
        total = torch.zeros(B, features.shape[-1], dtype=features.dtype, device=features.device)
        total = total.index_add(0, owner, features)
        return self.head(total / present.sum(-1, keepdim=True))

    def features(self, persons: Tensor) -> Tensor:
        """Both branches' averages over joints or parts and frames: ``(B', T, N, 3)`` → ``(B', 2 C)``."""
        B, T, N, C0 = persons.shape
        x = self.input_norm(persons.reshape(B * T, N * C0)).view(B, T, N, C0)
        x = self.embedding(x)  # (B', T, N, C1)
        for layer in self.stage1:
            x = layer(x, self._encoding("joint", x))
        joints, kept, _ = self.focal(x)  # (B', T, K, C), (B', T, K)
        parts = self.parts(x)  # (B', T, P, C)
        for layer in self.stage2:
            # A focal joint carries the encoding of the joint it is, whatever its slot.
            joint_encoding = self._encoding("joint", joints)[kept]
            joints, parts = layer(joints, parts, joint_encoding, self._encoding("part", parts))
            kept = kept[:, :: layer.stride]
        return torch.cat([joints.mean((1, 2)), parts.mean((1, 2))], dim=-1)

    def _encoding(self, tokens: str, x: Tensor) -> Tensor:
        return self.get_buffer(f"{tokens}_encoding_{x.shape[-1]}")


def _halved(frames: int) -> int:
    return (frames + 1) // 2
