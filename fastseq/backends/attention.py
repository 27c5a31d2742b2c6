"""What the backends' attention functions take beside arrays."""

from __future__ import annotations

from typing import NamedTuple


class AttentionOptions(NamedTuple):
    """Which keys a query sees, how scores are scaled, and dropout of the weights.

    Query i stands at position i + offset. It sees the keys j with j <= i + offset where `causal`, |i + offset - j| < window where
    there is a window, j < key_length, and what the mask leaves.
    """

    scale: float
    causal: bool = False
    offset: int = 0
    window: int = 0  # 0: none
    dropout: float = 0.0
    seed: int = 0  # Philox's key is made of seed, layer and call
    layer: int = 0
    call: int = 0
    tiles: bool = False  # one query, too, by tiles, as its weights need them: in forward and in backward alike
