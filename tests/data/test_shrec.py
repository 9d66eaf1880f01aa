"""SHREC'17 and DHG-14/28: text files of hand gestures, with lists of clips and of their frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fgst.data.clip_source import SourceFormat, SourceOptions
from fgst.data.conversion import write_source
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import SOURCE_FORMATS, read_clip
from fgst.data.formats.shrec import FORMAT, FORMAT_28, NORMALIZATION
from fgst.data.normalization import RawClip
from fgst.data.skeletons import SHREC_22
from fgst.errors import InputError
from tests.support.recordings import Gesture, body, write_gestures, zip_folder

# Gestures 1, 2 and 14, with one finger and the whole hand, by three subjects.
CLIPS: dict[Gesture, np.ndarray] = {
    (gesture, finger, subject, 1): body(SHREC_22, 6 + gesture + subject, 100 * gesture + 10 * finger + subject)[0]
    for gesture in (1, 2, 14)
    for finger in (1, 2)
    for subject in (1, 2, 11)
}
TRAIN = [key for key in CLIPS if key[2] != 11]
TEST = [key for key in CLIPS if key[2] == 11]
SPANS = {key: (1, 2 + key[2] % 10) for key in CLIPS}


def convert(
    path: Path, out: Path, kind: SourceFormat = FORMAT, *, skip_bad: bool = False, **options: object
) -> tuple[ArrowDataset, list[str]]:
    with kind.open(path, SourceOptions(**options)) as source:  # type: ignore[arg-type]
        dataset, report = write_source(source, out, skip_bad=skip_bad)
    return dataset, report.notes


def keys(dataset: ArrowDataset) -> list[Gesture]:
    """Return gesture, finger, subject and trial of the clips by their names."""
    return [tuple(int(part) for part in name.split("_")[1::2]) for name in dataset.clip_ids]  # type: ignore[misc]


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("kind", [FORMAT, FORMAT_28], ids=lambda kind: kind.name)
def test_shrec_clips_labels_and_splits(tmp_path: Path, kind: SourceFormat, *, as_zip: bool) -> None:
    source = write_gestures(tmp_path / "raw", CLIPS, train=TRAIN, test=TEST)
    if as_zip:
        source = zip_folder(source, tmp_path / "raw.zip", inside="HandGestureDataset_SHREC2017/")
    dataset, notes = convert(source, tmp_path / "out", kind)
    assert sorted(keys(dataset)) == sorted(CLIPS)
    assert len(dataset.classes) == (14 if kind is FORMAT else 28)
    for row, key in enumerate(keys(dataset)):
        joints = np.array([[float(f"{x:.7g}") for x in frame.reshape(-1)] for frame in CLIPS[key]])
        raw = RawClip(joints.reshape(1, -1, 22, 3))
        np.testing.assert_array_equal(dataset.clip(row), NORMALIZATION.apply(raw, SHREC_22)[0])
        gesture = {1: "grab", 2: "tap", 14: "shake"}[key[0]]
        finger = {1: " (one finger)", 2: " (whole hand)"}[key[1]]
        assert dataset.classes[dataset.columns["label"][row]] == gesture + (finger if kind is FORMAT_28 else "")
        assert dataset.columns["subject"][row] == key[2]
    splits = dataset.splits("official", validation=0)
    assert {keys(dataset)[row] for row in splits.train} == set(TRAIN)
    assert {keys(dataset)[row] for row in splits.test} == set(TEST)
    assert notes[0] == f"SHREC'17, {len(dataset.classes)} classes: 18 clips of 3 subjects"


def test_dhg_is_cut_to_the_gesture_and_leaves_out_each_subject(tmp_path: Path) -> None:
    dataset, notes = convert(write_gestures(tmp_path / "raw", CLIPS, spans=SPANS), tmp_path / "out")
    assert [benchmark.name for benchmark in dataset.benchmarks] == ["subject-1", "subject-2", "subject-11"]
    for row, key in enumerate(keys(dataset)):
        first, last = SPANS[key]
        raw = RawClip(CLIPS[key][None, first : last + 1])
        np.testing.assert_allclose(dataset.clip(row), NORMALIZATION.apply(raw, SHREC_22)[0], atol=1e-6)
    splits = dataset.splits("subject-2", validation=0)
    assert set(dataset.columns["subject"][splits.test]) == {2}
    assert set(dataset.columns["subject"][splits.train]) == {1, 11}
    assert notes[:2] == [
        "DHG-14/28, 14 classes: 18 clips of 3 subjects",
        "clips are cut to the gesture by informations_troncage_sequences.txt",
    ]


def test_dhg_without_its_list_of_frames_is_not_cut(tmp_path: Path) -> None:
    source = write_gestures(tmp_path / "raw", CLIPS)
    _, notes = convert(source, tmp_path / "out")
    assert any("is missing, so clips are not cut" in note for note in notes)
    with pytest.raises(InputError, match="files of this format contain labels and splits"):
        convert(source, tmp_path / "out", benchmarks=("two:subject=1,2",))
    one = {key: joints for key, joints in CLIPS.items() if key[2] == 1}
    with pytest.raises(InputError, match="one subject only"):
        convert(write_gestures(tmp_path / "one", one), tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2].rsplit(b"\n", 1)[0] + b"\n0.1 0.2", r"has 2 numbers on line \d+, not 66"),
        (lambda text: text.replace(b" ", b" x", 1), "has text that is not a number on line 1"),
        (lambda text: b"nan " + text.split(b" ", 1)[1], "has text that is not a number on line 1"),
        (lambda text: text.split(b"\n")[0].replace(b" ", b",") + b"\n", "has 1 numbers on line 1"),
        (lambda text: b"\n\n", "is empty"),
    ],
)
def test_bad_clip_is_reported_alone(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    source = write_gestures(tmp_path / "raw", CLIPS, train=TRAIN, test=TEST)
    file = source / "gesture_2" / "finger_1" / "subject_1" / "essai_1" / "skeletons_world.txt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=f"gesture_02_finger_1_subject_01_trial_1: {message}"):
        convert(source, tmp_path / "out")
    dataset, _ = convert(source, tmp_path / "out", skip_bad=True)
    assert set(keys(dataset)) == set(CLIPS) - {(2, 1, 1, 1)}


def test_clip_of_a_list_without_a_file_is_reported(tmp_path: Path) -> None:
    absent = (3, 1, 1, 1)
    source = write_gestures(tmp_path / "raw", CLIPS, train=[*TRAIN, absent], test=TEST)
    with pytest.raises(InputError, match="gesture_03_finger_1_subject_01_trial_1: is in the lists, but there is no"):
        convert(source, tmp_path / "out")
    dataset, _ = convert(source, tmp_path / "out", skip_bad=True)
    assert len(dataset) == len(CLIPS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_gestures.txt", "1 1 1 1 1 1 9\n1 1 one 1\n", "train_gestures.txt: line 2 is '1 1 one 1'"),
        ("train_gestures.txt", "1 1 1 1 1 1 9\n1 1 1 1 1 1 9\n", "line 2: .* occurs twice"),
        ("train_gestures.txt", "1 1 11 1 1 1 9\n", "have a clip in common"),
        ("train_gestures.txt", "15 1 1 1 1 1 9\n", "gestures are 1 to 14"),
        ("informations_troncage_sequences.txt", "1 1 1 1\n", "not 6 or more whole numbers"),
        ("informations_troncage_sequences.txt", "1 1 1 1 400 500\n", "its gesture is from frame 400 to 500"),
    ],
)
def test_damaged_list_is_refused_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    source = write_gestures(tmp_path / "raw", CLIPS, train=TRAIN, test=TEST)
    (source / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        convert(source, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_single_clip(tmp_path: Path) -> None:
    write_gestures(tmp_path / "raw", CLIPS)
    file = tmp_path / "raw" / "gesture_14" / "finger_2" / "subject_11" / "essai_1" / "skeleton_world.txt"
    clip = read_clip(file.read_bytes(), "shrec", SHREC_22, NORMALIZATION)
    assert clip.shape == (1, *CLIPS[14, 2, 11, 1].shape)


def test_recognition(tmp_path: Path) -> None:
    dhg = write_gestures(tmp_path / "dhg", CLIPS)
    shrec = write_gestures(tmp_path / "shrec", CLIPS, train=TRAIN, test=TEST)
    for path in (dhg, shrec, zip_folder(shrec, tmp_path / "shrec.zip", inside="a/b/")):
        assert [one.name for one in SOURCE_FORMATS if one.recognizes(path)] == ["shrec"]
