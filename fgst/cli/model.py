"""The layers of a network: output shapes, parameters, FLOPs, receptive field.

python -m fgst.model                                     the paper's network on NTU RGB+D clips
python -m fgst.model --preset small --dataset-shape nw-ucla
python -m fgst.model --set model.focal_joints=9 --set model.temporal=convolution
python -m fgst.model --dataset datasets/mine             clips as they come out of that data set
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgst.cli.command import CommandParser
from fgst.cli.options import add_override_option, read_overrides
from fgst.config import PRESETS, ModelConfig, TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.recipes import RECIPE_DEFAULTS
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton
from fgst.model.fgstformer import FGSTFormer
from fgst.model.temporal import FGTFormer


@dataclasses.dataclass(frozen=True)
class ClipShape:
    """What a network is made for: M persons, T frames, a skeleton of N joints, and how many classes."""

    name: str
    persons: int
    frames: int
    skeleton: Skeleton
    classes: int


SHAPES = {
    "ntu": ClipShape("NTU RGB+D 60", 2, 128, NTU_25, 60),
    "ntu120": ClipShape("NTU RGB+D 120", 2, 128, NTU_25, 120),
    "nw-ucla": ClipShape("NW-UCLA", 1, 52, NW_UCLA_20, 10),
}


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """A line of the table.

    Attributes:
        name: of the module, as in ``state_dict``.
        kind: its class.
        outputs: shapes of its outputs for one person, ``(T, N, C)``.
        parameters: number of trained values, those of the blocks within included.
        flops: floating-point operations for one person (a multiply-add is two), blocks within included.
        frames: clip frames that the convolutions up to here let a feature see; attention sees the whole clip.
    """

    name: str
    kind: str
    outputs: tuple[tuple[int, ...], ...]
    parameters: int
    flops: int
    frames: int


def layer_table(config: ModelConfig, shape: ClipShape) -> tuple[list[LayerRow], int, int]:
    """The blocks of a network in the order in which a clip meets them, and the whole network's parameters and FLOPs.

    The FLOPs of the whole are those of one person; they count matrix products and convolutions, nothing elementwise.
    """
    torch.manual_seed(0)
    model = FGSTFormer(config, shape.skeleton, shape.classes, frames=shape.frames).eval()
    shown = [name for name, module in model.named_modules() if _is_shown(name, module)]
    outputs: dict[str, tuple[tuple[int, ...], ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            del module, args
            tensors = [result] if isinstance(result, Tensor) else list(result)
            tensors = [t for t in tensors if t.is_floating_point() and (t.dim() == 4 or name == "head")]
            outputs[name] = tuple(tuple(t.shape[1:]) for t in tensors)

        return hook

    for name in shown:
        model.get_submodule(name).register_forward_hook(note(name))
    # Grad mode stays on: the counter tells modules apart by their gradients.
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 1, shape.frames, shape.skeleton.num_joints, 3))
    counts = counter.get_flop_counts()
    frames, step, seen = 1, 1, {}
    for name in shown:
        module = model.get_submodule(name)
        if name.endswith(("temporal", "temporal.0")):
            if config.temporal != "attention":
                frames += (config.kernel_size - 1) * max(config.dilations) * step
            seen[name] = frames
            assert isinstance(module, FGTFormer)
            step *= module.stride
        else:
            seen[name] = seen.get(name.replace("temporal.1", "temporal.0"), frames)
    rows = [
        LayerRow(
            name,
            type(model.get_submodule(name)).__name__,
            outputs[name],
            sum(p.numel() for p in model.get_submodule(name).parameters()),
            sum(counts.get(f"FGSTFormer.{name}", {}).values()),
            seen[name],
        )
        for name in shown
    ]
    return rows, sum(p.numel() for p in model.parameters()), counter.get_total_flops()


def _is_shown(name: str, module: nn.Module) -> bool:
    return name in ("embedding", "focal", "parts", "head") or type(module).__name__ in (
        "BasicSFormer",
        "JointPartCrossAttention",
        "FGTFormer",
    )


def describe(config: TrialConfig, shape: ClipShape) -> Iterator[str]:
    """The table as lines of text."""
    rows, parameters, flops = layer_table(config.model, shape)
    N = shape.skeleton.num_joints
    yield f"{shape.name}: {shape.persons} person(s), {shape.frames} frames, {N} joints, {shape.classes} classes"
    yield f"{'block':22}{'kind':26}{'output (T, N, C) a person':32}{'parameters':>12}{'MFLOPs':>9}{'frames':>8}"
    for row in rows:
        outputs = " ".join("(" + ", ".join(map(str, output)) + ")" for output in row.outputs)
        kind = {"JointPartCrossAttention": "JP-CA", "BasicSFormer": "Basic-SFormer", "FGTFormer": "FG-TFormer"}.get(
            row.kind, row.kind
        )
        if row.kind == "FGTFormer" and config.model.temporal != "fg":
            kind = {"attention": "Basic-TFormer", "convolution": "TCN only"}[config.model.temporal]
        yield f"{row.name:22}{kind:26}{outputs:32}{row.parameters:12,}{row.flops / 1e6:9.1f}{row.frames:8}"
    yield f"{'all':22}{'':26}{'':32}{parameters:12,}{flops / 1e6:9.1f}"
    yield (
        f"{parameters / 1e6:.2f} M parameters, {flops / 1e9:.2f} GFLOPs a person, "
        f"{shape.persons * flops / 1e9:.2f} a clip of {shape.persons}"
    )
    yield (
        "MFLOPs: matrix products and convolutions, a multiply-add is two · frames: receptive field of the convolutions"
        + ("" if config.model.temporal == "convolution" else "; the attention over frames sees the whole clip")
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = CommandParser("python -m fgst.model", __doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="paper", help="(default: %(default)s)")
    parser.add_argument("--dataset-shape", choices=sorted(SHAPES), default="ntu", help="(default: %(default)s)")
    parser.add_argument("--dataset", metavar="DIR", help="take the shape from this data set instead")
    add_override_option(parser)
    options = parser.parse_args(arguments)
    config = PRESETS[options.preset].with_values(read_overrides(options.overrides))
    shape = SHAPES[options.dataset_shape]
    if options.dataset:
        data = ArrowDataset(options.dataset)
        frames = RECIPE_DEFAULTS[data.recipe].frames
        shape = ClipShape(data.name, data.max_persons, frames, data.skeleton, len(data.classes))
    if config.data.frames:
        shape = dataclasses.replace(shape, frames=config.data.frames)
    for line in describe(config, shape):
        print(line)
