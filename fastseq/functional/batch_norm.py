"""Batch norm: each channel with its mean taken away and divided by its deviation."""

from __future__ import annotations

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
    needs = {"need_dx": _check.wants(x), "need_dweight": _check.wants(weight), "need_dbias": _check.wants(bias)}

    def backward(dy: Array) -> tuple[Array | None, ...]:
        # y = weight (x - mean) / sqrt(variance + eps) + bias
        return backend.batch_norm_backward(dy, values, w, found_mean, found_variance, eps=eps, given=m is not None, **needs)

    return result(y, (x, weight, bias), backward, "batch_norm"), found_mean, found_variance
