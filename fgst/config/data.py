"""The configuration of the network's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fgst.config.checks import MAX_FRAMES, check_choices, require

Modality = Literal["joint", "bone", "joint_motion", "bone_motion"]
RecipeName = Literal["nw-ucla", "ntu"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)
SplitProtocol = Literal["validation", "paper"]
PROTOCOLS: tuple[SplitProtocol, ...] = get_args(SplitProtocol)
ValidationScheme = Literal["subject", "camera", "setup", "subject-camera", "clip"]
ValidationBy = Literal["auto", ValidationScheme]


@dataclass(frozen=True)
class Recipe:
    """Sampling defaults of a recipe; :mod:`fgst.data.loader` implements it.

    Attributes:
        frames: T, the number of frames in the network's input.
        repeat: passes over the training clips per epoch.
    """

    frames: int
    repeat: int


# Values of the fields that a configuration leaves at None.
RECIPE_DEFAULTS: dict[str, Recipe] = {"nw-ucla": Recipe(frames=52, repeat=5), "ntu": Recipe(frames=128, repeat=1)}


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
        check_choices("data", self)
        if self.frames is not None:
            require(
                2 <= self.frames <= MAX_FRAMES,
                f"data.frames is {self.frames}; it must be at least 2 and at most {MAX_FRAMES}",
            )
        require(0 < self.validation < 1, f"data.validation is {self.validation}; it must be between 0 and 1")
        require(self.validation_seed >= 0, f"data.validation_seed is {self.validation_seed}; it must not be negative")
        require(
            self.folds == 0 or self.folds >= 2, f"data.folds is {self.folds}; it must be 0 (no folds) or at least 2"
        )
        require(
            0 <= self.fold < max(1, self.folds),
            f"data.fold is {self.fold}; it must be at least 0 and less than data.folds, which is {self.folds}",
        )
