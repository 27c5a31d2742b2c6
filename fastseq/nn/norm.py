"""Layer norm and RMS norm over the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.functional import _check
from fastseq.nn._inputs import checked_dtype, checked_elements, checked_size, real_input
from fastseq.nn.module import Module, Parameter


class _OverLastAxis(Module):
    """What LayerNorm and RMSNorm share: PyTorch's `normalized_shape`, of which only the last axis is offered, and the gain."""

    weight: Parameter | None

    def __init__(self, normalized_shape: Any, eps: float, elementwise_affine: bool, dtype: np.dtype) -> None:
        shape = tuple(normalized_shape) if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
        if len(shape) != 1:
            raise ValueError(f"normalized_shape: expected one size, that of the last axis, got {normalized_shape!r}")
        self.normalized_shape = (checked_size("normalized_shape", shape[0]),)
        checked_elements("normalized_shape", *self.normalized_shape)
        self.eps = _check.not_negative("eps", eps)
        self.elementwise_affine = bool(elementwise_affine)
        self.dtype = dtype
        self.weight = Parameter(np.ones(self.normalized_shape, dtype)) if elementwise_affine else None

    def _input(self, x: Any, name: str) -> Any:
        x = real_input(x, self.dtype, name)
        if x.ndim == 0 or x.shape[-1:] != self.normalized_shape:
            raise ValueError(f"{name}: expected shape (..., {self.normalized_shape[0]}), got {x.shape}")
        return x

    def extra_repr(self) -> str:
        """Size, eps and affinity."""
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


def _given(parameter: Parameter | None, recorded: bool) -> Any:
    """A parameter as functional takes it: its array where nothing is recorded."""
    return parameter if recorded or parameter is None else parameter.data


class LayerNorm(_OverLastAxis):
    """weight (x - mean) / sqrt(variance + eps) + bias over the last axis (Ba et al. 2016).

    Parameters
    ----------
    normalized_shape : int or tuple of one int
        The size of the last axis.
    eps : float
    elementwise_affine : bool
        False leaves weight and bias out.
    bias : bool
        False leaves the bias out.
    dtype : float32 or float64

    Attributes
    ----------
    weight, bias : Parameter (normalized_shape,) or None
        Ones and zeros to begin with.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> norm = fs.nn.LayerNorm(2)
    >>> norm(np.array([[1.0, 3.0]], np.float32)).round(3).tolist()
    [[-1.0, 1.0]]
    """

    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: Any,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, checked_dtype(dtype))
        self.bias = Parameter(np.zeros(self.normalized_shape, self.dtype)) if elementwise_affine and bias else None

    def forward(self, x: Any, residual: Any = None) -> Any:
        """Take x (..., N) to y; with `residual` to (y, s), s = x + residual and y its norm."""
        x = self._input(x, "x")
        if residual is not None:
            residual = self._input(residual, "residual")
        recorded = isinstance(x, Tensor) or isinstance(residual, Tensor)
        weight, bias = _given(self.weight, recorded), _given(self.bias, recorded)
        return functional.layer_norm(x, weight, bias, eps=self.eps, residual=residual)


class RMSNorm(_OverLastAxis):
    """weight x / sqrt(mean(x^2) + eps) over the last axis (Zhang & Sennrich 2019).

    Parameters
    ----------
    normalized_shape : int or tuple of one int
        The size of the last axis.
    eps : float, optional
        None: the distance from 1 to the next number of the dtype.
    elementwise_affine : bool
        False leaves the weight out.
    dtype : float32 or float64

    Attributes
    ----------
    weight : Parameter (normalized_shape,) or None
        Ones to begin with.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.RMSNorm(2)(np.array([[3.0, 4.0]], np.float32)).round(3)
    array([[0.849, 1.131]], dtype=float32)
    """

    def __init__(
        self, normalized_shape: Any, eps: float | None = None, elementwise_affine: bool = True, *, dtype: Any = np.float32
    ) -> None:
        dtype = checked_dtype(dtype)
        super().__init__(normalized_shape, float(np.finfo(dtype).eps) if eps is None else eps, elementwise_affine, dtype)

    def forward(self, x: Any) -> Any:
        """Take x (..., N) to (..., N)."""
        x = self._input(x, "x")
        return functional.rms_norm(x, _given(self.weight, isinstance(x, Tensor)), eps=self.eps)
