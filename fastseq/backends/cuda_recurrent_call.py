"""What the files of the recurrent layers hand each other: packed weights, and a call's arguments on the device."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastseq.backends.cuda_launch import contiguous
from fastseq.backends.recurrent import Noise, Weights, gates_of

Array = Any


class Packed(NamedTuple):
    """A layer's weights: the arrays themselves, read in every call."""

    cell: str
    directions: tuple[Weights, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """I, P and H."""
        (rows, P), I = self.directions[0].w_hh.shape, self.directions[0].w_ih.shape[1]
        return I, P, rows // gates_of(self.cell)

    @property
    def present(self) -> tuple[str, ...]:
        """The names of the weights that there are."""
        return tuple(name for name, w in zip(Weights._fields, self.directions[0], strict=True) if w is not None)

    def dense(self) -> Packed:
        """The same with elements in order."""
        return Packed(self.cell, tuple([Weights(*[None if w is None else contiguous(w) for w in ws]) for ws in self.directions]))


class Call(NamedTuple):
    """What forward was called with; backward reads it too."""

    packed: Packed
    x: Array
    lengths: Array | None
    reset: Array | None
    noise: Noise


class Upstream(NamedTuple):
    """The gradients that come, of some directions and steps; None for zeros."""

    dy: Array | None
    dh_n: Array | None
    dc_n: Array | None
    dcells: Array | None
