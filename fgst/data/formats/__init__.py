"""Raw formats: how the content of one recording's file becomes a clip.

:data:`FORMATS` has the formats of single clips, which prediction and serving read; :data:`SOURCE_FORMATS` those of
whole data sets, which :mod:`data_prep.convert` reads. To add a format, write a module with a reader ``(content,
skeleton) -> joints``, or one that opens a :class:`~fgst.data.clip_source.ClipSource`, and register it here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fgst.data.clip_source import SourceFormat
from fgst.data.formats import (
    array,
    ctr_gcn,
    joint_csv,
    kinect_v2,
    kinetics,
    ntu_skeleton,
    nw_ucla,
    openpose,
    pyskl,
    shrec,
    st_gcn,
)
from fgst.data.formats.joint_columns import parse_description
from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.sources import MAX_FILE_BYTES, ClipError, ClipFile, parse_clip
from fgst.data.writer import check_joints
from fgst.errors import InputError

__all__ = ["FORMATS", "SOURCE_FORMATS", "RawFormat", "find_format", "read_clip"]


@dataclass(frozen=True)
class RawFormat:
    """A format of raw files with one clip each.

    Attributes:
        suffix: file suffix, in lower case, including the dot.
        read: parses a whole file into joints ``(M, T, N, 3)`` or ``(M, T, N, 2)``, or into a
            :class:`~fgst.data.normalization.RawClip` if it has confidences, too, given the expected skeleton; raises
            ClipError.
        encode: the inverse for a single person's joints ``(T, N, 3)`` in the given skeleton, without labels; used for
            example requests.
        is_binary: files are not text, so requests to a model server carry them in base64.
        clips_of: returns the clips among the files of a folder: combined, if the format has a file per frame, without
            other files. ``None`` if every file with the suffix is a clip.
        normalization: how its clips are normalized in a data set, if the format determines it; ``None`` measures it.
        configure: for a format with settings: returns the format with these settings; raises ValueError.
        is_normalized: ``read`` centres clips and orders persons itself, so a data set's normalization, which does the
            same to clips from another format, is not applied.
    """

    suffix: str
    read: Callable[[bytes, Skeleton], np.ndarray | RawClip]
    encode: Callable[[np.ndarray, Skeleton], bytes]
    is_binary: bool = False
    clips_of: Callable[[Sequence[ClipFile]], list[ClipFile]] | None = None
    normalization: Normalization | None = None
    configure: Callable[[str], RawFormat] | None = None
    is_normalized: bool = False


def _described_columns(columns: str) -> RawFormat:
    """Return the format of tables of joints with described columns."""
    parse_description(columns)
    read = functools.partial(joint_csv.read_joints, columns=columns)
    return RawFormat(".csv", read, functools.partial(joint_csv.encode_joints, columns=columns))


# Formats of single clips, by the name that data sets and models record as their preparation.
FORMATS: dict[str, RawFormat] = {
    "nw-ucla": RawFormat(".json", nw_ucla.read_joints, nw_ucla.encode_joints),
    "ntu": RawFormat(".skeleton", ntu_skeleton.read_joints, ntu_skeleton.encode_joints, is_normalized=True),
    "array": RawFormat(".npy", array.read_joints, array.encode_joints, is_binary=True),
    "kinect-v2": RawFormat(
        ".skeleton", kinect_v2.read_joints, kinect_v2.encode_joints, normalization=kinect_v2.NORMALIZATION
    ),
    "openpose": RawFormat(
        ".json",
        openpose.read_joints,
        openpose.encode_joints,
        clips_of=openpose.combine,
        normalization=openpose.NORMALIZATION,
    ),
    "kinetics": RawFormat(
        ".json",
        kinetics.read_joints,
        kinetics.encode_joints,
        clips_of=kinetics.clips_of,
        normalization=kinetics.NORMALIZATION,
    ),
    "shrec": RawFormat(
        ".txt", shrec.read_joints, shrec.encode_joints, clips_of=shrec.clips_of, normalization=shrec.NORMALIZATION
    ),
    "joint-csv": RawFormat(".csv", joint_csv.read_joints, joint_csv.encode_joints, configure=_described_columns),
    "pyskl": RawFormat(".pkl", pyskl.read_joints, pyskl.encode_joints, is_binary=True),
}

# Formats of whole data sets, in the order in which they are tried on a source whose format is not named.
SOURCE_FORMATS: tuple[SourceFormat, ...] = (
    ctr_gcn.FORMAT,
    st_gcn.FORMAT,
    pyskl.FORMAT,
    openpose.FORMAT,
    kinetics.FORMAT,
    shrec.FORMAT,
    shrec.FORMAT_28,
    joint_csv.FORMAT,
)


def find_format(preparation: str) -> RawFormat:
    """Return the format of single raw clips that a data set or a model records as its preparation.

    Args:
        preparation: a key of :data:`FORMATS`, followed by a colon and settings if the format has some.

    Raises:
        ValueError: if there is no such format, or its settings are not valid.
    """
    name, colon, settings = preparation.partition(":")
    found = FORMATS.get(name)
    if found is None or (colon and found.configure is None):
        raise ValueError(f"unknown preparation {preparation!r}")
    return found.configure(settings) if colon and found.configure else found


def read_clip(
    content: bytes, preparation: str, skeleton: Skeleton, normalization: Normalization | None = None
) -> np.ndarray:
    """Convert the content of a raw file to a clip, exactly as in the data set.

    Args:
        content: the whole file.
        preparation: its format; see :func:`find_format`.
        skeleton: the skeleton that the clip must have.
        normalization: the data set's normalization; ``None`` if the format does all of it.

    Returns:
        ``(M, T, N, 3)`` float32.

    Raises:
        InputError: if it is not a clip; the message says why.
    """
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"has {len(content):,} bytes; a clip has at most {MAX_FILE_BYTES:,}")

    def read(content: bytes) -> np.ndarray:
        source = find_format(preparation)
        result = source.read(content, skeleton)
        raw = result if isinstance(result, RawClip) else RawClip(result)
        if normalization is None or source.is_normalized:
            return check_joints(raw.joints, skeleton)
        return check_joints(normalization.apply(raw, skeleton)[0], skeleton)

    try:
        return parse_clip(read, content)
    except ClipError as fault:
        raise InputError(str(fault)) from None
