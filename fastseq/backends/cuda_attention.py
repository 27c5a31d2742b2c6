"""The CUDA backend's attention: softmax(scale q k^T + mask) v (part of `cuda.py`).

Kernels in `cuda_attention_tiles.py` take any dtype, any sizes and any numbers; those in `cuda_attention_mma.py` multiply float32 by tensor
cores; `cuda_attention_decode.py` has few queries for each head. All see a query's keys in `cuda_attention_call.py`'s terms.
"""

from __future__ import annotations

from typing import Any

import cupy

from fastseq.backends import cuda_attention_decode as decode
from fastseq.backends import cuda_attention_mma as mma
from fastseq.backends import cuda_attention_tiles as tiles
from fastseq.backends.attention import AttentionOptions
from fastseq.backends.cuda_attention_call import call_of, like, rows, writable
from fastseq.backends.cuda_launch import contiguous

Array = Any


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
    q, k, v = rows(q), rows(k), rows(v)
    y = like(q, v.shape[3])
    call = call_of((q, k, v, y), mask, key_lengths, options)
    lse = cupy.empty((call.B, call.heads, call.Tq), call.dtype) if training else None
    w = cupy.zeros((call.B, call.heads, call.Tq, call.Tk), call.dtype) if weights else None
    if not options.tiles and not weights and decode.takes(call):
        decode.forward(y, lse, q, k, v, call)
        return y, lse, None
    run_if = None
    if mma.takes(call) and not options.tiles and not weights:
        plan = mma.prepare(q, k, v, call, backward=False)
        mma.forward(y, lse, q, plan, call)
        run_if = plan.special
    tiles.forward(y, lse, w, q, k, v, call, run_if)
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
    q, k, v, y, dy, lse = rows(q), rows(k), rows(v), rows(y), rows(dy), contiguous(lse)
    dq, dk, dv = (like(x, x.shape[3]) if given is None else writable(given) for x, given in zip((q, k, v), out, strict=True))
    call = call_of((q, k, v, y, dy, dq, dk, dv), mask, key_lengths, options)
    gradients = dq, dk, dv, cupy.zeros((call.B, call.heads, call.Tq, call.Tk), call.dtype) if need_dscores else None
    given = None if dweights is None else (contiguous(weights), contiguous(dweights))
    run_if = None
    # p = exp(score - lse) wants the very score that lse came from: few queries had theirs from products of float32.
    if mma.takes(call) and not decode.takes(call) and not options.tiles and given is None:
        plan = mma.prepare(q, k, v, call, backward=True)
        mma.backward(gradients, y, lse, dy, plan, call)
        run_if = plan.special
    tiles.backward(gradients, q, k, v, y, lse, dy, given, call, run_if)
    return gradients
