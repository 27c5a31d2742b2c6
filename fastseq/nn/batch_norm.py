"""BatchNorm1d: each channel normalised over the batch, with running statistics for the time after training."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.functional import _check
from fastseq.nn._inputs import checked_dtype, checked_flag, checked_size, real_input
from fastseq.nn.module import Module, Parameter


class BatchNorm1d(Module):
    """weight (x - mean) / sqrt(variance + eps) + bias for each channel (Ioffe & Szegedy 2015).

    In training mode mean and variance are the batch's, and the running ones move towards them; in `eval` mode they are
    the running ones, so that a row's result does not depend on the others.

    Parameters
    ----------
    num_features : int
        Channels C.
    eps : float
    momentum : float or None
        How far the running statistics move towards each batch's; None: they are the plain average of all batches.
    affine : bool
        False leaves weight and bias out.
    track_running_stats : bool
        False keeps no running statistics: the batch's are used in `eval` mode too.
    dtype : float32 or float64

    Attributes
    ----------
    weight, bias : Parameter (C,) or None
        Ones and zeros to begin with.
    running_mean, running_var : ndarray (C,) or None
        Buffers, zeros and ones to begin with. running_var takes in the batch's variance with n - 1 in place of n, as PyTorch's.
    num_batches_tracked : ndarray (), int64, or None
        A buffer: how many batches they have seen.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> norm = fs.nn.BatchNorm1d(1)
    >>> norm(np.array([[1.0], [3.0]], np.float32)).round(3).tolist()
    [[-1.0], [1.0]]
    >>> norm.running_mean, norm.running_var
    (array([0.2], dtype=float32), array([1.1], dtype=float32))
    """

    weight: Parameter | None
    bias: Parameter | None
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        self.num_features = checked_size("num_features", num_features)
        self.eps = _check.not_negative("eps", eps)
        self.momentum = None if momentum is None else _check.probability("momentum", momentum)
        self.affine = checked_flag("affine", affine)
        self.track_running_stats = checked_flag("track_running_stats", track_running_stats)
        self.dtype = checked_dtype(dtype)
        self.weight = Parameter(np.ones(num_features, self.dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, self.dtype)) if affine else None
        if track_running_stats:
            self.register_buffer("running_mean", np.zeros(num_features, self.dtype))
            self.register_buffer("running_var", np.ones(num_features, self.dtype))
            self.register_buffer("num_batches_tracked", np.zeros((), np.int64))
        else:
            self.running_mean = self.running_var = self.num_batches_tracked = None

    def forward(self, x: Any) -> Any:
        """Take x (N, C) or (N, C, L) to the same shape."""
        x = real_input(x, self.dtype, "x")
        if x.ndim not in (2, 3) or x.shape[1] != self.num_features:
            raise ValueError(f"x: expected shape (N, {self.num_features}) or (N, {self.num_features}, L), got {x.shape}")
        recorded = isinstance(x, Tensor)
        weight, bias = (p if recorded or p is None else p.data for p in (self.weight, self.bias))
        fixed = self.track_running_stats and not self.training
        moments = {"mean": self.running_mean.copy(), "variance": self.running_var.copy()} if fixed else {}  # copies: for backward
        y, mean, variance = functional.batch_norm(x, weight=weight, bias=bias, eps=self.eps, **moments)
        if self.track_running_stats and self.training:
            self._track(mean, variance, x.size // self.num_features)
        return y

    def _track(self, mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        """Move the running statistics towards those of a batch with `count` values in each channel."""
        self.num_batches_tracked[...] += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean += self.dtype.type(share) * (mean - self.running_mean)
        self.running_var += self.dtype.type(share) * (variance * self.dtype.type(count / (count - 1)) - self.running_var)

    def extra_repr(self) -> str:
        """Channels and options."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
