"""The last layer of a language model and its loss in one: the logits of all rows never exist at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastseq.autograd import Array, ArrayOrTensor, Tensor, result
from fastseq.backends import backend_of
from fastseq.functional import _check
from fastseq.functional.cross_entropy import divided, reduced


def linear_cross_entropy(
    x: ArrayOrTensor,
    weight: ArrayOrTensor,
    bias: ArrayOrTensor | None,
    targets: ArrayOrTensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> ArrayOrTensor:
    """`cross_entropy(linear(x, weight, bias), targets)` with logits for a chunk of rows at a time, in scratch.

    The backward pass computes the logits again, chunk by chunk, so memory does not grow with N V.

    Parameters
    ----------
    x : ndarray or Tensor (N, H), float32 or float64
    weight : ndarray or Tensor (V, H), of x's dtype
    bias : ndarray or Tensor (V,), of x's dtype, or None
    targets : ndarray or Tensor (N,), integer
    ignore_index : int
        Rows with this target count neither in the loss nor in the mean, and get no gradient.
    label_smoothing : float in [0, 1]
        The target's weight is 1 - s + s / V and every other id's s / V (Szegedy et al. 2016).
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
    >>> x, weight, targets = np.ones((2, 3)), np.zeros((4, 3)), np.array([0, 3])
    >>> round(float(fs.functional.linear_cross_entropy(x, weight, None, targets)), 4)  # log(4)
    1.3863
    """
    _check.reduction(reduction)
    losses, cache = _forward(x, weight, bias, targets, ignore_index, label_smoothing)
    loss, divisor = reduced(losses, cache.targets, cache.options["ignore_index"], reduction)
    needs = dict(zip(("need_dx", "need_dweight", "need_dbias"), map(_check.wants, (x, weight, bias)), strict=True))

    def backward(dloss: Array) -> tuple[Array | None, ...]:
        # loss = sum(losses) / divisor; losses = cross_entropy(x W^T + b)
        return (*_backward(cache, divided(dloss, divisor, cache.x), needs), None)

    return result(loss, (x, weight, bias, targets), backward, "linear_cross_entropy")


@dataclass(frozen=True, eq=False)
class LinearCrossEntropyCache:
    """What `linear_cross_entropy_backward` needs; valid as long as the arrays that were given are not changed in place."""

    backend: Any
    lse: Array
    x: Array
    weight: Array
    bias: Array | None
    targets: Array
    options: Mapping[str, Any]


def linear_cross_entropy_forward(
    x: Array, weight: Array, bias: Array | None, targets: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Array, LinearCrossEntropyCache]:
    """The forward half of `linear_cross_entropy` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    x, weight, bias, targets : ndarray
    ignore_index, label_smoothing
        All as in `linear_cross_entropy`.

    Returns
    -------
    losses : ndarray (N,)
    cache : LinearCrossEntropyCache
        For `linear_cross_entropy_backward`.

    Raises
    ------
    IndexError, ValueError, TypeError
        As `linear_cross_entropy`, and if an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> x, weight = np.ones((2, 3)), np.zeros((4, 3))
    >>> losses, cache = fs.functional.linear_cross_entropy_forward(x, weight, None, np.array([0, 3]))
    >>> sorted(fs.functional.linear_cross_entropy_backward(cache, np.ones(2)))
    ['dbias', 'dweight', 'dx']
    """
    for name, value in (("x", x), ("weight", weight), ("bias", bias), ("targets", targets)):
        if isinstance(value, Tensor):
            raise TypeError(f"{name}: expected an array, got a Tensor; linear_cross_entropy records Tensors")
    return _forward(x, weight, bias, targets, ignore_index, label_smoothing)


def linear_cross_entropy_backward(cache: LinearCrossEntropyCache, dlosses: Array) -> dict[str, Array | None]:
    """The gradients from the cache of `linear_cross_entropy_forward`; may be called any number of times.

    Parameters
    ----------
    cache : LinearCrossEntropyCache
    dlosses : ndarray (N,), of x's dtype

    Returns
    -------
    dict of ndarray
        dx (N, H), dweight (V, H), dbias (V,), None for a bias that there was not.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or the shape or dtype does not fit.
    """
    _check.made_by("linear_cross_entropy_forward", cache, LinearCrossEntropyCache)
    _check.shape("dlosses", _check.like("dlosses", dlosses, cache.x), cache.targets.shape)
    needs = {"need_dx": True, "need_dweight": True, "need_dbias": cache.bias is not None}
    return dict(zip(("dx", "dweight", "dbias"), _backward(cache, _check.data(dlosses), needs), strict=True))


def _forward(
    x: Any, weight: Any, bias: Any, targets: Any, ignore_index: int, label_smoothing: float
) -> tuple[Array, LinearCrossEntropyCache]:
    values = _check.floats("x", x)
    _check.shape("x", values, ("N", "H"))
    w = _check.like("weight", weight, values)
    _check.shape("weight", w, ("V", values.shape[1]))
    b = None if bias is None else _check.like("bias", bias, values)
    if b is not None:
        _check.shape("bias", b, w.shape[:1])
    ids = _check.integers("targets", targets, values)
    _check.shape("targets", ids, values.shape[:1])
    backend = backend_of(values, ids)
    if _check.not_looked_at(targets, len(w)):
        ids = ids.copy()  # backward trusts them
        _check.ids_inside("targets", ids, len(w), backend, targets, ignore=ignore_index)
    options = {
        "ignore_index": _check.integer("ignore_index", ignore_index, -(2**63), 2**63),
        "label_smoothing": _check.probability("label_smoothing", label_smoothing),
    }
    losses, lse = backend.linear_cross_entropy_forward(values, w, b, ids, **options)
    return losses, LinearCrossEntropyCache(backend, lse, values, w, b, ids, options)


def _backward(cache: LinearCrossEntropyCache, dlosses: Array, needs: Mapping[str, bool]) -> tuple[Array | None, ...]:
    arrays = cache.lse, cache.x, cache.weight, cache.bias, cache.targets, dlosses
    return cache.backend.linear_cross_entropy_backward(*arrays, **cache.options, **needs)
