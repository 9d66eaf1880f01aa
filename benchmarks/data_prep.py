"""Measure the throughput of preparing ``.skeleton`` files on one core: ``python -m benchmarks.data_prep``.

Generated clips of NTU RGB+D's mean size (about 85 frames, one clip in six with two bodies) are parsed alternately by
``fgst`` and by a plain parser, which reads line by line and converts every field to a number, as public code for this
format does. Afterwards, the whole preparation is timed: zip, parser, cleaning, Arrow file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.formats.ntu import prepare
from fgst.data.formats.ntu_skeleton import read_skeleton

NTU_120_CLIPS = 113_945
BODY_FIELDS = (
    "id", "clipped_edges", "hand_left_confidence", "hand_left_state", "hand_right_confidence", "hand_right_state",
    "restricted", "lean_x", "lean_y", "tracking_state",
)  # fmt: skip
JOINT_FIELDS = (
    "x", "y", "z", "depth_x", "depth_y", "color_x", "color_y", "orientation_w", "orientation_x", "orientation_y",
    "orientation_z", "tracking_state",
)  # fmt: skip


def plain_parser(content: bytes) -> list[list[dict[str, Any]]]:
    """Parse a file line by line into nested dictionaries: frames, bodies, joints."""
    lines = iter(content.decode().splitlines())
    frames = []
    for _ in range(int(next(lines))):
        bodies = []
        for _ in range(int(next(lines))):
            body: dict[str, Any] = dict(zip(BODY_FIELDS, map(float, next(lines).split()), strict=True))
            body["joints"] = [
                dict(zip(JOINT_FIELDS, map(float, next(lines).split()), strict=True)) for _ in range(int(next(lines)))
            ]
            bodies.append(body)
        frames.append(bodies)
    return frames


def make_clip(rng: np.random.Generator, bodies: int) -> bytes:
    """Generate a ``.skeleton`` file."""
    frames = int(rng.integers(50, 120))
    joints = rng.normal(size=(bodies, 25, 3)) * (0.1, 0.5, 0.1) + 0.1 * rng.normal(size=(frames, bodies, 1, 3))
    others = rng.normal(size=(frames, bodies, 25, 8)) * (200, 200, 1000, 500, 1, 1, 1, 1)
    lines = [str(frames)]
    for t in range(frames):
        lines.append(str(bodies))
        for b in range(bodies):
            lines += [f"{72057594037931101 + b} 0 1 1 1 1 0 0.02764709 0.05745083 2", "25"]
            lines += [
                " ".join(f"{value:.7g}" for value in (*joints[t, b, j], *others[t, b, j])) + " 2" for j in range(25)
            ]
    return ("\n".join(lines) + "\n").encode()


def seconds(call: Callable[[], object]) -> float:
    """Return the duration of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _parse_all(parse: Callable[[bytes], Any], clips: list[bytes]) -> None:
    for clip in clips:
        parse(clip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300, help="number of clips (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="report the best round (default: %(default)s)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    clips = [make_clip(rng, bodies=1 + (number % 6 == 5)) for number in range(options.clips)]
    size = sum(map(len, clips))
    print(f"{len(clips)} clips, {size / len(clips) / 1e3:.0f} kB each; one core, best of {options.rounds} rounds")

    def report(name: str, best: float) -> None:
        print(f"{name:34}{len(clips) / best:9,.0f} clips/s{size / best / 1e6:9,.0f} MB/s")

    parsers: tuple[Callable[[bytes], Any], ...] = (plain_parser, read_skeleton)
    best = dict.fromkeys(parsers, float("inf"))
    for _ in range(options.rounds):
        for parse in parsers:
            best[parse] = min(best[parse], seconds(partial(_parse_all, parse, clips)))
    report("plain parser", best[plain_parser])
    report("fgst.data.formats.ntu_skeleton", best[read_skeleton])
    print(f"{'ratio':34}{best[plain_parser] / best[read_skeleton]:9.1f}")

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "clips.zip")
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, clip in enumerate(clips):
                name = f"S{number // 4800 % 17 + 1:03d}C{number // 1600 % 3 + 1:03d}P{number // 40 % 40 + 1:03d}"
                archive.writestr(f"{name}R001A{number % 40 + 1:03d}.skeleton", clip)
        outs = [Path(folder, f"out-{number}") for number in range(options.rounds)]
        preparation = min(seconds(partial(prepare, [source], out, edition="60")) for out in outs)
    report("zip to data set", preparation)
    print(f"NTU RGB+D 120 at that rate: {NTU_120_CLIPS * preparation / len(clips) / 60:.0f} min on one core")


if __name__ == "__main__":
    main()
