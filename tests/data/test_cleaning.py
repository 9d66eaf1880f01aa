"""The rules for cleaning NTU RGB+D recordings, tested at their thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fgst.data.cleaning import Body, Recording, clean
from fgst.data.sources import ClipError
from tests.support.ntu_corpus import bending, person, standing

RNG = np.random.default_rng(1)


def body(body_id: int, frames: Sequence[int], *, motion: float = 0.1, wide: bool = False) -> Body:
    """Return a body that is tracked in the given frames."""
    return Body(body_id, np.array(frames), person(RNG, len(frames), motion=motion, wide=wide))


def joints_with_ratio(ratio: float, frames: int, motion: float = 0.1) -> np.ndarray:
    """Return the joints of a body whose width is exactly ``ratio`` times its height, ``(frames, 25, 3)``."""
    joints = np.zeros((frames, 25, 3))
    joints[:, 0, 1], joints[:, 1, 1] = -0.5, 0.5
    joints[:, 2, 0] = ratio
    joints[..., 2] = 2 + motion * np.sin(np.arange(frames))[:, None]
    return joints


def test_single_body_is_unchanged_even_if_short_and_wide() -> None:
    wide = body(1, range(3), wide=True)
    cleaned = clean(Recording(3, (wide,)))
    assert cleaned.removed == {}
    np.testing.assert_allclose(cleaned.joints[0], wide.joints - wide.joints[0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("length", "persons"), [(11, 1), (12, 2)])
def test_bodies_of_up_to_eleven_frames_are_ghosts(length: int, persons: int) -> None:
    cleaned = clean(Recording(40, (body(1, range(40)), body(2, range(length)))))
    assert len(cleaned.joints) == persons


@pytest.mark.parametrize(("ratio", "persons"), [(0.8, 2), (0.8000001, 1)])
def test_bodies_wider_than_threshold_are_noise(ratio: float, persons: int) -> None:
    cleaned = clean(Recording(20, (body(1, range(20)), Body(2, np.arange(20), joints_with_ratio(ratio, 20)))))
    assert len(cleaned.joints) == persons


@pytest.mark.parametrize(("wide", "persons"), [(69, 2), (70, 1)])
def test_bodies_with_too_many_wide_frames_are_noise(wide: int, persons: int) -> None:
    """The threshold of 0.69754 is between 69 and 70 of 100 frames."""
    joints = joints_with_ratio(0.5, 100)
    joints[:wide] = joints_with_ratio(2.0, wide)
    cleaned = clean(Recording(100, (body(1, range(100)), Body(2, np.arange(100), joints))))
    assert len(cleaned.joints) == persons
    assert cleaned.removed == ({"noise bodies": 1} if persons == 1 else {})


def test_last_body_remains_even_if_all_its_frames_are_wide() -> None:
    bodies = (body(1, range(20), wide=True), body(2, range(20), wide=True))
    cleaned = clean(Recording(20, bodies))
    assert cleaned.removed == {"noise bodies": 1}
    np.testing.assert_allclose(cleaned.joints[0], bodies[1].joints - bodies[1].joints[0, 1], rtol=0, atol=1e-6)


def test_frames_of_a_person_who_bends_down_remain() -> None:
    bender = Body(1, np.arange(30), bending(30))
    for motion, first in ((0.1, 0), (0.6, 1)):
        other = Body(2, np.arange(30), standing(30, motion=motion))
        cleaned = clean(Recording(30, (bender, other)))
        assert cleaned.removed == {}
        persons = (bender, other) if first == 0 else (other, bender)
        for track, expected in zip(cleaned.joints, persons, strict=True):
            np.testing.assert_allclose(track, expected.joints - persons[0].joints[0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", [-1e-3, 1e-3])
@pytest.mark.parametrize(("wide_z", "counted"), [(5.0, "upright frames"), (0.0, "all frames")])
def test_rank_is_lesser_motion_with_or_without_wide_frames(wide_z: float, counted: str, margin: float) -> None:
    """The upright frames are at z = ±0.5. Wide frames increase the variance at z = 5, and reduce it at z = 0."""
    joints = joints_with_ratio(0.5, 30, motion=0.0)
    joints[:10, :, 2], joints[20:, :, 2] = -0.5, 0.5
    joints[10:20, 2, 0], joints[10:20, :, 2] = 0.9, wide_z
    motion = {
        "all frames": np.var(joints.reshape(-1, 3), axis=0).sum(),
        "upright frames": np.var(np.delete(joints, range(10, 20), axis=0).reshape(-1, 3), axis=0).sum(),
    }
    assert min(motion, key=lambda name: motion[name]) == counted
    other = joints_with_ratio(0.5, 30, motion=0.0)
    z_variance = motion[counted] + margin - np.var(other.reshape(-1, 3), axis=0)[:2].sum()
    other[:15, :, 2], other[15:, :, 2] = -np.sqrt(z_variance), np.sqrt(z_variance)
    cleaned = clean(Recording(30, (Body(1, np.arange(30), joints), Body(2, np.arange(30), other))))
    assert cleaned.removed == {}
    first = other if margin > 0 else joints
    np.testing.assert_allclose(cleaned.joints[0], first - first[0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("length", "persons"), [(11, 1), (12, 2)])
def test_wide_frames_count_for_the_length_of_a_body(length: int, persons: int) -> None:
    joints = joints_with_ratio(0.5, length)
    joints[:8] = joints_with_ratio(2.0, 8)  # 8 of 12 frames are below the threshold for noise
    cleaned = clean(Recording(20, (body(1, range(20)), Body(2, np.arange(length), joints))))
    assert len(cleaned.joints) == persons
    assert cleaned.removed == ({"ghost bodies": 1} if persons == 1 else {})
    if persons == 2:
        assert sorted(person.any(axis=(1, 2)).sum() for person in cleaned.joints) == [12, 20]


def test_recording_of_a_single_wide_frame_is_unchanged() -> None:
    cleaned = clean(Recording(1, (body(1, [0], wide=True),)))
    assert cleaned.joints.shape == (1, 1, 25, 3)
    assert cleaned.removed == {}


def test_two_bodies_with_most_motion_remain_in_order_of_motion() -> None:
    bodies = tuple(
        Body(i, np.arange(20), joints_with_ratio(0.5, 20, motion)) for i, motion in enumerate((0.1, 0.4, 0.2))
    )
    cleaned = clean(Recording(20, bodies))
    assert cleaned.removed == {"further bodies": 1}
    for track, expected in zip(cleaned.joints, (bodies[1], bodies[2]), strict=True):
        np.testing.assert_allclose(track, expected.joints - bodies[1].joints[0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("start", "persons"), [(19, 1), (20, 1), (23, 1), (18, 2)])
def test_fragments_are_joined_unless_they_overlap(start: int, persons: int) -> None:
    """Fragments may share one frame, which is taken from the fragment with less motion."""
    cleaned = clean(Recording(40, (body(1, range(20), motion=0.5), body(2, range(start, 40)))))
    assert len(cleaned.joints) == persons
    assert cleaned.removed["joined fragments"] == 2 - persons
    assert cleaned.joints.shape[1] == (40 if start <= 20 else 37)


def test_third_body_is_joined_with_second_if_it_overlaps_first() -> None:
    full, early, late = body(1, range(40), motion=0.5), body(2, range(14), motion=0.3), body(3, range(20, 40))
    cleaned = clean(Recording(40, (full, early, late)))
    assert cleaned.removed == {"joined fragments": 1}
    tracked = cleaned.joints[1].any(axis=(1, 2))
    assert np.flatnonzero(~tracked).tolist() == list(range(14, 20))


def test_untracked_frames_are_zero_after_moving_origin() -> None:
    first, second = body(1, range(5, 30), motion=0.5), body(2, range(15))
    cleaned = clean(Recording(30, (first, second)))
    origin = first.joints[0, 1]
    assert not cleaned.joints[0, :5].any()
    assert not cleaned.joints[1, 15:].any()
    np.testing.assert_allclose(cleaned.joints[1, :15], second.joints - origin, rtol=0, atol=1e-6)
    assert cleaned.joints.dtype == np.float32


def test_recordings_without_usable_body_are_rejected() -> None:
    for bodies in ((), (body(1, range(5)), body(2, range(6, 10))), (Body(1, np.arange(4), np.zeros((4, 25, 3))),)):
        with pytest.raises(ClipError, match="body"):
            clean(Recording(20, bodies))
