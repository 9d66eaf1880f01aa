"""The configuration of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fgst.config.checks import MAX_FRAMES, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, check_choices, require
from fgst.errors import InputError

if TYPE_CHECKING:
    from fgst.data.skeleton import Skeleton

Norm = Literal["batch", "layer"]
FocalOrder = Literal["joint", "score"]
Temporal = Literal["fg", "attention", "convolution"]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of the FG-STFormer; the defaults are the paper's (§4.2).

    Attributes:
        channels: C of each layer. A layer that doubles the width halves the number of frames in its FG-TFormer.
        stage1_layers: L1 (Table 4), number of layers over all joints.
        stage2_layers: L2 (Table 4), number of layers over focal joints and body parts.
        focal_selection: restrict stage 2 to the focal joints of each frame (Table 1, model A); otherwise stage 2
            processes all joints.
        focal_joints: K (Table 2), number of joints selected in each frame; ignored without ``focal_selection``.
        part_branch: add a second branch of body parts to stage 2 (Table 1, model B).
        cross_attention: add JP-CA between the two branches (Table 1, model C); requires ``part_branch``.
        shared_branches: use the same weights for both branches of stage 2; requires ``part_branch``.
        temporal: "fg" for the FG-TFormer, "attention" for the Basic-TFormer, "convolution" for the TCN alone (Table 3).
        parts: P, the number of body parts in one of the skeleton's partitions, or a custom partition by joint names.
        dilations: d_t of each temporal head, in frames; one entry per temporal head.
        kernel_size: k_t of the temporal convolutions, in frames; odd.
        spatial_heads: number of heads of Basic-SFormer and JP-CA.
        head_width: d of a spatial head; ``None`` means C // 4, as in DSTA-Net (Shi et al., 2020).
        global_map: add the learned map A_g to the attention maps of Basic-SFormer (Eq. 1).
        focal_gate: multiply the selected joints by their score, which gives W_p (Eq. 2) a gradient.
        focal_order: order of the selected joints, "joint" (by index) or "score" (by descending score, Eq. 3).
        norm: normalization after each output projection, "batch" or "layer".
        final_norm: also normalize the features of each branch before their average, which the last layers classify.
            Without it their scale grows with the number of layers, and high learning rates diverge.
        dropout: dropout probability, on each block's output and before the last layer.

    Raises:
        InputError: if a value or a combination of values is invalid; the message names the field.
    """

    channels: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256, 256)
    stage1_layers: int = 6
    stage2_layers: int = 2
    focal_selection: bool = True
    focal_joints: int = 15
    part_branch: bool = True
    cross_attention: bool = True
    shared_branches: bool = False
    temporal: Temporal = "fg"
    parts: int | tuple[tuple[str, ...], ...] = 10
    dilations: tuple[int, ...] = (1, 2)
    kernel_size: int = 7
    spatial_heads: int = 3
    head_width: int | None = None
    global_map: bool = True
    focal_gate: bool = True
    focal_order: FocalOrder = "joint"
    norm: Norm = "batch"
    final_norm: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_choices("model", self)
        self._check_layers()
        require(self.kernel_size % 2 == 1, f"model.kernel_size is {self.kernel_size}; it must be odd")
        for name in ("kernel_size", "spatial_heads", "focal_joints"):
            value = getattr(self, name)
            require(value >= 1, f"model.{name} is {value}; it must be at least 1")
        if self.head_width is not None:
            require(self.head_width >= 1, f"model.head_width is {self.head_width}; it must be at least 1")
        if isinstance(self.parts, int):
            require(self.parts >= 1, f"model.parts is {self.parts}; it must be at least 1")
        for name in ("cross_attention", "shared_branches"):
            require(
                self.part_branch or not getattr(self, name),
                f"model.{name} is on, but it needs two branches and model.part_branch is off; turn both off or both on",
            )
        for name, limit in (("spatial_heads", MAX_HEADS), ("head_width", MAX_WIDTH)):
            value = getattr(self, name) or 0
            require(value <= limit, f"model.{name} is {value}; it must be at most {limit}")
        reach = (self.kernel_size - 1) * max(self.dilations)
        require(
            reach <= MAX_FRAMES,
            f"model.kernel_size {self.kernel_size} and model.dilations reach over {reach} frames; the limit is "
            f"{MAX_FRAMES}",
        )
        require(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; it must be at least 0 and less than 1")

    def _check_layers(self) -> None:
        """Check that widths, layers and temporal heads are consistent."""
        require(len(self.channels) > 0, "model.channels is empty; it needs one width per layer")
        require(self.stage1_layers >= 1, f"model.stage1_layers is {self.stage1_layers}; it must be at least 1")
        require(self.stage2_layers >= 1, f"model.stage2_layers is {self.stage2_layers}; it must be at least 1")
        layers = self.stage1_layers + self.stage2_layers
        require(
            layers == len(self.channels),
            f"model.stage1_layers + model.stage2_layers is {self.stage1_layers} + {self.stage2_layers} = {layers}, "
            f"but model.channels has {len(self.channels)} entries, one per layer",
        )
        require(layers <= MAX_LAYERS, f"model.channels has {layers} entries; it must have at most {MAX_LAYERS}")
        require(bool(self.dilations), "model.dilations is empty; it needs one dilation per temporal head")
        require(
            len(self.dilations) <= MAX_HEADS,
            f"model.dilations has {len(self.dilations)} entries; it must have at most {MAX_HEADS}",
        )
        require(min(self.dilations) >= 1, f"model.dilations is {self.dilations}; each must be at least 1 frame")
        heads = len(self.dilations)
        for width in self.channels:
            require(width >= 4, f"model.channels contains {width}; a width must be at least 4")
            require(width <= MAX_WIDTH, f"model.channels contains {width}; a width must be at most {MAX_WIDTH}")
            require(
                width % heads == 0,
                f"model.channels contains {width}, which is not divisible by the {heads} temporal heads "
                "(model.dilations)",
            )
        for width, following in zip(self.channels, self.channels[1:], strict=False):
            require(
                following in (width, 2 * width),
                f"model.channels goes from {width} to {following}; a layer keeps the width or doubles it",
            )

    def check_skeleton(self, skeleton: Skeleton) -> None:
        """Check that K and P fit the skeleton.

        Raises:
            InputError: if they do not; the message names the field.
        """
        require(
            self.focal_joints <= skeleton.num_joints or not self.focal_selection,
            f"model.focal_joints is {self.focal_joints}, but skeleton {skeleton.name} has {skeleton.num_joints} "
            f"joints; e.g. --set model.focal_joints={-(-3 * skeleton.num_joints // 5)}",
        )
        if not self.part_branch:
            return
        try:
            skeleton.partition(self.parts)
        except ValueError as error:
            raise InputError(f"model.parts: {error}") from None

    def spatial_head_width(self, channels: int) -> int:
        """Return d, the width of a spatial head, in a block of ``channels`` channels."""
        return channels // 4 if self.head_width is None else self.head_width
