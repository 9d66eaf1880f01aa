"""Persons from detections in any order: tracks over time, and the choice of two."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fgst.data.detections import MAX_DETECTIONS, Frame, link, most_confident
from fgst.data.skeletons import OPENPOSE_18
from tests.support.recordings import body


def frames_of(
    joints: np.ndarray, confidence: np.ndarray, rng: np.random.Generator | None = None
) -> tuple[list[Frame], np.ndarray]:
    """Return the detections of persons ``(M, T, N, C)`` in random order, and the persons with their scores.

    A joint at the origin is not seen; a person without joints is not detected.
    """
    scores = joints.any(axis=-1) * confidence.reshape(-1, 1, 1)
    frames = []
    for t in range(joints.shape[1]):
        present = np.flatnonzero(scores[:, t].any(axis=1))
        order = present if rng is None else rng.permutation(present)
        frames.append(Frame(joints[order, t], scores[order, t]))
    return frames, scores


def check(frames: list[Frame], joints: np.ndarray, scores: np.ndarray) -> None:
    found_joints, found_scores = most_confident(frames)
    np.testing.assert_array_equal(found_joints, joints)
    np.testing.assert_array_equal(found_scores, scores)


@pytest.mark.parametrize("coordinates", [2, 3])
def test_two_of_five_persons(coordinates: int) -> None:
    joints = body(OPENPOSE_18, 30, 0, persons=5)[..., :coordinates]
    confidence = np.array([0.3, 0.9, 0.5, 0.8, 0.7])
    frames, scores = frames_of(joints, confidence, np.random.default_rng(0))
    check(frames, joints[[1, 3]], scores[[1, 3]])


def test_interrupted_track_is_the_same_person() -> None:
    """A person who is lost and seen again far away is joined, unless two others are present."""
    joints = body(OPENPOSE_18, 30, 0, persons=2)
    joints[0, 10:15] = 0
    joints[0, 15:] += 40
    frames, scores = frames_of(joints, np.array([0.9, 0.5]), np.random.default_rng(0))
    assert len(link(frames)) == 3
    check(frames, joints, scores)


def test_joints_that_are_not_seen_in_turn_do_not_break_a_track() -> None:
    joints = body(OPENPOSE_18, 30, 0, persons=2)
    joints[0, ::2, :9] = 0
    joints[0, 1::2, 9:] = 0  # no joint is seen in two frames in a row
    frames, scores = frames_of(joints, np.array([0.9, 0.4]), np.random.default_rng(0))
    assert len(link(frames)) == 2
    check(frames, joints, scores)


def test_persons_who_cross_are_not_exchanged() -> None:
    joints = body(OPENPOSE_18, 40, 0, persons=2)
    joints[0] += np.linspace(0, 4, 40)[:, None, None] * np.array([1, 0, 0])
    joints[1] += np.linspace(0, -4, 40)[:, None, None] * np.array([1, 0, 0]) + np.array([0, 0, 0.5])
    frames, scores = frames_of(joints, np.array([0.9, 0.8]), np.random.default_rng(0))
    check(frames, joints, scores)


def test_crowd_is_limited_to_the_most_confident() -> None:
    one = body(OPENPOSE_18, 3, 0)
    crowd = np.concatenate([one + np.array([3.0 * i, 0, 0]) for i in range(300)])
    confidence = np.linspace(0.1, 0.9, 300)
    frames, scores = frames_of(crowd, confidence)
    assert len(link(frames[:1])) == 300
    check(frames, crowd[[299, 298]], scores[[299, 298]])
    assert len(frames[0].joints) > MAX_DETECTIONS


def test_no_detection() -> None:
    empty = Frame(np.zeros((0, 18, 2)), np.zeros((0, 18)))
    for frames in ([], [empty], [empty, Frame(np.ones((1, 18, 2)), np.zeros((1, 18)))]):
        joints, scores = most_confident(frames)
        assert len(joints) == len(scores) == 0


def test_order_of_detections_does_not_matter() -> None:
    joints = body(OPENPOSE_18, 2, 0, persons=3)
    frames, _ = frames_of(joints, np.array([0.9, 0.8, 0.1]))
    expected = most_confident(frames)
    for order in itertools.permutations(range(3)):
        shuffled = Frame(frames[1].joints[list(order)], frames[1].scores[list(order)])
        for one, other in zip(most_confident([frames[0], shuffled]), expected, strict=True):
            np.testing.assert_array_equal(one, other)
