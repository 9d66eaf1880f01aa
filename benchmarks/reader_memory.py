"""Measure the memory that conversion of a large file takes, for each layout of arrays, and that its export takes.

  python -m benchmarks.reader_memory --gigabytes 10 --folder /tmp/large

Files have clips of 300 frames with two persons; each shows one person in 60 of them, so that the data set is smaller.
They are removed afterwards. Memory is the peak of the resident set of a new process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from fgst.data.clip_source import SourceOptions
from fgst.data.conversion import write_source
from fgst.data.dataset import ArrowDataset
from fgst.data.export import export
from fgst.data.formats import SOURCE_FORMATS
from fgst.data.pickles import write_pickle

CLIP = np.zeros((300, 2, 25, 3), np.float32)
CLIP[:60, 0] = np.random.default_rng(0).normal(size=(60, 25, 3)) + np.array([0, 0, 3])


def write(layout: str, folder: Path, clips: int) -> Path:
    """Write a file, or a folder of files, in a layout; return its path."""
    folder.mkdir(parents=True)
    names, labels = [f"clip {i}" for i in range(clips)], [i % 60 for i in range(clips)]
    train, test = clips * 2 // 3, clips - clips * 2 // 3
    header = {"descr": "<f4", "fortran_order": False}
    if layout.endswith("npz"):
        method = zipfile.ZIP_DEFLATED if layout == "compressed npz" else zipfile.ZIP_STORED
        with zipfile.ZipFile(folder / "clips.npz", "w", method, compresslevel=1) as archive:
            for split, count in (("train", train), ("test", test)):
                with archive.open(f"x_{split}.npy", "w", force_zip64=True) as file:
                    npy.write_array_header_1_0(file, header | {"shape": (count, 300, 150)})
                    for _ in range(count):
                        file.write(CLIP.tobytes())
                with archive.open(f"y_{split}.npy", "w") as file:
                    np.save(file, np.eye(60)[labels[:count]])
        return folder / "clips.npz"
    if layout == "npy":
        for split, (first, count) in {"train": (0, train), "val": (train, test)}.items():
            with (folder / f"{split}_data.npy").open("wb") as file:
                npy.write_array_header_1_0(file, header | {"shape": (count, 3, 300, 25, 2)})
                for _ in range(count):
                    file.write(CLIP.transpose(3, 0, 2, 1).tobytes())
            with (folder / f"{split}_label.pkl").open("wb") as file:
                write_pickle(file, (names[first : first + count], labels[first : first + count]))
        return folder
    keypoint = np.ascontiguousarray(CLIP.transpose(1, 0, 2, 3))
    annotations = (
        {"frame_dir": name, "label": label, "total_frames": 300, "keypoint": keypoint}
        for name, label in zip(names, labels, strict=True)
    )
    with (folder / "clips.pkl").open("wb") as file:
        write_pickle(file, {"split": {"train": names[:train], "test": names[train:]}, "annotations": annotations})
    return folder / "clips.pkl"


def measure(task: str, source: Path, out: Path) -> None:
    """Convert or export in this process, and print its time and peak memory."""
    start = time.perf_counter()
    if task.startswith("export"):
        export(ArrowDataset(source), out)
    else:
        [source_format] = [f for f in SOURCE_FORMATS if f.recognizes(source)]
        with source_format.open(source, SourceOptions()) as clips:
            write_source(clips, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{task:<16}{time.perf_counter() - start:8.1f} s  {peak:6.0f} MiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder for the files")
    parser.add_argument("--layouts", nargs="+", default=["npz", "compressed npz", "npy", "pkl"])
    args = parser.parse_args()

    def run(*task: object) -> None:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=task)
        process.start()
        process.join()

    try:
        for layout in args.layouts:
            source = write(layout, args.folder / "source", int(args.gigabytes * 1e9 / CLIP.nbytes))
            run(layout, source, args.folder / "out")
            shutil.rmtree(args.folder / "source")
            if layout == args.layouts[-1]:
                for suffix in (".npz", ".pkl"):
                    run(f"export {suffix}", args.folder / "out", args.folder / f"out{suffix}")
            shutil.rmtree(args.folder / "out")
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
