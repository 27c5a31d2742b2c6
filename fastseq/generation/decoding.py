"""What a model must offer to be generated from, and what the ways of generating share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np


class Decoding(Protocol):
    """Rows of text that a model is writing, and what it has read of each.

    Attributes
    ----------
    logits : ndarray (B, V)
        Scores of each row's next token; CuPy's where the model is on a GPU. Tokens and rows come as NumPy arrays all the same.

    One that can read so many more tokens only has the attribute `room`, an int.
    """

    logits: np.ndarray

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token in each row, (B,) int64; returns the logits (B, V) of the next."""

    def select(self, rows: np.ndarray) -> None:
        """Let row r go on from what row rows[r] has read, (new B,) int64: rows can be dropped, repeated and reordered."""


class GenerativeModel(Protocol):
    """A model that generates."""

    vocabulary: Any

    def decoding(self, *source: Any) -> Decoding:
        """The beginning: what was read of a prompt, or of a source."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode within a `with` block, as every `nn.Module` has it."""


def stop_ids(model: GenerativeModel, stop: int | str | Iterable[int | str] | None) -> np.ndarray:
    """The ids that end a row: given as ids or tokens, one or several; the vocabulary's own stop token for None.

    Raises
    ------
    ValueError, TypeError
        For a token or an id that the vocabulary lacks, and for what is neither.
    """
    vocabulary = target_vocabulary(model)
    if stop is None:
        own = getattr(vocabulary, "stop_id", None)
        return np.array([] if own is None else [own], np.int64)
    several = list(stop) if isinstance(stop, Iterable) and not isinstance(stop, str) else [stop]
    for token in several:
        if not isinstance(token, str):
            if checked_count("stop", token, 0) >= len(vocabulary):
                raise ValueError(f"stop: expected ids below {len(vocabulary)}, got {token}")
        elif token not in vocabulary:
            raise ValueError(f"stop: expected tokens of the vocabulary, got {token!r}")
    return np.array([vocabulary.id(token) if isinstance(token, str) else token for token in several], np.int64)


def check_room(decoding: Decoding, most: int) -> None:
    """ValueError where `most` tokens, of which the last one need not be read, are more than the model can go on for."""
    room = getattr(decoding, "room", None)
    if room is not None and most > room + 1:
        raise ValueError(f"max_length: expected at most {room + 1}, for the model can read {room} more tokens, got {most}")


def target_vocabulary(model: Any) -> Any:
    """The vocabulary that a model writes in."""
    return getattr(model, "target_vocabulary", None) or getattr(model, "vocabulary", None)


def checked_number(name: str, value: Any) -> float:
    """`value` as a float of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not (value >= 0 and np.isfinite(value)):
        raise ValueError(f"{name}: expected a number of at least 0, got {value}")
    return float(value)


def checked_count(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)
