"""Batch norm: each channel with its mean taken away and divided by its deviation; and the explicit pair."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import backend_of
from fastseq.functional import _check


def batch_norm(
    x: ArrayOrTensor,
    *,
    weight: ArrayOrTensor | None = None,
    bias: ArrayOrTensor | None = None,
    mean: Array | None = None,
    variance: Array | None = None,
    eps: float = 1e-5,
) -> tuple[ArrayOrTensor, Array, Array]:
    """weight (x - mean) / sqrt(variance + eps) + bias for each channel (Ioffe & Szegedy 2015).

    Parameters
    ----------
    x : ndarray or Tensor (N, C) or (N, C, L), float32 or float64
    weight, bias : ndarray or Tensor (C,), of x's dtype, optional
    mean, variance : ndarray (C,), of x's dtype, optional
        Given together, as constants; else those of each channel over the batch, through which the gradient flows too.
    eps : float

    Returns
    -------
    y : ndarray or Tensor of x's shape
    mean, variance : ndarray (C,)
        The moments that were used. The variance is the mean of the squared distances.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or eps do not fit, or a channel's moments are to be those of fewer than two values.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, mean, variance = fs.functional.batch_norm(np.array([[1.0], [3.0]]), eps=0.0)
    >>> y.tolist(), mean.tolist(), variance.tolist()
    ([[-1.0], [1.0]], [2.0], [1.0])
    """
    y, cache = _normalised(x, weight, bias, mean, variance, eps)
    needs = {"need_dx": _check.wants(x), "need_dweight": _check.wants(weight), "need_dbias": _check.wants(bias)}
    y = result(y, (x, weight, bias), lambda dy: _backward(cache, dy, **needs), "batch_norm")
    return y, cache.mean, cache.variance


class BatchNormCache(NamedTuple):
    """What the forward half saves for the backward half, which never changes it."""

    backend: Any
    x: Array
    weight: Array | None
    has_bias: bool
    mean: Array
    variance: Array
    eps: float
    given: bool  # the moments are constants


def batch_norm_forward(
    x: Array,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    mean: Array | None = None,
    variance: Array | None = None,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array, BatchNormCache]:
    """The forward half of `batch_norm` on plain arrays, for those who call the backward half themselves; arguments and errors as there.

    Returns
    -------
    y : ndarray of x's shape
    mean, variance : ndarray (C,)
    cache : BatchNormCache
        For `batch_norm_backward`; valid as long as x, the weight and the moments are not changed in place.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, mean, variance, cache = fs.functional.batch_norm_forward(np.array([[1.0], [3.0]]), bias=np.zeros(1))
    >>> fs.functional.batch_norm_backward(cache, np.ones((2, 1)))["dbias"]
    array([2.])
    """
    _check.no_tensors("batch_norm", x=x, weight=weight, bias=bias, mean=mean, variance=variance)
    y, cache = _normalised(x, weight, bias, mean, variance, eps)
    return y, cache.mean, cache.variance, cache


def batch_norm_backward(cache: BatchNormCache, dy: Array) -> dict[str, Array | None]:
    """The gradients from the cache of `batch_norm_forward`; may be called any number of times.

    Parameters
    ----------
    cache : BatchNormCache
    dy : ndarray of x's shape
        dL/dy.

    Returns
    -------
    dict of ndarray
        dx, dweight, dbias, None for a weight or bias that there was not.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or dy does not fit.
    """
    _check.made_by("batch_norm_forward", cache, BatchNormCache)
    dy = _check.gradient("dy", dy, cache.x, cache.x.shape)
    dx, dweight, dbias = _backward(cache, dy, need_dweight=cache.weight is not None, need_dbias=cache.has_bias)
    return {"dx": dx, "dweight": dweight, "dbias": dbias}


def _backward(cache: BatchNormCache, dy: Array, **needs: bool) -> tuple[Array | None, ...]:
    """dx, dweight and dbias of y = weight (x - mean) / sqrt(variance + eps) + bias."""
    options = {"eps": cache.eps, "given": cache.given} | needs
    return cache.backend.batch_norm_backward(dy, cache.x, cache.weight, cache.mean, cache.variance, **options)


def _normalised(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, eps: float) -> tuple[Array, BatchNormCache]:
    """y and the cache, once everything is known to fit."""
    values = _check.floats("x", x)
    if values.ndim not in (2, 3):
        raise ValueError(f"x: expected shape (N, C) or (N, C, L), got {values.shape}")
    own: list[Array | None] = []
    for name, a in (("weight", weight), ("bias", bias), ("mean", mean), ("variance", variance)):
        own.append(None if a is None else _check.like(name, a, values))
        if a is not None:
            _check.shape(name, own[-1], values.shape[1:2])
    w, b, m, v = own
    _check.not_negative("eps", eps)
    if (m is None) != (v is None):
        raise TypeError(f"{'mean' if m is None else 'variance'}: expected an array, as the other one of mean and variance is given, got None")
    if m is None and values.shape[1] and values.size // values.shape[1] < 2:
        raise ValueError(f"x: expected at least two values of each channel, whose moments are wanted, got shape {values.shape}")
    backend = backend_of(values)
    y, found_mean, found_variance = backend.batch_norm_forward(values, w, b, mean=m, variance=v, eps=eps)
    return y, BatchNormCache(backend, values, w, b is not None, found_mean, found_variance, eps, m is not None)
