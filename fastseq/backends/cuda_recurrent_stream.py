"""Stacked recurrent layers that are fed one step at a time: a step is one CUDA graph over memory that stays where it is."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from fastseq.backends.cuda_graph import Loop
from fastseq.backends.cuda_launch import contiguous, precision
from fastseq.backends.cuda_recurrent_call import Packed
from fastseq.backends.cuda_recurrent_plan import Plan, Shape
from fastseq.backends.recurrent import Weights

Array = Any


class RecurrentStream:
    """A snapshot of the weights, and the state. `source`, where set, is called by `refresh` for the packed layers of now."""

    layers: tuple[Packed, ...]
    weights: tuple[Weights, ...]  # copies, which the steps read and a pickle holds

    def __init__(self, layers: tuple[Packed, ...], batch_size: int, zoneout: tuple[float, float]) -> None:
        if not layers:
            raise ValueError("layers: expected at least one")
        self.batch_size, self.zoneout = batch_size, zoneout
        self.source: Any = None
        self.dtype = layers[0].directions[0].w_ih.dtype
        self.input_size, self.output_size, self.hidden_size = layers[0].sizes
        for k, packed in enumerate(layers):
            expected = layers[0].cell, (self.output_size if k else self.input_size, self.output_size, self.hidden_size)
            if (packed.cell, packed.sizes) != expected or len(packed.directions) != 1 or packed.directions[0].w_ih.dtype != self.dtype:
                raise ValueError(f"layers: {described(packed)} do not go above {described(layers[0])}")
        self._x = cupy.empty((1, batch_size, self.input_size), self.dtype)
        self._plans = [self._plan(packed) for packed in layers]
        self._loops: dict[tuple[str, int], Loop] = {}  # by the precision of their products and by CUDA's stream, whose scratch they have
        self.reset()
        self.weights = tuple([Weights(*[None if a is None else contiguous(a.copy()) for a in packed.directions[0]]) for packed in layers])
        self.load(layers)

    def _plan(self, packed: Packed) -> Plan:
        _, P, H = packed.sizes
        zone_h, zone_c = self.zoneout[0], self.zoneout[1] if packed.cell == "lstm" else 0.0
        shape = Shape(
            packed.cell, self.dtype.char, 1, 0, 1, 1, self.batch_size, H, P, packed.present, flags=False, reset=False, drop=False,
            zone_h=zone_h, zone_c=zone_c, draw=False, training=False, cells=False, stream=True,
        )  # fmt: skip
        return Plan(shape)

    def load(self, layers: tuple[Packed, ...]) -> None:
        """Other weights of the same sizes and dtype; the state stays."""
        if len(layers) != len(self.weights):
            raise ValueError(f"layers: expected {len(self.weights)}, got {len(layers)}")
        for ours, plan, theirs in zip(self.weights, self._plans, layers, strict=True):
            same = len(theirs.directions) == 1 and theirs.cell == plan.shape.cell
            for a, b in zip(ours, theirs.directions[0], strict=True):
                same = same and (a is None) == (b is None) and (a is None or (a.shape, a.dtype) == (b.shape, b.dtype))
            if not same:
                raise ValueError(f"layers: expected {described(Packed(plan.shape.cell, (ours,)))}, got {described(theirs)}")
        self.layers = layers
        for ours, plan, theirs in zip(self.weights, self._plans, layers, strict=True):
            for a, b in zip(ours, theirs.directions[0], strict=True):
                if a is not None:
                    a[...] = b
            plan.load_weights((ours,))

    def refresh(self) -> None:
        """Take the weights of the layers that this stream came from again; the state stays."""
        if self.source is None:
            raise RuntimeError("refresh: this stream has no layer to take weights from; make one with layer.stream()")
        self.load(self.source())

    def step(self, x: Array, out: Array | None = None) -> Array:
        """h of the top layer after the next step, (B, P), for x (B, I): a fresh array, or `out`, and then nothing is allocated."""
        x = self._converted("x", x, (self.batch_size, self.input_size))
        shape = self.batch_size, self.output_size
        if out is not None and not isinstance(out, cupy.ndarray):
            raise TypeError(f"out: expected a {self.dtype} CuPy array {shape} in C order, got {type(out).__name__}")
        if out is not None and (out.dtype != self.dtype or out.shape != shape or not out.flags.c_contiguous):
            came = f"{out.dtype} {out.shape} with strides {out.strides}"
            raise ValueError(f"out: expected a {self.dtype} CuPy array {shape} in C order, got {came}")
        self._x[0] = x
        self._loops.setdefault((precision(), cupy.cuda.get_current_stream().ptr), Loop()).run(self._launch, range(1))
        y = cupy.empty(shape, self.dtype) if out is None else out
        y[...] = self._plans[-1].h[0]
        return y

    def _launch(self, s: int) -> None:
        x = self._x
        for plan, weights in zip(self._plans, self.weights, strict=True):
            plan.load_inputs((weights,), x)
            if plan.inner is not None:  # MUT3's second operand is made from the state
                plan.by_units(plan.end("operand"), plan.shape.B, plan.shape.P, s)
            plan.forward_step(s)
            x = plan.h

    @property
    def state(self) -> Any:
        """h (L, B, P), or with an LSTM (h, c), c (L, B, H): copies. May be set to such arrays, with one layer also to (B, P) and (B, H)."""
        h = cupy.concatenate([plan.h for plan in self._plans])
        return h if self._plans[0].c is None else (h, cupy.concatenate([plan.c for plan in self._plans]))

    @state.setter
    def state(self, value: Any) -> None:
        L, B, lstm = len(self._plans), self.batch_size, self._plans[0].c is not None
        if lstm and (not isinstance(value, (tuple, list)) or len(value) != 2):
            raise TypeError(f"state: expected (h, c), got {type(value).__name__}")
        named = (("state: h", value[0], self.output_size), ("state: c", value[1], self.hidden_size)) if lstm else (("state", value, self.output_size),)
        found = []
        for name, a, n in named:
            shape = (B, n) if L == 1 and getattr(a, "ndim", 3) == 2 else (L, B, n)
            found.append(self._converted(name, a, shape).reshape(L, B, n))
        for k, plan in enumerate(self._plans):
            plan.h[0] = found[0][k]
            if lstm:
                plan.c[0] = found[1][k]

    def reset(self, rows: Any = None) -> None:
        """The state becomes zero: of all rows, or of those that `rows` (an index, a slice, a sequence or a mask) picks."""
        rows = slice(None) if rows is None else rows
        if isinstance(rows, (list, tuple)):
            rows = np.asarray(rows, None if rows else np.int64)
        try:
            picked = np.arange(self.batch_size)[rows.get() if isinstance(rows, cupy.ndarray) else rows]
        except IndexError as error:
            raise IndexError(f"rows: expected an index, a slice, a sequence or a mask for {self.batch_size} rows; {error}") from None
        which = rows if isinstance(rows, slice) else cupy.asarray(np.atleast_1d(picked))
        for plan in self._plans:
            for state in (plan.h, plan.c):
                if state is not None:
                    state[:, which] = 0

    def _converted(self, name: str, value: Any, shape: tuple[int, ...]) -> Array:
        """`value` in the stream's dtype, or an error that says what is wrong with it."""
        if not isinstance(value, cupy.ndarray):
            got = "a NumPy array" if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"{name}: expected a CuPy array of shape {shape}, for the layers are on a GPU, got {got}; cupy.asarray({name}) moves it")
        if value.dtype.kind not in "iub" and value.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name}: expected float32, float64, integers or bools (this stream computes in {self.dtype}), got {value.dtype}")
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
        return value.astype(self.dtype, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        layers = tuple((packed.cell, weights) for packed, weights in zip(self.layers, self.weights, strict=True))
        return _again, (layers, self.batch_size, self.zoneout, self.state, self.source)


def _again(layers: tuple[tuple[str, Weights], ...], batch_size: int, zoneout: tuple[float, float], state: Any, source: Any) -> RecurrentStream:
    stream = RecurrentStream(tuple(Packed(cell, (weights,)) for cell, weights in layers), batch_size, zoneout)
    stream.state, stream.source = state, source
    return stream


def described(packed: Packed) -> str:
    """For a message."""
    I, P, H = packed.sizes
    norm = ", layer norm" if "ln_hh_weight" in packed.present else ""
    dtype = packed.directions[0].w_ih.dtype
    return f"{dtype} weights of {packed.cell}, {len(packed.directions)} direction(s), input_size {I}, hidden_size {H}, output_size {P}{norm}"


def recurrent_stream(layers: tuple[Any, ...], *, batch_size: int, zoneout: tuple[float, float] = (0.0, 0.0)) -> Any:
    """A stream with zero state: `step`, `state`, `reset`, `load`."""
    return RecurrentStream(layers, batch_size, zoneout)
