"""The optimisers' updates, in place, by the C kernels: the part of `cpu.py` that has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastseq import _core

Array = np.ndarray


def sum_squares(*arrays: Array) -> float:
    """The sum of x_i^2 over all arrays, in double."""
    return sum([_core.sum_squares(x) for x in arrays])


def scale(*arrays: Array, factor: float) -> None:
    """x *= factor for each x."""
    for x in arrays:
        _in_place(_core.scale, (x,), factor)


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
    _in_place(_core.sgd, (w, velocity), grad, rows, lr, momentum, nesterov, first, weight_decay)


def adagrad(w: Array, total: Array, grad: Array, *, lr: float, eps: float, weight_decay: float, rows: Array | None = None) -> None:
    """One step of Adagrad; rows as for sgd."""
    _in_place(_core.adagrad, (w, total), grad, rows, lr, eps, weight_decay)


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
    _in_place(_core.rmsprop, (w, square, velocity, mean), grad, lr, alpha, eps, momentum, weight_decay)


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
    _in_place(_core.adam, (w, m, v), grad, rows, lr, beta1, beta2, eps, weight_decay, decoupled, step)


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
    """`adam` of each (w, m, v, grad)."""
    options = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled, "step": step}
    for w, m, v, grad in work:
        adam(w, m, v, grad, **options)  # type: ignore[arg-type]


def _in_place(operation: Callable[..., None], arrays: tuple[Array | None, ...], *rest: Any) -> None:
    """operation(*arrays, *rest), which changes `arrays`: those that are not in C order by way of a copy."""
    for array in arrays:
        if array is not None and not array.flags.writeable:
            raise ValueError(f"expected an array that can be changed in place, got a read-only one of shape {array.shape}")
    dense = [None if array is None else np.require(array, requirements=["C", "A"]) for array in arrays]
    operation(*dense, *rest)
    for array, copy in zip(arrays, dense, strict=True):
        if array is not None and copy is not array:
            array[...] = copy
