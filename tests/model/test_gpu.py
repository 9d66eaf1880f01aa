"""The same network on a GPU: the same scores, gradients and selection as on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.model.test_variants import VARIANTS, clips_of, gradients, relative_error, variant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_agrees_with_the_cpu(name: str) -> None:
    """In float64, to 1e-9; with persons who are absent."""
    here, there, clips = variant(name), variant(name).cuda(), clips_of(4, 2, 9, 20)
    if here.config.dropout:
        here.eval(), there.eval()
    labels = torch.arange(4)
    scores, other = here(clips), there(clips.cuda())
    cross_entropy(scores, labels).backward()
    cross_entropy(other, labels.cuda()).backward()
    torch.testing.assert_close(other.cpu(), scores, rtol=0, atol=1e-9)
    torch.testing.assert_close(gradients(there).cpu(), gradients(here), rtol=0, atol=1e-9)


def test_a_training_step_repeats_to_the_bit() -> None:
    """No operation of the network adds up in an order of its own."""
    torch.set_default_dtype(torch.float32)
    found = []
    for _ in range(3):
        model = variant("Table 1, C").cuda()
        cross_entropy(model(clips_of(16, 2, 9, 20).cuda()), (torch.arange(16) % 4).cuda()).backward()
        found.append(gradients(model))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_bfloat16_agrees_with_float32() -> None:
    """Scores within 10 % of their spread, all joints kept."""
    torch.set_default_dtype(torch.float32)
    model, clips = variant("Table 2, K=20").cuda().eval(), clips_of(8, 2, 9, 20).cuda()
    with torch.no_grad():
        scores = model(clips)
        with torch.autocast("cuda", torch.bfloat16):
            rounded = model(clips)
    assert relative_error(rounded, scores) < 0.1
