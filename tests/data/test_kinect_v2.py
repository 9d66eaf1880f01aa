"""Own recordings of a Kinect v2 in NTU RGB+D's text format, with or without its fields."""

from __future__ import annotations

import numpy as np
import pytest

from fgst.data.formats import read_clip
from fgst.data.formats.kinect_v2 import NORMALIZATION, read_joints
from fgst.data.normalization import RawClip
from fgst.data.skeletons import NTU_25
from fgst.errors import InputError
from tests.support.ntu_corpus import corpus
from tests.support.recordings import body, kinect_text


def read(content: bytes) -> np.ndarray:
    return read_clip(content, "kinect-v2", NTU_25, NORMALIZATION)


def expected(joints: np.ndarray) -> np.ndarray:
    return NORMALIZATION.apply(RawClip(joints), NTU_25)[0]


def test_ntu_files_give_the_same_clips_as_the_strict_reader() -> None:
    read_by_both = 0
    for case in corpus(64, seed=3):
        if case.fault:
            continue
        np.testing.assert_array_equal(read(case.content), read_clip(case.content, "ntu", NTU_25))
        read_by_both += 1
    assert read_by_both > 30


BODY_LINES = {
    "ten fields": lambda m, t: f"7205759403793110{m} 0 1 1 1 1 0 0.02 0.05 2",
    "an id": lambda m, t: str(m + 3),
    "text": lambda m, t: f"body-{m}",
    "three fields": lambda m, t: f"{m} 0 2",
    "four fields": lambda m, t: f"P0{m} 1 0.5 0.5",
    "none": lambda m, t: None,
}


@pytest.mark.parametrize("line", BODY_LINES)
@pytest.mark.parametrize("fields", [3, 4, 7, 11, 12])
@pytest.mark.parametrize("persons", [1, 2])
def test_fields_of_bodies_and_joints_may_be_absent(line: str, fields: int, persons: int) -> None:
    joints = body(NTU_25, 20, persons, persons=persons)
    content = kinect_text(joints, body_line=BODY_LINES[line], fields=fields)
    np.testing.assert_allclose(read(content), expected(joints), atol=1e-6)


@pytest.mark.parametrize("line", ["ten fields", "an id", "text", "none"])
@pytest.mark.parametrize("fields", [3, 12])
def test_number_of_joints_may_be_absent(line: str, fields: int) -> None:
    joints = body(NTU_25, 20, 0)
    content = kinect_text(joints, body_line=BODY_LINES[line], fields=fields, count=False)
    np.testing.assert_allclose(read(content), expected(joints), atol=1e-6)


@pytest.mark.parametrize("line", [None, "0", "Unknown"])
def test_bodies_without_usable_ids_are_matched_by_distance(line: str | None) -> None:
    joints = body(NTU_25, 30, 0, persons=2)
    rng = np.random.default_rng(0)
    content = kinect_text(joints, body_line=lambda m, t: line, order=lambda t: rng.permutation(2).tolist())
    np.testing.assert_allclose(read(content), expected(joints), atol=1e-6)


def test_ghosts_are_removed_as_in_ntu() -> None:
    joints = body(NTU_25, 30, 0, persons=2)
    joints[1, 5:] = 0  # tracked in five frames only
    content = kinect_text(joints, body_line=lambda m, t: None)
    np.testing.assert_allclose(read(content), expected(joints[:1]), atol=1e-6)


def test_coordinates_are_where_the_sensor_has_them() -> None:
    joints = body(NTU_25, 20, 0)
    np.testing.assert_allclose(read_joints(kinect_text(joints, fields=7)).joints, joints, atol=1e-6)


GOOD = kinect_text(body(NTU_25, 4, 0), fields=7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (GOOD[: len(GOOD) // 2], "fields instead of 7 on line|ends after line"),
        (GOOD.replace(b"\n25\n", b"\n20\n", 1), "has 20 joints instead of 25 for body 1 in frame 1 of 4 .line 4"),
        (GOOD.replace(b" 0.5 0.5 0.5 0.5", b" 0.5 0.5", 1), "has 5 fields on line 5, joint 1 of body 1 in frame 1"),
        (GOOD + b"1\n", "has more lines after its 4 frames"),
        (GOOD.replace(b" 0.5 0.5 0.5 0.5", b" x x x x"), ""),
        (b"4\n900\n" + GOOD[4:], "has 900 bodies in frame 1"),
        (b"900000000\n1\n", "a recording has at most"),
        (b"2\n0\n0\n", "has no body in any frame"),
        (GOOD.replace(b"\n0.", b"\nnan 0.", 1), "has 8 fields on line 5, joint 1 of body 1 in frame 1"),
        (GOOD.replace(b"\n0.", b"\nnan", 1), "instead of x of joint 1 of body 1"),
        (b"\x1f\x8b" + GOOD, "is compressed by gzip"),
    ],
)
def test_damaged_file_is_refused_in_one_line(content: bytes, message: str) -> None:
    if not message:  # fields that are not used may have any content
        assert read(content).shape == (1, 4, 25, 3)
        return
    with pytest.raises(InputError, match=message) as error:
        read(content)
    assert "\n" not in str(error.value)
