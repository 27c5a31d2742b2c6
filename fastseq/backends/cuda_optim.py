"""The optimisers' updates, in place: the part of `cuda.py` that has them."""

from __future__ import annotations

import functools
from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, int64, kernel, macros_of
from fastseq.backends.cuda_layout import THREADS, access_width

Array = Any

#: Elements of one array that a block of the kernels for many arrays works on: 4 turns of its threads in float32.
_SHARE = 4096


def sum_squares(*arrays: Array) -> float:
    """The sum of x_i^2 over all arrays, in double; waits for the device, once."""
    return sum([float(_sums(alike).get().sum()) for alike in _by_dtype([(contiguous(x),) for x in arrays])])


def _sums(work: list[tuple[Array, ...]]) -> Array:
    """The sum of x_i^2 of each share, in double."""
    shares = _shares(work)
    sums = cupy.empty(len(shares), np.float64)
    _for_shares("sum_squares", work[0][0], shares, (sums, shares), 64)
    return sums


def scale(*arrays: Array, factor: float) -> None:
    """x *= factor for each x."""
    dense = [(contiguous(x),) for x in arrays]
    for alike in _by_dtype(dense):
        x, shares = alike[0][0], _shares(alike)
        _for_shares("scale", x, shares, (shares, x.dtype.type(factor)))
    for x, (copy,) in zip(arrays, dense, strict=True):
        if copy is not x:
            x[...] = copy


def _by_dtype(work: list[tuple[Array, ...]]) -> list[list[tuple[Array, ...]]]:
    """Those with elements, apart by their dtypes."""
    found: dict[Any, list[tuple[Array, ...]]] = {}
    for arrays in work:
        if arrays[0].size:
            found.setdefault(arrays[0].dtype, []).append(arrays)
    return list(found.values())


def _shares(work: list[tuple[Array, ...]]) -> Array:
    """For each block the addresses of its elements in arrays of one size and how many they are, on the device."""
    places = tuple([(*[x.data.ptr for x in arrays], arrays[0].size) for arrays in work])
    return _table(cupy.cuda.get_current_stream().ptr, places, work[0][0].itemsize)


@functools.lru_cache(maxsize=8)
def _table(stream: int, work: tuple[tuple[int, ...], ...], itemsize: int) -> Array:
    """Kept, for arrays stay where they are, and gradients come back to the places of the last step; for its stream, which no other waits for."""
    arrays = np.array(work, np.int64)
    sizes = arrays[:, -1]
    counts = -(-sizes // _SHARE)
    which = np.repeat(np.arange(len(arrays)), counts)
    first = (np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)) * _SHARE
    shares = arrays[which]
    shares[:, :-1] += first[:, None] * itemsize
    shares[:, -1] = np.minimum(_SHARE, sizes[which] - first)
    return cupy.asarray(shares)


def _for_shares(name: str, x: Array, shares: Array, arguments: tuple[Any, ...], shared: int = 0) -> None:
    """The function of optim.cu that has a block for each share of arrays like x."""
    _kernel(name, x, _whole(x))(len(shares), THREADS, arguments, shared)


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
    constants = _adam_constants(lr, beta1, beta2, eps, weight_decay, decoupled, step)
    _in_place("adam", (w, m, v), grad, (rows,), *map(w.dtype.type, constants))


def adam_all(
    work: tuple[tuple[Array, Array, Array, Array], ...],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    step: int,
) -> None:
    """`adam` of each (w, m, v, grad), in one launch for all that are in C order."""
    dense: list[tuple[Array, ...]] = []
    others: list[tuple[Array, ...]] = []
    for w, m, v, grad in work:
        one = w, m, v, contiguous(grad)
        (dense if all(x.flags.c_contiguous for x in one) else others).append(one)
    constants = _adam_constants(lr, beta1, beta2, eps, weight_decay, decoupled, step)
    for alike in _by_dtype(dense):
        x, shares = alike[0][0], _shares(alike)
        _for_shares("adam_all", x, shares, (shares, *map(x.dtype.type, constants)))
    for w, m, v, grad in others:
        _in_place("adam", (w, m, v), grad, (None,), *map(w.dtype.type, constants))


def _adam_constants(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool, step: int
) -> tuple[float, ...]:
    rate, correction = lr / (1 - beta1**step), 1 / (1 - beta2**step)
    decay, keep = (0.0, 1 - lr * weight_decay) if decoupled else (weight_decay, 1.0)
    return beta1, 1 - beta1, beta2, 1 - beta2, rate, correction, eps, decay, keep


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
