"""Raw formats: how the content of one recording's file becomes a clip.

:data:`FORMATS` has the formats of single clips, which prediction and serving read; :data:`SOURCE_FORMATS` those of
whole data sets, which :mod:`data_prep.convert` reads. To add a format, write a module with a reader ``(content,
skeleton) -> joints``, or one that opens a :class:`~fgst.data.clip_source.ClipSource`, and register it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fgst.data.clip_source import SourceFormat
from fgst.data.formats import array, ctr_gcn, ntu_skeleton, nw_ucla, pyskl, st_gcn
from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeleton import Skeleton
from fgst.data.sources import MAX_FILE_BYTES, ClipError, parse_clip
from fgst.data.writer import check_joints
from fgst.errors import InputError

__all__ = ["FORMATS", "SOURCE_FORMATS", "RawFormat", "read_clip"]


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
        is_normalized: ``read`` centres clips and orders persons itself, so a data set's normalization, which does the
            same to clips from another format, is not applied.
    """

    suffix: str
    read: Callable[[bytes, Skeleton], np.ndarray | RawClip]
    encode: Callable[[np.ndarray, Skeleton], bytes]
    is_binary: bool = False
    is_normalized: bool = False


# Formats of single clips, by the name that data sets and models record as their preparation.
FORMATS: dict[str, RawFormat] = {
    "nw-ucla": RawFormat(".json", nw_ucla.read_joints, nw_ucla.encode_joints),
    "ntu": RawFormat(".skeleton", ntu_skeleton.read_joints, ntu_skeleton.encode_joints, is_normalized=True),
    "array": RawFormat(".npy", array.read_joints, array.encode_joints, is_binary=True),
    "pyskl": RawFormat(".pkl", pyskl.read_joints, pyskl.encode_joints, is_binary=True),
}

# Formats of whole data sets, in the order in which they are tried on a source whose format is not named.
SOURCE_FORMATS: tuple[SourceFormat, ...] = (ctr_gcn.FORMAT, st_gcn.FORMAT, pyskl.FORMAT)


def read_clip(
    content: bytes, preparation: str, skeleton: Skeleton, normalization: Normalization | None = None
) -> np.ndarray:
    """Convert the content of a raw file to a clip, exactly as in the data set.

    Args:
        content: the whole file.
        preparation: its format, a key of :data:`FORMATS`.
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
        source = FORMATS[preparation]
        result = source.read(content, skeleton)
        raw = result if isinstance(result, RawClip) else RawClip(result)
        if normalization is None or source.is_normalized:
            return check_joints(raw.joints, skeleton)
        return check_joints(normalization.apply(raw, skeleton)[0], skeleton)

    try:
        return parse_clip(read, content)
    except ClipError as fault:
        raise InputError(str(fault)) from None
