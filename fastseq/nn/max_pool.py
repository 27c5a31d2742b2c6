"""MaxPool2d: the greatest element of each window."""

from __future__ import annotations

from typing import Any

from fastseq import functional
from fastseq.functional import _check
from fastseq.nn._inputs import any_real_input, checked_flag
from fastseq.nn.module import Module

Pair = tuple[int, int]


class MaxPool2d(Module):
    """The greatest element of each window of an image (N, C, H, W).

    Parameters
    ----------
    kernel_size : int or two of them
        Rows and columns of a window, here and below.
    stride : int or two of them, optional
        From window to window; None: kernel_size, so that they lie side by side.
    padding, dilation : int or two of them
    ceil_mode : bool
        True: a last window that hangs over the end counts too.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.MaxPool2d(2)(np.arange(16.0).reshape(1, 1, 4, 4)).tolist()
    [[[[5.0, 7.0], [13.0, 15.0]]]]
    """

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        *,
        ceil_mode: bool = False,
    ) -> None:
        self.kernel_size = _check.sizes("kernel_size", kernel_size, 2, 1)
        self.stride = self.kernel_size if stride is None else _check.sizes("stride", stride, 2, 1)
        self.padding = _check.sizes("padding", padding, 2, 0)
        self.dilation = _check.sizes("dilation", dilation, 2, 1)
        self.ceil_mode = checked_flag("ceil_mode", ceil_mode)

    def forward(self, x: Any) -> Any:
        """Take x (N, C, H, W) to (N, C, H_out, W_out)."""
        x = any_real_input(x, "x")
        return functional.max_pool2d(
            x, self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation, ceil_mode=self.ceil_mode
        )

    def extra_repr(self) -> str:
        """All options."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, ceil_mode={self.ceil_mode}"
