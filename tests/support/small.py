"""A skeleton with six joints, clips that an eight-channel network learns in seconds, and data sets of such clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgst.data.dataset import ArrowDataset, Benchmark, Clip
from fgst.data.skeleton import Skeleton
from fgst.data.writer import write_dataset

if TYPE_CHECKING:
    from fgst.config import TrialConfig

SKELETON = Skeleton(
    name="stick-6",
    joints=("hip", "spine", "head", "left_hand", "right_hand", "foot"),
    parents=(0, 0, 1, 1, 1, 0),
    centre=1,
    partitions=(((0, 1, 2), (3, 4), (5,)), ((0, 1, 2, 3, 4, 5),)),
)
POSE = np.array([[0, 0, 0], [0, 0.5, 0.1], [0, 1, 0], [-0.6, 0.5, 0.3], [0.6, 0.5, 0], [0.1, -1, 0.2]], np.float32)
CLASSES = ("left hand", "right hand", "foot")  # named after the joint that moves
SUBJECTS = 6
# Metrics that differ from run to run even if everything is seeded.
TIMINGS = ("minutes", "clips_per_second", "device_seconds", "peak_memory_gib", "cost", "model/latency_ms")
BENCHMARKS = (
    Benchmark("x-sub", "subject", train=(1, 2, 3, 4)),
    Benchmark("x-view", "camera", train=(1,), test=(2,)),
)


def motion_clips(count: int = 36, *, seed: int = 0) -> Iterator[Clip]:
    """Generate clips of 9 to 20 frames that cycle through all classes, subjects and cameras.

    Every fifth clip shows two persons.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        label = number % len(CLASSES)
        persons, frames = 1 + (number % 5 == 4), int(rng.integers(9, 21))
        joints = POSE + rng.normal(0, 0.02, (persons, frames, *POSE.shape)).astype(np.float32)
        wave = np.sin(np.linspace(0, 4 * np.pi, frames) + rng.uniform(0, 2 * np.pi))
        joints[:, :, 3 + label, 1] += wave.astype(np.float32)
        yield Clip(
            clip_id=f"clip-{number:03d}",
            label=label,
            joints=joints,
            subject=1 + number // len(CLASSES) % SUBJECTS,
            camera=1 + number % 2,
            setup=1 + number % 4,
            replication=1 + number // 20,
        )


def write_small(out: Path, clips: Any = None, **changes: Any) -> ArrowDataset:
    """Write a data set of the given clips, by default those of :func:`motion_clips`.

    Args:
        changes: arguments of :func:`~fgst.data.writer.write_dataset` that replace the defaults.
    """
    arguments: dict[str, Any] = {
        "name": "small",
        "skeleton": SKELETON,
        "classes": CLASSES,
        "benchmarks": BENCHMARKS,
        "recipe": "ntu",
        "source": {"made by": "a test"},
    }
    return write_dataset(out, motion_clips() if clips is None else clips, **(arguments | changes))


def small_config(dataset: ArrowDataset | Path, **values: Any) -> TrialConfig:
    """Return the configuration of a trial that takes about a second.

    Args:
        values: fields to change, with a double underscore instead of the dot: ``train__epochs=2``.
    """
    from fgst.config import DataConfig, ModelConfig, TrainConfig, TrialConfig

    model = ModelConfig(
        channels=(8, 8, 16, 16), stage1_layers=2, stage2_layers=2, focal_joints=4, parts=3, kernel_size=3
    )  # fmt: skip
    path = str(dataset.path if isinstance(dataset, ArrowDataset) else dataset)
    config = TrialConfig(model, DataConfig(dataset=path, frames=8), TrainConfig(epochs=4, repeat=1, batch_size=8))
    return config.with_values({name.replace("__", "."): value for name, value in values.items()})


def save_untrained_network(dataset: ArrowDataset, folder: Path, seed: int = 0, **values: Any) -> Path:
    """Save an untrained network whose batch norms have seen the data set; return the checkpoint's folder."""
    import torch

    from fgst.config import resolve
    from fgst.data.loader import make_loaders
    from fgst.model.card import ModelCard
    from fgst.training.checkpoint import save_checkpoint

    config = resolve(small_config(dataset, **values), dataset)
    card = ModelCard.describe(config, dataset)
    torch.manual_seed(seed)
    model = card.build()
    with torch.no_grad():
        for _ in range(3):  # moves the running statistics of the batch norms from 0 and 1 towards those of the data
            for batch in make_loaders(dataset, config.data, torch.device("cpu"))["train"].evaluation_batches():
                model.train()(batch.clips, batch.person_mask)
    return save_checkpoint(folder, 1, model.eval(), card, {"epoch": 1})
