"""The CUDA backend's attention: softmax(scale q k^T + mask) v (part of `cuda.py`).

`attention_forward.cu` and `attention_backward.cu` take any dtype and any sizes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends import cuda_launch
from fastseq.backends.attention import AttentionOptions
from fastseq.backends.cuda_launch import int64, kernel, macros_of
from fastseq.backends.reference_philox import philox

Array = Any

_TILE, _THREADS = 64, 256  # attention_tiles.cuh: TILE, TILE_THREADS
#: Rows of an array that a kernel counts in an int, sums of two of them included.
_MOST_ROWS = 2**30


class _Call(NamedTuple):
    """The sizes of a call, and the arguments that every kernel takes for which keys a query sees, and how scores are formed."""

    B: int
    heads: int
    kv_heads: int
    Tq: int
    Tk: int
    D: int
    Dv: int
    dtype: Any
    arguments: tuple[Any, ...]
    held: tuple[Any, ...]  # the arrays that the arguments are of

    @property
    def real(self) -> str:
        """The type of the elements, as a kernel's macro."""
        return macros_of(self.dtype)["REAL"]

    @property
    def rows(self) -> int:
        """Queries of all heads."""
        return self.B * self.heads * self.Tq


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
    q, k, v = _rows(q), _rows(k), _rows(v)
    call = _call(q, k, v, mask, key_lengths, options)
    y = _like(q, call.Dv)
    lse = cupy.empty((call.B, call.heads, call.Tq), call.dtype) if training else None
    w = cupy.zeros((call.B, call.heads, call.Tq, call.Tk), call.dtype) if weights else None
    _forward_tiles(y, lse, w, q, k, v, call, None)
    return y, lse, w


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
    q, k, v, y, dy = _rows(q), _rows(k), _rows(v), _rows(y), _rows(dy)
    call = _call(q, k, v, mask, key_lengths, options)
    dq, dk, dv = (_like(x, x.shape[3]) if given is None else _writable(given) for x, given in zip((q, k, v), out, strict=True))
    dscores = cupy.zeros((call.B, call.heads, call.Tq, call.Tk), call.dtype) if need_dscores else None
    delta = cupy.empty((call.B, call.heads, call.Tq), call.dtype)
    weights, dweights = (None, None) if dweights is None else (cuda_launch.contiguous(weights), cuda_launch.contiguous(dweights))
    kernel("attention_backward.cu", "attention_delta", REAL=call.real)(
        -(-call.rows // 8), 256, (delta, *_strided(dy), *_strided(y), weights, dweights, call.rows, call.heads, call.Tq, call.Tk, call.Dv)
    )
    _backward_tiles((dq, dk, dv, dscores), q, k, v, dy, cuda_launch.contiguous(lse), delta, dweights, call, None)
    return dq, dk, dv, dscores


# ---------------------------------------------------------------- any dtype and any sizes


def _shared(dtype: Any) -> int:
    """attention_tiles.cuh: SHARED_REALS and a flag."""
    return (_TILE * (_TILE + 1) * 2) * np.dtype(dtype).itemsize + 16


def _blocks(items: int, run_if: Array | None) -> int:
    """A block for each item; where it may turn out that there is nothing to do, no more than the device holds."""
    return items if run_if is None else min(items, 2 * cuda_launch.properties().multiprocessors)


def _forward_tiles(
    y: Array, lse: Array | None, weights: Array | None, q: Array, k: Array, v: Array, call: _Call, run_if: Array | None
) -> None:
    items = call.B * call.heads * -(-call.Tq // _TILE) * max(-(-call.Dv // _TILE), 1)
    arrays = *_strided(y), lse, weights, *_strided(q), *_strided(k), *_strided(v), run_if, int64(items)
    run = kernel("attention_forward.cu", "attention_forward", REAL=call.real)
    run(_blocks(items, run_if), _THREADS, (*arrays, *call.arguments), _shared(call.dtype))


def _backward_tiles(
    gradients: tuple[Array, Array, Array, Array | None],
    q: Array,
    k: Array,
    v: Array,
    dy: Array,
    lse: Array,
    delta: Array,
    dweights: Array | None,
    call: _Call,
    run_if: Array | None,
) -> None:
    dq, dk, dv, dscores = gradients
    inputs = *_strided(q), *_strided(k), *_strided(v), *_strided(dy), lse, delta, dweights, run_if
    for name, outputs, heads, T, columns in (
        ("attention_backward_queries", (*_strided(dq), dscores), call.heads, call.Tq, call.D),
        ("attention_backward_keys", (*_strided(dk), *_strided(dv)), call.kv_heads, call.Tk, max(call.D, call.Dv)),
    ):
        items = call.B * heads * -(-T // _TILE) * max(-(-columns // _TILE), 1)
        run = kernel("attention_backward.cu", name, REAL=call.real)
        run(_blocks(items, run_if), _THREADS, (*outputs, *inputs, int64(items), *call.arguments), _shared(call.dtype))


# ---------------------------------------------------------------- arrays


def _is_rows(x: Array) -> bool:
    """Whether x (B, heads, T, columns) has rows of neighbouring elements, at strides of whole elements."""
    return (x.shape[3] <= 1 or x.strides[3] == x.itemsize) and all(stride % x.itemsize == 0 for stride in x.strides)


def _rows(x: Array) -> Array:
    """x as kernels take it, a copy where it is laid out otherwise."""
    return x if _is_rows(x) else cupy.array(x, order="C")


def _writable(x: Array) -> Array:
    """An array that is written where it lies."""
    if not _is_rows(x):
        raise ValueError("an array to be written: expected contiguous rows")
    return x


def _like(x: Array, columns: int) -> Array:
    """A new array (B, heads, T, columns) with as many rows as x, whose axes lie in memory in the same order."""
    B, heads, T, _ = x.shape
    b, h, t, _ = x.strides
    if h >= t or heads <= 1 or T <= 1:
        return cupy.empty((B, heads, T, columns), x.dtype)
    if b >= t or B <= 1:
        return cupy.empty((B, T, heads, columns), x.dtype).transpose(0, 2, 1, 3)
    return cupy.empty((T, B, heads, columns), x.dtype).transpose(1, 2, 0, 3)


def _strided(x: Array) -> tuple[Any, ...]:
    """attention.cuh: ATTENTION_ARRAY."""
    return x, *(int64(stride // x.itemsize) for stride in x.strides[:3])


def _call(q: Array, k: Array, v: Array, mask: Array | None, key_lengths: Array | None, options: AttentionOptions) -> _Call:
    """attention.cuh: ATTENTION_ARGUMENTS."""
    (B, heads, Tq, D), (_, kv_heads, Tk, Dv) = q.shape, v.shape
    if max(Tq, Tk, B * heads, B * heads * Tq // 2) >= _MOST_ROWS:
        raise ValueError(f"q, k: expected fewer than {_MOST_ROWS} keys and {2 * _MOST_ROWS} rows of q, got q of shape {q.shape} and {Tk} keys")
    real, p = q.dtype.type, options.dropout
    low, high = _band(options, Tq, Tk)
    kind, strides = 0, [0, 0, 0, 0]
    if mask is not None:
        mask = cupy.asarray(mask)
        if any(stride % mask.itemsize for stride in mask.strides):
            mask = cupy.array(mask, order="C")
        kind = 1 if mask.dtype == bool else 2
        strides = [stride // mask.itemsize if n > 1 else 0 for n, stride in zip(mask.shape, mask.strides, strict=True)]
    lengths = None if key_lengths is None else cupy.ascontiguousarray(cupy.asarray(key_lengths, dtype=np.int64))
    seed = _seed(options) if p > 0 else 0
    dropout = np.uint64(seed), int64(math.ceil(p * 2.0**32)), real(1 / (1 - p) if p < 1 else 0)
    sizes = heads, heads // max(kv_heads, 1), Tq, Tk, D, Dv, low, high
    arguments = mask, kind, *map(int64, strides), lengths, *sizes, real(options.scale), *dropout
    return _Call(B, heads, kv_heads, Tq, Tk, D, Dv, q.dtype, arguments, (mask, lengths))


def _band(options: AttentionOptions, Tq: int, Tk: int) -> tuple[int, int]:
    """Query i sees the keys from i + low to i + high; numbers beyond every key are cut."""
    low, high = -Tq - 1, Tk + 1
    if options.window:
        low, high = options.offset - options.window + 1, options.offset + options.window - 1
    if options.causal:
        high = min(high, options.offset)
    return min(max(low, -Tq - 1), Tk + 1), min(max(high, -Tq - 1), Tk + 1)


def _seed(options: AttentionOptions) -> int:
    """Philox's key for the weights' masks."""
    w0, w1 = philox(options.seed, np.array([[0, options.layer, options.call, 0x61747465]], np.uint64))[0, :2]
    return int(w0) | int(w1) << 32
