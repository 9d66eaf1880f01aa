"""Throughput of augmented batches: ``python -m benchmarks.batches``.

Compares ``ClipLoader`` with the usual approach: a PyTorch Dataset that reads and augments one clip at a time in NumPy
(vectorised over the clip, without Python loops over frames), behind a DataLoader with two workers. Both apply the same
recipe to the same data set, in alternating rounds. Also measures which fraction of a training step it takes to create
its batch, and the memory of 1, 2 and 4 processes that read the same data set.

  python -m benchmarks.batches                                   generated data sets of the sizes of NW-UCLA and NTU-60
  python -m benchmarks.batches --dataset datasets/nw-ucla        an existing data set
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fgst.config import PRESETS, DataConfig
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.loader import ClipLoader
from fgst.data.recipes import RECIPE_DEFAULTS
from fgst.data.skeleton import NTU_25, NW_UCLA_20
from fgst.data.splits import Benchmark
from fgst.data.writer import write_dataset
from fgst.model import FGSTFormer

# clips, mean frames, fraction with two persons, classes, batch size of the paper
SIZES = {"nw-ucla": (1_484, 40, 0.0, 10, 16), "ntu": (56_880, 84, 0.17, 60, 64)}


def generate(recipe: str, folder: Path, clips: int) -> ArrowDataset:
    """Generate a data set of the size of the real one."""
    _, mean, pairs, classes, _ = SIZES[recipe]
    skeleton = NTU_25 if recipe == "ntu" else NW_UCLA_20
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 4 * mean, skeleton.num_joints, 3)).astype(np.float32)

    def generated_clips() -> Iterator[Clip]:
        for number in range(clips):
            frames = int(rng.integers(mean // 2, mean * 3 // 2))
            start = int(rng.integers(len(noise[0]) - frames))
            joints = noise[: 1 + (rng.random() < pairs), start : start + frames]
            yield Clip(f"clip-{number:06d}", number % classes, joints, subject=number % 40)

    return write_dataset(
        folder / recipe, generated_clips(), name=f"generated, size of {recipe}", skeleton=skeleton, recipe=recipe,
        classes=[str(c) for c in range(classes)], benchmarks=[Benchmark("x-sub", "subject", tuple(range(20)))],
        source={},
    )  # fmt: skip


class PerClip(Dataset[tuple[np.ndarray, int]]):
    """The recipes one clip at a time, as a PyTorch Dataset."""

    def __init__(self, dataset: ArrowDataset) -> None:
        self.dataset, self.frames = dataset, RECIPE_DEFAULTS[dataset.recipe].frames

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        sample = self._nw_ucla if self.dataset.recipe == "nw-ucla" else self._ntu
        clip = sample(self.dataset.clip(row).copy())
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
    c, s = np.cos(angle), np.sin(angle)
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
    return matrix.T if axis == 1 else matrix


def per_second(batches: Callable[[], Iterator[int]], seconds: float, device: torch.device) -> float:
    """Measure clips per second, not counting the first batch (start of workers, cold caches)."""
    sizes = batches()
    next(sizes)
    clips, start = 0, time.perf_counter()
    for size in sizes:
        clips += size
        if time.perf_counter() - start > seconds:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clips / (time.perf_counter() - start)


def step_seconds(dataset: ArrowDataset, batch_size: int, device: torch.device, steps: int) -> float:
    """Measure a training step of the paper's network in seconds, without creating its batch."""
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


# Reads a data set, waits, and prints the growth of its resident, proportional and private memory in MiB.
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
print(*(now - then for now, then in zip(after, before)), flush=True)
sys.stdin.readline()
"""


def memory(dataset: ArrowDataset) -> None:
    """Print the memory of several processes that have read the whole data set, in excess of Python and PyTorch."""
    size = sum(file.stat().st_size for file in dataset.path.glob("*.arrow")) / 2**20
    print(f"memory of processes that read all {size:,.0f} MiB of files, in MiB, without Python and PyTorch:")
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
            for process in processes:  # all have read the data set and none has exited
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
    """Measure and print both approaches on one data set."""
    batch_size = SIZES[dataset.recipe][-1]
    loader = ClipLoader(dataset, np.arange(len(dataset)), DataConfig(), device)
    generator = torch.Generator(device).manual_seed(0)

    def vectorised() -> Iterator[int]:
        while True:
            for batch in loader.training_batches(batch_size, 1, generator):
                yield len(batch.labels)

    def per_clip() -> Iterator[int]:
        data_loader = DataLoader(PerClip(dataset), batch_size, shuffle=True, num_workers=2, persistent_workers=True)
        while True:
            for clips, labels in data_loader:
                clips.to(device)
                yield len(labels)

    best = {"fgst": 0.0, "per clip": 0.0}
    for _ in range(options.rounds):
        best["per clip"] = max(best["per clip"], per_second(per_clip, options.seconds, device))
        best["fgst"] = max(best["fgst"], per_second(vectorised, options.seconds, device))
    step = step_seconds(dataset, batch_size, device, options.steps)
    print(
        f"{dataset.name}: {len(dataset):,} clips, batches of {batch_size}, {device}, {torch.get_num_threads()} threads"
    )
    print(f"  per clip, 2 workers  {best['per clip']:10,.0f} clips/s")
    print(f"  fgst                 {best['fgst']:10,.0f} clips/s   {best['fgst'] / best['per clip']:.1f} times")
    fraction = batch_size / best["fgst"] / step
    print(f"  batch: {fraction:.2%} of a step of the paper's network (bfloat16, {1e3 * step:,.0f} ms)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="an existing data set (default: generated ones)")
    parser.add_argument("--clips", type=int, help="clips per generated data set (default: as many as in the real one)")
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="report the best round (default: %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=4, help="training steps; the fastest counts (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    devices = [torch.device("cpu")] + ([torch.device(options.device)] if options.device != "cpu" else [])
    with tempfile.TemporaryDirectory() as folder:
        sets = (
            [ArrowDataset(options.dataset)]
            if options.dataset
            else [generate(recipe, Path(folder), options.clips or size[0]) for recipe, size in SIZES.items()]
        )
        for dataset in sets:
            for device in devices:
                compare(dataset, device, options)
            memory(dataset)


if __name__ == "__main__":
    main()
