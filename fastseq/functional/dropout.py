"""Dropout with a mask that can be made again, so that backward needs not keep it."""

from __future__ import annotations

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import backend_of
from fastseq.functional import _check
from fastseq.runtime import next_seed


def dropout(
    x: ArrayOrTensor,
    p: float = 0.5,
    *,
    training: bool = True,
    seed: int | None = None,
    layer: int = 0,
    call: int = 0,
    rng: int | np.random.Generator | None = None,
) -> ArrayOrTensor:
    """Sets each element to zero with probability p and divides the others by 1 - p (Srivastava et al. 2014).

    The mask comes from Philox, keyed by (seed, layer, call) and the element's position: the same for any number of
    threads, and in the backward pass.

    Parameters
    ----------
    x : ndarray or Tensor, float32 or float64
    p : float in [0, 1]
    training : bool
        False returns x itself.
    seed, layer, call : int
        The key; seed below 2^64, the others below 2^32.
    rng : int or numpy.random.Generator, optional
        What `seed` is drawn from where it is None; the process's generator (`fs.manual_seed`) where both are.

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    ValueError, TypeError
        If x, p, the key or rng is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y = fs.functional.dropout(np.ones(1000), 0.5, seed=1)
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """
    values = _check.floats("x", x)
    p = _check.probability("p", p)
    if not training or p == 0.0:
        return x
    seed = next_seed(rng) if seed is None else _check.integer("seed", seed, 0, 2**64)
    key = {"p": p, "seed": seed, "layer": _check.integer("layer", layer, 0, 2**32), "call": _check.integer("call", call, 0, 2**32)}
    backend = backend_of(values)
    y = backend.dropout(values, **key)

    def backward(dy: Array) -> tuple[Array]:
        # y = x mask / (1 - p)
        return (backend.dropout(dy, **key),)

    return result(y, (x,), backward, "dropout")
