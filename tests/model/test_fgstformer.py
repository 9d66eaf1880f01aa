"""Properties of the network for any weights: selection, symmetries, absent persons, presets, invalid settings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fgst.config import PRESETS, ModelConfig
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.errors import InputError
from fgst.model import FGSTFormer
from tests.support.numerics import assert_close, tolerance

TINY: dict[str, Any] = {"channels": (8, 8, 16), "stage1_layers": 2, "stage2_layers": 1, "focal_joints": 6}


def tiny(seed: int = 0, *, frames: int = 9, skeleton: Skeleton = NW_UCLA_20, **changes: Any) -> FGSTFormer:
    torch.manual_seed(seed)
    return FGSTFormer(ModelConfig(**(TINY | changes)), skeleton, 5, frames=frames)


def clips_of(B: int, M: int = 1, T: int = 9, N: int = 20, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pose = torch.randn(B, M, 1, N, 3, generator=generator)
    return pose + 0.5 * torch.randn(B, M, T, N, 3, generator=generator)


def run_selection(model: FGSTFormer, clips: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the input and the outputs of the focal selection: features, selected features, indices, scores."""
    calls: list[Any] = []
    hook = model.focal.register_forward_hook(lambda _module, inputs, outputs: calls.append((*inputs, *outputs)))
    with torch.no_grad():
        model(clips)
    hook.remove()
    return calls[0]


def assert_outputs_close(actual: Tensor, expected: Tensor) -> None:
    """Assert that two evaluations of the network differ only by rounding, i.e. by the order of their sums.

    Sums have up to 2^8 terms, three layers have about 2^4 blocks and norms in sequence, and features have magnitude 1.
    """
    assert_close(actual, expected, terms=2**12, scale=max(1.0, float(expected.detach().abs().max())))


# --- the selection of focal joints ---


def gradient_of_projection(*, gate: bool) -> Tensor | None:
    model = tiny(focal_gate=gate)
    cross_entropy(model(clips_of(4)), torch.arange(4)).backward()
    return model.focal.projection.grad


def test_projection_has_gradient_with_gate() -> None:
    gradient = gradient_of_projection(gate=True)
    assert gradient is not None
    assert gradient.abs().max() > 1e-6


def test_projection_has_no_gradient_without_gate() -> None:
    gradient = gradient_of_projection(gate=False)
    assert gradient is None or not gradient.any()


def test_training_projection_changes_selection() -> None:
    model, clips, labels = tiny().eval(), clips_of(8), torch.arange(8) % 5
    before = run_selection(model, clips)[2]
    projection, losses = model.focal.projection, []
    for _ in range(10):
        loss = cross_entropy(model(clips), labels)
        (gradient,) = torch.autograd.grad(loss, [projection])
        with torch.no_grad():
            projection.sub_(20.0 * gradient)
        losses.append(float(loss.detach()))
    after = run_selection(model, clips)[2]
    assert (before != after).any()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("order", ["joint", "score"])
@pytest.mark.parametrize("K", [1, 6, 20])
def test_selection_contains_highest_scores_in_order(order: str, gate: bool, K: int) -> None:
    model = tiny(focal_order=order, focal_gate=gate, focal_joints=K).eval()
    features, selected, index, scores = run_selection(model, clips_of(3))
    projection = model.focal.projection
    assert_outputs_close(scores, torch.sigmoid((features * projection).sum(-1) / projection.square().sum().sqrt()))
    assert index.shape == (3, 9, K)
    steps = index.diff(dim=-1) if order == "joint" else -scores.gather(-1, index).diff(dim=-1)
    assert (steps > 0).all()
    lowest = scores.gather(-1, index).amin(-1)
    assert ((scores >= lowest[..., None]).sum(-1) == K).all()  # all other joints have lower scores
    for clip in range(3):
        for frame in range(9):
            for slot in range(K):
                joint = index[clip, frame, slot]
                factor = scores[clip, frame, joint] if gate else 1.0
                assert_outputs_close(selected[clip, frame, slot], features[clip, frame, joint] * factor)


def test_selection_is_invariant_to_projection_norm() -> None:
    model, clips = tiny().eval(), clips_of(2)
    with torch.no_grad():
        scores = model(clips)
        model.focal.projection.mul_(17)
        assert_outputs_close(model(clips), scores)


# --- symmetries and absent persons ---


@pytest.mark.parametrize("training", [False, True])
def test_scores_are_equivariant_to_clip_order(training: bool) -> None:
    model, clips, order = tiny().train(training), clips_of(5, 2), torch.tensor([3, 0, 4, 1, 2])
    clips[2, 1] = 0
    with torch.no_grad():
        assert_outputs_close(model(clips[order]), model(clips)[order])


@pytest.mark.parametrize("training", [False, True])
def test_scores_are_invariant_to_person_order(training: bool) -> None:
    model, clips = tiny().train(training), clips_of(4, 2)
    clips[1, 1] = 0  # after the swap, the first person is absent
    with torch.no_grad():
        assert_outputs_close(model(clips.flip(1)), model(clips))


@pytest.mark.parametrize("training", [False, True])
def test_absent_person_is_ignored(training: bool) -> None:
    model, clips = tiny().train(training), clips_of(4, 2)
    clips[:, 1] = 0
    with torch.no_grad():
        assert_outputs_close(model(clips), model(clips[:, :1]))


def test_present_persons_are_averaged_and_absent_ones_excluded_from_batch_statistics() -> None:
    model, clips = tiny().train(), clips_of(3, 2)
    clips[1, 1] = 0
    with torch.no_grad():
        scores = model(clips)
        a, b, c, d, e = model.features(torch.stack([clips[0, 0], clips[0, 1], clips[1, 0], clips[2, 0], clips[2, 1]]))
        assert_outputs_close(scores, model.head(torch.stack([(a + b) / 2, c, (d + e) / 2])))


@pytest.mark.parametrize("persons", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_empty_clip_has_finite_scores_and_gradients(persons: int, training: bool) -> None:
    model, clips = tiny().train(training), clips_of(3, persons)
    clips[1] = 0
    for batch in (clips, clips[1:2]):
        model.zero_grad()
        scores = model(batch)
        assert scores.isfinite().all()
        scores.sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_empty_clip_does_not_affect_other_clips() -> None:
    model, clips = tiny().eval(), clips_of(3, 2)
    with torch.no_grad():
        original = model(clips)
        clips[1] = 0
        with_empty = model(clips)
    assert_outputs_close(with_empty[[0, 2]], original[[0, 2]])
    assert (with_empty[1] - original[1]).abs().max() > 1e-6


def test_evaluation_does_not_depend_on_batch() -> None:
    model, clips = tiny().eval(), clips_of(4, 2)
    clips[2, 1] = 0
    with torch.no_grad():
        assert_outputs_close(torch.cat([model(clip[None]) for clip in clips]), model(clips))


# --- frames ---


def test_shorter_clips_have_scores_of_network_of_their_length() -> None:
    long, short, clips = tiny(frames=9).eval(), tiny(1, frames=4).eval(), clips_of(2, T=4)
    short.load_state_dict(long.state_dict())
    with torch.no_grad():
        assert_outputs_close(long(clips), short(clips))


def test_longer_clips_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"10 frames.* at most 9"):
        tiny(frames=9)(clips_of(2, T=10))


def test_frames_halve_where_width_doubles() -> None:
    model = tiny(frames=9, channels=(8, 16, 16, 32, 32), stage2_layers=3).eval()
    shapes: list[tuple[int, ...]] = []
    stage1: Any = model.stage1
    stage2: Any = model.stage2
    for temporal in (*(layer.temporal for layer in stage1), *(layer.temporal[0] for layer in stage2)):
        temporal.register_forward_hook(lambda _m, inputs, output: shapes.append((*inputs[0].shape, *output.shape)))
    with torch.no_grad():
        model(clips_of(2, T=9))
    frames_and_widths = [(shape[1], shape[3], shape[5], shape[7]) for shape in shapes]
    assert frames_and_widths == [(9, 8, 9, 8), (9, 8, 5, 16), (5, 16, 5, 16), (5, 16, 3, 32), (3, 32, 3, 32)]


# --- the paper's settings, presets, saved weights ---


def test_default_config_matches_paper() -> None:
    paper = {
        "channels": (64, 64, 128, 128, 256, 256, 256, 256),
        "stage1_layers": 6,
        "stage2_layers": 2,
        "focal_joints": 15,
        "parts": 10,
        "dilations": (1, 2),
        "kernel_size": 7,
        "spatial_heads": 3,
    }
    # Details that the paper leaves unspecified, or that cannot be implemented literally.
    choices = {"head_width": None, "focal_gate": True, "focal_order": "joint", "norm": "batch", "dropout": 0.0}
    choices |= {"final_norm": True}
    default = dataclasses.asdict(ModelConfig())
    assert {name: default[name] for name in paper | choices} == paper | choices


def test_paper_network_halves_frames_at_layers_three_and_five() -> None:
    model: Any = FGSTFormer(ModelConfig(), NTU_25, 60, frames=128)
    assert [layer.temporal.stride for layer in model.stage1] == [1, 1, 2, 1, 2, 1]
    assert [tuple(block.stride for block in layer.temporal) for layer in model.stage2] == [(1, 1), (1, 1)]
    assert model.head[-1].out_features == 60


def test_global_maps_are_initialized_to_averages() -> None:
    for name, parameter in tiny(parts=5).named_parameters():
        if "global_maps" in name:
            tokens = 20 if name.startswith("stage1") else 6 if ".spatial.0." in name else 5
            assert parameter.shape == (3, tokens, tokens)
            assert_outputs_close(parameter.detach(), torch.full_like(parameter, 1 / tokens))


def test_dropout_is_active_in_training_only() -> None:
    model, without_dropout, clips = tiny(dropout=0.5), tiny(), clips_of(3)
    without_dropout.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert_outputs_close(model.eval()(clips), without_dropout.eval()(clips))
        assert (model.train()(clips) - without_dropout.train()(clips)).abs().max() > 1e-3


def test_head_width_defaults_to_quarter_of_channels() -> None:
    assert [ModelConfig().spatial_head_width(C) for C in (64, 128, 256)] == [16, 32, 64]
    assert ModelConfig(head_width=20).spatial_head_width(256) == 20


# The biases of the convolutions have no effect, because the batch norm after them subtracts constants. (The rows of a
# softmax sum to 1, so that a constant in V is a constant in A V.) So has the bias of the shortcut if the last layer
# doubles the width, because the final norm follows it, as in preset demo.
INEFFECTIVE = re.compile(r".*\.tcn\.\d\.bias|stage2\.0\.temporal\.0\.shortcut\.bias")


def untrained_parameters(model: FGSTFormer) -> list[str]:
    """Return the names of parameters whose gradient is zero up to rounding; all gradients must exist and be finite."""
    largest = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        largest[name] = float(parameter.grad.abs().max())
    # A gradient is a sum of up to 2^12 terms (clips, persons, frames, joints) of the magnitude of other gradients.
    bound = tolerance(torch.float64, terms=2**12, scale=max(largest.values()))
    return [name for name, gradient in largest.items() if gradient <= bound]


@pytest.mark.parametrize("skeleton", [NTU_25, NW_UCLA_20], ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_all_parameters(preset: str, skeleton: Skeleton) -> None:
    torch.manual_seed(0)
    model = FGSTFormer(PRESETS[preset].model, skeleton, 10, frames=8)
    scores = model(clips_of(3, 2, 8, skeleton.num_joints))
    assert scores.shape == (3, 10)
    cross_entropy(scores, torch.arange(3)).backward()
    assert [name for name in untrained_parameters(model) if not INEFFECTIVE.fullmatch(name)] == []


def test_layer_norm_trains_all_parameters() -> None:
    model = tiny(norm="layer")
    cross_entropy(model(clips_of(3)), torch.arange(3)).backward()
    assert untrained_parameters(model) == []


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_weights_round_trip_through_safetensors(norm: str, tmp_path: Path) -> None:
    model, clips = tiny(0, norm=norm), clips_of(3, 2)
    with torch.no_grad():
        model(clips)  # updates the running statistics, which must be part of the state
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        other = tiny(1, norm=norm)
        assert (other.eval()(clips) - model.eval()(clips)).abs().max() > 1e-3
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        assert torch.equal(other(clips), model(clips))


# --- invalid configurations ---


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model.channels", {"channels": ()}),
        ("model.channels", {"channels": (8, 8)}),
        ("model.channels", {"channels": (8, 8, 4)}),
        ("model.channels", {"channels": (8, 8, 24)}),
        ("model.channels", {"channels": (8, 8, 12)}),
        ("model.channels", {"channels": (2, 2, 2), "dilations": (1,)}),
        ("model.channels", {"channels": (9, 9, 9)}),
        ("model.channels", {"dilations": (1, 2, 3)}),
        ("model.stage1_layers", {"stage1_layers": 0, "stage2_layers": 3}),
        ("model.stage2_layers", {"stage1_layers": 3, "stage2_layers": 0}),
        ("model.stage1_layers", {"stage1_layers": 3}),
        ("model.stage2_layers", {"stage2_layers": 2}),
        ("model.focal_joints", {"focal_joints": 0}),
        ("model.focal_joints", {"focal_joints": 21}),
        ("model.parts", {"parts": 0}),
        ("model.parts", {"parts": 7}),
        ("model.parts", {"parts": 25}),
        ("model.parts", {"parts": ()}),
        ("model.parts", {"parts": (NW_UCLA_20.joints[:19],)}),
        ("model.parts", {"parts": (NW_UCLA_20.joints, ("head",))}),
        ("model.parts", {"parts": (NW_UCLA_20.joints, ())}),
        ("model.parts", {"parts": (NW_UCLA_20.joints[:19], ("tail",))}),
        ("model.dilations", {"dilations": ()}),
        ("model.dilations", {"dilations": (1, 0)}),
        ("model.dilations", {"dilations": (-1, 2)}),
        ("model.kernel_size", {"kernel_size": 4}),
        ("model.kernel_size", {"kernel_size": -1}),
        ("model.spatial_heads", {"spatial_heads": 0}),
        ("model.head_width", {"head_width": 0}),
        ("model.focal_order", {"focal_order": "size"}),
        ("model.norm", {"norm": "group"}),
        ("model.dropout", {"dropout": 1.0}),
        ("model.dropout", {"dropout": -0.1}),
        ("model.dropout", {"dropout": float("nan")}),
    ],
)
def test_invalid_values_are_rejected_with_field_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=field):
        tiny(**changes)


@pytest.mark.parametrize(("num_classes", "frames"), [(0, 9), (5, 0)])
def test_network_requires_classes_and_frames(num_classes: int, frames: int) -> None:
    with pytest.raises(ValueError, match="num_classes and frames"):
        FGSTFormer(ModelConfig(**TINY), NW_UCLA_20, num_classes, frames=frames)
