"""The network on a GPU: its scores and gradients agree with those on the CPU, and training is deterministic."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.model.small_networks import BFLOAT16_ROUNDINGS, VARIANTS, clips_of, gradients, relative_error, variant
from tests.support.numerics import assert_close, epsilon

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("name", VARIANTS)
def test_gpu_agrees_with_cpu(name: str) -> None:
    """In float64, with absent persons. The order of sums differs on the GPU."""
    on_cpu, on_gpu, clips = variant(name), variant(name).cuda(), clips_of(4, 2, 9, 20)
    if on_cpu.config.dropout:
        on_cpu.eval(), on_gpu.eval()
    labels = torch.arange(4)
    cpu_scores, gpu_scores = on_cpu(clips), on_gpu(clips.cuda())
    cross_entropy(cpu_scores, labels).backward()
    cross_entropy(gpu_scores, labels.cuda()).backward()
    # Gradients are sums over clips, persons, frames and joints (2^11 terms) of errors that the batch norms amplify.
    assert_close(gpu_scores, cpu_scores, terms=2**16)
    assert_close(gradients(on_gpu), gradients(on_cpu), terms=2**20)


def test_training_step_is_deterministic() -> None:
    """All operations of the network sum in a fixed order."""
    torch.set_default_dtype(torch.float32)
    steps = []
    for _ in range(3):
        model = variant("Table 1, C").cuda()
        cross_entropy(model(clips_of(16, 2, 9, 20).cuda()), (torch.arange(16) % 4).cuda()).backward()
        steps.append(gradients(model))
    assert torch.equal(steps[0], steps[1])
    assert torch.equal(steps[0], steps[2])


def test_bfloat16_agrees_with_float32() -> None:
    """All joints are selected, so that rounding cannot change the selection."""
    torch.set_default_dtype(torch.float32)
    model, clips = variant("Table 2, K=20").cuda().eval(), clips_of(8, 2, 9, 20).cuda()
    with torch.no_grad():
        scores = model(clips)
        with torch.autocast("cuda", torch.bfloat16):
            rounded = model(clips)
    assert relative_error(rounded, scores) < BFLOAT16_ROUNDINGS * epsilon(torch.bfloat16)
