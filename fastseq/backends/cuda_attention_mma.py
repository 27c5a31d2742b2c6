"""Attention of float32 arrays by the GPU's tensor cores (part of `cuda_attention.py`).

`attention_prepare.cu` lays the operands out, `attention_forward_mma.cu` and `attention_backward_mma.cu` multiply. `precision()` chooses the
operands of products: "medium" bfloat16, "high" tf32, "highest" three products of tf32 for each, as good as float32 but for the last bit or
two. Where an operand holds an infinity or a NaN, these kernels do nothing, and those that take any numbers do the work instead: nobody
waits for the answer, for they are launched behind and look for themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends import cuda_launch
from fastseq.backends.cuda_attention_call import Call, is_wide, strided
from fastseq.backends.cuda_launch import kernel

Array = Any

#: Rows of each head in what attention_prepare makes are a multiple of this, and so of every tile's rows.
_TILE = 128
_PREPARE_THREADS = 256
#: Columns of a tile: the widths that are compiled.
_DIMS = (32, 64, 96, 128)
_FORMATS = {"medium": 16, "high": 32, "highest": 96}  # attention_mma.cuh: FORMAT


class _Shape(NamedTuple):
    """How a kernel is cut: attention_mma.cuh has the names."""

    row_tiles: int
    warps: int
    columns: int
    blocks: int  # that a multiprocessor holds: registers are limited so

    @property
    def rows(self) -> int:
        return 16 * self.row_tiles * self.warps


#: For less shared memory than the others ask for.
_SMALL = _Shape(1, 4, 16, 1)
_WIDE, _NARROW, _ONE = _Shape(2, 4, 64, 2), _Shape(2, 4, 32, 2), _Shape(1, 8, 32, 1)


def _shape(side: str, form: int, dim: int, extras: bool) -> _Shape:
    """How the kernel of a side, forward, queries or keys, is cut: as many rows for each warp as its registers hold."""
    if dim > 64:
        return (_NARROW if extras else _WIDE) if form == 16 and side == "forward" else _ONE
    if side != "forward" and (form == 96 or extras):
        return _ONE
    return _WIDE if form == 16 and side == "forward" else _NARROW


class _Plan(NamedTuple):
    """Prepared operands and what all kernels of a call share."""

    form: int
    dim: int
    extras: bool
    rows_q: int
    rows_k: int
    q: Array
    k: Array
    v: Array
    special: Array


def takes(call: Call) -> bool:
    """Whether these kernels are for this call: float32, heads that fit a tile, more than one of the other kernels' tiles."""
    return call.dtype == np.float32 and 0 < max(call.D, call.Dv) <= _DIMS[-1] and call.rows > 0 and call.Tk > 0 and max(call.Tq, call.Tk) > 64


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def prepare(q: Array, k: Array, v: Array, call: Call) -> _Plan:
    """The operands as tensor cores read them, and whether any of them is not finite."""
    form = _FORMATS[cuda_launch.precision()]
    dim = next(n for n in _DIMS if n >= max(call.D, call.Dv))
    kind = np.uint16 if form == 16 else np.float32
    rows_q, rows_k = _up(call.Tq, _TILE), _up(call.Tk, _TILE)
    n_q, n_k = call.B * call.heads * rows_q, call.B * call.kv_heads * rows_k
    to_q, to_k, to_v = cupy.empty((n_q, dim), kind), cupy.empty((n_k, dim), kind), cupy.empty((n_k, dim), kind)
    special = cupy.zeros(1, np.int32)
    threads = max(n_q, n_k) * dim * np.dtype(kind).itemsize // 16
    wide = is_wide(q) + 2 * is_wide(k) + 4 * is_wide(v)
    sizes = call.B, call.heads, call.kv_heads, call.Tq, call.Tk, call.D, call.Dv, rows_q, rows_k
    run = kernel("attention_prepare.cu", "attention_prepare", REAL="float", FORMAT=form, DIM=dim)
    arrays = to_q, to_k, to_v, special, *strided(q), *strided(k), *strided(v)
    run((-(-threads // _PREPARE_THREADS), 3), _PREPARE_THREADS, (*arrays, *sizes, call.scale, wide))
    return _Plan(form, dim, call.has_extras, rows_q, rows_k, to_q, to_k, to_v, special)


def _launch(side: str, plan: _Plan, call: Call, outputs: tuple[Any, ...], inputs: tuple[Any, ...], wide: int) -> None:
    shape = _shape(side, plan.form, plan.dim, plan.extras)
    itemsize = 2 if plan.form == 16 else 4

    def shared(shape: _Shape) -> int:
        rows = shape.rows * (1 if side == "forward" else 2) + 4 * shape.columns
        return rows * plan.dim * itemsize + (16 * shape.columns if side == "keys" else 0)

    if shared(shape) > cuda_launch.properties().shared_per_block:
        shape = _SMALL
    macros: dict[str, Any] = {"REAL": "float", "FORMAT": plan.form, "DIM": plan.dim, "EXTRAS": int(plan.extras)}
    macros |= {"ROW_TILES": shape.row_tiles, "WARPS": shape.warps, "COLUMNS": shape.columns, "BLOCKS": shape.blocks}
    if side == "forward":
        run = kernel("attention_forward_mma.cu", "attention_forward_mma", **macros)
    else:
        run = kernel("attention_backward_mma.cu", f"attention_backward_{side}_mma", SIDE=int(side == "keys"), **macros)
    T, heads = (call.Tk, call.kv_heads) if side == "keys" else (call.Tq, call.heads)
    blocks = call.B * heads * -(-T // shape.rows)
    run(blocks, 32 * shape.warps, (*outputs, *inputs, plan.special, plan.rows_q, plan.rows_k, wide, *call.arguments), shared(shape))


def forward(y: Array, lse: Array | None, plan: _Plan, call: Call) -> None:
    """y and lse, if nothing special was found."""
    _launch("forward", plan, call, (*strided(y), lse), (plan.q, plan.k, plan.v), int(is_wide(y)))


def backward(gradients: tuple[Array, Array, Array, Array | None], y: Array, lse: Array, dy: Array, plan: _Plan, call: Call) -> None:
    """The gradients, if nothing special was found, in dy neither."""
    dq, dk, dv, dscores = gradients
    rows = call.B * call.heads * plan.rows_q
    to, stats = cupy.empty((rows, plan.dim), plan.q.dtype), cupy.empty((rows, 2), np.float32)
    run = kernel("attention_prepare.cu", "attention_prepare_gradient", REAL="float", FORMAT=plan.form, DIM=plan.dim)
    sizes = call.B, call.heads, call.Tq, call.Dv, plan.rows_q, is_wide(dy) + 2 * is_wide(y)
    run(-(-rows * 32 // _PREPARE_THREADS), _PREPARE_THREADS, (to, stats, plan.special, *strided(dy), *strided(y), lse, *sizes))
    inputs = plan.q, plan.k, plan.v, to, stats
    _launch("keys", plan, call, (*strided(dk), *strided(dv)), inputs, is_wide(dk) + 2 * is_wide(dv))
    _launch("queries", plan, call, (*strided(dq), dscores), inputs, int(is_wide(dq)))
