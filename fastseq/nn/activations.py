"""The elementwise functions and softmax as modules."""

from __future__ import annotations

from typing import Any

from fastseq import functional
from fastseq.functional import _check
from fastseq.nn._inputs import any_real_input
from fastseq.nn.module import Module


class ReLU(Module):
    """max(x, 0), element by element.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.ReLU()(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def forward(self, x: Any) -> Any:
        """The larger of x and 0; x of any shape."""
        return functional.relu(any_real_input(x, "x"))


class Tanh(Module):
    """The hyperbolic tangent, element by element.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Tanh()(np.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def forward(self, x: Any) -> Any:
        """The hyperbolic tangent; x of any shape."""
        return functional.tanh(any_real_input(x, "x"))


class Sigmoid(Module):
    """1 / (1 + exp(-x)), element by element.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Sigmoid()(np.zeros(2)).tolist()
    [0.5, 0.5]
    """

    def forward(self, x: Any) -> Any:
        """The logistic function; x of any shape."""
        return functional.sigmoid(any_real_input(x, "x"))


class GELU(Module):
    """x Phi(x), element by element, Phi the normal distribution's function (Hendrycks & Gimpel 2016).

    Parameters
    ----------
    approximate : {"none", "tanh"}
        As in `fastseq.functional.gelu`.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.GELU()(np.array([0.0, 1.0])).round(4).tolist()
    [0.0, 0.8413]
    """

    def __init__(self, approximate: str = "none") -> None:
        _check.choice("approximate", approximate, ("none", "tanh"))
        self.approximate = approximate

    def forward(self, x: Any) -> Any:
        """x times the share of a normal distribution below it; x of any shape."""
        return functional.gelu(any_real_input(x, "x"), self.approximate)

    def extra_repr(self) -> str:
        """The form."""
        return f"approximate={self.approximate!r}"


class _OverLastAxis(Module):
    """What Softmax and LogSoftmax share: PyTorch's argument `dim`, of which only the last axis is offered."""

    def __init__(self, dim: int = -1) -> None:
        if dim != -1:
            raise ValueError(f"dim: expected -1, the last axis, got {dim!r}")
        self.dim = -1

    def extra_repr(self) -> str:
        """The axis."""
        return "dim=-1"


class Softmax(_OverLastAxis):
    """exp(x) / sum(exp(x)) over the last axis.

    Parameters
    ----------
    dim : int
        Only -1.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Softmax()(np.zeros((1, 4))).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def forward(self, x: Any) -> Any:
        """Shares of 1 along the last axis; x of any shape."""
        return functional.softmax(any_real_input(x, "x"))


class LogSoftmax(_OverLastAxis):
    """x - log(sum(exp(x))) over the last axis.

    Parameters
    ----------
    dim : int
        Only -1.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> np.exp(fs.nn.LogSoftmax()(np.zeros((1, 4)))).round(6).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    def forward(self, x: Any) -> Any:
        """Logarithms of shares of 1 along the last axis; x of any shape."""
        return functional.log_softmax(any_real_input(x, "x"))
