"""Gradient clipping by norm and by value (Pascanu et al. 2013)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastseq.autograd import Tensor
from fastseq.backends import backend_of, is_gpu, namespace
from fastseq.optim.optimizer import checked_at_least
from fastseq.sparse import RowGradient


def clip_grad_norm(params: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients together so that their norm is at most `max_norm`.

    The norm is that of all gradients taken as one vector. Where it is larger, every gradient is multiplied by
    max_norm / (norm + 1e-6), as in PyTorch. A norm that is not finite is returned as it is.

    Parameters
    ----------
    params : iterable of Parameter
        Those without a gradient are passed over.
    max_norm : float

    Returns
    -------
    float
        The norm before scaling.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> p = fs.nn.Parameter(np.zeros(2)); p.grad = np.array([3.0, 4.0])
    >>> fs.optim.clip_grad_norm([p], 1.0), p.grad.round(3).tolist()
    (5.0, [0.6, 0.8])
    """
    checked_at_least("max_norm", max_norm)
    kinds = _by_kind(_own_gradients(params))
    norm = math.sqrt(sum(backend_of(*each).sum_squares(*each) for each in kinds))
    if norm > max_norm:
        factor = max_norm / (norm + 1e-6)
        for each in kinds:
            backend_of(*each).scale(*each, factor=factor)
    return norm


def clip_grad_value(params: Iterable[Tensor], clip_value: float) -> None:
    """Cut every element of every gradient to [-clip_value, clip_value].

    Parameters
    ----------
    params : iterable of Parameter
    clip_value : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> p = fs.nn.Parameter(np.zeros(2)); p.grad = np.array([3.0, -0.5])
    >>> fs.optim.clip_grad_value([p], 1.0); p.grad.tolist()
    [1.0, -0.5]
    """
    checked_at_least("clip_value", clip_value)
    for g in _own_gradients(params):
        g.clip(-clip_value, clip_value, out=g)


def _by_kind(gradients: list[Any]) -> list[list[Any]]:
    """NumPy's and CuPy's apart, all of one kind for one call: on a GPU their sum is then read once, not that of each."""
    on_gpu = [g for g in gradients if is_gpu(g)]
    return [each for each in ([g for g in gradients if not is_gpu(g)] if on_gpu else gradients, on_gpu) if each]


def _own_gradients(params: Iterable[Tensor]) -> list[np.ndarray]:
    """The gradients that there are, each made an array that can be changed in place; of a row-sparse one, the rows that it has."""
    gradients = []
    for p in [params] if isinstance(params, Tensor) else params:
        if p.grad is None:
            continue
        if isinstance(p.grad, RowGradient):
            gradients.append(p.grad.values)
            continue
        flags = p.grad.flags
        if not (flags.c_contiguous and getattr(flags, "writeable", True)):  # a CuPy array can always be written to
            p.grad = namespace(p.grad).array(p.grad, order="C")
        gradients.append(p.grad)
    return gradients
