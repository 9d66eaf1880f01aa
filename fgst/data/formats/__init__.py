"""Raw formats: how the content of one recording's file becomes a clip.

To add a format, write a module with a reader ``(content, skeleton) -> joints`` and an encoder for single clips, and
register it in :data:`FORMATS`. Prediction and serving then accept its files. If the format comes with a data set, add
a ``prepare`` function that passes :class:`~fgst.data.dataset.Clip` objects to
:func:`~fgst.data.writer.write_dataset`, with the format's name as ``source["preparation"]``, and a command line in
``fgst/cli`` and ``data_prep``; :mod:`fgst.data.formats.nw_ucla` is an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fgst.data.formats import custom, ntu_skeleton, nw_ucla
from fgst.data.skeleton import Skeleton
from fgst.data.sources import MAX_FILE_BYTES, ClipError, parse_clip
from fgst.data.writer import check_joints
from fgst.errors import InputError

__all__ = ["FORMATS", "RawFormat", "read_clip"]


@dataclass(frozen=True)
class RawFormat:
    """A format of raw files with one clip each.

    Attributes:
        suffix: file suffix, in lower case, including the dot.
        read: parses a whole file into joints ``(M, T, N, 3)`` float32, given the expected skeleton; raises ClipError.
        encode: the inverse for a single person's joints ``(T, N, 3)`` in the given skeleton, without labels; used for
            example requests.
        is_binary: files are not text, so requests to a model server carry them in base64.
    """

    suffix: str
    read: Callable[[bytes, Skeleton], np.ndarray]
    encode: Callable[[np.ndarray, Skeleton], bytes]
    is_binary: bool = False


# Formats by the name that data sets and models record as their preparation.
FORMATS: dict[str, RawFormat] = {
    "nw-ucla": RawFormat(".json", nw_ucla.read_joints, nw_ucla.encode_joints),
    "ntu": RawFormat(".skeleton", ntu_skeleton.read_joints, ntu_skeleton.encode_joints),
    "array": RawFormat(".npy", custom.read_joints, custom.encode_joints, is_binary=True),
}


def read_clip(content: bytes, preparation: str, skeleton: Skeleton) -> np.ndarray:
    """Convert the content of a raw file to a clip, exactly as in the data set.

    Args:
        content: the whole file.
        preparation: its format, a key of :data:`FORMATS`.
        skeleton: the skeleton that the clip must have.

    Returns:
        ``(M, T, N, 3)`` float32.

    Raises:
        InputError: if it is not a clip; the message says why.
    """
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"has {len(content):,} bytes; a clip has at most {MAX_FILE_BYTES:,}")
    try:
        return parse_clip(lambda content: check_joints(FORMATS[preparation].read(content, skeleton), skeleton), content)
    except ClipError as fault:
        raise InputError(str(fault)) from None
