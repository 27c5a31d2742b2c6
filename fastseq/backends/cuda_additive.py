"""Additive attention: the part of `cuda.py` that has it. Its kernels are in `kernels/additive_attention*.cu`."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends.cuda_launch import Kernel, contiguous, int64, kernel, macros_of, properties
from fastseq.backends.cuda_matmul import sum_of_parts

Array = Any

_FILE, _BACKWARD_FILE = "additive_attention.cu", "additive_attention_backward.cu"
_THREADS, _WARPS, _KEYS, _UNITS, _STEP = 256, 8, 64, 64, 32  # as the kernels have them
_NO_MASK = None, None, int64(0), int64(0), int64(0)
_SCORES_BYTES = 32 * 1024  # the most that the scores of a block take of shared memory; longer ones are kept where the weights will be


class _Plan(NamedTuple):
    """The launches for a call's sizes; numbers as kernels take them, which Python is slow to make of its own."""

    forward: Kernel
    dscores: Kernel
    backward: Kernel
    grid: tuple[int]  # of the first two: tiles of queries of each row of the batch
    grid_backward: tuple[int, int]  # slices of units and of columns of each row, planes
    in_shared: bool  # the scores of a block
    shared: int  # bytes
    shared_backward: int
    slices: int  # of units
    plane: int  # elements of dk and dv
    of_forward: tuple[Any, ...]
    of_dscores: tuple[Any, ...]
    of_backward: tuple[Any, ...]


def _backward_bytes(per_warp: int, item: int) -> int:
    """Shared memory of a block backwards."""
    return item * _STEP * (32 * _WARPS + 32 + _WARPS * per_warp + 4) + 16


@functools.lru_cache(256)
def _plan(device: int, B: int, Tq: int, Tk: int, D: int, Dv: int, dtype: Any) -> _Plan:
    blocks, item, macros = 2 * properties().multiprocessors, dtype.itemsize, macros_of(dtype)
    # few queries for each block where there are few blocks
    per_thread = 1 if Tq <= 4 else 4 if B * -(-Tq // 16) >= blocks else 2
    queries, row = 4 * per_thread, -(-Tk // 4) * 4
    in_shared = queries * row * item <= _SCORES_BYTES
    reals = (_KEYS + queries) * (_UNITS + 4) + _UNITS + _UNITS // 4 + queries * _KEYS + queries * row * in_shared
    per_warp = 16 if Tq > 8 * _WARPS and _backward_bytes(16, item) <= properties().shared_per_block else 8
    units, columns, groups = -(-D // 32), -(-Dv // 32), -(-Tq // (_WARPS * per_warp))
    # more blocks than there are slices of units need planes of their own for dk and dv
    planes = max(1, min(groups, -(-blocks // max(1, units * B))))
    plane = B * Tk * (D + Dv)
    sizes = np.int32(Tq), np.int32(Tk)
    return _Plan(
        kernel(_FILE, "additive_forward", QUERIES_OF_THREAD=per_thread, **macros),
        kernel(_FILE, "additive_dscores", QUERIES_OF_THREAD=per_thread, **macros),
        kernel(_BACKWARD_FILE, "additive_backward", QUERIES_OF_WARP=per_warp, **macros),
        (-(-Tq // queries) * B,),
        ((units + columns) * B, planes),
        in_shared,
        item * reals + 16,
        _backward_bytes(per_warp, item),
        units,
        plane,
        (*sizes, np.int32(D), np.int32(Dv), np.int32(in_shared)),
        (*sizes, np.int32(Dv), np.int32(in_shared), np.int32(units)),
        (*sizes, np.int32(D), np.int32(Dv), np.int32(units), int64(plane)),
    )


def additive_attention_forward(
    q: Array, k: Array, v: Array, u: Array, *, mask: Array | None = None, key_lengths: Array | None = None, need_weights: bool = False
) -> tuple[Array, Array | None]:
    """y (B, Tq, Dv) and, where asked for, the weights (B, Tq, Tk)."""
    (B, Tq, D), (_, Tk, Dv), dtype = q.shape, v.shape, q.dtype
    plan = _plan(cupy.cuda.runtime.getDevice(), B, Tq, Tk, D, Dv, dtype)
    y = cupy.empty((B, Tq, Dv), dtype)
    weights = cupy.empty((B, Tq, Tk), dtype) if need_weights or not plan.in_shared else None
    masked = _NO_MASK if mask is None else _mask(mask, (B, Tq, Tk))
    arguments = y, weights, *map(contiguous, (q, k, v, u)), *masked, on_device(key_lengths), *plan.of_forward
    plan.forward(plan.grid, _THREADS, arguments, plan.shared)
    return y, weights if need_weights else None


def on_device(lengths: Array | None) -> Array | None:
    """Lengths (B,) int64 for a kernel."""
    return None if lengths is None else cupy.asarray(lengths, dtype=np.int64)


def _mask(mask: Array, full: tuple[int, ...]) -> tuple[Any, ...]:
    """What hides by bools, what is added, and how far apart elements of the mask are for neighbours in batch, queries and keys."""
    mask, item = contiguous(mask), mask.itemsize
    strides = [int64(0 if own == 1 and size != 1 else stride // item) for own, size, stride in zip(mask.shape, full, mask.strides, strict=True)]
    return (mask, None, *strides) if mask.dtype == bool else (None, mask, *strides)


def additive_attention_backward(
    q: Array, k: Array, v: Array, u: Array, weights: Array, dy: Array | None, *, key_lengths: Array | None = None, dweights: Array | None = None
) -> tuple[Array, Array, Array, Array, Array]:
    """dq, dk, dv, du and dL/d(scores + mask)."""
    (B, Tq, D), (_, Tk, Dv), dtype = q.shape, v.shape, q.dtype
    ds = cupy.empty((B, Tq, Tk), dtype)
    if 0 in ds.shape:
        dq, dk, dv, du = (cupy.zeros(a.shape, dtype) for a in (q, k, v, u))
        return dq, dk, dv, du, ds
    plan = _plan(cupy.cuda.runtime.getDevice(), B, Tq, Tk, D, 0 if dy is None else Dv, dtype)
    q, k, v, u, weights = map(contiguous, (q, k, v, u, weights))
    dy, dweights = (None if a is None else contiguous(a) for a in (dy, dweights))
    arrived, lengths = cupy.empty(max(plan.slices, 1), np.uint32), on_device(key_lengths)
    plan.dscores(plan.grid, _THREADS, (ds, arrived, weights, dweights, dy, v, lengths, *plan.of_dscores), plan.shared)
    dq = cupy.empty(q.shape, dtype)
    dk, dv, du = _all_pairs(plan, dq, q, k, v, u, ds, weights, dy, lengths, arrived)
    return dq, dk, cupy.zeros_like(v) if dv is None else dv, du, ds


def scores_backward(q: Array, k: Array, u: Array, ds: Array, *, key_lengths: Array | None) -> tuple[Array, Array]:
    """dk and du of the scores u . tanh(q_i + k_j), from their gradient ds (B, Tq, Tk); all contiguous."""
    if 0 in ds.shape:
        return cupy.zeros_like(k), cupy.zeros_like(u)
    (B, Tq, D), Tk = q.shape, k.shape[1]
    plan = _plan(cupy.cuda.runtime.getDevice(), B, Tq, Tk, D, 0, q.dtype)
    arrived = cupy.zeros(max(plan.slices, 1), np.uint32)
    dk, _, du = _all_pairs(plan, None, q, k, k, u, ds, None, None, on_device(key_lengths), arrived)
    return dk, du


def _all_pairs(
    plan: _Plan, dq: Array | None, q: Array, k: Array, v: Array, u: Array, ds: Array, weights: Array | None, dy: Array | None,
    lengths: Array | None, arrived: Array,
) -> tuple[Array, Array | None, Array]:  # fmt: skip
    """dq in place; dk, dv and du; no dv without dy."""
    planes, B, dtype, D = plan.grid_backward[1], q.shape[0], q.dtype, u.shape[0]
    parts, du = cupy.empty((B * planes, D), dtype), cupy.empty(D, dtype)
    if planes == 1:
        dk = cupy.empty(k.shape, dtype)
        dv = cupy.empty(v.shape, dtype) if dy is not None else None
        into = dk, dv
    else:
        both = cupy.empty((planes, plan.plane), dtype)
        into = both, both[:, k.size :]
    arguments = dq, *into, du, parts, arrived, q, k, u, ds, weights, dy, lengths, *plan.of_backward
    plan.backward(plan.grid_backward, _THREADS, arguments, plan.shared_backward)
    if planes > 1:
        flat = sum_of_parts(both)
        dk, dv = flat[: k.size].reshape(k.shape), flat[k.size :].reshape(v.shape) if dy is not None else None
    return dk, dv, du
