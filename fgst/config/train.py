"""The configuration of the optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fgst.config.checks import check_choices, require

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["step", "cosine"]
Optimizer = Literal["sgd", "adamw", "muon"]


@dataclass(frozen=True)
class TrainConfig:
    """Optimization; the defaults are the paper's (§4.2).

    Attributes:
        epochs: number of epochs, each of ``repeat`` passes over the training clips.
        repeat: passes per epoch; ``None`` means the recipe's (5 for nw-ucla, 1 for ntu).
        batch_size: clips per step.
        optimizer: "sgd" with Nesterov momentum, "adamw", or "muon" for the matrices and AdamW for all other parameters.
        lr: learning rate after the warm-up.
        momentum: Nesterov momentum of SGD; β1 of AdamW. Muon's is 0.95.
        weight_decay: weight decay. Except for SGD it is decoupled from the gradient (a weight loses the fraction
            lr × weight_decay in each step) and leaves out biases and norms.
        warmup: fraction of the epochs in which the learning rate rises linearly (the paper's 5 of 80).
        schedule: "step" multiplies the learning rate by ``decay_factor`` at each point of ``decay_at``; "cosine"
            decays it to 0.
        decay_at: points of decay, as fractions of the epochs (the paper's 50 and 70 of 80).
        decay_factor: factor of the step schedule.
        clip_norm: largest norm of the gradient of all weights together; a longer gradient is shortened to it. 0
            disables it.
        rotation_ramp: fraction of the epochs in which the range of the random rotations grows linearly to the recipe's;
            0 begins with the full range.
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
    optimizer: Optimizer = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 5 / 80
    schedule: Schedule = "step"
    decay_at: tuple[float, ...] = (50 / 80, 70 / 80)
    decay_factor: float = 0.1
    clip_norm: float = 0.0
    rotation_ramp: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices("train", self)
        require(self.epochs >= 1, f"train.epochs is {self.epochs}; it must be at least 1")
        if self.repeat is not None:
            require(self.repeat >= 1, f"train.repeat is {self.repeat}; it must be at least 1")
        require(self.batch_size >= 2, f"train.batch_size is {self.batch_size}; it must be at least 2")
        require(self.lr > 0, f"train.lr is {self.lr}; it must be positive")
        require(self.weight_decay >= 0, f"train.weight_decay is {self.weight_decay}; it must not be negative")
        require(self.clip_norm >= 0, f"train.clip_norm is {self.clip_norm}; it must not be negative")
        for name in ("momentum", "warmup", "label_smoothing", "ema"):
            value = getattr(self, name)
            require(0 <= value < 1, f"train.{name} is {value}; it must be at least 0 and less than 1")
        require(
            0 <= self.rotation_ramp <= 1, f"train.rotation_ramp is {self.rotation_ramp}; it must be between 0 and 1"
        )
        require(
            all(0 < at < 1 for at in self.decay_at),
            f"train.decay_at is {self.decay_at}; each entry is a fraction of the epochs, between 0 and 1",
        )
        require(self.decay_factor > 0, f"train.decay_factor is {self.decay_factor}; it must be positive")
        require(0 <= self.seed < 2**31, f"train.seed is {self.seed}; it must be between 0 and 2147483647")
