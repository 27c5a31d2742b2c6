"""What a call of attention on a GPU is: its sizes, which keys a query sees, and arrays as kernels take them (part of `cuda_attention.py`)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends.attention import AttentionOptions
from fastseq.backends.cuda_launch import int64, macros_of
from fastseq.backends.reference_philox import philox

Array = Any

#: Rows of an array that a kernel counts in an int, sums of two of them included.
_MOST_ROWS = 2**30


class Call(NamedTuple):
    """The sizes of a call, and the arguments that every kernel takes for which keys a query sees, and how scores are formed."""

    B: int
    heads: int
    kv_heads: int
    Tq: int
    Tk: int
    D: int
    Dv: int
    dtype: Any
    scale: Any  # of dtype
    has_extras: bool  # a mask or dropout
    has_dropout: bool
    arguments: tuple[Any, ...]

    @property
    def real(self) -> str:
        """The type of the elements, as a kernel's macro."""
        return macros_of(self.dtype)["REAL"]

    @property
    def rows(self) -> int:
        """Queries of all heads."""
        return self.B * self.heads * self.Tq


# ---------------------------------------------------------------- arrays


def _is_rows(x: Array) -> bool:
    """Whether x (B, heads, T, columns) has rows of neighbouring elements, at strides of whole elements."""
    return (x.shape[3] <= 1 or x.strides[3] == x.itemsize) and all(stride % x.itemsize == 0 for stride in x.strides)


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


def is_wide(x: Array) -> bool:
    """Whether rows of x may be read and written 16 bytes at a time."""
    return x.shape[3] * x.itemsize % 16 == 0 and x.data.ptr % 16 == 0 and all(stride % 16 == 0 for stride in x.strides[:3])


def strided(x: Array) -> tuple[Any, ...]:
    """attention.cuh: ATTENTION_ARRAY."""
    return x, *(int64(stride // x.itemsize) for stride in x.strides[:3])


def call_of(q: Array, k: Array, v: Array, mask: Array | None, key_lengths: Array | None, options: AttentionOptions) -> Call:
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
    return Call(B, heads, kv_heads, Tq, Tk, D, Dv, q.dtype, real(options.scale), mask is not None or p > 0, p > 0, arguments)


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
