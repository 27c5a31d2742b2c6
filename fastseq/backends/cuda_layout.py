"""How the kernels that are bound by bytes are laid over a GPU: elements, rows and columns on blocks and threads.

It depends on shapes and dtypes alone, not on the device, and so does the order of every sum.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import cupy

from fastseq.backends.cuda_launch import Kernel, contiguous, kernel, macros_of

Array = Any

#: Threads of a block, where nothing else asks for another number.
THREADS = 256
#: Bytes of an access.
_ACCESS = 16
#: A column kernel's block: a warp along the columns, and so many rows at a time; of one that adds up few rows whole, more of them.
_COLUMN_ROWS, _WHOLE_ROWS = 8, 32
#: Blocks that keep a GPU of the H100's size busy with a reduction, some for each of its multiprocessors.
_BLOCKS = 512
#: Threads of a row and the bytes of it that one may keep in registers, shortest rows first; of the last, in all arrays together. Two of the
#: largest blocks share a multiprocessor: one loads while the other waits for its sums.
_ROWS = ((32, 128), (256, 64), (512, 128))


def aligned(x: Array) -> Array:
    """x with its elements in order from a multiple of 16 bytes on; itself where it is so."""
    x = contiguous(x)
    return x if x.size == 0 or x.data.ptr % _ACCESS == 0 else x.copy()


def blocks_of(n: int, itemsize: int) -> int:
    """Blocks of THREADS threads with one access each for n elements."""
    return -(-n * itemsize // (_ACCESS * THREADS))


def access_width(N: int, itemsize: int) -> int:
    """Elements of an access to rows of N: the greatest power of two that N is a multiple of, within 16 bytes."""
    width = _ACCESS // itemsize
    while N % width:
        width //= 2
    return width


@dataclass(frozen=True, eq=False)
class _Layout:
    """What a kernel is compiled with and launched with; one for each shape and dtype that has been seen."""

    macros: dict[str, Any]
    block: tuple[int, int]
    shared: int  # bytes
    kernels: dict[tuple[str, str, int], Kernel] = field(default_factory=dict, init=False)  # by file, name and device

    def kernel(self, file: str, name: str) -> Kernel:
        """The function of kernels/<file> for this layout."""
        key = file, name, cupy.cuda.runtime.getDevice()
        found = self.kernels.get(key)
        if found is None:
            found = self.kernels[key] = kernel(file, name, **self.macros)
        return found


@dataclass(frozen=True, eq=False)
class RowLayout(_Layout):
    """For rows.cuh: a block is the threads of a row by rows."""

    kept: bool  # in registers

    def blocks(self, rows: int) -> int:
        """For so many rows."""
        return -(-rows // self.block[1])


@functools.cache
def row_layout(N: int, dtype: Any, arrays: int = 1) -> RowLayout:
    """For rows of N elements; `arrays`: into how many the registers are to be shared."""
    width = access_width(N, dtype.itemsize)
    for threads, kept in _ROWS:
        accesses = -(-N // (threads * width))
        if accesses * width * dtype.itemsize * (arrays if threads == _ROWS[-1][0] else 1) <= kept:
            packs = accesses if accesses <= 2 else accesses + accesses % 2 if accesses <= 8 else -(-accesses // 8) * 8  # few are compiled
            break
    else:
        packs = 0
    macros = macros_of(dtype) | {"ROW": threads, "W": width, "PACKS": packs}
    return RowLayout(macros, (threads, THREADS // threads or 1), 64 * dtype.itemsize, packs > 0)


@dataclass(frozen=True, eq=False)
class ColumnLayout(_Layout):
    """For columns.cuh: a block is threads along the columns by threads along the rows."""

    grid: tuple[int, int]
    rows: int  # of a block


@functools.lru_cache(1 << 10)
def column_layout(M: int, N: int, dtype: Any, *, whole: bool = False) -> ColumnLayout:
    """For M rows of N elements in parts, of which each makes one sum of a column; `whole`: in one, by more threads."""
    turns = _WHOLE_ROWS if whole else _COLUMN_ROWS
    width = access_width(N, dtype.itemsize)
    across = -(-N // (32 * width))
    parts = 1 if whole else max(1, min(-(-M // 64), _BLOCKS // max(across, 1)))
    rows = -(-M // (parts * turns)) * turns
    parts = -(-M // rows) if M else 0
    macros = macros_of(dtype) | {"W": width, "COLUMN_ROWS": turns}
    return ColumnLayout(macros, (32, turns), 32 * turns * width * dtype.itemsize, (across, parts), rows)
