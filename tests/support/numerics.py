"""Comparison of floating-point results with tolerances that follow from the arithmetic.

Two correct computations of the same value differ only by rounding: in the order of a sum, in fused multiply-adds, in
the library's exponential. Rounding errors are proportional to the machine epsilon and to the magnitude of what is
summed, not to the result, which may be close to zero by cancellation. The bound is therefore absolute:

    |actual − expected| ≤ eps · terms · scale

It holds on every processor, and it is many orders of magnitude below the effect of a wrong sign, factor or index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def to_array(values: Any) -> np.ndarray:
    """Convert a tensor on any device, an array, a number or a sequence of numbers to an array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:
            values = values.float()
        return values.numpy()
    return np.asarray(values)


def epsilon(dtype: torch.dtype) -> float:
    """Return the distance from 1 to the next larger number of a type."""
    return torch.finfo(dtype).eps


def tolerance(dtype: torch.dtype, *, terms: float, scale: float) -> float:
    """Return eps · terms · scale, the largest difference that rounding explains."""
    return epsilon(dtype) * terms * scale


def assert_close(
    actual: Any, expected: Any, *, terms: float, scale: float | None = None, dtype: torch.dtype | None = None
) -> None:
    """Assert that two computations of the same values differ by rounding only.

    Args:
        actual, expected: tensors, arrays, numbers or sequences of numbers, of the same shape.
        terms: number of roundings that accumulate in one value: the length of its longest sum, times the number of
            operations in sequence, times the factor by which later operations (such as a norm that divides by a small
            deviation) amplify earlier errors.
        scale: magnitude of what is summed; by default the largest expected value.
        dtype: type of the computation; by default the less precise one of both arguments' types.
    """
    actual_values, expected_values = to_array(actual), to_array(expected)
    assert actual_values.shape == expected_values.shape, f"{actual_values.shape} is not {expected_values.shape}"
    if dtype is None:
        single = np.dtype(np.float32) in (actual_values.dtype, expected_values.dtype)
        dtype = torch.float32 if single else torch.float64
    wide, reference = actual_values.astype(np.float64), expected_values.astype(np.float64)
    if scale is None:
        scale = float(np.abs(reference).max(initial=0))
    np.testing.assert_allclose(wide, reference, rtol=0, atol=tolerance(dtype, terms=terms, scale=scale))
