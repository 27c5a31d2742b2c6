"""softmax, its logarithm and their losses: the part of `cuda.py` that has them."""

from __future__ import annotations

import math
from typing import Any

import cupy

from fastseq.backends.cuda_launch import contiguous, gemm, int64, kernel, macros_of
from fastseq.backends.cuda_layout import aligned, column_layout, row_layout
from fastseq.backends.cuda_matmul import sum_of_parts

Array = Any

#: Bytes of logits that `linear_cross_entropy` has at a time: every chunk more reads and writes the weight's gradient once more.
_LOGITS = 1 << 28


def softmax_forward(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis; zeros where all of it is -inf."""
    return _of_rows("softmax_forward", x)


def softmax_backward(y: Array, dy: Array) -> Array:
    """dx of y = softmax(x)."""
    return _of_rows("softmax_backward", y, dy)


def log_softmax_forward(x: Array) -> Array:
    """x - log(sum(exp(x))) over the last axis; -inf, as softmax's zeros have it, where all of it is -inf."""
    return _of_rows("log_softmax_forward", x)


def log_softmax_backward(y: Array, dy: Array) -> Array:
    """dx of y = log_softmax(x)."""
    return _of_rows("log_softmax_backward", y, dy)


def _of_rows(name: str, *inputs: Array) -> Array:
    """The function of softmax.cu on the last axis of arrays of one shape."""
    shape, dtype = inputs[0].shape, inputs[0].dtype
    result = cupy.empty(shape, dtype)
    if result.size:
        N = shape[-1]
        rows = result.size // N
        layout = row_layout(N, dtype, len(inputs))
        layout.kernel("softmax.cu", name)(
            layout.blocks(rows), layout.block, (result, *map(aligned, inputs), int64(rows), N), layout.shared
        )
    return result


# ---------------------------------------------------------------- cross entropy


def cross_entropy_forward(logits: Array, targets: Array, *, ignore_index: int, label_smoothing: float) -> tuple[Array, Array]:
    """losses (N,) and log(sum(exp(logits))) (N,)."""
    N, dtype = len(logits), logits.dtype
    losses, lse = cupy.empty(N, dtype), cupy.empty(N, dtype)
    _forward(losses, lse, aligned(logits), None, contiguous(targets), ignore_index, label_smoothing)
    return losses, lse


def cross_entropy_backward(
    lse: Array, logits: Array, targets: Array, dlosses: Array, *, ignore_index: int, label_smoothing: float
) -> Array:
    """dlogits; dlosses: (N,), or one number for every row."""
    dlogits = cupy.empty(logits.shape, logits.dtype)
    _backward(dlogits, False, aligned(logits), None, contiguous(lse), contiguous(targets), contiguous(dlosses), ignore_index, label_smoothing)
    return dlogits


def _forward(
    losses: Array, lse: Array, logits: Array, bias: Array | None, targets: Array, ignore_index: int, label_smoothing: float
) -> None:
    """Fills losses and lse; all arrays are dense."""
    N, V = logits.shape
    if V == 0:
        losses.fill(0)
        lse.fill(-math.inf)
        return
    real, layout = logits.dtype.type, row_layout(V, logits.dtype)
    weights = real(1 - label_smoothing), real(label_smoothing / V)
    arguments = (losses, lse, logits, bias, targets, int64(N), V, int64(ignore_index), *weights)
    layout.kernel("cross_entropy.cu", "cross_entropy_forward")(layout.blocks(N), layout.block, arguments, layout.shared)


def _backward(
    dlogits: Array,
    need_sums: bool,
    logits: Array,
    bias: Array | None,
    lse: Array,
    targets: Array,
    dlosses: Array,
    ignore_index: int,
    label_smoothing: float,
) -> Array | None:
    """Fills dlogits, which may be logits; its sums over parts of the rows, where they are asked for. All arrays are dense."""
    N, V = logits.shape
    if N == 0 or V == 0:
        return None
    real, layout = logits.dtype.type, column_layout(N, V, logits.dtype)
    sums = cupy.empty((layout.grid[1], V), logits.dtype) if need_sums else None
    weights = real(1 - label_smoothing), real(label_smoothing / V)
    step = 0 if dlosses.size == 1 else 1
    arguments = (
        dlogits, sums, logits, bias, lse, targets, dlosses, step, int64(N), V, int64(layout.rows), int64(ignore_index), *weights
    )  # fmt: skip
    layout.kernel("cross_entropy_backward.cu", "cross_entropy_backward")(layout.grid, layout.block, arguments, layout.shared)
    return sums


def mean_loss(losses: Array, targets: Array, *, ignore_index: int) -> tuple[Array, Array]:
    """The mean () of the losses whose target counts, NaN over none of them; and how many count, 1 at least, in the losses' dtype."""
    mean, count = cupy.empty((), losses.dtype), cupy.empty((), losses.dtype)
    arguments = (mean, count, contiguous(losses), contiguous(targets), int64(len(losses)), int64(ignore_index))
    kernel("mean_loss.cu", "mean_loss", **macros_of(losses.dtype))(1, 1024, arguments, 512)
    return mean, count


# ---------------------------------------------------------------- cross entropy of a linear layer


def linear_cross_entropy_forward(
    x: Array, weight: Array, bias: Array | None, targets: Array, *, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array]:
    """losses (N,) and log(sum(exp(logits))) (N,) of logits = x W^T + b, of which only a part exists at a time."""
    N, dtype = len(x), x.dtype
    losses, lse, targets = cupy.empty(N, dtype), cupy.empty(N, dtype), contiguous(targets)
    x, columns, bias = contiguous(x), contiguous(weight).T, None if bias is None else aligned(bias)
    scratch, chunks = _chunks(N, weight)
    for chunk in chunks:
        rows, row_losses, row_lse, row_targets = _parts(chunk, x, losses, lse, targets)
        logits = gemm(rows, columns, scratch if len(scratch) == len(rows) else scratch[: len(rows)])
        _forward(row_losses, row_lse, logits, bias, row_targets, ignore_index, label_smoothing)
    return losses, lse


def linear_cross_entropy_backward(
    lse: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    dlosses: Array,
    *,
    ignore_index: int,
    label_smoothing: float,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dweight and dbias, None where they are not asked for; dlosses: (N,), or one number for every row."""
    N, dtype = len(x), x.dtype
    lse, targets, dlosses = contiguous(lse), contiguous(targets), contiguous(dlosses)
    x, weight, bias = contiguous(x), contiguous(weight), None if bias is None else aligned(bias)
    columns, new = weight.T, cupy.empty if N and len(weight) else cupy.zeros
    dx, dweight, dbias = (
        new(shape, dtype) if need else None
        for shape, need in ((x.shape, need_dx), (weight.shape, need_dweight), (len(weight), need_dbias))
    )
    scratch, chunks = _chunks(N, weight)
    for first, end in chunks:
        rows, row_lse, row_targets = _parts((first, end), x, lse, targets)
        logits = gemm(rows, columns, scratch if len(scratch) == len(rows) else scratch[: len(rows)])
        (upstream,) = (dlosses,) if dlosses.size == 1 else _parts((first, end), dlosses)
        # losses = cross_entropy(logits); the gradient takes the logits' place
        sums = _backward(logits, need_dbias, logits, bias, row_lse, row_targets, upstream, ignore_index, label_smoothing)
        if sums is not None:
            sum_of_parts(sums, dbias, add=first > 0)
        # logits = x W^T + b
        if dx is not None:
            gemm(logits, weight, *_parts((first, end), dx))
        if dweight is not None:
            gemm(logits.T, rows, dweight, accumulate=first > 0)
    return dx, dweight, dbias


def _chunks(N: int, weight: Array) -> tuple[Array, list[tuple[int, int]]]:
    """Memory for the logits of a chunk, and the first row and the end of each: as equal as they can be, with _LOGITS bytes at most."""
    V = len(weight)
    count = max(1, -(-N * V * weight.itemsize // _LOGITS)) if N else 0
    rows = -(-N // max(count, 1))
    return cupy.empty((rows, V), weight.dtype), [(first, min(first + rows, N)) for first in range(0, N, max(rows, 1))]


def _parts(chunk: tuple[int, int], *arrays: Array) -> tuple[Array, ...]:
    """The rows of a chunk; of one that is all of them the arrays themselves, which costs the host less."""
    first, end = chunk
    return arrays if first == 0 and end == len(arrays[0]) else tuple([x[first:end] for x in arrays])
