"""Convolution over one axis or two, on the matrix product; and their explicit pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    return _recorded((x, weight, bias), *_checked1d(x, weight, bias, stride, padding, dilation, groups, causal))


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
    return _recorded((x, weight, bias), *_checked2d(x, weight, bias, stride, padding, dilation, groups))


# ---------------------------------------------------------------- explicit pairs


class ConvCache(NamedTuple):
    """What a forward half saves for its backward half, which never changes it: images, with one row where there is one axis."""

    operation: str
    backend: Any
    x: Array
    weight: Array
    groups: int
    window: Window
    has_bias: bool


def conv1d_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
    causal: bool = False,
) -> tuple[Array, ConvCache]:
    """The forward half of `conv1d` on plain arrays, for those who call the backward half themselves; arguments and errors as there.

    Returns
    -------
    y : ndarray (N, O, L_out)
    cache : ConvCache
        For `conv1d_backward`; valid as long as x and the weight are not changed in place.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, cache = fs.functional.conv1d_forward(np.ones((1, 1, 3)), np.ones((1, 1, 2)))
    >>> fs.functional.conv1d_backward(cache, y)["dx"]
    array([[[2., 4., 2.]]])
    """
    _check.no_tensors("conv1d", x=x, weight=weight, bias=bias)
    cache, b = _checked1d(x, weight, bias, stride, padding, dilation, groups, causal)
    return _forward(cache, b), cache


def conv1d_backward(cache: ConvCache, dy: Array) -> dict[str, Array | None]:
    """The gradients from the cache of `conv1d_forward`; may be called any number of times.

    Parameters
    ----------
    cache : ConvCache
    dy : ndarray (N, O, L_out)
        dL/dy.

    Returns
    -------
    dict of ndarray
        dx, dweight, dbias, None for a bias that there was not.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or dy does not fit.
    """
    return _named("conv1d", cache, dy)


def conv2d_forward(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> tuple[Array, ConvCache]:
    """The forward half of `conv2d` on plain arrays, for those who call the backward half themselves; arguments and errors as there.

    Returns
    -------
    y : ndarray (N, O, H_out, W_out)
    cache : ConvCache
        For `conv2d_backward`; valid as long as x and the weight are not changed in place.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, cache = fs.functional.conv2d_forward(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)))
    >>> fs.functional.conv2d_backward(cache, y)["dweight"].tolist()
    [[[[4.0, 4.0], [4.0, 4.0]]]]
    """
    _check.no_tensors("conv2d", x=x, weight=weight, bias=bias)
    cache, b = _checked2d(x, weight, bias, stride, padding, dilation, groups)
    return _forward(cache, b), cache


def conv2d_backward(cache: ConvCache, dy: Array) -> dict[str, Array | None]:
    """The gradients from the cache of `conv2d_forward`; as `conv1d_backward`."""
    return _named("conv2d", cache, dy)


# ---------------------------------------------------------------- what they share


def _checked1d(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int, causal: Any
) -> tuple[ConvCache, Array | None]:
    """The call as one on images, once it is known to fit, and the array of its bias."""
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
    return ConvCache("conv1d", backend_of(values, w), values[:, :, None], w[:, :, None], groups, window, b is not None), b


def _checked2d(x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> tuple[ConvCache, Array | None]:
    """Likewise."""
    values, w, b = _arrays(x, weight, bias, ("N", "C", "H", "W"), ("O", "C / groups", "kernel_h", "kernel_w"), groups)
    options = {"stride": _check.sizes("stride", stride, 2, 1), "dilation": _check.sizes("dilation", dilation, 2, 1)}
    before, after = paddings(padding, w.shape[2:], **options)
    window = _window(values.shape[2:], w.shape[2:], before, after, **options)
    return ConvCache("conv2d", backend_of(values, w), values, w, groups, window, b is not None), b


def _forward(cache: ConvCache, b: Array | None) -> Array:
    y = cache.backend.conv_forward(cache.x, cache.weight, b, groups=cache.groups, window=cache.window)
    return y[:, :, 0] if cache.operation == "conv1d" else y


def _backward(cache: ConvCache, dy: Array, **needs: bool) -> tuple[Array | None, ...]:
    """dx, dweight and dbias of y = weight * x + bias, in the shapes that the caller knows."""
    one_axis = cache.operation == "conv1d"
    dy = dy[:, :, None] if one_axis else dy
    dx, dweight, dbias = cache.backend.conv_backward(dy, cache.x, cache.weight, groups=cache.groups, window=cache.window, **needs)
    if one_axis:
        dx, dweight = (None if d is None else d[:, :, 0] for d in (dx, dweight))
    return dx, dweight, dbias


def _recorded(inputs: tuple[Any, ...], cache: ConvCache, b: Array | None) -> ArrayOrTensor:
    needs = dict(zip(("need_dx", "need_dweight", "need_dbias"), map(_check.wants, inputs), strict=True))
    return result(_forward(cache, b), inputs, lambda dy: _backward(cache, dy, **needs), cache.operation)


def _named(operation: str, cache: Any, dy: Array) -> dict[str, Array | None]:
    _check.made_by(f"{operation}_forward", cache, ConvCache)
    if cache.operation != operation:
        raise TypeError(f"cache: expected what {operation}_forward returned, got what {cache.operation}_forward did")
    out = cache.window.out[1:] if operation == "conv1d" else cache.window.out
    dy = _check.gradient("dy", dy, cache.x, (len(cache.x), len(cache.weight), *out))
    return dict(zip(("dx", "dweight", "dbias"), _backward(cache, dy, need_dbias=cache.has_bias), strict=True))


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
