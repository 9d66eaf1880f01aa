"""How fast clips become augmented batches: ``python -m benchmarks.batches``.

The batches of ``fgst`` against the way it is usually done: a Dataset that reads and augments one clip at a time in
NumPy (each step over the whole clip at once, no Python loop over frames), behind a DataLoader with two workers. Both
follow the same recipe on the same data set, in turn, in the same run. Then the share of a training step that making
its batch takes, and the memory that 1, 2 and 4 processes take which read the same data set.

  python -m benchmarks.batches                                   generated sets of the sizes of NW-UCLA and NTU-60
  python -m benchmarks.batches --dataset datasets/nw-ucla        a data set of one's own
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

from fgst.config import PRESETS, RECIPE_DEFAULTS, DataConfig
from fgst.data.dataset import ArrowDataset, Benchmark, Clip
from fgst.data.loader import ClipLoader
from fgst.data.skeleton import NTU_25, NW_UCLA_20
from fgst.data.writer import write_dataset
from fgst.model import FGSTFormer

# clips, mean frames, share with two persons, classes, batch size of the paper's training
SIZES = {"nw-ucla": (1_484, 40, 0.0, 10, 16), "ntu": (56_880, 84, 0.17, 60, 64)}


def generate(recipe: str, folder: Path, clips: int) -> ArrowDataset:
    """Moving skeletons in the numbers of the real data set."""
    _, mean, pairs, classes, _ = SIZES[recipe]
    skeleton = NTU_25 if recipe == "ntu" else NW_UCLA_20
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 4 * mean, skeleton.num_joints, 3)).astype(np.float32)

    def each() -> Iterator[Clip]:
        for number in range(clips):
            frames = int(rng.integers(mean // 2, mean * 3 // 2))
            start = int(rng.integers(len(noise[0]) - frames))
            joints = noise[: 1 + (rng.random() < pairs), start : start + frames]
            yield Clip(f"clip-{number:06d}", number % classes, joints, subject=number % 40)

    return write_dataset(
        folder / recipe, each(), name=f"generated, size of {recipe}", skeleton=skeleton, recipe=recipe, source={},
        classes=[str(c) for c in range(classes)], benchmarks=[Benchmark("x-sub", "subject", tuple(range(20)))],
    )  # fmt: skip


class PerClip(Dataset[tuple[np.ndarray, int]]):
    """The recipes a clip at a time, as a Dataset of PyTorch."""

    def __init__(self, dataset: ArrowDataset) -> None:
        self.dataset, self.frames = dataset, RECIPE_DEFAULTS[dataset.recipe].frames

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        make = self._nw_ucla if self.dataset.recipe == "nw-ucla" else self._ntu
        clip = make(self.dataset.clip(row).copy())
        padded = np.zeros((self.dataset.max_persons, *clip.shape[1:]), np.float32)
        padded[: len(clip)] = clip
        return padded, int(self.dataset.columns["label"][row])

    def _nw_ucla(self, joints: np.ndarray) -> np.ndarray:
        joints = joints - joints[:1, :1, self.dataset.skeleton.centre, None]
        angles = np.random.uniform(-np.pi / 3, np.pi / 3, 2)
        joints = joints @ (_turn(angles[0], 0) @ _turn(angles[1], 1)).T
        low, high = joints.min((0, 1, 2)), joints.max((0, 1, 2))
        joints = (joints - low) / (high - low) * 2 - 1
        frames = np.sort(np.random.randint(0, joints.shape[1], self.frames))
        return joints[:, frames].astype(np.float32)

    def _ntu(self, joints: np.ndarray) -> np.ndarray:
        length = joints.shape[1]
        kept = min(max(int(length * np.random.uniform(0.5, 1)), 64), length)
        start = np.random.randint(0, length - kept + 1)
        position = np.clip((np.arange(self.frames) + 0.5) * kept / self.frames - 0.5, 0, kept - 1)
        before = position.astype(int)
        after = np.minimum(before + 1, kept - 1)
        weight = (position - before)[:, None, None]
        joints = joints[:, start + before] * (1 - weight) + joints[:, start + after] * weight
        x, y, z = np.random.uniform(-0.3, 0.3, 3)
        return (joints @ (_turn(z, 2) @ _turn(y, 1) @ _turn(x, 0)).T).astype(np.float32)


def _turn(angle: float, axis: int) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    a, b = [i for i in range(3) if i != axis]
    turn = np.eye(3)
    turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
    return turn.T if axis == 1 else turn


def per_second(batches: Callable[[], Iterator[int]], seconds: float, device: torch.device) -> float:
    """Clips a second; the first batch (start of workers, cold caches) is not counted."""
    made = batches()
    next(made)
    clips, began = 0, time.perf_counter()
    for size in made:
        clips += size
        if time.perf_counter() - began > seconds:
            break
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clips / (time.perf_counter() - began)


def step_seconds(dataset: ArrowDataset, batch_size: int, device: torch.device, steps: int) -> float:
    """A training step of the paper's network on clips that are there already, its batch not counted."""
    store = ClipLoader(dataset, np.arange(len(dataset)), DataConfig(), device)
    batch = store.batch(np.arange(batch_size), torch.Generator(device).manual_seed(0))
    model = FGSTFormer(PRESETS["paper"].model, dataset.skeleton, dataset.num_classes, frames=store.frames).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    best = float("inf")
    for _ in range(steps):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(batch.clips, batch.person_mask).float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
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
store = ClipLoader(dataset, np.arange(len(dataset)), DataConfig(), torch.device("cpu"))
for batch in store.evaluation_batches():
    pass
print("read", flush=True)
sys.stdin.readline()
after = memory()
print(*(now - then for now, then in zip(after, before)), flush=True)
sys.stdin.readline()
"""


def memory(dataset: ArrowDataset) -> None:
    """What each of several processes holds after it read the whole data set, beyond Python and PyTorch."""
    size = sum(file.stat().st_size for file in dataset.path.glob("*.arrow")) / 2**20
    print(f"memory of processes that read all of it ({size:,.0f} MiB of files), MiB, without Python and PyTorch:")
    print("processes   resident each   proportional each   private each   proportional, all")
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
            for process in processes:  # all have read and none has ended
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
    batch_size = SIZES[dataset.recipe][-1]
    store = ClipLoader(dataset, np.arange(len(dataset)), DataConfig(), device)
    generator = torch.Generator(device).manual_seed(0)

    def ours() -> Iterator[int]:
        while True:
            for batch in store.training_batches(batch_size, 1, generator):
                yield len(batch.labels)

    def usual() -> Iterator[int]:
        loader = DataLoader(PerClip(dataset), batch_size, shuffle=True, num_workers=2, persistent_workers=True)
        while True:
            for clips, labels in loader:
                clips.to(device)
                yield len(labels)

    best = {"fgst": 0.0, "usual": 0.0}
    for _ in range(options.rounds):
        best["usual"] = max(best["usual"], per_second(usual, options.seconds, device))
        best["fgst"] = max(best["fgst"], per_second(ours, options.seconds, device))
    step = step_seconds(dataset, batch_size, device, options.steps)
    print(
        f"{dataset.name}: {len(dataset):,} clips, batches of {batch_size}, {device}, {torch.get_num_threads()} threads"
    )
    print(f"  per clip, 2 workers  {best['usual']:10,.0f} clips/s")
    print(f"  fgst                 {best['fgst']:10,.0f} clips/s   {best['fgst'] / best['usual']:.1f} times")
    share = batch_size / best["fgst"] / step
    print(f"  batch, of a step of the paper's network (bfloat16, {1e3 * step:,.0f} ms): {share:.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="instead of the generated ones")
    parser.add_argument("--clips", type=int, help="in each generated set; default: as many as in the real one")
    parser.add_argument("--seconds", type=float, default=5, help="that each way is measured for (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="of training, the best counts (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="default: all cores")
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
