"""Recurrent layers as the backends see them: a problem is a cell with sizes and options; its results are all outputs and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from fastseq.backends.recurrent import CELLS, Noise, Weights, gates_of
from tests.conftest import WAYS
from tests.tolerance import assert_same_bits

#: Each instruction set with another number of threads; that all numbers give the same bits is tested once, for every option.
SOME_WAYS = WAYS[::4]

#: Each instruction set with one thread, for what compares bits with bits and has nothing to do with threads.
ONE_THREAD = WAYS[::3]

NO_NOISE = Noise()

#: Every mask drawn; p is large enough for each row of a small problem to see some of it.
NOISE = {
    "recurrent dropout": Noise(recurrent_dropout=0.4, training=True, seed=2**40 + 5, layer=3, call=7),
    "zoneout": Noise(zoneout_h=0.3, zoneout_c=0.6, training=True, seed=2**64 - 1, layer=2**31, call=2**32 - 1),
    "zoneout expected": Noise(recurrent_dropout=0.4, zoneout_h=0.3, zoneout_c=0.6),
    "all noise": Noise(0.4, 0.3, 0.6, True, 11, 2, 5),
}


class Inputs(NamedTuple):
    """What forward and backward take. None for what is not given."""

    x: np.ndarray  # (T, B, I)
    h_0: np.ndarray | None  # (D, B, P)
    c_0: np.ndarray | None  # (D, B, H)
    weights: tuple[Weights, ...]
    lengths: np.ndarray | None  # (B,)
    reset: np.ndarray | None  # (T, B)
    dy: np.ndarray | None
    dh_n: np.ndarray | None
    dc_n: np.ndarray | None
    dcells: np.ndarray | None  # (D, T, B, H)

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """All arrays, by name."""
        for name, value in zip(self._fields, self, strict=True):
            if name == "weights":
                for k, w in enumerate(value):
                    yield from ((f"{n}[{k}]", a) for n, a in zip(w._fields, w, strict=True) if a is not None)
            elif value is not None:
                yield name, value

    def mapped(self, function: Any) -> Inputs:
        """The same with function(array) for each array."""
        weights = tuple(Weights(*(a if a is None else function(a) for a in w)) for w in self.weights)
        return Inputs(*(a if a is None else weights if a is self.weights else function(a) for a in self))

    def wide(self) -> Inputs:
        """The same numbers in float64."""
        return self.mapped(lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a)

    def rows(self, rows: slice) -> Inputs:
        """A part of the batch."""
        short = {n: a[..., rows, :] for n, a in self._asdict().items() if n[0] in "xhcd" and a is not None}
        return self._replace(
            **short,
            lengths=None if self.lengths is None else self.lengths[rows],
            reset=None if self.reset is None else self.reset[:, rows],
        )


@dataclass(frozen=True)
class Problem:
    """One layer; the defaults are a small one with a vector's tail in H and in P."""

    cell: str
    T: int = 4
    B: int = 5
    I: int = 6
    H: int = 9
    P: int = 0  # the projection's size; 0: none
    directions: int = 1
    biases: str = "ih hh"
    state: str = "hc"  # the initial states that are given
    lengths: bool = False
    reset: bool = False
    peephole: bool = False
    layer_norm: bool = False
    noise: Noise = NO_NOISE

    def __str__(self) -> str:
        options = [f"{self.directions}dir", f"bias={self.biases}", f"state={self.state}"]
        options += [name for name in ("lengths", "reset", "peephole", "layer_norm") if getattr(self, name)]
        options += [f"{name}={value}" for name, value in zip(Noise._fields, self.noise, strict=True) if value]
        return "-".join([self.cell, "x".join(map(str, (self.T, self.B, self.I, self.H, self.P))), *options]).replace(" ", "+")

    @property
    def terms(self) -> int:
        """Of the longest sum, through all steps; and the gates' own operations, which small sums do not hide."""
        sums = self.I + self.H + self.B + (self.P or self.H) + (4 * self.H if self.layer_norm else 0) + 16
        return max(self.T, 1) * sums * self.directions

    def weights(self, rng: np.random.Generator, dtype: Any) -> Weights:
        """Those of one direction: sums of the size of one."""
        I, H, P, G = self.I, self.H, self.P or self.H, gates_of(self.cell)

        def normal(*shape: int, spread: float = 0.5, middle: float = 0.0) -> np.ndarray:
            return (middle + spread * rng.standard_normal(shape)).astype(dtype)

        w_hh = normal(G * H, P, spread=1 / np.sqrt(max(P, 1)))
        if self.cell == "mut1":
            w_hh[H : 2 * H] = 0
        norm: dict[str, np.ndarray] = {}
        if self.layer_norm:
            sizes = {"ln_ih": G * H, "ln_hh": G * H} | ({"ln_c": H} if self.cell == "lstm" else {})
            norm = {f"{name}_weight": normal(n, spread=0.2, middle=1.0) for name, n in sizes.items()}
            norm |= {f"{name}_bias": normal(n) for name, n in sizes.items()}
        return Weights(
            w_ih=normal(G * H, I, spread=1 / np.sqrt(max(I, 1))),
            w_hh=w_hh,
            b_ih=normal(G * H) if "ih" in self.biases else None,
            b_hh=normal(G * H) if "hh" in self.biases and "mut" not in self.cell else None,
            w_hr=normal(P, H, spread=1 / np.sqrt(max(H, 1))) if self.P else None,
            w_ch=normal(3, H) if self.peephole else None,
            **norm,
        )

    def inputs(self, rng: np.random.Generator, dtype: Any) -> Inputs:
        """Random numbers; among the lengths a 0 and T where there are rows for both."""
        T, B, H, P, D = self.T, self.B, self.H, self.P or self.H, self.directions
        lstm = self.cell == "lstm"

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(dtype)

        lengths = rng.integers(0, T + 1, B)
        lengths[1:2], lengths[2:3] = 0, T
        return Inputs(
            x=normal(T, B, self.I),
            h_0=normal(D, B, P) if "h" in self.state else None,
            c_0=normal(D, B, H) if "c" in self.state and lstm else None,
            weights=tuple(self.weights(rng, dtype) for _ in range(D)),
            lengths=lengths if self.lengths else None,
            reset=rng.random((T, B)) < 0.3 if self.reset else None,
            dy=normal(T, B, D * P),
            dh_n=normal(D, B, P),
            dc_n=normal(D, B, H) if lstm else None,
            dcells=normal(D, T, B, H) if lstm else None,
        )

    def forward(self, backend: Any, a: Inputs, *, training: bool = True, packed: Any = None, **options: Any) -> tuple[Any, ...]:
        """`recurrent_forward` with this problem's options."""
        packed = backend.recurrent_pack(self.cell, a.weights) if packed is None else packed
        states = options.pop("states", a.dcells is not None)
        return backend.recurrent_forward(
            a.x, a.h_0, a.c_0, packed, lengths=a.lengths, reset=a.reset, noise=self.noise, training=training, states=states, **options
        )

    def results(self, backend: Any, a: Inputs, **options: Any) -> dict[str, np.ndarray]:
        """Every output and every gradient by its name."""
        y, h_n, c_n, cells, cache = self.forward(backend, a, **options)
        outputs = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}
        return {n: v for n, v in outputs.items() if v is not None} | gradients(backend, cache, a)


def gradients(backend: Any, cache: Any, a: Inputs) -> dict[str, np.ndarray]:
    """What `recurrent_backward` gives, by name, those of weights with their direction; a weight and its gradient go together."""
    grads = backend.recurrent_backward(cache, a.dy, a.dh_n, a.dc_n, dcells=a.dcells, need_dstates=True)
    found = {name: grads[name] for name in ("dx", "dh_0", "dc_0", "dstates") if grads[name] is not None}
    assert len(grads["weights"]) == len(a.weights)
    for k, (w, dw) in enumerate(zip(a.weights, grads["weights"], strict=True)):
        for name, value, gradient in zip(Weights._fields, w, dw, strict=True):
            assert (value is None) == (gradient is None), name
            if gradient is not None:
                found[f"d{name}[{k}]"] = gradient
    return found


class Stack(NamedTuple):
    """Layers on top of each other, the lowest first."""

    problems: tuple[Problem, ...]

    @staticmethod
    def of(problem: Problem, layers: int) -> Stack:
        """Layers like this one: each reads the outputs of the one below, and has masks of its own."""
        D, first = problem.directions, problem.noise.layer
        above = replace(problem, I=D * (problem.P or problem.H))
        problems = [problem, *[above] * (layers - 1)]
        return Stack(tuple(replace(p, noise=p.noise._replace(layer=first + D * k)) for k, p in enumerate(problems)))

    def inputs(self, rng: np.random.Generator, dtype: Any) -> list[Inputs]:
        """Of each layer; the lengths and resets are those of the first."""
        drawn = [p.inputs(rng, dtype) for p in self.problems]
        return [a._replace(lengths=drawn[0].lengths, reset=drawn[0].reset) for a in drawn]

    def results(self, backend: Any, inputs: Sequence[Inputs], **options: Any) -> dict[str, np.ndarray]:
        """As those of a problem, with the layer in front of the name; x of the upper layers and dy of the lower ones are each other's."""
        found, caches, x = {}, [], inputs[0].x
        for k, (p, a) in enumerate(zip(self.problems, inputs, strict=True)):
            y, h_n, c_n, cells, cache = p.forward(backend, a._replace(x=x), **options)
            found |= {f"{k} {n}": v for n, v in {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}.items() if v is not None}
            caches.append(cache)
            x = y
        dy = inputs[-1].dy
        for k in reversed(range(len(caches))):
            grads = gradients(backend, caches[k], inputs[k]._replace(dy=dy))
            found |= {f"{k} {n}": v for n, v in grads.items()}
            dy = grads["dx"]
        return found


def _options(cell: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each option that the cell has, alone or with what it meets another way."""
    yield "plain", {}
    yield "no bias", {"biases": ""}
    if "mut" not in cell:
        yield "one bias", {"biases": "ih"}
        yield "the other bias", {"biases": "hh"}
    yield "no state", {"state": ""}
    if cell == "lstm":
        yield "h_0", {"state": "h"}
        yield "c_0", {"state": "c"}
        yield "peephole", {"peephole": True}
        yield "projection", {"P": 5}
        yield "wide projection", {"P": 17}
        yield "projection, two directions", {"P": 5, "directions": 2}
        yield "peephole, projection, reset", {"peephole": True, "P": 5, "reset": True}
        yield "all but noise", {"peephole": True, "P": 5, "reset": True, "lengths": True, "layer_norm": True, "directions": 2}
    if cell in ("lstm", "gru"):
        yield "layer norm", {"layer_norm": True}
        yield "layer norm, no bias", {"layer_norm": True, "biases": ""}
        yield "layer norm, recurrent dropout", {"layer_norm": True, "noise": NOISE["recurrent dropout"]}
    for name, noise in NOISE.items():
        yield name, {"noise": noise}
    yield "lengths", {"lengths": True}
    yield "reset", {"reset": True}
    yield "two directions", {"directions": 2}
    yield "two directions, lengths", {"directions": 2, "lengths": True}
    yield "two directions, lengths, reset", {"directions": 2, "lengths": True, "reset": True}
    yield "two directions, lengths, noise", {"directions": 2, "lengths": True, "noise": NOISE["all noise"]}
    yield "lengths, reset, noise", {"lengths": True, "reset": True, "noise": NOISE["all noise"]}


#: (cell, option's name) -> a problem.
OPTIONS = {(cell, name): Problem(cell, **options) for cell in CELLS for name, options in _options(cell)}


def options_named(*names: str) -> list[tuple[str, str]]:
    """The keys of OPTIONS with one of these names, of every cell that has it."""
    return [option for option in OPTIONS if option[1] in names]


def assert_all_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray], label: str = "") -> None:
    """Raises AssertionError unless two problems' results are equal bit for bit."""
    assert got.keys() == want.keys()
    for name in got:
        assert_same_bits(got[name], want[name], f"{name} {label}")
