"""A recurrent layer's memory on the device, and the launches of its steps.

A plan holds one run of D directions side by side: the weights that the loop reads, x's products, states, and what backward needs. Its
addresses never change, so its loops are recorded as CUDA graphs; `cuda_recurrent_pool.py` keeps plans for the next call of the same
shape. The struct `Step` of kernels/recurrent.cuh says what each array is.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends.cuda_graph import Loop
from fastseq.backends.cuda_launch import Kernel, gemm, kernel, macros_of
from fastseq.backends.recurrent import CELLS, Weights, gates_of

Array = Any

_POINTERS = """q gates extra inner h k c stats dy dcells dstates direct dc dh dm dp dq dr dht dnc b_ih b_hh w_ch
ln_hh_weight ln_hh_bias ln_c_weight ln_c_bias flags drop keys""".split()
_INTS = "T B H P D first directions draw training keep_h keep_c".split()
#: What the loop reads of a direction's weights, in the order of the struct Gather.
_LOOP = ("w_hh", "b_ih", "b_hh", "w_hr", "w_ch", "ln_hh_weight", "ln_hh_bias", "ln_c_weight", "ln_c_bias")
_GATED = ("gru_before", "mut1", "mut2", "mut3")
_THREADS, _NORM_THREADS = 128, 256


def _step_type(dtype: Any) -> np.dtype:
    """The struct Step for kernels of this type."""
    fields = [(name, np.uint64) for name in (*_POINTERS, "below_h", "below_c")] + [("weights", np.int64)]
    fields += [("zone_h", dtype), ("zone_c", dtype)] + [(name, np.int32) for name in _INTS]
    return np.dtype(fields, align=True)


_STEP = {np.dtype(real).char: _step_type(real) for real in (np.float32, np.float64)}
_GATHER = np.dtype([("from", np.uint64, 9), ("count", np.int64, 9), ("to", np.int64, 9)])


class Shape(NamedTuple):
    """Everything that a plan's memory and launches depend on."""

    cell: str
    dtype: str
    D: int
    first: int  # the direction of the first of the D
    directions: int  # of the layer
    T: int
    B: int
    H: int
    P: int
    weights: tuple[str, ...]  # which there are
    flags: bool  # lengths or resets
    reset: bool
    drop: bool  # recurrent dropout's masks are drawn
    zone_h: float
    zone_c: float
    draw: bool
    training: bool
    cells: bool  # every c is kept
    stream: bool  # one state for all steps


class Plan:
    """The memory and the loops of one shape; an array that it has no use for is None."""

    q: Array
    gates: Array
    h: Array
    c: Array
    k: Array
    extra: Array
    inner: Array
    stats: Array
    x_sums: Array
    x_stats: Array
    projected_h: Array
    flags: Array
    drop: Array
    keys: Array

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.dtype = np.dtype(shape.dtype)
        self.bytes = 0
        self.gated = shape.cell in _GATED
        self.normed = "ln_hh_weight" in shape.weights
        self.projected = shape.cell == "lstm" and "w_hr" in shape.weights
        self._struct = np.zeros(1, _STEP[self.dtype.char])
        self.struct = plain_bytes(self._struct)
        self.forward_loop = Loop()
        self.backward_loops: dict[Any, Loop] = {}
        self.points_to: tuple[Any, ...] = ()
        self._take_memory()
        self._fill_struct()
        macros = macros_of(self.dtype)
        cells = "recurrent_norm.cu" if self.normed else "recurrent_gated.cu" if self.gated else "recurrent_cells.cu"
        names = ["forward", "backward"]
        names += ["forward_reset", "backward_reset"] if self.gated else ["norm_rows", "norm_rows_backward"] if self.normed else []
        self._cell = {name: kernel(cells, name, CELL=CELLS.index(shape.cell), **macros) for name in names}

    # ---------------------------------------------------------------- memory

    def empty(self, *sizes: int, dtype: Any = None) -> Array:
        """Memory that counts as the plan's."""
        found = cupy.empty(sizes, self.dtype if dtype is None else dtype)
        self.bytes += found.nbytes
        return found

    def _take_memory(self) -> None:
        s = self.shape
        D, T, B, H, P, rows = s.D, s.T, s.B, s.H, s.P, gates_of(s.cell) * s.H
        kept = (D, T, B) if s.training else (D, B)
        self.gates = self.empty(D, T, B, rows)
        self.q = self.empty(*(kept if self.normed else (D, B)), rows)
        self.h = self.empty(*((D, B) if s.stream else (D, T + 1, B)), P)
        self.c = self.empty(*((D, T + 1, B) if s.cells else (D, B)), H) if s.cell == "lstm" else None
        self.k = self.empty(*kept, P) if s.reset or s.drop else None
        needs_extra = self.gated or self.projected or (s.cell == "gru" and s.training and not self.normed)
        self.extra = self.empty(*kept, H) if needs_extra else None
        self.inner = self.empty(*kept, H) if s.cell == "mut3" or (s.cell == "mut1" and s.training) else None
        self.stats = self.empty(D, T, B, 4) if self.normed and s.training else None
        self.x_sums = self.empty(D, T, B, rows) if self.normed and s.training else None  # below layer norm
        self.x_stats = self.empty(D, T, B, 2) if self.normed else None
        self.projected_h = self.empty(D, B, P) if self.projected else None
        self.flags = self.empty(D, T, B, dtype=np.uint8) if s.flags else None
        self.drop = self.empty(D, B, P) if s.drop else None
        self.keys = self.empty(2 * D + 1, dtype=np.uint64) if s.draw and (s.zone_h or s.zone_c) else None
        self._take_weights(rows)

    def _take_weights(self, rows: int) -> None:
        s = self.shape
        sizes = {"w_hh": (rows, s.P), "w_hr": (s.P, s.H), "w_ch": (3, s.H), "ln_c_weight": (s.H,), "ln_c_bias": (s.H,)}
        self._gather = np.zeros(1, _GATHER)
        at, views = 0, {}
        for i, name in enumerate(_LOOP):
            if name in s.weights:
                shape = sizes.get(name, (rows,))
                views[name] = at, shape
                self._gather["count"][0, i], self._gather["to"][0, i] = np.prod(shape), at
                at += -(-int(np.prod(shape)) // 4) * 4  # products like 16 bytes
        self._most = int(self._gather["count"].max())
        self._gather_bytes = plain_bytes(self._gather)
        self._weights = self.empty(s.D, at)
        self.weights = {name: self._over(self._weights, place, shape) for name, (place, shape) in views.items()}

    def _over(self, memory: Array, place: int, shape: tuple[int, ...]) -> Array:
        """An array (D, *shape) that begins `place` elements behind the beginning of each direction's part."""
        size = self.dtype.itemsize
        inner = [size * int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        return cupy.ndarray((len(memory), *shape), self.dtype, memory.data + place * size, (memory.strides[0], *inner))

    def _fill_struct(self) -> None:
        s, struct = self.shape, self._struct
        for name in ("q", "gates", "extra", "inner", "h", "k", "c", "stats", "flags", "drop", "keys"):
            self.point(name, getattr(self, name))
        for name, array in self.weights.items():
            if name in _POINTERS:
                self.point(name, array)
        struct["weights"] = self._weights.shape[1]
        struct["zone_h"], struct["zone_c"] = s.zone_h, s.zone_c
        struct["below_h"], struct["below_c"] = below(s.zone_h), below(s.zone_c)
        for name in ("T", "B", "H", "P", "D", "first", "directions", "draw", "training"):
            struct[name] = getattr(s, name)
        struct["keep_h"], struct["keep_c"] = not s.stream, s.cells

    def point(self, name: str, array: Array | None) -> None:
        """A pointer of the struct."""
        self._struct[name] = 0 if array is None else array.data.ptr

    # ---------------------------------------------------------------- launches

    def end(self, name: str) -> Kernel:
        """A kernel of those around the loop."""
        return end_kernel(name, self.dtype, self.shape.cell)

    def by_units(self, function: Kernel, rows: int, width: int, *arguments: Any) -> None:
        """A launch with a thread for each row and unit; the struct is its first argument."""
        by_units(function, rows, width, (self.struct, *arguments))

    def by_rows(self, name: str, rows: int, arguments: tuple[Any, ...]) -> None:
        """A launch of one of layer norm's kernels, with a block for each row."""
        self._cell[name](rows, _NORM_THREADS, arguments, 2 * _NORM_THREADS // 32 * self.dtype.itemsize)

    def backward_loop(self, *variant: bool) -> Loop:
        """The loop with or without gradients of all c, and with or without those of all states."""
        return self.backward_loops.setdefault(variant, Loop())

    def _launch(self, name: str, s: int) -> None:
        shape = self.shape
        if self.normed:
            self.by_rows(name, shape.D * shape.B, (self.struct, s))
        else:
            self.by_units(self._cell[name], shape.D * shape.B, shape.H, s)

    def load_weights(self, directions: tuple[Weights, ...]) -> None:
        """Copies what the loop reads."""
        for d, w in enumerate(directions):
            self._gather["from"][0] = [0 if getattr(w, n) is None else getattr(w, n).data.ptr for n in _LOOP]
            self.end("gather")((min(-(-self._most // 256), 1024), len(_LOOP)), 256, (self._gather_bytes, self._weights[d]))

    def load_inputs(self, directions: tuple[Weights, ...], x: Array) -> None:
        """x (T, B, I) times W_ih^T of all steps, or layer norm of it."""
        rows = self.shape.T * self.shape.B
        x = x.reshape(rows, x.shape[2])
        for d, w in enumerate(directions):
            gates = self.gates[d].reshape(rows, -1)
            sums = gates if self.x_sums is None else self.x_sums[d].reshape(rows, -1)
            gemm(x, w.w_ih.T, sums)
            if self.normed:
                self.by_rows("norm_rows", rows, (gates, sums, self.x_stats[d], w.ln_ih_weight, w.ln_ih_bias, gates.shape[1]))

    # ---------------------------------------------------------------- where a step's operands lie

    def at(self, array: Array, s: int, shift: int = 0) -> Array:
        """Of an array (D, T, ...) each direction's time of step s, as a matrix, or with two directions as (2, rows, columns).

        shift 1: of an array (D, T + 1, ...) the state before it.
        """
        D, T = self.shape.D, self.shape.T
        times = [T - 1 - s + shift if d + self.shape.first else s for d in range(D)]
        if D == 1:
            return array[0, times[0]]
        step, per_time = array.strides[0] + (times[1] - times[0]) * array.strides[1], array.strides[1]
        return cupy.ndarray((2, *array.shape[2:]), array.dtype, array.data + times[0] * per_time, (step, *array.strides[2:]))

    def _all(self, array: Array) -> Array:
        """An array (D, ...) of one step: as `at` gives it."""
        return array[0] if self.shape.D == 1 else array

    def operand(self, s: int) -> Array:
        """k of step s."""
        if self.k is not None:
            return self.at(self.k, s) if self.shape.training else self._all(self.k)
        return self._all(self.h) if self.shape.stream else self.at(self.h, s, 1)

    def kept(self, array: Array, s: int) -> Array:
        """What is kept for backward, or the one place."""
        return self.at(array, s) if self.shape.training else self._all(array)

    def operands(self, d: int) -> Array:
        """k of all steps, (T, B, P)."""
        if self.k is not None:
            return self.k[d]
        return self.h[d, 1:] if d + self.shape.first else self.h[d, :-1]

    def _weight(self, name: str, rows: slice = slice(None)) -> Array:
        w = self.weights[name][:, rows]
        return w[0] if self.shape.D == 1 else w

    # ---------------------------------------------------------------- one step

    def forward_step(self, s: int) -> None:
        """From the states before step s to those after it."""
        if self.gated:
            self._gated_forward(s)
            return
        q = self.kept(self.q, s) if self.normed else self._all(self.q)
        gemm(self.operand(s), transposed(self._weight("w_hh")), q)
        self._launch("forward", s)
        if self.projected:
            gemm(self.kept(self.extra, s), transposed(self._weight("w_hr")), self._all(self.projected_h))
            self.by_units(self.end("project"), self.shape.D * self.shape.B, self.shape.P, self.projected_h, s)

    def _gated_forward(self, s: int) -> None:
        H, q = self.shape.H, self._all(self.q)
        together = H if self.shape.cell in ("mut1", "mut3") else 2 * H  # r, and z where it sees k too
        gemm(self.operand(s), transposed(self._weight("w_hh", slice(0, together))), q[..., :together])
        if self.shape.cell == "mut3":
            gemm(self.kept(self.inner, s), transposed(self._weight("w_hh", slice(H, 2 * H))), q[..., H : 2 * H])
        self._launch("forward_reset", s)
        gemm(self.kept(self.extra, s), transposed(self._weight("w_hh", slice(2 * H, 3 * H))), q[..., 2 * H :])
        self._launch("forward", s)

    def backward_step(self, s: int, w: Gradients) -> None:
        """From dL/d(the states after step s) to those before it."""
        if self.gated:
            self._gated_backward(s, w)
            return
        if self.projected:
            self.by_units(self.end("project_back"), self.shape.D * self.shape.B, self.shape.P, s)
            gemm(self.at(w.dht, s), self._weight("w_hr"), self._all(w.dm))
        self._launch("backward", s)
        gemm(self.at(w.dr, s), self._weight("w_hh"), self._all(w.dh))

    def _gated_backward(self, s: int, w: Gradients) -> None:
        H, cell = self.shape.H, self.shape.cell
        self._launch("backward", s)
        dq = self.at(w.dq, s)
        gemm(dq[..., 2 * H :], self._weight("w_hh", slice(2 * H, 3 * H)), self._all(w.dm[0]))
        self._launch("backward_reset", s)
        together = H if cell in ("mut1", "mut3") else 2 * H
        gemm(dq[..., :together], self._weight("w_hh", slice(0, together)), self._all(w.dh))
        if cell == "mut3":
            gemm(dq[..., H : 2 * H], self._weight("w_hh", slice(H, 2 * H)), self._all(w.dm[1]))


class Gradients:
    """What backward writes on its way through a plan's steps."""

    dc: Array
    dm: Array
    dht: Array
    dnc: Array
    dcells: Array

    def __init__(self, plan: Plan) -> None:
        s, empty = plan.shape, plan.empty
        rows = gates_of(s.cell) * s.H
        lstm = s.cell == "lstm"
        self.dy = empty(s.T, s.B, s.directions * s.P)
        self.direct, self.dh = empty(s.D, s.B, s.P), empty(s.D, s.B, s.P)
        self.dc = empty(s.D, s.B, s.H) if lstm else None
        self.dp = empty(s.D, s.T, s.B, rows)
        apart = s.cell in ("gru", "mut1")  # x's sums have other gradients than h's
        self.dq = empty(s.D, s.T, s.B, rows) if apart else self.dp
        self.dr = empty(s.D, s.T, s.B, rows) if plan.normed else self.dq
        self.dm = empty(s.D, s.B, s.H) if plan.projected else empty(2, s.D, s.B, s.H) if plan.gated else None
        self.dht = empty(s.D, s.T, s.B, s.P) if plan.projected else None
        self.dnc = empty(s.D, s.T, s.B, s.H) if plan.normed and lstm else None
        self.dcells = empty(s.D, s.T, s.B, s.H) if lstm else None
        self.dstates = empty(s.D, s.T, s.B, s.P)

    def point(self, plan: Plan, dcells: bool, dstates: bool) -> None:
        """Sets the plan's pointers."""
        if plan.points_to == (self, dcells, dstates):
            return
        plan.points_to = self, dcells, dstates
        for name in ("dy", "direct", "dh", "dc", "dp", "dq", "dr", "dm", "dht", "dnc"):
            plan.point(name, getattr(self, name))
        plan.point("dcells", self.dcells if dcells else None)
        plan.point("dstates", self.dstates if dstates else None)


def plain_bytes(struct: Any) -> Any:
    """The same memory as CuPy takes it for a kernel's argument: a type with fields is described anew in every launch, for many microseconds."""
    return struct.view(f"V{struct.itemsize}")


def end_kernel(name: str, dtype: Any, cell: str = "lstm") -> Kernel:
    """A kernel of kernels/recurrent_ends.cu; of the cells it knows MUT3, whose second operand it makes."""
    return _end_kernel(cupy.cuda.runtime.getDevice(), name, dtype, "mut3" if cell == "mut3" else "lstm")


@functools.cache
def _end_kernel(device: int, name: str, dtype: Any, cell: str) -> Kernel:
    return kernel("recurrent_ends.cu", name, CELL=CELLS.index(cell), **macros_of(dtype))


def by_units(function: Kernel, rows: int, width: int, arguments: tuple[Any, ...]) -> None:
    """A launch with a thread for each row and unit."""
    threads = min(_THREADS, -(-width // 32) * 32)
    function(rows * -(-width // threads), threads, arguments)


def transposed(x: Array) -> Array:
    """A matrix's transpose, or those of a batch of them."""
    return x.swapaxes(-1, -2)


def below(p: float) -> int:
    """The random words below which an event of probability p happens."""
    return int(np.ceil(p * 2.0**32))
