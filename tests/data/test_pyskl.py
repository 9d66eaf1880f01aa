"""Annotations of pyskl and mmaction2 are converted to exactly their clips, labels and splits."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data.formats.ntu_names import ACTIONS
from fgst.data.skeletons import COCO_17
from fgst.errors import InputError
from tests.data.converted import CLIPS, SIDES, check, convert, names_of, split_names, write_annotations
from tests.support import field_files as files


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
