"""Softmax cross-entropy over token ids."""

from __future__ import annotations

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, result
from fastseq.backends import backend_of, namespace
from fastseq.functional import _check


def cross_entropy(
    logits: ArrayOrTensor,
    targets: ArrayOrTensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> ArrayOrTensor:
    """-log softmax(logits)[target] per row, softmax and loss in one pass over the logits.

    With smoothing s the target's weight is 1 - s + s / V and every other id's s / V (Szegedy et al. 2016).

    Parameters
    ----------
    logits : ndarray or Tensor (N, V), float32 or float64
    targets : ndarray or Tensor (N,), integer
    ignore_index : int
        Rows with this target count neither in the loss nor in the mean, and get no gradient.
    label_smoothing : float in [0, 1]
    reduction : {"mean", "sum", "none"}
        "mean" divides by the number of rows that count; over none of them it is NaN.

    Returns
    -------
    ndarray or Tensor (), or (N,) without a reduction

    Raises
    ------
    IndexError
        If a target is neither in [0, V) nor `ignore_index`.
    ValueError, TypeError
        If a shape, a dtype or an option is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> loss = fs.functional.cross_entropy(np.zeros((2, 4)), np.array([0, 3]))
    >>> round(float(loss), 4)  # log(4)
    1.3863
    """
    values = _check.floats("logits", logits)
    _check.shape("logits", values, ("N", "V"))
    ids = _check.integers("targets", targets, values, "logits")
    _check.shape("targets", ids, (len(values),))
    _check.reduction(reduction)
    label_smoothing = _check.probability("label_smoothing", label_smoothing)
    backend = backend_of(values, ids)
    if _check.not_looked_at(targets, values.shape[1]):
        ids = ids.copy()  # backward trusts them
        _check.ids_inside("targets", ids, values.shape[1], backend, targets, ignore=ignore_index)
    ignore_index = _check.integer("ignore_index", ignore_index, -(2**63), 2**63)
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    losses, lse = backend.cross_entropy_forward(values, ids, **options)
    loss, divisor = reduced(losses, ids, ignore_index, reduction)

    def backward(dloss: Array) -> tuple[Array, None]:
        # loss = sum(losses) / divisor; losses = lse(logits) - logits[target]
        return backend.cross_entropy_backward(lse, values, ids, divided(dloss, divisor, values), **options), None

    return result(loss, (logits, targets), backward, "cross_entropy")


def reduced(losses: Array, ids: Array, ignore_index: int, reduction: str) -> tuple[Array, Array | None]:
    """The loss, and what the sum of the losses was divided by: None where by nothing."""
    if reduction == "none":
        return losses, None
    if reduction == "mean":
        return backend_of(losses).mean_loss(losses, ids, ignore_index=ignore_index)
    # In double: a sum over a long batch keeps float32's digits.
    return namespace(losses).asarray(losses.sum(dtype=np.float64), dtype=losses.dtype), None


def divided(dloss: Array, divisor: Array | None, like: Array) -> Array:
    """The gradient of each row's loss, or one number for all: an array of `like`'s dtype."""
    return namespace(like).asarray(dloss if divisor is None else dloss / divisor, dtype=like.dtype)
