"""Recurrent layers on a GPU: x's products for all steps at once, a loop of products and fused cells, and the weights' gradients at once.

The loop is a plan's (`cuda_recurrent_plan.py`), recorded as a CUDA graph from its second run on; what it reads is copied into the plan and
what it gives out of it. LSTMs and GRUs without options whose weights fit a GPU's registers and shared memory run in one kernel for all
steps instead (`cuda_persistent.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends import cuda_recurrent_persistent, cuda_recurrent_weights
from fastseq.backends.cuda_graph import launch
from fastseq.backends.cuda_launch import contiguous, int64
from fastseq.backends.cuda_recurrent_call import Call, Packed, Upstream
from fastseq.backends.cuda_recurrent_masks import keys_of
from fastseq.backends.cuda_recurrent_plan import Plan, Shape, below
from fastseq.backends.cuda_recurrent_pool import Held, Lease, home
from fastseq.backends.recurrent import Noise, Weights

Array = Any

_NO_NOISE = Noise()


def recurrent_pack(cell: str, directions: tuple[Weights, ...], *, packed: Any = None) -> Any:
    """A layer as the other functions take it: the arrays as they are, so that nothing is ever out of date."""
    return Packed(cell, directions)


class _Part(NamedTuple):
    """Some steps of some directions of a call."""

    first: int  # direction
    D: int
    start: int  # step
    T: int


class _Cache(NamedTuple):
    """Of one part: its steps, in its plan."""

    call: Call
    part: _Part
    held: Held


class _Checkpoints(NamedTuple):
    """Of a call in segments of `every` steps: the states before each, by direction and segment."""

    call: Call
    every: int
    h: list[list[Array | None]]
    c: list[list[Array | None]]


class _Empty(NamedTuple):
    """Of a call without a step, a row or a unit."""

    call: Call


def recurrent_forward(
    x: Array,
    h_0: Array | None,
    c_0: Array | None,
    packed: Any,
    *,
    lengths: Array | None = None,
    reset: Array | None = None,
    noise: Noise = _NO_NOISE,
    training: bool = False,
    states: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[Array, Array, Array | None, Array | None, Any]:
    """y (T, B, D P), the last h and c, every c (D, T, B, H) where `states` asks, and, in training, what `recurrent_backward` needs."""
    (T, B, _), D, (_, P, H) = x.shape, len(packed.directions), packed.sizes
    lengths, reset = (None if a is None else contiguous(cupy.asarray(a)) for a in (lengths, reset))
    call = Call(packed.dense(), contiguous(x), lengths, reset, noise)
    lstm = packed.cell == "lstm"
    h_0, c_0 = (None if state is None else contiguous(state) for state in (h_0, c_0 if lstm else None))
    if checkpoint_every is None and cuda_recurrent_persistent.applies(call, states and lstm):
        whole = cuda_recurrent_persistent.forward(call, h_0, c_0, training)
        if whole is not None:
            return whole
    y = cupy.empty((T, B, D * P), x.dtype)
    cells = cupy.empty((D, T, B, H), x.dtype) if lstm and states else None
    h_n, c_n = cupy.empty((D, B, P), x.dtype), cupy.empty((D, B, H), x.dtype) if lstm else None
    if 0 in (T, B, P, H):
        for last, first in ((h_n, h_0), (c_n, c_0)):
            if last is not None:
                last[...] = 0 if first is None else first
        y.fill(0)
        return y, h_n, c_n, cells, _Empty(call) if training else None
    if training and checkpoint_every is not None and checkpoint_every < T:
        call = call._replace(lengths=None if lengths is None else lengths.copy(), reset=None if reset is None else reset.copy())
        found: Any = _forward_in_segments(call, checkpoint_every, h_0, c_0, y, h_n, c_n, cells)
        return y, h_n, c_n, cells, found
    held = _forward(call, _Part(0, D, 0, T), training, h_0, c_0, y, h_n, c_n, cells)
    return y, h_n, c_n, cells, held


def _plan_shape(call: Call, part: _Part, training: bool, cells: bool) -> Shape:
    packed, noise, (_, P, H) = call.packed, call.noise, call.packed.sizes
    draw = noise.training
    lstm = packed.cell == "lstm"
    return Shape(
        packed.cell, call.x.dtype.char, part.D, part.first, len(packed.directions), part.T, call.x.shape[1], H, P, packed.present,
        flags=call.lengths is not None or call.reset is not None, reset=call.reset is not None,
        drop=draw and noise.recurrent_dropout > 0, zone_h=noise.zoneout_h, zone_c=noise.zoneout_c if lstm else 0.0, draw=draw,
        training=training, cells=lstm and (training or cells), stream=False,
    )  # fmt: skip


def _forward(
    call: Call,
    part: _Part,
    training: bool,
    h_0: Array | None,
    c_0: Array | None,
    y: Array | None,
    h_n: Array,
    c_n: Array | None,
    cells: Array | None,
) -> _Cache | None:
    """Runs a part. h_0, c_0, h_n, c_n: of its directions; y (T, B, D P) and cells (D, T, B, H) of its steps."""
    shape = _plan_shape(call, part, training, cells is not None)
    lease = Lease(shape)
    plan = lease.plan
    directions = call.packed.directions[part.first : part.first + part.D]
    plan.load_weights(directions)
    plan.load_inputs(directions, call.x[part.start : part.start + part.T])
    _begin(plan, call, part, h_0, c_0)
    plan.forward_loop.run(plan.forward_step, range(part.T))
    rows = shape.D * shape.B * (1 if y is None and cells is None else part.T)
    plan.by_units(plan.end("emit"), rows, shape.P if c_n is None else max(shape.P, shape.H), y, h_n, cells, c_n)
    if training:
        return _Cache(call, part, Held(lease))
    lease.end()
    return None


def _begin(plan: Plan, call: Call, part: _Part, h_0: Array | None, c_0: Array | None) -> None:
    """Which rows have which steps, the masks, and the states before the first step."""
    shape, noise = plan.shape, call.noise
    if shape.flags:
        n = shape.D * shape.T * shape.B
        plan.end("flags")(
            -(-n // 256), 256,
            (plan.flags, call.lengths, call.reset, shape.D, shape.T, shape.B, shape.first, int64(part.start), int64(len(call.x))),
        )  # fmt: skip
    keys = [0] * 6
    if shape.drop or plan.keys is not None:
        for d in range(shape.D):
            keys[3 * d : 3 * d + 3] = keys_of(noise, part.first + d)
    p = noise.recurrent_dropout
    plan.by_units(
        plan.end("begin"), shape.D * shape.B, max(shape.P, shape.H), h_0, c_0, plan.drop,
        *[np.uint64(n) for n in (keys[0], keys[3], below(p))], plan.dtype.type(1 / (1 - p) if p < 1 else 0),
        *[np.uint64(n) for n in (keys[1], keys[2], keys[4], keys[5], part.start)],
    )  # fmt: skip


# ---------------------------------------------------------------- checkpoints


def _segments(call: Call, every: int, d: int) -> list[_Part]:
    """Direction d's, in the order in which it goes through them."""
    T = len(call.x)
    parts = [_Part(d, 1, start, min(every, T - start)) for start in range(0, T, every)]
    return parts[::-1] if d else parts


def _forward_in_segments(
    call: Call, every: int, h_0: Array | None, c_0: Array | None, y: Array, h_n: Array, c_n: Array | None, cells: Array | None
) -> _Checkpoints:
    h, c = [], []
    for d in range(len(call.packed.directions)):
        hs, cs = ([None if first is None else first[d : d + 1]] for first in (h_0, c_0))
        parts = _segments(call, every, d)
        for k, part in enumerate(parts):
            steps = slice(part.start, part.start + part.T)
            ends = [None if last is None else last[d : d + 1] if k == len(parts) - 1 else cupy.empty_like(last[d : d + 1]) for last in (h_n, c_n)]
            _forward(call, part, False, hs[-1], cs[-1], y[steps], ends[0], ends[1], None if cells is None else cells[d : d + 1, steps])
            hs.append(ends[0])
            cs.append(ends[1])
        h.append(hs[:-1])
        c.append(cs[:-1])
    return _Checkpoints(call, every, h, c)


# ---------------------------------------------------------------- backward


def recurrent_backward(
    cache: Any,
    dy: Array | None,
    dh_n: Array | None,
    dc_n: Array | None,
    *,
    dcells: Array | None = None,
    need_dx: bool = True,
    need_weights: bool = True,
    need_dstates: bool = False,
) -> dict[str, Any]:
    """Backpropagation through time: dx, dh_0, dc_0, weights (`Weights` of gradients for each direction) and dstates."""
    call = cache.call
    (T, B, _), D, (_, P, H), dtype = call.x.shape, len(call.packed.directions), call.packed.sizes, call.x.dtype
    lstm = call.packed.cell == "lstm"
    dx = cupy.empty_like(call.x) if need_dx else None
    upstream = Upstream(dy, dh_n, dc_n if lstm else None, dcells if lstm else None)
    if isinstance(cache, cuda_recurrent_persistent.Cache):
        whole = None if need_dstates else cuda_recurrent_persistent.backward(cache, upstream, dx, need_weights)
        if whole is not None:
            return whole
    dh_0, dc_0 = cupy.empty((D, B, P), dtype), cupy.empty((D, B, H), dtype) if lstm else None
    dstates = cupy.empty((D, T, B, P), dtype) if need_dstates else None
    weights: list[Weights | None] = [None] * D
    if isinstance(cache, cuda_recurrent_persistent.Cache):
        # The gradients of all states, which one kernel for all steps does not write, or a launch that was refused: again, step by step.
        ends = cupy.empty_like(dh_0), None if dc_0 is None else cupy.empty_like(dc_0)
        cache = _forward(call, _Part(0, D, 0, T), True, cache.h_0, cache.c_0, None, *ends, None)
    if isinstance(cache, _Empty):
        if dx is not None:
            dx.fill(0)
        for found, last in ((dh_0, dh_n), (dc_0, dc_n)):
            if found is not None:
                found[...] = 0 if last is None else last
        if need_weights:
            weights = [Weights(*[None if w is None else cupy.zeros_like(w) for w in ws]) for ws in call.packed.directions]
    elif isinstance(cache, _Checkpoints):
        weights = _backward_in_segments(cache, upstream, dx, dh_0, dc_0, dstates, need_weights)
    else:
        weights = _backward(cache, upstream, dx, dh_0, dc_0, dstates, need_weights)
    return {"dx": dx, "dh_0": dh_0, "dc_0": dc_0, "weights": tuple(weights), "dstates": dstates}


def _backward(
    cache: _Cache, upstream: Upstream, dx: Array | None, dh_0: Array, dc_0: Array | None, dstates: Array | None, need_weights: bool
) -> list[Weights | None]:
    """A part's. To dx the reverse direction's is added; all else is written."""
    lease, part = cache.held.lease, cache.part
    plan = lease.plan
    w = lease.gradients()
    if upstream.dy is None:
        w.dy.fill(0)
    else:
        w.dy[...] = upstream.dy
    if upstream.dcells is not None:
        w.dcells[...] = upstream.dcells
    w.point(plan, upstream.dcells is not None, dstates is not None)
    rows, width = plan.shape.D * plan.shape.B, max(plan.shape.P, plan.shape.H)
    last = [None if given is None else contiguous(given) for given in (upstream.dh_n, upstream.dc_n)]
    plan.by_units(plan.end("begin_back"), rows, width, *last)
    steps = range(part.T - 1, -1, -1)
    if home(plan.shape) == lease.home:
        plan.backward_loop(upstream.dcells is not None, dstates is not None).run(lambda s: plan.backward_step(s, w), steps)
    else:
        launch(lambda s: plan.backward_step(s, w), steps)
    plan.by_units(plan.end("end_back"), rows, width, dh_0, dc_0)
    if dstates is not None:
        dstates[...] = w.dstates
    directions = cache.call.packed.directions[part.first : part.first + part.D]
    x = cache.call.x[part.start : part.start + part.T]
    if need_weights:
        x = cuda_recurrent_weights.without_padding(x, cache.call.lengths, part.start)
    return cuda_recurrent_weights.gradients(plan, w, directions, x, dx, need_weights)


def _backward_in_segments(
    cache: _Checkpoints, upstream: Upstream, dx: Array | None, dh_0: Array, dc_0: Array | None, dstates: Array | None, need_weights: bool
) -> list[Weights | None]:
    """The last segment first: forwards again, and then backwards."""
    call, weights = cache.call, []
    for d in range(len(call.packed.directions)):
        row = slice(d, d + 1)
        dh, dc = (None if given is None else given[row] for given in (upstream.dh_n, upstream.dc_n))
        total: Weights | None = None
        parts = _segments(call, cache.every, d)
        for k in reversed(range(len(parts))):
            part = parts[k]
            steps = slice(part.start, part.start + part.T)
            ends = [None if found is None else cupy.empty_like(found[row]) for found in (dh_0, dc_0)]
            again = _forward(call, part, True, cache.h[d][k], cache.c[d][k], None, ends[0], ends[1], None)
            assert again is not None
            given = Upstream(
                None if upstream.dy is None else upstream.dy[steps], dh, dc, None if upstream.dcells is None else upstream.dcells[row, steps]
            )
            dh, dc = (None if found is None else found[row] if k == 0 else cupy.empty_like(found[row]) for found in (dh_0, dc_0))
            dx_part, dstates_part = None if dx is None else dx[steps], None if dstates is None else dstates[row, steps]
            found = _backward(again, given, dx_part, dh, dc, dstates_part, need_weights)[0]
            total = found if total is None or found is None else Weights(*map(_sum, total, found))
        weights.append(total)
    return weights


def _sum(a: Array | None, b: Array | None) -> Array | None:
    return None if a is None else a + b


# ---------------------------------------------------------------- stacked layers


def recurrent_stack(
    x: Array,
    h_0: Array | None,
    c_0: Array | None,
    layers: tuple[Any, ...],
    *,
    lengths: Array | None = None,
    reset: Array | None = None,
    zoneout: tuple[float, float] = (0.0, 0.0),
) -> tuple[Array, Array, Array | None]:
    """Packed layers of one direction, each on the one before, without a record: the last y, and h (L, B, P) and c (L, B, H) at the end."""
    noise = Noise(zoneout_h=zoneout[0], zoneout_c=zoneout[1])
    h, c = [], []
    for l, packed in enumerate(layers):
        h_l, c_l = (None if s is None else s[l : l + 1] for s in (h_0, c_0))
        x, h_n, c_n, *_ = recurrent_forward(x, h_l, c_l, packed, lengths=lengths, reset=reset, noise=noise)
        h.append(h_n)
        if c_n is not None:
            c.append(c_n)
    return x, cupy.concatenate(h), cupy.concatenate(c) if c else None
