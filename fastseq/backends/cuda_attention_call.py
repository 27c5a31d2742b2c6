"""What a call of attention on a GPU is: its sizes, which keys a query sees, and arrays as kernels take them (part of `cuda_attention.py`)."""

from __future__ import annotations

import functools
import math
import struct
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends.attention import AttentionOptions
from fastseq.backends.cuda_launch import contiguous
from fastseq.backends.reference_philox import philox

Array = Any
_Layout = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides, the address modulo 16

#: Rows of an array that a kernel counts in an int, sums of two of them included.
_MOST_ROWS = 2**30


#: attention.cuh: Problem, in C's layout.
_PROBLEMS = {np.dtype(real): struct.Struct(f"@30qQq15i2{real}0q") for real in "fd"}
_ARRAYS = 8  # whose strides a problem has
#: Rows of each head in what attention_prepare.cu makes are a multiple of this, and so of the rows of every tile.
TILE = 128
#: Numbers of two arrays each that heads which are walked together have: 24 MB of bfloat16 in all, half of a Hopper's L2 cache.
_TOGETHER = 6 << 20


class Call(NamedTuple):
    """The sizes of a call, and the argument that every kernel takes: which keys a query sees, how scores are formed, where rows lie."""

    B: int
    heads: int
    kv_heads: int
    Tq: int
    Tk: int
    D: int
    Dv: int
    dtype: Any
    real: str  # the type of the elements, as a kernel's macro
    itemsize: int
    has_extras: bool  # a mask or dropout
    has_dropout: bool
    wide: int  # bit n: rows of array n may be read 16 bytes at a time
    problem: Any
    held: tuple[Any, ...]  # the arrays that the problem points to

    @property
    def rows(self) -> int:
        """Queries of all heads."""
        return self.B * self.heads * self.Tq

    @property
    def tile_rows(self) -> tuple[int, int]:
        """Of q and of k, of all heads, in what attention_prepare.cu makes."""
        return self.B * self.heads * _up(self.Tq), self.B * self.kv_heads * _up(self.Tk)


# ---------------------------------------------------------------- arrays


def _is_rows(x: Array) -> bool:
    """Whether x (B, heads, T, columns) has rows of neighbouring elements, at strides of whole elements."""
    b, h, t, d = x.strides
    size = x.itemsize
    return (d == size or x.shape[3] <= 1) and (b | h | t) & (size - 1) == 0


def rows(x: Array) -> Array:
    """x as kernels take it, a copy where it is laid out otherwise."""
    return x if _is_rows(x) else cupy.array(x, order="C")


def writable(x: Array) -> Array:
    """An array that is written where it lies."""
    if not _is_rows(x):
        raise ValueError("an array to be written: expected contiguous rows")
    return x


def like(x: Array, columns: int) -> Array:
    """A new array (B, heads, T, columns) with as many rows as x, whose axes lie in memory in the same order."""
    B, heads, T, _ = x.shape
    b, h, t, _ = x.strides
    if h >= t or heads <= 1 or T <= 1:
        return cupy.empty((B, heads, T, columns), x.dtype)
    if b >= t or B <= 1:
        return cupy.empty((B, T, heads, columns), x.dtype).transpose(0, 2, 1, 3)
    return cupy.empty((T, B, heads, columns), x.dtype).transpose(1, 2, 0, 3)


def call_of(arrays: tuple[Array, ...], mask: Array | None, key_lengths: Array | None, options: AttentionOptions) -> Call:
    """The call with q, k, v, y and, backwards, dy, dq, dk and dv, whose rows are neighbours."""
    layouts = tuple([(x.shape, x.strides, x.data.ptr & 15) for x in arrays])
    if mask is None and key_lengths is None and options.dropout == 0:
        return _plain_call(layouts, arrays[0].dtype, options)
    if mask is not None:
        mask = cupy.asarray(mask)
        if any(stride % mask.itemsize for stride in mask.strides):
            mask = cupy.array(mask, order="C")
    lengths = None if key_lengths is None else contiguous(cupy.asarray(key_lengths, dtype=np.int64))
    return _call(layouts, arrays[0].dtype, options, mask, lengths)


@functools.lru_cache(1 << 10)
def _plain_call(layouts: tuple[_Layout, ...], dtype: Any, options: AttentionOptions) -> Call:
    """Kept, because a program attends in the same shapes in every step."""
    return _call(layouts, dtype, options, None, None)


def _call(layouts: tuple[_Layout, ...], dtype: Any, options: AttentionOptions, mask: Array | None, lengths: Array | None) -> Call:
    (B, heads, Tq, D), (kv_heads, Tk, Dv) = layouts[0][0], layouts[2][0][1:]
    if max(Tq, Tk, B * heads, B * heads * Tq // 2) >= _MOST_ROWS:
        raise ValueError(f"q, k: expected fewer than {_MOST_ROWS} keys and {2 * _MOST_ROWS} rows of q, got q of shape {layouts[0][0]} and {Tk} keys")
    size, p = dtype.itemsize, options.dropout
    kind, strides = 0, [0, 0, 0, 0]
    if mask is not None:
        kind = 1 if mask.dtype == bool else 2
        strides = [stride // mask.itemsize if n > 1 else 0 for n, stride in zip(mask.shape, mask.strides, strict=True)]
    rows, wide = [0] * (3 * _ARRAYS), 0
    for n, (shape, (b, h, t, _), place) in enumerate(layouts):
        rows[3 * n : 3 * n + 3] = b // size, h // size, t // size
        wide |= ((b | h | t | place | shape[3] * size) & 15 == 0) << n
    packed = _PROBLEMS[dtype].pack(
        0 if mask is None else mask.data.ptr,
        0 if lengths is None else lengths.data.ptr,
        *strides,
        *rows,
        _seed(options) if p > 0 else 0,
        math.ceil(p * 2.0**32),
        *(kind, B, heads, heads // max(kv_heads, 1), Tq, Tk, D, Dv),
        *_band(options, Tq, Tk),
        *(wide, _up(Tq), _up(Tk)),
        *(max(_TOGETHER // (max(T, 1) * max(D, Dv, 1) * heads_), 1) for T, heads_ in ((Tk, 1), (Tq, heads // max(kv_heads, 1)))),
        options.scale,
        1 / (1 - p) if p < 1 else 0,
    )
    problem = np.frombuffer(packed, f"V{len(packed)}")
    sizes = B, heads, kv_heads, Tq, Tk, D, Dv
    return Call(*sizes, dtype, "float" if size == 4 else "double", size, mask is not None or p > 0, p > 0, wide, problem, (mask, lengths))


def _up(n: int) -> int:
    return -(-n // TILE) * TILE


def _band(options: AttentionOptions, Tq: int, Tk: int) -> tuple[int, int]:
    """Query i sees the keys from i + low to i + high; numbers beyond every key are cut."""
    low, high = -Tq - 1, Tk + 1
    if not options.window and not options.causal:
        return low, high
    if options.window:
        low, high = options.offset - options.window + 1, options.offset + options.window - 1
    if options.causal:
        high = min(high, options.offset)
    return min(max(low, -Tq - 1), Tk + 1), min(max(high, -Tq - 1), Tk + 1)


def _seed(options: AttentionOptions) -> int:
    """Philox's key for the weights' masks."""
    w0, w1 = philox(options.seed, np.array([[0, options.layer, options.call, 0x61747465]], np.uint64))[0, :2]
    return int(w0) | int(w1) << 32
