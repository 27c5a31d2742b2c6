"""Regression losses: mean squared and mean absolute error."""

from __future__ import annotations

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.functional import _check


def _difference(input: ArrayOrTensor, target: ArrayOrTensor, reduction: str) -> Array:
    prediction = _check.floats("input", input)
    wanted = _check.like("target", target, prediction)
    _check.shape("target", wanted, prediction.shape)
    _check.reduction(reduction)
    return prediction - wanted


def _reduced(losses: Array, reduction: str) -> tuple[Array, int]:
    """The loss, and what its gradient is divided by before it reaches each element."""
    if reduction == "none":
        return losses, 1
    if reduction == "sum":
        return losses.sum(), 1
    return losses.mean(), max(losses.size, 1)


def mse_loss(input: ArrayOrTensor, target: ArrayOrTensor, *, reduction: str = "mean") -> ArrayOrTensor:
    """(input - target)^2, averaged over all elements.

    Parameters
    ----------
    input : ndarray or Tensor, float32 or float64
    target : ndarray or Tensor of input's shape and dtype
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    ndarray or Tensor (), or of input's shape without a reduction

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or the reduction are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> float(fs.functional.mse_loss(np.zeros(2), np.array([1.0, 3.0])))
    5.0
    """
    difference = _difference(input, target, reduction)
    loss, divisor = _reduced(difference * difference, reduction)

    def backward(dloss: Array) -> tuple[Array, Array]:
        d = difference * (dloss * 2 / divisor)
        return d, -d

    return result(loss, (input, target), backward, "mse_loss")


def l1_loss(input: ArrayOrTensor, target: ArrayOrTensor, *, reduction: str = "mean") -> ArrayOrTensor:
    """|input - target|, averaged over all elements; arguments and errors as in `mse_loss`. The gradient at 0 is 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> float(fs.functional.l1_loss(np.zeros(2), np.array([1.0, 3.0])))
    2.0
    """
    difference = _difference(input, target, reduction)
    loss, divisor = _reduced(np.abs(difference), reduction)

    def backward(dloss: Array) -> tuple[Array, Array]:
        d = np.sign(difference) * (dloss / divisor)
        return d, -d

    return result(loss, (input, target), backward, "l1_loss")
