"""Kinetics-skeleton: JSON files of clips, and files of labels that are partly wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fgst.data.clip_source import SourceOptions
from fgst.data.conversion import write_source
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import SOURCE_FORMATS, read_clip
from fgst.data.formats.kinetics import FORMAT, NORMALIZATION
from fgst.data.normalization import RawClip
from fgst.data.skeletons import NTU_25, OPENPOSE_18
from fgst.errors import InputError
from tests.support.recordings import body, kinetics_clip, pixels, write_kinetics, zip_folder

CLASSES = ("juggling", "archery", "bowling")  # not in alphabetical order


def relative(frames: int, seed: int, persons: int = 1) -> np.ndarray:
    """Joints relative to the image, ``(M, T, 18, 2)``."""
    return pixels(body(OPENPOSE_18, frames, seed, persons=persons), width=1000, height=1000).round() / 1000


EMPTY = np.zeros((1, 5, 18, 2))
TRAIN = {
    "-Abc": (relative(8, 0), "juggling"),
    "b_1": (relative(12, 1, persons=2), "archery"),
    "c": (relative(6, 2), "bowling"),
    "empty": (EMPTY, "archery"),
    "empty2": (EMPTY, "archery"),
}
VAL = {"v1": (relative(7, 4), "juggling"), "v2": (relative(9, 5), "bowling"), "v3": (EMPTY, "bowling")}


def convert(path: Path, out: Path, *, skip_bad: bool = False) -> tuple[ArrowDataset, list[str]]:
    with FORMAT.open(path, SourceOptions()) as source:
        dataset, report = write_source(source, out, skip_bad=skip_bad)
    assert not report.rejected or skip_bad
    return dataset, report.notes


def expected(joints: np.ndarray) -> np.ndarray:
    return NORMALIZATION.apply(RawClip(joints), OPENPOSE_18)[0]


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("as_zip", [True, False])
def test_clips_labels_and_splits(tmp_path: Path, *, tables: bool, as_zip: bool) -> None:
    source = write_kinetics(tmp_path / "raw", TRAIN, VAL, CLASSES, tables=tables, wrong=("c", "empty2"))
    if as_zip:
        source = zip_folder(source, tmp_path / "raw.zip", inside="kinetics-skeleton/")
    dataset, notes = convert(source, tmp_path / "out")
    clips = {name: clip for name, clip in {**TRAIN, **VAL}.items() if clip[0].any()}
    assert dataset.classes == CLASSES
    assert sorted(dataset.clip_ids) == sorted(clips)
    for row, name in enumerate(dataset.clip_ids):
        joints, label = clips[name]
        np.testing.assert_array_equal(dataset.clip(row), expected(joints))
        assert dataset.classes[dataset.columns["label"][row]] == label
        assert dataset.columns["split_official"][row] == (1 if name in TRAIN else 2)
    assert dataset.source["left_out"] == 3
    said = [note for note in notes if "although the file of labels" in note]
    if tables:
        assert "1 clip left out: no skeleton in any frame, although the file of labels says there is one" in said
        assert "1 clip: has a skeleton, although the file of labels says there is none" in said
        assert "2 clips left out: no skeleton in any frame" in notes
    else:
        assert not said
        assert "3 clips left out: no skeleton in any frame" in notes


def test_frames_are_in_the_order_of_their_indices(tmp_path: Path) -> None:
    joints = relative(9, 3)
    content = json.loads(kinetics_clip(joints, "x", 0))
    content["data"].reverse()
    read = read_clip(json.dumps(content).encode(), "kinetics", OPENPOSE_18, NORMALIZATION)
    np.testing.assert_array_equal(read, expected(joints))


def test_subset_of_the_classes_is_sorted_by_name(tmp_path: Path) -> None:
    train = {name: clip for name, clip in TRAIN.items() if clip[1] != "archery"}
    dataset, _ = convert(write_kinetics(tmp_path / "raw", train, VAL, CLASSES), tmp_path / "out")
    assert dataset.classes == ("bowling", "juggling")
    assert [dataset.classes[dataset.columns["label"][r]] for r in range(len(dataset))] == [
        {**TRAIN, **VAL}[name][1] for name in dataset.clip_ids
    ]


BAD = {
    "truncated": (kinetics_clip(relative(8, 0), "archery", 1)[:-100], "is not valid JSON"),
    "another skeleton": (kinetics_clip(body(NTU_25, 4, 0)[..., :2], "archery", 1), "has 50 coordinates"),
    "a number": ("5", "is not a clip of Kinetics-skeleton"),
    "no data": ('{"label": "archery", "label_index": 1}', "missing required field `data`"),
    "empty": ("", "is not valid JSON"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("tables", [True, False])
def test_bad_clip_is_reported_alone(tmp_path: Path, kind: str, *, tables: bool) -> None:
    content, message = BAD[kind]
    source = write_kinetics(tmp_path / "raw", TRAIN, VAL, CLASSES, tables=tables)
    (source / "kinetics_train" / "b_1.json").write_text(content)
    with pytest.raises(InputError, match="b_1: ") as error:
        convert(source, tmp_path / "out")
    assert message in str(error.value) or (not tables and "has no label" in str(error.value))
    dataset, _ = convert(source, tmp_path / "out", skip_bad=True)
    assert sorted(dataset.clip_ids) == ["-Abc", "c", "v1", "v2"]


def test_source_that_is_not_usable_is_refused_in_one_line(tmp_path: Path) -> None:
    source = write_kinetics(tmp_path / "raw", TRAIN, VAL, CLASSES)
    (source / "kinetics_val_label.json").write_text('{"v1": {"label": 3}}')
    with pytest.raises(InputError, match=r"kinetics_val_label.json: is not a file of labels .*label: expected str"):
        convert(source, tmp_path / "out")
    with pytest.raises(InputError, match="has clips of one split only"):
        convert(source / "kinetics_train", tmp_path / "out")
    (tmp_path / "none").mkdir()
    write_kinetics(tmp_path / "none" / "raw", {"a": (EMPTY, "archery")}, {"b": (EMPTY, "archery")}, CLASSES)
    with pytest.raises(InputError, match=r"there is no clip to convert \(2 clips left out: no skeleton in any frame\)"):
        convert(tmp_path / "none" / "raw", tmp_path / "out")


def test_recognition(tmp_path: Path) -> None:
    with_tables = write_kinetics(tmp_path / "a", TRAIN, VAL, CLASSES)
    without = write_kinetics(tmp_path / "b", TRAIN, VAL, CLASSES, tables=False)
    for path in (with_tables, without, zip_folder(without, tmp_path / "b.zip")):
        assert [one.name for one in SOURCE_FORMATS if one.recognizes(path)] == ["kinetics"]
