"""Data sets in the layouts of other projects are converted to exactly their clips, labels and splits."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data.clip_source import SourceOptions
from fgst.data.conversion import ConversionReport, write_source
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import SOURCE_FORMATS, read_clip
from fgst.data.formats.ntu_names import ACTIONS
from fgst.data.skeletons import COCO_17, NTU_25, NW_UCLA_20, OPENPOSE_18
from fgst.errors import InputError
from fgst.training.trainer import fit
from tests.support import field_files as files
from tests.support import ntu_corpus
from tests.support.mutation import read_mutations
from tests.support.small import small_config

CLIPS = files.known_clips()
SIDES = files.split(CLIPS)


def convert(path: Path, out: Path, *, skip_bad: bool = False, **options: Any) -> tuple[ArrowDataset, ConversionReport]:
    [source_format] = [f for f in SOURCE_FORMATS if f.recognizes(path)]
    with source_format.open(path, SourceOptions(**options)) as source:
        return write_source(source, out, skip_bad=skip_bad)


def check(
    dataset: ArrowDataset, expected: Sequence[tuple[str, int, np.ndarray]], *, tolerance: float = 0, order: bool = True
) -> None:
    """Check names, labels and joints."""
    rows = {name: row for row, name in enumerate(dataset.clip_ids)}
    names = [name for name, _, _ in expected]
    assert (list(rows) if order else sorted(rows)) == (names if order else sorted(names))
    for name, label, joints in expected:
        clip = dataset.clip(rows[name])
        assert clip.shape == joints.shape, name
        assert dataset.columns["label"][rows[name]] == label
        np.testing.assert_allclose(clip, joints, rtol=0, atol=tolerance, err_msg=name)


def split_names(dataset: ArrowDataset, benchmark: str) -> tuple[set[str], set[str]]:
    splits = dataset.splits(benchmark, validation=0)
    return set(dataset.clip_ids[splits.train]), set(dataset.clip_ids[splits.test])


def names_of(clips: Sequence[files.Known]) -> set[str]:
    return {clip.name for clip in clips}


# CTR-GCN


def ctr_gcn_clips() -> list[tuple[str, int, np.ndarray]]:
    return [
        (f"{split}_{row}", clip.label, files.centred(clip))
        for split, members in zip(("train", "test"), SIDES, strict=True)
        for row, clip in enumerate(members)
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"compressed": True}, {"copies": True}, {"one_hot": False}, {"frames": 24}], ids=str
)
def test_ctr_gcn_npz(tmp_path: Path, changes: dict[str, Any]) -> None:
    dataset, report = convert(files.write_ctr_gcn(tmp_path / "NTU60_CS.npz", CLIPS, **changes), tmp_path / "out")
    check(dataset, ctr_gcn_clips())
    assert dataset.skeleton == NTU_25
    assert [benchmark.name for benchmark in dataset.benchmarks] == ["x-sub"]
    train, test = split_names(dataset, "x-sub")
    assert (len(train), len(test)) == (18, 18)
    assert all(name.startswith("train_") for name in train)
    if changes.get("one_hot", True):
        assert dataset.classes == ACTIONS[:60]
    assert dataset.preparation == "ntu"
    assert any("already centred" in note for note in report.notes)


def test_ctr_gcn_npz_of_one_person_and_of_another_skeleton(tmp_path: Path) -> None:
    clips = [clip for clip in files.known_clips(NW_UCLA_20) if clip.label < 49]
    train = files.write_ctr_gcn(tmp_path / "mine.npz", clips, persons=1)
    dataset, _ = convert(train, tmp_path / "out")
    assert dataset.skeleton == NW_UCLA_20
    assert dataset.max_persons == 1
    assert [benchmark.name for benchmark in dataset.benchmarks] == ["official"]


def test_ctr_gcn_npz_that_is_not_centred_is_centred(tmp_path: Path) -> None:
    x = {
        f"x_{side}": files.st_gcn_array(clips).transpose(0, 2, 4, 3, 1).reshape(len(clips), 30, 150)
        for side, clips in zip(("train", "test"), SIDES, strict=True)
    }
    dataset, report = convert(files.write_ctr_gcn(tmp_path / "NTU60_CS.npz", CLIPS, changes=x), tmp_path / "out")
    check(dataset, ctr_gcn_clips(), tolerance=1e-6)
    assert any("not centred yet" in note for note in report.notes)


def test_ctr_gcn_npz_with_nothing_in_a_clip(tmp_path: Path) -> None:
    x = np.zeros((18, 30, 150), np.float32)
    x[1:, :5] = 1
    path = files.write_ctr_gcn(tmp_path / "a.npz", CLIPS, changes={"x_test": x})
    with pytest.raises(InputError, match="test_0: no joint of any person is seen"):
        convert(path, tmp_path / "out")
    dataset, report = convert(path, tmp_path / "out", skip_bad=True)
    assert len(dataset) == 35
    assert [name for name, _ in report.rejected] == ["test_0"]


ONE_HOT = np.eye(60)[[clip.label for clip in SIDES[1]]]


def first_row(array: np.ndarray, value: float) -> np.ndarray:
    """Return an array with another first row."""
    changed = array.copy()
    changed[0] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((18, 30, 151), np.float32)}, "x_train: has 151 numbers per frame.*--skeleton"),
        ({"x_train": np.zeros((18, 3, 30, 25, 2), np.float32)}, "has shape .*, not .clips, frames, persons"),
        ({"x_test": np.zeros((18, 30, 75), np.float32)}, "x_test: has rows of another length"),
        ({"x_test": np.array([["a"]])}, "x_test: has <U1 values"),
        ({"x_test": np.array([{}])}, "x_test: has object values"),
        ({"y_test": np.zeros((17, 60))}, r"y_test: has shape \(17, 60\), but there are 18 clips"),
        ({"y_test": first_row(ONE_HOT, 0)}, "test_0: its label, 0 classes at once, is not a number"),
        ({"y_test": first_row(ONE_HOT, 1)}, "test_0: its label, 60 classes at once"),
        ({"y_test": first_row(ONE_HOT.argmax(1), -3)}, "test_0: its label, -3, is not a number"),
        ({"y_test": first_row(ONE_HOT.argmax(1), 10**9)}, "test_0: its label"),
        ({"x_test": first_row(np.ones((18, 30, 150)), np.inf)}, "test_0: a coordinate is not a finite number"),
        ({"x_test": np.asfortranarray(np.ones((18, 30, 150), np.float32))}, "Fortran order"),
    ],
)
def test_ctr_gcn_npz_with_wrong_arrays(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    path = files.write_ctr_gcn(tmp_path / "a.npz", CLIPS, changes=changes)
    with pytest.raises(InputError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_npz_is_never_converted(tmp_path: Path, compressed: bool) -> None:
    path = files.write_ctr_gcn(tmp_path / "a.npz", CLIPS, compressed=compressed)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1  # within x_train
    path.write_bytes(content)
    for skip_bad in (True, False):
        with pytest.raises(InputError, match=r"x_train.*is damaged"):
            convert(path, tmp_path / "out", skip_bad=skip_bad)
    path.write_bytes(content[: len(content) // 2])
    assert not [f for f in SOURCE_FORMATS if f.recognizes(path)]


# ST-GCN, 2s-AGCN and MS-G3D


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


# pyskl and mmaction2


def write_annotations(path: Path, clips: Sequence[files.Known], protocol: int = 4, **changes: Any) -> Path:
    content = {"split": files.ntu_lists(clips), "annotations": [files.annotation(clip) for clip in clips]} | changes
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def pyskl_clips() -> list[tuple[str, int, np.ndarray]]:
    clips = []
    for clip in CLIPS:
        joints = clip.joints.astype(np.float16).astype(np.float64)
        clips.append((clip.name, clip.label, joints - joints[0, 0, 1]))
    return clips


@pytest.mark.parametrize("protocol", range(6))
def test_pyskl_annotations_of_ntu(tmp_path: Path, protocol: int) -> None:
    dataset, report = convert(write_annotations(tmp_path / "ntu60_3danno.pkl", CLIPS, protocol), tmp_path / "out")
    check(dataset, pyskl_clips(), tolerance=1e-6)
    assert not any("in no list" in note for note in report.notes)
    assert [(b.name, b.column) for b in dataset.benchmarks] == [("x-sub", "subject"), ("x-view", "camera")]
    assert dataset.classes == ACTIONS[:60]
    assert dataset.preparation == "ntu"


def test_pyskl_annotations_of_python_2(tmp_path: Path) -> None:
    content = {"split": files.ntu_lists(CLIPS), "annotations": [files.annotation(clip) for clip in CLIPS]}
    dataset, _ = convert(files.python2_pickle(tmp_path / "a.pkl", content), tmp_path / "out")
    check(dataset, pyskl_clips(), tolerance=1e-6)


@pytest.mark.parametrize("key", ["frame_dir", "filename"])
def test_annotations_in_the_image_with_several_lists(tmp_path: Path, key: str) -> None:
    clips = [files.in_image(clip, COCO_17) for clip in files.known_clips(COCO_17)]
    for number, clip in enumerate(clips):
        clip.name, clip.label = f"v_action{number % 2}_g{number:02d}", number % 2
    clips[0].scores[0, 3, 5] = 0  # type: ignore[index]
    names = [clip.name for clip in clips]
    annotations = []
    for clip in clips:
        values = files.annotation(clip)
        values[key] = values.pop("frame_dir")
        annotations.append(values)
    lists = {
        "train1": names[:20], "test1": names[20:30], "train2": names[10:30], "test2": [*names[:10], "v_absent"],
        "everything": names,
    }  # fmt: skip
    path = write_annotations(tmp_path / "ucf101.pkl", clips, split=lists, annotations=annotations)
    dataset, report = convert(path, tmp_path / "out")
    assert [b.name for b in dataset.benchmarks] == ["official1", "official2"]
    assert split_names(dataset, "official1") == (set(names[:20]), set(names[20:30]))
    assert split_names(dataset, "official2") == (set(names[10:30]), set(names[:10]))
    assert {"the lists name 1 clips that have no annotation", "not used: everything", "6 clips are in no list"} <= set(
        report.notes
    )
    assert dataset.skeleton == COCO_17
    assert dataset.classes == ("0", "1")
    assert dataset.preparation == "pyskl"
    for row, clip in enumerate(clips):
        xy = clip.joints.astype(np.float16).astype(float) * [1, -1] / 540
        expected = xy - xy[0, 0, COCO_17.centre]
        if row == 0:
            expected[0, 3, 5] = 0
        np.testing.assert_allclose(dataset.clip(row)[..., :2], expected, atol=1e-5)


def test_lists_for_training_validation_and_testing(tmp_path: Path) -> None:
    names = [clip.name for clip in CLIPS]
    lists = {"train": np.array(names[:20]), "val": names[20:28], "test": set(names[28:])}
    dataset, report = convert(write_annotations(tmp_path / "a.pkl", CLIPS, split=lists), tmp_path / "out")
    assert split_names(dataset, "official") == (set(names[:20]), set(names[28:]))
    assert "not used: val" in report.notes


def test_bare_lists_beside_each_other(tmp_path: Path) -> None:
    for name, clips in zip(("ntu60_xsub_train", "ntu60_xsub_val"), SIDES, strict=True):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps([files.annotation(clip) for clip in clips]))
    for name in ("ntu60_xsub_train", "ntu60_xsub_val"):
        dataset, _ = convert(tmp_path / f"{name}.pkl", tmp_path / name)
        assert [b.name for b in dataset.benchmarks] == ["x-sub"]
        assert split_names(dataset, "x-sub") == (names_of(SIDES[0]), names_of(SIDES[1]))


def test_bare_list_in_the_layout_of_st_gcn(tmp_path: Path) -> None:
    for side, clips in zip(("train", "val"), SIDES, strict=True):
        annotations = [
            files.annotation(clip, keypoint=array, keypoint_score=np.ones((3, 30, 25)), img_shape=(1080, 1920))
            for clip, array in zip(clips, files.agcn_array(clips), strict=True)
        ]
        (tmp_path / f"{side}.pkl").write_bytes(pickle.dumps(annotations))
    dataset, report = convert(tmp_path / "train.pkl", tmp_path / "out")
    for row, clip in enumerate(clip for members in SIDES for clip in members):
        x, y, z = np.moveaxis(files.agcn_clip(clip), -1, 0)
        np.testing.assert_array_equal(dataset.clip(row), np.stack([x, z, -y], axis=-1))
    assert any("already centred in each frame and rotated" in note for note in report.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"frame_dir": "a", "label": 0, "raw_file": "x", "frame_inds": [1]}]}, "is an index"),
        ({"annotations": []}, "has no annotation"),
        ({"annotations": [{"frame_dir": "a", "label": 0}]}, "has no annotation with an array keypoint"),
        ({"annotations": {}}, "is a dictionary of split, annotations, not the annotations"),
        ({"split": [1]}, "split is not a dictionary of lists"),
        ({"annotations": [files.annotation(CLIPS[0], keypoint=np.zeros((1, 4, 24, 3)))]}, "24 joints; pass --skeleton"),
    ],
)
def test_files_that_are_no_annotations(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(write_annotations(tmp_path / "a.pkl", CLIPS, **changes), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "clip 0: its annotation is not a dictionary"),
        ({"frame_dir": None}, "clip 0: its name must be"),
        ({"keypoint": None}, "it has no array keypoint"),
        ({"keypoint": np.zeros((3, 25))}, r"keypoint has shape \(3, 25\)"),
        ({"keypoint": np.full((1, 4, 25, 3), np.nan)}, "no joint of any person"),
        ({"keypoint": np.ones((1, 4, 24, 3))}, r"has shape \(1, 4, 24, 3\)"),
        ({"keypoint": np.array([[["a"]]])}, "it has no array keypoint"),
        ({"keypoint_score": np.ones((1, 2, 3))}, "keypoint_score has shape"),
        ({"label": -1}, "its label, -1"),
        ({"label": [1, 2]}, "its label"),
        ({"label": 10**9}, "its label"),
        ({"frame_dir": "a" * 300}, "its name must be"),
        ({"frame_dir": CLIPS[1].name}, "its name occurs twice"),
    ],
)
def test_annotations_with_a_fault(tmp_path: Path, changes: dict[str, Any] | None, message: str) -> None:
    first = None if changes is None else files.annotation(CLIPS[0]) | changes
    annotations = [first, *(files.annotation(clip) for clip in CLIPS[1:])]
    path = write_annotations(tmp_path / "a.pkl", CLIPS, annotations=annotations)
    with pytest.raises(InputError, match=message):
        convert(path, tmp_path / "out")
    assert len(convert(path, tmp_path / "out", skip_bad=True)[0]) == 35


def test_clip_in_both_lists(tmp_path: Path) -> None:
    names = [clip.name for clip in CLIPS]
    path = write_annotations(tmp_path / "a.pkl", CLIPS, split={"train": names, "test": names[:1]})
    with pytest.raises(InputError, match="it is in both lists of official"):
        convert(path, tmp_path / "out")


def test_class_names_of_the_user(tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"class {i}\n" for i in range(50)))
    path = write_annotations(tmp_path / "a.pkl", CLIPS)
    assert convert(path, tmp_path / "out", classes=classes)[0].classes[49] == "class 49"
    classes.write_text("one\ntwo\n")
    with pytest.raises(InputError, match="names 2 classes, but there are labels up to 49"):
        convert(path, tmp_path / "again", classes=classes)


def test_benchmarks_of_the_user(tmp_path: Path) -> None:
    path = write_annotations(tmp_path / "a.pkl", CLIPS)
    dataset, _ = convert(path, tmp_path / "out", benchmarks=("mine:subject=1/6",))
    assert [b.name for b in dataset.benchmarks] == ["x-sub", "x-view", "mine"]
    train, test = split_names(dataset, "mine")
    assert (train, test) == tuple(names_of([clip for clip in CLIPS if clip.subject == s]) for s in (1, 6))
    for given, message in (
        ("mine:setup=1", r"its test split is empty; setup is one of 1 \(0: not known\)"),
        ("mine:label=1", "clips are divided by numbers of subject"),
        ("x-sub:subject=1", "is in the file already"),
    ):
        with pytest.raises(InputError, match=message):
            convert(path, tmp_path / "again", benchmarks=(given,))
    with pytest.raises(InputError, match="--labels: files of this format contain the labels"):
        convert(path, tmp_path / "again", labels=tmp_path / "labels.csv")


def test_list_without_splits_needs_a_benchmark(tmp_path: Path) -> None:
    clips = [files.Known(f"clip {i}", 0, clip.joints) for i, clip in enumerate(CLIPS)]
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([files.annotation(clip) for clip in clips]))
    with pytest.raises(InputError, match="does not say which clips are for training"):
        convert(path, tmp_path / "out")
    path.write_bytes(pickle.dumps([files.annotation(clip) for clip in CLIPS]))
    assert [b.name for b in convert(path, tmp_path / "out")[0].benchmarks] == ["x-sub", "x-view"]


# Damaged files


def convert_content(name: str, content: bytes) -> None:
    """Convert a data set of which one file has the given content; runs in another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        if name.startswith("train"):
            clips = files.known_clips(subjects=(1, 3), cameras=1)
            sides = files.split(clips)
            files.write_st_gcn(Path(folder), [files.st_gcn_array(members, 24) for members in sides], sides)
        path.write_bytes(content)
        if [f for f in SOURCE_FORMATS if f.recognizes(path)]:
            convert(path, Path(folder, "out"), skip_bad=True)
        else:
            raise InputError("is not recognized")


def test_damaged_files_are_converted_or_refused(tmp_path: Path) -> None:
    clips = files.known_clips(subjects=(1, 3), cameras=1)
    sides = files.split(clips)
    files.write_ctr_gcn(tmp_path / "clips.npz", clips)
    files.write_ctr_gcn(tmp_path / "packed.npz", clips, compressed=True)
    write_annotations(tmp_path / "annotations.pkl", clips)
    files.write_st_gcn(tmp_path, [files.st_gcn_array(members, 24) for members in sides], sides)
    names = ("clips.npz", "packed.npz", "annotations.pkl", "train_data.npy", "train_label.pkl")
    samples = {name: (tmp_path / name).read_bytes() for name in names}
    read_mutations(convert_content, samples, 150, named=True).check(150)


# Prediction and training


def as_skeleton_file(clip: files.Known) -> bytes:
    tracks = [
        ntu_corpus.Track(ntu_corpus.FIRST_ID + person, list(range(len(joints))), joints)
        for person, joints in enumerate(clip.joints)
    ]
    return ntu_corpus.text(clip.joints.shape[1], tracks)


def write_all(folder: Path) -> dict[str, Path]:
    """Write the clips in each layout whose clips are also in ``.skeleton`` files."""
    arrays = [files.st_gcn_array(clips) for clips in SIDES]
    return {
        "npz": files.write_ctr_gcn(folder / "NTU60_CS.npz", CLIPS),
        "npy": files.write_st_gcn(folder / "xsub", arrays, SIDES),
        "pkl": write_annotations(folder / "ntu60_3danno.pkl", CLIPS),
    }


@pytest.mark.parametrize(("layout", "tolerance"), [("npz", 1e-6), ("npy", 1e-6), ("pkl", 3e-3)])
def test_skeleton_files_give_the_clips_of_the_data_set(tmp_path: Path, layout: str, tolerance: float) -> None:
    dataset, _ = convert(write_all(tmp_path)[layout], tmp_path / "out")
    order = CLIPS if layout == "pkl" else [clip for members in SIDES for clip in members]
    for row, clip in enumerate(order):
        joints = read_clip(as_skeleton_file(clip), dataset.preparation, dataset.skeleton, dataset.normalization)
        np.testing.assert_allclose(joints, dataset.clip(row), rtol=0, atol=tolerance, err_msg=clip.name)


def test_single_annotation_gives_the_clip_of_the_data_set(tmp_path: Path) -> None:
    clips = [files.in_image(clip, COCO_17) for clip in files.known_clips(COCO_17)]
    dataset, _ = convert(write_annotations(tmp_path / "a.pkl", clips), tmp_path / "out")
    for row, clip in enumerate(clips):
        content = pickle.dumps(files.annotation(clip))
        joints = read_clip(content, dataset.preparation, dataset.skeleton, dataset.normalization)
        np.testing.assert_array_equal(joints, dataset.clip(row))
    for content in (pickle.dumps({"a": 1}), pickle.dumps([1, 2]), b"text", pickle.dumps({"keypoint": 3})):
        with pytest.raises(InputError):
            read_clip(content, "pyskl", COCO_17)
    (tmp_path / "single.pkl").write_bytes(pickle.dumps(files.annotation(clips[0])))
    with pytest.raises(InputError, match=r"is a single clip.*fgst\.predict"):
        convert(tmp_path / "single.pkl", tmp_path / "single")


@pytest.mark.parametrize("layout", ["npz", "npy", "pkl"])
def test_training_on_converted_clips(tmp_path: Path, layout: str) -> None:
    dataset, _ = convert(write_all(tmp_path)[layout], tmp_path / "out")
    config = small_config(dataset, train__epochs=1, model__parts=5, data__protocol="paper")
    [result] = fit(config)
    assert np.isfinite(result.metrics["train/loss"])
