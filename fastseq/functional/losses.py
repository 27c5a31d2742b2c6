"""Losses of each element: squared, absolute and Huber's for regression, binary cross entropy, negative sampling."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import backend_of, is_gpu, namespace
from fastseq.functional import _check


def _pair(input: ArrayOrTensor, target: ArrayOrTensor, reduction: str) -> tuple[Array, Array]:
    """The two arrays, checked."""
    prediction = _check.floats("input", input)
    wanted = _check.like("target", target, prediction, "input")
    _check.shape("target", wanted, prediction.shape)
    _check.reduction(reduction)
    return prediction, wanted


def _difference(input: ArrayOrTensor, target: ArrayOrTensor, reduction: str) -> Array:
    prediction, wanted = _pair(input, target, reduction)
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
    loss, divisor = _reduced(abs(difference), reduction)

    def backward(dloss: Array) -> tuple[Array, Array]:
        d = namespace(difference).sign(difference) * (dloss / divisor)
        return d, -d

    return result(loss, (input, target), backward, "l1_loss")


def rmse_loss(input: ArrayOrTensor, target: ArrayOrTensor) -> ArrayOrTensor:
    """The root of the mean of (input - target)^2; arguments and errors as in `mse_loss`. Its gradient where all agree is 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> float(fs.functional.rmse_loss(np.zeros(2), np.array([1.0, 7.0])))
    5.0
    """
    difference = _difference(input, target, "mean")
    own = namespace(difference)
    loss = own.sqrt((difference * difference).mean())

    def backward(dloss: Array) -> tuple[Array, Array]:
        # loss^2 = mean(difference^2); 1 in place of a loss of 0, where every difference is 0 and the gradient with it
        d = difference * (dloss / (own.where(loss == 0, 1, loss) * difference.size))
        return d, -d

    return result(loss, (input, target), backward, "rmse_loss")


def huber_loss(input: ArrayOrTensor, target: ArrayOrTensor, *, delta: float = 1.0, reduction: str = "mean") -> ArrayOrTensor:
    """With d = input - target: d^2 / 2 where |d| <= delta, delta (|d| - delta / 2) beyond (Huber 1964), averaged over all elements.

    Parameters
    ----------
    input : ndarray or Tensor, float32 or float64
    target : ndarray or Tensor of input's shape and dtype
    delta : float
        More than 0.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    ndarray or Tensor (), or of input's shape without a reduction

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes, delta or the reduction are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.huber_loss(np.zeros(2), np.array([1.0, 3.0]), reduction="none")
    array([0.5, 2.5])
    """
    difference = _difference(input, target, reduction)
    if not delta > 0:
        raise ValueError(f"delta: expected more than 0, got {delta}")
    inner = difference.clip(-delta, delta)  # the loss's derivative
    loss, divisor = _reduced(inner * (difference - inner / 2), reduction)

    def backward(dloss: Array) -> tuple[Array, Array]:
        d = inner * (dloss / divisor)
        return d, -d

    return result(loss, (input, target), backward, "huber_loss")


def binary_cross_entropy_with_logits(
    input: ArrayOrTensor, target: ArrayOrTensor, *, pos_weight: Array | float = 1.0, reduction: str = "mean"
) -> ArrayOrTensor:
    """-pos_weight t log s(x) - (1 - t) log(1 - s(x)), averaged over all elements, s the logistic function; no score is too large for it.

    Parameters
    ----------
    input : ndarray or Tensor, float32 or float64
        Scores x before the logistic function.
    target : ndarray or Tensor of input's shape and dtype
        Probabilities t, 0 or 1 for labels.
    pos_weight : float, or ndarray that broadcasts to input's shape
        Counts the positive examples so often, for labels that are mostly 0.
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
    >>> x, t = np.array([0.0, 1000.0]), np.array([1.0, 0.0])
    >>> fs.functional.binary_cross_entropy_with_logits(x, t, reduction="none").round(4)
    array([6.931e-01, 1.000e+03])
    """
    x, t = _pair(input, target, reduction)
    weight = _weight_of_positives(pos_weight, x)
    missed, raised = weight * _softplus(-x), _softplus(x)  # of a positive and of a negative example
    loss, divisor = _reduced(t * missed + (1 - t) * raised, reduction)

    def backward(dloss: Array) -> tuple[Array, Array]:
        return ((1 - t) * _logistic(x) - weight * t * _logistic(-x)) * (dloss / divisor), (missed - raised) * (dloss / divisor)

    return result(loss, (input, target), backward, "binary_cross_entropy_with_logits")


def negative_sampling_loss(
    positive: ArrayOrTensor, negative: ArrayOrTensor, *, count: float | None = None, reduction: str = "mean"
) -> ArrayOrTensor:
    """-log s(positive) - sum over K of log s(-negative), s the logistic function: a true pair against K drawn ones.

    The objective of skip-gram with negative sampling (Mikolov et al. 2013, equation 4).

    Parameters
    ----------
    positive : ndarray or Tensor (...), float32 or float64
        Scores of the pairs that were seen.
    negative : ndarray or Tensor (..., K), of positive's dtype
        Scores of each one's drawn pairs, K at least 1.
    count : float, optional
        As how many the K drawn pairs count, more than 0: K, where it is left out. With fewer, many pairs can share many draws.
    reduction : {"mean", "sum", "none"}
        Over the pairs that were seen.

    Returns
    -------
    ndarray or Tensor (), or of positive's shape without a reduction

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes, the count or the reduction are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> float(fs.functional.negative_sampling_loss(np.zeros(4), np.zeros((4, 5))).round(4))  # 6 log 2
    4.1589
    """
    seen = _check.floats("positive", positive)
    drawn = _check.like("negative", negative, seen, "positive")
    _check.shape("negative", drawn, (*seen.shape, "K"))
    _check.reduction(reduction)
    if not drawn.shape[-1]:
        raise ValueError(f"negative: expected at least one drawn pair, got shape {drawn.shape}")
    if count is not None and not count > 0:
        raise ValueError(f"count: expected more than 0, got {count}")
    weight = 1.0 if count is None else count / drawn.shape[-1]
    loss, divisor = _reduced(_softplus(-seen) + weight * _softplus(drawn).sum(axis=-1), reduction)

    def backward(dloss: Array) -> tuple[Array, Array]:
        each = namespace(seen).asarray(dloss / divisor)
        return -_logistic(-seen) * each, _logistic(drawn) * (weight * each)[..., None]

    return result(loss, (positive, negative), backward, "negative_sampling_loss")


def _softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    return _of_each(x, "softplus")


def _logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)), the derivative of softplus."""
    return _of_each(x, "sigmoid")


def _of_each(x: Array, function: str) -> Array:
    x = np.asarray(x) if isinstance(x, np.generic) else x  # -x of an array without axes is a number
    return backend_of(x).pointwise_forward(x, function=function)


def _weight_of_positives(pos_weight: Any, x: Array) -> Array:
    """`pos_weight` in the dtype of the scores x, checked to broadcast to their shape."""
    weight = namespace(x).asarray(pos_weight if is_gpu(pos_weight) and is_gpu(x) else _check.plain("pos_weight", pos_weight), dtype=x.dtype)
    if weight.ndim > x.ndim or any(n not in (1, m) for n, m in zip(weight.shape[::-1], x.shape[::-1], strict=False)):
        raise ValueError(f"pos_weight: expected a shape that broadcasts to {x.shape}, got {weight.shape}")
    return weight
