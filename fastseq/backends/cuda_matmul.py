"""Products with what follows them, by cuBLAS and one kernel, and the sums of columns: the part of `cuda.py` that has them."""

from __future__ import annotations

import functools
import math
from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, gemm, int64, kernel, macros_of
from fastseq.backends.cuda_layout import THREADS, aligned, column_layout

Array = Any

#: In the order of kernels/functions.cuh.
FUNCTIONS = {
    name: number
    for number, name in enumerate(
        ("identity", "exp", "log", "tanh", "sigmoid", "relu", "erf", "gelu", "gelu_tanh", "silu", "softplus", "elu", "leaky_relu")
    )
}
#: Blocks of the epilogue along the rows, at most.
_DOWN = 2048


class MatmulPacked:
    """A snapshot of a right-hand operand (K, N)."""

    def __init__(self, b: Array) -> None:
        self.matrix = b.copy()
        self.shape, self.dtype = b.shape, b.dtype

    def numpy(self) -> np.ndarray:
        """Its elements on the CPU."""
        return self.matrix.get()


def matmul(a: Array, b: Any, *, bias: Array | None = None, function: str = "identity") -> Array:
    """f(a b + bias): a (..., M, K), b (..., K, N) or a `pack`, bias (N,)."""
    if type(b) is MatmulPacked:
        b = b.matrix
    if b.ndim > 2:
        y = _batches(a, b)
    else:
        *lead, K = a.shape  # the rows of all leading axes are rows of one product
        y = gemm(_operand(a if a.ndim == 2 else a.reshape(math.prod(lead), K)), _operand(b))
        y = y if a.ndim == 2 else y.reshape(*lead, b.shape[1])
    if y.size and (bias is not None or function != "identity"):
        _epilogue(y, bias, FUNCTIONS[function])
    return y


def pack(b: Array) -> Any:
    """A snapshot of b (K, N) for `matmul`."""
    return MatmulPacked(b)


def _batches(a: Array, b: Array) -> Array:
    """b has leading axes: one call if those of both operands are one stride apart throughout, else a call for each of the outer ones."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = cupy.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype)
    if y.size == 0:
        return y
    # What is not read again and again is put in order, so that one call does.
    a, b = (_operand(x if _one_stride(x) or x.shape[:-2] != lead else contiguous(x)) for x in (a, b))
    a, b = (cupy.broadcast_to(x, lead + x.shape[-2:]) for x in (a, b))
    if _one_stride(a) and _one_stride(b):
        gemm(*(x.reshape(-1, *x.shape[-2:]) for x in (a, b, y)))
        return y
    for outer in np.ndindex(lead[:-1]):
        gemm(a[outer], b[outer], y[outer])
    return y


def _operand(x: Array) -> Array:
    """x with elements next to each other along one of its last two axes, as cuBLAS needs them; itself where they are."""
    if x.flags.c_contiguous:
        return x
    (down, along), (rows, columns) = x.strides[-2:], x.shape[-2:]
    itemsize = x.itemsize
    if (along == itemsize or columns == 1) and (down >= columns * itemsize or rows == 1):
        return x
    if (down == itemsize or rows == 1) and (along >= rows * itemsize or columns == 1):
        return x
    return contiguous(x)


def _one_stride(x: Array) -> bool:
    """Whether the matrices of x lie one stride apart, so that a reshape of the leading axes copies nothing."""
    return all(x.strides[i] == x.strides[i + 1] * x.shape[i + 1] for i in range(x.ndim - 3))


def _epilogue(y: Array, bias: Array | None, function: int) -> None:
    """y = f(y + bias) in place, over the last axis."""
    N = y.shape[-1]
    M = y.size // N
    arguments = (y, None if bias is None else aligned(bias), int64(M), N, function)
    kernel("pointwise.cu", "epilogue", **macros_of(y.dtype))(*_epilogue_blocks(M, N, y.itemsize), arguments)


@functools.lru_cache(1 << 10)
def _epilogue_blocks(M: int, N: int, itemsize: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and block: threads along the columns as far as there are any, the others along the rows."""
    lanes = 16 // itemsize
    across = min(THREADS, 1 << (-(-N // lanes) - 1).bit_length())
    down = THREADS // across
    return (-(-N // (across * lanes)), min(-(-M // down), _DOWN)), (across, down)


# ---------------------------------------------------------------- sums of columns


def bias_backward(dy: Array) -> Array:
    """The gradient of a bias (N,) that was added to every row of (M, N)."""
    M, N = dy.shape
    if M == 0 or N == 0:
        return cupy.zeros(N, dy.dtype)
    layout = column_layout(M, N, dy.dtype)
    parts = layout.grid[1]
    sums = cupy.empty(N if parts == 1 else (parts, N), dy.dtype)
    layout.kernel("bias.cu", "column_sums")(
        layout.grid, layout.block, (sums, aligned(dy), None, None, int64(M), N, int64(layout.rows), 0), layout.shared
    )
    return sums if parts == 1 else sum_of_parts(sums)


def sum_of_parts(parts: Array, out: Array | None = None, *, add: bool = False) -> Array:
    """The sums (N,) over the rows of parts (P, N), in their order; `add`: to what is in `out`."""
    out = cupy.empty(parts.shape[1], parts.dtype) if out is None else out
    sums_of_parts(((parts, out),), add=add)
    return out


def sums_of_parts(work: tuple[tuple[Array, Array], ...], *, add: bool = False) -> None:
    """The same in one launch for one or two (parts, out) of a size."""
    (parts, out), (others, other) = work[0], work[1] if len(work) > 1 else (None, None)
    P, N = parts.shape
    layout = column_layout(P, N, parts.dtype, whole=True)
    arguments = (out, parts, other, others, int64(P), N, int64(layout.rows), int(add))
    layout.kernel("bias.cu", "column_sums")((*layout.grid, len(work)), layout.block, arguments, layout.shared)
