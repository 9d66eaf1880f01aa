"""The optimizers of a training, and what their state in a checkpoint looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from fgst.config import TrainConfig
from fgst.training.state import NUMBER, Exactly

# PyTorch's default of 0.999 averages over more steps than a short training has.
SECOND_MOMENT_DECAY = 0.99
MUON_MOMENTUM = 0.95  # PyTorch's default


class Optimizer:
    """One or two optimizers of PyTorch that share a learning rate.

    Args:
        parts: the optimizers, which have no parameter in common.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of all parameters."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Remove all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Update all parameters."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any] | list[dict[str, Any]]:
        """The state for a checkpoint: a dictionary, or a list of one for each of several optimizers."""
        states = [part.state_dict() for part in self.parts]
        return states[0] if len(states) == 1 else states

    def load_state_dict(self, state: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Invert :meth:`state_dict`."""
        states = cast(list[dict[str, Any]], [state] if len(self.parts) == 1 else state)
        for part, own in zip(self.parts, states, strict=True):
            part.load_state_dict(own)

    def expected_state(self, steps: int) -> dict[str, Any] | list[dict[str, Any]]:
        """Return what :func:`~fgst.training.state.check_like` expects of the state after this number of steps."""
        states = [_expected_state(part, steps) for part in self.parts]
        return states[0] if len(states) == 1 else states


def make_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """Return the optimizer of ``config`` for a network.

    SGD decays all weights, as public code of the field does. AdamW and Muon do not decay vectors, i.e. biases and the
    scales of norms. Muon (Jordan et al., 2024) is defined for matrices, so AdamW updates all other parameters; its
    update is scaled to the size of AdamW's, so that both use the same learning rate.
    """
    if config.optimizer == "sgd":
        return Optimizer(
            torch.optim.SGD(
                model.parameters(),
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.momentum > 0,
                weight_decay=config.weight_decay,
            )
        )
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        (matrices if config.optimizer == "muon" and parameter.ndim == 2 else others).append(parameter)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.momentum, SECOND_MOMENT_DECAY),
    )
    if not matrices:
        return Optimizer(adamw)
    muon = torch.optim.Muon(
        matrices,
        lr=config.lr,
        momentum=MUON_MOMENTUM,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return Optimizer(muon, adamw)


def _expected_state(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    """The hyper-parameters except the learning rate, which is set in each step, and what is kept for each parameter."""
    own = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if not parameter.requires_grad:
            continue
        like = parameter.detach()
        if isinstance(optimizer, torch.optim.AdamW):
            count = torch.tensor(float(steps), dtype=torch.float32)
            state[number] = {"step": Exactly(count), "exp_avg": like, "exp_avg_sq": like}
        elif optimizer.param_groups[0]["momentum"] > 0:
            state[number] = {"momentum_buffer": like}
    return {"state": state, "param_groups": [group | {"lr": NUMBER} for group in own["param_groups"]]}
