"""Generated files in the format of NTU RGB+D with the irregularities of real ones, and the expected result of each.

The clips show random swaying bodies of 25 joints; nothing is taken from the data set.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FIRST_ID = 72057594037931101  # the sensor's ids are this large; a float cannot represent them exactly


@dataclass
class Track:
    """A body: its id, the frames in which it is tracked, and its joints in them, ``(F, 25, 3)``."""

    number: int
    frames: list[int]
    joints: np.ndarray


@dataclass
class Case:
    """A file and the expected result: M and T, or the reason for rejection; and what cleaning removes."""

    name: str
    content: bytes
    persons: int = 0
    frames: int = 0
    fault: str = ""
    removed: Counter[str] = field(default_factory=Counter)


def person(rng: np.random.Generator, frames: int, *, motion: float = 0.1, wide: bool = False) -> np.ndarray:
    """Joints of a swaying body, ``(frames, 25, 3)``, taller than wide unless ``wide``."""
    pose = rng.uniform(-1, 1, (25, 3)) * ((0.9, 0.2, 0.2) if wide else (0.2, 0.8, 0.2))
    # The first two joints determine the extent.
    pose[:2] = ((-0.9, -0.2, 0), (0.9, 0.2, 0)) if wide else ((0, -0.8, 0), (0, 0.8, 0))
    sway = motion * np.sin(np.arange(frames) / 5 + rng.uniform(0, 6))
    return pose + np.stack([sway, 0.2 * sway, sway], axis=-1)[:, None] + (0.3, 0.1, 3.0)


def bending(frames: int) -> np.ndarray:
    """Joints of a person who steps forward, bends down to the side and comes back up, ``(frames, 25, 3)``.

    In the middle third of the clip, where most of the motion is, the person is too wide for an upright one.
    """
    along = np.linspace(-0.8, 0.8, 25)  # position of each joint along the body; the hip is at 0
    phase = np.sin(np.linspace(0, np.pi, frames))[:, None]
    lean = np.where(along > 0, np.pi / 2 * phase, 0)
    return np.stack([along * np.sin(lean), along * np.cos(lean), 3 + 1.5 * phase + 0 * along], axis=-1)


def standing(frames: int, *, motion: float) -> np.ndarray:
    """Joints of an upright person who moves back and forth, ``(frames, 25, 3)``."""
    joints = np.zeros((frames, 25, 3))
    joints[..., 1] = np.linspace(-0.8, 0.8, 25)
    joints[..., 0] = 1
    joints[..., 2] = 3 + motion * np.sin(np.linspace(0, 4 * np.pi, frames))[:, None]
    return joints


def text(num_frames: int, tracks: list[Track], *, number: Callable[[float], str] = "{:.7g}".format) -> bytes:
    """Write tracks as a ``.skeleton`` file."""
    lines = [str(num_frames)]
    for frame in range(num_frames):
        present = [(t, t.frames.index(frame)) for t in tracks if frame in t.frames]
        lines.append(str(len(present)))
        for track, row in present:
            lines += [f"{track.number} 0 1 1 1 1 0 0.02764709 0.05745083 2", "25"]
            lines += [
                " ".join(map(number, xyz)) + " 280.4124 197.7124 1036.218 515.6946 0.2265282 -0.02 0.97 -0.04 2"
                for xyz in track.joints[row]
            ]
    return ("\n".join(lines) + "\n").encode()


def one(rng: np.random.Generator, frames: int) -> list[Track]:
    """One body, tracked in every frame."""
    return [Track(FIRST_ID, list(range(frames)), person(rng, frames))]


def _cases(rng: np.random.Generator, frames: int) -> list[tuple[bytes, int, int, str, dict[str, int]]]:
    """One file of each kind: content, persons, frames, fault, removed."""
    all_frames = list(range(frames))
    half = frames // 2
    plain = text(frames, one(rng, frames))
    lines = plain.split(b"\n")
    pair = [*one(rng, frames), Track(FIRST_ID + 1, all_frames, person(rng, frames, motion=0.05))]
    ghost = Track(FIRST_ID + 2, all_frames[3:9], person(rng, 6))
    noise = Track(FIRST_ID + 3, all_frames, person(rng, frames, motion=2.0, wide=True))
    single = Track(FIRST_ID + 4, [frames - 1], person(rng, 1))
    broken = [
        Track(FIRST_ID, all_frames[:half], person(rng, half)),
        Track(FIRST_ID + 1, all_frames[half:], person(rng, frames - half)),
    ]
    crowd = [Track(FIRST_ID + i, all_frames, person(rng, frames, motion=0.1 * (4 - i))) for i in range(3)]
    gap = [Track(FIRST_ID, all_frames[:5] + all_frames[9:], person(rng, frames - 4))]
    partly = person(rng, frames, motion=0.3)
    partly[:4] = person(rng, 4, wide=True)
    mixed = [Track(FIRST_ID, all_frames, partly), Track(FIRST_ID + 1, all_frames, person(rng, frames, motion=0.01))]
    bender, calm, lively = (
        Track(FIRST_ID + i, all_frames, joints)
        for i, joints in enumerate((bending(frames), standing(frames, motion=0.1), standing(frames, motion=0.6)))
    )
    livelier = Track(FIRST_ID + 3, all_frames, standing(frames, motion=0.7))
    ghosts = [Track(FIRST_ID + i, all_frames[2 * i : 2 * i + 2], person(rng, 2)) for i in range(3)]
    return [
        (plain, 1, frames, "", {}),
        (plain.replace(b"\n", b"\r\n"), 1, frames, "", {}),
        (plain[:-1], 1, frames, "", {}),
        (plain.replace(b"280.4124 197.7124", b"NaN -NaN"), 1, frames, "", {}),
        (text(frames, one(rng, frames), number="{:.8e}".format), 1, frames, "", {}),
        (text(frames, pair), 2, frames, "", {}),
        (text(frames, [*pair, ghost]), 2, frames, "", {"ghost bodies": 1}),
        (text(frames, [*one(rng, frames), ghost, single]), 1, frames, "", {"ghost bodies": 2}),
        (text(frames, [noise, *one(rng, frames)]), 1, frames, "", {"noise bodies": 1}),
        (text(frames, broken), 1, frames, "", {"joined fragments": 1}),
        (text(frames, crowd), 2, frames, "", {"further bodies": 1}),
        (text(frames, gap), 1, frames - 4, "", {"empty frames": 4}),
        (text(frames, mixed), 2, frames, "", {}),
        (text(frames, [calm, bender]), 2, frames, "", {}),
        (text(frames, [bender, lively]), 2, frames, "", {}),
        (text(frames, [bender, lively, livelier]), 2, frames, "", {"further bodies": 1}),
        (text(frames, []), 0, 0, "no usable body", {}),
        (b"0\n", 0, 0, "no usable body", {}),
        (text(frames, ghosts), 0, 0, "no usable body", {}),
        (b"", 0, 0, "unreadable", {}),
        (plain[: len(plain) // 2], 0, 0, "unreadable", {}),
        (b"\n".join(lines[:-3]), 0, 0, "unreadable", {}),
        (plain + b"0\n", 0, 0, "unreadable", {}),
        (plain.replace(b"\n25\n", b"\n24\n", 1), 0, 0, "unreadable", {}),
        (plain.replace(b"280.4124 ", b"", 1), 0, 0, "unreadable", {}),
        (b"-1\n", 0, 0, "unreadable", {}),
        (b"99999999999\n1\n", 0, 0, "unreadable", {}),
        (lines[0] + b"\n4000000000\n", 0, 0, "unreadable", {}),
        (b"\n".join([*lines[:4], b"inf " + lines[4].split(b" ", 1)[1], *lines[5:]]), 0, 0, "unreadable", {}),
        (b"\n".join([*lines[:4], b"abc " + lines[4].split(b" ", 1)[1], *lines[5:]]), 0, 0, "unreadable", {}),
        (plain.replace(b"\n1\n", b"\n1\0\n", 1), 0, 0, "unreadable", {}),
        (b"\x1f\x8b\x08\x00" + plain, 0, 0, "unreadable", {}),
    ]


def corpus(count: int, *, seed: int = 0, actions: int = 60, setups: int = 17) -> list[Case]:
    """Generate ``count`` files that cycle through all kinds; names vary in setup, camera, subject and action."""
    rng = np.random.default_rng(seed)
    cases: list[Case] = []
    kinds: list[tuple[bytes, int, int, str, dict[str, int]]] = []
    for number in range(count):
        if not kinds:
            kinds = _cases(rng, frames=int(rng.integers(24, 48)))
        content, persons, frames, fault, removed = kinds.pop(0)
        # Skewed, so that even a small corpus has several of each; names stay unique.
        turn, action = divmod(number, actions)
        camera, subject = turn + number, turn // 3 + number
        setup = turn // 120 + turn + number
        name = f"S{setup % setups + 1:03d}C{camera % 3 + 1:03d}P{subject % 40 + 1:03d}"
        name += f"R{1 + number % 2:03d}A{action + 1:03d}"
        cases.append(Case(name, content, persons, frames, fault, Counter(removed)))
    return cases


def write_folder(folder: Path, cases: list[Case]) -> Path:
    """Write the files to a folder and return it."""
    folder.mkdir(parents=True)
    for case in cases:
        (folder / f"{case.name}.skeleton").write_bytes(case.content)
    return folder


def write_zip(path: Path, cases: list[Case]) -> Path:
    """Write the files to a zip like the official ones, in a single folder, and return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for case in cases:
            archive.writestr(f"nturgb+d_skeletons/{case.name}.skeleton", case.content)
    return path


if __name__ == "__main__":  # python -m tests.support.ntu_corpus corpus.zip 5000
    import sys

    write_zip(Path(sys.argv[1]), corpus(int(sys.argv[2])))
