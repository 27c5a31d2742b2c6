"""Attention of any dtype, any sizes and any numbers on a GPU: `attention_forward.cu` and `attention_backward.cu` (part of `cuda_attention.py`).

run_if: where given, an array of one int on the device; the kernels do nothing where it is zero.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from fastseq.backends import cuda_launch
from fastseq.backends.cuda_attention_call import Call
from fastseq.backends.cuda_launch import int64, kernel

Array = Any

_TILE, _THREADS = 64, 256  # attention_tiles.cuh: TILE, TILE_THREADS


def _shared(call: Call) -> int:
    """attention_tiles.cuh: SHARED_REALS and a flag."""
    return 2 * _TILE * (_TILE + 1) * np.dtype(call.dtype).itemsize + 16


def _blocks(items: int, run_if: Array | None) -> int:
    """A block for each item; where there is most likely nothing to do, no more than the device holds."""
    return items if run_if is None else min(items, 2 * cuda_launch.properties().multiprocessors)


def forward(y: Array, lse: Array | None, weights: Array | None, q: Array, k: Array, v: Array, call: Call, run_if: Array | None) -> None:
    """y, and where they are wanted lse and, in an array of zeros, the weights."""
    items = call.B * call.heads * -(-call.Tq // _TILE) * max(-(-call.Dv // _TILE), 1)
    arrays = y, lse, weights, q, k, v, run_if, int64(items)
    run = kernel("attention_forward.cu", "attention_forward", REAL=call.real)
    run(_blocks(items, run_if), _THREADS, (*arrays, call.problem), _shared(call))


def backward(
    gradients: tuple[Array, Array, Array, Array | None],
    q: Array,
    k: Array,
    v: Array,
    y: Array,
    lse: Array,
    dy: Array,
    weights: tuple[Array, Array] | None,
    call: Call,
    run_if: Array | None,
) -> None:
    """dq, dk, dv and, where they are wanted, in an array of zeros, those of the scores; weights: themselves and their gradients."""
    dq, dk, dv, dscores = gradients
    delta = cupy.empty((call.B, call.heads, call.Tq), call.dtype)
    w, dweights = weights or (None, None)
    run = kernel("attention_backward.cu", "attention_delta", REAL=call.real)
    run(_blocks(-(-call.rows // 8), run_if), _THREADS, (delta, dy, y, w, dweights, run_if, call.problem))
    inputs = q, k, v, dy, lse, delta, dweights, run_if
    for name, outputs, heads, T, columns in (
        ("attention_backward_queries", (dq, dscores), call.heads, call.Tq, call.D),
        ("attention_backward_keys", (dk, dv), call.kv_heads, call.Tk, max(call.D, call.Dv)),
    ):
        items = call.B * heads * -(-T // _TILE) * max(-(-columns // _TILE), 1)
        run = kernel("attention_backward.cu", name, REAL=call.real)
        run(_blocks(items, run_if), _THREADS, (*outputs, *inputs, int64(items), call.problem), _shared(call))
