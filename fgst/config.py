"""The configuration of a trial: frozen, validated dataclasses for the network, the data and the training.

A :class:`TrialConfig` contains everything that determines a trial's results on a given machine, including its seed.
In flat form (``{"model.focal_joints": 15, …}``) it is what ``--set`` changes, what MLflow records as a run's
parameters, and what a checkpoint's ``config.json`` contains.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from fgst.errors import InputError
from fgst.field_values import alternatives, convert, field_types

if TYPE_CHECKING:
    from fgst.data.dataset import ArrowDataset
    from fgst.data.skeleton import Skeleton

Modality = Literal["joint", "bone", "joint_motion", "bone_motion"]
RecipeName = Literal["nw-ucla", "ntu"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)
SplitProtocol = Literal["validation", "paper"]
PROTOCOLS: tuple[SplitProtocol, ...] = get_args(SplitProtocol)
ValidationScheme = Literal["subject", "camera", "setup", "subject-camera", "clip"]
ValidationBy = Literal["auto", ValidationScheme]
Norm = Literal["batch", "layer"]
FocalOrder = Literal["joint", "score"]
Temporal = Literal["fg", "attention", "convolution"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["step", "cosine"]


@dataclass(frozen=True)
class Recipe:
    """Sampling defaults of a recipe; :mod:`fgst.data.loader` implements it.

    Attributes:
        frames: T, the number of frames in the network's input.
        repeat: passes over the training clips per epoch.
    """

    frames: int
    repeat: int


# Limits far beyond useful values: a damaged or hostile file must not exhaust time or memory before it is noticed.
MAX_LAYERS, MAX_HEADS, MAX_WIDTH, MAX_FRAMES = 256, 256, 16_384, 10_000

# Values of the fields that a configuration leaves at None.
RECIPE_DEFAULTS: dict[str, Recipe] = {"nw-ucla": Recipe(frames=52, repeat=5), "ntu": Recipe(frames=128, repeat=1)}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _check_choices(section: str, config: Any) -> None:
    """Require the value of every ``Literal`` field to be one of the literal's arguments."""
    config_type: Any = type(config)
    for name, annotation in field_types(config_type).items():
        value = getattr(config, name)
        for option in alternatives(annotation):
            if typing.get_origin(option) is Literal and value is not None:
                choices = get_args(option)
                _require(value in choices, f"{section}.{name} is {value!r}; it must be one of {', '.join(choices)}")


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
    focal_gate: bool = True
    focal_order: FocalOrder = "joint"
    norm: Norm = "batch"
    final_norm: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_choices("model", self)
        self._check_layers()
        _require(self.kernel_size % 2 == 1, f"model.kernel_size is {self.kernel_size}; it must be odd")
        for name in ("kernel_size", "spatial_heads", "focal_joints"):
            value = getattr(self, name)
            _require(value >= 1, f"model.{name} is {value}; it must be at least 1")
        if self.head_width is not None:
            _require(self.head_width >= 1, f"model.head_width is {self.head_width}; it must be at least 1")
        if isinstance(self.parts, int):
            _require(self.parts >= 1, f"model.parts is {self.parts}; it must be at least 1")
        for name in ("cross_attention", "shared_branches"):
            _require(
                self.part_branch or not getattr(self, name),
                f"model.{name} is on, but it needs two branches and model.part_branch is off; turn both off or both on",
            )
        for name, limit in (("spatial_heads", MAX_HEADS), ("head_width", MAX_WIDTH)):
            value = getattr(self, name) or 0
            _require(value <= limit, f"model.{name} is {value}; it must be at most {limit}")
        reach = (self.kernel_size - 1) * max(self.dilations)
        _require(
            reach <= MAX_FRAMES,
            f"model.kernel_size {self.kernel_size} and model.dilations reach over {reach} frames; the limit is "
            f"{MAX_FRAMES}",
        )
        _require(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; it must be at least 0 and less than 1")

    def _check_layers(self) -> None:
        """Check that widths, layers and temporal heads are consistent."""
        _require(len(self.channels) > 0, "model.channels is empty; it needs one width per layer")
        _require(self.stage1_layers >= 1, f"model.stage1_layers is {self.stage1_layers}; it must be at least 1")
        _require(self.stage2_layers >= 1, f"model.stage2_layers is {self.stage2_layers}; it must be at least 1")
        layers = self.stage1_layers + self.stage2_layers
        _require(
            layers == len(self.channels),
            f"model.stage1_layers + model.stage2_layers is {self.stage1_layers} + {self.stage2_layers} = {layers}, "
            f"but model.channels has {len(self.channels)} entries, one per layer",
        )
        _require(layers <= MAX_LAYERS, f"model.channels has {layers} entries; it must have at most {MAX_LAYERS}")
        _require(bool(self.dilations), "model.dilations is empty; it needs one dilation per temporal head")
        _require(
            len(self.dilations) <= MAX_HEADS,
            f"model.dilations has {len(self.dilations)} entries; it must have at most {MAX_HEADS}",
        )
        _require(min(self.dilations) >= 1, f"model.dilations is {self.dilations}; each must be at least 1 frame")
        heads = len(self.dilations)
        for width in self.channels:
            _require(width >= 4, f"model.channels contains {width}; a width must be at least 4")
            _require(width <= MAX_WIDTH, f"model.channels contains {width}; a width must be at most {MAX_WIDTH}")
            _require(
                width % heads == 0,
                f"model.channels contains {width}, which is not divisible by the {heads} temporal heads "
                "(model.dilations)",
            )
        for width, following in zip(self.channels, self.channels[1:], strict=False):
            _require(
                following in (width, 2 * width),
                f"model.channels goes from {width} to {following}; a layer keeps the width or doubles it",
            )

    def check_skeleton(self, skeleton: Skeleton) -> None:
        """Check that K and P fit the skeleton.

        Raises:
            InputError: if they do not; the message names the field.
        """
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

    def spatial_head_width(self, channels: int) -> int:
        """Return d, the width of a spatial head, in a block of ``channels`` channels."""
        return channels // 4 if self.head_width is None else self.head_width


@dataclass(frozen=True)
class DataConfig:
    """Selection of clips and their conversion to the network's input.

    Attributes:
        dataset: directory or URI of the Arrow data set; required for training.
        benchmark: name of one of the data set's benchmarks, e.g. x-sub or x-view; ``None`` means its first.
        protocol: "validation" holds out training clips for model selection; "paper" trains on all training clips, as
            the paper's tables do.
        modality: input modality, joint, bone, joint_motion or bone_motion.
        recipe: sampling and augmentation, "nw-ucla" or "ntu"; ``None`` means the data set's own.
        frames: T of the network's input; ``None`` means the recipe's (52 or 128).
        validation: fraction that is held out, of the training side's subjects, cameras, setups, pairs of subject and
            camera, or recordings, depending on ``validation_by``.
        validation_seed: seed that selects what is held out. It is separate from the trial's seed, so that all trials of
            a sweep hold out the same clips.
        validation_by: what is held out: "subject", "camera", "setup", "subject-camera" (one training camera each of
            some subjects), "clip" (recordings of each class), or "auto": what the benchmark asks.
        folds: number of folds into which the training side is divided; 0 holds out the fraction ``validation``
            instead.
        fold: the fold that is held out, from 0. The trials of a sweep hold out another one for each seed, from this one
            on.

    Raises:
        InputError: if a value is invalid; the message names the field.
    """

    dataset: str = ""
    benchmark: str | None = None
    protocol: SplitProtocol = "validation"
    modality: Modality = "joint"
    recipe: RecipeName | None = None
    frames: int | None = None
    validation: float = 0.2
    validation_seed: int = 0
    validation_by: ValidationBy = "auto"
    folds: int = 0
    fold: int = 0

    def __post_init__(self) -> None:
        _check_choices("data", self)
        if self.frames is not None:
            _require(
                2 <= self.frames <= MAX_FRAMES,
                f"data.frames is {self.frames}; it must be at least 2 and at most {MAX_FRAMES}",
            )
        _require(0 < self.validation < 1, f"data.validation is {self.validation}; it must be between 0 and 1")
        _require(self.validation_seed >= 0, f"data.validation_seed is {self.validation_seed}; it must not be negative")
        _require(
            self.folds == 0 or self.folds >= 2, f"data.folds is {self.folds}; it must be 0 (no folds) or at least 2"
        )
        _require(
            0 <= self.fold < max(1, self.folds),
            f"data.fold is {self.fold}; it must be at least 0 and less than data.folds, which is {self.folds}",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Optimization; the defaults are the paper's (§4.2).

    Attributes:
        epochs: number of epochs, each of ``repeat`` passes over the training clips.
        repeat: passes per epoch; ``None`` means the recipe's (5 for nw-ucla, 1 for ntu).
        batch_size: clips per step.
        lr: learning rate of SGD with Nesterov momentum, after the warm-up.
        momentum: Nesterov momentum of SGD.
        weight_decay: weight decay of SGD.
        warmup: fraction of the epochs in which the learning rate rises linearly (the paper's 5 of 80).
        schedule: "step" multiplies the learning rate by ``decay_factor`` at each point of ``decay_at``; "cosine"
            decays it to 0.
        decay_at: points of decay, as fractions of the epochs (the paper's 50 and 70 of 80).
        decay_factor: factor of the step schedule.
        clip_norm: largest norm of the gradient of all weights together; a longer gradient is shortened to it. 0
            disables it.
        label_smoothing: label smoothing of the cross-entropy.
        ema: decay of an exponential moving average of the weights, which is evaluated and saved instead of the weights
            themselves; 0 disables it.
        precision: precision of the training steps, "float32" or "bfloat16" (autocast; weights, optimizer state and all
            scores stay float32). bfloat16 is faster on GPUs and on many CPUs with AVX512-BF16 or AMX.
        seed: seed of the initial weights, the order of the clips and the augmentation.

    Raises:
        InputError: if a value is invalid; the message names the field.
    """

    epochs: int = 80
    repeat: int | None = None
    batch_size: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 5 / 80
    schedule: Schedule = "step"
    decay_at: tuple[float, ...] = (50 / 80, 70 / 80)
    decay_factor: float = 0.1
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_choices("train", self)
        _require(self.epochs >= 1, f"train.epochs is {self.epochs}; it must be at least 1")
        if self.repeat is not None:
            _require(self.repeat >= 1, f"train.repeat is {self.repeat}; it must be at least 1")
        _require(self.batch_size >= 2, f"train.batch_size is {self.batch_size}; it must be at least 2")
        _require(self.lr > 0, f"train.lr is {self.lr}; it must be positive")
        _require(self.weight_decay >= 0, f"train.weight_decay is {self.weight_decay}; it must not be negative")
        _require(self.clip_norm >= 0, f"train.clip_norm is {self.clip_norm}; it must not be negative")
        for name in ("momentum", "warmup", "label_smoothing", "ema"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"train.{name} is {value}; it must be at least 0 and less than 1")
        _require(
            all(0 < at < 1 for at in self.decay_at),
            f"train.decay_at is {self.decay_at}; each entry is a fraction of the epochs, between 0 and 1",
        )
        _require(self.decay_factor > 0, f"train.decay_factor is {self.decay_factor}; it must be positive")
        _require(0 <= self.seed < 2**31, f"train.seed is {self.seed}; it must be between 0 and 2147483647")


@dataclass(frozen=True)
class TrialConfig:
    """Everything that determines a trial's results on a given machine."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def flat(self) -> dict[str, Any]:
        """Return ``{"model.channels": …, "data.dataset": …, …}`` with JSON values (tuples as lists)."""
        sections = dataclasses.asdict(self)
        return {
            # A float given as 1 becomes 1.0, so that equal configurations have equal text and equal digests.
            f"{section}.{name}": float(value) if _FIELD_TYPES[section][name] is float else json.loads(json.dumps(value))
            for section, fields in sections.items()
            for name, value in fields.items()
        }

    def with_values(self, values: Mapping[str, Any]) -> TrialConfig:
        """Return a copy with some fields changed.

        Args:
            values: new values by flat name; a string is parsed as the field's type.

        Raises:
            InputError: if a field does not exist, or if its value has the wrong type or is invalid.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, _, attribute = name.partition(".")
            annotations = _FIELD_TYPES.get(section, {})
            if attribute not in annotations:
                raise InputError(f"unknown setting {name!r}{_suggestion(name)}")
            changes.setdefault(section, {})[attribute] = convert(name, value, annotations[attribute])
        return dataclasses.replace(
            self, **{s: dataclasses.replace(getattr(self, s), **fields) for s, fields in changes.items()}
        )

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> TrialConfig:
        """Invert :meth:`flat`; a missing field takes the value that is equivalent to versions without the field."""
        return cls().with_values({**_BEFORE_FIELD, **values})

    def digest(self, *, without: tuple[str, ...] = ()) -> str:
        """Return the SHA-256 of the flat configuration in hex, excluding the fields named in ``without``."""
        values = {name: value for name, value in self.flat().items() if name not in without}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def resolve(config: TrialConfig, dataset: ArrowDataset) -> TrialConfig:
    """Fill in the fields that the configuration leaves to the data set, and check that the network fits it.

    Idempotent: a configuration that is already resolved against ``dataset`` is returned unchanged.

    Raises:
        InputError: if the configuration does not fit the data set; the message names the field.
    """
    config.model.check_skeleton(dataset.skeleton)
    return resolve_data_defaults(config, dataset)


def resolve_data_defaults(config: TrialConfig, dataset: ArrowDataset) -> TrialConfig:
    """Fill in benchmark, validation scheme, recipe, frames, repeat and the data set's absolute location.

    Unlike :func:`resolve`, this does not check the network: the base configuration of a sweep need not fit the skeleton
    before the sweep has set its parameters.

    Raises:
        InputError: if the data set has no such benchmark.
    """
    recipe = config.data.recipe or dataset.recipe
    scheme = config.data.validation_by
    data = dataclasses.replace(
        config.data,
        dataset=dataset.location,
        benchmark=dataset.benchmark(config.data.benchmark or "").name,
        recipe=recipe,
        frames=config.data.frames or RECIPE_DEFAULTS[recipe].frames,
        validation_by=dataset.validation_scheme(config.data.benchmark or "") if scheme == "auto" else scheme,
    )
    train = dataclasses.replace(config.train, repeat=config.train.repeat or RECIPE_DEFAULTS[recipe].repeat)
    return dataclasses.replace(config, data=data, train=train)


# Values that are equivalent to versions without a field, where these are not the defaults. They apply to configurations
# in model cards and sweeps.
_BEFORE_FIELD = {"model.final_norm": False, "data.validation_by": "subject"}
_SECTIONS = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
_FIELD_TYPES: dict[str, dict[str, Any]] = {name: field_types(kind) for name, kind in _SECTIONS.items()}

# Chosen by validation (benchmarks/results/nw-ucla.md): cosine decay was better than steps, and no change of the network
# was better than the paper's.
_BEST_TRAINING = TrainConfig(lr=0.05, schedule="cosine", label_smoothing=0.1)
# The same training with fewer epochs, for the narrower networks that can be trained on a CPU.
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
    # For the generated motion: trained in seconds. Without the part branch, stage 2 sees nothing but the focal joints.
    "demo": TrialConfig(
        ModelConfig(
            channels=(16, 32),
            stage1_layers=1,
            stage2_layers=1,
            focal_joints=6,
            part_branch=False,
            cross_attention=False,
        ),
        DataConfig(frames=8, validation=0.4),
        dataclasses.replace(_BEST_TRAINING, lr=0.1, weight_decay=2e-3, epochs=4, repeat=4, batch_size=16),
    ),
}


def _suggestion(name: str) -> str:
    """Return the end of the message about an unknown setting: the closest name, or all names."""
    names = [f"{section}.{attribute}" for section, fields in _FIELD_TYPES.items() for attribute in fields]
    attribute = name.rpartition(".")[2]
    matches = [n for n in names if n.endswith("." + attribute)] or difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]}?" if matches else f"; the settings are {', '.join(names)}"
