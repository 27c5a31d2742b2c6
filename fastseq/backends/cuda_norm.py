"""Layer norm and RMS norm over the last axis: the part of `cuda.py` that has them."""

from __future__ import annotations

import math
from typing import Any

import cupy

from fastseq.backends.cuda_launch import contiguous, int64
from fastseq.backends.cuda_layout import aligned, column_layout, row_layout
from fastseq.backends.cuda_matmul import sum_of_parts

Array = Any

#: Blocks of the backward pass, each of which leaves a partial sum of weight's and bias's gradients: about what an H100 runs at a time.
_BLOCKS = 256
#: Turns of a block on rows, at least, so that few of those sums are left.
_TURNS = 4


def layer_norm_forward(
    x: Array, residual: Array | None, weight: Array | None, bias: Array | None, *, eps: float, centred: bool = True
) -> tuple[Array, Array, Array | None, Array]:
    """y, s = x + residual (x itself without one), and each row's mean (M,) and 1 / std (M,) for backward; not `centred`: RMS norm."""
    N, dtype = x.shape[-1], x.dtype
    M = math.prod(x.shape[:-1])
    y = cupy.empty(x.shape, dtype)
    s = x if residual is None else cupy.empty(x.shape, dtype)
    if N == 0:
        return y, s, cupy.zeros(M, dtype) if centred else None, cupy.full(M, 1 / math.sqrt(eps) if eps else math.inf, dtype)
    mean, rstd = cupy.empty(M, dtype) if centred else None, cupy.empty(M, dtype)
    layout = row_layout(N, dtype)
    inputs = [None if a is None else aligned(a) for a in (x, residual, weight, bias)]
    arguments = (y, None if residual is None else s, mean, rstd, *inputs, int64(M), N, dtype.type(eps))
    layout.kernel("layer_norm.cu", "layer_norm_forward")(layout.blocks(M), layout.block, arguments, layout.shared)
    return y, s, mean, rstd


def layer_norm_backward(
    dy: Array,
    ds: Array | None,
    s: Array,
    mean: Array | None,
    rstd: Array,
    weight: Array | None,
    *,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradient of s (of x and of the residual alike), dweight and dbias, None where they are not asked for; ds: s's own, or None."""
    N, dtype = s.shape[-1], s.dtype
    M, asked = math.prod(s.shape[:-1]), need_dweight + need_dbias
    dx = cupy.empty(s.shape, dtype) if need_dx else None
    if s.size == 0:
        return dx, cupy.zeros(N, dtype) if need_dweight else None, cupy.zeros(N, dtype) if need_dbias else None
    dy, s, mean, rstd = aligned(dy), aligned(s), None if mean is None else contiguous(mean), contiguous(rstd)
    layout = row_layout(N, dtype, 2)
    down = layout.block[1]
    share = -(-M // (min(_BLOCKS, -(-M // (down * _TURNS))) * down)) * down
    columns = column_layout(M, N, dtype)
    parts = -(-M // share) if layout.kept else columns.grid[1]
    sums = cupy.empty((parts, asked, N), dtype)
    dweight, dbias = sums if need_dweight else None, sums[0, -1] if need_dbias else None
    if need_dx or layout.kept:
        inputs = (dy, None if ds is None else aligned(ds), s, mean, rstd, None if weight is None else aligned(weight))
        arguments = (dx, dweight, dbias, *inputs, int64(M), N, int64(share), int64(asked * N))
        shared = (128 + (down * N if layout.kept and asked else 0)) * dtype.itemsize
        layout.kernel("layer_norm.cu", "layer_norm_backward")(-(-M // share), layout.block, arguments, shared)
    if not layout.kept and asked:
        columns.kernel("layer_norm_sums.cu", "layer_norm_sums")(
            columns.grid, columns.block, (dweight, dbias, dy, s, mean, rstd, int64(M), N, int64(columns.rows), int64(asked * N)), columns.shared
        )
    if not asked:
        return dx, None, None
    all_sums = sum_of_parts(sums.reshape(parts, asked * N)).reshape(asked, N)
    return dx, all_sums[0] if need_dweight else None, all_sums[-1] if need_dbias else None
