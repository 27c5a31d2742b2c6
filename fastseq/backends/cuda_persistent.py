"""LSTM and GRU through a whole sequence in one launch: W_hh in registers, the states exchanged by the blocks through L2.

`kernels/persistent_forward.cu` and `kernels/persistent_backward.cu` say how. This file chooses how the work is cut for a GPU, `geometry`,
and launches cooperatively: all blocks run at the same time, or the launch is refused with an exception.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends import cuda_launch

Array = Any

_GATES = {"lstm": 4, "gru": 3}
_ROWS = (1, 2, 4, 8, 16, 32, 48, 64)
_REGISTERS = 255  # of a thread; blocks have 256 threads or fewer
_RING = 4  # steps of partial sums in persistent_backward.cu
_STATE = 58  # registers for addresses, states and what is loaded early, beside those that are counted
# The model by which cuts are compared, of an H100: bytes per ns from L2 to a multiprocessor, operations of 2 flop per ns and multiprocessor
# by mma, bytes per ns of shared memory, ns of one thread's cell.
_L2, _MMA, _SHARED, _CELL = 43, 2000, 200, 100
_EXCHANGE, _BLOCK, _PART = 600, 15, 150  # ns for h to reach other blocks, for one more of them, for a partial dh of one more
_LOOK_FIRST = 6144  # bytes of h that a block may load in vain
_AT_ONCE = 8  # partial dh that a thread loads together


class Forward(NamedTuple):
    """How the forward pass is cut; the names are the kernel's macros."""

    rows: int
    shares: int
    sides: int
    steps: int
    tiles: int
    batch: int
    look_first: int
    groups: int  # of rows
    unit_blocks: int  # in each group
    units: int  # of a block
    shared: int  # bytes
    cost: float  # ns per step beside what is the same for all cuts

    @property
    def grid(self) -> int:
        """The number of blocks."""
        return self.groups * self.unit_blocks

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.shares * self.sides * 32


class Backward(NamedTuple):
    """How the backward pass is cut."""

    rows: int
    units: int
    warps: int
    tiles: int
    at_once: int
    groups: int
    unit_blocks: int
    column_blocks: int
    shared: int
    cost: float

    @property
    def grid(self) -> int:
        """The number of blocks."""
        return self.groups * self.unit_blocks * self.column_blocks

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.warps * 32

    @property
    def columns(self) -> int:
        """The units whose dh a block forms a part of."""
        return self.warps * self.tiles * 8


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def forward_cuts(cell: str, H: int, B: int, split: int, multiprocessors: int, shared: int) -> Iterator[Forward]:
    """All that fit a GPU."""
    gates = _GATES[cell]
    per_unit = 2 if cell == "lstm" else 8 / 3  # units of a tile
    for (shares, sides), rows in itertools.product(((8, 1), (4, 2), (2, 4), (1, 8)), _ROWS):
        steps, groups, m_tiles = 2 * _ceil(H, 32 * shares), _ceil(B, rows), _ceil(rows, 16)
        if rows > 1 and rows >= 2 * B:
            continue
        for tiles in range(gates % 2 + 2, 17, 2 if cell == "lstm" else 3):
            units = round(sides * tiles * per_unit)
            unit_blocks = _ceil(H, units)
            free = _REGISTERS - _STATE - 2 * steps * tiles * split - 4 * tiles
            batch = min(free // (split * (4 if rows <= 8 else 8)), steps // 2)
            alone, turned = unit_blocks == 1, rows <= 8
            needed = 2 * shares * rows * (units + (1 if turned else 4)) * 16 + _ceil(rows, 4) * 16
            if alone:
                needed += rows * split * (units // 2 + (192 - units * 2 % 128) % 128 // 4) * 4
            if units % 8 or (turned and tiles % gates) or units >= H + 8 or batch < min(2, steps // 2) or groups * unit_blocks > multiprocessors or needed > shared:
                continue
            products = shares * sides * steps * (_ceil(tiles, 2) if turned else tiles) * m_tiles * (3 if split == 2 else 1) * 2048
            threads = shares * sides * 32
            exchanged = sides * rows * H * 2 * split
            cost = 0 if alone else _EXCHANGE + exchanged / _L2 + _BLOCK * unit_blocks
            cost += products / _MMA + 2 * shares * rows * units * 16 / _SHARED
            cost += _ceil(rows * units, threads) * _CELL + 300 * (_ceil(steps // 2, batch) - 1)
            yield Forward(rows, shares, sides, steps, tiles, batch, int(exchanged > _LOOK_FIRST), groups, unit_blocks, units, needed, cost)


def backward_cuts(
    cell: str, H: int, B: int, split: int, multiprocessors: int, shared: int, most_registers: int = _REGISTERS
) -> Iterator[Backward]:
    """All that fit a GPU."""
    gates = _GATES[cell]
    for rows, units, tiles, warps in itertools.product(_ROWS, (32, 64, 128), (2, 4, 8), (4, 8)):
        columns, K, groups, m_tiles = warps * tiles * 8, gates * units, _ceil(B, rows), _ceil(rows, 16)
        if columns % units or (rows > 1 and rows >= 2 * B):
            continue
        unit_blocks, column_blocks, cells = _ceil(H, units), _ceil(H, columns), _ceil(rows * units // 4, warps * 32)
        registers = K // 8 * tiles * split + max(cells * 44 + 32, 4 * tiles + 8 * split) + _STATE - 20
        line = K + (192 - K * 2 % 128) % 128 // 2
        needed = 2 * split * 16 * m_tiles * line * 2 + 2 * 16 * m_tiles * 4
        alone, turned = unit_blocks * column_blocks == 1, rows <= 8
        if alone:
            needed += rows * (columns + 4) * 4
        if registers > most_registers or groups * unit_blocks * column_blocks > multiprocessors or needed > shared:
            continue
        products = warps * tiles // (2 if turned else 1) * K // 16 * m_tiles * (3 if split == 2 else 1) * 2048
        exchanged = rows * units * 28 + (0 if alone else rows * H * 4 + rows * columns * 4)
        cost = exchanged / _L2 + (0 if alone else _EXCHANGE + _PART * unit_blocks * cells) + products / _MMA + warps * m_tiles * 16 * K * 2 * split / _SHARED + cells * 4 * _CELL
        yield Backward(rows, units, warps, tiles, min(unit_blocks, _AT_ONCE), groups, unit_blocks, column_blocks, needed, cost)


@functools.cache
def geometry(cell: str, H: int, B: int, split: int, multiprocessors: int, shared: int) -> tuple[Forward, Backward] | None:
    """The cuts with the lowest cost, of them those with the fewest blocks; None where there is none."""
    sizes = (cell, H, B, split, multiprocessors, shared)
    best = [min(cuts(*sizes), key=lambda c: (c.cost, c.grid), default=None) for cuts in (forward_cuts, backward_cuts)]
    return None if None in best else (best[0], best[1])  # type: ignore[return-value]


def _split() -> int:
    """How many float16 numbers an operand is: two have 22 bits, one the 11 of tf32."""
    return 2 if cuda_launch.precision() == "highest" else 1


def _geometry(cell: str, H: int, B: int, split: int) -> tuple[Forward, Backward] | None:
    return _of_device(cupy.cuda.runtime.getDevice(), cell, H, B, split)


@functools.cache
def _of_device(device: int, cell: str, H: int, B: int, split: int) -> tuple[Forward, Backward] | None:
    found = cuda_launch.properties()
    if cell not in _GATES or min(H, B) < 1 or found.capability < 80:
        return None
    return geometry(cell, H, B, split, found.multiprocessors, found.shared_per_block)


def fits(cell: str, H: int, B: int, dtype: Any) -> bool:
    """Whether `forward` and `backward` can run: a float32 "lstm" or "gru" whose W_hh the GPU's registers hold."""
    return dtype == np.float32 and _geometry(cell, H, B, _split()) is not None


def _cuts(cell: str, H: int, B: int, split: int) -> tuple[Forward, Backward]:
    found = _geometry(cell, H, B, split)
    if found is None:
        raise ValueError(f"{cell}: H {H} and B {B} do not fit this GPU at once")
    return found


def forward_kernel(cell: str, split: int, cut: Forward, training: bool) -> cuda_launch.Kernel:
    """`persistent_forward` for a cut."""
    return _forward_kernel(cupy.cuda.runtime.getDevice(), cell, split, cut, training)


@functools.cache
def _forward_kernel(device: int, cell: str, split: int, cut: Forward, training: bool) -> cuda_launch.Kernel:
    return cuda_launch.kernel(
        "persistent_forward.cu", "persistent_forward", cooperative=True, CELL=int(cell == "gru"), SPLIT=split, TRAINING=int(training),
        ROWS=cut.rows, SHARES=cut.shares, SIDES=cut.sides, STEPS=cut.steps, TILES=cut.tiles, BATCH=cut.batch,
        LOOK_FIRST=cut.look_first, ALONE=int(cut.unit_blocks == 1),
    )  # fmt: skip


def backward_kernel(cell: str, split: int, cut: Backward) -> cuda_launch.Kernel:
    """`persistent_backward` for a cut."""
    return _backward_kernel(cupy.cuda.runtime.getDevice(), cell, split, cut)


@functools.cache
def _backward_kernel(device: int, cell: str, split: int, cut: Backward) -> cuda_launch.Kernel:
    return cuda_launch.kernel(
        "persistent_backward.cu", "persistent_backward", cooperative=True, CELL=int(cell == "gru"), SPLIT=split,
        ROWS=cut.rows, UNITS=cut.units, WARPS=cut.warps, TILES=cut.tiles, AT_ONCE=cut.at_once,
        ALONE=int(cut.unit_blocks * cut.column_blocks == 1),
    )  # fmt: skip


def forward(
    cell: str,
    xp: Array,
    w_hh: Array,
    b: tuple[Array, Array] | None,
    h_0: Array | None,
    c_0: Array | None,
    lengths: Array | None,
    reset: Array | None,
    reverse: bool,
    training: bool,
    *,
    cut: Forward | None = None,
) -> tuple[Array, Array, Array | None, Any]:
    """All steps of one direction of a layer without options.

    Parameters
    ----------
    cell : "lstm" or "gru" (reset after the product).
    xp : (T, B, G H), x W_ih^T without biases.
    w_hh : (G H, H).
    b : b_ih and b_hh (G H,), or None.
    h_0, c_0 : (B, H), or None for zeros.
    lengths : (B,) of int64, or None.
    reset : (T, B) of bool, or None.
    reverse : whether steps go from a row's end to its beginning.
    training : whether `backward` will follow.
    cut : another way to cut the work than the one that the model chooses.

    Returns
    -------
    y (T, B, H), h_n and c_n (B, H; None for a GRU), and what `backward` needs, or None.
    """
    T, B, _ = xp.shape
    H, lstm, split = w_hh.shape[1], cell == "lstm", _split()
    cut = cut or _cuts(cell, H, B, split)[0]
    y, h_n, c_n = cupy.empty((T, B, H), np.float32), cupy.empty((B, H), np.float32), cupy.empty((B, H), np.float32) if lstm else None
    gates = cupy.empty((T, B, 4, H), np.float32) if training else None
    cells = cupy.empty((T, B, H), np.float32) if training and lstm else None
    exchange = None
    if cut.unit_blocks > 1:
        exchange = cupy.empty(T * B * split * cut.unit_blocks * cut.units // 2, np.uint32)
        exchange.data.memset_async(0xFF, exchange.nbytes)
    arguments = (
        xp, w_hh, *(b or (None, None)), h_0, c_0, lengths, reset, exchange, y, h_n, c_n, gates, cells,
        T, B, H, cut.unit_blocks, int(reverse),
    )  # fmt: skip
    forward_kernel(cell, split, cut, training)(cut.grid, cut.threads, arguments, cut.shared)
    if not training:
        return y, h_n, c_n, None
    saved = SimpleNamespace(
        cell=cell, gates=gates, cells=cells, y=y, h_0=h_0, c_0=c_0, lengths=lengths, reset=reset, reverse=reverse, split=split
    )
    return y, h_n, c_n, saved


def backward(
    cell: str, saved: Any, w_hh: Array, dy: Array | None, dh_n: Array | None, dc_n: Array | None, *, cut: Backward | None = None
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of the gates' sums and of the initial states.

    Parameters
    ----------
    cell, saved, w_hh : as `forward` took and gave them.
    dy : (T, B, H), or None for zeros.
    dh_n, dc_n : (B, H), or None for zeros.
    cut : another way to cut the work than the one that the model chooses.

    Returns
    -------
    dgates and dgates_h (T, B, G H), of what is added to xp and of h W_hh^T (an LSTM's are one array); dh_0 and dc_0 (B, H; None for a GRU).
    """
    T, B, H = saved.y.shape
    lstm = cell == "lstm"
    cut = cut or _cuts(cell, H, B, saved.split)[1]
    dgates = cupy.empty((T, B, _GATES[cell] * H), np.float32)
    dgates_h = dgates if lstm else cupy.empty_like(dgates)
    dh_0, dc_0 = cupy.empty((B, H), np.float32), cupy.empty((B, H), np.float32) if lstm else None
    partial = None
    if cut.unit_blocks * cut.column_blocks > 1:
        partial = cupy.empty(_RING * cut.unit_blocks * B * cut.column_blocks * cut.columns, np.uint32)
        partial.data.memset_async(0, partial.nbytes)
    arguments = (
        saved.gates, saved.cells, saved.y, saved.h_0, saved.c_0, w_hh, saved.lengths, saved.reset, dy, dh_n, dc_n, partial,
        dgates, dgates_h, dh_0, dc_0, T, B, H, cut.unit_blocks, cut.column_blocks, int(saved.reverse),
    )  # fmt: skip
    backward_kernel(cell, saved.split, cut)(cut.grid, cut.threads, arguments, cut.shared)
    return dgates, dgates_h, dh_0, dc_0
