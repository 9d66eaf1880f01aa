"""Files in the layouts of CTR-GCN, ST-GCN, 2s-AGCN and pyskl, written from known clips with the oddities of real ones.

The clips show generated bodies with names of NTU RGB+D; nothing is taken from the data set.
"""

from __future__ import annotations

import io
import itertools
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25

# Of joints of the trunk and of the first joints of limbs, in metres above the hips.
HEIGHTS = {
    "head": 0.75, "nose": 0.7, "neck": 0.55, "spine_at_shoulders": 0.5, "mid_spine": 0.25, "shoulder": 0.5,
    "elbow": 0.25, "wrist": 0.0, "hand": -0.05, "thumb": -0.1, "hip": 0.0, "knee": -0.45, "ankle": -0.85, "foot": -0.9,
    "eye": 0.72, "ear": 0.7,
}  # fmt: skip


@dataclass
class Known:
    """A clip: its name, label and joints ``(M, T, N, C)``; its confidences, if it is in the image."""

    name: str
    label: int
    joints: np.ndarray = field(repr=False)
    scores: np.ndarray | None = None

    @property
    def subject(self) -> int:
        return int(self.name[9:12]) if self.name[8] == "P" else 0

    @property
    def camera(self) -> int:
        return int(self.name[5:8]) if self.name[4] == "C" else 0


def pose(skeleton: Skeleton) -> np.ndarray:
    """Return an upright body, ``(N, 3)``, in metres."""
    joints = np.zeros((skeleton.num_joints, 3))
    for index, name in enumerate(skeleton.joints):
        side = -1 if name.startswith("left") else 1 if name.startswith("right") else 0
        height = next((value for part, value in HEIGHTS.items() if name.endswith(part)), 0.1)
        joints[index] = 0.2 * side, height, 0.01 * index
    return joints


def known_clips(
    skeleton: Skeleton = NTU_25, *, subjects: Sequence[int] = (1, 2, 3, 6), cameras: int = 3, seed: int = 0
) -> list[Known]:
    """Generate clips of three actions (one of two persons) by each subject before each camera, in metres from it."""
    rng = np.random.default_rng(seed)
    clips = []
    for subject, camera, action in itertools.product(subjects, range(1, cameras + 1), (1, 2, 50)):
        persons, frames = 1 + (action == 50), int(rng.integers(12, 25))
        joints = np.tile(pose(skeleton), (persons, frames, 1, 1)) + rng.normal(0, 0.01, (persons, frames, 1, 3))
        wave = np.sin(np.linspace(0, 3, frames) * action) * np.array([0.3, 0.1])[:persons, None]
        joints[:, :, action % skeleton.num_joints] += wave[..., None]
        joints += rng.normal(0, 0.002, joints.shape) + np.array([0.3, -0.1, 3.0])
        joints[..., 0] += np.arange(persons)[:, None, None]
        name = f"S001C{camera:03d}P{subject:03d}R001A{action:03d}"
        clips.append(Known(name, action - 1, joints.astype(np.float32)))
    return clips


def centred(clip: Known, centre: int = 1) -> np.ndarray:
    """Return the joints with the first person's centre joint in the first frame at the origin."""
    return clip.joints - clip.joints[0, 0, centre]


def split(clips: Sequence[Known], by: str = "subject") -> tuple[list[Known], list[Known]]:
    """Return the clips for training and for testing of the official X-Sub or X-View."""
    train = {"subject": (1, 2), "camera": (2, 3)}[by]
    return (
        [clip for clip in clips if getattr(clip, by) in train],
        [clip for clip in clips if getattr(clip, by) not in train],
    )


def write_ctr_gcn(
    path: Path,
    clips: Sequence[Known],
    *,
    frames: int = 30,
    persons: int = 2,
    one_hot: bool = True,
    copies: bool = False,
    compressed: bool = False,
    changes: Mapping[str, np.ndarray] = {},
) -> Path:
    """Write CTR-GCN's ``.npz``.

    Args:
        copies: a missing second person is a copy of the first, as in files of NTU RGB+D 120.
        changes: arrays that replace those of the clips.
    """
    arrays: dict[str, Any] = {}
    for side, members in zip(("train", "test"), split(clips), strict=True):
        x = np.zeros((len(members), frames, persons, members[0].joints.shape[2], 3), np.float32)
        for row, clip in enumerate(members):
            joints = centred(clip).transpose(1, 0, 2, 3)
            x[row, : len(joints), : joints.shape[1]] = joints[:, :persons]
            if copies and joints.shape[1] == 1:
                x[row, : len(joints), 1] = joints[:, 0]
        labels = np.array([clip.label for clip in members])
        arrays |= {
            f"x_{side}": x.reshape(len(members), frames, -1),
            f"y_{side}": np.eye(60)[labels] if one_hot else labels,
        }
    (np.savez_compressed if compressed else np.savez)(path, **{**arrays, **changes})
    return path


def st_gcn_array(clips: Sequence[Known], frames: int = 30, persons: int = 2) -> np.ndarray:
    """Return clips, ``(clips, C, T, N, M)``, in metres from the camera, padded with zeros."""
    N, C = clips[0].joints.shape[2:]
    array = np.zeros((len(clips), C, frames, N, persons), np.float32)
    for row, clip in enumerate(clips):
        array[row, :, : clip.joints.shape[1], :, : len(clip.joints)] = clip.joints.transpose(3, 1, 2, 0)
    return array


def agcn_array(clips: Sequence[Known], frames: int = 30) -> np.ndarray:
    """Return clips as 2s-AGCN prepares them: repeated to the window, centred in each frame, upright along z."""
    array = np.zeros((len(clips), 3, frames, clips[0].joints.shape[2], 2), np.float32)
    for row, clip in enumerate(clips):
        turned = agcn_clip(clip)
        repeated = turned[:, np.arange(frames) % turned.shape[1]]
        array[row, ..., : len(turned)] = repeated.transpose(3, 1, 2, 0)
    return array


def agcn_clip(clip: Known) -> np.ndarray:
    """Return a clip that is centred in each frame, with hip and spine of the first frame along z."""
    joints = clip.joints - clip.joints[:1, :, 1:2]
    bone = joints[0, 0, 1] - joints[0, 0, 0]
    z = bone / np.linalg.norm(bone)
    x = np.cross(z, [0, 0, 1.0])
    x /= np.linalg.norm(x)
    return (joints @ np.stack([x, np.cross(z, x), z], axis=1)).astype(np.float32)


def write_st_gcn(
    folder: Path, arrays: Sequence[np.ndarray], clips: Sequence[Sequence[Known]], *, kind: str = "",
    name: str = "{}.skeleton", protocol: int = 2,
) -> Path:  # fmt: skip
    """Write the arrays and labels of training and test clips."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, array, members in zip(("train", "val"), arrays, clips, strict=True):
        np.save(folder / f"{side}_data{kind}.npy", array)
        content = ([name.format(clip.name) for clip in members], [clip.label for clip in members])
        (folder / f"{side}_label.pkl").write_bytes(pickle.dumps(content, protocol))
    return folder


def annotation(clip: Known, **changes: Any) -> dict[str, Any]:
    """Return an annotation of pyskl: metres in float16, or pixels with confidences."""
    values: dict[str, Any] = {
        "frame_dir": clip.name, "label": clip.label, "total_frames": clip.joints.shape[1],
        "keypoint": clip.joints.astype(np.float16),
    }  # fmt: skip
    if clip.scores is not None:
        values |= {
            "keypoint_score": clip.scores.astype(np.float16), "img_shape": (1080, 1920), "original_shape": (1080, 1920),
        }  # fmt: skip
    return values | changes


def ntu_lists(clips: Sequence[Known]) -> dict[str, list[str]]:
    """Return the lists of pyskl's file of NTU RGB+D 60."""
    lists: dict[str, list[str]] = {}
    for name, column in (("xsub", "subject"), ("xview", "camera")):
        train, test = split(clips, column)
        lists |= {f"{name}_train": [clip.name for clip in train], f"{name}_val": [clip.name for clip in test]}
    return lists


def in_image(clip: Known, skeleton: Skeleton) -> Known:
    """Return a clip as a camera of 1920 × 1080 pixels sees it; y points down."""
    x, y = 960 + 300 * clip.joints[..., 0], 540 - 300 * clip.joints[..., 1]
    scores = np.full(clip.joints.shape[:3], 0.9)
    return Known(clip.name, clip.label, np.stack([x, y], axis=-1).astype(np.float32), scores)


class Python2Pickler(pickle._Pickler):
    """Writes pickles as Python 2 does: texts and the content of arrays are byte strings."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def _save_bytes(self, value: bytes) -> None:
        short = len(value) < 256
        pickler: Any = self  # its methods are not in the stubs
        pickler.write((b"U" + bytes([len(value)]) if short else b"T" + len(value).to_bytes(4, "little")) + value)
        if id(value) not in pickler.memo:  # single bytes are shared
            pickler.memoize(value)

    def _save_text(self, value: str) -> None:
        self._save_bytes(value.encode())

    dispatch[str] = _save_text
    dispatch[bytes] = _save_bytes


def python2_pickle(path: Path, value: Any) -> Path:
    """Write a pickle of protocol 2 as Python 2 and an old NumPy do."""
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    path.write_bytes(file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core."))
    return path
