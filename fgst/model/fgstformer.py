"""The FG-STFormer (Gao et al., ACCV 2022): the network and its attention maps.

Axes: B clips · M persons · T frames · N joints · C channels · H heads · K focal joints · P body parts. Persons are
folded into the batch: B' is the number of present persons in all clips, and features are (B', T, N, C).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fgst.config import ModelConfig
from fgst.data.skeleton import Skeleton
from fgst.model.attention import FeatureNorm, sine_encoding
from fgst.model.focal import FocalSelection, PartEmbedding
from fgst.model.spatial import BasicSFormer, JointPartCrossAttention
from fgst.model.temporal import FGTFormer


@dataclass
class AttentionMaps:
    """Focal joints and attention maps of a forward pass, for plots like the paper's Fig. 5.

    All tensors are detached and on the network's device. Lists have one entry per layer and are empty if the
    configuration has no such block. Values of absent persons are zero. T is the number of frames of the layer; frame t
    of the first layer of stage 2 is frame t·``stride`` of the clip. In each map, rows are queries and columns are keys.

    Attributes:
        person_mask: whether each person is present, ``(B, M)``.
        stride: clip frames per frame at the input of stage 2.
        focal_joints: indices of the selected joints, ``(B, M, T, K)``, in ``focal_order``; ``None`` without selection.
        focal_scores: S of Eq. 2 for every joint, ``(B, M, T, N)``; ``None`` without selection.
        spatial: Basic-SFormer of stage 1, including A_g, ``(B, M, T, H, N, N)``.
        joint_spatial, part_spatial: Basic-SFormer of each branch of stage 2.
        part_to_joint: A_jp of Eq. 4, attention of the focal joints to the parts, ``(B, M, T, H, K, P)``.
        joint_to_part: A_pj of Eq. 4, attention of the parts to the focal joints, ``(B, M, T, H, P, K)``.
        temporal: FG-TFormer of stage 1, ``(B, M, N, H, T, T)``.
        joint_temporal, part_temporal: FG-TFormer of each branch of stage 2.
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

    def unfold_persons(self, value: Tensor) -> Tensor:
        """Return the values of all persons, ``(B', …)`` → ``(B, M, …)``, with zeros for absent persons."""
        value, (B, M) = value.detach(), self.person_mask.shape
        if len(value) == B * M:
            absent = ~self.person_mask.view(B, M, *[1] * (value.dim() - 1))
            return value.unflatten(0, (B, M)).masked_fill(absent, 0)
        unfolded = value.new_zeros(B, M, *value.shape[1:])
        unfolded[self.person_mask] = value
        return unfolded


class Stage1Layer(nn.Module):
    """Layer of stage 1: Basic-SFormer and FG-TFormer over all joints."""

    def __init__(self, channels_in: int, channels: int, joints: int, frames: int, config: ModelConfig) -> None:
        super().__init__()
        self.spatial = BasicSFormer(channels_in, (joints,), config)
        self.temporal = FGTFormer(channels_in, channels, frames, config)

    def forward(self, x: Tensor, encoding: Tensor, maps: AttentionMaps | None = None) -> Tensor:
        """Apply the layer, ``(B', T, N, C_in)`` → ``(B', T, N, C)``, or ⌈T / 2⌉ frames if the width doubles.

        ``encoding`` is the position encoding of the joints, ``(N, C_in)``; ``maps`` collects the attention maps.
        """
        if maps is None:
            return self.temporal(self.spatial(x, encoding))
        spatial: list[Tensor] = []
        temporal: list[Tensor] = []
        x = self.temporal(self.spatial(x, encoding, spatial), temporal)
        maps.spatial.extend(map(maps.unfold_persons, spatial))
        maps.temporal.extend(map(maps.unfold_persons, temporal))
        return x


class Stage2Layer(nn.Module):
    """Layer of stage 2: FG-SFormer (a Basic-SFormer per branch, then JP-CA between them) and an FG-TFormer per branch.

    The branches are a list of two tensors, focal joints and parts, or with ``shared_branches`` of one tensor with the
    tokens of both.
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
        """Apply the layer.

        Args:
            branches: ``(B', T, K, C_in)`` and ``(B', T, P, C_in)``.
            encodings: position encoding of each branch's tokens.
            maps: collects the attention maps.

        Returns:
            The branches with C channels, and ⌈T / 2⌉ frames if the width doubles.
        """
        spatial: list[Tensor] | None = None if maps is None else []
        cross: list[Tensor] | None = None if maps is None else []
        temporal: list[Tensor] | None = None if maps is None else []
        branches = [
            block(x, encoding, spatial) for block, x, encoding in zip(self.spatial, branches, encodings, strict=True)
        ]
        if self.cross is not None:
            branches = self.cross(branches, encodings, cross)
        branches = [block(x, temporal) for block, x in zip(self.temporal, branches, strict=True)]
        if maps is not None:
            if temporal and len(temporal) < len(self.tokens):  # shared branches
                temporal = list(temporal[0].split(self.tokens, dim=1))
            for lists, values_of_branches in (
                ((maps.joint_spatial, maps.part_spatial), spatial),
                ((maps.part_to_joint, maps.joint_to_part), cross),
                ((maps.joint_temporal, maps.part_temporal), temporal),
            ):
                for branch_maps, values in zip(lists, values_of_branches or [], strict=False):
                    branch_maps.append(maps.unfold_persons(values))
        return branches


class FGSTFormer(nn.Module):
    """Focal and Global Spatial-Temporal Transformer (Fig. 2).

    Stage 1 consists of L1 layers of Basic-SFormer and FG-TFormer over all joints. Stage 2 has two branches, the K focal
    joints of each frame and the P body parts, and consists of L2 layers of FG-SFormer and one FG-TFormer per branch.
    Each branch is normalized and averaged, and two linear layers classify the concatenated averages.

    Args:
        config: K, P, L1, L2, widths, heads, dilations …, and the ablations of Tables 1 and 3; the defaults are the
            paper's.
        skeleton: joints and body parts of the data.
        num_classes: number of action classes.
        frames: T, the largest number of frames of a clip.

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
        # Input and output width of each layer; if it doubles, the layer's FG-TFormer halves T.
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
        if config.final_norm:
            # Every block adds to its input, so the scale of the features grows with the number of blocks. The curvature
            # of the loss in the head's weights is proportional to the squared norm of its input, and limits the rate.
            branches = 1 if config.shared_branches else len(tokens)
            self.final_norm = nn.ModuleList(FeatureNorm(width, config.norm) for _ in range(branches))
        self.head = nn.Sequential(
            nn.Linear(len(tokens) * width, width),
            nn.LeakyReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(width, num_classes),
        )
        # Position encodings of joints and parts, one for each input width. The shapes determine them, so they are not
        # saved.
        for channels in sorted({width_in for width_in, _ in widths}):
            self.register_buffer(f"encoding_{channels}", sine_encoding(max(N, *tokens), channels), persistent=False)

    def forward(self, clips: Tensor, person_mask: Tensor | None = None, *, return_maps: bool = False) -> Tensor:
        """Compute the scores of clips, before the softmax.

        Args:
            clips: ``(B, M, T, N, 3)``.
            person_mask: whether each person is present, ``(B, M)`` of bool; by default a person is present if any of
                its values is not zero. The values of absent persons are ignored. In a clip without any present person
                the first one counts as present.
            return_maps: also return the attention maps, which cause no overhead if they are not returned.

        Returns:
            Scores ``(B, num_classes)``, or with ``return_maps`` the pair of scores and :class:`AttentionMaps`.

        Raises:
            ValueError: if the clips have the wrong shape or too many frames.
        """
        N = self.input_norm.num_features // 3
        if clips.dim() != 5 or clips.shape[3:] != (N, 3):
            raise ValueError(f"clips are {tuple(clips.shape)}, but this network takes (B, M, T, {N}, 3)")
        B, M, T = clips.shape[:3]
        if T > self.frames:
            raise ValueError(f"clips have {T} frames, but this network takes at most {self.frames}")
        if person_mask is not None and person_mask.shape != (B, M):
            raise ValueError(f"person_mask is {tuple(person_mask.shape)}, but the clips have (B, M) = ({B}, {M})")
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
        """Average the features over each clip's persons, ``(B·M, T, N, 3)`` and ``(B, M)`` → ``(B, branches·C)``."""
        B, M = person_mask.shape
        count = person_mask.sum(-1, keepdim=True)
        if torch.compiler.is_compiling() and not self.training:
            # The number of present persons depends on the data, which breaks a compiled graph. Without batch statistics
            # absent persons can pass through the network without influence on the others.
            features = self.features(persons, maps).unflatten(0, (B, M))
            return torch.where(person_mask[..., None], features, 0).sum(1) / count
        present = person_mask.flatten().nonzero()[:, 0]
        features = self.features(persons[present], maps)
        # Copy to distinct rows, then sum: unlike an index_add, this sums in the same order every time, on a GPU too.
        unfolded = features.new_zeros(B * M, features.shape[-1]).index_copy(0, present, features)
        return unfolded.unflatten(0, (B, M)).sum(1) / count

    def features(self, persons: Tensor, maps: AttentionMaps | None = None) -> Tensor:
        """Average each branch over its tokens and frames, ``(B', T, N, 3)`` → ``(B', branches·C)``."""
        B, T, N, C0 = persons.shape
        device = persons.device.type
        with torch.autocast(device, enabled=False):  # 8 bits of precision would lose small motions
            x = self.input_norm(persons.reshape(B * T, N * C0)).view(B, T, N, C0)
            x = self.embedding(x)  # (B', T, N, C1)
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        for layer in self.stage1:
            x = layer(x, self._encoding(x)[:N], maps)

        # A token's position is its number; a focal joint keeps the number of the joint, regardless of its slot.
        branches, positions = [x], [torch.arange(N, device=x.device)]
        if self.config.focal_selection:
            joints, selected, scores = self.focal(x)  # (B', T, K, C), (B', T, K), (B', T, N)
            branches, positions = [joints], [selected]
            if maps is not None:
                maps.focal_joints, maps.focal_scores = maps.unfold_persons(selected), maps.unfold_persons(scores)
        if maps is not None:
            maps.stride = -(-T // x.shape[1])
        if self.config.part_branch:
            branches.append(self.parts(x))  # (B', T, P, C)
            positions.append(torch.arange(self.tokens[1], device=x.device))
        if self.config.shared_branches:
            positions = [torch.cat([position.expand(*x.shape[:2], -1) for position in positions], dim=-1)]
            branches = [torch.cat(branches, dim=2)]
        for layer in self.stage2:
            encoding = self._encoding(branches[0])
            branches = layer(branches, [encoding[position] for position in positions], maps)
            positions = [p[:, :: layer.stride] if p.dim() > 1 else p for p in positions]
        if self.config.final_norm:
            branches = [norm(x) for norm, x in zip(self.final_norm, branches, strict=True)]
        if self.config.shared_branches:
            branches = list(branches[0].split(self.tokens, dim=2))
        wide = torch.promote_types(branches[0].dtype, torch.float32)
        return torch.cat([branch.mean((1, 2), dtype=wide) for branch in branches], dim=-1)

    def _encoding(self, x: Tensor) -> Tensor:
        return self.get_buffer(f"encoding_{x.shape[-1]}").to(x.dtype)


def _halved(frames: int) -> int:
    return (frames + 1) // 2
