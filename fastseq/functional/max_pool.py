"""The greatest element of each window of an image; and its explicit pair."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import backend_of, namespace
from fastseq.backends.window import Window
from fastseq.functional import _check

Sizes = int | tuple[int, ...]


def max_pool2d(
    x: ArrayOrTensor,
    kernel_size: Sizes,
    *,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> ArrayOrTensor:
    """The greatest element of each window; a NaN is greater than all.

    Parameters
    ----------
    x : ndarray or Tensor (N, C, H, W), float32 or float64
    kernel_size : int or two of them
        Rows and columns of a window, here and below.
    stride : int or two of them, optional
        From window to window; None: kernel_size.
    padding : int or two of them
        So far windows begin before x; at most half of kernel_size. What is outside never counts.
    dilation : int or two of them
        The distance of a window's elements in x.
    ceil_mode : bool
        True: a last window that hangs over the end counts too, if it begins inside x or the padding before it.

    Returns
    -------
    ndarray or Tensor (N, C, H_out, W_out)
        H_out = floor((H + 2 padding - dilation (kernel_h - 1) - 1) / stride) + 1, W_out likewise. Of equal elements the first gets the gradient.

    Raises
    ------
    ValueError, TypeError
        If the shape, the dtype or an option does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    array([[[[ 5.,  7.],
             [13., 15.]]]])
    """
    y, cache = _pooled(x, kernel_size, stride, padding, dilation, ceil_mode)

    def backward(dy: Array) -> tuple[Array]:
        # y = x at places
        return (cache.backend.max_pool_backward(dy, cache.places, cache.shape, window=cache.window),)

    return result(y, (x,), backward, "max_pool2d")


class MaxPoolCache(NamedTuple):
    """What the forward half saves for the backward half, which never changes it."""

    backend: Any
    places: Array  # of the greatest elements, each in its plane, row by row
    shape: tuple[int, ...]
    dtype: np.dtype
    window: Window


def max_pool2d_forward(
    x: Array, kernel_size: Sizes, *, stride: Sizes | None = None, padding: Sizes = 0, dilation: Sizes = 1, ceil_mode: bool = False
) -> tuple[Array, MaxPoolCache]:
    """The forward half of `max_pool2d` on plain arrays, for those who call the backward half themselves; arguments and errors as there.

    Returns
    -------
    y : ndarray (N, C, H_out, W_out)
    cache : MaxPoolCache
        For `max_pool2d_backward`; x itself is not needed any more.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, cache = fs.functional.max_pool2d_forward(np.arange(4.0).reshape(1, 1, 2, 2), 2)
    >>> fs.functional.max_pool2d_backward(cache, y)["dx"].tolist()
    [[[[0.0, 0.0], [0.0, 3.0]]]]
    """
    _check.no_tensors("max_pool2d", x=x)
    return _pooled(x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d_backward(cache: MaxPoolCache, dy: Array) -> dict[str, Array]:
    """The gradient from the cache of `max_pool2d_forward`; may be called any number of times.

    Parameters
    ----------
    cache : MaxPoolCache
    dy : ndarray (N, C, H_out, W_out)
        dL/dy.

    Returns
    -------
    dict of ndarray
        dx.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or dy does not fit.
    """
    _check.made_by("max_pool2d_forward", cache, MaxPoolCache)
    dy = _check.gradient("dy", dy, namespace(cache.places).empty(0, cache.dtype), cache.places.shape)
    return {"dx": cache.backend.max_pool_backward(dy, cache.places, cache.shape, window=cache.window)}


def _pooled(x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> tuple[Array, MaxPoolCache]:
    values = _check.floats("x", x)
    _check.shape("x", values, ("N", "C", "H", "W"))
    window = pool_window(values.shape[2:], kernel_size, stride, padding, dilation, ceil_mode)
    backend = backend_of(values)
    y, places = backend.max_pool_forward(values, window=window)
    return y, MaxPoolCache(backend, places, values.shape, values.dtype, window)


def pool_window(size: tuple[int, ...], kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any) -> Window:
    """What each output position sees, once it is known that all see something."""
    kernel, dilations = _check.sizes("kernel_size", kernel_size, 2, 1), _check.sizes("dilation", dilation, 2, 1)
    strides = kernel if stride is None else _check.sizes("stride", stride, 2, 1)
    before = _check.sizes("padding", padding, 2, 0)
    up = _check.boolean("ceil_mode", ceil_mode)
    out = []
    for n, k, s, d, p in zip(size, kernel, strides, dilations, before, strict=True):
        if 2 * p > k:
            raise ValueError(f"padding: expected at most half of kernel_size {k}, got {p}")
        room = n + 2 * p - d * (k - 1) - 1
        positions = -(-room // s) + 1 if up else room // s + 1
        if up and (positions - 1) * s >= n + p:
            positions -= 1
        starts = np.arange(max(positions, 0)) * s - p
        first = starts + np.maximum(-(starts // d), 0) * d  # the first of each window's elements that is not before x
        if positions < 1 or np.any(first >= n) or np.any(first > starts + d * (k - 1)):
            raise ValueError(f"x: expected more than {n} elements for windows of {k} with dilation {d} and padding {p}")
        out.append(positions)
    return Window(kernel, strides, dilations, before, tuple(out))  # type: ignore[arg-type]
