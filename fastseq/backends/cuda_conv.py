"""Convolution, max pooling and batch norm: the part of `cuda.py` that has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, gemm, int64, kernel, macros_of
from fastseq.backends.cuda_layout import THREADS
from fastseq.backends.cuda_matmul import sum_of_parts
from fastseq.backends.window import Window

Array = Any

#: Bytes of the columns of a convolution that exist at a time.
_COLUMNS = 1 << 26
#: Rows of the columns for each block, ROWS in conv.cu; and the most that a grid has in its second axis.
_COLUMN_ROWS, _GRID_Y = 16, 65535
#: Blocks that batch norm's sums are made by, about; and the most parts of one, for each who needs it adds them up.
_BLOCKS, _PARTS = 512, 64


class _Chunk(NamedTuple):
    """Samples, and positions of each."""

    first: int
    n: int
    position: int
    positions: int

    @property
    def columns(self) -> int:
        return self.n * self.positions


class _Conv:
    """What the passes of a convolution share: its sizes, its chunks and the launches around its products."""

    def __init__(self, x: Array, weight: Array, groups: int, window: Window) -> None:
        self.N, self.C, self.H, self.W = x.shape
        self.O, self.groups, self.window, self.dtype = len(weight), groups, window, x.dtype
        self.P = math.prod(window.out)
        self.rows = self.C * math.prod(window.kernel)
        self.weight = contiguous(weight).reshape(groups, self.O // groups, math.prod(weight.shape[1:]))
        (kernel_h, kernel_w), (stride_h, stride_w), (dilation_h, dilation_w), (before_h, before_w), (self.out_h, out_w) = window
        self.sizes = self.H, self.W, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, before_h, before_w, out_w

    def chunks(self) -> Iterator[_Chunk]:
        """Whole samples, or parts of one, whose columns have _COLUMNS bytes at most."""
        if self.N == 0 or self.P == 0:
            return
        columns = max(1, _COLUMNS // max(1, self.rows * self.dtype.itemsize))
        n, count = max(1, min(self.N, columns // self.P)), min(self.P, columns)
        for first in range(0, self.N, n):
            for position in range(0, self.P, count):
                yield _Chunk(first, min(n, self.N - first), position, min(count, self.P - position))

    def kernel(self, name: str) -> Any:
        return kernel("conv.cu", name, **macros_of(self.dtype))

    def columns(self, x: Array, chunk: _Chunk) -> Array:
        """col(x) (groups, C taps / groups, columns)."""
        col = cupy.empty((self.groups, self.rows // self.groups, chunk.columns), self.dtype)
        grid = -(-chunk.columns // THREADS), min(-(-self.rows // _COLUMN_ROWS), _GRID_Y)
        arguments = (col, x[chunk.first :], self.C, chunk.n, chunk.position, chunk.positions, *self.sizes)
        self.kernel("conv_columns")(grid, THREADS, arguments)
        return col

    def exchange(self, y: Array, products: Array, bias: Array | None, chunk: _Chunk, to_y: bool) -> None:
        """Between y (N, O, P) and the products (groups, O / groups, columns)."""
        arguments = (y[chunk.first :], products, bias, self.O, chunk.n, chunk.position, chunk.positions, self.P, int(to_y))
        self.kernel("conv_exchange")(-(-products.size // THREADS), THREADS, arguments)

    def products(self, chunk: _Chunk) -> Array:
        return cupy.empty((self.groups, self.O // self.groups, chunk.columns), self.dtype)


def conv_forward(x: Array, weight: Array, bias: Array | None, *, groups: int, window: Window) -> Array:
    """y (N, O, *out) of x (N, C, H, W) and weight (O, C / groups, *kernel): each position sees `window` of x, zeros outside."""
    conv, x = _Conv(x, weight, groups, window), contiguous(x)
    y = cupy.empty((conv.N, conv.O, *window.out), conv.dtype)
    bias = None if bias is None else contiguous(bias)
    for chunk in conv.chunks() if y.size else ():
        products = gemm(conv.weight, conv.columns(x, chunk), conv.products(chunk))
        conv.exchange(y, products, bias, chunk, True)
    return y


def conv_backward(
    dy: Array, x: Array, weight: Array, *, groups: int, window: Window, need_dx: bool = True, need_dweight: bool = True, need_dbias: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dweight and dbias, None where they are not asked for."""
    conv, x, dy = _Conv(x, weight, groups, window), contiguous(x), contiguous(dy)
    dx = cupy.zeros(x.shape, conv.dtype) if need_dx else None
    dweight = cupy.zeros(weight.shape, conv.dtype) if need_dweight else None
    for chunk in conv.chunks() if (need_dx or need_dweight) and dy.size and x.size else ():
        d = conv.products(chunk)
        conv.exchange(dy, d, None, chunk, False)
        if dweight is not None:
            # y = W col(x)
            gemm(d, conv.columns(x, chunk).swapaxes(1, 2), dweight.reshape(conv.weight.shape), accumulate=True)
        if dx is not None:
            col = gemm(conv.weight.swapaxes(1, 2), d)
            part = dx[chunk.first : chunk.first + chunk.n]
            arguments = (
                part, col, conv.C, chunk.n, chunk.position, chunk.positions, conv.out_h, int(chunk.position > 0), *conv.sizes
            )  # fmt: skip
            conv.kernel("conv_gather")(-(-part.size // THREADS), THREADS, arguments)
    return dx, dweight, _channel_sums(dy) if need_dbias else None


def _channel_sums(dy: Array) -> Array:
    """The sums (O,) of dy (N, O, H, W)."""
    N, O = dy.shape[:2]
    if dy.size == 0:
        return cupy.zeros(O, dy.dtype)
    channels = _Channels(dy.reshape(N, O, -1))
    return sum_of_parts(channels.sums(dy))


# ---------------------------------------------------------------- max pooling


def max_pool_forward(x: Array, *, window: Window) -> tuple[Array, Array]:
    """The greatest element of each window of x (N, C, H, W), and where it is in its plane, row by row."""
    x = contiguous(x)
    shape = (*x.shape[:2], *window.out)
    y, places = cupy.empty(shape, x.dtype), cupy.empty(shape, np.int64)
    arguments = (y, places, x, int64(math.prod(shape[:2])), *_pool_sizes(x.shape, window))
    kernel("max_pool.cu", "max_pool_forward", **macros_of(x.dtype))(-(-y.size // THREADS), THREADS, arguments)
    return y, places


def max_pool_backward(dy: Array, places: Array, shape: tuple[int, ...], *, window: Window) -> Array:
    """dx of this shape: dy where the greatest elements were."""
    dx = cupy.empty(shape, dy.dtype)
    arguments = (dx, contiguous(dy), contiguous(places), int64(math.prod(shape[:2])), *_pool_sizes(shape, window))
    kernel("max_pool.cu", "max_pool_backward", **macros_of(dy.dtype))(-(-dx.size // THREADS), THREADS, arguments)
    return dx


def _pool_sizes(shape: tuple[int, ...], window: Window) -> tuple[int, ...]:
    return (*shape[2:], *window.kernel, *window.stride, *window.dilation, *window.before, *window.out)


# ---------------------------------------------------------------- batch norm


class _Channels:
    """How the kernels of batch_norm.cu are launched for x (N, C) or (N, C, L)."""

    def __init__(self, x: Array) -> None:
        self.C, self.L = x.shape[1], x.shape[2] if x.ndim == 3 else 1
        self.E, self.dtype, self.planes = len(x) * self.L, x.dtype, int(self.L > 1)
        across = self.C if self.planes else -(-self.C // 32)
        least = 2048 if self.planes else 64
        self.parts = max(1, min(-(-self.E // least), _BLOCKS // max(across, 1), _PARTS))
        self.share = -(-self.E // self.parts)
        self.parts = -(-self.E // self.share) if self.E else 1
        self.grid = across, self.parts
        self.sizes = self.C, self.E, self.L, self.share

    def launch(self, name: str, *arguments: Any) -> None:
        macros = macros_of(self.dtype)
        kernel("batch_norm.cu", name, PLANES=self.planes, **macros)(self.grid, 256, arguments, 256 * self.dtype.itemsize)

    def empty(self) -> Array:
        """For a sum of each part and channel."""
        return cupy.empty((self.parts, self.C), self.dtype)

    def sums(self, x: Array) -> Array:
        """Of each part and channel."""
        sums = self.empty()
        self.launch("batch_norm_sums", sums, x, *self.sizes)
        return sums


def batch_norm_forward(
    x: Array, weight: Array | None, bias: Array | None, *, mean: Array | None = None, variance: Array | None = None, eps: float
) -> tuple[Array, Array, Array]:
    """y, and the mean and variance (C,) of each channel of x (N, C) or (N, C, L): the batch's, or those given."""
    x, channels, real = contiguous(x), _Channels(x), x.dtype.type
    y = cupy.empty(x.shape, x.dtype)
    given = mean is not None and variance is not None
    if x.size == 0:
        nothing = cupy.full(x.shape[1], math.nan, x.dtype)
        return y, nothing if mean is None else mean, nothing if variance is None else variance
    sums = squares = None
    if not given:
        sums, squares = channels.sums(x), channels.empty()
        channels.launch("batch_norm_squares", squares, sums, x, *channels.sizes, channels.parts)
        moments = cupy.empty((2, channels.C), x.dtype)
        mean, variance = moments
    arrays = [None if a is None else contiguous(a) for a in (mean, variance, sums, squares, x, weight, bias)]
    channels.launch("batch_norm_apply", y, *arrays, *channels.sizes, 0 if given else channels.parts, real(eps))
    return y, mean, variance


def batch_norm_backward(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    variance: Array,
    *,
    eps: float,
    given: bool,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dweight and dbias, None where they are not asked for; `given`: the moments are constants, not the batch's."""
    channels, real = _Channels(x), x.dtype.type
    dx = cupy.empty(x.shape, x.dtype) if need_dx else None
    new = cupy.zeros if x.size == 0 else cupy.empty
    dweight, dbias = (new(channels.C, x.dtype) if needed else None for needed in (need_dweight, need_dbias))
    if x.size:
        dy, x, mean, variance = map(contiguous, (dy, x, mean, variance))
        products, sums = channels.empty(), channels.empty()
        channels.launch("batch_norm_products", products, sums, dy, x, mean, *channels.sizes)
        inputs = (products, sums, dy, x, None if weight is None else contiguous(weight), mean, variance)
        channels.launch(
            "batch_norm_backward", dx, dweight, dbias, *inputs, *channels.sizes, channels.parts, real(eps), int(given)
        )
    return dx, dweight, dbias
