"""Additive attention: the part of `cuda.py` that has it. Its kernels are in `kernels/additive_attention*.cu`."""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends.cuda_launch import contiguous, int64, kernel, macros_of, properties
from fastseq.backends.cuda_matmul import sum_of_parts

Array = Any

_FILE, _BACKWARD_FILE = "additive_attention.cu", "additive_attention_backward.cu"
_THREADS, _WARPS, _KEYS, _UNITS, _STEP = 256, 8, 64, 64, 32  # as the kernels have them
_SCORES_BYTES = 32 * 1024  # the most that the scores of a block take of shared memory; longer ones are kept where the weights will be


class _Tiles(NamedTuple):
    """A launch over all pairs of queries and keys."""

    macros: dict[str, Any]
    grid: tuple[int, int]
    in_shared: bool  # the scores of a block
    shared: int  # bytes


def _tiles(B: int, Tq: int, Tk: int, dtype: Any) -> _Tiles:
    """Few queries for each block where there are few blocks."""
    per_thread = 1 if Tq <= 4 else 4 if B * -(-Tq // 16) >= 2 * properties().multiprocessors else 2
    queries, row = 4 * per_thread, -(-Tk // 4) * 4
    in_shared = queries * row * dtype.itemsize <= _SCORES_BYTES
    reals = (_KEYS + queries) * (_UNITS + 4) + _UNITS + _UNITS // 4 + queries * _KEYS + queries * row * in_shared
    macros = {"QUERIES_OF_THREAD": per_thread, **macros_of(dtype)}
    return _Tiles(macros, (-(-Tq // queries), B), in_shared, dtype.itemsize * reals + 16)


def additive_attention_forward(
    q: Array, k: Array, v: Array, u: Array, *, mask: Array | None = None, key_lengths: Array | None = None, need_weights: bool = False
) -> tuple[Array, Array | None]:
    """y (B, Tq, Dv) and, where asked for, the weights (B, Tq, Tk)."""
    (B, Tq, D), Tk, Dv, dtype = q.shape, k.shape[1], v.shape[2], q.dtype
    tiles = _tiles(B, Tq, Tk, dtype)
    y = cupy.empty((B, Tq, Dv), dtype)
    weights = cupy.empty((B, Tq, Tk), dtype) if need_weights or not tiles.in_shared else None
    seen, bias, strides = _mask(mask, (B, Tq, Tk))
    arrays = y, weights, *map(contiguous, (q, k, v, u)), seen, bias
    arguments = *arrays, *map(int64, strides), on_device(key_lengths), Tq, Tk, D, Dv, int(tiles.in_shared)
    kernel(_FILE, "additive_forward", **tiles.macros)(tiles.grid, _THREADS, arguments, tiles.shared)
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
    (B, Tq, _), Tk, Dv = q.shape, k.shape[1], v.shape[2]
    q, k, v, weights = map(contiguous, (q, k, v, weights))
    dy, dweights = (None if a is None else contiguous(a) for a in (dy, dweights))
    ds, tiles, lengths = cupy.empty((B, Tq, Tk), q.dtype), _tiles(B, Tq, Tk, q.dtype), on_device(key_lengths)
    arguments = ds, weights, dweights, dy, v, lengths, Tq, Tk, Dv, int(tiles.in_shared)
    kernel(_FILE, "additive_dscores", **tiles.macros)(tiles.grid if Tk else 0, _THREADS, arguments, tiles.shared)
    dq, dk, dv, du = _all_pairs(q, k, u, ds, lengths, cupy.empty(q.shape, q.dtype), v.shape, weights, dy)
    return dq, dk, dv, du, ds


def scores_backward(q: Array, k: Array, u: Array, ds: Array, *, key_lengths: Array | None) -> tuple[Array, Array]:
    """dk and du of the scores u . tanh(q_i + k_j), from their gradient ds (B, Tq, Tk); all contiguous but u."""
    _, dk, _, du = _all_pairs(q, k, u, ds, on_device(key_lengths), None, (*k.shape[:2], 0), None, None)
    return dk, du


def _all_pairs(
    q: Array, k: Array, u: Array, ds: Array, lengths: Array | None, dq: Array | None, of_v: tuple[int, ...], weights: Array | None, dy: Array | None
) -> tuple[Array | None, Array, Array, Array]:
    """dq in place, dk, dv of shape `of_v`, and du."""
    (B, Tq, D), Tk, dtype = q.shape, k.shape[1], q.dtype
    if 0 in ds.shape:
        if dq is not None:
            dq.fill(0)
        return dq, cupy.zeros(k.shape, dtype), cupy.zeros(of_v, dtype), cupy.zeros(D, dtype)
    Dv = 0 if dy is None else of_v[2]
    per_warp = 8 if Tq <= 8 * _WARPS else 16
    units, columns, groups = -(-D // 32), -(-Dv // 32), -(-Tq // (_WARPS * per_warp))
    # more blocks than there are slices of units need planes of their own for dk and dv
    planes = max(1, min(groups, -(-2 * properties().multiprocessors // max(1, units * B))))
    both = cupy.empty((planes, B * Tk * (D + Dv)), dtype)
    du = cupy.empty((B * planes, D), dtype)
    arguments = dq, both, both[:, k.size :], du, q, k, contiguous(u), ds, weights, dy, lengths, Tq, Tk, D, Dv, units, int64(both.shape[1])
    shared = dtype.itemsize * _STEP * (32 * _WARPS + 32 + _WARPS * per_warp + 4) + 16
    backward = kernel(_BACKWARD_FILE, "additive_backward", QUERIES_OF_WARP=per_warp, **macros_of(dtype))
    backward((units + columns, B, planes), _THREADS, arguments, shared)
    flat = both[0] if planes == 1 else sum_of_parts(both)
    dk, dv = flat[: k.size].reshape(k.shape), flat[k.size :].reshape(of_v) if Dv or 0 in of_v else cupy.zeros(of_v, dtype)
    return dq, dk, dv, sum_of_parts(du) if D else cupy.zeros(0, dtype)
