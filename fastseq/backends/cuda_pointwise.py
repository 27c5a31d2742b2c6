"""What is done element by element, dropout, and sums' gradients: the part of `cuda.py` that has them."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, int64, kernel, macros_of
from fastseq.backends.cuda_layout import THREADS, blocks_of
from fastseq.backends.cuda_matmul import FUNCTIONS

Array = Any


def pointwise_forward(x: Array, *, function: str, parameter: float = 0.0) -> Array:
    """f of each element; function: exp, log, tanh, sigmoid, relu, erf, gelu, gelu_tanh, silu, softplus, elu, leaky_relu (with parameter)."""
    x = contiguous(x)
    y = cupy.empty(x.shape, x.dtype)
    arguments = (y, x, int64(x.size), FUNCTIONS[function], x.dtype.type(parameter))
    kernel("pointwise.cu", "pointwise_forward", **macros_of(x.dtype))(blocks_of(x.size, x.itemsize), THREADS, arguments)
    return y


def pointwise_backward(saved: Array, dy: Array, *, function: str, parameter: float = 0.0) -> Array:
    """dy f'(x), from `saved` = y, but for log, erf and those after it `saved` = x."""
    dx = cupy.empty(dy.shape, dy.dtype)
    arguments = (dx, contiguous(saved), contiguous(dy), int64(dy.size), FUNCTIONS[function], dy.dtype.type(parameter))
    kernel("pointwise.cu", "pointwise_backward", **macros_of(dy.dtype))(blocks_of(dy.size, dy.itemsize), THREADS, arguments)
    return dx


def sum_backward(dy: Array, shape: tuple[int, ...], axes: tuple[int, ...], *, count: int) -> Array:
    """The gradient of x, of this shape, in sum(x, axes) / count: dy / count for each element, in order, for what reads it wants it so."""
    axes = tuple(sorted(axes))
    dx = cupy.empty(shape, dy.dtype)
    if not axes or axes[-1] - axes[0] >= len(axes):  # no neighbours
        dx[...] = dy.reshape(tuple(1 if k in axes else n for k, n in enumerate(shape))) / count
        return dx
    summed, inner = math.prod(shape[axes[0] : axes[-1] + 1]), math.prod(shape[axes[-1] + 1 :])
    arguments = (dx, contiguous(dy), int64(dx.size), int64(summed), int64(inner), dy.dtype.type(count))
    kernel("pointwise.cu", "sum_backward", **macros_of(dy.dtype))(blocks_of(dx.size, dy.itemsize), THREADS, arguments)
    return dx


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
    kernel("dropout.cu", "dropout", **macros_of(x.dtype))(-(-n // (4 * THREADS)), THREADS, arguments)
    return y
