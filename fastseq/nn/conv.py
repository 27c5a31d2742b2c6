"""Conv1d and Conv2d: the same weights at every place of a sequence or an image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.functional import _check
from fastseq.functional.conv import paddings
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_flag, checked_size, real_input
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator


class _Conv(Module):
    """What both share: channels, options, and how weights start."""

    axes: int  # of the kernel
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        bias: bool,
        dtype: Any,
        rng: Any,
    ) -> None:
        self.in_channels = checked_size("in_channels", in_channels)
        self.out_channels = checked_size("out_channels", out_channels)
        self.groups = checked_size("groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name}: expected a multiple of groups {groups}, got {channels}")
        self.kernel_size = _check.sizes("kernel_size", kernel_size, self.axes, 1)
        self.stride = _check.sizes("stride", stride, self.axes, 1)
        self.dilation = _check.sizes("dilation", dilation, self.axes, 1)
        self.padding = padding if isinstance(padding, str) else _check.sizes("padding", padding, self.axes, 0)
        paddings(self.padding, self.kernel_size, stride=self.stride, dilation=self.dilation)
        self.dtype = checked_dtype(dtype)
        drawn, shape = generator(rng), (out_channels, in_channels // groups, *self.kernel_size)
        bound = math.prod(shape[1:]) ** -0.5
        self.weight = Parameter(init.uniform(drawn, shape, bound, self.dtype))
        self.bias = Parameter(init.uniform(drawn, shape[:1], bound, self.dtype)) if bias else None

    def _call(self, function: Any, x: Any, **more: Any) -> Any:
        x = real_input(x, self.dtype, "x")
        recorded = isinstance(x, Tensor)
        weight = self.weight if recorded else self.weight.data
        bias = self.bias if recorded or self.bias is None else self.bias.data
        return function(x, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups, **more)

    def extra_repr(self) -> str:
        """Channels, kernel, and the options that are not at their defaults."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, usual in (("padding", (0,) * self.axes), ("dilation", (1,) * self.axes), ("groups", 1)):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)!r}"
        return text + (", bias=False" if self.bias is None else "")


class Conv1d(_Conv):
    """Convolution over the last axis: y[n, o, p] = bias[o] + sum over c, i of weight[o, c, i] x[n, c, p stride - padding + i dilation].

    PyTorch's layout: channels before time. A sequence (T, B, C) goes in as x.transpose(1, 2, 0).
    Weights and bias start uniform in +-1/sqrt(in_channels / groups kernel_size), as PyTorch's.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int
    stride : int
    padding : int, "valid" or "same"
        Zeros on both sides; "same" keeps the length.
    dilation : int
        The distance of the kernel's elements in x: d, 2d, 4d ... in layers upon each other see far back.
    groups : int
        So many shares of the channels, each convolved by itself; in_channels: one filter for each channel.
    bias : bool
        False leaves it out.
    causal : bool
        All padding is on the left: y at p sees x up to p only, and with stride 1 is as long as x.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator
        What the weights are drawn from; None: the process's generator (`fs.manual_seed`).

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels / groups, kernel_size)
    bias : Parameter (out_channels,) or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> conv = fs.nn.Conv1d(3, 8, kernel_size=3, dilation=4, causal=True, rng=0)
    >>> conv(np.ones((5, 3, 100), np.float32)).shape
    (5, 8, 100)
    """

    axes = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | str = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        causal: bool = False,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype, rng)
        self.causal = checked_flag("causal", causal)
        if self.causal and self.padding != (0,):
            raise ValueError(f"padding: expected 0 with causal=True, which says what is padded, got {padding!r}")

    def forward(self, x: Any) -> Any:
        """Take x (N, in_channels, L) to (N, out_channels, L_out)."""
        return self._call(functional.conv1d, x, causal=self.causal)

    def extra_repr(self) -> str:
        """As Conv2d's, and whether it is causal."""
        return super().extra_repr() + (", causal=True" if self.causal else "")


class Conv2d(_Conv):
    """Convolution over images: y[n, o, p, q] = bias[o] + sum over c, i, j of weight[o, c, i, j] x[n, c, what (p, q) sees at (i, j)].

    Weights and bias start uniform in +-1/sqrt(in_channels / groups kernel_h kernel_w), as PyTorch's.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or two of them
        For rows and columns.
    padding : int, two of them, "valid" or "same"
        Zeros on all sides; "same" keeps the size.
    groups : int
    bias : bool
        False leaves it out.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    weight : Parameter (out_channels, in_channels / groups, kernel_h, kernel_w)
    bias : Parameter (out_channels,) or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Conv2d(1, 6, kernel_size=5, padding=2, rng=0)(np.ones((2, 1, 28, 28), np.float32)).shape
    (2, 6, 28, 28)
    """

    axes = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, dtype, rng)

    def forward(self, x: Any) -> Any:
        """Take x (N, in_channels, H, W) to (N, out_channels, H_out, W_out)."""
        return self._call(functional.conv2d, x)
