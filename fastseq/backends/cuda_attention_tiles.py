"""Attention of any dtype, any sizes and any numbers on a GPU: `attention_forward.cu` and `attention_backward.cu` (part of `cuda_attention.py`).

run_if: where given, an array of one int on the device; the kernels do nothing where it is zero.
"""

from __future__ import annotations

import functools
from typing import Any

import cupy

from fastseq.backends import cuda_launch
from fastseq.backends.cuda_attention_call import Call
from fastseq.backends.cuda_launch import int64, kernel

Array = Any

_TILE, _THREADS = 64, 256  # attention_tiles.cuh: TILE, TILE_THREADS


@functools.cache
def _kernel(device: int, name: str, real: str) -> Any:
    return kernel("attention_forward.cu" if name == "attention_forward" else "attention_backward.cu", name, REAL=real)


def _run(name: str, call: Call) -> Any:
    return _kernel(cupy.cuda.runtime.getDevice(), name, call.real)


def _shared(call: Call) -> int:
    """attention_tiles.cuh: SHARED_REALS and a flag."""
    return (2 * _TILE * (_TILE + 1) + _TILE) * call.itemsize + 16


def _tiles(n: int) -> int:
    return -(-n // _TILE)


def _blocks(items: int, run_if: Array | None) -> int:
    """A block for each item; where there is most likely nothing to do, no more than the device holds."""
    return items if run_if is None else min(items, 2 * cuda_launch.properties().multiprocessors)


def forward(y: Array, lse: Array | None, weights: Array | None, q: Array, k: Array, v: Array, call: Call, run_if: Array | None) -> None:
    """y, and where they are wanted lse and, in an array of zeros, the weights."""
    items = call.B * call.heads * _tiles(call.Tq) * max(_tiles(call.Dv), 1)
    arrays = y, lse, weights, q, k, v, run_if, int64(items)
    _run("attention_forward", call)(_blocks(items, run_if), _THREADS, (*arrays, call.problem), _shared(call))


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
    delta, dweights = None, None
    if weights is not None:
        w, dweights = weights
        delta = cupy.empty((call.B, call.heads, call.Tq), call.dtype)
        _run("attention_delta", call)(-(-call.rows // 8), _THREADS, (delta, dy, y, w, dweights, call.problem))
    query_items = call.B * call.heads * _tiles(call.Tq) * max(_tiles(call.D), 1)
    items = query_items + call.B * call.kv_heads * _tiles(call.Tk) * max(_tiles(call.D), _tiles(call.Dv), 1)
    arrays = dq, dscores, dk, dv, q, k, v, y, dy, lse, delta, dweights, run_if, int64(query_items), int64(items)
    _run("attention_backward", call)(_blocks(items, run_if), _THREADS, (*arrays, call.problem), _shared(call))
