"""Sums, means and maxima over axes."""

from __future__ import annotations

import builtins
import math

from fastseq.autograd import Array, ArrayOrTensor, Tensor, result
from fastseq.backends import backend_of, namespace
from fastseq.functional import _check

Axes = int | tuple[int, ...] | None


def _axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """The axes of a reduction, counted from the front."""
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(_check.axis("axis", k, ndim) for k in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis: expected different axes, got {axis}")
    return axes


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape after a reduction that keeps the axes as ones."""
    return tuple(1 if k in axes else n for k, n in enumerate(shape))


def sum(x: ArrayOrTensor, axis: Axes = None, keepdims: bool = False) -> ArrayOrTensor:
    """The sum over one, several or all axes.

    Parameters
    ----------
    x : ndarray or Tensor
    axis : int or tuple of int, optional
        All of them where None.
    keepdims : bool
        Keeps the axes with size 1.

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError, TypeError
        If x is no array, or has no such axis.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """
    values = _check.array("x", x)
    axes = _axes(axis, values.ndim)
    y = values.sum(axis=axes, keepdims=keepdims)
    return result(y, (x,), lambda dy: (backend_of(values).sum_backward(dy, values.shape, axes, count=1),), "sum")


def mean(x: ArrayOrTensor, axis: Axes = None, keepdims: bool = False) -> ArrayOrTensor:
    """The mean over one, several or all axes; arguments and errors as in `sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.mean(np.ones((2, 3)), axis=1)
    array([1., 1.])
    """
    values = _check.array("x", x)
    axes = _axes(axis, values.ndim)
    count = builtins.max(math.prod(values.shape[k] for k in axes), 1)
    y = values.mean(axis=axes, keepdims=keepdims)
    return result(y, (x,), lambda dy: (backend_of(values).sum_backward(dy, values.shape, axes, count=count),), "mean")


def max(x: ArrayOrTensor, axis: Axes = None, keepdims: bool = False) -> ArrayOrTensor:
    """The largest element over one, several or all axes; equal ones share the gradient. Otherwise as `sum`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.max(np.array([[1.0, 3.0], [2.0, 0.0]]), axis=1)
    array([3., 2.])
    """
    values = _check.array("x", x)
    axes = _axes(axis, values.ndim)
    kept = _kept(values.shape, axes)
    if any(values.shape[k] == 0 for k in axes):
        raise ValueError(f"x: expected at least one element along axis {axis}, got shape {values.shape}")
    y = values.max(axis=axes, keepdims=keepdims)

    def backward(dy: Array) -> tuple[Array]:
        own = namespace(values)
        largest = values == y.reshape(kept)
        share = dy.reshape(kept) / own.maximum(largest.sum(axis=axes, keepdims=True), 1).astype(dy.dtype)
        return (own.where(largest, share, dy.dtype.type(0)),)

    return result(y, (x,), backward, "max")


for _function in (sum, mean, max):
    setattr(Tensor, _function.__name__, _function)
