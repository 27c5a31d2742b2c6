"""LSTMs and GRUs without options by `cuda_persistent.py`, one kernel for all steps of a direction, with the products around it."""

from __future__ import annotations

import threading
import warnings
from typing import Any, NamedTuple

import cupy
import numpy as np

from fastseq.backends import cuda_persistent
from fastseq.backends.cuda_launch import REFUSALS, gemm
from fastseq.backends.cuda_layout import aligned
from fastseq.backends.cuda_recurrent_call import Call, Upstream
from fastseq.backends.cuda_recurrent_plan import by_units, end_kernel
from fastseq.backends.cuda_recurrent_weights import Sums, without_padding
from fastseq.backends.recurrent import Weights

Array = Any

_PLAIN = {"w_ih", "w_hh", "b_ih", "b_hh"}
#: What the driver answers where not all blocks can run at the same time.
_REASONS = ("COOPERATIVE_LAUNCH_TOO_LARGE", "LAUNCH_OUT_OF_RESOURCES", "NOT_SUPPORTED")

_lock = threading.Lock()
_refused: dict[tuple[int, str, int, int], str] = {}  # by device, cell, H and B: what the driver said


class Cache(NamedTuple):
    """What backward needs: of each direction what its kernel saved."""

    call: Call
    h_0: Array | None
    c_0: Array | None
    saved: tuple[Any, ...]


def _place(call: Call) -> tuple[int, str, int, int]:
    return cupy.cuda.runtime.getDevice(), call.packed.cell, call.packed.sizes[2], call.x.shape[1]


def applies(call: Call, cells: bool) -> bool:
    """Whether a call has no options that the kernels do not know, fits them, and none was refused before; cells: all c are asked for."""
    packed, noise = call.packed, call.noise
    _, _, H = packed.sizes
    zoneout = noise.zoneout_h or (noise.zoneout_c and packed.cell == "lstm")
    if cells or zoneout or (noise.training and noise.recurrent_dropout) or not _PLAIN.issuperset(packed.present) or 0 in call.x.shape[:2]:
        return False
    return packed.cell in ("lstm", "gru") and cuda_persistent.fits(packed.cell, H, call.x.shape[1], call.x.dtype) and _place(call) not in _refused


def refusals() -> dict[tuple[int, str, int, int], str]:
    """By device, cell, H and B: why a launch of such a kernel was refused, as where another program holds multiprocessors."""
    with _lock:
        return dict(_refused)


def _refuse(call: Call, error: Exception) -> None:
    """Remembers that the driver does not launch all blocks at the same time; any other error goes on."""
    if not any(reason in str(error) for reason in _REASONS):
        raise error
    with _lock:
        _refused[_place(call)] = str(error)
    cell, (_, _, H) = call.packed.cell, call.packed.sizes
    message = f"cuda: no cooperative launch for {cell}, H {H}, B {call.x.shape[1]}: step by step from now on; {error}"
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def forward(
    call: Call, h_0: Array | None, c_0: Array | None, training: bool
) -> tuple[Array, Array, Array | None, None, Cache | None] | None:
    """What `recurrent_forward` returns; None where a launch was refused."""
    (T, B, I), x, D, lstm = call.x.shape, call.x, len(call.packed.directions), call.packed.cell == "lstm"
    if training and call.reset is not None:
        call = call._replace(reset=call.reset.copy())  # backward trusts it
    results = []
    for d, w in enumerate(call.packed.directions):
        xp = gemm(x.reshape(T * B, I), w.w_ih.T).reshape(T, B, -1)
        h, c = (None if state is None else aligned(state[d]) for state in (h_0, c_0))
        try:
            result = cuda_persistent.forward(call.packed.cell, xp, aligned(w.w_hh), _biases(w), h, c, call.lengths, call.reset, d == 1, training)
        except REFUSALS as error:
            _refuse(call, error)
            return None
        results.append(result)
    ys, hs, cs, saved = zip(*results, strict=True)
    y = ys[0] if D == 1 else cupy.concatenate(ys, axis=2)
    return y, _stacked(hs), _stacked(cs) if lstm else None, None, Cache(call, h_0, c_0, saved) if training else None


def _stacked(states: tuple[Array, ...]) -> Array:
    """The states (B, H) of the directions as one array (D, B, H)."""
    return states[0].reshape(1, *states[0].shape) if len(states) == 1 else cupy.stack(states)


def _biases(w: Weights) -> tuple[Array, Array] | None:
    if w.b_ih is None and w.b_hh is None:
        return None
    zeros = cupy.zeros(len(w.w_ih), w.w_ih.dtype) if w.b_ih is None or w.b_hh is None else None
    return zeros if w.b_ih is None else w.b_ih, zeros if w.b_hh is None else w.b_hh


def backward(cache: Cache, upstream: Upstream, dx: Array | None, need_weights: bool) -> dict[str, Any] | None:
    """What `recurrent_backward` returns, without dstates; dx is written. None where a launch was refused."""
    call = cache.call
    (T, B, I), H, lstm = call.x.shape, call.packed.sizes[2], call.packed.cell == "lstm"
    x = (without_padding(call.x, call.lengths) if need_weights else call.x).reshape(T * B, I)
    found: list[Weights | None] = []
    states = []
    for d, (w, saved) in enumerate(zip(call.packed.directions, cache.saved, strict=True)):
        dy = None if upstream.dy is None else aligned(upstream.dy[:, :, d * H : (d + 1) * H])
        last = [None if given is None else aligned(given[d]) for given in (upstream.dh_n, upstream.dc_n)]
        try:
            dp, dq, *first = cuda_persistent.backward(call.packed.cell, saved, aligned(w.w_hh), dy, *last)
        except REFUSALS as error:
            _refuse(call, error)
            return None
        states.append(first)
        dp = dp.reshape(T * B, -1)
        dq = dp if lstm else dq.reshape(T * B, -1)
        if dx is not None:
            gemm(dp, w.w_ih, dx.reshape(T * B, I), accumulate=d > 0)
        found.append(_of_weights(call, w, saved, d, dp, dq, x) if need_weights else None)
    dh_0, dc_0 = zip(*states, strict=True)
    return {"dx": dx, "dh_0": _stacked(dh_0), "dc_0": _stacked(dc_0) if lstm else None, "weights": tuple(found), "dstates": None}


def _of_weights(call: Call, w: Weights, saved: Any, d: int, dp: Array, dq: Array, x: Array) -> Weights:
    (T, B, _), H = call.x.shape, call.packed.sizes[2]
    if saved.h_0 is None and call.lengths is None and call.reset is None and T > 1:
        steps = (slice(B, None), slice(None, -B)) if d == 0 else (slice(None, -B), slice(B, None))
        dw_hh = gemm(dq[steps[0]].T, saved.y.reshape(T * B, H)[steps[1]])  # the first step's state is zero
    else:
        before = cupy.empty((T * B, H), np.float32)
        by_units(
            end_kernel("states_before", np.float32), T * B, H,
            (before, saved.y, saved.h_0, call.lengths, call.reset, T, B, H, d),
        )  # fmt: skip
        dw_hh = gemm(dq.T, before)
    vectors = Sums(T * B, np.float32).of_biases(w, dp, dq)
    return Weights(gemm(dp.T, x), dw_hh, vectors.get("b_ih"), vectors.get("b_hh"))
