"""``python -m fgst.model``: its figures are those of the network."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fgst.cli.model import SHAPES, ClipShape, layer_table, main
from fgst.config import PRESETS, ModelConfig
from fgst.data.skeleton import NW_UCLA_20
from fgst.errors import InputError
from fgst.model.fgstformer import FGSTFormer
from tests.model.test_variants import SMALL, VARIANTS
from tests.support.small import write_small

SHAPE = ClipShape("small", 1, 9, NW_UCLA_20, 4)


@pytest.mark.parametrize("name", ["Table 1, C", "Table 1, Basic-SFormer", "Table 3, TCN only", "shared branches"])
def test_blocks_add_up_to_the_network(name: str) -> None:
    config = ModelConfig(**(SMALL | VARIANTS[name]))
    rows, parameters, flops = layer_table(config, SHAPE)
    model = FGSTFormer(config, NW_UCLA_20, 4)
    assert parameters == sum(p.numel() for p in model.parameters())
    assert sum(row.parameters for row in rows) == parameters - sum(p.numel() for p in model.input_norm.parameters())
    assert sum(row.flops for row in rows) == flops


def test_flops_are_those_counted_by_hand() -> None:
    """TCN only, Basic-SFormer throughout, one frame kept: few enough products to write down."""
    T, N, C, H, d = 5, 20, 8, 3, 2
    config = ModelConfig(
        channels=(C, C), stage1_layers=1, stage2_layers=1, temporal="convolution", focal_selection=False,
        part_branch=False, cross_attention=False,
    )  # fmt: skip
    rows, _, _ = layer_table(config, dataclasses.replace(SHAPE, frames=T))
    flops = {row.name: row.flops for row in rows}
    assert flops["embedding"] == 2 * T * N * 3 * C
    assert flops["stage1.0.spatial"] == 2 * T * N * (C * 3 * H * d + 2 * H * N * d + H * d * C + C * C)
    # the counter takes taps beyond the ends of the clip for products too
    assert flops["stage1.0.temporal"] == 2 * T * N * (2 * 7 * C * (C // 2) + C * C)
    assert flops["head"] == 2 * (C * C + C * 4)


def far(model: FGSTFormer, frame: int) -> set[int]:
    """Which input frames reach feature frame ``frame`` before the averages."""
    seen: list[torch.Tensor] = []
    model.stage2[-1].register_forward_hook(lambda _m, _i, output: seen.append(output[0]))
    clips = torch.randn(1, 1, model.frames, 20, 3, requires_grad=True)
    model(clips)
    seen[0][0, frame].sum().backward()
    assert clips.grad is not None
    return set(clips.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist())


def test_the_receptive_field_is_what_a_gradient_reaches() -> None:
    config = ModelConfig(**(SMALL | {"temporal": "convolution", "kernel_size": 3, "dilations": (1, 2)}))
    rows, _, _ = layer_table(config, dataclasses.replace(SHAPE, frames=41))
    torch.manual_seed(0)
    model = FGSTFormer(config, NW_UCLA_20, 4, frames=41).eval()
    reached = far(model, 10)
    assert max(reached) - min(reached) + 1 == rows[-1].frames == 1 + 3 * 4


def test_output_names_every_block(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--preset", "tiny", "--dataset-shape", "nw-ucla"])
    out = capsys.readouterr().out
    for word in ("NW-UCLA: 1 person", "16 frames", "stage1.1.temporal", "JP-CA", "FG-TFormer", "(8, 15, 32)"):
        assert word in out
    torch.set_default_dtype(torch.float32)
    parameters = sum(p.numel() for p in FGSTFormer(PRESETS["tiny"].model, NW_UCLA_20, 10).parameters())
    assert f"{parameters:,}" in out


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_preset_has_a_table_at_every_shape(preset: str, shape: str) -> None:
    torch.set_default_dtype(torch.float32)
    config = PRESETS[preset]
    rows, parameters, flops = layer_table(config.model, dataclasses.replace(SHAPES[shape], frames=8))
    assert rows[-1].outputs == ((SHAPES[shape].classes,),)
    assert min(parameters, flops) > 0


def test_the_shape_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_small(tmp_path / "data")
    main(
        [
            "--preset",
            "tiny",
            "--dataset",
            str(tmp_path / "data"),
            "--set",
            "model.focal_joints=4",
            "--set",
            "model.parts=3",
        ]
    )
    assert "small: 2 person(s), 16 frames, 6 joints, 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--set", "model.focal_joints=26"], "model.focal_joints"),
        (["--set", "model.part_branch=false"], "model.cross_attention"),
        (["--set", "focal_joints"], "FIELD=VALUE"),
        (["--dataset", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_named(arguments: list[str], word: str) -> None:
    with pytest.raises(InputError, match=word):
        main(arguments)


def test_the_command(tmp_path: Path) -> None:
    command: list[Any] = [sys.executable, "-m", "fgst.model", "--preset", "tiny"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "parameters" in result.stdout
