"""Compare trainings on the same generated motion as different people record it: ``python -m benchmarks.own_data``.

Each variant changes the clips of the demo as a recording might, and prepares them as ``data_prep.custom`` does: far
from the camera, in millimetres, in pixels, padded, with persons in changing order. The settings are the same, so test
accuracies should differ only by noise, except for pixels, which lack the depth: the reference for them is the variant
"x and y only". Two variants show what the preparation prevents: "not centred" and "padding kept".

Each finished training is recorded as a line of ``--log``. The command skips recorded trainings, runs the missing ones
and prints the table: mean ± standard deviation over seeds, and the paired difference to the reference with half the
width of its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgst.config import PRESETS
from fgst.data.conversion import write_source
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.formats.custom import open_custom
from fgst.data.normalization import describe_removed
from fgst.data.skeletons import NTU_25
from fgst.data.synthetic import ACTIONS, demo_clips
from fgst.sweep.noise import student

CLASSES, CAMERA, WINDOW = 12, np.array([0.4, -0.3, 3.0], np.float32), 300


def far(joints: np.ndarray) -> np.ndarray:
    return joints + CAMERA


def pixels(joints: np.ndarray) -> np.ndarray:
    """Project onto an image of 1920 × 1080 pixels from 3 m: y points down, and depth is lost."""
    depth = joints[..., 2:] + CAMERA[2]
    return np.concatenate([960 + 1000 * joints[..., :1] / depth, 540 - 1000 * joints[..., 1:2] / depth], axis=-1)


def padded(joints: np.ndarray) -> np.ndarray:
    """Pad with zeros to two persons and 300 frames."""
    window = np.zeros((2, WINDOW, *joints.shape[2:]), np.float32)
    window[: len(joints), : joints.shape[1]] = far(joints)
    return window


def repeated(joints: np.ndarray) -> np.ndarray:
    return far(joints)[:, np.arange(WINDOW) % joints.shape[1]]


def shuffled(joints: np.ndarray) -> np.ndarray:
    """Let the persons change places in the array from frame to frame."""
    if len(joints) == 1:
        return np.concatenate([np.zeros_like(joints), far(joints)])
    order = np.random.default_rng(joints.shape[1]).integers(0, 2, joints.shape[1])
    return far(joints)[np.stack([order, 1 - order]), np.arange(joints.shape[1])]


# Name: how the clips are recorded, changes of the normalization, and the variant to compare with.
VARIANTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any], str]] = {
    "at the origin": (lambda joints: joints, {}, ""),
    "3 m from the camera": (far, {}, "at the origin"),
    "millimetres": (lambda joints: 1000 * far(joints), {}, "at the origin"),
    "padded to 300 frames": (padded, {}, "at the origin"),
    "repeated to 300 frames": (repeated, {}, "at the origin"),
    "persons in changing order": (shuffled, {}, "at the origin"),
    "x and y only": (lambda joints: joints[..., :2], {}, "at the origin"),
    "pixels": (pixels, {}, "x and y only"),
    "not centred, 3 m away": (far, {"centred": False}, "at the origin"),
    "padding kept, 300 frames": (padded, {"trimmed": False}, "at the origin"),
}


def prepare(folder: Path, name: str, clips: Sequence[Clip]) -> ArrowDataset:
    """Write the files of a variant and convert them as ``data_prep.custom`` does."""
    change, normalization, _ = VARIANTS[name]
    files = folder / "clips"
    files.mkdir(parents=True)
    with open(folder / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip_id", "label", "subject", "camera", "replication"])
        for clip in clips:
            np.save(files / f"{clip.clip_id}.npy", change(clip.joints))
            table.writerow([clip.clip_id, ACTIONS[clip.label].name, clip.subject, clip.camera, clip.replication])
    benchmark = "x-sub:subject=1,3,5,7,9"
    with open_custom(files, labels=folder / "labels.csv", skeleton=NTU_25, benchmarks=[benchmark]) as source:
        dataset, report = write_source(source, folder / "out", normalization=normalization)
    notes, removed = "; ".join(report.notes), ", ".join(describe_removed(report.removed))
    print(f"{name}: {notes or 'nothing noticed'}; removed: {removed or 'nothing'}", flush=True)
    return dataset


def train(dataset: ArrowDataset, seed: int, values: dict[str, Any]) -> dict[str, float]:
    """Train with all training clips; returns the metrics of the last epoch."""
    import torch

    from fgst.training import fit

    torch.set_num_threads(1)
    settings = {"train.seed": seed, "data.protocol": "paper", "train.epochs": 24, "train.precision": "bfloat16"}
    config = PRESETS["tiny"].with_values({"data.dataset": str(dataset.path)} | settings | values)
    metrics: dict[str, float] = {}
    for result in fit(config, dataset=dataset, device="cpu"):
        metrics = result.metrics
    return metrics


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Format the results as Markdown."""
    results: dict[str, dict[int, float]] = {}
    for line in lines:
        results.setdefault(line["name"], {})[line["seed"]] = line["test/top1"]
    rows = ["| recording | seeds | test top-1 % | compared with | difference |", "| --- | --- | --- | --- | --- |"]
    for name, (_, _, reference) in VARIANTS.items():
        if name not in results:
            continue
        values = list(results[name].values())
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells = [name, str(len(values)), f"{statistics.mean(values):.1f}{spread}", reference, ""]
        paired = sorted(set(results[name]) & set(results.get(reference, {})))
        if len(paired) > 1:
            differences = [results[name][seed] - results[reference][seed] for seed in paired]
            difference = student(differences)
            cells[-1] = f"{difference.mean:+.1f} ± {difference.half_width:.1f}"
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each variant; default: %(default)s")
    parser.add_argument("--clips", type=int, default=480, help="clips over all classes; default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=VARIANTS, help="these variants only")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a setting")
    parser.add_argument(
        "--log", default="checkpoints/own_data.jsonl", help="file of finished trainings; default: %(default)s"
    )
    options = parser.parse_args()
    values = dict(setting.split("=", 1) for setting in options.set)
    log = Path(options.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    key = json.dumps([options.clips, values], sort_keys=True)
    clips = list(demo_clips(options.clips, CLASSES, seed=0))

    def finished() -> list[dict[str, Any]]:
        return [line for line in map(json.loads, log.read_text().splitlines()) if line["key"] == key]

    for name in options.only or VARIANTS:
        missing = set(range(options.seeds)) - {line["seed"] for line in finished() if line["name"] == name}
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            dataset = prepare(Path(folder, "data"), name, clips)
            for seed in sorted(missing):
                start = time.perf_counter()
                metrics = train(dataset, seed, values)
                minutes = (time.perf_counter() - start) / 60
                line = {"key": key, "name": name, "seed": seed, **{k: round(v, 4) for k, v in metrics.items()}}
                with open(log, "a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{name:28} seed {seed}  test {metrics['test/top1']:5.1f} %  {minutes:.1f} min", flush=True)
    print(table(finished()))


if __name__ == "__main__":
    main()
