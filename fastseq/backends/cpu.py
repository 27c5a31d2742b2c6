"""The CPU backend: forwards to the C kernels. What each function computes is written in `reference.py`, with the same signatures.
The optimisers' updates are in `cpu_optim.py`.

Arrays are validated and of one dtype; inputs are never changed; results are new arrays.
"""

from __future__ import annotations

import copyreg
import math
from typing import Any

import numpy as np

from fastseq import _core
from fastseq.backends.attention import AttentionOptions
from fastseq.backends.attention_decoder import DecoderWeights
from fastseq.backends.cpu_optim import adagrad, adam, adam_all, rmsprop, sgd, sum_squares  # noqa: F401
from fastseq.backends.cpu_optim import scale as scale
from fastseq.backends.recurrent import Noise, Weights
from fastseq.backends.window import Window

Array = np.ndarray

_FUNCTIONS = _core.FUNCTIONS
_NO_NOISE = Noise()


# ---------------------------------------------------------------- products


def matmul(a: Array, b: Any, *, bias: Array | None = None, function: str = "identity") -> Array:
    """f(a b + bias): a (..., M, K), b (..., K, N) or a `pack`, bias (N,)."""
    y = _core.matmul(a, b, bias, function)
    return _matmul_leading(a, b, bias, function) if y is None else y


#: a b for two matrices of one float type that fit, b perhaps a `pack`; None for all else, `matmul` looks closer. A small product
#: costs less than the questions that Python would ask first.
matmul_plain = _core.matmul_plain


def _matmul_leading(a: Array, b: Any, bias: Array | None, function: str) -> Array:
    """One of the operands has leading axes."""
    if len(b.shape) > 2:
        return _matmul_batches(a, b, bias, function)
    *lead, K = a.shape  # the rows of all leading axes are rows of one product
    return _core.matmul(a.reshape(math.prod(lead), K), b, bias, function).reshape(*lead, b.shape[1])


def _matmul_batches(a: Array, b: Array, bias: Array | None, function: str) -> Array:
    """b has leading axes: one call if those of both operands are one stride apart throughout, else a call for each of the outer ones."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = np.broadcast_to(a, lead + a.shape[-2:]), np.broadcast_to(b, lead + b.shape[-2:])
    if math.prod(lead) == 0 or len(lead) == 1 or (_one_stride(a) and _one_stride(b)):
        flat = _core.matmul_batch(a.reshape(math.prod(lead), *a.shape[-2:]), b.reshape(math.prod(lead), *b.shape[-2:]), bias, function)
        return flat.reshape(*lead, *flat.shape[1:])
    y = np.empty((*lead, a.shape[-2], b.shape[-1]), a.dtype)
    for outer in np.ndindex(lead[:-1]):
        y[outer] = _core.matmul_batch(a[outer], b[outer], bias, function)
    return y


def _one_stride(x: Array) -> bool:
    """Whether the matrices of x lie one stride apart, so that a reshape of the leading axes copies nothing."""
    axes = range(x.ndim - 3)
    return all(x.strides[i] == x.strides[i + 1] * x.shape[i + 1] for i in axes)


def pack(b: Array) -> Any:
    """A snapshot of b (K, N) for `matmul`, in the layout of the instruction set in use."""
    return _core.matmul_pack(b)


def bias_backward(dy: Array) -> Array:
    """The gradient of a bias (N,) that was added to every row of (M, N)."""
    return _core.bias_backward(dy)


# ---------------------------------------------------------------- pointwise


def pointwise_forward(x: Array, *, function: str, parameter: float = 0.0) -> Array:
    """f of each element; function: exp, log, tanh, sigmoid, relu, erf, gelu, gelu_tanh, silu, softplus, elu, leaky_relu (with parameter)."""
    return _core.pointwise_forward(x, _FUNCTIONS[function], parameter)


def pointwise_backward(saved: Array, dy: Array, *, function: str, parameter: float = 0.0) -> Array:
    """dy f'(x), from `saved` = y, but for log, erf and those after it `saved` = x."""
    return _core.pointwise_backward(saved, dy, _FUNCTIONS[function], parameter)


def sum_backward(dy: Array, shape: tuple[int, ...], axes: tuple[int, ...], *, count: int) -> Array:
    """The gradient of x, of this shape, in sum(x, axes) / count: dy / count for each element, as a view of so many numbers."""
    kept = tuple(1 if k in axes else n for k, n in enumerate(shape))
    return np.broadcast_to(dy.reshape(kept) / count, shape)


# ---------------------------------------------------------------- softmax and cross entropy


def softmax_forward(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis; zeros where all of it is -inf."""
    return _core.softmax_forward(x)


def softmax_backward(y: Array, dy: Array) -> Array:
    """dx of y = softmax(x)."""
    return _core.softmax_backward(y, dy)


def log_softmax_forward(x: Array) -> Array:
    """x - log(sum(exp(x))) over the last axis; -inf, as softmax's zeros have it, where all of it is -inf."""
    return _core.log_softmax_forward(x)


def log_softmax_backward(y: Array, dy: Array) -> Array:
    """dx of y = log_softmax(x)."""
    return _core.log_softmax_backward(y, dy)


def cross_entropy_forward(logits: Array, targets: Array, *, ignore_index: int, label_smoothing: float) -> tuple[Array, Array]:
    """losses (N,) and log(sum(exp(logits))) (N,)."""
    return _core.cross_entropy_forward(logits, targets, ignore_index, label_smoothing)


def cross_entropy_backward(
    lse: Array, logits: Array, targets: Array, dlosses: Array, *, ignore_index: int, label_smoothing: float
) -> Array:
    """dlogits; dlosses: (N,), or one number for every row."""
    return _core.cross_entropy_backward(lse, logits, targets, dlosses, ignore_index, label_smoothing)


def mean_loss(losses: Array, targets: Array, *, ignore_index: int) -> tuple[Array, Array]:
    """The mean () of the losses whose target counts, NaN over none of them; and how many count, 1 at least, in the losses' dtype."""
    # In double: a mean over a long batch keeps float32's digits.
    total, count = losses.sum(dtype=np.float64), int(np.count_nonzero(targets != ignore_index))
    mean = total / count if count else np.nan
    return np.asarray(mean, losses.dtype), np.asarray(max(count, 1), losses.dtype)


def linear_cross_entropy_forward(
    x: Array, weight: Array, bias: Array | None, targets: Array, *, ignore_index: int, label_smoothing: float
) -> tuple[Array, Array]:
    """losses (N,) and log(sum(exp(logits))) (N,) of logits = x W^T + b, of which only a part exists at a time."""
    return _core.linear_cross_entropy_forward(x, weight, bias, targets, ignore_index, label_smoothing)


def linear_cross_entropy_backward(
    lse: Array,
    x: Array,
    weight: Array,
    bias: Array | None,
    targets: Array,
    dlosses: Array,
    *,
    ignore_index: int,
    label_smoothing: float,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dweight and dbias, None where they are not asked for; dlosses: (N,), or one number for every row."""
    needs = need_dx, need_dweight, need_dbias
    return _core.linear_cross_entropy_backward(lse, x, weight, bias, targets, dlosses, ignore_index, label_smoothing, *needs)


# ---------------------------------------------------------------- layer norm


def layer_norm_forward(
    x: Array, residual: Array | None, weight: Array | None, bias: Array | None, *, eps: float, centred: bool = True
) -> tuple[Array, Array, Array | None, Array]:
    """y, s = x + residual (x itself without one), and each row's mean (M,) and 1 / std (M,) for backward; not `centred`: RMS norm."""
    return _core.layer_norm_forward(x, residual, weight, bias, eps, centred)


def layer_norm_backward(
    dy: Array,
    ds: Array | None,
    s: Array,
    mean: Array | None,
    rstd: Array,
    weight: Array | None,
    *,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """The gradient of s (of x and of the residual alike), dweight and dbias, None where they are not asked for; ds: s's own, or None."""
    return _core.layer_norm_backward(dy, ds, s, mean, rstd, weight, need_dx, need_dweight, need_dbias)


# ---------------------------------------------------------------- additive attention


def additive_attention_forward(
    q: Array, k: Array, v: Array, u: Array, *, mask: Array | None = None, key_lengths: Array | None = None, need_weights: bool = False
) -> tuple[Array, Array | None]:
    """y (B, Tq, Dv) and, where asked for, the weights (B, Tq, Tk)."""
    return _core.additive_attention_forward(q, k, v, u, mask, key_lengths, need_weights)


def additive_attention_backward(
    q: Array, k: Array, v: Array, u: Array, weights: Array, dy: Array | None, *, key_lengths: Array | None = None, dweights: Array | None = None
) -> tuple[Array, Array, Array, Array, Array]:
    """dq, dk, dv, du and dL/d(scores + mask)."""
    return _core.additive_attention_backward(q, k, v, u, weights, dy, dweights, key_lengths)


# ---------------------------------------------------------------- convolution, pooling, batch norm


def conv_forward(x: Array, weight: Array, bias: Array | None, *, groups: int, window: Window) -> Array:
    """y (N, O, *out) of x (N, C, H, W) and weight (O, C / groups, *kernel): each position sees `window` of x, zeros outside."""
    return _core.conv_forward(x, weight, bias, groups, window)


def conv_backward(
    dy: Array, x: Array, weight: Array, *, groups: int, window: Window, need_dx: bool = True, need_dweight: bool = True, need_dbias: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dweight and dbias, None where they are not asked for."""
    return _core.conv_backward(dy, x, weight, groups, window, need_dx, need_dweight, need_dbias)


def max_pool_forward(x: Array, *, window: Window) -> tuple[Array, Array]:
    """The greatest element of each window of x (N, C, H, W), and where it is in its plane, row by row."""
    return _core.max_pool_forward(x, window)


def max_pool_backward(dy: Array, places: Array, shape: tuple[int, ...], *, window: Window) -> Array:
    """dx of this shape: dy where the greatest elements were."""
    return _core.max_pool_backward(dy, places, shape, window)


def batch_norm_forward(
    x: Array, weight: Array | None, bias: Array | None, *, mean: Array | None = None, variance: Array | None = None, eps: float
) -> tuple[Array, Array, Array]:
    """y, and the mean and variance (C,) of each channel of x (N, C) or (N, C, L): the batch's, or those given."""
    return _core.batch_norm_forward(x, weight, bias, mean, variance, eps)


def batch_norm_backward(
    dy: Array,
    x: Array,
    weight: Array | None,
    mean: Array,
    variance: Array,
    *,
    eps: float,
    given: bool,
    need_dx: bool = True,
    need_dweight: bool = True,
    need_dbias: bool = True,
) -> tuple[Array | None, Array | None, Array | None]:
    """dx, dweight and dbias, None where they are not asked for; `given`: the moments are constants, not the batch's."""
    return _core.batch_norm_backward(dy, x, weight, mean, variance, eps, given, need_dx, need_dweight, need_dbias)


# ---------------------------------------------------------------- embedding


def embedding_forward(ids: Array, weight: Array) -> Array:
    """weight[ids]."""
    return _core.embedding_forward(ids, weight).reshape(*ids.shape, weight.shape[1])


def embedding_backward(dy: Array, ids: Array, num_embeddings: int, *, padding_idx: int) -> Array:
    """dweight (V, D): the sum of dy over the places of each id; padding_idx (-1: none) gets zeros."""
    return _core.embedding_backward(dy, ids, num_embeddings, padding_idx)


def ids_find_outside(ids: Array, limit: int) -> int:
    """The flat position of the first id outside [0, limit), or -1."""
    return _core.ids_find_outside(ids, limit)


# ---------------------------------------------------------------- dropout


def dropout(x: Array, *, p: float, seed: int, layer: int, call: int) -> Array:
    """x m / (1 - p), m drawn by Philox; the same call on dy is backward."""
    return _core.dropout(x, p, seed, layer, call)


# ---------------------------------------------------------------- attention


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    options: AttentionOptions,
    training: bool = False,
    weights: bool = False,
) -> tuple[Array, Array | None, Array | None]:
    """y (B, heads, Tq, Dv); in training log(sum(exp(scores))) (B, heads, Tq); where asked for, the weights (B, heads, Tq, Tk)."""
    return _core.attention_forward(q, k, v, mask, key_lengths, options, training, weights)


def attention_backward(
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    lse: Array,
    dy: Array,
    *,
    mask: Array | None = None,
    key_lengths: Array | None = None,
    options: AttentionOptions,
    weights: Array | None = None,
    dweights: Array | None = None,
    need_dscores: bool = False,
    out: Any = (None, None, None),
) -> tuple[Array, Array, Array, Array | None]:
    """dq, dk, dv (written to the arrays in `out`, where given) and dL/d(scores + mask), if asked for; dweights comes with weights."""
    return _core.attention_backward(q, k, v, y, lse, dy, mask, key_lengths, options, weights, dweights, need_dscores, out)


# ---------------------------------------------------------------- recurrent layers


def recurrent_pack(cell: str, directions: tuple[Weights, ...], *, packed: Any = None) -> Any:
    """A layer as the other functions take it; `packed` itself, from an earlier call, where no number has changed."""
    return _core.recurrent_pack(cell, directions, packed)


def recurrent_forward(
    x: Array,
    h_0: Array | None,
    c_0: Array | None,
    packed: Any,
    *,
    lengths: Array | None = None,
    reset: Array | None = None,
    noise: Noise = _NO_NOISE,
    training: bool = False,
    states: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, Array | None, Array | None, Any]:
    """y (T, B, D P), the last h and c, every c (D, T, B, H) where `states` asks, and, in training, what `recurrent_backward` needs."""
    return _core.recurrent_forward(x, h_0, c_0, packed, lengths, reset, noise, training, states, checkpoint_every or 0)


def recurrent_backward(
    cache: Any,
    dy: Array | None,
    dh_n: Array | None,
    dc_n: Array | None,
    *,
    dcells: Array | None = None,
    need_dx: bool = True,
    need_weights: bool = True,
    need_dstates: bool = False,
) -> dict[str, Any]:
    """Backpropagation through time: dx, dh_0, dc_0, weights (`Weights` of gradients for each direction) and dstates."""
    return _core.recurrent_backward(cache, dy, dh_n, dc_n, dcells, need_dx, need_weights, need_dstates)


def recurrent_stack(
    x: Array,
    h_0: Array | None,
    c_0: Array | None,
    layers: tuple[Any, ...],
    *,
    lengths: Array | None = None,
    reset: Array | None = None,
    zoneout: tuple[float, float] = (0.0, 0.0),
) -> tuple[Array, Array, Array | None]:
    """Packed layers of one direction, each on the one before, without a record: the last y, and h (L, B, P) and c (L, B, H) at the end."""
    return _core.recurrent_stack(x, h_0, c_0, layers, lengths, reset, zoneout)


def recurrent_stream(layers: tuple[Any, ...], *, batch_size: int, zoneout: tuple[float, float] = (0.0, 0.0)) -> Any:
    """A stream with zero state: `step`, `state`, `reset`, `load`."""
    return _core.RecurrentStream(layers, batch_size, zoneout)


# ---------------------------------------------------------------- attention decoder


def attention_decoder_pack(cell: str, weights: DecoderWeights, *, packed: Any = None) -> Any:
    """A decoder as the other functions take it; `packed` itself, from an earlier call, where no number has changed."""
    return _core.attention_decoder_pack(cell, weights, packed)


def attention_decoder_forward(
    x: Array,
    keys: Array | None,
    memory: Array,
    h_0: Array | None,
    c_0: Array | None,
    packed: Any,
    *,
    scale: float = 1.0,
    lengths: Array | None = None,
    memory_lengths: Array | None = None,
    training: bool = False,
) -> tuple[Array, Array, Array | None, Array, Any]:
    """Outputs (T, B, H), the last h and c, attention weights (T, B, S), and, in training, what backward needs."""
    return _core.attention_decoder_forward(x, keys, memory, h_0, c_0, packed, scale, lengths, memory_lengths, training)


def attention_decoder_backward(
    cache: Any, doutputs: Array | None, dh_n: Array | None, dc_n: Array | None, dweights: Array | None
) -> dict[str, Any]:
    """Backpropagation through time: dx, dkeys (None without keys), dmemory, dh_0, dc_0 and weights (`DecoderWeights`)."""
    return _core.attention_decoder_backward(cache, doutputs, dh_n, dc_n, dweights)


# ---------------------------------------------------------------- pickles
# Panels have the layout of one instruction set, so a pickle holds the weights themselves. Where each element of a matrix lies in the
# panels is found by packing their positions instead of them, in two digits, for a float32 holds integers up to 2^24 only.

_DIGIT = 1 << 12


def _matmul_packed_parts(packed: Any) -> tuple[Any, ...]:
    K, N = packed.shape
    positions = np.arange(1, K * N + 1).reshape(K, N)  # 0 is padding
    low, high = (pack(digit.astype(packed.dtype)).numpy().astype(np.int64) for digit in (positions % _DIGIT, positions // _DIGIT))
    flat = np.zeros(K * N + 1, packed.dtype)
    flat[high * _DIGIT + low] = packed.numpy()
    return pack, (flat[1:].reshape(K, N),)


def _recurrent_stream_parts(stream: Any) -> tuple[Any, ...]:
    layers = tuple((packed.cell, weights) for packed, weights in zip(stream.layers, stream.weights, strict=True))
    return _recurrent_stream_again, (layers, stream.batch_size, stream.zoneout, stream.state, stream.source)


def _recurrent_stream_again(
    layers: tuple[tuple[str, Weights], ...], batch_size: int, zoneout: tuple[float, float], state: Any, source: Any
) -> Any:
    packed = tuple(recurrent_pack(cell, (weights,)) for cell, weights in layers)
    stream = recurrent_stream(packed, batch_size=batch_size, zoneout=zoneout)
    stream.state, stream.source = state, source
    return stream


copyreg.pickle(_core.MatmulPacked, _matmul_packed_parts)
copyreg.pickle(_core.RecurrentStream, _recurrent_stream_parts)
