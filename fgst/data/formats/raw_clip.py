"""From the content of a raw file to a clip, in the way in which the data set of a network was made."""

from __future__ import annotations

import io

import numpy as np

from fgst.data.skeleton import Skeleton
from fgst.errors import InputError

# Which files hold raw clips, by preparation.
SUFFIXES = {"nw-ucla": ".json", "ntu": ".skeleton", "array": ".npy"}
MAX_FILE_BYTES = 16 * 1024 * 1024


def read_clip(content: bytes, preparation: str, skeleton: Skeleton) -> np.ndarray:
    """The clip of a raw file.

    Args:
        content: the whole file.
        preparation: "nw-ucla" (its JSON), "ntu" (``.skeleton``, cleaned) or "array" (``.npy``, ``(T, N, 3)`` or
            ``(M, T, N, 3)``).
        skeleton: what an array must be of.

    Returns:
        ``(M, T, N, 3)`` float32, as a data set holds it.

    Raises:
        InputError: saying why it is no clip.
    """
    from fgst.cli.data_nw_ucla import read_joints
    from fgst.data.cleaning import clean
    from fgst.data.formats.ntu_skeleton import read_skeleton
    from fgst.data.sources import ClipError

    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"holds {len(content):,} bytes; no clip is longer than {MAX_FILE_BYTES:,}")
    try:
        if preparation == "nw-ucla":
            return read_joints(content)
        if preparation == "ntu":
            return clean(read_skeleton(content)).joints
    except ClipError as fault:
        raise InputError(str(fault)) from None
    return _array(content, skeleton)


def _array(content: bytes, skeleton: Skeleton) -> np.ndarray:
    try:
        joints = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, SyntaxError) as error:
        raise InputError(f"is not an array of numbers ({str(error).splitlines()[0]})") from None
    N = skeleton.num_joints
    if not isinstance(joints, np.ndarray) or joints.dtype.kind not in "fiu":
        raise InputError("holds no array of numbers")
    if joints.ndim not in (3, 4) or joints.shape[-2:] != (N, 3) or 0 in joints.shape:
        raise InputError(f"has shape {joints.shape}, not (T, {N}, 3) or (M, T, {N}, 3)")
    with np.errstate(over="ignore"):
        clip = joints.astype(np.float32)
    if not np.isfinite(clip).all():
        raise InputError("holds a coordinate that is no finite number")
    return clip if clip.ndim == 4 else clip[None]
