"""``python -m fgst.model``: the summary agrees with the network, and the table shows all blocks."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fgst.cli.model import main
from fgst.config import PRESETS, ModelConfig
from fgst.data.skeletons import NW_UCLA_20
from fgst.errors import InputError
from fgst.model import FGSTFormer
from fgst.model.shapes import INPUT_SHAPES, InputShape
from fgst.model.summary import summarize
from tests.model.small_networks import SMALL, VARIANTS
from tests.support.small import write_small

SHAPE = InputShape("small", 1, 9, NW_UCLA_20, 4)


@pytest.mark.parametrize("name", ["Table 1, C", "Table 1, Basic-SFormer", "Table 3, TCN only", "shared branches"])
def test_sums_over_layers_equal_totals(name: str) -> None:
    config = ModelConfig(**(SMALL | VARIANTS[name]))
    summary = summarize(config, SHAPE)
    model = FGSTFormer(config, NW_UCLA_20, 4)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    layer_parameters = sum(layer.parameters for layer in summary.layers)
    assert layer_parameters == summary.parameters - sum(p.numel() for p in model.input_norm.parameters())
    assert sum(layer.flops for layer in summary.layers) == summary.flops


def test_flops_match_manual_count() -> None:
    """A network of TCNs and Basic-SFormers, which has few products."""
    T, N, C, H, d = 5, 20, 8, 3, 2
    config = ModelConfig(
        channels=(C, C), stage1_layers=1, stage2_layers=1, temporal="convolution", focal_selection=False,
        part_branch=False, cross_attention=False,
    )  # fmt: skip
    summary = summarize(config, dataclasses.replace(SHAPE, frames=T))
    flops = {layer.name: layer.flops for layer in summary.layers}
    assert flops["embedding"] == 2 * T * N * 3 * C
    assert flops["stage1.0.spatial"] == 2 * T * N * (C * 3 * H * d + 2 * H * N * d + H * d * C + C * C)
    # the count includes taps beyond the ends of the clip
    assert flops["stage1.0.temporal"] == 2 * T * N * (2 * 7 * C * (C // 2) + C * C)
    assert flops["head"] == 2 * (C * C + C * 4)


def reaching_frames(model: FGSTFormer, frame: int) -> set[int]:
    """Return the input frames that affect frame ``frame`` of the last layer."""
    features: list[torch.Tensor] = []
    model.stage2[-1].register_forward_hook(lambda _m, _i, output: features.append(output[0]))
    clips = torch.randn(1, 1, model.frames, 20, 3, requires_grad=True)
    model(clips)
    features[0][0, frame].sum().backward()
    assert clips.grad is not None
    return set(clips.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist())


def test_receptive_field_matches_gradient() -> None:
    config = ModelConfig(**(SMALL | {"temporal": "convolution", "kernel_size": 3, "dilations": (1, 2)}))
    summary = summarize(config, dataclasses.replace(SHAPE, frames=41))
    torch.manual_seed(0)
    model = FGSTFormer(config, NW_UCLA_20, 4, frames=41).eval()
    frames = reaching_frames(model, 10)
    assert max(frames) - min(frames) + 1 == summary.layers[-1].receptive_field == 1 + 3 * 4


def test_table_lists_all_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "tiny", "--dataset-shape", "nw-ucla"])
    out = capsys.readouterr().out
    for text in ("NW-UCLA: 1 person", "16 frames", "stage1.1.temporal", "JP-CA", "FG-TFormer", "(8, 15, 32)"):
        assert text in out
    torch.set_default_dtype(torch.float32)
    parameters = sum(p.numel() for p in FGSTFormer(PRESETS["tiny"].model, NW_UCLA_20, 10).parameters())
    assert f"{parameters:,}" in out


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", INPUT_SHAPES)
def test_presets_can_be_summarized_at_all_shapes(preset: str, shape: str) -> None:
    torch.set_default_dtype(torch.float32)
    config = PRESETS[preset]
    summary = summarize(config.model, dataclasses.replace(INPUT_SHAPES[shape], frames=8))
    assert summary.layers[-1].outputs == ((INPUT_SHAPES[shape].num_classes,),)
    assert min(summary.parameters, summary.flops) > 0


def test_input_shape_is_read_from_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small(tmp_path / "data")
    settings = ["--set", "model.focal_joints=4", "--set", "model.parts=3"]
    main(["--preset", "tiny", "--dataset", str(tmp_path / "data"), *settings])
    assert "small: 2 person(s), 16 frames, 6 joints, 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.focal_joints=26"], "model.focal_joints"),
        (["--set", "model.part_branch=false"], "model.cross_attention"),
        (["--set", "focal_joints"], "FIELD=VALUE"),
        (["--dataset", "/nowhere"], "/nowhere"),
    ],
)
def test_invalid_input_is_rejected(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(arguments)


def test_module_runs_as_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fgst.model", "--preset", "tiny"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "parameters" in result.stdout
