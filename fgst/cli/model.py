"""Print the layers of a network: output shapes, parameters, FLOPs and receptive field.

Examples:
  python -m fgst.model                                     the paper's network for NTU RGB+D clips
  python -m fgst.model --preset small --dataset-shape nw-ucla
  python -m fgst.model --set model.focal_joints=9 --set model.temporal=convolution
  python -m fgst.model --dataset datasets/mine             the shape of that data set's clips
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fgst.cli.command import CommandParser
from fgst.cli.options import add_override_option, read_overrides
from fgst.config import PRESETS, RECIPE_DEFAULTS, TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.model.shapes import INPUT_SHAPES, InputShape

if TYPE_CHECKING:
    from fgst.model.summary import ModelSummary


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.model", __doc__)
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), default="paper", help="settings to start from; default: %(default)s"
    )
    parser.add_argument(
        "--dataset-shape",
        choices=sorted(INPUT_SHAPES),
        default="ntu",
        help="use the clip shape of this public data set; default: %(default)s",
    )
    parser.add_argument("--dataset", metavar="DIR", help="use the clip shape of this prepared data set instead")
    add_override_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    config = PRESETS[args.preset].with_values(read_overrides(args.overrides))
    shape = INPUT_SHAPES[args.dataset_shape]
    if args.dataset:
        data = ArrowDataset(args.dataset)
        frames = RECIPE_DEFAULTS[config.data.recipe or data.recipe].frames
        shape = InputShape(data.name, data.max_persons, frames, data.skeleton, len(data.classes))
    if config.data.frames:
        shape = dataclasses.replace(shape, frames=config.data.frames)
    from fgst.model.summary import summarize  # lazy: torch takes seconds to import

    for line in format_summary(summarize(config.model, shape), config, shape):
        print(line)


def format_summary(summary: ModelSummary, config: TrialConfig, shape: InputShape) -> Iterator[str]:
    """Yield the table's lines."""
    joints, classes = shape.skeleton.num_joints, shape.num_classes
    yield f"{shape.name}: {shape.persons} person(s), {shape.frames} frames, {joints} joints, {classes} classes"
    yield f"{'layer':22}{'block':26}{'output per person (T, N, C)':32}{'parameters':>12}{'MFLOPs':>9}{'frames':>8}"
    for layer in summary.layers:
        outputs = " ".join("(" + ", ".join(map(str, output)) + ")" for output in layer.outputs)
        yield (
            f"{layer.name:22}{layer.block:26}{outputs:32}{layer.parameters:12,}{layer.flops / 1e6:9.1f}"
            f"{layer.receptive_field:8}"
        )
    yield f"{'total':22}{'':26}{'':32}{summary.parameters:12,}{summary.flops / 1e6:9.1f}"
    yield (
        f"{summary.parameters / 1e6:.2f} M parameters, {summary.flops / 1e9:.2f} GFLOPs per person, "
        f"{shape.persons * summary.flops / 1e9:.2f} GFLOPs per clip of {shape.persons}"
    )
    yield (
        "MFLOPs: matrix products and convolutions; a multiply-add counts as two. "
        "frames: receptive field of the convolutions"
        + ("." if config.model.temporal == "convolution" else "; attention over frames covers the whole clip.")
    )
