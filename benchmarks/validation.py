"""Compare what may be held out for validation, by how well it orders settings as the test clips do.

Each configuration is trained with every scheme and, with the same settings, on all training clips. A scheme is good if
the order of the configurations on its validation clips is that on the test clips of the trainings on all clips. Seed s
also selects what is held out. This benchmark looks at test clips in order to choose a scheme; it chooses no setting.

Each finished training is recorded as a line of ``--log``. The command skips recorded trainings, runs the missing ones
and prints the table.

  python -m benchmarks.validation --dataset datasets/nw-ucla                 20 configurations, preset tiny
  python -m benchmarks.validation --only base "K 5" --schemes subject clip   a part of them
  python -m benchmarks.validation --seeds 0                                  train nothing, print the table of the log
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "lr 0.01": {"train.lr": 0.01},
    "lr 0.1": {"train.lr": 0.1},
    "weight_decay 5e-3": {"train.weight_decay": 5e-3},
    "weight_decay 1e-4": {"train.weight_decay": 1e-4},
    "dropout 0.3": {"model.dropout": 0.3},
    "passes 5": {"train.epochs": 1},
    "passes 30": {"train.epochs": 6},
    "K 5": {"model.focal_joints": 5},
    "frames 32": {"data.frames": 32},
    "frames 8": {"data.frames": 8},
    "temporal attention": {"model.temporal": "attention"},
    "temporal convolution": {"model.temporal": "convolution"},
    "no part branch": {"model.part_branch": False, "model.cross_attention": False},
    "width 8": {"model.channels": [8, 8, 16, 16]},
    "width 24": {"model.channels": [24, 24, 48, 48]},
    "two layers": {"model.channels": [16, 32], "model.stage1_layers": 1, "model.stage2_layers": 1},
    "label_smoothing 0": {"train.label_smoothing": 0.0},
    "bone": {"data.modality": "bone"},
    "joint_motion": {"data.modality": "joint_motion"},
}
ALL_CLIPS = "none"  # the "scheme" of trainings on all training clips
SCHEMES = ("subject-camera", "subject", "clip", "camera")
EARLIER_NAMES = {"block": "subject-camera"}  # of schemes in logs
DRAWS = 2000  # of the bootstrap


def train(task: tuple[str, str, int, dict[str, Any], str, str]) -> None:
    """Train one configuration with one scheme and one seed, and append its last metrics to the log."""
    name, scheme, seed, values, preset, log = task
    import torch

    torch.set_num_threads(1)
    from fgst.config import PRESETS, resolve
    from fgst.data.dataset import ArrowDataset
    from fgst.training import fit

    held_out = {"data.protocol": "paper"} if scheme == ALL_CLIPS else {"data.validation_by": scheme}
    config = PRESETS[preset].with_values(values | held_out | {"train.seed": seed, "data.validation_seed": seed})
    dataset = ArrowDataset(config.data.dataset)
    splits = dataset.splits_for(resolve(config, dataset).data)
    started, metrics = time.perf_counter(), {}
    for result in fit(config, dataset=dataset, device="cpu"):
        metrics = result.metrics
    line = {"name": name, "method": scheme, "seed": seed, "n_train": len(splits.train), "n_val": len(splits.val)}
    line |= {metric: round(value, 4) for metric, value in metrics.items()}
    line |= {"key": make_key(preset, values), "minutes": round((time.perf_counter() - started) / 60, 4)}
    with open(log, "a") as file:
        file.write(json.dumps(line) + "\n")
    accuracy = "  ".join(f"{s} {metrics[f'{s}/top1']:5.1f} %" for s in ("val", "test") if f"{s}/top1" in metrics)
    print(f"{name:22}{scheme:16}seed {seed}  {accuracy}  {line['minutes']:.1f} min", flush=True)


def make_key(preset: str, values: dict[str, Any]) -> str:
    """Identify the settings of a training in the log; its location does not matter."""
    return json.dumps([preset, {k: v for k, v in values.items() if k != "data.dataset"}], sort_keys=True)


@dataclass(frozen=True)
class Estimate:
    """A statistic over configurations, and its 95 % interval from resampled configurations."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """How well a scheme's validation accuracy stands for the test accuracy of trainings on all clips.

    Attributes:
        scheme: what is held out.
        configurations: number of configurations that all schemes have.
        clips: mean number of validation clips.
        spearman, kendall: rank correlation of the configurations' validation and test accuracies (means over seeds).
        bias: mean of validation minus test accuracy, in points.
        spread: standard deviation of that difference over the configurations, in points.
        seed_std: standard deviation of the validation accuracy over seeds, within configurations; NaN for one seed.
        regret: test accuracy of the best configuration minus that of the one that validation chooses, in points.
    """

    scheme: str
    configurations: int
    clips: float
    spearman: Estimate
    kendall: Estimate
    bias: Estimate
    spread: Estimate
    seed_std: float
    regret: float


def analyse(lines: Iterable[dict[str, Any]]) -> list[Row]:
    """Compare the schemes of the log's lines on the configurations that have a training of each of them."""
    from scipy.stats import kendalltau, spearmanr  # lazy: SciPy takes a second to import

    trainings: dict[str, dict[str, list[dict[str, Any]]]] = {}  # by scheme and configuration
    for line in lines:
        scheme = EARLIER_NAMES.get(line["method"], line["method"])
        trainings.setdefault(scheme, {}).setdefault(line["name"], []).append(line)
    names = sorted(set.intersection(*map(set, trainings.values()))) if trainings else []
    if ALL_CLIPS not in trainings or len(names) < 3:
        return []
    test = np.array([statistics.fmean(line["test/top1"] for line in trainings[ALL_CLIPS][name]) for name in names])
    generator = np.random.default_rng(0)
    samples = generator.integers(len(names), size=(DRAWS, len(names)))  # the same ones for all schemes
    rows = []
    for scheme, by_name in trainings.items():
        if scheme == ALL_CLIPS:
            continue
        seeds = [[line["val/top1"] for line in by_name[name]] for name in names]
        val = np.array([statistics.fmean(values) for values in seeds])
        variances = [statistics.variance(values) for values in seeds if len(values) > 1]
        rows.append(
            Row(
                scheme,
                len(names),
                statistics.fmean(line["n_val"] for name in names for line in by_name[name]),
                _estimate(lambda v, t: float(spearmanr(v, t).statistic), val, test, samples),
                _estimate(lambda v, t: float(kendalltau(v, t).statistic), val, test, samples),
                _estimate(lambda v, t: float(np.mean(v - t)), val, test, samples),
                _estimate(lambda v, t: float(np.std(v - t, ddof=1)), val, test, samples),
                statistics.fmean(variances) ** 0.5 if variances else float("nan"),
                float(test.max() - test[val.argmax()]),
            )
        )
    return sorted(rows, key=lambda row: -row.spearman.value)


def _estimate(
    statistic: Callable[[np.ndarray, np.ndarray], float], val: np.ndarray, test: np.ndarray, samples: np.ndarray
) -> Estimate:
    """Compute a statistic and its percentile interval over samples of configurations, ``(draws, n)``.

    Samples of a single configuration have no rank correlation and are left out.
    """
    several = [sample for sample in samples if len(set(val[sample])) > 1 and len(set(test[sample])) > 1]
    low, high = np.percentile([statistic(val[sample], test[sample]) for sample in several], (2.5, 97.5))
    return Estimate(statistic(val, test), float(low), float(high))


def table(rows: Sequence[Row]) -> str:
    """Format the comparison as Markdown; intervals are 95 %."""
    lines = [
        "| held out | clips | Spearman's ρ | Kendall's τ | validation − test, points | its std over configurations | "
        "std over seeds | regret, points |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [row.scheme, f"{row.clips:.0f}"]
        for estimate, form in ((row.spearman, ".2f"), (row.kendall, ".2f"), (row.bias, "+.1f"), (row.spread, ".1f")):
            cells.append(f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})")
        cells += [f"{row.seed_std:.1f}", f"{row.regret:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="datasets/nw-ucla")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the base, of `repeat` passes; %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CONFIGURATIONS, help="these configurations only")
    parser.add_argument("--schemes", nargs="+", choices=(*SCHEMES, "setup"), default=SCHEMES)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change the base")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="parallel trainings of one thread each")
    parser.add_argument(
        "--log", default="checkpoints/validation.jsonl", help="file of finished trainings; default: %(default)s"
    )
    options = parser.parse_args()

    base = {"train.epochs": options.epochs, "train.precision": "bfloat16"}
    base |= dict(setting.split("=", 1) for setting in options.set) | {"data.dataset": options.dataset}
    keys = {name: make_key(options.preset, base | CONFIGURATIONS[name]) for name in options.only or CONFIGURATIONS}
    log = Path(options.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    schemes = [ALL_CLIPS, *options.schemes]

    def finished() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        lines = [line | {"method": EARLIER_NAMES.get(line["method"], line["method"])} for line in lines]
        selected = [line for line in lines if line["name"] in keys and line["method"] in schemes]
        # Lines without a key are those of the default settings.
        return [line for line in selected if line.get("key", keys[line["name"]]) == keys[line["name"]]]

    trained = {(line["name"], line["method"], line["seed"]) for line in finished()}
    tasks = [
        (name, scheme, seed, base | CONFIGURATIONS[name], options.preset, str(log))
        for seed in range(options.seeds)
        for name in keys
        for scheme in schemes
        if (name, scheme, seed) not in trained
    ]
    if tasks:
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")
        with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
            for _ in pool.imap_unordered(train, tasks):
                pass
    rows = analyse(finished())
    if rows:
        print(f"{rows[0].configurations} configurations\n\n{table(rows)}")
    else:
        print("a table needs at least three configurations that were trained with every scheme and on all clips")


if __name__ == "__main__":
    main()
