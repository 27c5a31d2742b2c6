"""Products: matmul, linear, and operands packed once for use many times."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, result
from fastseq.backends import backend_of, is_gpu
from fastseq.backends.cpu import matmul_plain
from fastseq.functional import _check


class Packed:
    """A snapshot of a matrix (K, N), laid out for the kernels; made by `pack`, taken by `matmul` as b."""

    __slots__ = ("dtype", "on_gpu", "operand", "shape")

    def __init__(self, operand: Any, shape: tuple[int, ...], dtype: np.dtype, on_gpu: bool = False) -> None:
        self.operand = operand
        self.shape = shape
        self.dtype = dtype
        self.on_gpu = on_gpu

    def __repr__(self) -> str:
        return f"Packed(shape={self.shape}, dtype={self.dtype})"


def pack(b: ArrayOrTensor) -> Packed:
    """Lays out a matrix for `matmul(a, packed)`, which then skips the copying that a product begins with.

    Parameters
    ----------
    b : ndarray (K, N), float32 or float64
        Later changes of b are not seen; no gradient flows to it.

    Returns
    -------
    Packed

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> b = fs.functional.pack(np.eye(3))
    >>> fs.functional.matmul(np.ones((2, 3)), b).shape
    (2, 3)
    """
    b = _check.floats("b", b)
    _check.shape("b", b, ("K", "N"))
    return Packed(backend_of(b).pack(b), b.shape, b.dtype, is_gpu(b))


def matmul(a: ArrayOrTensor, b: ArrayOrTensor | Packed) -> ArrayOrTensor:
    """The matrix product a @ b, with NumPy's rules for one and for more than two axes.

    Parameters
    ----------
    a : ndarray or Tensor (..., M, K) or (K,)
    b : ndarray or Tensor (..., K, N) or (K,), of a's dtype, or Packed (K, N)

    Returns
    -------
    ndarray or Tensor (..., M, N)

    Raises
    ------
    ValueError
        If the sizes do not fit.
    TypeError
        If the dtypes differ, or a gradient is asked through a packed operand.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.matmul(np.ones((2, 3)), np.ones((3, 4))).shape
    (2, 4)
    """
    y = matmul_plain(a, b.operand if type(b) is Packed else b)
    if y is not None:
        return y
    x = _check.floats("a", a)
    if isinstance(b, Packed):
        return _matmul_packed(a, x, b)
    w = _check.like("b", b, x, "a")
    batch = _batch_shape(x, w)
    backend = backend_of(x, w)
    x2 = x[None, :] if x.ndim == 1 else x
    w2 = w[:, None] if w.ndim == 1 else w
    shape2 = (*batch, x2.shape[-2], w2.shape[-1])
    _check.size("a, b", *shape2)
    y = backend.matmul(x2, w2).reshape(batch + x.shape[-2:-1] + w.shape[-1:] * (w.ndim > 1))
    need_a, need_b = _check.wants(a), _check.wants(b)

    def backward(dy: Array) -> tuple[Array | None, Array | None]:
        # y = a b
        dy = dy.reshape(shape2)
        da = backend.matmul(dy, w2.swapaxes(-1, -2)) if need_a else None
        db = _transposed_product(backend, x2, dy, w2.ndim) if need_b else None
        return (
            None if da is None else _check.unbroadcast(da, x2.shape).reshape(x.shape),
            None if db is None else _check.unbroadcast(db, w2.shape).reshape(w.shape),
        )

    return result(y, (a, b), backward, "matmul")


def _batch_shape(x: Array, w: Array) -> tuple[int, ...]:
    """The broadcast leading axes of a product, once its sizes are known to fit."""
    if x.ndim == 0 or w.ndim == 0:
        raise ValueError(f"a, b: expected at least one axis each, got {x.shape} and {w.shape}; a scalar multiplies with *")
    if x.shape[-1] != w.shape[-2 if w.ndim > 1 else 0]:
        raise ValueError(f"b: expected shape ({x.shape[-1]}, N) to fit a of shape {x.shape}, got {w.shape}")
    try:
        return np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    except ValueError:
        raise ValueError(f"a, b: leading axes do not broadcast, got {x.shape} and {w.shape}") from None


def _matmul_packed(a: ArrayOrTensor, x: Array, b: Packed) -> ArrayOrTensor:
    if is_gpu(x) is not b.on_gpu:
        raise TypeError(f"b: expected the pack of a {'CuPy' if is_gpu(x) else 'NumPy'} array like a, got that of the other kind")
    if x.dtype != b.dtype:
        raise TypeError(f"b: expected {x.dtype}, got {b.dtype}")
    if x.ndim == 0 or x.shape[-1] != b.shape[0]:
        raise ValueError(f"a: expected shape (..., M, {b.shape[0]}), got {x.shape}")
    if is_recording(a):
        raise TypeError("b: a packed operand is a snapshot without gradients; pass the array, or detach a")
    _check.size("a, b", *x.shape[:-1], b.shape[1])
    y = backend_of(x).matmul(x[None, :] if x.ndim == 1 else x, b.operand).reshape(*x.shape[:-1], b.shape[1])
    return Tensor(y) if isinstance(a, Tensor) else y


def _rows(x: Array) -> Array:
    """The array x (..., K) as a matrix (M, K)."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _transposed_product(backend: Any, x: Array, dy: Array, ndim: int) -> Array:
    """x^T @ dy, already summed over the leading axes where the right operand of the forward product was one matrix."""
    if ndim == 2 and x.ndim == dy.ndim:
        return backend.matmul(_rows(x).T, _rows(dy))
    return backend.matmul(x.swapaxes(-1, -2), dy)


_LINEAR_FUNCTIONS = ("identity", "tanh", "sigmoid", "relu", "gelu")


def linear(
    x: ArrayOrTensor, weight: ArrayOrTensor, bias: ArrayOrTensor | None = None, *, function: str = "identity"
) -> ArrayOrTensor:
    """The affine map y = f(x W^T + b) over the last axis of x; f is applied to each tile of the product while it is in the cache.

    Parameters
    ----------
    x : ndarray or Tensor (..., I), float32 or float64
    weight : ndarray or Tensor (O, I), of x's dtype
    bias : ndarray or Tensor (O,), of x's dtype, optional
    function : {"identity", "tanh", "sigmoid", "relu", "gelu"}

    Returns
    -------
    ndarray or Tensor (..., O)

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or the function do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.linear(np.ones((5, 3)), np.ones((2, 3)), np.zeros(2))[0]
    array([3., 3.])
    """
    values = _check.floats("x", x)
    w = _check.like("weight", weight, values)
    b = None if bias is None else _check.like("bias", bias, values)
    if values.ndim == 0 or w.ndim != 2 or values.shape[-1] != w.shape[1] or not (b is None or b.shape == w.shape[:1]):
        _raise_linear(values, w, b)
    _check.choice("function", function, _LINEAR_FUNCTIONS)
    backend = backend_of(values, w)
    rows = _rows(values)
    _check.size("x", len(rows), len(w))
    # GELU's derivative needs the sums themselves: where it is wanted they are kept, and GELU comes after the product.
    sums = backend.matmul(rows, w.T, bias=b) if function == "gelu" and is_recording(x, weight, bias) else None
    product = backend.matmul(rows, w.T, bias=b, function=function) if sums is None else backend.pointwise_forward(sums, function=function)
    y = product if values.ndim == 2 else product.reshape(*values.shape[:-1], len(w))
    need_x, need_weight, need_bias = _check.wants(x), _check.wants(weight), _check.wants(bias)

    def backward(dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        dy = _rows(dy)
        if function != "identity":
            # y = f(sums); of all but GELU the derivative is made of y
            dy = backend.pointwise_backward(product if sums is None else sums, dy, function=function)
        # sums = x W^T + b
        return (
            backend.matmul(dy, w).reshape(values.shape) if need_x else None,
            backend.matmul(dy.T, rows) if need_weight else None,
            backend.bias_backward(dy) if need_bias else None,
        )

    return result(y, (x, weight, bias), backward, "linear")


def _raise_linear(x: Array, weight: Array, bias: Array | None) -> None:
    _check.shape("weight", weight, ("O", "I"))
    if bias is not None:
        _check.shape("bias", bias, (len(weight),))
    raise ValueError(f"x: expected shape (..., {weight.shape[1]}), got {x.shape}")


for _name, _method in (
    ("matmul", matmul),
    ("__matmul__", matmul),
    ("__rmatmul__", lambda self, other: matmul(other, self)),
):
    setattr(Tensor, _name, _method)
