"""Vocabulary: the characters that a model knows, and their ids."""

from __future__ import annotations

from typing import Any

import numpy as np


class Vocabulary:
    """Characters in the order of their code points; a character's id is its place there.

    Parameters
    ----------
    characters : str
        At least one, each once is enough.

    Raises
    ------
    ValueError
        If `characters` is empty.

    Examples
    --------
    >>> import fastseq as fs
    >>> vocabulary = fs.models.Vocabulary("hello world")
    >>> vocabulary.encode("hold").tolist()
    [3, 5, 4, 1]
    >>> vocabulary.decode([3, 5, 4, 1])
    'hold'
    """

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str):
            raise TypeError(f"characters: expected a string, got {type(characters).__name__}")
        if not characters:
            raise ValueError("characters: expected at least one character, got an empty string")
        self._codes = np.unique(_codes(characters))
        self.characters = "".join(map(chr, self._codes))

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text's characters.

        Returns
        -------
        ndarray (len(text),) of int64

        Raises
        ------
        ValueError
            If the text has characters that the vocabulary lacks; they are named.
        """
        codes = _codes(text)
        ids = np.minimum(np.searchsorted(self._codes, codes), len(self) - 1)
        unknown = np.unique(codes[self._codes[ids] != codes])
        if unknown.size:
            shown = " ".join(ascii(chr(code)) for code in unknown[:10]) + (" ..." if unknown.size > 10 else "")
            raise ValueError(f"text: the model's vocabulary has no {shown}")
        return ids.astype(np.int64)

    def decode(self, ids: Any) -> str:
        """The text of a sequence of ids. IndexError for an id that the vocabulary does not have."""
        ids = np.asarray(ids, dtype=np.int64)
        outside = ids[(ids < 0) | (ids >= len(self))]
        if outside.size:
            raise IndexError(f"ids: expected ids below {len(self)}, got {outside[0]}")
        return "".join(map(chr, self._codes[ids.reshape(-1)]))

    def __len__(self) -> int:
        return len(self._codes)

    def __contains__(self, character: object) -> bool:
        return isinstance(character, str) and len(character) == 1 and character in self.characters

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} characters)"


def _codes(text: str) -> np.ndarray:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
