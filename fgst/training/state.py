"""The content of a checkpoint's ``state.pt``, and the check that it is that of the training which reads it.

A state of the right kind with the wrong content would continue as another training: PyTorch accepts other
hyper-parameters, converts momentum of another type, and knows nothing of the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

NUMBER = object()
"""Stands for any finite number that is not negative in what :func:`check_like` expects."""
BYTES = object()
"""Stands for any vector of bytes in what :func:`check_like` expects."""


@dataclass(frozen=True)
class Exactly:
    """Stands for a tensor with the same values in what :func:`check_like` expects."""

    value: torch.Tensor


@dataclass
class PartialEpoch:
    """Accumulators of the epoch in progress, and the state of the random number generators at an interruption.

    Attributes:
        steps: completed steps.
        clips: clips in these steps.
        seconds: training time before the last interruption.
        loss_sum: sum of the loss over the clips, a scalar on the training's device.
        correct: number of correctly classified clips, a scalar on the training's device.
        grad_norms: norm of each step's gradient, scalars on the training's device.
        cpu_rng_state, device_rng_state: states of the generators for dropout; empty without an interruption or a GPU.
    """

    steps: int = 0
    clips: int = 0
    seconds: float = 0.0
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    correct: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    grad_norms: list[torch.Tensor] = field(default_factory=list)
    cpu_rng_state: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    device_rng_state: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def to_state(self, device: torch.device) -> dict[str, Any]:
        """Return the entry ``begun`` of ``state.pt``, with the current state of the random number generators."""
        on_gpu = device.type == "cuda"
        return {
            "steps": self.steps,
            "clips": self.clips,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum.cpu(),
            "correct": self.correct.cpu(),
            "grad_norms": torch.stack(self.grad_norms).cpu(),
            "random": torch.get_rng_state(),
            "random_of_device": torch.cuda.get_rng_state(device) if on_gpu else torch.empty(0, dtype=torch.uint8),
        }

    @classmethod
    def expected_state(cls, steps: int, clips: int, *, has_norms: bool = True) -> dict[str, Any]:
        """Return what :func:`check_like` expects of a state after these steps."""
        return {
            **({"grad_norms": torch.zeros(steps)} if has_norms else {}),
            "steps": steps,
            "clips": clips,
            "seconds": NUMBER,
            "loss_sum": torch.zeros(()),
            "correct": torch.zeros(()),
            "random": torch.get_rng_state(),
            "random_of_device": BYTES,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> PartialEpoch:
        """Invert :meth:`to_state`.

        Raises:
            ValueError: if the generators do not accept their states.
        """
        partial = cls(
            steps=state["steps"],
            clips=state["clips"],
            seconds=state["seconds"],
            loss_sum=state["loss_sum"],
            correct=state["correct"],
            grad_norms=list(state.get("grad_norms", ())),
            cpu_rng_state=state["random"],
            device_rng_state=state["random_of_device"],
        )
        try:
            torch.Generator().set_state(partial.cpu_rng_state)
            if device.type == "cuda" and len(partial.device_rng_state):
                torch.Generator(device).set_state(partial.device_rng_state)
        except RuntimeError as error:
            raise ValueError(f"begun.random is not the state of a generator ({error})") from None
        return partial

    def restore_rng(self, device: torch.device) -> None:
        """Restore the random number generators to their state at the interruption."""
        torch.set_rng_state(self.cpu_rng_state)
        if device.type == "cuda" and len(self.device_rng_state):
            torch.cuda.set_rng_state(self.device_rng_state, device)


def check_like(value: Any, expected: Any, name: str = "") -> None:
    """Check a value that was read from a file.

    Args:
        value: the value.
        expected: an example. Dictionaries must have the same keys, lists the same length, tensors the same type and
            shape; anything else must be equal, except where the example is :data:`NUMBER`, :data:`BYTES` or
            :class:`Exactly`.
        name: of the value, for the error message.

    Raises:
        ValueError: if it is not like the example; the message names the entry.
    """
    if expected is NUMBER:
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} is {_shown(value)}, not a finite number of 0 or more")
    elif expected is BYTES:
        _check_tensor(value, torch.uint8, None, name)
    elif isinstance(expected, Exactly):
        _check_tensor(value, expected.value.dtype, expected.value.shape, name)
        if not torch.equal(value, expected.value):
            raise ValueError(f"{name} is {value} instead of {expected.value}")
    elif isinstance(expected, torch.Tensor):
        _check_tensor(value, expected.dtype, expected.shape, name)
    elif isinstance(expected, dict):
        if type(value) is not dict and type(value).__name__ != "OrderedDict":
            raise ValueError(f"{name or 'the content'} is {_shown(value)}, not a dictionary")
        if value.keys() != expected.keys():
            key = [*(expected.keys() - value.keys()), *(value.keys() - expected.keys())][0]
            raise ValueError(f"{name or 'it'} has {'an unknown' if key in value else 'no'} entry {_shown(key)}")
        for key, inner in expected.items():
            check_like(value[key], inner, f"{name}.{key}".lstrip("."))
    elif isinstance(expected, list):
        if type(value) is not list or len(value) != len(expected):
            raise ValueError(f"{name} is {_shown(value)}, not a list of {len(expected)}")
        for number, inner in enumerate(expected):
            check_like(value[number], inner, f"{name}[{number}]")
    elif type(value) is not type(expected) or value != expected:
        raise ValueError(f"{name} is {_shown(value)} instead of {expected}")


def _check_tensor(value: Any, dtype: torch.dtype, shape: torch.Size | None, name: str) -> None:
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.device.type != "cpu":
        raise ValueError(f"{name} is {_shown(value)}, not a tensor")
    shape = value.shape[:1] if shape is None else shape
    if value.dtype != dtype or value.shape != shape:
        raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)} instead of {dtype} {tuple(shape)}")


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | None) else type(value).__name__
    return text if len(text) <= 80 and text.isprintable() else text[:80].encode("ascii", "backslashreplace").decode()
