"""Linear: y = x W^T + b over the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.nn import init
from fastseq.nn._inputs import checked_dtype, checked_size, real_input
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator


class Linear(Module):
    """y = x W^T + b over the last axis, with any leading dimensions.

    Weights and bias start uniform in +-1/sqrt(in_features), as PyTorch's.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
        False leaves b out.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator
        What the weights are drawn from; None: the process's generator (`fs.manual_seed`).

    Attributes
    ----------
    weight : Parameter (out_features, in_features)
    bias : Parameter (out_features,) or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> layer = fs.nn.Linear(3, 2, rng=0)
    >>> layer(np.ones((4, 5, 3), np.float32)).shape
    (4, 5, 2)
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        self.in_features = checked_size("in_features", in_features)
        self.out_features = checked_size("out_features", out_features)
        self.dtype = checked_dtype(dtype)
        drawn = generator(rng)
        bound = self.in_features**-0.5
        self.weight = Parameter(init.uniform(drawn, (self.out_features, self.in_features), bound, self.dtype))
        self.bias = Parameter(init.uniform(drawn, (self.out_features,), bound, self.dtype)) if bias else None

    def forward(self, x: Any) -> Any:
        """Take x (..., in_features) to (..., out_features): an array to an array, a Tensor to a Tensor."""
        x = real_input(x, self.dtype, "x")
        bias = self.bias
        if isinstance(x, Tensor):
            return functional.linear(x, self.weight, bias)
        return functional.linear(x, self.weight.data, None if bias is None else bias.data)

    def extra_repr(self) -> str:
        """Sizes and bias."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
