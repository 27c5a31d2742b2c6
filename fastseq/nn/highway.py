"""Highway: a layer that learns how much of its input to carry on."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.nn._inputs import checked_dtype, checked_size, real_input
from fastseq.nn.activations import activation_named
from fastseq.nn.linear import Linear
from fastseq.nn.module import Module, Parameter
from fastseq.runtime import generator


class Highway(Module):
    """g f(W h + b) + (1 - g) h with g = sigmoid(W_g h + b_g) (Srivastava et al. 2015).

    Parameters
    ----------
    size : int
        Of the last axis of h.
    activation : str
        The name of f in `fastseq.functional`.
    gate_bias : float
        What b_g starts from: below 0 a new layer carries its input on, so that a deep stack lets the gradient through.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator
        What the weights are drawn from; None: the process's generator (`fs.manual_seed`).

    Attributes
    ----------
    transform, gate : Linear

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Highway(4, rng=0)(np.ones((5, 4), np.float32)).shape
    (5, 4)
    """

    def __init__(
        self, size: int, activation: str = "relu", *, gate_bias: float = -2.0, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        drawn, size = generator(rng), checked_size("size", size)
        activation_named(activation)
        self.dtype = checked_dtype(dtype)
        self.transform = Linear(size, size, dtype=dtype, rng=drawn)
        self.gate = Linear(size, size, dtype=dtype, rng=drawn)
        self.gate.bias = Parameter(np.full(size, gate_bias, self.dtype))
        self.activation = activation

    def forward(self, h: Any) -> Any:
        """Take h (..., size) to the same shape."""
        h = real_input(h, self.dtype, "h")
        g = functional.sigmoid(self.gate(h))
        return h + g * (activation_named(self.activation)(self.transform(h)) - h)
