"""The recurrent layers that a model's argument `cell` names."""

from __future__ import annotations

from typing import Any

from fastseq import functional
from fastseq.nn import GRU, LSTM, MUT1, MUT2, MUT3, RNN

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "mut1": MUT1, "mut2": MUT2, "mut3": MUT3}


def recurrent(cell: str, input_size: int, hidden_size: int, num_layers: int = 1, **options: Any) -> Any:
    """The layer of that name. ValueError for a name that is none, before anything is drawn."""
    return CELLS[checked_cell(cell)](input_size, hidden_size, num_layers, **options)


def checked_cell(cell: str, others: tuple[str, ...] = ()) -> str:
    """The name, where it is one of `CELLS` or of a model's `others`."""
    if cell not in CELLS and cell not in others:
        raise ValueError(f"cell: expected one of {', '.join((*CELLS, *others))}, got {cell!r}")
    return cell


def last_states(layer: Any, h: Any) -> Any:
    """(B, size) of a recurrent layer's last states (layers, B, H): the top layer's, of both directions side by side."""
    return functional.concatenate([h[-2], h[-1]], axis=1) if layer.bidirectional else h[-1]
