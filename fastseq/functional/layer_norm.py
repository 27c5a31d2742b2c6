"""Layer norm, alone or with the addition before it, and RMS norm."""

from __future__ import annotations

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, record, result
from fastseq.backends import backend_of
from fastseq.functional import _check


def layer_norm(
    x: ArrayOrTensor,
    weight: ArrayOrTensor | None = None,
    bias: ArrayOrTensor | None = None,
    *,
    eps: float = 1e-5,
    residual: ArrayOrTensor | None = None,
) -> ArrayOrTensor | tuple[ArrayOrTensor, ArrayOrTensor]:
    """weight (x - mean) / sqrt(variance + eps) + bias over the last axis (Ba et al. 2016).

    With `residual` the sum s = x + residual is normalised, in one pass over both: a transformer's step from layer to layer.

    Parameters
    ----------
    x : ndarray or Tensor (..., N), float32 or float64
    weight, bias : ndarray or Tensor (N,), of x's dtype, optional
    eps : float
        Added to the variance, which is the mean of the squared distances.
    residual : ndarray or Tensor (..., N), of x's shape and dtype, optional

    Returns
    -------
    y : ndarray or Tensor (..., N)
    s : ndarray or Tensor (..., N)
        x + residual; with `residual` only. Gradients may come by way of y, of s, or of both.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or eps do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.layer_norm(np.array([[1.0, 3.0]]), eps=0.0)
    array([[-1.,  1.]])
    >>> y, s = fs.functional.layer_norm(np.array([[1.0, 3.0]]), residual=np.ones((1, 2)))
    >>> s
    array([[2., 4.]])
    """
    values = _checked(x, weight, eps)
    w = None if weight is None else _check.like("weight", weight, values)
    b = None if bias is None else _check.like("bias", bias, values)
    r = None if residual is None else _check.like("residual", residual, values)
    if b is not None:
        _check.shape("bias", b, values.shape[-1:])
    if r is not None:
        _check.shape("residual", r, values.shape)
    backend = backend_of(values)
    y, s, mean, rstd = backend.layer_norm_forward(values, r, w, b, eps=eps)
    need_x, need_residual = _check.wants(x), _check.wants(residual)
    needs = {"need_dx": need_x or need_residual, "need_dweight": _check.wants(weight), "need_dbias": _check.wants(bias)}

    def backward(dy: Array | None, ds: Array | None = None) -> tuple[Array | None, ...]:
        dweight = dbias = None
        if dy is None:  # only s was used
            dx = ds
        else:
            # y = weight (s - mean) rstd + bias
            dx, dweight, dbias = backend.layer_norm_backward(dy, ds, s, mean, rstd, w, **needs)
        # s = x + residual
        if need_x and need_residual and dx is not None:
            dx = dx[...]  # a view: both inputs get the same array
        return dx if need_x else None, dx if need_residual else None, dweight, dbias

    inputs = (x, residual, weight, bias)
    if residual is None:
        return result(y, inputs, backward, "layer_norm")
    if is_recording(*inputs):
        return record((y, s), inputs, backward, "layer_norm")
    return (Tensor(y), Tensor(s)) if any(isinstance(a, Tensor) for a in inputs) else (y, s)


def rms_norm(x: ArrayOrTensor, weight: ArrayOrTensor | None = None, *, eps: float = 1e-5) -> ArrayOrTensor:
    """weight x / sqrt(mean(x^2) + eps) over the last axis (Zhang & Sennrich 2019).

    Parameters
    ----------
    x : ndarray or Tensor (..., N), float32 or float64
    weight : ndarray or Tensor (N,), of x's dtype, optional
    eps : float

    Returns
    -------
    ndarray or Tensor (..., N)

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or eps do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.rms_norm(np.array([[3.0, 4.0]]), eps=0.0).round(3)
    array([[0.849, 1.131]])
    """
    values = _checked(x, weight, eps)
    w = None if weight is None else _check.like("weight", weight, values)
    backend = backend_of(values)
    y, _, _, rstd = backend.layer_norm_forward(values, None, w, None, eps=eps, centred=False)
    needs = {"need_dx": _check.wants(x), "need_dweight": _check.wants(weight), "need_dbias": False}

    def backward(dy: Array) -> tuple[Array | None, Array | None]:
        # y = weight x rstd, rstd = 1 / sqrt(mean(x^2) + eps)
        dx, dweight, _ = backend.layer_norm_backward(dy, None, values, None, rstd, w, **needs)
        return dx, dweight

    return result(y, (x, weight), backward, "rms_norm")


def _checked(x: ArrayOrTensor, weight: ArrayOrTensor | None, eps: float) -> Array:
    """The array of x, once it, the weight and eps are known to fit."""
    values = _check.floats("x", x)
    if values.ndim == 0:
        raise ValueError("x: expected at least one axis, got ()")
    if weight is not None:
        _check.shape("weight", _check.like("weight", weight, values), values.shape[-1:])
    _check.not_negative("eps", eps)
    return values
