"""The elementwise functions and softmax as modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastseq import functional
from fastseq.functional import _check
from fastseq.nn._inputs import any_real_input
from fastseq.nn.module import Module

#: Names that models take, of functions of each element in `fastseq.functional`.
ACTIVATIONS = ("elu", "gelu", "leaky_relu", "mish", "relu", "selu", "sigmoid", "silu", "softplus", "softsign", "tanh")


def activation_named(name: str) -> Callable[[Any], Any]:
    """The function of one of `ACTIVATIONS`; ValueError for another word."""
    _check.choice("activation", name, ACTIVATIONS)
    return getattr(functional, name)


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


class SiLU(Module):
    """x sigmoid(x), element by element, also called swish (Elfwing et al. 2017).

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.SiLU()(np.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def forward(self, x: Any) -> Any:
        """x times its logistic function; x of any shape."""
        return functional.silu(any_real_input(x, "x"))


class SELU(Module):
    """1.0507 elu(x, 1.6733), element by element (Klambauer et al. 2017).

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.SELU()(np.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def forward(self, x: Any) -> Any:
        """The scaled exponential unit; x of any shape."""
        return functional.selu(any_real_input(x, "x"))


class Mish(Module):
    """x tanh(softplus(x)), element by element (Misra 2019).

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Mish()(np.zeros(2)).tolist()
    [0.0, 0.0]
    """

    def forward(self, x: Any) -> Any:
        """x times the tanh of its softplus; x of any shape."""
        return functional.mish(any_real_input(x, "x"))


class Softsign(Module):
    """x / (1 + |x|), element by element.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Softsign()(np.array([-1.0, 3.0])).tolist()
    [-0.5, 0.75]
    """

    def forward(self, x: Any) -> Any:
        """x over 1 + |x|; x of any shape."""
        return functional.softsign(any_real_input(x, "x"))


class LogSigmoid(Module):
    """log(sigmoid(x)), element by element.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.LogSigmoid()(np.array([-1000.0])).tolist()
    [-1000.0]
    """

    def forward(self, x: Any) -> Any:
        """The logarithm of the logistic function; x of any shape."""
        return functional.logsigmoid(any_real_input(x, "x"))


class ReLU6(Module):
    """min(max(x, 0), 6), element by element.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.ReLU6()(np.array([-1.0, 8.0])).tolist()
    [0.0, 6.0]
    """

    def forward(self, x: Any) -> Any:
        """x between 0 and 6; x of any shape."""
        return functional.relu6(any_real_input(x, "x"))


class LeakyReLU(Module):
    """x above 0, negative_slope x below, element by element (Maas et al. 2013).

    Parameters
    ----------
    negative_slope : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.LeakyReLU()(np.array([-1.0, 2.0])).tolist()
    [-0.01, 2.0]
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = _check.number("negative_slope", negative_slope)

    def forward(self, x: Any) -> Any:
        """x, less steep below 0; x of any shape."""
        return functional.leaky_relu(any_real_input(x, "x"), self.negative_slope)

    def extra_repr(self) -> str:
        """The slope below 0."""
        return f"negative_slope={self.negative_slope}"


class ELU(Module):
    """x above 0, alpha (exp(x) - 1) below, element by element (Clevert et al. 2015).

    Parameters
    ----------
    alpha : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.ELU()(np.array([-np.inf, 2.0])).tolist()
    [-1.0, 2.0]
    """

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = _check.number("alpha", alpha)

    def forward(self, x: Any) -> Any:
        """The exponential unit; x of any shape."""
        return functional.elu(any_real_input(x, "x"), self.alpha)

    def extra_repr(self) -> str:
        """The limit below, negated."""
        return f"alpha={self.alpha}"


class Softplus(Module):
    """log(1 + exp(beta x)) / beta, element by element.

    Parameters
    ----------
    beta : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Softplus()(np.array([-np.inf, 800.0])).tolist()
    [0.0, 800.0]
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = _check.number("beta", beta)

    def forward(self, x: Any) -> Any:
        """A ReLU without a kink; x of any shape."""
        return functional.softplus(any_real_input(x, "x"), self.beta)

    def extra_repr(self) -> str:
        """The sharpness."""
        return f"beta={self.beta}"


class Hardtanh(Module):
    """x, but no less than min_val and no more than max_val, element by element.

    Parameters
    ----------
    min_val, max_val : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> fs.nn.Hardtanh()(np.array([-3.0, 0.5])).tolist()
    [-1.0, 0.5]
    """

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        self.min_val, self.max_val = _check.number("min_val", min_val), _check.number("max_val", max_val)
        if not self.min_val < self.max_val:
            raise ValueError(f"max_val: expected more than min_val {min_val}, got {max_val}")

    def forward(self, x: Any) -> Any:
        """x between the limits; x of any shape."""
        return functional.hardtanh(any_real_input(x, "x"), self.min_val, self.max_val)

    def extra_repr(self) -> str:
        """The limits."""
        return f"min_val={self.min_val}, max_val={self.max_val}"


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
