"""Attention of few queries for each head on a GPU: `attention_decode.cu` (part of `cuda_attention.py`)."""

from __future__ import annotations

import functools
from typing import Any

import cupy

from fastseq.backends import cuda_launch
from fastseq.backends.cuda_attention_call import Call
from fastseq.backends.cuda_launch import kernel

Array = Any

_WARPS, _LANES = 4, 8  # attention_decode.cu: WARPS, and the lanes that share a key
#: Queries for each head of keys up to which these kernels are used; and what a lane's registers hold of rows.
_MOST_ROWS, _MOST_PIECES, _PIECES_OF_ROWS = 8, 8, 16
#: Blocks for each multiprocessor that keys are split for, and the fewest keys of a part, a multiple of those that a block takes at a time.
_BLOCKS, _LEAST_KEYS = 32, 256


def _pieces(call: Call) -> int:
    """16 bytes of each lane that a row takes: a power of two."""
    bytes_ = max(call.D, call.Dv, 1) * call.itemsize
    return 1 << (-(-bytes_ // (16 * _LANES)) - 1).bit_length()


def takes(call: Call) -> bool:
    """Whether these kernels are for this call."""
    few = call.Tq == 1 or call.Tq * (call.heads // max(call.kv_heads, 1)) <= _MOST_ROWS
    return few and call.rows > 0 and not call.has_dropout and _pieces(call) <= _MOST_PIECES


@functools.cache
def _kernel(device: int, real: str, pieces: int, rows: int, wide: bool) -> Any:
    return kernel("attention_decode.cu", "attention_decode", REAL=real, PIECES=pieces, ROWS=rows, WIDE=int(wide))


def forward(y: Array, lse: Array | None, q: Array, k: Array, v: Array, call: Call) -> None:
    """y, and lse where it is wanted."""
    pieces, rows = _pieces(call), call.Tq * (call.heads // call.kv_heads)
    together = min(1 << (rows - 1).bit_length(), _MOST_ROWS, _PIECES_OF_ROWS // pieces)
    groups = call.B * call.kv_heads * -(-rows // together)
    wanted = -(-_BLOCKS * cuda_launch.properties().multiprocessors // groups)
    keys = max(-(-call.Tk // (wanted * _LEAST_KEYS)), 1) * _LEAST_KEYS
    splits = max(-(-call.Tk // keys), 1)
    size = call.itemsize
    ended = call.rows * splits * (call.Dv + 2) * size
    parts = cupy.cuda.alloc(ended + 4 * groups)
    (parts + ended).memset_async(0, 4 * groups)
    run = _kernel(cupy.cuda.runtime.getDevice(), call.real, pieces, together, call.wide & 6 == 6)
    shared = _WARPS * together * (_LANES * pieces * 16 + 2 * size)
    run(groups * splits, 32 * _WARPS, (y, lse, parts, parts + ended, q, k, v, splits, keys, call.problem), shared)
