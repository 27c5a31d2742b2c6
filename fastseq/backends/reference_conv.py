"""Convolution, max pooling and batch norm, written to be read: the part of `reference.py` that has them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from fastseq.backends.window import Window

Array = np.ndarray


def _padded(x: Array, window: Window, fill: float) -> Array:
    """X (..., H, W) with `fill` around it, so that every tap of every position is inside."""
    pads = [(0, 0)] * (x.ndim - 2)
    for size, kernel, stride, dilation, before, out in zip(x.shape[-2:], *window, strict=True):
        pads.append((before, max(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - before - size)))
    return np.pad(x, pads, constant_values=fill)


def _taps(window: Window) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Row i and column j of the kernel, and where they are in the padded x for all positions."""
    for i, j in itertools.product(*map(range, window.kernel)):
        yield i, j, tuple(
            slice(tap * dilation, tap * dilation + (out - 1) * stride + 1, stride)
            for tap, dilation, stride, out in zip((i, j), window.dilation, window.stride, window.out, strict=True)
        )  # type: ignore[misc]


def _inside(padded: Array, shape: tuple[int, ...], window: Window) -> Array:
    (top, left), (H, W) = window.before, shape[-2:]
    return padded[..., top : top + H, left : left + W]


def _grouped(x: Array, groups: int) -> Array:
    """Channels (N, groups C, ...) as (N, groups, C, ...)."""
    return x.reshape(len(x), groups, x.shape[1] // groups, *x.shape[2:])


def conv_forward(x: Array, weight: Array, bias: Array | None, *, groups: int, window: Window) -> Array:
    """Y (N, O, *out) of x (N, C, H, W) and weight (O, C / groups, *kernel): each position sees `window` of x, zeros outside."""
    padded, w = _grouped(_padded(x, window, 0), groups), weight.reshape(groups, -1, *weight.shape[1:])
    y = np.zeros((len(x), groups, w.shape[1], *window.out), x.dtype)
    for i, j, (rows, columns) in _taps(window):
        y += np.einsum("goc,ngchw->ngohw", w[..., i, j], padded[..., rows, columns])
    y = y.reshape(len(x), len(weight), *window.out)
    return y if bias is None else y + bias[:, None, None]


def conv_backward(
    dy: Array, x: Array, weight: Array, *, groups: int, window: Window, need_dx: bool = True, need_dweight: bool = True, need_dbias: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """Dx, dweight and dbias, None where they are not asked for."""
    padded, w, d = _grouped(_padded(x, window, 0), groups), weight.reshape(groups, -1, *weight.shape[1:]), _grouped(dy, groups)
    dpadded, dw = np.zeros_like(padded), np.zeros_like(w)
    for i, j, (rows, columns) in _taps(window):
        # y += w_ij x at tap (i, j)
        dpadded[..., rows, columns] += np.einsum("goc,ngohw->ngchw", w[..., i, j], d)
        dw[..., i, j] = np.einsum("ngohw,ngchw->goc", d, padded[..., rows, columns])
    dx = _inside(dpadded, x.shape, window).reshape(x.shape)
    # y = ... + bias
    return dx if need_dx else None, dw.reshape(weight.shape) if need_dweight else None, dy.sum(axis=(0, 2, 3)) if need_dbias else None


def max_pool_forward(x: Array, *, window: Window) -> tuple[Array, Array]:
    """The greatest element of each window of x (N, C, H, W), and where it is in its plane, row by row."""
    padded = _padded(x, window, -np.inf)
    (top, left), (H, W) = window.before, x.shape[-2:]
    place = (np.arange(padded.shape[-2])[:, None] - top) * W + np.arange(padded.shape[-1]) - left
    outside = np.ones(padded.shape[-2:], bool)
    outside[top : top + H, left : left + W] = False
    y = np.full((*x.shape[:2], *window.out), -np.inf, x.dtype)
    places = np.full(y.shape, -1)
    for _, _, (rows, columns) in _taps(window):
        seen = padded[..., rows, columns]
        better = ((seen > y) | np.isnan(seen) | (places < 0)) & ~outside[rows, columns]
        y, places = np.where(better, seen, y), np.where(better, place[rows, columns], places)
    return y, places


def max_pool_backward(dy: Array, places: Array, shape: tuple[int, ...], *, window: Window) -> Array:
    """Dx of this shape: dy where the greatest elements were."""
    N, C, H, W = shape
    dx = np.zeros((N * C, H * W), dy.dtype)
    planes = np.broadcast_to(np.arange(N * C)[:, None], (N * C, window.out[0] * window.out[1]))
    np.add.at(dx, (planes, places.reshape(planes.shape)), dy.reshape(planes.shape))
    return dx.reshape(shape)


def _each_channel(v: Array | None, x: Array) -> Array:
    """(C,) beside x (N, C) or (N, C, L); one for None."""
    return np.ones((), x.dtype) if v is None else v.reshape(-1, *[1] * (x.ndim - 2))


def _others(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def batch_norm_forward(
    x: Array, weight: Array | None, bias: Array | None, *, mean: Array | None = None, variance: Array | None = None, eps: float
) -> tuple[Array, Array, Array]:
    """Y, and the mean and variance (C,) of each channel of x (N, C) or (N, C, L): the batch's, or those given."""
    mean = x.mean(axis=_others(x)) if mean is None else mean
    variance = ((x - _each_channel(mean, x)) ** 2).mean(axis=_others(x)) if variance is None else variance
    y = (x - _each_channel(mean, x)) / np.sqrt(_each_channel(variance, x) + eps) * _each_channel(weight, x)
    return (y if bias is None else y + _each_channel(bias, x)).astype(x.dtype), mean, variance


def batch_norm_backward(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    variance: Array,
    *,
    eps: float,
    given: bool,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """Dx, dweight and dbias, None where they are not asked for; `given`: the moments are constants, not the batch's."""
    others, rstd = _others(x), 1 / np.sqrt(_each_channel(variance, x) + eps)
    hat = (x - _each_channel(mean, x)) * rstd
    # y = weight xhat + bias
    d = dy * _each_channel(weight, x)
    # xhat = (x - mean) rstd, where mean and rstd depend on the channel's whole batch, unless they were given
    dx = rstd * (d if given else d - d.mean(axis=others, keepdims=True) - hat * (d * hat).mean(axis=others, keepdims=True))
    return dx if need_dx else None, (dy * hat).sum(axis=others) if need_dweight else None, dy.sum(axis=others) if need_dbias else None
