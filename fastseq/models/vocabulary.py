"""Vocabulary: the tokens that a model knows, characters or words, and their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastseq.models.subwords import SubwordVocabulary

_SPECIALS = ("padding", "unknown", "start", "stop")


class Vocabulary:
    """Tokens in a fixed order; a token's id is its place there.

    The special tokens that are named come first, in the order padding, unknown, start, stop.

    Parameters
    ----------
    tokens : str, or iterable of distinct str
        A string stands for its distinct characters, ordered by code point; an iterable keeps its order.
    separator : str
        What stands between two tokens of a text: nothing for characters, " " for words. Empty pieces count for nothing.
    unknown : str, optional
        The token that stands for all that are not in the vocabulary; without it such a token is an error.
    padding, start, stop : str, optional
        Tokens that fill a batch's short rows, begin a sequence and end it. `encode` does not add them.

    Attributes
    ----------
    tokens : list of str
        All of them, the special ones too.
    padding_id, unknown_id, start_id, stop_id : int or None

    Raises
    ------
    ValueError
        If there is no token, or one comes twice.
    TypeError
        If a token is no string.

    Examples
    --------
    >>> import fastseq as fs
    >>> vocabulary = fs.models.Vocabulary("hello world")
    >>> vocabulary.encode("hold").tolist()
    [3, 5, 4, 1]
    >>> vocabulary.decode([3, 5, 4, 1])
    'hold'
    >>> words = fs.models.Vocabulary(["the", "cat"], separator=" ", unknown="<unk>", stop="</s>")
    >>> words.encode("the old cat").tolist(), words.stop_id
    ([2, 0, 3], 1)
    """

    def __init__(
        self,
        tokens: str | Iterable[str],
        *,
        separator: str = "",
        unknown: str | None = None,
        padding: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> None:
        self.separator = separator
        self._specials = dict(zip(_SPECIALS, (padding, unknown, start, stop), strict=True))
        self._characters = isinstance(tokens, str)  # what `tokens` was, for the configuration
        named = [token for token in self._specials.values() if token is not None]
        ordinary = sorted(set(tokens)) if isinstance(tokens, str) else list(tokens)
        self.tokens = named + [token for token in ordinary if token not in named]
        self._ids = {token: n for n, token in enumerate(self.tokens)}
        _check_tokens(self.tokens, ordinary)
        self.padding_id, self.unknown_id, self.start_id, self.stop_id = (
            None if token is None else self._ids[token] for token in self._specials.values()
        )

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str | Iterable[str]],
        *,
        separator: str = " ",
        size: int | None = None,
        min_count: int = 1,
        unknown: str | None = "<unk>",
        padding: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> Vocabulary:
        """The tokens of texts, the most frequent first, ties in the tokens' own order.

        Parameters
        ----------
        texts : iterable of str, or of lists of tokens
        separator, unknown, padding, start, stop
            As in the class.
        size : int, optional
            Keep so many, the special ones not counted.
        min_count : int
            Leave out what comes less often.

        Examples
        --------
        >>> import fastseq as fs
        >>> fs.models.Vocabulary.from_texts(["a rose is a rose", "is it"], size=3).tokens
        ['<unk>', 'a', 'is', 'rose']
        """
        counts = Counter(token for text in texts for token in split(text, separator))
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
        specials = {"unknown": unknown, "padding": padding, "start": start, "stop": stop}
        kept = [token for token in ranked if counts[token] >= min_count and token not in specials.values()]
        return cls(kept[:size], separator=separator, **specials)

    def encode(self, text: str | Iterable[str]) -> np.ndarray:
        """The ids of a text's tokens.

        Parameters
        ----------
        text : str, which is split at the separator, or an iterable of tokens

        Returns
        -------
        ndarray (number of tokens,) of int64

        Raises
        ------
        ValueError
            If tokens are not in the vocabulary and it has none for unknown ones; they are named.
        """
        tokens, ids, unknown = split(text, self.separator), self._ids, self.unknown_id
        if unknown is not None:
            return np.array([ids.get(token, unknown) for token in tokens], np.int64)
        try:
            return np.array([ids[token] for token in tokens], np.int64)
        except KeyError:
            raise ValueError(f"text: the model's vocabulary has no {_shown(set(tokens) - set(ids))}") from None

    def decode(self, ids: Any) -> str:
        """The text of a sequence of ids. IndexError for an id that the vocabulary does not have."""
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= len(self))]
        if outside.size:
            raise IndexError(f"ids: expected ids below {len(self)}, got {outside[0]}")
        return self.separator.join([self.tokens[n] for n in ids])

    def id(self, token: str) -> int:
        """The id of one token; that of unknown ones, or ValueError, where the vocabulary lacks it."""
        return int(self.encode([token])[0])

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class."""
        named = sum(token is not None for token in self._specials.values())
        ordinary = self.tokens[named:]
        return {"tokens": "".join(ordinary) if self._characters else ordinary, "separator": self.separator, **self._specials}

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> Vocabulary:
        """The vocabulary that gave this configuration."""
        return cls(**configuration)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return tuple(self.tokens), self.separator, *self._specials.values()

    def __repr__(self) -> str:
        specials = "".join(f", {name}={token!r}" for name, token in self._specials.items() if token is not None)
        return f"Vocabulary({len(self)} {'characters' if self._characters else 'tokens'}{specials})"


def as_vocabulary(value: Any) -> Any:
    """What a model's argument `vocabulary` may be, as a vocabulary.

    Parameters
    ----------
    value : Vocabulary, str, mapping or int
        A vocabulary of any class as it is; a string of characters; a vocabulary's configuration; or a number of ids that
        stand for nothing else.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> from fastseq.models import as_vocabulary
    >>> as_vocabulary("abc"), as_vocabulary(3).tokens
    (Vocabulary(3 characters), ['0', '1', '2'])
    """
    if isinstance(value, str):
        return Vocabulary(value)
    if isinstance(value, Mapping):
        if "tokenizer" in value:
            return SubwordVocabulary.from_configuration(value)
        return Vocabulary.from_configuration(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return Vocabulary(map(str, range(value)), separator=" ")
    if hasattr(value, "encode") and hasattr(value, "configuration"):
        return value
    raise TypeError(
        f"vocabulary: expected a Vocabulary, a string of characters, a configuration or a size, got {type(value).__name__}"
    )


def split(text: str | Iterable[str], separator: str) -> list[str]:
    """The tokens of a text: what stands between separators and is not empty, or its characters where the separator is ""."""
    if not isinstance(text, str) or not separator:
        return list(text)
    return [token for token in text.split(separator) if token]


def _check_tokens(tokens: list[str], ordinary: list[str]) -> None:
    for token in tokens:
        if not isinstance(token, str):
            raise TypeError(f"tokens: expected strings, got {type(token).__name__}")
    if not ordinary:
        raise ValueError("tokens: expected at least one, got none")
    twice = {token for token, n in Counter(tokens).items() if n > 1}
    if twice:
        raise ValueError(f"tokens: expected each once, got more than one {_shown(twice)}")


def _shown(tokens: set[str]) -> str:
    """At most ten tokens, for a message."""
    return " ".join(map(ascii, sorted(tokens)[:10])) + (" ..." if len(tokens) > 10 else "")
