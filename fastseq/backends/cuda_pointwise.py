"""What is done element by element, and dropout: the part of `cuda.py` that has them."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, int64, kernel, macros_of

Array = Any

_THREADS = 256


def dropout(x: Array, *, p: float, seed: int, layer: int, call: int) -> Array:
    """x m / (1 - p), m drawn by Philox, bit for bit the CPU's; the same call on dy is backward."""
    x, n = contiguous(x), x.size
    y = cupy.empty(x.shape, x.dtype)
    threshold = math.ceil(p * 2.0**32)  # the least word that is kept
    if threshold >= 2**32:
        y.fill(0)
        return y
    factor = x.dtype.type(1 / (1 - p))
    arguments = (y, x, int64(n), np.uint32(threshold), factor, np.uint64(seed), np.uint32(layer), np.uint32(call))
    kernel("dropout.cu", "dropout", **macros_of(x.dtype))(-(-n // (4 * _THREADS)), _THREADS, arguments)
    return y
