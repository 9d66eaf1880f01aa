"""Compare choices that the paper leaves unspecified, on validation clips: ``python -m benchmarks.choices``.

Each variation changes one setting of the base and is trained with several seeds. Seed s also selects the clips that are
held out, so all variations are evaluated on the same ones. Test clips are not used.

Each finished training is recorded as a line of ``--log``. The command skips recorded trainings, runs the missing ones
and prints the table.

  python -m benchmarks.choices --dataset datasets/nw-ucla                         all variations, preset tiny
  python -m benchmarks.choices --preset small --epochs 6 --only base "ema 0.99"   a larger network, two variations
  python -m benchmarks.choices --vary wide=model.head_width=16,train.lr=0.1       a custom variation
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path
from typing import Any

from fgst.sweep.noise import student

VARIATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "focal_order score": {"model.focal_order": "score"},
    "focal_gate off": {"model.focal_gate": False},
    "norm layer": {"model.norm": "layer"},
    "head_width 8": {"model.head_width": 8},
    "head_width 16": {"model.head_width": 16},
    "shared_branches": {"model.shared_branches": True},
    "dropout 0.1": {"model.dropout": 0.1},
    "dropout 0.2": {"model.dropout": 0.2},
    "label_smoothing 0": {"train.label_smoothing": 0.0},
    "label_smoothing 0.2": {"train.label_smoothing": 0.2},
    "lr 0.02": {"train.lr": 0.02},
    "lr 0.1": {"train.lr": 0.1},
    "schedule step": {"train.schedule": "step"},
    "weight_decay 2e-3": {"train.weight_decay": 2e-3},
    "frames 32": {"data.frames": 32},
    "ema 0.99": {"train.ema": 0.99},
    "ema 0.999": {"train.ema": 0.999},
    "passes x2": {"train.repeat": 10},
}


def train(task: tuple[str, int, dict[str, Any], str, str, str]) -> None:
    """Train one variation with one seed and append its final validation metrics to the log."""
    name, seed, values, preset, key, log = task
    import torch

    torch.set_num_threads(1)
    from fgst.config import PRESETS
    from fgst.training import fit

    config = PRESETS[preset].with_values(values | {"train.seed": seed, "data.validation_seed": seed})
    start, metrics = time.perf_counter(), {}
    for result in fit(config, device="cpu"):
        metrics = result.metrics
    # Test metrics are not logged, so that no choice can be based on them.
    logged = {k: round(v, 4) for k, v in metrics.items() if not k.startswith("test/")}
    line = {"key": key, "name": name, "seed": seed, "minutes": (time.perf_counter() - start) / 60, "metrics": logged}
    with open(log, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{name:22} seed {seed}  val {logged['val/top1']:5.1f} %  {line['minutes']:.1f} min", flush=True)


def table(lines: list[dict[str, Any]]) -> str:
    """Format mean ± standard deviation over seeds, and the paired difference to the base with its 95 % interval."""
    metrics_by_seed: dict[str, dict[int, dict[str, float]]] = {}
    for line in lines:
        metrics_by_seed.setdefault(line["name"], {})[line["seed"]] = line["metrics"]
    base = metrics_by_seed.get("base", {})
    rows = [
        "| variation | n | val top-1 % | difference to base, 95 % | val loss | difference |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, seeds in metrics_by_seed.items():
        paired = sorted(set(seeds) & set(base)) if name != "base" else []
        cells = [name, str(len(seeds))]
        for metric in ("val/top1", "val/loss"):
            values = [m[metric] for m in seeds.values()]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
            differences = [seeds[s][metric] - base[s][metric] for s in paired]
            if len(differences) > 1:
                difference = student(differences)
                cells.append(f"{difference.mean:+.2f} ± {difference.half_width:.2f}")
            else:
                cells.append("")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="datasets/nw-ucla")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument(
        "--epochs", type=int, default=6, help="number of epochs, each of `repeat` passes; default: %(default)s"
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train these variations only")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=FIELD=VALUE,…", help="add a variation")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change the base configuration"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="number of parallel trainings with one thread each; default: all cores",
    )
    parser.add_argument(
        "--log", default="checkpoints/choices.jsonl", help="file of finished trainings; default: %(default)s"
    )
    options = parser.parse_args()

    variations = dict(VARIATIONS)
    for text in options.vary:
        name, _, settings = text.partition("=")
        variations[name] = dict(setting.split("=", 1) for setting in settings.split(","))
    names = options.only or list(variations)
    base = dict(setting.split("=", 1) for setting in options.set)
    base |= {"data.dataset": options.dataset, "train.epochs": options.epochs}
    base.setdefault("data.validation_by", "auto")  # lines without it are of trainings that held out subjects
    log = Path(options.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()

    def key(name: str) -> str:
        return json.dumps([options.preset, base | variations[name]], sort_keys=True)

    keys = {key(name): name for name in names}

    def finished() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        selected = [line | {"name": keys[line["key"]]} for line in lines if line["key"] in keys]
        return sorted(selected, key=lambda line: names.index(line["name"]))

    trained = {(line["name"], line["seed"]) for line in finished()}
    tasks = [
        (name, seed, base | variations[name], options.preset, key(name), str(log))
        for seed in range(options.seeds)
        for name in names
        if (name, seed) not in trained
    ]
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for _ in pool.imap_unordered(train, tasks):
            pass
    print(table(finished()))


if __name__ == "__main__":
    main()
