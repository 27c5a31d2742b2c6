"""Layer norm and RMS norm over the last axis: the part of `cuda.py` that has them."""

from __future__ import annotations

import math
from typing import Any

import cupy

from fastseq.backends.cuda_launch import contiguous, int64
from fastseq.backends.cuda_layout import aligned, column_layout, row_layout
from fastseq.backends.cuda_matmul import sums_of_parts

Array = Any

#: Blocks of the backward pass, each of which leaves a partial sum of weight's and bias's gradients: somewhat more than an H100 runs at a time.
_BLOCKS = 512
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
    M = math.prod(s.shape[:-1])
    dx = cupy.empty(s.shape, dtype) if need_dx else None
    wanted = need_dweight, need_dbias
    if s.size == 0:
        dweight, dbias = (cupy.zeros(N, dtype) if need else None for need in wanted)
        return dx, dweight, dbias
    layout, columns = row_layout(N, dtype, 2), column_layout(M, N, dtype)
    down = layout.block[1]
    share = -(-M // (min(_BLOCKS, -(-M // (down * _TURNS))) * down)) * down
    parts = -(-M // share) if layout.kept else columns.grid[1]
    # The tape takes an array as a gradient as it is, but copies a view: the sums of one part are the gradients.
    sums = [cupy.empty(N if parts == 1 else (parts, N), dtype) if need else None for need in wanted]
    dy, s, mean, rstd = aligned(dy), aligned(s), None if mean is None else contiguous(mean), contiguous(rstd)
    if need_dx or layout.kept:
        inputs = (dy, None if ds is None else aligned(ds), s, mean, rstd, None if weight is None else aligned(weight))
        shared = (128 + (down * N if layout.kept and any(wanted) else 0)) * dtype.itemsize
        arguments = (dx, *sums, *inputs, int64(M), N, int64(share))
        layout.kernel("layer_norm.cu", "layer_norm_backward")(-(-M // share), layout.block, arguments, shared)
    if not layout.kept and any(wanted):
        arguments = (*sums, dy, s, mean, rstd, int64(M), N, int64(columns.rows))
        columns.kernel("layer_norm_sums.cu", "layer_norm_sums")(columns.grid, columns.block, arguments, columns.shared)
    if parts > 1 and any(wanted):
        found = [None if part is None else cupy.empty(N, dtype) for part in sums]
        sums_of_parts(tuple((part, out) for part, out in zip(sums, found, strict=True) if part is not None))
        sums = found
    return dx, sums[0], sums[1]
