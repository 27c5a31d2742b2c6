"""Random calls of the attention decoder, and all that they and their gradients give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastseq import functional

ATTENTIONS = ("additive", "dot", "scaled_dot", "bilinear")


@dataclass(frozen=True)
class Problem:
    """One call of functional.attention_decoder_forward and of its backward half."""

    cell: str = "lstm"
    attention: str = "additive"
    T: int = 3
    B: int = 3
    S: int = 4
    I: int = 2
    H: int = 5
    M: int = 3
    A: int = 4
    ragged: bool = False
    state: bool = True
    weights: bool = True  # an upstream gradient for the attention weights too

    def __str__(self) -> str:
        sizes = "".join(f"{name}{getattr(self, name)}" for name in "TBSIHMA")
        options = [name for name in ("ragged", "state", "weights") if getattr(self, name)]
        return "-".join([self.cell, self.attention, sizes, *options])

    @property
    def width(self) -> int:
        """M, which is H where the state itself is the query."""
        return self.H if "dot" in self.attention else self.M

    def inputs(self, rng: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        """The differentiable arguments by name."""
        T, B, S, I, H, M, A = self.T, self.B, self.S, self.I, self.H, self.width, self.A
        G = (4 if self.cell == "lstm" else 3) * H
        shapes = {"x": (T, B, I), "memory": (S, B, M), "w_ih": (G, I + M), "w_hh": (G, H), "b_ih": (G,), "b_hh": (G,)}
        shapes |= {"w_out": (H, H + M), "b_out": (H,)}
        if self.attention == "additive":
            shapes |= {"w_query": (A, H), "w_key": (A, M), "b_key": (A,), "u": (A,)}
        if self.attention == "bilinear":
            shapes |= {"w_query": (M, H)}
        if self.state:
            shapes |= {"h_0": (B, H)} | ({"c_0": (B, H)} if self.cell == "lstm" else {})
        spread = {name: 0.5 * max(shape[-1], 1) ** -0.5 if name[0] in "wb" else 1.0 for name, shape in shapes.items()}
        return {name: (spread[name] * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}

    def options(self, rng: np.random.Generator) -> dict[str, Any]:
        """Cell, attention and lengths: in a ragged problem with rows of nothing and whole ones among them."""
        lengths = {}
        if self.ragged:
            lengths = {"lengths": rng.integers(0, self.T + 1, self.B), "memory_lengths": rng.integers(0, self.S + 1, self.B)}
            for a, most in zip(lengths.values(), (self.T, self.S), strict=True):
                a[: self.B // 2 : 2] = most
                a[1 : self.B // 3 : 3] = 0
        return {"cell": self.cell, "attention": self.attention, **lengths}

    def upstream(self, rng: np.random.Generator, dtype: Any) -> list[np.ndarray | None]:
        """Gradients of outputs, h, c and weights."""
        T, B, S, H = self.T, self.B, self.S, self.H
        shapes = [(T, B, H), (B, H), (B, H) if self.cell == "lstm" else None, (T, B, S) if self.weights else None]
        return [None if shape is None else rng.standard_normal(shape).astype(dtype) for shape in shapes]


def results(inputs: dict[str, np.ndarray], options: dict[str, Any], upstream: list[np.ndarray | None]) -> dict[str, np.ndarray]:
    """Every output and gradient by name."""
    *outputs, cache = functional.attention_decoder_forward(**inputs, **options)
    do, dh, dc, da = upstream
    found = dict(zip(("outputs", "h", "c", "weights"), outputs, strict=True))
    found |= functional.attention_decoder_backward(cache, do, dh=dh, dc=dc, dweights=da)
    return {name: a for name, a in found.items() if a is not None}
