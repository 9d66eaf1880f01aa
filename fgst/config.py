"""What a trial is: frozen, checked configurations of the network, the data and the training.

A :class:`TrialConfig` says everything that decides a trial's figures, its seed included. Flattened
(``{"model.focal_joints": 15, …}``) it is the parameters of an MLflow run and the argument of ``--set``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from fgst.errors import InputError

if TYPE_CHECKING:
    from fgst.data.skeleton import Skeleton

Modality = Literal["joint", "bone", "joint_motion", "bone_motion"]
RecipeName = Literal["nw-ucla", "ntu"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)
NORMS = ("batch", "layer")
FOCAL_ORDERS = ("joint", "score")
TEMPORALS = ("fg", "attention", "convolution")
PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("step", "cosine")
PROTOCOLS = ("validation", "paper")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, f"{name} is {value!r}; it is one of {', '.join(known)}")


@dataclass(frozen=True)
class ModelConfig:
    """The FG-STFormer's shape; the default is the paper's (§4.2).

    Attributes:
        channels: width of each layer; where it doubles, that layer's FG-TFormer halves the frames.
        stage1_layers: L1 (Table 4), layers over all joints.
        stage2_layers: L2 (Table 4), layers over focal joints and body parts.
        focal_selection: stage 2 goes on with the focal joints of each frame (Table 1, model A); off, with all joints.
        focal_joints: K (Table 2), joints kept in each frame; says nothing where ``focal_selection`` is off.
        part_branch: stage 2 has a second branch, of body parts (Table 1, model B).
        cross_attention: JP-CA between the two branches (Table 1, model C); needs ``part_branch``.
        shared_branches: both branches of stage 2 go through the same weights; needs ``part_branch``.
        temporal: "fg" is the FG-TFormer; "attention" the Basic-TFormer, "convolution" the TCN only (Table 3).
        parts: P, a number of body parts that the skeleton knows, or a partition by joint names.
        dilations: d_t of each temporal head; their number is the number of temporal heads.
        kernel_size: k_t of the temporal convolutions, in frames.
        spatial_heads: heads of Basic-SFormer and JP-CA.
        head_width: d of a spatial head; ``None`` means C // 4, as in the work the block is taken from.
        focal_gate: multiply the kept joints by their score, so that W_p (Eq. 2) gets a gradient.
        focal_order: order of the kept joints: "joint" (by index) or "score" (Eq. 3).
        norm: "batch" or "layer", after each output projection.
        dropout: on each block's output and before the last layer.

    Raises:
        InputError: naming the field, if a value is impossible.
    """

    channels: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 256, 256)
    stage1_layers: int = 6
    stage2_layers: int = 2
    focal_selection: bool = True
    focal_joints: int = 15
    part_branch: bool = True
    cross_attention: bool = True
    shared_branches: bool = False
    temporal: str = "fg"
    parts: int | tuple[tuple[str, ...], ...] = 10
    dilations: tuple[int, ...] = (1, 2)
    kernel_size: int = 7
    spatial_heads: int = 3
    head_width: int | None = None
    focal_gate: bool = True
    focal_order: str = "joint"
    norm: str = "batch"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(len(self.channels) > 0, "model.channels is empty; it holds one width per layer")
        _require(self.stage1_layers >= 1, f"model.stage1_layers is {self.stage1_layers}; it must be at least 1")
        _require(self.stage2_layers >= 1, f"model.stage2_layers is {self.stage2_layers}; it must be at least 1")
        layers = self.stage1_layers + self.stage2_layers
        _require(
            layers == len(self.channels),
            f"model.stage1_layers + model.stage2_layers is {self.stage1_layers} + {self.stage2_layers} = {layers}, "
            f"but model.channels has {len(self.channels)} entries, one per layer",
        )
        _require(bool(self.dilations), "model.dilations is empty; it holds one dilation per temporal head")
        _require(min(self.dilations) >= 1, f"model.dilations is {self.dilations}; each must be at least 1 frame")
        heads = len(self.dilations)
        for width in self.channels:
            _require(width >= 4, f"model.channels holds {width}; a width must be at least 4")
            _require(
                width % heads == 0,
                f"model.channels holds {width}, which {heads} temporal heads (model.dilations) do not divide",
            )
        for width, following in zip(self.channels, self.channels[1:], strict=False):
            _require(
                following in (width, 2 * width),
                f"model.channels goes from {width} to {following}; a layer keeps the width or doubles it",
            )
        _require(self.kernel_size % 2 == 1, f"model.kernel_size is {self.kernel_size}; it must be odd")
        _require(self.kernel_size >= 1, f"model.kernel_size is {self.kernel_size}; it must be at least 1")
        _require(self.spatial_heads >= 1, f"model.spatial_heads is {self.spatial_heads}; it must be at least 1")
        if self.head_width is not None:
            _require(self.head_width >= 1, f"model.head_width is {self.head_width}; it must be at least 1")
        _require(self.focal_joints >= 1, f"model.focal_joints is {self.focal_joints}; it must be at least 1")
        if isinstance(self.parts, int):
            _require(self.parts >= 1, f"model.parts is {self.parts}; it must be at least 1")
        _one_of("model.focal_order", self.focal_order, FOCAL_ORDERS)
        _one_of("model.norm", self.norm, NORMS)
        _one_of("model.temporal", self.temporal, TEMPORALS)
        for name in ("cross_attention", "shared_branches"):
            _require(
                self.part_branch or not getattr(self, name),
                f"model.{name} is on, but it takes two branches and model.part_branch is off; turn both off or both on",
            )
        _require(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; it must be at least 0 and under 1")

    def check_skeleton(self, skeleton: Skeleton) -> None:
        """Raise :class:`InputError`, naming the field, if K or P does not fit the skeleton."""
        _require(
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

    def width_of_head(self, channels: int) -> int:
        """d of a spatial head in a block of that width."""
        return channels // 4 if self.head_width is None else self.head_width


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they become the network's input.

    Attributes:
        dataset: directory of the Arrow data set.
        benchmark: x-sub, x-view …, as the data set names them; ``None`` means its first.
        protocol: "validation" holds training subjects out for choosing between trials; "paper" trains on all
            training clips, as the paper's tables do.
        modality: joint, bone, joint_motion or bone_motion.
        recipe: sampling and augmentation, "nw-ucla" or "ntu"; ``None`` means the data set's own.
        frames: T of the network's input; ``None`` means the recipe's (52 or 128).
        validation: share of the training subjects that is held out.
        validation_seed: which ones; the same for all trials of a sweep, whatever their seed.
    """

    dataset: str = ""
    benchmark: str | None = None
    protocol: str = "validation"
    modality: str = "joint"
    recipe: str | None = None
    frames: int | None = None
    validation: float = 0.2
    validation_seed: int = 0

    def __post_init__(self) -> None:
        _one_of("data.protocol", self.protocol, PROTOCOLS)
        _one_of("data.modality", self.modality, MODALITIES)
        if self.recipe is not None:
            _one_of("data.recipe", self.recipe, RECIPES)
        if self.frames is not None:
            _require(self.frames >= 2, f"data.frames is {self.frames}; it must be at least 2")
        _require(0 < self.validation < 1, f"data.validation is {self.validation}; it must lie between 0 and 1")
        _require(self.validation_seed >= 0, f"data.validation_seed is {self.validation_seed}; it must not be negative")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation; the default is the paper's (§4.2).

    Attributes:
        epochs: of ``repeat`` passes over the training clips each.
        repeat: passes per epoch; ``None`` means the recipe's (5 for nw-ucla, 1 for ntu).
        batch_size: clips per step.
        lr: learning rate of SGD with Nesterov momentum, after the warm-up.
        momentum, weight_decay: of SGD.
        warmup: share of the epochs in which the rate rises linearly (the paper's 5 of 80).
        schedule: "step" multiplies the rate by ``decay_factor`` at each of ``decay_at``; "cosine" lets it fall to 0.
        decay_at: shares of the epochs (the paper's 50 and 70 of 80).
        decay_factor: of the step schedule.
        label_smoothing: of the cross-entropy.
        ema: decay of a moving average of the weights, which is then what is scored and kept; 0 is none.
        precision: of the training steps, "float32" or "bfloat16" (autocast; weights, optimiser and all scores stay
            float32). bfloat16 pays on GPUs, and on processors with AVX512-BF16 or AMX.
        seed: of the initial weights, the order of the clips and the augmentation.
    """

    epochs: int = 80
    repeat: int | None = None
    batch_size: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 5 / 80
    schedule: str = "step"
    decay_at: tuple[float, ...] = (50 / 80, 70 / 80)
    decay_factor: float = 0.1
    label_smoothing: float = 0.0
    ema: float = 0.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, f"train.epochs is {self.epochs}; it must be at least 1")
        if self.repeat is not None:
            _require(self.repeat >= 1, f"train.repeat is {self.repeat}; it must be at least 1")
        _require(self.batch_size >= 2, f"train.batch_size is {self.batch_size}; it must be at least 2")
        _require(self.lr > 0, f"train.lr is {self.lr}; it must be positive")
        _require(0 <= self.momentum < 1, f"train.momentum is {self.momentum}; it must be at least 0 and under 1")
        _require(self.weight_decay >= 0, f"train.weight_decay is {self.weight_decay}; it must not be negative")
        _require(0 <= self.warmup < 1, f"train.warmup is {self.warmup}; it must be at least 0 and under 1")
        _one_of("train.schedule", self.schedule, SCHEDULES)
        _require(
            all(0 < at < 1 for at in self.decay_at),
            f"train.decay_at is {self.decay_at}; each is a share of the epochs, between 0 and 1",
        )
        _require(self.decay_factor > 0, f"train.decay_factor is {self.decay_factor}; it must be positive")
        _require(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}; it must be at least 0 and under 1",
        )
        _require(0 <= self.ema < 1, f"train.ema is {self.ema}; it must be at least 0 and under 1")
        _one_of("train.precision", self.precision, PRECISIONS)
        _require(0 <= self.seed < 2**31, f"train.seed is {self.seed}; it must lie between 0 and 2147483647")


@dataclass(frozen=True)
class TrialConfig:
    """Everything that decides a trial's figures on a given machine."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def flat(self) -> dict[str, Any]:
        """``{"model.channels": …, "data.dataset": …, …}`` with JSON values (tuples as lists)."""
        sections = dataclasses.asdict(self)
        return {
            # A float that was given as 1 is 1.0: equal configurations are written, and digested, in one way.
            f"{section}.{name}": float(value) if _FIELD_TYPES[section][name] is float else json.loads(json.dumps(value))
            for section, fields in sections.items()
            for name, value in fields.items()
        }

    def with_values(self, values: Mapping[str, Any]) -> TrialConfig:
        """A copy with some fields changed, given by flat name; texts are read as the field's type.

        Raises:
            InputError: if there is no such field, or its value is of the wrong type or impossible.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, _, attribute = name.partition(".")
            kinds = _FIELD_TYPES.get(section, {})
            if attribute not in kinds:
                raise InputError(f"there is no setting {name!r}{_closest(name)}")
            changes.setdefault(section, {})[attribute] = _convert(name, value, kinds[attribute])
        return dataclasses.replace(
            self, **{s: dataclasses.replace(getattr(self, s), **fields) for s, fields in changes.items()}
        )

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> TrialConfig:
        """The inverse of :meth:`flat`; fields that are missing take their default."""
        return cls().with_values(values)

    def digest(self, *, without: tuple[str, ...] = ()) -> str:
        """SHA-256 in hex over the flat configuration, some fields left out."""
        values = {name: value for name, value in self.flat().items() if name not in without}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


_SECTIONS = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
_FIELD_TYPES: dict[str, dict[str, Any]] = {name: typing.get_type_hints(kind) for name, kind in _SECTIONS.items()}

# What validation chose (benchmarks/results/nw-ucla.md): the cosine beats the steps; nothing beat the paper's network.
_BEST_TRAINING = TrainConfig(lr=0.05, schedule="cosine", label_smoothing=0.1)
# The same network narrower and shorter, so that a CPU trains it in minutes.
_SMALL_TRAINING = dataclasses.replace(_BEST_TRAINING, epochs=16)
PRESETS: dict[str, TrialConfig] = {
    "paper": TrialConfig(),
    "best": TrialConfig(train=_BEST_TRAINING),
    "small": TrialConfig(
        ModelConfig(channels=(32, 32, 64, 64, 128, 128, 128, 128)), DataConfig(frames=32), _SMALL_TRAINING
    ),
    "tiny": TrialConfig(
        ModelConfig(channels=(16, 16, 32, 32), stage1_layers=2, stage2_layers=2), DataConfig(frames=16), _SMALL_TRAINING
    ),
}


def _closest(name: str) -> str:
    import difflib

    known = [f"{section}.{attribute}" for section, kinds in _FIELD_TYPES.items() for attribute in kinds]
    matches = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.endswith("." + name)]
    return f"; did you mean {matches[0]}?" if matches else f"; there are {', '.join(known)}"


def _convert(name: str, value: Any, kind: Any) -> Any:
    """``value`` as a field of type ``kind``: from JSON values, or from text as typed on a command line."""
    accepted = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if isinstance(value, str) and str not in accepted:
        value = _read_text(value)
    elif isinstance(value, str) and kind is not str and value.lower() in ("none", "null", ""):
        value = None
    for option in accepted:
        try:
            return _as(value, option)
        except (TypeError, ValueError, OverflowError):
            continue
    raise InputError(f"{name} is {_shortened(value)}; it takes {' or '.join(map(_in_words, accepted))}")


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a number beyond all bounds"
    return text if len(text) <= 80 else text[:77] + "..."


def _in_words(kind: Any) -> str:
    if kind is type(None):
        return "none"
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        return f"{element.__name__} values separated by commas" if element in (int, float) else "lists of names"
    return {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "text"}[kind.__name__]


def _read_text(text: str) -> Any:
    """Text from a command line as a JSON value: 12, 0.1, true, none, 1,2 or [1, 2]; otherwise the text itself."""
    if text.lower() in ("none", "null", ""):
        return None
    candidates = (text.lower() if text.lower() in ("true", "false") else text, f"[{text}]" if "," in text else text)
    for candidate in candidates:
        try:
            return json.loads(candidate)
        except ValueError:
            continue
    return text


def _as(value: Any, kind: Any) -> Any:
    if kind is type(None):
        if value is None:
            return None
    elif kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf"):
            return float(value)
    elif kind is str:
        if isinstance(value, str):
            return value
    elif typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        if isinstance(value, list | tuple):
            return tuple(_as(item, element) for item in value)
        if element in (int, float):
            return (_as(value, element),)  # one number stands for a tuple of one
    raise ValueError(value)
