"""Scaled dot-product attention (Vaswani et al. 2017), and its explicit pair.

y_i = sum_j w_ij v_j,  w_i = softmax over the keys j that query i sees of (scale q_i . k_j + mask_ij). No (Tq, Tk) matrix is
stored, forwards or backwards, unless the weights are asked for.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, Tensor, is_recording, record
from fastseq.backends import backend_of, is_gpu, namespace, placed
from fastseq.backends.attention import AttentionOptions
from fastseq.functional import _check
from fastseq.runtime import next_seed


def scaled_dot_product_attention(
    q: ArrayOrTensor,
    k: ArrayOrTensor,
    v: ArrayOrTensor,
    attn_mask: ArrayOrTensor | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    causal_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_lengths: Any = None,
    window: int | None = None,
    return_weights: bool = False,
    seed: int | None = None,
    layer: int = 0,
    call: int = 0,
    rng: int | np.random.Generator | None = None,
) -> Any:
    """softmax(scale q k^T + mask) v for each head, in time proportional to the keys that are seen.

    A query with nothing to attend to gets zeros: output, weights and gradients. What a hidden key holds, NaN too, does not
    matter, and neither does the value of a key that is hidden from every query.

    Parameters
    ----------
    q : ndarray or Tensor (..., heads, Tq, D), float32 or float64
    k : ndarray or Tensor (..., heads, Tk, D)
    v : ndarray or Tensor (..., heads, Tk, Dv)
        Leading axes as q's. With `enable_gqa` k and v may have fewer heads, of which each serves the same number of q's.
    attn_mask : ndarray or Tensor, optional
        Broadcast to (..., heads, Tq, Tk). bool: True = may attend. Of q's dtype: added to the scores, -inf hides; a Tensor
        that requires a gradient gets one.
    dropout_p : float in [0, 1]
        Each weight is zero with this probability and the others are divided by 1 - p.
    is_causal : bool
        Query i sees the keys j <= i + causal_offset.
    causal_offset : int
        The position of the first query: 0 is PyTorch's rule, Tk - Tq serves a cache of earlier keys.
    scale : float, optional
        1 / sqrt(D) if left out.
    enable_gqa : bool
        Whether k and v may have fewer heads (grouped queries, Ainslie et al. 2023).
    key_lengths : integers from 0 to Tk, shaped like the axes before the heads, optional
        How many keys each sequence has.
    window : int, optional
        Query i sees the keys j with |i + causal_offset - j| < window only (Beltagy et al. 2020).
    return_weights : bool
        Also the weights (..., heads, Tq, Tk), after dropout, through which gradients flow too.
    seed, layer, call : int
        The key of dropout's masks, as in `dropout`.
    rng : int or numpy.random.Generator, optional
        What `seed` is drawn from where it is None.

    Returns
    -------
    y : ndarray or Tensor (..., heads, Tq, Dv)
        Laid out in memory as q is.
    weights : ndarray or Tensor (..., heads, Tq, Tk)
        With `return_weights`.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit.

    Notes
    -----
    The method is that of FlashAttention (Dao et al. 2022): blocks of keys, the softmax corrected as larger scores come. Scores are
    computed again in the backward pass.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> q = k = np.eye(2)[None]
    >>> fs.functional.scaled_dot_product_attention(q, k, np.array([[[1.0], [3.0]]]), is_causal=True).round(3)
    array([[[1.  ],
            [2.34]]])
    """
    dropout = _dropout(dropout_p, seed, layer, call, rng)
    options = _options(getattr(_check.data(q), "shape", ()), scale, is_causal, causal_offset, window, dropout)
    problem = _problem(q, k, v, attn_mask, key_lengths, options, enable_gqa)
    return _attend(problem, (q, k, v, attn_mask), return_weights)


def scaled_dot_product_attention_forward(
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    causal_offset: int = 0,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_lengths: Any = None,
    window: int | None = None,
    seed: int = 0,
    layer: int = 0,
    call: int = 0,
) -> tuple[Array, AttentionCache]:
    """The forward half of `scaled_dot_product_attention` on plain arrays.

    Parameters
    ----------
    q, k, v, attn_mask : ndarray
    dropout_p, is_causal, causal_offset, scale, enable_gqa, key_lengths, window, seed, layer, call
        All as there.

    Returns
    -------
    y : ndarray (..., heads, Tq, Dv)
    cache : AttentionCache
        For `scaled_dot_product_attention_backward`; valid as long as y and the inputs are not changed in place.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or options do not fit, or an argument is a Tensor.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> q = np.ones((2, 3, 4))
    >>> y, cache = fs.functional.scaled_dot_product_attention_forward(q, q, q)
    >>> sorted(fs.functional.scaled_dot_product_attention_backward(cache, y))
    ['dk', 'dq', 'dv']
    """
    _check.no_tensors("scaled_dot_product_attention", q=q, k=k, v=v, attn_mask=attn_mask)
    dropout = _dropout(dropout_p, seed, layer, call, None)
    options = _options(getattr(q, "shape", ()), scale, is_causal, causal_offset, window, dropout)
    problem = _problem(q, k, v, attn_mask, key_lengths, options, enable_gqa)
    y, lse, _ = problem.backend.attention_forward(*problem.arrays, **problem.keywords, training=True)
    return y.reshape(problem.shape_y), AttentionCache(problem, y, lse)


class AttentionCache(NamedTuple):
    """What the forward half saves for the backward half: the problem, its output, and log(sum(exp(scores))) of each query."""

    problem: _Problem
    y: Array  # (B, heads, Tq, Dv)
    lse: Array  # (B, heads, Tq)


def scaled_dot_product_attention_backward(cache: AttentionCache, dy: Array) -> dict[str, Array]:
    """The gradients from the cache of `scaled_dot_product_attention_forward`; may be called any number of times.

    Parameters
    ----------
    cache : AttentionCache
    dy : ndarray (..., heads, Tq, Dv)
        dL/dy.

    Returns
    -------
    dict of ndarray
        dq, dk, dv, shaped like q, k and v, and dattn_mask where there was a mask of floats.

    Raises
    ------
    ValueError, TypeError
        If the cache is another operation's, or dy does not fit.
    """
    _check.made_by("scaled_dot_product_attention_forward", cache, AttentionCache)
    problem, y, lse = cache
    dy = _check.gradient("dy", dy, y, problem.shape_y).reshape(y.shape)
    *each, dscores = problem.backend.attention_backward(*problem.arrays, y, lse, dy, **problem.keywords, need_dscores=problem.is_additive)
    grads = {f"d{n}": g.reshape(shape) for n, g, shape in zip("qkv", each, problem.shapes, strict=True)}
    return grads | problem.mask_gradient(dscores)


# ---------------------------------------------------------------- the call


class _Problem(NamedTuple):
    """A checked call: what goes to the backend, and the shapes that the caller sees."""

    backend: Any
    arrays: tuple[Array, Array, Array]  # (B, heads or kv_heads, T, D)
    keywords: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]  # of q, k, v
    mask_shape: tuple[int, ...]

    @property
    def is_additive(self) -> bool:
        """Whether there is a mask of floats, which has a gradient."""
        mask = self.keywords["mask"]
        return mask is not None and mask.dtype != bool

    def mask_gradient(self, dscores: Array | None) -> dict[str, Array]:
        """dattn_mask of a backward half, of a mask of floats."""
        if dscores is None:
            return {}
        return {"dattn_mask": _check.unbroadcast(dscores.reshape(self.shape_weights), self.mask_shape)}

    @property
    def shape_y(self) -> tuple[int, ...]:
        return (*self.shapes[0][:-1], self.shapes[2][-1])

    @property
    def shape_weights(self) -> tuple[int, ...]:
        return (*self.shapes[0][:-1], self.shapes[1][-2])


def _attend(problem: _Problem, inputs: tuple[Any, ...], return_weights: bool, join: Any = None, split: Any = None, gradients: Any = None) -> Any:
    """The call of the backend, and its record. The hooks say how the caller's arrays hold y and gradients: by default as q, k, v do."""
    return_weights = _check.boolean("return_weights", return_weights)
    recording = is_recording(*inputs)
    if return_weights:
        problem.keywords["options"] = problem.keywords["options"]._replace(tiles=True)
    y, lse, weights = problem.backend.attention_forward(*problem.arrays, **problem.keywords, training=recording, weights=return_weights)
    outputs = [y.reshape(problem.shape_y) if join is None else join(y)]
    if return_weights:
        outputs.append(weights.reshape(problem.shape_weights))
    if not recording:
        if any(isinstance(x, Tensor) for x in inputs):
            outputs = [Tensor(a) for a in outputs]
        return tuple(outputs) if return_weights else outputs[0]
    need_mask = _check.wants(inputs[-1])

    def backward(dy: Array | None, dweights: Array | None = None) -> tuple[Array | None, ...]:
        options: dict[str, Any] = {"need_dscores": need_mask}
        if dweights is not None:
            options |= {"weights": weights, "dweights": dweights.reshape(weights.shape)}
        dy = namespace(y).zeros_like(y) if dy is None else dy.reshape(y.shape) if split is None else split(dy)
        if gradients is None:
            *each, dscores = problem.backend.attention_backward(*problem.arrays, y, lse, dy, **problem.keywords, **options)
            if len(problem.shapes[0]) != 4:
                each = [g.reshape(shape) for g, shape in zip(each, problem.shapes, strict=True)]
        else:
            *each, dscores = gradients(y, lse, dy, **options)
        dmask = _check.unbroadcast(dscores.reshape(problem.shape_weights), problem.mask_shape) if need_mask else None
        return *each, dmask

    recorded = record(outputs, inputs, backward, "attention")
    return recorded if return_weights else recorded[0]


# ---------------------------------------------------------------- checks

_NO_DROPOUT = (0.0, 0, 0, 0)


def _dropout(p: float, seed: int | None, layer: int, call: int, rng: Any) -> tuple[float, int, int, int]:
    """Dropout's probability and key, checked."""
    if type(p) is float and p == 0.0:
        return _NO_DROPOUT
    p = _check.probability("dropout_p", p)
    if p == 0.0:
        return _NO_DROPOUT
    seed = next_seed(rng) if seed is None else _check.integer("seed", seed, 0, 2**64)
    return p, seed, _check.integer("layer", layer, 0, 2**32), _check.integer("call", call, 0, 2**32)


def _options(
    shape: tuple[int, ...], scale: float | None, is_causal: bool, offset: int, window: int | None, dropout: tuple[float, int, int, int]
) -> AttentionOptions:
    """The options for queries of this shape, checked."""
    is_causal = _check.boolean("is_causal", is_causal, "; a mask is attn_mask")
    if scale is None:
        scale = shape[-1] ** -0.5 if shape and shape[-1] else 1.0
    elif isinstance(scale, bool) or not isinstance(scale, float | int | np.floating | np.integer):
        raise TypeError(f"scale: expected a number, got {type(scale).__name__}")
    if offset != 0 or type(offset) is not int:
        offset = _check.integer("causal_offset", offset, -(2**60), 2**60)
    window = 0 if window is None else _check.integer("window", window, 1, 2**60)
    try:
        scale = float(scale)
    except OverflowError:
        raise ValueError("scale: expected a number that a float can hold, got a larger one") from None
    return AttentionOptions(scale, is_causal, offset, window, *dropout)


def _problem(q: Any, k: Any, v: Any, attn_mask: Any, key_lengths: Any, options: AttentionOptions, enable_gqa: bool) -> _Problem:
    """Everything checked, and the arrays with four axes."""
    x = _check.floats("q", q)
    keys, values = _check.like("k", k, x, "q"), _check.like("v", v, x, "q")
    shapes = x.shape, keys.shape, values.shape
    if x.ndim < 2 or keys.ndim != x.ndim or keys.shape[-1] != x.shape[-1] or keys.shape[:-1] != values.shape[:-1] or x.shape[:-3] != keys.shape[:-3]:
        _refuse_shapes(*shapes)
    lead, Tk = x.shape[:-3], keys.shape[-2]
    arrays = (x, keys, values) if x.ndim == 4 else tuple([_four(a) for a in (x, keys, values)])
    B, heads, kv_heads = arrays[0].shape[0], arrays[0].shape[1], arrays[1].shape[1]
    enable_gqa = _check.boolean("enable_gqa", enable_gqa)
    if heads != kv_heads:
        _check_groups(heads, kv_heads, enable_gqa)
    mask, mask_shape = (None, ()) if attn_mask is None else _mask(attn_mask, x, (*x.shape[:-1], Tk))
    lengths = None if key_lengths is None else placed(_lengths(key_lengths, lead, Tk), x)
    _check.size("q, v", B, heads, x.shape[-2], values.shape[-1])
    _check.size("k, v", B, heads, Tk, max(x.shape[-1], values.shape[-1]))
    keywords = {"mask": mask, "key_lengths": lengths, "options": options}
    return _Problem(backend_of(x, keys, values), arrays, keywords, shapes, mask_shape)


def _four(x: Array) -> Array:
    """(..., heads, T, D) as (B, heads, T, D)."""
    return x[None, None] if x.ndim == 2 else x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])


def _refuse_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    if len(q) < 2:
        raise ValueError(f"q: expected shape (..., heads, Tq, D), got {q}")
    if len(k) != len(q) or k[-1] != q[-1] or k[:-3] != q[:-3]:
        raise ValueError(f"k: expected shape ({''.join(f'{n}, ' for n in q[:-2])}Tk, {q[-1]}) to fit q of shape {q}, got {k}")
    raise ValueError(f"v: expected shape ({''.join(f'{n}, ' for n in k[:-1])}Dv) to fit k of shape {k}, got {v}")


def _check_groups(heads: int, kv_heads: int, enable_gqa: bool) -> None:
    if not enable_gqa:
        raise ValueError(f"k: expected {heads} heads, as q has, got {kv_heads}; enable_gqa=True lets several heads of q share one")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"k: expected a number of heads that divides q's {heads}, got {kv_heads}")


def _mask(attn_mask: Any, q: Array, full: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """The mask as (B or 1, heads or 1, Tq or 1, Tk or 1), and its own shape."""
    mask = _check.array("attn_mask", attn_mask)
    if type(mask) is not type(q):
        mask = _placed_mask(attn_mask, mask, q)
    if mask.dtype != bool and mask.dtype != q.dtype:
        raise TypeError(f"attn_mask: expected bool (True = may attend) or {q.dtype}, got {mask.dtype}")
    shape = mask.shape
    if len(shape) > len(full) or any(n not in (1, m) for n, m in zip(shape[::-1], full[::-1], strict=False)):
        raise ValueError(f"attn_mask: expected a shape that broadcasts to {full}, got {shape}")
    mask = mask.reshape((1,) * (max(len(full), 4) - len(shape)) + shape)
    if mask.ndim > 4:
        lead = (1,) * (mask.ndim - 3) if math.prod(mask.shape[:-3]) == 1 else full[:-3]
        mask = namespace(mask).broadcast_to(mask, lead + mask.shape[-3:]).reshape(math.prod(lead), *mask.shape[-3:])
    return mask, shape


def _placed_mask(attn_mask: Any, mask: Array, q: Array) -> Array:
    """A mask of the other kind of array than the queries: one of NumPy's that wants no gradient is copied to the GPU."""
    if is_gpu(mask) or _check.wants(attn_mask):
        _check.together("attn_mask", mask, q, "q")
    return placed(mask, q)


def _lengths(key_lengths: Any, lead: tuple[int, ...], Tk: int) -> Array:
    """Lengths as (B,) int64, NumPy's."""
    lengths = _check.counts("key_lengths", key_lengths)
    if lengths.shape != lead:
        raise ValueError(f"key_lengths: expected shape {lead}, got {lengths.shape}")
    if lengths.size and (lengths.min() < 0 or lengths.max() > Tk):
        outside = lengths.reshape(-1)[int(((lengths < 0) | (lengths > Tk)).reshape(-1).argmax())]
        raise ValueError(f"key_lengths: expected lengths from 0 to {Tk}, got {operator.index(outside)}")
    return lengths.astype(np.int64).reshape(-1)  # a copy: C trusts them, backward too
