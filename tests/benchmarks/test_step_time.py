"""The step-time benchmark: equality of the networks, published cost of CTR-GCN, and products of the ceiling."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import step_time
from benchmarks.ctr_gcn import CTRGCN
from benchmarks.literal import LiteralFGSTFormer, literal_weights
from fgst.config import FocalOrder, ModelConfig
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.model import FGSTFormer
from tests.support.numerics import assert_close

SMALL = ModelConfig(channels=(8, 8, 16, 16), stage1_layers=2, stage2_layers=2, focal_joints=6)


@pytest.fixture
def _double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double_precision")
@pytest.mark.parametrize("order", ["joint", "score"])
@pytest.mark.parametrize("skeleton", [NW_UCLA_20, NTU_25], ids=lambda skeleton: skeleton.name)
def test_literal_network_matches_network(skeleton: Skeleton, order: FocalOrder) -> None:
    """Scores and gradients in training mode are equal."""
    torch.manual_seed(0)
    config = ModelConfig(channels=(8, 8, 16, 16), stage1_layers=2, stage2_layers=2, focal_joints=6, focal_order=order)
    model, literal = FGSTFormer(config, skeleton, 4, frames=9), LiteralFGSTFormer(config, skeleton, 4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    literal.load_state_dict(literal_weights(model))
    clips = torch.randn(3, 2, 9, skeleton.num_joints, 3)
    results = []
    for network in (model, literal):
        scores = network(clips)
        cross_entropy(scores, torch.arange(3)).backward()
        results.append((scores.detach(), network.embedding.weight.grad, network.input_norm.weight.grad))
    for actual, expected in zip(*results, strict=True):
        # Gradients are sums over clips, persons, frames and joints, 2^11 terms; scores and activations have fewer.
        assert_close(actual, expected, terms=2**13)


def test_ctr_gcn_has_published_cost() -> None:
    """1.43 M parameters and 1.51 GFLOPs per clip at T 64 and N 20, which are published with two decimals."""
    model, clips = CTRGCN(NW_UCLA_20, 10, persons=1), torch.randn(2, 1, 64, 20, 3)
    with FlopCounterMode(display=False) as counter:
        assert model(clips).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(1.43, abs=0.01)
    assert counter.get_total_flops() / 2 / 1e9 == pytest.approx(1.51, abs=0.01)


def test_ceiling_products_have_flops_of_training_step() -> None:
    """The FLOPs of the recorded products equal those of the forward and backward pass."""
    model, clips = FGSTFormer(SMALL, NW_UCLA_20, 4, frames=9), torch.randn(2, 1, 9, 20, 3)

    def step() -> None:
        cross_entropy(model(clips), torch.arange(2)).backward()

    calls = step_time.products_of(step)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = 0
    for (op, described, options), count in calls.items():
        operands = [step_time.make_operand(d, torch.device("cpu")) for d in described]
        with FlopCounterMode(display=False) as op_counter:
            op(*operands, **dict(options))
        flops += count * op_counter.get_total_flops()
    assert flops == counter.get_total_flops()
    assert step_time.time_products(calls, torch.device("cpu"), 1) > 0


def test_measure_prints_table(capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    shape = step_time.Shape("small", 2, 8, 2, NTU_25)
    step_time.measure(shape, SMALL, torch.device("cpu"), rounds=1)
    out = capsys.readouterr().out
    for word in ("fgst float32", "fgst bfloat16", "literal float32", "CTR-GCN float32", "ceiling bfloat16", "GFLOPs"):
        assert word in out
