"""A character language model: embedding, recurrent layer, linear (Graves 2013; Karpathy 2015)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq.models._cells import checked_cell, recurrent
from fastseq.models.vocabulary import Vocabulary
from fastseq.nn import Dropout, Embedding, Linear, Module
from fastseq.runtime import generator


class LanguageModel(Module):
    """Scores of the next character from all characters before it.

    Parameters
    ----------
    vocabulary : Vocabulary, or str of its characters
    embedding_size, hidden_size : int
        Widths of the character vectors and of the recurrent layer.
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3"}
    dropout : float
        Probability of dropping an element of the recurrent layer's output, and half of it for its input, while training.
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    vocabulary : Vocabulary
    embedding : nn.Embedding
    lstm, or gru, rnn, mut1, mut2, mut3 : the recurrent layer, under its cell's name
    head : nn.Linear

    Examples
    --------
    >>> import fastseq as fs
    >>> model = fs.models.LanguageModel("abc ", 8, 16)
    >>> logits, state = model(model.vocabulary.encode("a cab").reshape(5, 1))
    >>> logits.shape
    (5, 1, 4)
    """

    def __init__(
        self,
        vocabulary: Vocabulary | str,
        embedding_size: int = 64,
        hidden_size: int = 256,
        *,
        cell: str = "lstm",
        dropout: float = 0.0,
        rng: Any = None,
    ) -> None:
        self.vocabulary = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(vocabulary)
        self.cell = checked_cell(cell)
        rng = generator(rng)
        self.dropout = float(dropout)
        self.embedding = Embedding(len(self.vocabulary), embedding_size, rng=rng)
        self.input_dropout = Dropout(dropout / 2, rng=rng)
        setattr(self, cell, recurrent(cell, embedding_size, hidden_size, rng=rng))
        self.output_dropout = Dropout(dropout, rng=rng)
        self.head = Linear(hidden_size, len(self.vocabulary), rng=rng)

    def forward(self, ids: Any, state: Any = None) -> Any:
        """Scores at every place of (T, B) texts.

        Parameters
        ----------
        ids : (T, B) integers
        state : what an earlier call returned, optional

        Returns
        -------
        logits : (T, B, V)
        state : (h, c) for an LSTM, else (h,), each (1, B, H)
        """
        lstm = self.cell == "lstm"
        before = state if lstm or state is None else state[0]
        y, after = self.recurrent(self.input_dropout(self.embedding(ids)), before)
        return self.head(self.output_dropout(y)), after if lstm else (after,)

    @property
    def recurrent(self) -> Any:
        """The recurrent layer."""
        return getattr(self, self.cell)

    def stream(self) -> LanguageModelStream:
        """The model one character at a time, for a single text, with a snapshot of the recurrent layer's weights."""
        return LanguageModelStream(self)

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class, the vocabulary as a string of its characters."""
        return {
            "vocabulary": self.vocabulary.characters,
            "embedding_size": self.embedding.embedding_dim,
            "hidden_size": self.recurrent.hidden_size,
            "cell": self.cell,
            "dropout": self.dropout,
        }


class LanguageModelStream:
    """What `LanguageModel.stream` gives.

    Examples
    --------
    >>> import fastseq as fs
    >>> stream = fs.models.LanguageModel("abc", 8, 16).stream()
    >>> stream.step(2).shape
    (3,)
    """

    def __init__(self, model: LanguageModel) -> None:
        self._table = model.embedding.weight.data
        self._head = model.head
        self._recurrent = model.recurrent.stream()

    def step(self, token: int) -> np.ndarray:
        """Read one character's id; returns the scores (V,) of the next. IndexError for an id that the model lacks."""
        if not 0 <= token < len(self._table):
            raise IndexError(f"token: expected an id below {len(self._table)}, got {token}")
        return self._head(self._recurrent.step(self._table[token : token + 1]))[0]

    def reset(self) -> None:
        """Forget everything read so far."""
        self._recurrent.reset()
