"""The curvature of the loss in the weights of the head, which limits the learning rate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fgst.config import PRESETS, ModelConfig
from fgst.data.skeletons import NTU_25
from fgst.model import FGSTFormer
from tests.model.small_networks import clips_of

# SGD with Nesterov momentum m oscillates with growing amplitude if lr · curvature > 2 (1 + m) / (1 + 2 m); m = 0.9.
LIMIT = 2 * (1 + 0.9) / (1 + 2 * 0.9)


def head_curvature(config: ModelConfig) -> float:
    """Return the largest eigenvalue of the Hessian of an untrained network's loss in its head, by power iteration."""
    torch.manual_seed(0)
    model = FGSTFormer(config, NTU_25, 60, frames=8)
    inputs: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
    with torch.no_grad():
        model(clips_of(16, 1, 8, 25))
    weights = list(model.head.parameters())
    loss = cross_entropy(model.head(inputs[0]), torch.arange(16) % 10)
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    vectors, curvature = [torch.randn_like(weight) for weight in weights], 0.0
    for _ in range(30):
        length = torch.stack([vector.square().sum() for vector in vectors]).sum().sqrt()
        vectors = [vector / length for vector in vectors]
        slope = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors, strict=True)]).sum()
        products = torch.autograd.grad(slope, weights, retain_graph=True)
        curvature = float(sum((p * v).sum() for p, v in zip(products, vectors, strict=True)))
        vectors = list(products)
    return curvature


@pytest.mark.parametrize("preset", PRESETS)
def test_curvature_of_head_allows_usual_learning_rates(preset: str) -> None:
    """With a margin, because the curvature grows in the first steps."""
    assert 0.1 * head_curvature(PRESETS[preset].model) < LIMIT / 4
