"""A skeleton of six joints, clips that a network of eight channels learns in seconds, and data sets made of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgst.data.dataset import ArrowDataset, Benchmark, Clip
from fgst.data.skeleton import Skeleton
from fgst.data.writer import write_dataset

if TYPE_CHECKING:  # fgst.config imports torch: a process that only writes a data set need not wait for it
    from fgst.config import TrialConfig

SKELETON = Skeleton(
    name="stick-6",
    joints=("hip", "spine", "head", "left_hand", "right_hand", "foot"),
    parents=(0, 0, 1, 1, 1, 0),
    centre=1,
    partitions=(((0, 1, 2), (3, 4), (5,)), ((0, 1, 2, 3, 4, 5),)),
)
POSE = np.array([[0, 0, 0], [0, 0.5, 0.1], [0, 1, 0], [-0.6, 0.5, 0.3], [0.6, 0.5, 0], [0.1, -1, 0.2]], np.float32)
CLASSES = ("left hand", "right hand", "foot")  # the class names the joint that moves
SUBJECTS = 6
# Metrics that no two runs have in common.
TIMINGS = ("minutes", "clips_per_second", "device_seconds", "peak_memory_gib", "cost", "model/latency_ms")
BENCHMARKS = (
    Benchmark("x-sub", "subject", train=(1, 2, 3, 4)),
    Benchmark("x-view", "camera", train=(1,), test=(2,)),
)


def motion_clips(count: int = 36, *, seed: int = 0) -> Iterator[Clip]:
    """Clips of 9 to 20 frames, every fifth of two persons; all subjects, cameras and classes in turn."""
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
    """The data set of :func:`motion_clips`, or of the clips given; ``changes`` replace arguments of write_dataset."""
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
    """A trial of a second or so; ``values`` by flat name with a double underscore for the dot: ``train__epochs=2``."""
    from fgst.config import DataConfig, ModelConfig, TrainConfig, TrialConfig

    model = ModelConfig(
        channels=(8, 8, 16, 16), stage1_layers=2, stage2_layers=2, focal_joints=4, parts=3, kernel_size=3
    )  # fmt: skip
    path = str(dataset.path if isinstance(dataset, ArrowDataset) else dataset)
    config = TrialConfig(model, DataConfig(dataset=path, frames=8), TrainConfig(epochs=4, repeat=1, batch_size=8))
    return config.with_values({name.replace("__", "."): value for name, value in values.items()})


def network(dataset: ArrowDataset, folder: Path, seed: int = 0, **values: Any) -> Path:
    """A network for a data set, as it is born; its folder."""
    import torch

    from fgst.config import resolve
    from fgst.data.loader import make_loaders
    from fgst.model.card import ModelCard
    from fgst.training.checkpoint import save_checkpoint

    config = resolve(small_config(dataset, **values), dataset)
    about = (dataset.max_persons, dataset.name, dataset.digest, dataset.preparation)
    card = ModelCard(config, dataset.skeleton, dataset.classes, *about)
    torch.manual_seed(seed)
    model = card.build()
    with torch.no_grad():
        for _ in range(3):  # so that the batch norms have seen something
            for batch in make_loaders(dataset, config.data, torch.device("cpu"))["train"].evaluation_batches():
                model.train()(batch.clips, batch.person_mask)
    return save_checkpoint(folder, 1, model.eval(), card, {"epoch": 1})


def start_python(
    script: str, *arguments: object, env_changes: dict[str, str] | None = None, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Run a script in a process of its own that finds this module and the package under test."""
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": here, "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment | (env_changes or {}),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when_told(process: subprocess.Popen[str], word: str) -> None:
    """Wait until the process prints ``word`` as a line, then SIGKILL it."""
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        for line in process.stdout:
            if line.strip() == word:
                break
        else:
            raise AssertionError(f"the process ended before it printed {word!r}:\n{process.stderr.read()}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
