"""Check that every preset trains at every usual learning rate, with both recipes: ``python -m benchmarks.stability``.

The clips are generated: motion in metres with the noise of a depth sensor, of which one class in ten shows two persons.
Ten of 60 classes occur, as in a part of NTU RGB+D. A training has the preset's schedule, with a warm-up of one epoch,
and ends after the first epochs of it, at almost the full rate. It diverged if its loss or gradient is not finite, or if
its last training loss is above ln 60 (guessing).

Each finished training is recorded as a line of ``--log``. The command skips recorded trainings, runs the missing ones,
highest learning rates first, and prints the table.

  python -m benchmarks.stability --presets tiny small                                        two presets
  python -m benchmarks.stability --presets paper --epochs 3 --set data.frames=16             fewer steps, shorter clips
  python -m benchmarks.stability --presets small --rates 0.05 --set model.final_norm=false   a setting switched off
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fgst.config import PRESETS, RECIPES
from fgst.data.dataset import ArrowDataset
from fgst.data.skeletons import NTU_25
from fgst.data.synthetic import ACTIONS, BENCHMARKS, demo_clips
from fgst.data.writer import write_dataset

RATES = (0.1, 0.05, 0.02, 0.005)
CLASSES, OCCURRING = 60, 10


def make_clips(out: Path, clips: int) -> ArrowDataset:
    """Write the data set: the actions of the demo, and names of classes that do not occur."""
    classes = [action.name for action in ACTIONS[:OCCURRING]]
    classes += [f"class {number} of {CLASSES}" for number in range(OCCURRING + 1, CLASSES + 1)]
    return write_dataset(
        out,
        demo_clips(clips, OCCURRING, seed=0),
        name="stability",
        skeleton=NTU_25,
        classes=classes,
        benchmarks=BENCHMARKS,
        recipe="ntu",
        source={"generated": True, "seed": 0},
        overwrite=True,
    )


def train(dataset: ArrowDataset, preset: str, epochs: int, values: dict[str, Any]) -> dict[str, Any]:
    """Train the first epochs of a preset with some settings changed.

    Returns:
        ``diverged``: the reason, or "" ; ``epochs``: number of completed epochs; ``loss``, ``top1`` and ``grad_norm``
        (median) of the last of them; ``grad_norm_max``, the largest of all epochs; ``val``, top-1 in %.
    """
    from fgst.errors import DivergedError
    from fgst.training import fit

    base = PRESETS[preset]
    common = {"data.dataset": str(dataset.path), "train.repeat": 1, "train.warmup": 1 / base.train.epochs}
    config = base.with_values(common | values)
    line: dict[str, Any] = {"diverged": "", "epochs": 0, "grad_norm_max": 0.0}
    try:
        for result in itertools.islice(fit(config, dataset=dataset, device="cpu"), epochs):
            metrics = result.metrics
            line |= {"epochs": result.epoch, "loss": metrics["train/loss"], "top1": metrics["train/top1"]}
            line |= {"val": metrics["val/top1"], "grad_norm": metrics["train/grad_norm"]}
            line["grad_norm_max"] = max(line["grad_norm_max"], metrics["train/grad_norm_max"])
    except DivergedError as error:
        line["diverged"] = str(error)
    else:
        if line["loss"] > math.log(CLASSES):
            line["diverged"] = f"the training loss is {line['loss']:.2f}"
    return line


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Format one row per preset, settings, recipe and rate: means over the seeds."""
    groups: dict[tuple[str, str, str, float], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["preset"], line["settings"], line["recipe"], line["lr"]), []).append(line)
    rows = [
        "| preset | settings | recipe | lr | diverged | training loss | top-1 % | validation top-1 % | gradient "
        "norm, median | largest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    order = list(PRESETS)
    for (preset, settings, recipe, lr), members in sorted(groups.items(), key=lambda g: (order.index(g[0][0]), g[0])):
        diverged = sum(bool(line["diverged"]) for line in members)
        ended = [line for line in members if not line["diverged"]]
        cells = [preset, settings, recipe, f"{lr:g}", f"{diverged} of {len(members)}"]
        for name, digits in (("loss", 2), ("top1", 0), ("val", 0), ("grad_norm", 1), ("grad_norm_max", 1)):
            cells.append(f"{statistics.mean(line[name] for line in ended):.{digits}f}" if ended else "")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default: %(default)s")
    parser.add_argument("--clips", type=int, default=1000, help="clips, of which 40 %% train; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of one pass; default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a setting")
    parser.add_argument("--log", default="checkpoints/stability.jsonl", help="finished trainings; default: %(default)s")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    log = Path(args.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(text) for text in log.read_text().splitlines()] if log.exists() else []
    recorded = {line["key"] for line in lines}
    settings = " ".join([f"{args.epochs} epochs", *args.set])
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_clips(Path(folder) / "clips", args.clips)
        for lr in sorted(args.rates, reverse=True):
            for seed in range(args.seeds):
                for preset in args.presets:
                    for recipe in args.recipes:
                        line = {"preset": preset, "settings": settings, "recipe": recipe, "lr": lr, "seed": seed}
                        key = json.dumps([*line.values(), args.clips])
                        if key in recorded:
                            continue
                        started = time.perf_counter()
                        values = {"data.recipe": recipe, "train.lr": lr, "train.seed": seed}
                        values |= dict(entry.split("=", 1) for entry in args.set)
                        line |= train(dataset, preset, args.epochs, values)
                        line |= {"key": key, "minutes": (time.perf_counter() - started) / 60}
                        with log.open("a") as file:
                            file.write(json.dumps(line) + "\n")
                        lines.append(line)
                        print(f"{key}: {line['diverged'] or line['loss']}, {line['minutes']:.1f} min", flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
