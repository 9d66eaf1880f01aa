"""The arrays of ST-GCN, 2s-AGCN and MS-G3D are converted to exactly their clips, labels and splits."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fgst.data.formats.ntu_names import ACTIONS
from fgst.data.skeletons import OPENPOSE_18
from fgst.errors import InputError
from tests.data.converted import CLIPS, SIDES, check, convert, names_of, split_names
from tests.support import field_files as files


def st_gcn_clips() -> list[tuple[str, int, np.ndarray]]:
    return [(clip.name, clip.label, files.centred(clip)) for members in SIDES for clip in members]


@pytest.mark.parametrize("name", ["{}.skeleton", "..\\data\\{}.skeleton", "/data/ntu/{}.skeleton", "{}"])
@pytest.mark.parametrize("given", ["", "train_data.npy", "val_data.npy", "train_label.pkl"])
def test_st_gcn_arrays(tmp_path: Path, name: str, given: str) -> None:
    arrays = [files.st_gcn_array(clips) for clips in SIDES]
    folder = files.write_st_gcn(tmp_path / "xsub", arrays, SIDES, name=name)
    dataset, report = convert(folder / given, tmp_path / "out")
    check(dataset, st_gcn_clips(), tolerance=1e-6)
    [benchmark] = dataset.benchmarks
    assert (benchmark.name, benchmark.column) == ("x-sub", "subject")
    assert dataset.columns["camera"].tolist() == [clip.camera for members in SIDES for clip in members]
    assert dataset.classes == ACTIONS[:60]
    assert dataset.preparation == "ntu"
    assert any("official x-sub" in note for note in report.notes)


def test_st_gcn_arrays_by_camera(tmp_path: Path) -> None:
    sides = files.split(CLIPS, "camera")
    folder = files.write_st_gcn(tmp_path / "data", [files.st_gcn_array(clips) for clips in sides], sides)
    dataset, _ = convert(folder, tmp_path / "out")
    assert [benchmark.name for benchmark in dataset.benchmarks] == ["x-view"]
    assert split_names(dataset, "x-view") == (names_of(sides[0]), names_of(sides[1]))


def test_st_gcn_split_that_is_not_official_is_a_list(tmp_path: Path) -> None:
    sides = (CLIPS[::2], CLIPS[1::2])
    folder = files.write_st_gcn(tmp_path / "data", [files.st_gcn_array(clips) for clips in sides], sides)
    dataset, _ = convert(folder, tmp_path / "out")
    assert [benchmark.column for benchmark in dataset.benchmarks] == ["split_official"]
    assert split_names(dataset, "official") == (names_of(sides[0]), names_of(sides[1]))


def test_agcn_arrays(tmp_path: Path) -> None:
    arrays = [files.agcn_array(clips) for clips in SIDES]
    folder = files.write_st_gcn(tmp_path / "xsub", arrays, SIDES, kind="_joint", protocol=4)
    for derived in ("_bone", "_joint_motion"):
        files.write_st_gcn(folder, arrays, SIDES, kind=derived)
    dataset, report = convert(folder, tmp_path / "out")
    expected = []
    for clip in (clip for members in SIDES for clip in members):
        x, y, z = np.moveaxis(files.agcn_clip(clip), -1, 0)
        expected.append((clip.name, clip.label, np.stack([x, z, -y], axis=-1)))  # upright along y
    check(dataset, expected)
    assert dataset.preparation == "array"
    assert report.removed["repeated frames"]
    assert any("already centred in each frame and rotated" in note for note in report.notes)


@pytest.mark.parametrize("sign", [1, -1])
def test_kinetics_arrays(tmp_path: Path, sign: int) -> None:
    clips = [clip for clip in files.known_clips(OPENPOSE_18) if clip.label < 49]
    sides = files.split(clips)
    flat = []
    for members in sides:
        joints = [
            np.stack(
                [(c.joints[..., 0] - 0.3) / 3, sign * c.joints[..., 1] / 2, np.full(c.joints.shape[:3], 0.7)], axis=-1
            )
            for c in members
        ]
        flat.append([files.Known(c.name, c.label, j) for c, j in zip(members, joints, strict=True)])
    arrays = [files.st_gcn_array(members) for members in flat]
    folder = files.write_st_gcn(tmp_path / "kinetics", arrays, sides, name="{}.json")
    dataset, report = convert(folder, tmp_path / "out")
    assert dataset.skeleton == OPENPOSE_18
    assert any(f"y points {'up' if sign > 0 else 'down'}" in note for note in report.notes)
    head, foot = (OPENPOSE_18.joints.index(name) for name in ("nose", "left_ankle"))
    for row, clip in enumerate(clip for members in flat for clip in members):
        result = dataset.clip(row)
        assert (result[:, :, head, 1] > result[:, :, foot, 1]).all()
        assert not result[..., 2].any()
        xy = clip.joints.astype(np.float32)[..., :2] * [2, 2 * sign]  # half the image is 1
        np.testing.assert_allclose(result[..., :2], xy - xy[0, 0, OPENPOSE_18.centre], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "val_data.npy").unlink(), "has no val_data.npy next to it"),
        (lambda folder: (folder / "val_label.pkl").unlink(), "has no val_label.pkl"),
        (
            lambda folder: (folder / "val_label.pkl").write_bytes(pickle.dumps((["a"], [0]))),
            "has 1 names and 1 labels, but the array has 18 clips",
        ),
        (lambda folder: (folder / "val_label.pkl").write_bytes(pickle.dumps({})), "is not a pair of names and labels"),
        (lambda folder: (folder / "val_label.pkl").write_bytes(b"text"), "is not a pickle, or is damaged"),
        (
            lambda folder: np.save(folder / "val_data.npy", np.zeros((18, 3, 30, 24, 2))),
            "other than the training clips",
        ),
        (lambda folder: np.save(folder / "train_data.npy", np.zeros((18, 150))), "not .clips, coordinates, frames"),
        (lambda folder: truncate(folder / "train_data.npy"), "train_data.npy: is incomplete"),
    ],
)
def test_st_gcn_arrays_with_a_fault(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    folder = files.write_st_gcn(tmp_path / "data", [files.st_gcn_array(clips) for clips in SIDES], SIDES)
    change(folder)
    with pytest.raises(InputError, match=message):
        convert(folder, tmp_path / "out")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("kind", ["_bone", "_joint_motion", "_bone_motion", "_joint_bone"])
def test_derived_arrays_are_refused(tmp_path: Path, kind: str) -> None:
    arrays = [files.st_gcn_array(clips) for clips in SIDES]
    folder = files.write_st_gcn(tmp_path / "data", arrays, SIDES, kind=kind)
    for given in (folder, folder / f"train_data{kind}.npy"):
        with pytest.raises(InputError, match=f"has no joints: {kind[1:]} data are computed from them"):
            convert(given, tmp_path / "out")


def test_clip_that_occurs_twice(tmp_path: Path) -> None:
    sides = (SIDES[0], [*SIDES[1][:-1], SIDES[1][0]])
    folder = files.write_st_gcn(tmp_path / "data", [files.st_gcn_array(clips) for clips in sides], sides)
    with pytest.raises(InputError, match="its name occurs twice"):
        convert(folder, tmp_path / "out")
    assert len(convert(folder, tmp_path / "out", skip_bad=True)[0]) == 35
