"""Rows of a table by their number: the part of `cuda.py` that has them."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_launch import Kernel, contiguous, int64, kernel, macros_of
from fastseq.backends.cuda_layout import THREADS, access_width, aligned

Array = Any

#: Places up to which each looks for its like, among all: n^2 comparisons, about 10 us on an H100, less than a sort. A prediction.
_FEW = 4096
#: Rows of a block, a warp each.
_WARPS = 8
#: Of one launch of `ids_find_outside`, which counts in 32 bits.
_MOST_IDS = 2**31
_FINDERS, _FOUND = 1024, 4096  # blocks at most, and ids for each at least


def embedding_forward(ids: Array, weight: Array) -> Array:
    """weight[ids]."""
    D = weight.shape[1]
    y = cupy.empty((*ids.shape, D), weight.dtype)
    if y.size:
        arguments = (y, contiguous(ids), aligned(weight), int64(ids.size), D)
        _kernel("embedding_forward", D, y.dtype)(-(-ids.size // _WARPS), (32, _WARPS), arguments)
    return y


def embedding_backward(dy: Array, ids: Array, num_embeddings: int, *, padding_idx: int) -> Array:
    """dweight (V, D): the sum of dy over the places of each id; padding_idx (-1: none) gets zeros."""
    D, n, dtype = dy.shape[-1], ids.size, dy.dtype
    dweight = cupy.zeros((num_embeddings, D), dtype)
    if dy.size == 0:
        return dweight
    dy, ids, padding = aligned(dy), contiguous(ids), int64(padding_idx)
    if n <= _FEW:
        _kernel("embedding_backward_few", D, dtype)(n, 128, (dweight, dy, ids, n, D, padding), 32)
        return dweight
    order = cupy.argsort(ids.reshape(-1), kind="stable")
    parts = cupy.empty((-(-n // 32), D), dtype)
    _kernel("embedding_backward_pieces", D, dtype)(
        -(-n // _WARPS), (32, _WARPS), (dweight, parts, dy, ids, order, int64(n), D, padding)
    )
    _kernel("embedding_backward_join", D, dtype)(
        -(-len(parts) // _WARPS), (32, _WARPS), (dweight, parts, ids, order, int64(n), D, padding)
    )
    return dweight


def ids_find_outside(ids: Array, limit: int) -> int:
    """The flat position of the first id outside [0, limit), or -1; waits for the device."""
    ids = contiguous(ids).reshape(-1)
    for first in range(0, ids.size, _MOST_IDS):
        part = ids[first : first + _MOST_IDS]
        blocks = min(-(-part.size // _FOUND), _FINDERS)
        found = cupy.empty(blocks, np.uint32)
        kernel("embedding.cu", "ids_find_outside", REAL="float", W=1)(
            blocks, THREADS, (found, part, np.uint32(part.size), int64(limit)), 32
        )
        position = int(found.get().max())
        if position:
            return first + part.size - position
    return -1


def _kernel(name: str, D: int, dtype: Any) -> Kernel:
    return kernel("embedding.cu", name, W=access_width(D, dtype.itemsize), **macros_of(dtype))
