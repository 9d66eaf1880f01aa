"""OpenPose: folders with a file per frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data.clip_source import SourceOptions
from fgst.data.conversion import write_source
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import SOURCE_FORMATS, find_format, read_clip
from fgst.data.formats.openpose import FORMAT, NORMALIZATION
from fgst.data.normalization import RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import BODY_25, OPENPOSE_18
from fgst.data.sources import open_source
from fgst.errors import InputError
from tests.support.recordings import body, pixels, write_openpose, zip_folder

LABELS = "clip_id,label,subject\na,wave,1\nb,wave,2\nc,walk,1\nd,walk,2\n"


def convert(path: Path, out: Path, *, skip_bad: bool = False, **options: Any) -> tuple[ArrowDataset, list[str]]:
    with FORMAT.open(path, SourceOptions(**options)) as source:
        dataset, report = write_source(source, out, skip_bad=skip_bad)
    return dataset, report.notes


def labels(folder: Path) -> dict[str, Any]:
    (folder / "labels.csv").write_text(LABELS)
    return {"labels": folder / "labels.csv", "benchmarks": ("x-sub:subject=1",)}


def expected(joints: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    return NORMALIZATION.apply(RawClip(joints.round(6), joints.any(axis=-1).astype(float)), skeleton)[0]


@pytest.mark.parametrize("skeleton", [OPENPOSE_18, BODY_25], ids=lambda skeleton: skeleton.name)
@pytest.mark.parametrize("as_zip", [False, True])
def test_clips_are_exactly_those_of_the_files(tmp_path: Path, skeleton: Skeleton, *, as_zip: bool) -> None:
    clips = {name: pixels(body(skeleton, 9 + i, i)) for i, name in enumerate("abcd")}
    clips["b"][0, 3] = 0  # no person in a frame
    clips["c"][0, :, 4] = 0  # a joint that is never seen
    source = write_openpose(tmp_path / "raw", {f"sub/{name}": joints for name, joints in clips.items()})
    if as_zip:
        source = zip_folder(source, tmp_path / "raw.zip", inside="openpose/")
    dataset, notes = convert(source, tmp_path / "out", **labels(tmp_path))
    prefix = "openpose/sub/" if as_zip else "sub/"
    assert dataset.skeleton == skeleton
    assert dataset.clip_ids.tolist() == [f"{prefix}{name}" for name in "abcd"]
    assert [dataset.classes[label] for label in dataset.columns["label"]] == ["wave", "wave", "walk", "walk"]
    assert dataset.columns["subject"].tolist() == [1, 2, 1, 2]
    for row, name in enumerate("abcd"):
        np.testing.assert_array_equal(dataset.clip(row), expected(clips[name], skeleton))
    assert any(f"{skeleton.num_joints} joints: 4 clips" in note for note in notes)


def test_persons_in_any_order_are_matched_and_the_most_confident_two_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    joints = pixels(body(OPENPOSE_18, 20, 1, persons=5), width=1600)
    clips = {"train/wave/a": joints, "test/wave/b": joints[::-1]}
    write_openpose(tmp_path / "raw", clips, order=lambda t: rng.permutation(5).tolist())
    dataset, _ = convert(tmp_path / "raw", tmp_path / "out")
    assert dataset.clip_ids.tolist() == ["test/wave/b", "train/wave/a"]
    np.testing.assert_array_equal(dataset.clip(1), expected(joints[:2], OPENPOSE_18))
    np.testing.assert_array_equal(dataset.clip(0), expected(joints[:2:-1], OPENPOSE_18))


def test_person_is_followed_over_missing_frames_and_bystanders_are_left_out(tmp_path: Path) -> None:
    joints = pixels(body(OPENPOSE_18, 20, 1, persons=3), width=1600)
    joints[2, :15] = 0  # a bystander for five frames, who is the first in the files
    joints[1, 4:8] = 0
    clips = {"train/wave/a": joints, "test/wave/b": joints}
    write_openpose(tmp_path / "raw", clips, missing=(10, 11), order=lambda t: (2, 1, 0))
    dataset, notes = convert(tmp_path / "raw", tmp_path / "out")
    kept = np.delete(joints[:2], (10, 11), axis=1)
    np.testing.assert_array_equal(dataset.clip(0), expected(kept, OPENPOSE_18))
    assert dataset.benchmark("official").column == "split_official"
    assert dataset.columns["split_official"].tolist() == [2, 1]
    assert "all clips are of one class" in notes


def test_scale_of_keypoints_and_image_does_not_matter(tmp_path: Path) -> None:
    joints = pixels(body(OPENPOSE_18, 8, 1), width=400, height=400)
    clips = {"train/x/a": joints, "train/x/b": joints / 400, "train/y/c": joints * 3, "test/y/d": joints}
    dataset, _ = convert(write_openpose(tmp_path / "raw", clips), tmp_path / "out")
    for row in range(4):
        np.testing.assert_allclose(dataset.clip(row), expected(joints, OPENPOSE_18), atol=2e-5)
    clip = dataset.clip(0)
    names = OPENPOSE_18.joints
    assert (clip[..., names.index("nose"), 1] > clip[..., names.index("left_hip"), 1]).all()  # upright


def test_folder_with_frames_of_several_clips(tmp_path: Path) -> None:
    clips = {name: pixels(body(OPENPOSE_18, 6, i)) for i, name in enumerate(("a", "b"))}
    write_openpose(tmp_path / "raw", clips)
    for split in ("train", "test"):
        (tmp_path / "together" / split / "wave").mkdir(parents=True)
        for file in (tmp_path / "raw").rglob("*.json"):
            (tmp_path / "together" / split / "wave" / file.name).write_bytes(file.read_bytes())
    dataset, _ = convert(tmp_path / "together", tmp_path / "out")
    assert dataset.clip_ids.tolist() == ["test/wave/a", "test/wave/b", "train/wave/a", "train/wave/b"]
    np.testing.assert_array_equal(dataset.clip(3), expected(clips["b"], OPENPOSE_18))


def test_more_than_nine_frames_without_leading_zeros(tmp_path: Path) -> None:
    joints = pixels(body(OPENPOSE_18, 12, 1))
    write_openpose(tmp_path / "raw", {"a": joints})
    for file in (tmp_path / "raw" / "a").iterdir():
        number = int(file.name.split("_")[1])
        file.rename(file.with_name(f"a_{number}_keypoints.json"))
    with open_source(tmp_path / "raw", suffix=".json", max_bytes=10**6, hint="") as listing:
        clips_of = find_format("openpose").clips_of
        assert clips_of is not None
        (clip,) = clips_of(listing.files)
        read = read_clip(clip.read(), "openpose", OPENPOSE_18, NORMALIZATION)
    np.testing.assert_array_equal(read, expected(joints, OPENPOSE_18))


BAD = {
    "truncated": ('{"version":1.3,"people":[{"pose_keypo', "is not valid JSON"),
    "another shape": (json.dumps({"people": [{"pose_keypoints_2d": [1.0] * 45}]}), "15 joints"),
    "another number": (json.dumps({"people": [{"pose_keypoints_2d": [1.0] * 50}]}), "has 50 numbers"),
    "text": (json.dumps({"people": [{"pose_keypoints_2d": ["a"] * 54}]}), "expected `float`"),
    "a list": ("[]", "is not a frame of OpenPose"),
    "not finite": ('{"people":[{"pose_keypoints_2d":[NaN' + ",1" * 53 + "]}]}", "is not valid JSON"),
    "huge": ('{"people":[{"pose_keypoints_2d":[1e999' + ",1" * 53 + "]}]}", ""),
    "bytes": ("\x00\xff", "is not valid JSON"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_frame_is_a_fault_of_its_clip_alone(tmp_path: Path, kind: str) -> None:
    content, message = BAD[kind]
    clips = {name: pixels(body(OPENPOSE_18, 6, i)) for i, name in enumerate("abcd")}
    write_openpose(tmp_path / "raw", clips)
    (tmp_path / "raw" / "b" / "b_000000000003_keypoints.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"b_000000000003_keypoints\.json|b: line 4") as error:
        convert(tmp_path / "raw", tmp_path / "out", **labels(tmp_path))
    assert message.lower() in str(error.value).lower()
    assert "\n" not in str(error.value)
    dataset, _ = convert(tmp_path / "raw", tmp_path / "out", skip_bad=True, **labels(tmp_path))
    assert dataset.clip_ids.tolist() == ["a", "c", "d"]


def test_labels_are_required_and_missing_clips_named(tmp_path: Path) -> None:
    write_openpose(tmp_path / "raw", {"a": pixels(body(OPENPOSE_18, 6, 0)), "x": pixels(body(OPENPOSE_18, 6, 1))})
    with pytest.raises(InputError, match=r"the class of clip a is unknown.*--labels"):
        convert(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(InputError, match="b: is in the table of labels, but there is no such clip"):
        convert(tmp_path / "raw", tmp_path / "out", **labels(tmp_path))
    (tmp_path / "labels.csv").write_text("clip_id,label\na,wave\n")
    with pytest.raises(InputError, match="which clips are for training is unknown"):
        convert(tmp_path / "raw", tmp_path / "out", labels=tmp_path / "labels.csv")
    with pytest.raises(InputError, match="has no column subject"):
        convert(tmp_path / "raw", tmp_path / "out", labels=tmp_path / "labels.csv", benchmarks=("s:subject=1",))


def test_clips_that_are_not_in_the_table_are_counted(tmp_path: Path) -> None:
    write_openpose(tmp_path / "raw", {name: pixels(body(OPENPOSE_18, 6, 0)) for name in "abcdefg"})
    dataset, notes = convert(tmp_path / "raw", tmp_path / "out", **labels(tmp_path))
    assert len(dataset) == 4
    assert "3 clips are not in the table of labels, and are left out (e, f, g)" in notes


def test_no_person_in_any_frame(tmp_path: Path) -> None:
    write_openpose(tmp_path / "raw", {"train/x/a": np.zeros((1, 4, 18, 2)), "test/x/b": np.zeros((1, 4, 18, 2))})
    with pytest.raises(InputError, match="no frame has a person with 18 or 25 joints"):
        convert(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(InputError, match="no person is detected in any frame"):
        convert(tmp_path / "raw", tmp_path / "out", skeleton=OPENPOSE_18)


def test_recognition(tmp_path: Path) -> None:
    source = write_openpose(tmp_path / "raw", {"a": pixels(body(OPENPOSE_18, 3, 0))})
    archive = zip_folder(source, tmp_path / "raw.zip")
    for path in (source, source / "a", archive):
        assert [one.name for one in SOURCE_FORMATS if one.recognizes(path)] == ["openpose"]
    (tmp_path / "broken.zip").write_bytes(archive.read_bytes()[:-30])
    for path in (tmp_path / "broken.zip", tmp_path / "nothing", tmp_path):
        assert not any(one.recognizes(path) for one in SOURCE_FORMATS if path != tmp_path)
