"""Generated motion for the files of other formats: bodies and hands with known joints."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fgst.data.skeleton import Skeleton

Clips = Mapping[str, np.ndarray]


def body(skeleton: Skeleton, frames: int, seed: int, *, persons: int = 1) -> np.ndarray:
    """Joints of upright bodies that sway, ``(M, T, N, 3)`` in metres from the camera; none is exactly zero.

    A person has less motion than the one before, and is two metres further to the side.
    """
    rng = np.random.default_rng(seed)
    heights = {"shoulder": 0.5, "hip": 0.0, "knee": -0.45, "ankle": -0.85, "nose": 0.75, "head": 0.75, "neck": 0.55}
    pose = np.array(
        [
            (
                0.2 * (joint.startswith("left") - joint.startswith("right")),
                next((height for word, height in heights.items() if word in joint), 0.25),
                0.05,
            )
            for joint in skeleton.joints
        ]
    ) + rng.uniform(-0.05, 0.05, (skeleton.num_joints, 3))
    clips = []
    for person in range(persons):
        sway = (0.2 / (1 + person)) * np.sin(np.arange(frames) / 4 + rng.uniform(0, 6))[:, None]
        motion = sway * rng.uniform(0.2, 1, (1, skeleton.num_joints))
        joints = pose + np.stack([motion, 0.2 * motion, 0.5 * motion], axis=-1)
        clips.append(joints + np.array([0.3 + 2 * person, 0.1, 3.0]))
    return np.stack(clips)


def pixels(joints: np.ndarray, *, width: int = 640, height: int = 480) -> np.ndarray:
    """Project ``(…, 3)`` in metres to pixels with y down, ``(…, 2)``."""
    return np.stack([width / 2 + 100 * joints[..., 0], height / 2 - 100 * joints[..., 1]], axis=-1)


def write_openpose(
    folder: Path,
    clips: Clips,
    *,
    scores: float = 0.8,
    missing: Sequence[int] = (),
    order: Callable[[int], Sequence[int]] | None = None,
) -> Path:
    """Write clips of pixels, ``(M, T, N, 2)``, as folders of frames.

    Args:
        folder: the new folder.
        clips: by path of the clip's folder.
        scores: confidence of all joints; 0 for joints at the origin, and less by 0.1 for each further person.
        missing: frames whose files are left out; the numbering has a gap.
        order: the order of persons in frame t.
    """
    for path, joints in clips.items():
        (folder / path).mkdir(parents=True)
        for t in range(joints.shape[1]):
            if t in missing:
                continue
            people = []
            for m in order(t) if order else range(len(joints)):
                pose = joints[m, t]
                seen = pose.any(axis=-1)
                if not seen.any():
                    continue
                values = np.concatenate([pose, np.where(seen, scores - 0.1 * m, 0)[:, None]], axis=1).reshape(-1)
                people.append(
                    {
                        "person_id": [-1],
                        "pose_keypoints_2d": values.round(6).tolist(),
                        "face_keypoints_2d": [],
                        "hand_left_keypoints_2d": [0.5] * 63,
                        "pose_keypoints_3d": [],
                    }
                )
            name = f"{Path(path).name}_{t:012d}_keypoints.json"
            (folder / path / name).write_text(json.dumps({"version": 1.3, "people": people}, indent=t % 2 or None))
    return folder


def kinetics_clip(joints: np.ndarray, label: str | None, index: int, *, scores: float = 0.7) -> str:
    """Return a clip's file of Kinetics-skeleton with joints ``(M, T, N, 2)`` relative to the image.

    Frames without a seen joint have an empty list of skeletons. Frame indices count from 1.
    """
    data = []
    for t in range(joints.shape[1]):
        present = [(m, pose) for m, pose in enumerate(joints[:, t]) if pose.any()]
        people = [
            {
                "pose": pose.reshape(-1).round(6).tolist(),
                "score": np.where(pose.any(axis=-1), scores - 0.1 * m, 0).tolist(),
            }
            for m, pose in present
        ]
        data.append({"frame_index": t + 1, "skeleton": people})
    content: dict[str, object] = {"data": data}
    return json.dumps(content if label is None else content | {"label": label, "label_index": index})


def write_kinetics(
    folder: Path,
    train: Mapping[str, tuple[np.ndarray, str]],
    val: Mapping[str, tuple[np.ndarray, str]],
    classes: Sequence[str],
    *,
    tables: bool = True,
    wrong: Sequence[str] = (),
) -> Path:
    """Write Kinetics-skeleton.

    Args:
        folder: the new folder.
        train, val: joints ``(M, T, 18, 2)`` and class by name.
        classes: class names by index.
        tables: write the files of labels.
        wrong: names whose ``has_skeleton`` is wrong.
    """
    for split, clips in (("train", train), ("val", val)):
        (folder / f"kinetics_{split}").mkdir(parents=True)
        table = {}
        for name, (joints, label) in clips.items():
            index = classes.index(label)
            (folder / f"kinetics_{split}" / f"{name}.json").write_text(kinetics_clip(joints, label, index))
            has_skeleton = bool(joints.any()) != (name in wrong)
            table[name] = {"has_skeleton": has_skeleton, "label": label, "label_index": index}
        if tables:
            (folder / f"kinetics_{split}_label.json").write_text(json.dumps(table))
    return folder


Gesture = tuple[int, int, int, int]  # gesture, finger, subject, trial


def write_gestures(
    folder: Path,
    clips: Mapping[Gesture, np.ndarray],
    *,
    train: Sequence[Gesture] = (),
    test: Sequence[Gesture] = (),
    spans: Mapping[Gesture, tuple[int, int]] | None = None,
) -> Path:
    """Write clips ``(T, 22, 3)`` like SHREC'17 if there are lists, else like DHG-14/28.

    Args:
        folder: the new folder.
        clips: by gesture, finger, subject and trial.
        train, test: the official lists.
        spans: first and last frame of the gesture in each clip, from 0.
    """
    plural = "s" if train else ""
    for (gesture, finger, subject, trial), joints in clips.items():
        path = folder / f"gesture_{gesture}" / f"finger_{finger}" / f"subject_{subject}" / f"essai_{trial}"
        path.mkdir(parents=True)
        np.savetxt(path / f"skeleton{plural}_world.txt", joints.reshape(len(joints), -1), fmt="%.7g")
        np.savetxt(path / f"skeleton{plural}_image.txt", joints[..., :2].reshape(len(joints), -1), fmt="%.7g")
        (path / "general_informations.txt").write_text("1 2 3 4 5\n")
    for name, keys in (("train", train), ("test", test)):
        if keys:
            lines = [f"{' '.join(map(str, key))} {key[0]} {2 * key[0]} {len(clips.get(key, ()))}\n" for key in keys]
            (folder / f"{name}_gestures.txt").write_text("".join(lines))
    if spans:
        lines = [f"{' '.join(map(str, [*key, *span]))}\n" for key, span in spans.items()]
        (folder / "informations_troncage_sequences.txt").write_text("".join(lines))
    return folder


def zip_folder(folder: Path, path: Path, *, inside: str = "") -> Path:
    """Write the files of a folder to a zip, in a folder ``inside``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{inside}{file.relative_to(folder).as_posix()}")
    return path


def kinect_text(
    joints: np.ndarray,
    *,
    body_line: Callable[[int, int], str | None] = lambda m, t: f"{m + 1} 0 1 1 1 1 0 0.1 0.2 2",
    count: bool = True,
    fields: int = 12,
    order: Callable[[int], Sequence[int]] | None = None,
) -> bytes:
    """Write joints ``(M, T, 25, 3)`` as a ``.skeleton`` file; a person is absent in frames with only zeros.

    Args:
        joints: the persons.
        body_line: the line of body m in frame t; ``None`` leaves it out.
        count: write the number of joints.
        fields: numbers per joint, 3 or more.
        order: the order of persons in frame t.
    """
    lines = [str(joints.shape[1])]
    for t in range(joints.shape[1]):
        present = [m for m in (order(t) if order else range(len(joints))) if joints[m, t].any()]
        lines.append(str(len(present)))
        for m in present:
            if (line := body_line(m, t)) is not None:
                lines.append(line)
            if count:
                lines.append("25")
            rest = " 2" if fields == 4 else " 0.5" * (fields - 3)
            lines += [" ".join(f"{value:.7g}" for value in joint) + rest for joint in joints[m, t]]
    return ("\n".join(lines) + "\n").encode()
