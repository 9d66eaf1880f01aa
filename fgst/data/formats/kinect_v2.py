"""Own recordings of a Kinect v2 in the text format of NTU RGB+D, as many recorders write it.

Joints have NTU's order. Other than in :mod:`fgst.data.formats.ntu_skeleton`, the line of a body may have any number of
fields, or be absent, as may the line with the number of joints; a joint's line has x, y, z and any of the other fields
(3, 4, 7, 11 or 12 numbers); and ids may be text. Without ids, bodies are matched by their distance. Several bodies are
cleaned like those of NTU RGB+D.
"""

from __future__ import annotations

import numpy as np

from fgst.data.cleaning import Body, Recording, clean
from fgst.data.detections import Frame, link
from fgst.data.formats.ntu_skeleton import JOINTS, MAX_FRAMES, MAX_LINES, Lines, encode_joints, parse_fast, split_lines
from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25
from fgst.data.sources import ClipError

__all__ = ["NORMALIZATION", "encode_joints", "read_joints", "read_recording"]

JOINT_FIELDS = (3, 4, 7, 11, 12)
MAX_BODIES = 20  # per frame; the sensor tracks six

MIN_MILLIMETRES = 200  # the sensor sees persons at 0.5 to 8 metres
# Persons are matched and ordered by the cleaning, which also removes frames without any.
NORMALIZATION = Normalization(persons=False, trimmed=False)


def read_joints(content: bytes, skeleton: Skeleton = NTU_25) -> RawClip:
    """Parse and clean a ``.skeleton`` file.

    Args:
        content: the whole file.
        skeleton: not used, because all files have the same skeleton.

    Returns:
        ``(M, T, 25, 3)``, one or two persons, where the sensor has them, in metres.

    Raises:
        ClipError: if the file is malformed or has no usable body.
    """
    joints = clean(read_recording(content), centred=False).joints
    distance = float(np.median(np.abs(joints[..., 2][joints.any(axis=-1)])))
    if distance < MIN_MILLIMETRES:
        return RawClip(joints)
    return RawClip(joints / 1000, remark="coordinates are millimetres, converted to metres")


def read_recording(content: bytes) -> Recording:
    """Parse a ``.skeleton`` file.

    Raises:
        ClipError: if it is malformed, with the line, or too long for a recording.
    """
    lines = content.count(b"\n")
    if lines > MAX_LINES:
        raise ClipError(f"has {lines:,} lines; a recording has at most {MAX_LINES:,}")
    recording = parse_fast(content)  # most recorders write what NTU's does
    return _parse(content) if recording is None else recording


def _parse(content: bytes) -> Recording:
    """Parse a file line by line."""
    reader = Lines(split_lines(content))
    num_frames = reader.count("the number of frames")
    if num_frames > MAX_FRAMES:
        raise ClipError(f"has {num_frames:,} frames; a recording has at most {MAX_FRAMES:,} (line {reader.line})")
    bodies: list[list[tuple[bytes | None, list[list[float]]]]] = []  # id and joints of each body, by frame
    for frame in range(num_frames):
        in_frame = f"frame {frame + 1} of {num_frames}"
        count = reader.count(f"the number of bodies in {in_frame}")
        if count > MAX_BODIES:
            raise ClipError(
                f"has {count:,} bodies in {in_frame} (line {reader.line}); at most {MAX_BODIES} are possible"
            )
        bodies.append([_read_body(reader, f"body {body + 1} in {in_frame}") for body in range(count)])
    if reader.peek(0):
        raise ClipError(f"has more lines after its {num_frames} frames (line {reader.line + 1})")
    return Recording(num_frames, _by_id(bodies) or _by_distance(bodies))


def _read_body(reader: Lines, of_body: str) -> tuple[bytes | None, list[list[float]]]:
    """Read the lines of a body; the id is ``None`` if there is none."""
    body_id = None
    first, second, third = (reader.peek(offset) for offset in range(3))
    number = [b"%d" % JOINTS]
    if second == number or (len(second) == 1 and len(third) in JOINT_FIELDS):  # the body's line, and the number
        body_id = reader.fields(f"the fields of {of_body}", len(first))[0]
        _check_count(reader, of_body)
    elif len(first) not in JOINT_FIELDS and len(second) in JOINT_FIELDS:  # only one of both
        if first == number:
            _check_count(reader, of_body)
        else:
            body_id = reader.fields(f"the fields of {of_body}", len(first))[0]
    width = len(reader.peek(0))
    if not width:  # probably the end of the file, which the reader reports
        reader.fields(f"joint 1 of {of_body}", JOINT_FIELDS[-1])
    if width not in JOINT_FIELDS:
        allowed = ", ".join(map(str, JOINT_FIELDS))
        where = f"on line {reader.line + 1}, joint 1 of {of_body}"
        raise ClipError(f"has {width} fields {where}; it must be one of {allowed}")
    return body_id, [reader.joint(f"joint {joint + 1} of {of_body}", width) for joint in range(JOINTS)]


def _check_count(reader: Lines, of_body: str) -> None:
    count = reader.count(f"the number of joints of {of_body}")
    if count != JOINTS:
        raise ClipError(f"has {count} joints instead of {JOINTS} for {of_body} (line {reader.line})")


def _by_id(frames: list[list[tuple[bytes | None, list[list[float]]]]]) -> tuple[Body, ...] | None:
    """Group bodies by their ids; ``None`` if an id is missing, or occurs twice in a frame."""
    members: dict[bytes, tuple[list[int], list[list[list[float]]]]] = {}
    for t, bodies in enumerate(frames):
        for body_id, joints in bodies:
            if body_id is None:
                return None
            times, positions = members.setdefault(body_id, ([], []))
            if times and times[-1] == t:
                return None
            times.append(t)
            positions.append(joints)
    return tuple(
        Body(number, np.array(times), np.array(positions, np.float64))
        for number, (times, positions) in enumerate(members.values())
    )


def _by_distance(frames: list[list[tuple[bytes | None, list[list[float]]]]]) -> tuple[Body, ...]:
    """Group bodies by their distance to where each was last."""
    joints = [np.array([body for _, body in bodies], np.float64).reshape(-1, JOINTS, 3) for bodies in frames]
    tracks = link([Frame(frame, np.ones(frame.shape[:2])) for frame in joints])
    return tuple(
        Body(number, np.array(track.frames), np.stack([joints[t][i] for t, i in track.detections]))
        for number, track in enumerate(tracks)
    )
