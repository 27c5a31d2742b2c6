"""Additive attention: the part of `cuda.py` that has it. Its kernels are in `kernels/additive_attention.cu`."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, gemm, int64, kernel, macros_of, properties
from fastseq.backends.cuda_matmul import sum_of_parts

Array = Any

_FILE = "additive_attention.cu"
_THREADS, _WARPS, _KEYS, _UNITS, _STEP = 256, 8, 64, 64, 32  # as the kernels have them
_SCORES_BYTES = 32 * 1024  # the most that the scores of a block take of shared memory; longer ones are kept where the weights will be


def additive_attention_forward(
    q: Array, k: Array, v: Array, u: Array, *, mask: Array | None = None, key_lengths: Array | None = None, need_weights: bool = False
) -> tuple[Array, Array | None]:
    """y (B, Tq, Dv) and, where asked for, the weights (B, Tq, Tk)."""
    (B, Tq, D), Tk, Dv, dtype = q.shape, k.shape[1], v.shape[2], q.dtype
    per_thread = 4 if B * -(-Tq // 16) >= 2 * properties().multiprocessors else 2
    queries, row = 4 * per_thread, -(-Tk // 4) * 4
    in_shared = queries * row * dtype.itemsize <= _SCORES_BYTES
    y = cupy.empty((B, Tq, Dv), dtype)
    weights = cupy.empty((B, Tq, Tk), dtype) if need_weights or not in_shared else None
    reals = (_KEYS + queries) * (_UNITS + 4) + _UNITS + _UNITS // 4 + queries * _KEYS
    shared = dtype.itemsize * (reals + queries * row * in_shared) + 16
    seen, bias, strides = _mask(mask, (B, Tq, Tk))
    arrays = y, weights, *map(contiguous, (q, k, v, u)), seen, bias
    forward = kernel(_FILE, "additive_forward", QUERIES_OF_THREAD=per_thread, **macros_of(dtype))
    forward((-(-Tq // queries), B), _THREADS, (*arrays, *map(int64, strides), on_device(key_lengths), Tq, Tk, D, Dv, int(in_shared)), shared)
    return y, weights if need_weights else None


def on_device(lengths: Array | None) -> Array | None:
    """Lengths (B,) int64 for a kernel."""
    return None if lengths is None else cupy.asarray(lengths, dtype=np.int64)


def _mask(mask: Array | None, full: tuple[int, ...]) -> tuple[Array | None, Array | None, list[int]]:
    """What hides by bools, what is added, and how far apart elements of the mask are for neighbours in batch, queries and keys."""
    if mask is None:
        return None, None, [0, 0, 0]
    mask = contiguous(mask)
    strides = [0 if own == 1 and size != 1 else stride // mask.itemsize for own, size, stride in zip(mask.shape, full, mask.strides, strict=True)]
    return (mask, None, strides) if mask.dtype == bool else (None, mask, strides)


def additive_attention_backward(
    q: Array, k: Array, v: Array, u: Array, weights: Array, dy: Array | None, *, key_lengths: Array | None = None, dweights: Array | None = None
) -> tuple[Array, Array, Array, Array, Array]:
    """dq, dk, dv, du and dL/d(scores + mask)."""
    (B, Tq, _), Tk, dtype = q.shape, k.shape[1], q.dtype
    q, k, v, weights = map(contiguous, (q, k, v, weights))
    if dy is None:
        dv, ds = cupy.zeros(v.shape, dtype), cupy.empty((B, Tq, Tk), dtype)
    else:
        dy = contiguous(dy)
        # y = w v
        dv, ds = gemm(weights.swapaxes(1, 2), dy), gemm(dy, v.swapaxes(1, 2))
    dweights = None if dweights is None else contiguous(dweights)
    softmax = kernel(_FILE, "additive_softmax_backward", **macros_of(dtype))
    softmax(-(-B * Tq // _WARPS) if Tk else 0, _THREADS, (ds, weights, dweights, int(dy is not None), int64(B * Tq), Tk))
    dq, dk, du = scores_backward(q, k, u, ds, key_lengths=key_lengths)
    return dq, dk, dv, du, ds


def scores_backward(
    q: Array, k: Array, u: Array, ds: Array, *, key_lengths: Array | None, need_dq: bool = True
) -> tuple[Array | None, Array, Array]:
    """dq, dk and du of the scores u . tanh(q_i + k_j), from their gradient ds (B, Tq, Tk); all contiguous but u."""
    (B, Tq, D), Tk, dtype = q.shape, k.shape[1], q.dtype
    if 0 in ds.shape or D == 0:
        return cupy.zeros(q.shape, dtype) if need_dq else None, cupy.zeros(k.shape, dtype), cupy.zeros(D, dtype)
    per_warp = 8 if Tq <= 8 * _WARPS else 16
    units, groups = -(-D // 32), -(-Tq // (_WARPS * per_warp))
    # more blocks than there are slices of units need planes of their own for dk
    planes = min(groups, -(-2 * properties().multiprocessors // (units * B)))
    dq = cupy.empty(q.shape, dtype) if need_dq else None
    dk, du = cupy.empty((planes, *k.shape), dtype), cupy.empty((B * planes, D), dtype)
    backward = kernel(_FILE, "additive_backward", QUERIES_OF_WARP=per_warp, **macros_of(dtype))
    shared = dtype.itemsize * _STEP * (32 * _WARPS + 32 + _WARPS * per_warp + 4) + 16
    backward((units, B, planes), _THREADS, (dq, dk, du, q, k, contiguous(u), ds, on_device(key_lengths), Tq, Tk, D), shared)
    return dq, dk[0] if planes == 1 else sum_of_parts(dk.reshape(planes, k.size)).reshape(k.shape), sum_of_parts(du)
