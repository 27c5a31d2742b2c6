"""Layer norm, alone or with the addition before it, and RMS norm; and their explicit pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    values, w, b, r = _checked(x, weight, eps, bias, residual)
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


def layer_norm_forward(
    x: Array, weight: Array | None = None, bias: Array | None = None, *, eps: float = 1e-5, residual: Array | None = None
) -> tuple[Any, ...]:
    """The forward half of `layer_norm` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, weight, bias, residual : ndarray
    eps
        All as there.

    Returns
    -------
    y : ndarray (..., N)
    s : ndarray (..., N)
        x + residual; with `residual` only.
    cache : NormCache
        For `layer_norm_backward`; valid as long as s, or x without a residual, and the weight are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or eps do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, cache = fs.functional.layer_norm_forward(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2))
    >>> found = fs.functional.layer_norm_backward(cache, y)
    >>> found["dweight"].round(3), found["dbias"].round(3)
    (array([1., 1.]), array([-1.,  1.]))
    """
    _check.no_tensors("layer_norm", x=x, weight=weight, bias=bias, residual=residual)
    values, w, b, r = _checked(x, weight, eps, bias, residual)
    backend = backend_of(values)
    y, s, mean, rstd = backend.layer_norm_forward(values, r, w, b, eps=eps)
    cache = NormCache("layer_norm", backend, s, mean, rstd, w, b is not None, r is not None)
    return (y, cache) if r is None else (y, s, cache)


def layer_norm_backward(cache: NormCache, dy: Array, *, ds: Array | None = None) -> dict[str, Array | None]:
    """The gradients from the cache of `layer_norm_forward`; may be called any number of times.

    Parameters
    ----------
    cache : NormCache
    dy : ndarray (..., N)
        dL/dy.
    ds : ndarray (..., N), optional
        dL/ds, beside what reaches s through y; with a residual only.

    Returns
    -------
    dict of ndarray
        dx, dweight, dbias, None for a weight or bias that there was not; with a residual dresidual.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or a gradient does not fit.
    """
    dx, dweight, dbias = _norm_backward("layer_norm", cache, dy, ds)
    grads = {"dx": dx, "dweight": dweight, "dbias": dbias}
    # s = x + residual
    return grads | ({"dresidual": dx.copy()} if cache.has_residual else {})


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
    values, w, _, _ = _checked(x, weight, eps)
    backend = backend_of(values)
    y, _, _, rstd = backend.layer_norm_forward(values, None, w, None, eps=eps, centred=False)
    needs = {"need_dx": _check.wants(x), "need_dweight": _check.wants(weight), "need_dbias": False}

    def backward(dy: Array) -> tuple[Array | None, Array | None]:
        # y = weight x rstd, rstd = 1 / sqrt(mean(x^2) + eps)
        dx, dweight, _ = backend.layer_norm_backward(dy, None, values, None, rstd, w, **needs)
        return dx, dweight

    return result(y, (x, weight), backward, "rms_norm")


def rms_norm_forward(x: Array, weight: Array | None = None, *, eps: float = 1e-5) -> tuple[Array, NormCache]:
    """The forward half of `rms_norm` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, weight : ndarray
    eps
        All as there.

    Returns
    -------
    y : ndarray (..., N)
    cache : NormCache
        For `rms_norm_backward`; valid as long as x and the weight are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or eps do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, cache = fs.functional.rms_norm_forward(np.array([[3.0, 4.0]]), np.ones(2))
    >>> sorted(fs.functional.rms_norm_backward(cache, y))
    ['dweight', 'dx']
    """
    _check.no_tensors("rms_norm", x=x, weight=weight)
    values, w, _, _ = _checked(x, weight, eps)
    backend = backend_of(values)
    y, _, _, rstd = backend.layer_norm_forward(values, None, w, None, eps=eps, centred=False)
    return y, NormCache("rms_norm", backend, values, None, rstd, w, False, False)


def rms_norm_backward(cache: NormCache, dy: Array) -> dict[str, Array | None]:
    """The gradients from the cache of `rms_norm_forward`; may be called any number of times.

    Parameters
    ----------
    cache : NormCache
    dy : ndarray (..., N)
        dL/dy.

    Returns
    -------
    dict of ndarray
        dx and dweight, None for a weight that there was not.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or dy does not fit.
    """
    dx, dweight, _ = _norm_backward("rms_norm", cache, dy, None)
    return {"dx": dx, "dweight": dweight}


# ---------------------------------------------------------------- what both share


class NormCache(NamedTuple):
    """What a forward half saves for its backward half, which never changes it."""

    operation: str
    backend: Any
    s: Array  # what was normalised
    mean: Array | None
    rstd: Array
    weight: Array | None
    has_bias: bool
    has_residual: bool


def _norm_backward(operation: str, cache: Any, dy: Array, ds: Array | None) -> tuple[Array, Array | None, Array | None]:
    """The gradients of s, weight and bias."""
    if not isinstance(cache, NormCache) or cache.operation != operation:
        came = f"what {cache.operation}_forward did" if isinstance(cache, NormCache) else type(cache).__name__
        raise TypeError(f"cache: expected what {operation}_forward returned, got {came}")
    dy = _check.gradient("dy", dy, cache.s, cache.s.shape)
    if ds is not None:
        if not cache.has_residual:
            raise TypeError(f"ds: expected None without a residual, got {_check.kind(ds)}")
        ds = _check.gradient("ds", ds, cache.s, cache.s.shape)
    needs = {"need_dweight": cache.weight is not None, "need_dbias": cache.has_bias}
    dx, dweight, dbias = cache.backend.layer_norm_backward(dy, ds, cache.s, cache.mean, cache.rstd, cache.weight, **needs)
    return dx, dweight, dbias


def _checked(
    x: Any, weight: Any, eps: float, bias: Any = None, residual: Any = None
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """The arrays of x, weight, bias and residual, once they and eps are known to fit."""
    values = _check.floats("x", x)
    if values.ndim == 0:
        raise ValueError("x: expected at least one axis, got ()")
    own: list[Array | None] = []
    for name, a, sizes in (("weight", weight, values.shape[-1:]), ("bias", bias, values.shape[-1:]), ("residual", residual, values.shape)):
        own.append(None if a is None else _check.like(name, a, values))
        if a is not None:
            _check.shape(name, own[-1], sizes)
    _check.not_negative("eps", eps)
    return values, own[0], own[1], own[2]
