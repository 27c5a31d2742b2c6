"""What the backends' attention decoder takes beside arrays."""

from __future__ import annotations

from typing import Any, NamedTuple


class DecoderWeights(NamedTuple):
    """The weights of an attention decoder, or their gradients; None for what it does not have.

    I and M are the sizes of x and of the memory, H of the state, A of a query and a key; G = 4 (LSTM) or 3 (GRU).
    """

    w_ih: Any  # (G H, I + M), x first
    w_hh: Any  # (G H, H)
    b_ih: Any  # (G H,)
    b_hh: Any  # (G H,)
    w_out: Any  # (H, H + M), the state first
    b_out: Any  # (H,)
    w_query: Any = None  # (A, H): the query is w_query s; without it s itself
    u: Any = None  # (A,): the score is u . tanh(query + key); without it scale (query . key)
