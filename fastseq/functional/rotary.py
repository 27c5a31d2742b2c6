"""Rotary position embedding: pairs of elements turned by angles (Su et al. 2021).

One pass over x in NumPy: beside the products around attention it costs little, so it has no kernel of its own.
"""

from __future__ import annotations

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import namespace
from fastseq.functional import _check


def rotary_embedding(x: ArrayOrTensor, cos: ArrayOrTensor, sin: ArrayOrTensor, *, interleaved: bool = True) -> ArrayOrTensor:
    """Turn each pair (a, b) of x's last axis by its angle: (a cos - b sin, a sin + b cos).

    A score between queries and keys that were turned by position times frequency depends on their distance alone.

    Parameters
    ----------
    x : ndarray or Tensor (..., D), float32 or float64, D even
    cos, sin : ndarray (..., D / 2), of x's dtype
        Broadcast to x's leading axes; no gradient flows to them.
    interleaved : bool
        Pairs are neighbours (2i, 2i + 1), as in the paper; False: (i, i + D / 2), as GPT-NeoX and Llama have them.

    Returns
    -------
    ndarray or Tensor of x's shape

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> quarter = np.array([np.pi / 2])
    >>> fs.functional.rotary_embedding(np.array([3.0, 4.0]), np.cos(quarter), np.sin(quarter)).round(6)
    array([-4.,  3.])
    """
    interleaved = _check.boolean("interleaved", interleaved)
    values = _check.floats("x", x)
    c, s = _check.like("cos", cos, values), _check.like("sin", sin, values)
    if values.ndim == 0 or values.shape[-1] % 2:
        raise ValueError(f"x: expected shape (..., D) with an even D, got {values.shape}")
    half = (*values.shape[:-1], values.shape[-1] // 2)
    for name, table in (("cos", c), ("sin", s)):
        fits = 0 < table.ndim <= len(half) and table.shape[-1] == half[-1]
        if not fits or any(n not in (1, m) for n, m in zip(table.shape[::-1], half[::-1], strict=False)):
            raise ValueError(f"{name}: expected a shape that broadcasts to {half}, got {table.shape}")
    y = _turned(values, c, s, interleaved)

    def backward(dy: Array) -> tuple[Array, None, None]:
        # A rotation's transpose is the rotation back.
        return _turned(dy, c, -s, interleaved), None, None

    return result(y, (x, cos, sin), backward, "rotary_embedding")


def _turned(x: Array, c: Array, s: Array, interleaved: bool) -> Array:
    half = x.shape[-1] // 2
    first, second = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., :half], np.s_[..., half:])
    own = namespace(x)
    y = own.empty_like(x)  # laid out as x is
    own.multiply(x[first], c, out=y[first])
    y[first] -= x[second] * s
    own.multiply(x[first], s, out=y[second])
    y[second] += x[second] * c
    return y
