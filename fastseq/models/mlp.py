"""The multi-layer perceptron, and the perceptron with its own rule of learning."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from fastseq.autograd import Tensor
from fastseq.functional import _check
from fastseq.nn import Dropout, Linear, Module, ModuleList, Parameter
from fastseq.nn._inputs import checked_dtype, checked_size, real_input, where_the_layer_is
from fastseq.nn.activations import activation_named
from fastseq.runtime import generator


class MLP(Module):
    """h_{l+1} = f(W_l h_l + b_l), layer after layer; the last one without f.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, units of each hidden layer, outputs: at least two numbers.
    activation : str
        The name of f in `fastseq.functional`.
    dropout : float
        Probability of dropping an element of a hidden layer while training.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    layers : ModuleList of Linear

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> model = fs.models.MLP([64, 100, 10])
    >>> model(np.zeros((5, 64))).shape
    (5, 10)
    """

    def __init__(
        self, sizes: Any, activation: str = "relu", *, dropout: float = 0.0, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        if not isinstance(sizes, tuple | list) or len(sizes) < 2:
            raise ValueError(f"sizes: expected those of inputs, hidden layers and outputs, got {sizes!r}")
        sizes, drawn = [checked_size("sizes", size) for size in sizes], generator(rng)
        activation_named(activation)
        self.activation = activation
        self.layers = ModuleList([Linear(*both, dtype=dtype, rng=drawn) for both in pairwise(sizes)])
        self.dropout = Dropout(dropout, rng=drawn)

    def forward(self, x: Any) -> Any:
        """Take x (..., inputs) to (..., outputs)."""
        function = activation_named(self.activation)
        *hidden, last = self.layers
        for layer in hidden:
            x = self.dropout(function(layer(x)))
        return last(x)


class Perceptron(Module):
    """y = 1 where w . x + b > 0, else 0, and the rule that learns it (Rosenblatt 1958).

    Where one line parts the two classes, `update` makes only so many mistakes in all and then none; where none does, as
    for XOR, it goes on for ever.

    Parameters
    ----------
    in_features : int
    dtype : float32 or float64

    Attributes
    ----------
    weight : Parameter (in_features,)
    bias : Parameter ()
        Both zeros to begin with, and without a gradient: the rule changes them.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> x, both = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0, 0, 0, 1])
    >>> neuron = fs.models.Perceptron(2)
    >>> [neuron.update(x, both) for _ in range(6)]
    [1, 3, 3, 2, 1, 0]
    >>> neuron(x)
    array([0, 0, 0, 1])
    """

    def __init__(self, in_features: int, *, dtype: Any = np.float32) -> None:
        self.in_features, self.dtype = checked_size("in_features", in_features), checked_dtype(dtype)
        self.weight = Parameter(np.zeros(in_features, self.dtype), requires_grad=False)
        self.bias = Parameter(np.zeros((), self.dtype), requires_grad=False)

    def forward(self, x: Any) -> np.ndarray:
        """Classes (...,) int64, 0 or 1, of x (..., in_features)."""
        return (self._input(x) @ self.weight.data + self.bias.data > 0).astype(np.int64)

    def update(self, x: Any, y: Any) -> int:
        """Go through the examples once, in their order: w += x on a missed positive, w -= x on a missed negative, b likewise by 1.

        Parameters
        ----------
        x : (N, in_features)
        y : (N,), 0 or 1

        Returns
        -------
        int
            How many were missed.

        Raises
        ------
        ValueError, TypeError
            If a shape or a dtype does not fit, or a class is neither 0 nor 1.
        """
        x, y = self._input(x), _check.plain("y", y)
        _check.shape("x", x, ("N", self.in_features))
        _check.shape("y", y, (len(x),))
        if not np.isin(y, (0, 1)).all():
            raise ValueError(f"y: expected classes 0 and 1, got {y[~np.isin(y, (0, 1))][0]}")
        missed = 0
        for example, wanted in zip(x, y.astype(np.int64), strict=True):
            error = int(wanted - self(example))
            self.weight.data += error * example
            self.bias.data += error
            missed += abs(error)
        return missed

    def _input(self, x: Any) -> np.ndarray:
        x = real_input(x.data if isinstance(x, Tensor) else x, self.dtype, "x")
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected shape (..., {self.in_features}), got {x.shape}")
        where_the_layer_is("x", x, self.weight.data)
        return x
