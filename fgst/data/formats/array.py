"""Single clips in NumPy's ``.npy`` format."""

from __future__ import annotations

import io
import math

import numpy as np
from numpy.lib import format as npy

from fgst.data.normalization import check_shape
from fgst.data.skeleton import Skeleton
from fgst.data.sources import ClipError
from fgst.parsing import shorten

# Readers of the headers by the version of the format.
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_joints(content: bytes, skeleton: Skeleton) -> np.ndarray:
    """Parse a clip from the content of an ``.npy`` file.

    The size in the header must be that of the file, so that no memory is allocated for numbers that are not there.

    Args:
        content: the whole file: numbers of shape ``(T, N, 3)`` or ``(M, T, N, 3)``, or with two coordinates.
        skeleton: gives N.

    Returns:
        ``(M, T, N, 3)`` or ``(M, T, N, 2)``, in the type of the file.

    Raises:
        ClipError: if it is not such an array.
    """
    file = io.BytesIO(content)
    try:
        read_header = HEADERS[npy.read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
    except (KeyError, ValueError) as error:
        raise ClipError(f"is not an array of numbers in an .npy file ({shorten(str(error))})") from None
    N = skeleton.num_joints
    if dtype.kind not in "fiu":
        raise ClipError(f"contains {dtype} values, not numbers")
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ClipError(f"has shape {shape}, not (T, {N}, 3) or (M, T, {N}, 3)")
    size, expected = len(content) - file.tell(), math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ClipError(f"has {size:,} bytes of numbers instead of the {expected:,} of shape {shape}")
    joints = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    joints = joints if joints.ndim == 4 else joints[None]
    check_shape(joints.shape, skeleton)
    return joints


def encode_joints(joints: np.ndarray, skeleton: Skeleton) -> bytes:
    """Write joints, ``(T, N, 3)``, as an ``.npy`` file."""
    del skeleton
    file = io.BytesIO()
    np.save(file, joints)
    return file.getvalue()
