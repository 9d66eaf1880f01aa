"""The cleaning, rule by rule, at its thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fgst.data.cleaning import clean
from fgst.data.formats.ntu_skeleton import Body, Recording
from fgst.data.sources import ClipError
from tests.support.ntu_corpus import person

RNG = np.random.default_rng(1)


def body(number: int, frames: Sequence[int], *, motion: float = 0.1, wide: bool = False) -> Body:
    return Body(number, np.array(frames), person(RNG, len(frames), motion=motion, wide=wide))


def spread(ratio: float, frames: int, motion: float = 0.1) -> np.ndarray:
    """A body whose x extent is ``ratio`` times its y extent, exactly."""
    joints = np.zeros((frames, 25, 3))
    joints[:, 0, 1], joints[:, 1, 1] = -0.5, 0.5
    joints[:, 2, 0] = ratio
    joints[..., 2] = 2 + motion * np.sin(np.arange(frames))[:, None]
    return joints


def test_a_body_alone_is_taken_as_it_is() -> None:
    """However short or wide."""
    wide = body(1, range(3), wide=True)
    cleaned = clean(Recording(3, (wide,)))
    assert cleaned.removed == {}
    np.testing.assert_allclose(cleaned.joints[0], wide.joints - wide.joints[0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("length", "persons"), [(11, 1), (12, 2)])
def test_a_ghost_is_seen_in_eleven_frames_or_fewer(length: int, persons: int) -> None:
    cleaned = clean(Recording(40, (body(1, range(40)), body(2, range(length)))))
    assert len(cleaned.joints) == persons


@pytest.mark.parametrize(("ratio", "persons"), [(0.8, 2), (0.8000001, 1)])
def test_a_frame_is_noise_beyond_four_fifths(ratio: float, persons: int) -> None:
    cleaned = clean(Recording(20, (body(1, range(20)), Body(2, np.arange(20), spread(ratio, 20)))))
    assert len(cleaned.joints) == persons


@pytest.mark.parametrize(("noisy", "persons"), [(69, 2), (70, 1)])
def test_a_body_is_noise_from_the_share_on(noisy: int, persons: int) -> None:
    """0.69754 of 100 frames lies between 69 and 70."""
    joints = spread(0.5, 100)
    joints[:noisy] = spread(2.0, noisy)
    cleaned = clean(Recording(100, (body(1, range(100)), Body(2, np.arange(100), joints))))
    assert len(cleaned.joints) == persons
    assert cleaned.removed == ({"noise bodies": 1} if persons == 1 else {"noise frames": 69})
    if persons == 2:
        assert sorted(person.any(axis=(1, 2)).sum() for person in cleaned.joints) == [31, 100]


def test_of_bodies_that_are_all_noise_the_last_stays() -> None:
    cleaned = clean(Recording(20, (body(1, range(20), wide=True), body(2, range(20), wide=True))))
    assert len(cleaned.joints) == 1
    assert cleaned.removed == {"noise bodies": 1}


def test_the_two_who_move_most_are_kept_the_first_first() -> None:
    bodies = tuple(Body(i, np.arange(20), spread(0.5, 20, motion)) for i, motion in enumerate((0.1, 0.4, 0.2)))
    cleaned = clean(Recording(20, bodies))
    assert cleaned.removed == {"further bodies": 1}
    for track, chosen in zip(cleaned.joints, (bodies[1], bodies[2]), strict=True):
        np.testing.assert_allclose(track, chosen.joints - bodies[1].joints[0, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("start", "persons"), [(19, 1), (20, 1), (23, 1), (18, 2)])
def test_fragments_are_joined_unless_they_overlap(start: int, persons: int) -> None:
    """At one frame that both have, it is the fragment with less motion that counts there."""
    cleaned = clean(Recording(40, (body(1, range(20), motion=0.5), body(2, range(start, 40)))))
    assert len(cleaned.joints) == persons
    assert cleaned.removed["joined fragments"] == 2 - persons
    assert cleaned.joints.shape[1] == (40 if start <= 20 else 37)


def test_a_third_body_joins_the_second_where_it_overlaps_the_first() -> None:
    whole, early, late = body(1, range(40), motion=0.5), body(2, range(14), motion=0.3), body(3, range(20, 40))
    cleaned = clean(Recording(40, (whole, early, late)))
    assert cleaned.removed == {"joined fragments": 1}
    seen = cleaned.joints[1].any(axis=(1, 2))
    assert np.flatnonzero(~seen).tolist() == list(range(14, 20))


def test_somebody_who_is_not_seen_is_zero_and_the_origin_moves_nobody_else() -> None:
    first, second = body(1, range(5, 30), motion=0.5), body(2, range(15))
    cleaned = clean(Recording(30, (first, second)))
    origin = first.joints[0, 1]
    assert not cleaned.joints[0, :5].any()
    assert not cleaned.joints[1, 15:].any()
    np.testing.assert_allclose(cleaned.joints[1, :15], second.joints - origin, rtol=0, atol=1e-6)
    assert cleaned.joints.dtype == np.float32


def test_without_a_usable_body_there_is_no_clip() -> None:
    for bodies in ((), (body(1, range(5)), body(2, range(6, 10))), (Body(1, np.arange(4), np.zeros((4, 25, 3))),)):
        with pytest.raises(ClipError, match="body"):
            clean(Recording(20, bodies))
