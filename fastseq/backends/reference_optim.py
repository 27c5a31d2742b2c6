"""The optimisers' updates in plain NumPy, in place; `rows` are those of the tables that the gradient belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def sum_squares(*arrays: Array) -> float:
    """The sum of x_i^2 over all arrays, in double."""
    return sum([float(np.sum(np.square(x, dtype=np.float64))) for x in arrays])


def scale(*arrays: Array, factor: float) -> None:
    """X *= factor for each x."""
    for x in arrays:
        x *= x.dtype.type(factor)


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
    """One step of gradient descent with momentum, as PyTorch defines it; `first` starts the velocity at the gradient."""
    if rows is None:
        rows = ...
    g = grad + weight_decay * w[rows]
    if momentum != 0 and velocity is not None:
        velocity[rows] = g if first else momentum * velocity[rows] + g
        g = g + momentum * velocity[rows] if nesterov else velocity[rows]
    w[rows] -= lr * g


def adagrad(w: Array, total: Array, grad: Array, *, lr: float, eps: float, weight_decay: float, rows: Array | None = None) -> None:
    """One step of Adagrad (Duchi, Hazan, Singer 2011)."""
    if rows is None:
        rows = ...
    g = grad + weight_decay * w[rows]
    total[rows] += g * g
    w[rows] -= lr * g / (np.sqrt(total[rows]) + eps)


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
    """One step of RMSprop (Tieleman & Hinton 2012), centred where there is a mean (Graves 2013, section 4)."""
    g = grad + weight_decay * w
    square[...] = alpha * square + (1 - alpha) * g * g
    spread = square
    if mean is not None:
        mean[...] = alpha * mean + (1 - alpha) * g
        spread = np.maximum(square - mean * mean, 0)
    g = g / (np.sqrt(spread) + eps)
    if momentum != 0 and velocity is not None:
        velocity[...] = momentum * velocity + g
        g = velocity
    w -= lr * g


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
    """One step of Adam (Kingma & Ba 2015), or, decoupled, of AdamW (Loshchilov & Hutter 2019); step counts from 1."""
    if rows is None:
        rows = ...
    if decoupled:
        w[rows] *= 1 - lr * weight_decay
        g = grad
    else:
        g = grad + weight_decay * w[rows]
    m[rows] = beta1 * m[rows] + (1 - beta1) * g
    v[rows] = beta2 * v[rows] + (1 - beta2) * g * g
    m_hat = m[rows] / (1 - beta1**step)
    v_hat = v[rows] / (1 - beta2**step)
    w[rows] -= lr * m_hat / (np.sqrt(v_hat) + eps)


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
