"""Additive attention (Bahdanau et al. 2015), and its explicit pair.

y_i = sum_j w_ij v_j,  w_i = softmax over the keys j that query i sees of (u . tanh(q_i + k_j) + mask_ij). The (B, Tq, Tk, D)
array of all tanh is never stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, record
from fastseq.backends import backend_of, placed
from fastseq.functional import _check
from fastseq.functional.attention import _lengths, _mask


def additive_attention(
    q: ArrayOrTensor,
    k: ArrayOrTensor,
    v: ArrayOrTensor,
    u: ArrayOrTensor,
    *,
    attn_mask: ArrayOrTensor | None = None,
    key_lengths: Any = None,
    return_weights: bool = False,
) -> Any:
    """softmax(u . tanh(q + k)) v, for queries and keys that are already projected to D units.

    A query with nothing to attend to gets zeros: output, weights and gradients. What a hidden key or its value holds, NaN
    too, does not matter; keys past a row's length cost nothing.

    Parameters
    ----------
    q : ndarray or Tensor (B, Tq, D), float32 or float64
    k : ndarray or Tensor (B, Tk, D)
    v : ndarray or Tensor (B, Tk, Dv)
    u : ndarray or Tensor (D,)
    attn_mask : ndarray or Tensor, optional
        Broadcast to (B, Tq, Tk). bool: True = may attend. Of q's dtype: added to the scores, -inf hides; a Tensor that requires
        a gradient gets one.
    key_lengths : (B,) integers from 0 to Tk, optional
        How many keys each row has.
    return_weights : bool
        Also the weights, through which gradients flow too.

    Returns
    -------
    y : ndarray or Tensor (B, Tq, Dv)
    weights : ndarray or Tensor (B, Tq, Tk)
        With `return_weights`.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> q, k, v = np.zeros((1, 1, 4)), np.zeros((1, 2, 4)), np.array([[[1.0], [3.0]]])
    >>> fs.functional.additive_attention(q, k, v, np.ones(4))
    array([[[2.]]])
    """
    return_weights = _check.boolean("return_weights", return_weights)
    problem = _problem(q, k, v, u, attn_mask, key_lengths)
    inputs = (q, k, v, u, attn_mask)
    recording = is_recording(*inputs)
    y, weights = problem.backend.additive_attention_forward(
        *problem.arrays, mask=problem.mask, key_lengths=problem.key_lengths, need_weights=recording or return_weights
    )
    outputs = [y, weights] if return_weights else [y]
    if not recording:
        if any(isinstance(x, Tensor) for x in inputs):
            outputs = [Tensor(a) for a in outputs]
        return tuple(outputs) if return_weights else outputs[0]

    def backward(dy: Array | None, dweights: Array | None = None) -> tuple[Array | None, ...]:
        *each, dscores = problem.backend.additive_attention_backward(
            *problem.arrays, weights, dy, key_lengths=problem.key_lengths, dweights=dweights
        )
        return *each, _check.unbroadcast(dscores, problem.mask_shape) if _check.wants(attn_mask) else None

    recorded = record(outputs, inputs, backward, "additive_attention")
    return recorded if return_weights else recorded[0]


class AdditiveAttentionCache(NamedTuple):
    """What the forward half saves for the backward half: the problem and the weights."""

    problem: _Problem
    weights: Array  # (B, Tq, Tk)


def additive_attention_forward(
    q: Array, k: Array, v: Array, u: Array, *, attn_mask: Array | None = None, key_lengths: Any = None
) -> tuple[Array, Array, AdditiveAttentionCache]:
    """The forward half of `additive_attention` on plain arrays, for those who call the backward half themselves.

    Parameters
    ----------
    q, k, v, u, attn_mask : ndarray
    key_lengths
        All as there.

    Returns
    -------
    y : ndarray (B, Tq, Dv)
    weights : ndarray (B, Tq, Tk)
    cache : AdditiveAttentionCache
        For `additive_attention_backward`; valid as long as the weights and the inputs are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes or dtypes do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> q = np.ones((1, 3, 4))
    >>> y, weights, cache = fs.functional.additive_attention_forward(q, q, q, np.ones(4))
    >>> sorted(fs.functional.additive_attention_backward(cache, y))
    ['dk', 'dq', 'du', 'dv']
    """
    _check.no_tensors("additive_attention", q=q, k=k, v=v, u=u, attn_mask=attn_mask)
    problem = _problem(q, k, v, u, attn_mask, key_lengths)
    y, weights = problem.backend.additive_attention_forward(
        *problem.arrays, mask=problem.mask, key_lengths=problem.key_lengths, need_weights=True
    )
    return y, weights, AdditiveAttentionCache(problem, weights)


def additive_attention_backward(
    cache: AdditiveAttentionCache, dy: Array | None, *, dweights: Array | None = None
) -> dict[str, Array]:
    """The gradients from the cache of `additive_attention_forward`; may be called any number of times.

    Parameters
    ----------
    cache : AdditiveAttentionCache
    dy : ndarray (B, Tq, Dv) or None
        dL/dy; None: zeros.
    dweights : ndarray (B, Tq, Tk), optional
        dL/dweights, beside what reaches them through y.

    Returns
    -------
    dict of ndarray
        dq, dk, dv, du, and dattn_mask where there was a mask of floats.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or a gradient does not fit.
    """
    _check.made_by("additive_attention_forward", cache, AdditiveAttentionCache)
    problem, weights = cache
    for name, x, sizes in (("dy", dy, (*weights.shape[:2], problem.arrays[2].shape[2])), ("dweights", dweights, weights.shape)):
        if x is not None:
            _check.shape(name, _check.like(name, x, weights), sizes)
    *each, dscores = problem.backend.additive_attention_backward(
        *problem.arrays, weights, dy, key_lengths=problem.key_lengths, dweights=dweights
    )
    grads = dict(zip(("dq", "dk", "dv", "du"), each, strict=True))
    if problem.mask is not None and problem.mask.dtype != bool:
        grads["dattn_mask"] = _check.unbroadcast(dscores, problem.mask_shape)
    return grads


#: Sizes whose product is at most this need no closer look.
_SMALL = 2**40


class _Problem(NamedTuple):
    """A checked call."""

    backend: Any
    arrays: tuple[Array, Array, Array, Array]  # q, k, v, u
    mask: Array | None  # (B or 1, Tq or 1, Tk or 1)
    mask_shape: tuple[int, ...]
    key_lengths: Array | None


def _problem(q: Any, k: Any, v: Any, u: Any, attn_mask: Any, key_lengths: Any) -> _Problem:
    x = _check.floats("q", q)
    keys, values, weight = _check.like("k", k, x, "q"), _check.like("v", v, x, "q"), _check.like("u", u, x, "q")
    _check.shape("q", x, ("B", "Tq", "D"))
    B, Tq, D = x.shape
    _check.shape("k", keys, (B, "Tk", D))
    Tk = keys.shape[1]
    _check.shape("v", values, (B, Tk, "Dv"))
    _check.shape("u", weight, (D,))
    mask, mask_shape = (None, ()) if attn_mask is None else _mask(attn_mask, x, (B, Tq, Tk))
    lengths = None if key_lengths is None else placed(_lengths(key_lengths, (B,), Tk), x)
    Dv = values.shape[2]
    if (B + 1) * (Tq + 1) * (Tk + 1) * (D + Dv + 1) > _SMALL:  # else no product of three of them is too large
        _check.size("q, k", B, Tq, Tk)
        _check.size("q, v", B, Tq, Dv)
        _check.size("k, v", B, Tk, max(D, Dv))
    return _Problem(backend_of(x, keys, values, weight), (x, keys, values, weight), None if mask is None else mask[0], mask_shape, lengths)
