"""The attention decoder: the part of `cuda.py` that has it. Its steps are in `kernels/attention_decoder_forward.cu` and `..._backward.cu`.

A step's phases depend on each other across the whole batch, so all steps run in one cooperative launch whose blocks meet at barriers.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends import cuda_decoder_cut as cut
from fastseq.backends.attention_decoder import DecoderWeights
from fastseq.backends.cuda_additive import on_device, scores_backward
from fastseq.backends.cuda_decoder_cut import THREADS, Sizes
from fastseq.backends.cuda_launch import REFUSALS, contiguous, gemm, int64, kernel, macros_of, properties
from fastseq.backends.cuda_matmul import bias_backward
from fastseq.backends.recurrent import gates_of

Array = Any

_WARPS = 8  # of a block
_PHASES = (1, 2, 4, 8)


class Packed(NamedTuple):
    """A decoder's weights; the kernels read them as they are."""

    cell: str
    weights: DecoderWeights


class _Cache(NamedTuple):
    """What backward needs of a forward call."""

    sizes: Sizes
    packed: Packed
    x: Array
    keys: Array | None
    near: tuple[Array | None, Array | None]  # exponentials of the keys, and which are far
    memory: Array
    h_0: Array | None
    c_0: Array | None
    scale: float
    lengths: tuple[Array | None, Array | None]  # of x and of the memory
    outputs: Array
    both: Array  # (T, B, H + M): [s; c]
    cells: Array | None
    gates: Array
    queries: Array | None  # (B, T, A)
    weights: Array


def attention_decoder_pack(cell: str, weights: DecoderWeights, *, packed: Any = None) -> Any:
    """A decoder as the other functions take it; `packed` itself where it is of the same arrays."""
    if packed is not None and packed.cell == cell and all(new is old for new, old in zip(weights, packed.weights, strict=True)):
        return packed
    return Packed(cell, weights)


# ---------------------------------------------------------------- launches


class _Loop:
    """The launches of a decoder's steps: how they are cut, and the kernel's variant."""

    def __init__(self, direction: str, packed: Packed, sizes: Sizes, dtype: Any) -> None:
        gates, weights, self.item = gates_of(packed.cell), packed.weights, dtype.itemsize
        sizes = sizes._replace(T=0, I=0)  # on which nothing here depends
        self.problem = cut.Problem(direction, gates, sizes, self.item, weights.w_query is not None, weights.u is not None)
        self.cut, self.layout = cut.fastest(cupy.cuda.runtime.getDevice(), self.problem)
        self.file, self.name = f"attention_decoder_{direction}.cu", f"decoder_{direction}"
        self.macros = {"GATES": gates, "ROWS": self.cut.rows, "UNITS": self.cut.units, **macros_of(dtype)}

    def __call__(self, steps: range, arguments: tuple[Any, ...], scale: Any) -> None:
        """All steps by one launch, or, where blocks cannot wait for each other, by one for each phase; to the same bits."""
        arguments = *arguments, self.layout.scores_in_shared, self.cut.parts, scale
        if cooperative():
            try:
                self.whole(steps, arguments, sum(_PHASES))
                return
            except REFUSALS as error:
                if "COOPERATIVE_LAUNCH_TOO_LARGE" not in str(error):  # other programs have some of the multiprocessors
                    raise
                message = f"cuda: no cooperative launch for an attention decoder: launch by launch for every phase; {error}"
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        # a launch of one phase keeps and holds nothing: its stages have the weights
        bare = cut.layout(self.problem, self.cut._replace(keeps=False, holds=False))
        single = kernel(self.file, self.name, **self.macros)
        for t, phase in itertools.product(steps, _PHASES):
            single(bare.tasks, THREADS, (*arguments, bare.stage, 0, -1, -1, t, t, phase, None), self.item * bare.reals)

    def whole(self, steps: range, arguments: tuple[Any, ...], phases: int) -> None:
        """These phases of all steps, by one launch."""
        function, shared = kernel(self.file, self.name, cooperative=True, **self.macros), self.item * self.layout.reals
        blocks = min(self.layout.tasks, properties().multiprocessors)
        places = self.layout.stage, self.layout.keep_at, self.layout.hold_first, self.layout.hold_second
        function(blocks, THREADS, (*arguments, *places, steps[0], steps[-1], phases, cupy.zeros(1, np.uint32)), shared)

    def small(self, name: str, size: int, arguments: tuple[Any, ...]) -> None:
        """One of the kernels that have a thread for each element."""
        kernel(self.file, name, **self.macros)(-(-size // THREADS), THREADS, (*arguments, int64(size)))


def cooperative() -> bool:
    """Whether the device launches kernels whose blocks wait for each other."""
    return _cooperative(cupy.cuda.runtime.getDevice())


@functools.cache
def _cooperative(device: int) -> bool:
    return bool(cupy.cuda.Device(device).attributes["CooperativeLaunch"])


# ---------------------------------------------------------------- forward


def attention_decoder_forward(
    x: Array,
    keys: Array | None,
    memory: Array,
    h_0: Array | None,
    c_0: Array | None,
    packed: Any,
    *,
    scale: float = 1.0,
    lengths: Array | None = None,
    memory_lengths: Array | None = None,
    training: bool = False,
) -> tuple[Array, Array, Array | None, Array, Any]:
    """Outputs (T, B, H), the last h and c (B, H), attention weights (T, B, S), and, in training, what backward needs."""
    w, lstm, dtype = DecoderWeights(*[None if a is None else contiguous(a) for a in packed.weights]), packed.cell == "lstm", x.dtype
    (T, B, I), (_, S, M), H = x.shape, memory.shape, w.w_hh.shape[1]
    A = M if w.w_query is None else len(w.w_query)
    sizes = Sizes(T, B, S, I, H, M, A)
    x, memory, keys = contiguous(x), contiguous(memory), None if keys is None else contiguous(keys)
    start = [None if a is None else contiguous(a) for a in (h_0, c_0)]
    both, weights = cupy.empty((T, B, H + M), dtype), cupy.empty((T, B, S), dtype)
    cells = cupy.empty((T, B, H), dtype) if lstm else None
    gates = cupy.empty((T, B, 4 * H), dtype) if training else None
    queries = None if w.w_query is None else cupy.empty((B, T, A), dtype)
    on = on_device(lengths), on_device(memory_lengths)
    near: tuple[Array | None, Array | None] = (None, None)
    loop = _Loop("forward", packed, sizes, dtype)
    if T and B and H:
        # x's part of the sums of all steps
        x_sums = gemm(x.reshape(T * B, I), w.w_ih[:, :I].T)
        if w.u is not None:
            near = cupy.empty((B, S, A), dtype), cupy.empty((B, S), np.uint8)
            kernel(loop.file, "decoder_near", **loop.macros)(-(-B * S // _WARPS), THREADS, (*near, keys, w.u, B * S, A))
        results = both, cells, gates, queries, weights, cupy.empty((B, S), dtype)
        inputs = x_sums, *near, keys, memory, w.u, w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_query, *start
        loop(range(T), (*results, *inputs, *on, *sizes), dtype.type(scale))
        h, c = both[-1, :, :H].copy(), None if cells is None else cells[-1].copy()
    else:
        h, c = (a.copy() if a is not None else cupy.zeros((B, H), dtype) for a in start)
        c = c if lstm else None
    # o = tanh(W_out [s; c] + b_out)
    outputs = gemm(both.reshape(T * B, H + M), w.w_out.T).reshape(T, B, H)
    loop.small("decoder_outputs", outputs.size, (outputs, w.b_out, on[0], B, H))
    if not training:
        return outputs, h, c, weights, None
    of_call = Packed(packed.cell, w)
    return outputs, h, c, weights, _Cache(
        sizes, of_call, x, keys, near, memory, start[0], start[1], scale, on, outputs, both, cells, gates, queries, weights)  # fmt: skip


# ---------------------------------------------------------------- backward


def attention_decoder_backward(
    cache: Any, doutputs: Array | None, dh_n: Array | None, dc_n: Array | None, dweights: Array | None
) -> dict[str, Any]:
    """Backpropagation through time: dx, dkeys (None without keys), dmemory, dh_0, dc_0 and weights (`DecoderWeights`)."""
    (T, B, S, _, H, M, A), w, dtype = cache.sizes, cache.packed.weights, cache.x.dtype
    lstm, loop, N = cache.packed.cell == "lstm", _Loop("backward", cache.packed, cache.sizes, dtype), T * B
    doutputs, dh_n, dweights = (None if a is None else contiguous(a) for a in (doutputs, dh_n, dweights))
    dc = None if not lstm else cupy.zeros((B, H), dtype) if dc_n is None else dc_n.copy(order="C")
    if not N or not H:
        return _nothing(cache, dh_n, dc)
    # o = tanh(sum)
    dsum = cupy.empty((N, H), dtype)
    loop.small("decoder_doutputs", dsum.size, (dsum, cache.outputs, doutputs, cache.lengths[0], B, H))
    # sum = W_out [s; c] + b_out
    dboth = gemm(dsum, w.w_out)
    dsums, dqueries, dscores = cupy.empty((N, 4 * H), dtype), cupy.empty((N, A), dtype), cupy.empty((B, T, S), dtype)
    dh, direct, dh_0 = (cupy.empty((B, H), dtype) for _ in range(3))
    found = dboth, dsums, dqueries, dscores, cupy.empty((B, S), dtype), dh, direct, dc, dh_0
    saved = cache.both, cache.cells, cache.gates, cache.queries, cache.weights, *cache.near, cache.keys, cache.memory
    arguments = *found, dh_n, dweights, *saved, w.u, w.w_ih, w.w_hh, w.w_query, cache.h_0, cache.c_0, *cache.lengths, *cache.sizes
    loop(range(T - 1, -2, -1), arguments, dtype.type(cache.scale))
    dmemory = gemm(cache.weights.transpose(1, 2, 0), dboth.reshape(T, B, H + M)[:, :, H:].transpose(1, 0, 2))
    dkeys = du = None
    if w.u is None:
        _dot_backward(dmemory, dscores, cache)
    else:
        dkeys, du = scores_backward(cache.queries, cache.keys, w.u, dscores, key_lengths=cache.lengths[1])
    dx, of_cell = _sums_backward(cache, dsums, loop)
    dw_query = None if w.w_query is None else _before(cache, dqueries, cupy.empty((A, H), dtype))
    of_all = DecoderWeights(*of_cell, gemm(dsum.T, cache.both.reshape(N, H + M)), bias_backward(dsum), dw_query, du)
    return {"dx": dx, "dkeys": dkeys, "dmemory": dmemory, "dh_0": dh_0, "dc_0": dc, "weights": of_all}


def _sums_backward(cache: _Cache, dsums: Array, loop: _Loop) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """dx, and the gradients of the cell's weights, from those of its sums."""
    (T, B, _, I, H, M, _), w, N = cache.sizes, cache.packed.weights, len(dsums)
    GH, x, both = len(w.w_ih), cache.x, cache.both.reshape(N, H + M)
    if cache.lengths[0] is not None:
        x = cupy.empty_like(x)
        loop.small("decoder_cleared", x.size, (x, cache.x, cache.lengths[0], B, I))
    of_input = dsums[:, :GH]  # a GRU has its n's twice, for the input and for the state
    dx = gemm(of_input, w.w_ih[:, :I]).reshape(T, B, I)
    dw_ih, dw_hh = cupy.empty_like(w.w_ih), cupy.empty_like(w.w_hh)
    gemm(of_input.T, x.reshape(N, I), dw_ih[:, :I])
    gemm(of_input.T, both[:, H:], dw_ih[:, I:])
    db = bias_backward(dsums)
    if GH == 4 * H:
        _before(cache, dsums, dw_hh)
        return dx, (dw_ih, dw_hh, db, db.copy())
    _before(cache, dsums[:, : 2 * H], dw_hh[: 2 * H])
    _before(cache, dsums[:, 3 * H :], dw_hh[2 * H :])
    return dx, (dw_ih, dw_hh, db[:GH].copy(), cupy.concatenate((db[: 2 * H], db[3 * H :])))


def _before(cache: _Cache, d: Array, out: Array) -> Array:
    """d^T times the state before each step; d (T B, n)."""
    B, H = cache.sizes.B, cache.sizes.H
    gemm(d[B:].T, cache.both.reshape(len(d), -1)[:-B, :H], out)
    return out if cache.h_0 is None else gemm(d[:B].T, cache.h_0, out, accumulate=True)


def _dot_backward(dmemory: Array, dscores: Array, cache: _Cache) -> None:
    """Adds what comes from scores q . memory: dscores^T q, where q may be the states before each step."""
    if cache.queries is not None:
        gemm(dscores.swapaxes(1, 2), cache.queries, dmemory, accumulate=True)
        return
    H = cache.sizes.H
    gemm(dscores[:, 1:].swapaxes(1, 2), cache.both[:-1, :, :H].transpose(1, 0, 2), dmemory, accumulate=True)
    if cache.h_0 is not None:
        gemm(dscores[:, :1].swapaxes(1, 2), cache.h_0[:, None], dmemory, accumulate=True)


def _nothing(cache: _Cache, dh_n: Array | None, dc: Array | None) -> dict[str, Any]:
    """The gradients where there is no step or no row."""
    w, zeros = cache.packed.weights, lambda a: None if a is None else cupy.zeros_like(a)
    dh_0 = cupy.zeros((cache.sizes.B, cache.sizes.H), cache.x.dtype) if dh_n is None else dh_n.copy()
    of_all = DecoderWeights(*map(zeros, w))
    return {"dx": zeros(cache.x), "dkeys": zeros(cache.keys), "dmemory": zeros(cache.memory), "dh_0": dh_0, "dc_0": dc, "weights": of_all}
