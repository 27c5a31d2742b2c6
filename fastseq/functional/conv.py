"""Convolution over one axis or two, on the matrix product."""

from __future__ import annotations

from typing import Any

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import backend_of
from fastseq.backends.window import Window
from fastseq.functional import _check

Pair = tuple[int, int]


def conv1d(
    x: ArrayOrTensor,
    weight: ArrayOrTensor,
    bias: ArrayOrTensor | None = None,
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
    causal: bool = False,
) -> ArrayOrTensor:
    """y[n, o, p] = bias[o] + sum over c and i of weight[o, c, i] x[n, c, p stride - padding + i dilation], zeros outside x.

    Parameters
    ----------
    x : ndarray or Tensor (N, C, L), float32 or float64
    weight : ndarray or Tensor (O, C / groups, kernel), of x's dtype
    bias : ndarray or Tensor (O,), of x's dtype, optional
    stride : int
    padding : int, "valid" or "same"
        Zeros on both sides; "valid" is 0, "same" keeps the length (with stride 1; where an odd number is needed, the
        last comes on the right).
    dilation : int
        The distance of the kernel's elements in x.
    groups : int
        The channels are cut into so many groups, each of which sees its own share of the input channels only.
    causal : bool
        All the padding, dilation (kernel - 1) zeros, is on the left: no position sees a later one.

    Returns
    -------
    ndarray or Tensor (N, O, floor((L + 2 padding - dilation (kernel - 1) - 1) / stride) + 1)
        A row depends on its x and the parameters only, to the bit.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or an option do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> x, weight = np.array([[[1.0, 2.0, 3.0, 4.0]]]), np.array([[[1.0, 10.0]]])
    >>> fs.functional.conv1d(x, weight)
    array([[[21., 32., 43.]]])
    >>> fs.functional.conv1d(x, weight, causal=True)
    array([[[10., 21., 32., 43.]]])
    """
    values, w, b = _arrays(x, weight, bias, ("N", "C", "L"), ("O", "C / groups", "kernel"), groups)
    options = {"stride": _check.sizes("stride", stride, 1, 1), "dilation": _check.sizes("dilation", dilation, 1, 1)}
    if _check.boolean("causal", causal):
        if padding not in (0, (0,)):
            raise ValueError(f"padding: expected 0 with causal=True, which says what is padded, got {padding!r}")
        before, after = paddings("same", w.shape[2:], stride=(1,), dilation=options["dilation"])
        before, after = (before[0] + after[0],), (0,)
    else:
        before, after = paddings(padding, w.shape[2:], **options)
    window = _window(values.shape[2:], w.shape[2:], before, after, **options)
    return _convolve((x, weight, bias), values[:, :, None], w[:, :, None], b, groups, window)


def conv2d(
    x: ArrayOrTensor,
    weight: ArrayOrTensor,
    bias: ArrayOrTensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> ArrayOrTensor:
    """y[n, o, p, q] = bias[o] + sum over c, i, j of weight[o, c, i, j] x[n, c, what (p, q) sees at (i, j)], zeros outside x.

    Parameters
    ----------
    x : ndarray or Tensor (N, C, H, W), float32 or float64
    weight : ndarray or Tensor (O, C / groups, kernel_h, kernel_w), of x's dtype
    bias : ndarray or Tensor (O,), of x's dtype, optional
    stride, dilation : int or two of them
        For rows and columns; as in `conv1d`.
    padding : int, two of them, "valid" or "same"
    groups : int

    Returns
    -------
    ndarray or Tensor (N, O, H_out, W_out)
        H_out = floor((H + 2 padding - dilation (kernel_h - 1) - 1) / stride) + 1, W_out likewise.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or an option do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)))
    array([[[[4., 4.],
             [4., 4.]]]])
    """
    values, w, b = _arrays(x, weight, bias, ("N", "C", "H", "W"), ("O", "C / groups", "kernel_h", "kernel_w"), groups)
    options = {"stride": _check.sizes("stride", stride, 2, 1), "dilation": _check.sizes("dilation", dilation, 2, 1)}
    before, after = paddings(padding, w.shape[2:], **options)
    window = _window(values.shape[2:], w.shape[2:], before, after, **options)
    return _convolve((x, weight, bias), values, w, b, groups, window)


def _convolve(inputs: tuple[Any, ...], values: Array, w: Array, b: Array | None, groups: int, window: Window) -> ArrayOrTensor:
    """The convolution of images, recorded for `inputs`, whose own shapes may have one axis less."""
    backend = backend_of(values, w)
    y = backend.conv_forward(values, w, b, groups=groups, window=window)
    x, weight, bias = inputs
    needs = {"need_dx": _check.wants(x), "need_dweight": _check.wants(weight), "need_dbias": _check.wants(bias)}
    one_axis = x.ndim == 3

    def backward(dy: Array) -> tuple[Array | None, ...]:
        # y = weight * x + bias
        dy = dy[:, :, None] if one_axis else dy
        dx, dweight, dbias = backend.conv_backward(dy, values, w, groups=groups, window=window, **needs)
        return _as(dx, x), _as(dweight, weight), dbias

    return result(y[:, :, 0] if one_axis else y, inputs, backward, "conv1d" if one_axis else "conv2d")


def _as(gradient: Array | None, x: Any) -> Array | None:
    return None if gradient is None else gradient.reshape(x.shape)


def _arrays(
    x: Any, weight: Any, bias: Any, shape: tuple[str, ...], kernel: tuple[str, ...], groups: int
) -> tuple[Array, Array, Array | None]:
    """The arrays of x, weight and bias, once they and `groups` are known to fit."""
    values = _check.floats("x", x)
    w = _check.like("weight", weight, values)
    _check.shape("x", values, shape)
    _check.shape("weight", w, kernel)
    outputs, inputs = w.shape[:2]
    _check.integer("groups", groups, 1, _check.MOST_ELEMENTS)
    if outputs % groups:
        raise ValueError(f"weight: expected its {outputs} channels to come in {groups} equal groups")
    _check.shape("x", values, ("N", inputs * groups, *shape[2:]))
    if 0 in w.shape:
        raise ValueError(f"weight: expected at least one element, got shape {w.shape}")
    b = None if bias is None else _check.like("bias", bias, values)
    if b is not None:
        _check.shape("bias", b, (outputs,))
    return values, w, b


def paddings(
    padding: Any, kernel: tuple[int, ...], *, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros before and after x on each axis."""
    if not isinstance(padding, str):
        both = _check.sizes("padding", padding, len(kernel), 0)
        return both, both
    _check.choice("padding", padding, ("valid", "same"))
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if any(s != 1 for s in stride):
        raise ValueError(f"padding: expected a number where stride is not 1, got 'same' with stride {stride}")
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)


def _window(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    before: tuple[int, ...],
    after: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Window:
    """What each output position sees, with rows of one element where there is one axis only."""
    out = []
    for n, k, s, d, first, last in zip(size, kernel, stride, dilation, before, after, strict=True):
        room = first + n + last - d * (k - 1) - 1
        if room < 0:
            raise ValueError(f"x: expected at least {d * (k - 1) + 1 - first - last} elements for a kernel of {k}, dilation {d}, got {n}")
        out.append(room // s + 1)
    lead = (1,) * (2 - len(kernel))
    pairs = (lead + kernel, lead + stride, lead + dilation, (0,) * len(lead) + before, lead + tuple(out))
    _check.size("x", *out)
    return Window(*pairs)  # type: ignore[arg-type]
