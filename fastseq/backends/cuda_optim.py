"""The optimisers' updates, in place: the part of `cuda.py` that has them."""

from __future__ import annotations

import functools
from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, int64, kernel, macros_of
from fastseq.backends.cuda_layout import THREADS, access_width

Array = Any

#: Elements that a block of `sum_squares` adds up, what its threads read in 16 turns or more: few partial sums, and enough blocks.
_SHARE = 1 << 14


def sum_squares(*arrays: Array) -> float:
    """The sum of x_i^2 over all arrays, in double; waits for the device, once."""
    arrays = tuple(contiguous(x) for x in arrays)
    sums = [_sums(tuple(x for x in arrays if x.dtype == dtype)) for dtype in {x.dtype: None for x in arrays}]
    return sum([float(part.get().sum()) for part in sums])


def _sums(arrays: tuple[Array, ...]) -> Array:
    """The sums of x_i^2 of _SHARE elements each, of arrays of one dtype in one launch."""
    shares = _shares(tuple((x.data.ptr, x.size) for x in arrays), arrays[0].itemsize)
    sums = cupy.empty(len(shares), np.float64)
    _kernel("sum_squares", arrays[0], _whole(arrays[0]))(len(shares), THREADS, (sums, shares), 64)
    return sums


@functools.lru_cache(maxsize=8)
def _shares(arrays: tuple[tuple[int, int], ...], itemsize: int) -> Array:
    """Address and number of elements of each share, on the device; kept, for gradients come back to the places of the last step."""
    found = [
        (address + first * itemsize, min(_SHARE, size - first))
        for address, size in arrays
        for first in range(0, size, _SHARE)
    ]
    return cupy.asarray(np.array(found, np.int64).reshape(-1, 2))


def scale(x: Array, factor: float) -> None:
    """x *= factor."""
    _in_place("scale", (x,), None, None, x.dtype.type(factor))


def sgd(
    w: Array,
    velocity: Array | None,
    grad: Array,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    first: bool,
    weight_decay: float,
    rows: Array | None = None,
) -> None:
    """One step of gradient descent with momentum, as PyTorch defines it; `first` starts the velocity at the gradient.

    rows: those of the table w that grad belongs to, each at most once; the others stay as they are.
    """
    real = w.dtype.type
    arrays = w, velocity if momentum != 0 else None
    _in_place("sgd", arrays, grad, (rows,), real(lr), real(momentum), real(weight_decay), int(nesterov), int(first))


def adagrad(w: Array, total: Array, grad: Array, *, lr: float, eps: float, weight_decay: float, rows: Array | None = None) -> None:
    """One step of Adagrad; rows as for sgd."""
    real = w.dtype.type
    _in_place("adagrad", (w, total), grad, (rows,), real(lr), real(eps), real(weight_decay))


def rmsprop(
    w: Array,
    square: Array,
    velocity: Array | None,
    mean: Array | None,
    grad: Array,
    *,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step of RMSprop; `mean` is None where it is not centred."""
    real = w.dtype.type
    arrays = w, square, velocity if momentum != 0 else None, mean
    options = (lr, alpha, 1 - alpha, eps, momentum, weight_decay)
    _in_place("rmsprop", arrays, grad, None, *map(real, options))


def adam(
    w: Array,
    m: Array,
    v: Array,
    grad: Array,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
    rows: Array | None = None,
) -> None:
    """One step of Adam, or, decoupled, of AdamW; step counts from 1; rows as for sgd."""
    rate, correction = lr / (1 - beta1**step), 1 / (1 - beta2**step)
    decay, keep = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    options = (beta1, 1 - beta1, beta2, 1 - beta2, rate, correction, eps, decay, keep)
    _in_place("adam", (w, m, v), grad, (rows,), *map(w.dtype.type, options))


def _in_place(name: str, arrays: tuple[Array | None, ...], grad: Array | None, table: tuple[Array | None] | None, *options: Any) -> None:
    """The function of optim.cu, which changes `arrays`: those that are not in C order by way of a copy. table: (rows,), where it takes rows."""
    dense = [None if x is None else contiguous(x) for x in arrays]
    w: Any = arrays[0] if grad is None else grad
    n, rows = w.size, None if table is None else table[0]
    D = n if rows is None or n == 0 else n // len(rows)
    width = _whole(w) if rows is None else access_width(D, w.itemsize)
    arguments: list[Any] = [*dense]
    if grad is not None:
        arguments.append(contiguous(grad))
    if table is not None:
        arguments.append(None if rows is None else contiguous(rows))
    arguments.append(int64(n))
    if table is not None:
        arguments.append(int64(D))
    _kernel(name, w, width)(-(-n // (THREADS * width)), THREADS, (*arguments, *options))
    for array, copy in zip(arrays, dense, strict=True):
        if array is not None and copy is not array:
            array[...] = copy


def _whole(x: Array) -> int:
    """Elements of an access of 16 bytes."""
    return 16 // x.itemsize


def _kernel(name: str, x: Array, width: int) -> Any:
    return kernel("optim.cu", name, W=width, **macros_of(x.dtype))
