"""How far a result may be from the float64 reference: by dtype and by the number of terms that each element adds up.

An element that sums n terms of size s has a rounding error of about eps n s at the worst. The size of the terms is taken
from the expected array itself: the element, plus the root mean square of all of them, because sums that cancel keep the
error of their terms. `test_tolerance.py` holds these bounds to what they must reject.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Roundings of an element that sums nothing: the few ulp of a function, and the operations around it.
ROUNDINGS = 8


def bound(want: np.ndarray, dtype: Any, terms: int = 1) -> np.ndarray:
    """The largest allowed |got - want| of each element."""
    want = np.abs(np.asarray(want, np.float64))
    finite = want[np.isfinite(want)]
    size = np.sqrt(np.mean(finite**2)) if finite.size else 0.0
    return np.finfo(dtype).eps * (ROUNDINGS + terms) * (np.where(np.isfinite(want), want, 0.0) + size)


def assert_close(got: Any, want: Any, *, dtype: Any = None, terms: int = 1, name: str = "result") -> None:
    """Raises AssertionError unless `got` is `want` within `bound`, with the same shape, NaN and infinities.

    dtype: whose eps counts, and what `got` must have; by default the dtype of `got`.
    """
    got, want = np.asarray(got), np.asarray(want, np.float64)
    dtype = np.dtype(got.dtype if dtype is None else dtype)
    if got.dtype != dtype:
        raise AssertionError(f"{name}: expected {dtype}, got {got.dtype}")
    if got.shape != want.shape:
        raise AssertionError(f"{name}: expected shape {want.shape}, got {got.shape}")
    special = ~np.isfinite(want)
    wrong = ~np.isfinite(got) | special
    wrong &= ~((np.isnan(got) & np.isnan(want)) | ((got == want) & special))
    with np.errstate(invalid="ignore"):
        wrong |= ~special & ~(np.abs(np.float64(1) * got - want) <= bound(want, dtype, terms))
    if wrong.any():
        worst = np.unravel_index(int(np.argmax(np.where(wrong, np.nan_to_num(np.abs(got - want), nan=np.inf), -1))), got.shape)
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {got.size} elements are off, the worst at {tuple(int(k) for k in worst)}: "
            f"expected {want[worst]!r}, got {got[worst]!r}, allowed {bound(want, dtype, terms)[worst]:.3g}"
        )


def assert_same_bits(got: Any, want: Any, name: str = "result") -> None:
    """Raises AssertionError unless the two arrays are equal bit for bit."""
    got, want = np.asarray(got), np.asarray(want)
    if got.dtype != want.dtype or got.shape != want.shape:
        raise AssertionError(f"{name}: expected {want.dtype} {want.shape}, got {got.dtype} {got.shape}")
    if got.tobytes() != want.tobytes():
        differ = (got != want) & ~(np.isnan(got) & np.isnan(want)) if got.dtype.kind == "f" else got != want
        raise AssertionError(f"{name}: {int(np.sum(differ))} of {got.size} elements differ in their bits")
