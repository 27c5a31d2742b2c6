"""Attention of float32 arrays by the GPU's tensor cores (part of `cuda_attention.py`).

`attention_prepare.cu` lays the operands out, `attention_forward_mma.cu` and `attention_backward_mma.cu` multiply. `precision()` chooses the
operands of products: "medium" bfloat16, "high" tf32, "highest" three products of tf32 for each, as good as float32 but for the last bit or
two. Where an operand holds an infinity or a NaN, these kernels do nothing, and those that take any numbers do the work instead: nobody
waits for the answer, for they are launched behind and look for themselves.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import cupy

from fastseq.backends import cuda_launch
from fastseq.backends.cuda_attention_call import Call
from fastseq.backends.cuda_launch import kernel

Array = Any

_PREPARE_THREADS = 256
#: Columns of a tile: the widths that are compiled.
_DIMS = (32, 64, 96, 128, 192, 256)
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
#: The fastest of benchmarks/cuda/tune_attention.py on an H200 by side and FORMAT: for DIM up to 64, 128 and 256.
_SHAPES = {
    ("forward", 16): (_Shape(2, 4, 128, 2), _Shape(2, 4, 64, 2), _Shape(1, 8, 32, 1)),
    ("forward", 32): (_Shape(2, 4, 64, 2), _Shape(1, 4, 32, 2), _SMALL),
    ("forward", 96): (_Shape(1, 4, 32, 3), _Shape(1, 4, 32, 2), _SMALL),
    ("queries", 16): (_Shape(2, 4, 64, 2), _Shape(2, 4, 32, 2), _Shape(1, 8, 32, 1)),
    ("queries", 32): (_Shape(2, 4, 32, 2), _Shape(1, 8, 32, 1), _SMALL),
    ("queries", 96): (_Shape(1, 4, 32, 2), _Shape(1, 8, 32, 1), _SMALL),
    ("keys", 16): (_Shape(2, 4, 32, 2), _Shape(1, 4, 64, 2), _Shape(1, 8, 32, 1)),
    ("keys", 32): (_Shape(2, 4, 32, 2), _Shape(1, 8, 32, 1), _SMALL),
    ("keys", 96): (_Shape(1, 4, 32, 2), _Shape(1, 8, 32, 1), _SMALL),
}


def _shape(side: str, form: int, dim: int, extras: bool) -> _Shape:
    """How the kernel of a side, forward, queries or keys, is cut."""
    shape = _SHAPES[side, form][(dim > 64) + (dim > 128)]
    if not extras or dim > 128:
        return shape
    # Masks and dropout take registers, which fewer rows or columns leave free.
    return shape._replace(columns=max(shape.columns // 2, 32)) if side == "forward" else shape._replace(row_tiles=1, columns=32)


def _shared(side: str, shape: _Shape, form: int, dim: int) -> int:
    """Bytes that a block takes: rows that it keeps, two stages of those that stream by, and of what their weights are formed with."""
    rows = shape.rows * (1 if side == "forward" else 2) + 4 * shape.columns
    return rows * dim * (2 if form == 16 else 4) + (16 * shape.columns if side == "keys" else 0)


class _Cut(NamedTuple):
    """A kernel and how it is launched."""

    run: Any
    rows: int
    threads: int
    shared: int


@functools.cache
def _cut(device: int, side: str, form: int, dim: int, extras: bool, part: int = 1) -> _Cut:
    """part: attention_backward_mma.cu has it as SIDE, for keys."""
    shape = _shape(side, form, dim, extras)
    if _shared(side, shape, form, dim) > cuda_launch.properties().shared_per_block:
        shape = _SMALL
    macros: dict[str, Any] = {"REAL": "float", "FORMAT": form, "DIM": dim, "EXTRAS": int(extras)}
    macros |= {"ROW_TILES": shape.row_tiles, "WARPS": shape.warps, "COLUMNS": shape.columns, "BLOCKS": shape.blocks}
    if side == "forward":
        run = kernel("attention_forward_mma.cu", "attention_forward_mma", **macros)
    else:
        run = kernel("attention_backward_mma.cu", f"attention_backward_{side}_mma", SIDE=part if side == "keys" else 0, **macros)
    return _Cut(run, shape.rows, 32 * shape.warps, _shared(side, shape, form, dim))


class _Plan(NamedTuple):
    """Places for prepared operands, in one piece of memory, and what all kernels of a call share."""

    device: int
    form: int
    dim: int
    special: Any
    k: Any
    v: Any
    q: Any = None  # these for the backward pass alone
    dy: Any = None
    stats: Any = None


@functools.cache
def _widest(device: int, form: int) -> int:
    """The widest tile that fits a multiprocessor."""
    return max(dim for dim in _DIMS if _shared("queries", _SMALL, form, dim) <= cuda_launch.properties().shared_per_block)


def takes(call: Call) -> bool:
    """Whether these kernels are for this call: float32, heads that fit a tile, more than one of the other kernels' tiles."""
    if call.itemsize != 4 or call.rows == 0 or call.Tk == 0 or max(call.Tq, call.Tk) <= 64:
        return False
    return 0 < max(call.D, call.Dv) <= _widest(cupy.cuda.runtime.getDevice(), _FORMATS[cuda_launch.precision()])


@functools.cache
def _prepare(device: int, name: str, form: int, dim: int) -> Any:
    return kernel("attention_prepare.cu", name, REAL="float", FORMAT=form, DIM=dim)


def prepare(q: Array, k: Array, v: Array, call: Call, *, backward: bool) -> _Plan:
    """Keys, values and, for the backward pass, queries as tensor cores read them, and whether any of them is not finite."""
    form, widest = _FORMATS[cuda_launch.precision()], max(call.D, call.Dv)
    dim = next(n for n in _DIMS if n >= widest)
    n_q, n_k = call.tile_rows
    row = dim * (2 if form == 16 else 4)
    sizes = [256, n_k * row, n_k * row, *([n_q * row, n_q * row, n_q * 8] if backward else [])]
    memory = cupy.cuda.alloc(sum(sizes))
    places = [memory + start for start in itertools.accumulate(sizes, initial=0)][: len(sizes)]
    places[0].memset_async(0, 4)
    plan = _Plan(cupy.cuda.runtime.getDevice(), form, dim, *places)
    grid = -(-(max(n_q, n_k) if backward else n_k) * row // (16 * _PREPARE_THREADS)), 3 if backward else 2
    run = _prepare(plan.device, "attention_prepare", form, dim)
    run(grid, _PREPARE_THREADS, (plan.k, plan.v, plan.q, plan.special, k, v, q, call.problem))
    return plan


def _launch(side: str, plan: _Plan, call: Call, arrays: tuple[Any, ...], *, extras: bool = False, part: int = 1) -> None:
    cut = _cut(plan.device, side, plan.form, plan.dim, call.has_extras or extras, part)
    T, heads = (call.Tk, call.kv_heads) if side == "keys" else (call.Tq, call.heads)
    cut.run(call.B * heads * -(-T // cut.rows), cut.threads, (*arrays, plan.special, call.problem), cut.shared)


def forward(y: Array, lse: Array | None, q: Array, plan: _Plan, call: Call) -> None:
    """y and lse, if nothing special was found. A query that is not finite has its own row alone."""
    _launch("forward", plan, call, (y, lse, q, plan.k, plan.v))


def backward(gradients: tuple[Array, Array, Array, Array | None], y: Array, lse: Array, dy: Array, plan: _Plan, call: Call) -> None:
    """The gradients, if nothing special was found, in dy neither."""
    dq, dk, dv, dscores = gradients
    rows = call.tile_rows[0]
    run = _prepare(plan.device, "attention_prepare_gradient", plan.form, plan.dim)
    run(-(-rows * 32 // _PREPARE_THREADS), _PREPARE_THREADS, (plan.dy, plan.stats, plan.special, dy, y, lse, call.problem))
    inputs = plan.q, plan.k, plan.v, plan.dy, plan.stats
    for part in (1,) if plan.dim <= 128 else (2, 3):
        _launch("keys", plan, call, (dk, dv, *inputs), part=part)
    _launch("queries", plan, call, (dq, dscores, *inputs), extras=dscores is not None)
