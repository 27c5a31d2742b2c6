"""The network behind the estimators of labels where a step is given by numbers; for words there are `fastseq.models`."""

from __future__ import annotations

from typing import Any

from fastseq.models._cells import checked_cell, last_states, recurrent
from fastseq.models.sequence_classifier import mean_over
from fastseq.nn import AttentionPooling, Dropout, Linear, Module
from fastseq.runtime import generator

POOLINGS = ("last", "mean", "attention")


class SequenceNetwork(Module):
    """A recurrent layer, and scores of every step, or of the whole sequence.

    Parameters
    ----------
    input_size, outputs, hidden_size : int
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3"}
    pooling : {"last", "mean", "attention"} or None
        What becomes of the states of a sequence; None: scores of every step.
    num_layers : int
    bidirectional : bool
    dropout : float
    rng : None, int or numpy.random.Generator

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.sklearn._network import SequenceNetwork
    >>> SequenceNetwork(3, 4, 8, pooling="mean")(np.zeros((5, 2, 3)), [5, 2]).shape
    (2, 4)
    """

    def __init__(
        self,
        input_size: int,
        outputs: int,
        hidden_size: int,
        *,
        cell: str = "lstm",
        pooling: str | None = "last",
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        rng: Any = None,
    ) -> None:
        if pooling is not None and pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
        rng = generator(rng)
        self.cell, self.pooling = checked_cell(cell), pooling
        self.recurrent = recurrent(cell, input_size, hidden_size, num_layers, bidirectional=bidirectional, dropout=dropout, rng=rng)
        width = hidden_size * (1 + bidirectional)
        self.pool = AttentionPooling(width, width, rng=rng) if pooling == "attention" else None
        self.dropout = Dropout(dropout, rng=rng)
        self.head = Linear(width, outputs, rng=rng)

    def forward(self, x: Any, lengths: Any) -> Any:
        """(T, B, I) numbers and (B,) lengths -> (B, outputs), or (T, B, outputs) without pooling."""
        y, state = self.recurrent(x, lengths=lengths)
        return self.head(self.dropout(self._pooled(y, state[0] if self.cell == "lstm" else state, lengths)))

    def _pooled(self, y: Any, h: Any, lengths: Any) -> Any:
        if self.pooling is None:
            return y
        if self.pooling == "last":
            return last_states(self.recurrent, h)
        if self.pool is not None:
            return self.pool(y, lengths)
        return mean_over(y, lengths)
