"""Measure the throughput of augmented batches: ``python -m benchmarks.batches``.

The batches of ``fgst`` are compared with the usual way: a ``Dataset`` that reads and augments one clip at a time in
NumPy (vectorized over the frames of the clip), behind a ``DataLoader`` with two workers. Both follow the same recipe on
the same data set and are timed alternately in the same run. The benchmark also reports the time of a batch as a share
of a training step, and the memory of 1, 2 and 4 processes that read the same data set.

  python -m benchmarks.batches                                   generated data sets as large as NW-UCLA and NTU-60
  python -m benchmarks.batches --dataset datasets/nw-ucla        an existing data set
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fgst.config import PRESETS, RECIPE_DEFAULTS, DataConfig
from fgst.data.dataset import ArrowDataset, Benchmark, Clip
from fgst.data.loader import ClipLoader
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.data.writer import write_dataset
from fgst.model import FGSTFormer


@dataclass(frozen=True)
class Size:
    """Size of a data set.

    Attributes:
        clips: number of clips.
        mean_frames: mean number of frames of a clip.
        share_of_pairs: share of clips with two persons.
        classes: number of classes.
        batch_size: batch size of its trainings.
    """

    clips: int
    mean_frames: int
    share_of_pairs: float
    classes: int
    batch_size: int


SIZES = {"nw-ucla": Size(1_484, 40, 0.0, 10, 16), "ntu": Size(56_880, 84, 0.17, 60, 64)}


def generate(recipe: str, folder: Path, clips: int) -> ArrowDataset:
    """Write a data set of moving skeletons with the given number of clips, otherwise with the size of the real one."""
    size = SIZES[recipe]
    skeleton = NTU_25 if recipe == "ntu" else NW_UCLA_20
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 4 * size.mean_frames, skeleton.num_joints, 3)).astype(np.float32)

    def make_clips() -> Iterator[Clip]:
        for number in range(clips):
            frames = int(rng.integers(size.mean_frames // 2, size.mean_frames * 3 // 2))
            start = int(rng.integers(len(noise[0]) - frames))
            joints = noise[: 1 + (rng.random() < size.share_of_pairs), start : start + frames]
            yield Clip(f"clip-{number:06d}", number % size.classes, joints, subject=number % 40)

    return write_dataset(
        folder / recipe, make_clips(), name=f"generated, size of {recipe}", skeleton=skeleton, recipe=recipe, source={},
        classes=[str(c) for c in range(size.classes)], benchmarks=[Benchmark("x-sub", "subject", tuple(range(20)))],
    )  # fmt: skip


class PerClip(Dataset[tuple[np.ndarray, int]]):
    """A PyTorch ``Dataset`` that applies the recipes to one clip at a time."""

    def __init__(self, dataset: ArrowDataset) -> None:
        self.dataset, self.frames = dataset, RECIPE_DEFAULTS[dataset.recipe].frames

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        augment = self._nw_ucla if self.dataset.recipe == "nw-ucla" else self._ntu
        clip = augment(self.dataset.clip(row).copy())
        padded = np.zeros((self.dataset.max_persons, *clip.shape[1:]), np.float32)
        padded[: len(clip)] = clip
        return padded, int(self.dataset.columns["label"][row])

    def _nw_ucla(self, joints: np.ndarray) -> np.ndarray:
        joints = joints - joints[:1, :1, self.dataset.skeleton.centre, None]
        angles = np.random.uniform(-np.pi / 3, np.pi / 3, 2)
        joints = joints @ (_rotation(angles[0], 0) @ _rotation(angles[1], 1)).T
        low, high = joints.min((0, 1, 2)), joints.max((0, 1, 2))
        joints = (joints - low) / (high - low) * 2 - 1
        frames = np.sort(np.random.randint(0, joints.shape[1], self.frames))
        return joints[:, frames].astype(np.float32)

    def _ntu(self, joints: np.ndarray) -> np.ndarray:
        length = joints.shape[1]
        cropped = min(max(int(length * np.random.uniform(0.5, 1)), 64), length)
        start = np.random.randint(0, length - cropped + 1)
        position = np.clip((np.arange(self.frames) + 0.5) * cropped / self.frames - 0.5, 0, cropped - 1)
        before = position.astype(int)
        after = np.minimum(before + 1, cropped - 1)
        weight = (position - before)[:, None, None]
        joints = joints[:, start + before] * (1 - weight) + joints[:, start + after] * weight
        x, y, z = np.random.uniform(-0.3, 0.3, 3)
        return (joints @ (_rotation(z, 2) @ _rotation(y, 1) @ _rotation(x, 0)).T).astype(np.float32)


def _rotation(angle: float, axis: int) -> np.ndarray:
    """Return the matrix of a right-handed rotation about an axis, ``(3, 3)``."""
    c, s = np.cos(angle), np.sin(angle)
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix.T if axis == 1 else matrix


def clips_per_second(batches: Callable[[], Iterator[int]], seconds: float, device: torch.device) -> float:
    """Return the throughput, without the first batch, which includes the start of workers and cold caches.

    Args:
        batches: creates an iterator over the sizes of batches, which makes one batch for each size.
        seconds: duration of the measurement.
        device: device of the batches.
    """
    batch_sizes = batches()
    next(batch_sizes)
    clips, start = 0, time.perf_counter()
    for batch_size in batch_sizes:
        clips += batch_size
        if time.perf_counter() - start > seconds:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clips / (time.perf_counter() - start)


def step_seconds(dataset: ArrowDataset, batch_size: int, device: torch.device, steps: int) -> float:
    """Return the seconds of a training step of the paper's network, without making its batch; the fastest counts."""
    loader = ClipLoader(dataset, np.arange(len(dataset)), DataConfig(), device)
    batch = loader.batch(np.arange(batch_size), torch.Generator(device).manual_seed(0))
    model = FGSTFormer(PRESETS["paper"].model, dataset.skeleton, dataset.num_classes, frames=loader.frames).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    best = float("inf")
    for _ in range(steps):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(batch.clips, batch.person_mask).float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


READER = """
import sys
import numpy as np
from fgst.data.dataset import ArrowDataset
import torch
from fgst.data.loader import ClipLoader
from fgst.config import DataConfig
def memory():
    lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
    table = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    return table["Rss"], table["Pss"], table["Private_Clean"] + table["Private_Dirty"]
torch.set_num_threads(1)
before = memory()
dataset = ArrowDataset(sys.argv[1])
loader = ClipLoader(dataset, np.arange(len(dataset)), DataConfig(), torch.device("cpu"))
for batch in loader.evaluation_batches():
    pass
print("read", flush=True)
sys.stdin.readline()
after = memory()
print(*(end - start for end, start in zip(after, before)), flush=True)
sys.stdin.readline()
"""


def report_memory(dataset: ArrowDataset) -> None:
    """Print the memory of several processes that have read the whole data set, in excess of Python and PyTorch."""
    size = sum(file.stat().st_size for file in dataset.path.glob("*.arrow")) / 2**20
    print(f"memory in MiB of processes that have read all {size:,.0f} MiB of files, without Python and PyTorch:")
    print("processes   resident each   proportional each   private each   proportional, total")
    for count in (1, 2, 4):
        command = [sys.executable, "-c", READER, str(dataset.path)]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                assert process.stdout.readline() == "read\n"
            rows = []
            for process in processes:  # all of them have read the data set, and none has exited
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                rows.append([float(value) for value in process.stdout.readline().split()])
        finally:
            for process in processes:
                process.communicate("\n")
        rss, pss, private = np.mean(rows, axis=0)
        print(f"{count:9}{rss:16,.0f}{pss:20,.0f}{private:15,.0f}{pss * count:20,.0f}")


def compare(dataset: ArrowDataset, device: torch.device, options: argparse.Namespace) -> None:
    """Measure both ways alternately and print their throughput."""
    batch_size = SIZES[dataset.recipe].batch_size
    loader = ClipLoader(dataset, np.arange(len(dataset)), DataConfig(), device)
    generator = torch.Generator(device).manual_seed(0)

    def fgst_batches() -> Iterator[int]:
        while True:
            for batch in loader.training_batches(batch_size, 1, generator):
                yield len(batch.labels)

    def per_clip_batches() -> Iterator[int]:
        batches = DataLoader(PerClip(dataset), batch_size, shuffle=True, num_workers=2, persistent_workers=True)
        while True:
            for clips, labels in batches:
                clips.to(device)
                yield len(labels)

    per_clip, fgst = 0.0, 0.0
    for _ in range(options.rounds):
        per_clip = max(per_clip, clips_per_second(per_clip_batches, options.seconds, device))
        fgst = max(fgst, clips_per_second(fgst_batches, options.seconds, device))
    step = step_seconds(dataset, batch_size, device, options.steps)
    print(
        f"{dataset.name}: {len(dataset):,} clips, batches of {batch_size}, {device}, {torch.get_num_threads()} threads"
    )
    print(f"  per clip, 2 workers  {per_clip:10,.0f} clips/s")
    print(f"  fgst                 {fgst:10,.0f} clips/s   {fgst / per_clip:.1f} times")
    share = batch_size / fgst / step
    print(f"  share of a step of the paper's network (bfloat16, {1e3 * step:,.0f} ms): {share:.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="data set to use instead of the generated ones")
    parser.add_argument(
        "--clips", type=int, help="number of clips of each generated data set; default: that of the real one"
    )
    parser.add_argument("--seconds", type=float, default=5, help="duration of a measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="report the best round (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="report the best training step (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="number of CPU threads; default: all cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    devices = [torch.device("cpu")] + ([torch.device(options.device)] if options.device != "cpu" else [])
    with tempfile.TemporaryDirectory() as folder:
        datasets = (
            [ArrowDataset(options.dataset)]
            if options.dataset
            else [generate(recipe, Path(folder), options.clips or size.clips) for recipe, size in SIZES.items()]
        )
        for dataset in datasets:
            for device in devices:
                compare(dataset, device, options)
            report_memory(dataset)


if __name__ == "__main__":
    main()
