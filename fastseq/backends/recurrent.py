"""What the backends' recurrent functions take beside arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_before", "mut1", "mut2", "mut3")
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4}  # the others have 3


def gates_of(cell: str) -> int:
    """G, the number of sums per hidden unit."""
    return GATES.get(cell, 3)


class Weights(NamedTuple):
    """The weights of one direction of one layer, or their gradients; None for what the layer does not have.

    Gates in the order i, f, g, o (LSTM) or r, z, n (GRU and MUT). P is the size of h: H, or the projection's.
    """

    w_ih: Any  # (G H, I)
    w_hh: Any  # (G H, P)
    b_ih: Any = None  # (G H,)
    b_hh: Any = None  # (G H,)
    w_hr: Any = None  # (P, H), the LSTM's projection
    w_ch: Any = None  # (3, H), the LSTM's peepholes in the order i, f, o
    ln_ih_weight: Any = None  # (G H,), with the next three: layer norm of either product
    ln_ih_bias: Any = None
    ln_hh_weight: Any = None
    ln_hh_bias: Any = None
    ln_c_weight: Any = None  # (H,), with the next: the LSTM's layer norm of c
    ln_c_bias: Any = None


class Noise(NamedTuple):
    """Recurrent dropout (Gal & Ghahramani 2016) and zoneout (Krueger et al. 2017)."""

    recurrent_dropout: float = 0.0
    zoneout_h: float = 0.0
    zoneout_c: float = 0.0
    training: bool = False  # draw masks; else no dropout, and zoneout's expectation
    seed: int = 0  # Philox's key is made of seed, layer (+ 1 for the reverse direction) and call
    layer: int = 0
    call: int = 0
