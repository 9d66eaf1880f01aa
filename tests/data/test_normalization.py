"""Normalization of raw clips: absence and padding, units, the up axis, persons, and the origin."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgst.data.normalization import Normalization, RawClip, UpAxis, check_shape, measure, read_normalization, to_space
from fgst.data.persons import match_persons
from fgst.data.skeletons import NTU_25, SKELETONS
from fgst.data.sources import ClipError
from fgst.data.synthetic import demo_clips


def body(frames: int = 40, *, persons: int = 1, seed: int = 0) -> np.ndarray:
    """Return generated persons ``(M, T, 25, 3)`` that move, in metres, the first at the origin."""
    rng = np.random.default_rng(seed)
    clip = next(demo_clips(1, 1, seed)).joints[:1].astype(float)
    clip = clip[:, np.arange(frames) % clip.shape[1]] + rng.normal(0, 1e-3, (1, frames, 25, 3)).cumsum(axis=1)
    clip = np.concatenate([clip * (1 - 0.1 * m) + np.array([2.0 * m, 0, 0]) for m in range(persons)])
    return clip - clip[0, 0, NTU_25.centre]


def normalized(joints: np.ndarray, **options: Any) -> np.ndarray:
    return Normalization(**options).apply(RawClip(joints), NTU_25)[0]


def test_position_of_camera_is_removed() -> None:
    clip = body(persons=2)
    expected = normalized(clip)
    np.testing.assert_allclose(expected, clip, atol=1e-6)
    np.testing.assert_allclose(normalized(clip + np.array([0.5, -0.2, 3.0])), expected, atol=1e-5)


def test_absent_persons_frames_and_joints_stay_zero() -> None:
    clip = body(persons=2) + np.array([0, 0, 3])
    clip[1, 10:20] = 0  # the second person leaves
    clip[0, 5, 7] = 0  # a joint is hidden
    clip[0, :3, NTU_25.centre] = np.nan  # so is the centre joint in the first frames
    joints = normalized(clip)
    assert joints.shape == clip.shape
    assert not joints[1, 10:20].any()
    assert not joints[0, 5, 7].any()
    assert not joints[0, :3, NTU_25.centre].any()
    np.testing.assert_array_equal(joints[0, 3, NTU_25.centre], 0)  # the origin
    np.testing.assert_allclose(joints[1, 0], clip[1, 0] - clip[0, 3, NTU_25.centre], atol=1e-6)


def test_centre_joint_that_is_never_seen() -> None:
    clip = body() + 3
    clip[:, :, NTU_25.centre] = 0
    joints = normalized(clip)
    seen = np.delete(joints[0, 0], NTU_25.centre, axis=0)
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-6)


def test_padding_is_removed_and_counted() -> None:
    clip = body(40)
    padded = np.zeros((2, 300, 25, 3))
    padded[0, :40] = clip[0]
    joints, removed = Normalization().apply(RawClip(padded), NTU_25)
    np.testing.assert_allclose(joints, clip, atol=1e-6)
    assert removed == {"absent persons": 1, "empty frames": 260}


def test_person_in_second_slot_only() -> None:
    clip = body(40)
    np.testing.assert_array_equal(normalized(np.concatenate([0 * clip, clip])), normalized(clip))


@given(
    period=st.integers(2, 120),
    length=st.sampled_from([64, 100, 300]),
    second=st.integers(2, 120),
    seed=st.integers(0, 9),
)
def test_repeated_clip_is_cut_to_its_period(period: int, length: int, second: int, seed: int) -> None:
    """Clips are padded by repetition, each person from the end of that person's own frames."""
    clip = body(120, persons=2, seed=seed)
    own = min(period, second, length)
    window = np.stack([clip[0, np.arange(length) % period], clip[1, np.arange(length) % own]])
    joints = normalized(window, persons=False)
    expected = min(period, length) if length - period >= 4 else length  # fewer frames may be equal by chance
    assert joints.shape[1] == expected
    np.testing.assert_allclose(joints[0], window[0, :expected] - window[0, 0, NTU_25.centre], atol=1e-5)
    assert joints[1, :own].any(axis=(1, 2)).all()
    if length - own >= 4:
        assert not joints[1, own:].any()


def test_still_clip_and_short_clip_are_not_cut() -> None:
    still = np.repeat(body(1), 50, axis=1)
    assert normalized(still).shape == still.shape
    assert normalized(body(3)).shape == (1, 3, 25, 3)


def test_clip_without_anybody_is_refused() -> None:
    for nothing in (0.0, np.nan):
        with pytest.raises(ClipError, match="no joint of any person is seen"):
            normalized(np.full((2, 10, 25, 3), nothing))
    clip = body()
    clip[0, 3, 4, 1] = np.nan  # a part of a joint
    with pytest.raises(ClipError, match="not a finite number"):
        normalized(clip)


def test_centre_joint_without_confidence_is_not_at_the_origin() -> None:
    clip = body()
    scores = np.ones(clip.shape[:3])
    clip[0, :3, NTU_25.centre] = scores[0, :3, NTU_25.centre] = 0
    joints = Normalization().apply(RawClip(clip, scores), NTU_25)[0]
    np.testing.assert_array_equal(joints[0, 3, NTU_25.centre], 0)
    np.testing.assert_allclose(joints[0, 0, 0], clip[0, 0, 0] - clip[0, 3, NTU_25.centre], atol=1e-6)


def test_confidence_zero_means_not_seen() -> None:
    clip = body()
    scores = np.ones(clip.shape[:3])
    scores[0, 4, 5] = 0
    joints = Normalization().apply(RawClip(clip, scores), NTU_25)[0]
    assert not joints[0, 4, 5].any()
    with_fourth = np.concatenate([clip, scores[..., None]], axis=-1)
    np.testing.assert_array_equal(normalized(with_fourth), joints)


# Persons


def test_order_of_persons_does_not_matter() -> None:
    clip = body(persons=2)
    np.testing.assert_array_equal(normalized(clip[::-1]), normalized(clip))


@pytest.mark.parametrize("seed", range(5))
def test_persons_who_change_places_in_the_array_are_matched(seed: int) -> None:
    clip = body(60, persons=2, seed=seed)
    order = np.random.default_rng(seed).integers(0, 2, 60)
    order[0] = 0
    shuffled = clip[np.stack([order, 1 - order]), np.arange(60)]
    joints, removed = Normalization().apply(RawClip(shuffled), NTU_25)
    np.testing.assert_array_equal(joints, normalized(clip))
    assert removed["frames with persons in another order"] == np.count_nonzero(np.diff(order))


def test_track_continues_under_another_index() -> None:
    """A single person who moves from the first to the second index is one person."""
    clip = body(60)
    moved = np.zeros((2, 60, 25, 3))
    moved[0, :30], moved[1, 30:] = clip[0, :30], clip[0, 30:]
    order, swapped = match_persons(moved, np.asarray(moved.any(axis=-1)))
    assert swapped == 1
    assert (order[0] == np.arange(60) // 30).all()


# Units and axes


@pytest.mark.parametrize(("factor", "unit"), [(1000, "millimetres"), (100, "centimetres")])
def test_units_are_noticed(factor: float, unit: str) -> None:
    clip = body()
    normalization, notes = measure([RawClip(clip * factor)], NTU_25)
    assert len(notes) == 1
    assert unit in notes[0]
    joints = normalization.apply(RawClip(clip * factor), NTU_25)[0]
    np.testing.assert_allclose(joints, clip, atol=1e-5)
    assert measure([RawClip(clip)], NTU_25) == (Normalization(), [])


def test_hand_in_millimetres_is_noticed() -> None:
    hand = SKELETONS["shrec-22"]
    clip = np.random.default_rng(0).normal(0, 0.03, (1, 20, 22, 3)) + 0.4
    for factor, scale in ((1, 1), (1000, 0.001)):
        assert measure([RawClip(clip * factor)], hand)[0].scale == scale


@pytest.mark.parametrize("up", ["-y", "z", "-z", "x", "-x"])
def test_up_axis_is_noticed_and_converted_on_request(up: UpAxis) -> None:
    clip = body()
    axis, sign = "xyz".index(up[-1]), -1 if up.startswith("-") else 1
    others = [a for a in range(3) if a != axis]
    rotation = np.zeros((3, 3))
    rotation[axis, 1], rotation[others[0], 0], rotation[others[1], 2] = sign, 1, 1
    rotation[others[1], 2] = np.linalg.det(rotation)  # not a reflection
    turned = clip @ rotation.T
    normalization, notes = measure([RawClip(turned)], NTU_25)
    assert normalization.up == "y"
    assert f"--up={up}" in notes[0]
    joints = dataclasses.replace(normalization, up=up).apply(RawClip(turned), NTU_25)[0]
    np.testing.assert_allclose(joints[..., 1], clip[..., 1], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(joints, axis=-1), np.linalg.norm(clip, axis=-1), atol=1e-5)
    # A rotation about y may remain, but no reflection: volumes have the same sign.
    corners = [clip[0, 0, [4, 8, 12]], joints[0, 0, [4, 8, 12]]]
    assert np.linalg.det(corners[1]) == pytest.approx(np.linalg.det(corners[0]), rel=1e-3)


def pixels(clip: np.ndarray, height: int = 1080) -> np.ndarray:
    """Project a clip onto an image: 400 pixels a metre, y down."""
    return np.stack([clip[..., 0] * 400 + 960, height / 2 - clip[..., 1] * 400], axis=-1)


def test_pixels_are_upright_and_scaled_by_image_or_torso() -> None:
    clip = body()
    for image in ((1920, 1080), None):
        raw = RawClip(pixels(clip), image=image)
        normalization, notes = measure([raw], NTU_25)
        assert normalization.up == "-y"
        assert normalization.scaling == ("image" if image else "torso")
        assert any("pixels" in note for note in notes)
        joints = normalization.apply(raw, NTU_25)[0]
        assert not joints[..., 2].any()
        scale = joints[..., 1].std() / clip[..., 1].std()
        np.testing.assert_allclose(joints[..., :2], clip[..., :2] * scale, atol=1e-5)
        assert scale == pytest.approx(400 * 2 / 1080, rel=1e-4) if image else 0.5 < scale < 2


def test_confidence_as_third_number_is_noticed() -> None:
    clip = body()
    raw = np.concatenate([pixels(clip), np.random.default_rng(0).random((1, 40, 25, 1))], axis=-1)
    normalization, notes = measure([RawClip(raw)], NTU_25)
    assert normalization.has_confidence
    assert "confidence" in notes[0]
    joints = normalization.apply(RawClip(raw), NTU_25)[0]
    assert not joints[..., 2].any()
    np.testing.assert_allclose(joints, normalization.apply(RawClip(pixels(clip)), NTU_25)[0], atol=1e-6)


def test_damaged_clips_do_not_prevent_measurement() -> None:
    bad = np.full((1, 4, 25, 3), np.inf)
    empty = np.zeros((1, 4, 25, 3))
    assert measure([RawClip(bad), RawClip(empty), RawClip(body() * 1000)], NTU_25)[0].scale == 0.001
    assert measure([RawClip(bad), RawClip(empty)], NTU_25) == (Normalization(), [])
    assert measure([], NTU_25) == (Normalization(), [])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((300, 2, 25, 3), "persons and frames are probably swapped"),
        ((11, 60, 25, 3), "persons and frames are probably swapped"),
        ((3, 60, 25, 2), "coordinates and persons are probably swapped"),
        ((1, 3, 60, 25), "25 is the length of another axis"),
        ((1, 60, 17, 3), "--skeleton coco-17 or h36m-17 has 17 joints"),
        ((1, 60, 25, 5), "has shape"),
        ((0, 60, 25, 3), "has shape"),
    ],
)
def test_swapped_axes_are_noticed(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ClipError, match=message):
        check_shape(shape, NTU_25)


@pytest.mark.parametrize("channels", [2, 3])
def test_channels_first_are_noticed_by_the_absent_person(channels: int) -> None:
    clip = np.zeros((2, 40, 25, channels))
    clip[:1] = body()[..., :channels]
    with pytest.raises(ClipError, match="the last one that of the persons"):
        to_space(RawClip(clip.transpose(3, 1, 2, 0)))
    to_space(RawClip(clip))


@pytest.mark.parametrize("shape", [(2, 1, 25, 3), (1, 1, 25, 2), (10, 60, 25, 4)])
def test_usual_shapes_are_accepted(shape: tuple[int, ...]) -> None:
    check_shape(shape, NTU_25)


def test_json_round_trip() -> None:
    normalization = Normalization(scale=0.001, scaling="torso", up="-z", has_confidence=True)
    assert read_normalization(json.loads(json.dumps(normalization.to_dict()))) == normalization
    assert read_normalization(None) is None
    with pytest.raises(ValueError, match="scaling"):
        read_normalization({"scaling": "feet"})
