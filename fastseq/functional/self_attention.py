"""Self-attention on one joint projection, and its explicit pair."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor
from fastseq.backends import namespace
from fastseq.functional import _check
from fastseq.functional.attention import _attend, _dropout, _options, _Problem, _problem


def self_attention(
    qkv: ArrayOrTensor,
    num_heads: int,
    attn_mask: ArrayOrTensor | None = None,
    *,
    batch_first: bool = True,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    key_lengths: Any = None,
    window: int | None = None,
    return_weights: bool = False,
    seed: int | None = None,
    layer: int = 0,
    call: int = 0,
    rng: int | np.random.Generator | None = None,
) -> Any:
    """Attention of a sequence to itself, from its queries, keys and values side by side in one array, in which their gradients return.

    Parameters
    ----------
    qkv : ndarray or Tensor (B, T, 3 E), or (T, B, 3 E) without `batch_first`; float32 or float64
        What one projection gives: q, k and v of E numbers each, the heads one after the other in each of them.
    num_heads : int
        A divisor of E.
    attn_mask, dropout_p, is_causal, scale, key_lengths, window, return_weights, seed, layer, call, rng
        As in `scaled_dot_product_attention`; masks broadcast to (B, heads, T, T), key_lengths is (B,).
    batch_first : bool
        Which axis is the batch.

    Returns
    -------
    y : ndarray or Tensor (B, T, E) or (T, B, E)
        The heads' outputs side by side.
    weights : ndarray or Tensor (B, heads, T, T)
        With `return_weights`.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.self_attention(np.ones((2, 5, 12)), 2).shape
    (2, 5, 4)
    """
    dropout = _dropout(dropout_p, seed, layer, call, rng)
    joint = _joint(qkv, num_heads, attn_mask, batch_first, is_causal, scale, key_lengths, window, dropout)
    return _attend(joint.problem, (qkv, attn_mask), return_weights, joint.join, joint.split, joint.gradients)


def self_attention_forward(
    qkv: Array,
    num_heads: int,
    attn_mask: Array | None = None,
    *,
    batch_first: bool = True,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    key_lengths: Any = None,
    window: int | None = None,
    seed: int = 0,
    layer: int = 0,
    call: int = 0,
) -> tuple[Array, SelfAttentionCache]:
    """The forward half of `self_attention` on plain arrays.

    Parameters
    ----------
    qkv, attn_mask : ndarray
    num_heads, batch_first, dropout_p, is_causal, scale, key_lengths, window, seed, layer, call
        All as there.

    Returns
    -------
    y : ndarray (B, T, E) or (T, B, E)
    cache : SelfAttentionCache
        For `self_attention_backward`; valid as long as y and the inputs are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> y, cache = fs.functional.self_attention_forward(np.ones((2, 5, 12)), 2)
    >>> fs.functional.self_attention_backward(cache, y)["dqkv"].shape
    (2, 5, 12)
    """
    _check.no_tensors("self_attention", qkv=qkv, attn_mask=attn_mask)
    dropout = _dropout(dropout_p, seed, layer, call, None)
    joint = _joint(qkv, num_heads, attn_mask, batch_first, is_causal, scale, key_lengths, window, dropout)
    y, lse, _ = joint.problem.backend.attention_forward(*joint.problem.arrays, **joint.problem.keywords, training=True)
    return joint.join(y), SelfAttentionCache(joint, y, lse)


class SelfAttentionCache(NamedTuple):
    """What the forward half saves for the backward half: the problem, its output, and log(sum(exp(scores))) of each query."""

    joint: _Joint
    y: Array  # (B, heads, T, D)
    lse: Array  # (B, heads, T)


def self_attention_backward(cache: SelfAttentionCache, dy: Array) -> dict[str, Array]:
    """The gradients from the cache of `self_attention_forward`; may be called any number of times.

    Parameters
    ----------
    cache : SelfAttentionCache
    dy : ndarray (B, T, E) or (T, B, E)
        dL/dy.

    Returns
    -------
    dict of ndarray
        dqkv, shaped like qkv, and dattn_mask where there was a mask of floats.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or dy does not fit.
    """
    _check.made_by("self_attention_forward", cache, SelfAttentionCache)
    joint, y, lse = cache
    dy = _check.gradient("dy", dy, y, (*joint.shape[:2], joint.shape[2] // 3))
    dqkv, dscores = joint.gradients(y, lse, joint.split(dy), need_dscores=joint.problem.is_additive)
    return {"dqkv": dqkv} | joint.problem.mask_gradient(dscores)


class _Joint(NamedTuple):
    """A checked call, and how the joint array holds what the backend takes and returns."""

    problem: _Problem
    shape: tuple[int, ...]  # of qkv
    num_heads: int
    batch_first: bool

    def join(self, y: Array) -> Array:
        """The heads' outputs side by side."""
        return _sequence(y, self.batch_first).reshape(*self.shape[:2], self.shape[2] // 3)

    def split(self, dy: Array) -> Array:
        """The other way: (B, heads, T, D)."""
        return _sequence(dy.reshape(*self.shape[:2], self.num_heads, self.shape[2] // (3 * self.num_heads)), self.batch_first, back=True)

    def gradients(self, y: Array, lse: Array, dy: Array, **options: Any) -> tuple[Array, Array | None]:
        """dqkv, and dL/d(scores + mask) if asked for."""
        dqkv = namespace(y).empty(self.shape, y.dtype)
        out = _split(dqkv, self.num_heads, self.batch_first)
        *_, dscores = self.problem.backend.attention_backward(*self.problem.arrays, y, lse, dy, **self.problem.keywords, out=out, **options)
        return dqkv, dscores


def _joint(
    qkv: Any,
    num_heads: Any,
    attn_mask: Any,
    batch_first: Any,
    is_causal: Any,
    scale: Any,
    key_lengths: Any,
    window: Any,
    dropout: tuple[float, int, int, int],
) -> _Joint:
    """Everything checked."""
    batch_first = _check.boolean("batch_first", batch_first)
    values = _check.floats("qkv", qkv)
    _check.shape("qkv", values, ("B", "T", "3 E") if batch_first else ("T", "B", "3 E"))
    num_heads = _check.integer("num_heads", num_heads, 1, 2**31)
    if values.shape[2] % (3 * num_heads):
        raise ValueError(f"qkv: expected 3 E columns, E a multiple of num_heads = {num_heads}, got {values.shape[2]}")
    heads = _split(values, num_heads, batch_first)
    options = _options(heads[0].shape, scale, is_causal, 0, window, dropout)
    return _Joint(_problem(*heads, attn_mask, key_lengths, options, False), values.shape, num_heads, batch_first)


def _split(qkv: Array, heads: int, batch_first: bool) -> tuple[Array, Array, Array]:
    """Views (B, heads, T, D) of the three parts of an array of `self_attention`."""
    parts = qkv.reshape(*qkv.shape[:2], 3, heads, qkv.shape[2] // (3 * heads))
    q, k, v = (_sequence(parts[:, :, n], batch_first, back=True) for n in range(3))
    return q, k, v


def _sequence(x: Array, batch_first: bool, back: bool = False) -> Array:
    """(B, heads, T, D) as (B, T, heads, D), or (T, B, heads, D); `back`: the other way."""
    return x.swapaxes(1, 2) if batch_first else x.transpose(1, 2, 0, 3) if back else x.transpose(2, 0, 1, 3)
