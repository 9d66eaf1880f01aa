"""Each block, compared with a NumPy implementation of its equation at random shapes, and its gradients.

The NumPy implementations share only the parameter values with the network. They use whole arrays and einsum, with one
letter per axis: b clips, t and s frames, n and m tokens, h heads, c, e and d channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fgst.config import FocalOrder, ModelConfig, Norm
from fgst.model.attention import NormedLinear, attention_map, sine_encoding
from fgst.model.focal import FocalSelection, PartEmbedding
from fgst.model.spatial import BasicSFormer, JointPartCrossAttention
from fgst.model.temporal import FGTFormer
from tests.support.numerics import assert_close

deterministic = settings(derandomize=True, deadline=None, max_examples=12)
seeds = st.integers(0, 2**16)
small = st.integers(1, 4)
Weights = dict[str, np.ndarray]


def config(**changes: Any) -> ModelConfig:
    settings: dict[str, Any] = {"channels": (8, 8), "stage1_layers": 1, "stage2_layers": 1}
    return ModelConfig(**(settings | changes))


def randomized(module: nn.Module, seed: int) -> tuple[Any, Weights]:
    """Return the module in evaluation mode with random parameters and running statistics, and these as arrays."""
    torch.manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_().mul_(0.7)
            if name.endswith("norm.weight"):
                value.add_(1)
    return module.eval(), {name: value.numpy().copy() for name, value in module.state_dict().items()}


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(actual: Tensor, expected: np.ndarray) -> None:
    """Compare a block's output with that of its equation.

    Sums have at most 2^6 terms, and a layer norm over two nearly equal channels amplifies their errors by up to 2^7.
    Inputs and parameters have magnitude 1, which is therefore the smallest scale of a sum.
    """
    assert_close(actual, expected, terms=2**13, scale=max(1.0, float(np.abs(expected).max())))


# --- NumPy implementations ---


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + 0.01 * np.minimum(x, 0)


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Apply a linear layer, with a bias if the weights contain one."""
    return np.einsum("ec,...c->...e", w[f"{name}.weight"], x) + w.get(f"{name}.bias", 0)


def normed(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Apply a linear layer and its batch norm, in evaluation mode, or layer norm."""
    y, norm = linear(w, f"{name}.linear", x), f"{name}.norm"
    mean, variance = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
    if f"{norm}.running_mean" in w:
        mean, variance = w[f"{norm}.running_mean"], w[f"{norm}.running_var"]
    return (y - mean) / np.sqrt(variance + 1e-5) * w[f"{norm}.weight"] + w[f"{norm}.bias"]


def projected(w: Weights, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    """Compute Q, K and V, ``(3, b, t, h, n, d)``."""
    y = linear(w, f"{name}.qkv", x)
    return np.moveaxis(y.reshape(*y.shape[:-1], 3, heads, -1), (-3, -2), (0, 3))


def finished(w: Weights, name: str, x: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Apply W_O and the FFN, with norms and residuals, to the heads ``(b, t, h, n, d)``."""
    joined = np.concatenate(np.moveaxis(heads, 2, 0), axis=-1)  # (b, t, n, h·d)
    x = x + normed(w, f"{name}.out", joined)
    return x + leaky_relu(normed(w, f"{name}.ffn", x))


def equation_1(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Compute the attention map softmax(Q Kᵀ / √d)."""
    return softmax(np.einsum("...nd,...md->...nm", q, k) / np.sqrt(q.shape[-1]))


# --- attention map (Eq. 1), position encoding, norm ---


@deterministic
@given(small, small, small, small, seeds)
def test_attention_map_matches_equation(b: int, n: int, m: int, d: int, seed: int) -> None:
    q, k = 3 * random(seed, b, n, d), random(seed + 1, b, m, d)
    check(attention_map(q, k), equation_1(q.numpy(), k.numpy()))


@deterministic
@given(st.integers(1, 40), st.integers(1, 33))
def test_sine_encoding_matches_equation(positions: int, channels: int) -> None:
    position, channel = np.mgrid[:positions, :channels]
    angle = position / 10_000 ** ((channel - channel % 2) / channels)
    check(sine_encoding(positions, channels), np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)))


@pytest.mark.parametrize("norm", ["batch", "layer"])
@deterministic
@given(st.integers(2, 5), small, small, st.integers(2, 6), seeds)
def test_normed_linear_matches_equation(norm: Norm, rows: int, n: int, c: int, e: int, seed: int) -> None:
    module, w = randomized(NormedLinear(c, e, norm), seed)
    x = random(seed, rows, n, c)
    prefixed = {f"x.{name}": value for name, value in w.items()}
    check(module(x), normed(prefixed, "x", x.numpy()))
    if norm == "batch":
        assert "linear.bias" not in w
        y = linear(w, "linear", x.numpy()).reshape(-1, e)
        scale, shift = w["norm.weight"], w["norm.bias"]
        expected = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5) * scale + shift
        check(module.train()(x).reshape(-1, e), expected)
        check(module.norm.running_mean, 0.9 * w["norm.running_mean"] + 0.1 * y.mean(0))
        check(module.norm.running_var, 0.9 * w["norm.running_var"] + 0.1 * y.var(0, ddof=1))


# --- Basic-SFormer and JP-CA ---


@pytest.mark.parametrize("norm", ["batch", "layer"])
@deterministic
@given(small, small, st.lists(st.integers(1, 5), min_size=1, max_size=2), st.integers(2, 6), small, small, seeds)
def test_basic_sformer_matches_equation(
    norm: Norm, b: int, t: int, groups: list[int], c: int, h: int, d: int, seed: int
) -> None:
    """Fig. 3a. Two groups of tokens share the weights, but each token attends only to its own group."""
    block = BasicSFormer(c, tuple(groups), config(spatial_heads=h, head_width=d, norm=norm))
    module, w = randomized(block, seed)
    x, encoding = random(seed, b, t, sum(groups), c), random(seed + 1, sum(groups), c)
    qkv = projected(w, "projections", x.numpy() + encoding.numpy(), h)
    heads, maps, start = [], [], 0
    for number, size in enumerate(groups):
        q, k, v = qkv[..., start : start + size, :]
        maps.append(equation_1(q, k) + w[f"global_maps.{number}"])
        heads.append(np.einsum("bthnm,bthmd->bthnd", maps[-1], v))
        start += size
    returned_maps: list[Tensor] = []
    out = module(x, encoding, returned_maps)
    check(out, finished(w, "projections", x.numpy(), np.concatenate(heads, axis=3)))
    for actual, expected in zip(returned_maps, maps, strict=True):
        check(actual, expected)


@pytest.mark.parametrize("shared", [False, True])
@deterministic
@given(small, small, st.integers(1, 5), st.integers(1, 5), st.integers(2, 6), small, small, seeds)
def test_joint_part_cross_attention_matches_equation(
    shared: bool, b: int, t: int, K: int, P: int, c: int, h: int, d: int, seed: int
) -> None:
    """Eq. 4, in both directions from the same inputs, without a global map."""
    block = JointPartCrossAttention(c, (K, P), config(spatial_heads=h, head_width=d, shared_branches=shared))
    module, w = randomized(block, seed)
    inputs = [random(seed, b, t, K, c), random(seed + 1, b, t, P, c)]
    codes = [random(seed + 2, b, t, K, c), random(seed + 3, P, c)]
    names = ["projections.0", "projections.0" if shared else "projections.1"]
    (q_j, k_j, v_j), (q_p, k_p, v_p) = (
        projected(w, name, x.numpy() + code.numpy(), h) for name, x, code in zip(names, inputs, codes, strict=True)
    )
    maps = [equation_1(q_j, k_p), equation_1(q_p, k_j)]
    heads = [np.einsum("bthnm,bthmd->bthnd", a, v) for a, v in zip(maps, (v_p, v_j), strict=True)]
    expected = [finished(w, n, x.numpy(), y) for n, x, y in zip(names, inputs, heads, strict=True)]
    if shared:
        joined = torch.cat([code.expand(b, t, -1, -1) for code in codes], dim=2)
        inputs, codes, expected = [torch.cat(inputs, dim=2)], [joined], [np.concatenate(expected, axis=2)]
    returned_maps: list[Tensor] = []
    for output, expected_output in zip(module(inputs, codes, returned_maps), expected, strict=True):
        check(output, expected_output)
    for returned_map, expected_map in zip(returned_maps, maps, strict=True):
        check(returned_map, expected_map)


# --- focal joint selection (Eq. 2, 3) and part embedding ---


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("order", ["joint", "score"])
@deterministic
@given(small, small, st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), seeds)
def test_focal_selection_matches_equation(
    order: FocalOrder, gate: bool, b: int, t: int, n: int, K: int, c: int, seed: int
) -> None:
    K = min(K, n)
    module, w = randomized(FocalSelection(c, K, gate=gate, order=order), seed)
    x = random(seed, b, t, n, c)
    direction = w["projection"]
    scores = 1 / (1 + np.exp(-np.einsum("btnc,c->btn", x.numpy(), direction) / np.sqrt((direction**2).sum())))
    ranking = np.argsort(-scores, axis=-1)[..., :K]
    if order == "joint":
        ranking = np.sort(ranking, axis=-1)
    selected = np.take_along_axis(x.numpy(), ranking[..., None], axis=2)
    if gate:
        selected = selected * np.take_along_axis(scores, ranking, axis=-1)[..., None]
    features, index, returned_scores = module(x)
    check(features, selected)
    assert np.array_equal(index.numpy(), ranking)
    check(returned_scores, scores)


@deterministic
@given(small, small, st.lists(st.integers(1, 4), min_size=1, max_size=4), small, seeds)
def test_part_embedding_matches_equation(b: int, t: int, sizes: list[int], c: int, seed: int) -> None:
    """The joints of a part are concatenated in its order, padded with zeros, and share one linear layer."""
    N = sum(sizes)
    joints = np.random.default_rng(seed).permutation(N)
    partition = tuple(tuple(map(int, part)) for part in np.split(joints, np.cumsum(sizes)[:-1]))
    module, w = randomized(PartEmbedding(c, partition, N), seed)
    x = random(seed, b, t, N, c)
    expected = []
    for part in partition:
        padded = np.zeros((b, t, max(sizes) * c))
        padded[..., : len(part) * c] = x.numpy()[:, :, part].reshape(b, t, -1)
        expected.append(linear(w, "linear", padded))
    check(module(x), np.stack(expected, axis=2))


# --- FG-TFormer (Eq. 5) ---


@pytest.mark.parametrize("temporal", ["fg", "attention", "convolution"])
@deterministic
@given(
    small, st.integers(1, 9), small, st.integers(1, 3), st.booleans(), st.sampled_from([1, 3, 5]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3), seeds,
)  # fmt: skip
def test_fg_tformer_matches_equation(
    temporal: str, b: int, T: int, n: int, width: int, stride_2: bool, kernel: int, dilations: list[int], seed: int
) -> None:
    """head_h = (A_h V_h) W_h + V_h with V_h a dilated convolution, and the ablations of Table 3."""
    H = len(dilations)
    c = width * H
    e = 2 * c if stride_2 else c
    stride = 2 if stride_2 else 1
    block_config = config(channels=(4 * H, 4 * H), dilations=tuple(dilations), kernel_size=kernel, temporal=temporal)
    module, w = randomized(FGTFormer(c, e, T, block_config), seed)
    x = random(seed, b, T, n, c)
    code = sine_encoding(T, c).numpy()
    encoded = x.numpy() + code[:, None]
    strided = encoded[:, ::stride]
    d, frames = e // H, strided.shape[1]
    pieces: list[np.ndarray] = []
    if temporal != "convolution":
        rows = linear(w, "projection", strided).reshape(b, frames, n, -1, H, d)
        pieces = list(np.moveaxis(rows, 3, 0))  # each (b, t, n, h, d)
    heads, maps = [], []
    for number, dilation in enumerate(dilations):
        if temporal == "attention":
            values = pieces[2][..., number, :]
        else:
            reach = dilation * (kernel - 1) // 2
            padded = np.pad(encoded, ((0, 0), (reach, reach), (0, 0), (0, 0)))
            taps = w[f"tcn.{number}.weight"][..., 0]  # (d, c, k)
            values = w[f"tcn.{number}.bias"] + sum(
                np.einsum("dc,btnc->btnd", taps[..., k], padded[:, k * dilation : k * dilation + T][:, ::stride])
                for k in range(kernel)
            )
        if temporal == "convolution":
            heads.append(values)
            continue
        queries, keys = (np.moveaxis(piece[..., number, :], 2, 1) for piece in pieces[:2])  # (b, n, t, d)
        maps.append(equation_1(queries, keys))
        mixed = np.einsum("bnts,bsnd->btnd", maps[-1], values)
        heads.append(mixed if temporal == "attention" else linear(w, f"head_linear.{number}", mixed) + values)
    shortcut = x.numpy()[:, ::stride]
    if stride_2:
        shortcut = linear(w, "shortcut", shortcut)
    returned_maps: list[Tensor] = []
    out = module(x, returned_maps)
    check(out, leaky_relu(normed(w, "out", np.concatenate(heads, axis=-1))) + shortcut)
    if maps:
        check(returned_maps[0], np.stack(maps, axis=2))
    else:
        assert returned_maps == []


# --- gradients ---

BLOCKS: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "normed linear": (lambda: NormedLinear(3, 4, "batch"), [(5, 3)]),
    **{
        f"Basic-SFormer, {norm}": (
            lambda norm=norm: BasicSFormer(4, (3, 2), config(spatial_heads=2, head_width=2, norm=norm)),
            [(2, 2, 5, 4), (5, 4)],
        )
        for norm in ("batch", "layer")
    },
    "parts": (lambda: PartEmbedding(2, ((2, 0), (1,)), 3), [(2, 2, 3, 2)]),
    **{
        f"FG-TFormer, {temporal}, {out}": (
            lambda temporal=temporal, out=out: FGTFormer(
                4, out, 4, config(dilations=(1, 2), kernel_size=3, temporal=temporal, channels=(4, 4))
            ),
            [(2, 4, 2, 4)],
        )
        for temporal in ("fg", "attention", "convolution")
        for out in (4, 8)
    },
}


def check_gradients(module: nn.Module, shapes: list[tuple[int, ...]], call: Any) -> None:
    """Compare the gradients of inputs and parameters with finite differences, in training mode.

    The default tolerances of gradcheck apply: finite differences of step 1e-6 in float64 are accurate to about 1e-9.
    """
    names = [name for name, _ in module.named_parameters()]
    inputs = [random(number, *shape).requires_grad_() for number, shape in enumerate(shapes)]
    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def run(*values: Tensor) -> Any:
        arguments, weights = values[: len(inputs)], dict(zip(names, values[len(inputs) :], strict=True))
        # The forward pass updates running statistics in place: each evaluation gets a copy.
        state = weights | {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(module, state, call(arguments))

    assert torch.autograd.gradcheck(run, (*inputs, *parameters), fast_mode=False)


@pytest.mark.parametrize("block", BLOCKS)
def test_block_gradients_match_finite_differences(block: str) -> None:
    make, shapes = BLOCKS[block]
    module, _ = randomized(make(), 3)
    check_gradients(module.train(), shapes, tuple)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_cross_attention_gradients_match_finite_differences(norm: Norm) -> None:
    block = JointPartCrossAttention(4, (3, 2), config(spatial_heads=2, head_width=2, norm=norm))
    module, _ = randomized(block, 3)
    shapes = [(2, 2, 3, 4), (2, 2, 2, 4), (3, 4), (2, 4)]
    check_gradients(module.train(), shapes, lambda arguments: (list(arguments[:2]), list(arguments[2:])))


@pytest.mark.parametrize("order", ["joint", "score"])
def test_focal_selection_gradients_match_finite_differences(order: FocalOrder) -> None:
    """Scores differ by more than the step of the finite differences, which therefore do not change the selection."""

    class Selection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.focal = FocalSelection(3, 2, gate=True, order=order)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            selected, _, scores = self.focal(x)
            return selected, scores

    module, _ = randomized(Selection(), 3)
    x = random(0, 2, 2, 4, 3)
    _, _, scores = module.focal(x)
    assert scores.sort(dim=-1).values.diff(dim=-1).min() > 1e-4
    check_gradients(module, [(2, 2, 4, 3)], tuple)
