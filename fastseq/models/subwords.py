"""Subwords: pieces of words that the `tokenizers` library learns from texts, as a model's vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_SPECIALS = ("padding", "unknown", "start", "stop")


class SubwordVocabulary:
    """A tokenizer of Hugging Face's `tokenizers` library with the methods of a `Vocabulary`.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer, or str
        A string is its JSON, as `Tokenizer.to_str` gives it and ``tokenizer.json`` files hold it.
    padding, unknown, start, stop : str, optional
        Which of its tokens have these meanings. `encode` adds none of them.

    Attributes
    ----------
    tokens : list of str
        As the tokenizer writes them.
    padding_id, unknown_id, start_id, stop_id : int or None

    Raises
    ------
    ImportError
        If the library is not installed.
    ValueError
        If the string is no tokenizer, or the tokenizer lacks a token that is named.

    Examples
    --------
    >>> import fastseq as fs
    >>> texts = ["low lower lowest", "new newer newest"]
    >>> vocabulary = fs.models.SubwordVocabulary.from_texts(texts, size=270, stop="<end>")  # doctest: +SKIP
    >>> ids = vocabulary.encode("newest low")  # doctest: +SKIP
    >>> [vocabulary.tokens[n] for n in ids[:2]], vocabulary.decode(ids), vocabulary.stop_id  # doctest: +SKIP
    (['ne', 'west'], 'newest low', 0)
    """

    separator = ""

    def __init__(
        self,
        tokenizer: Any,
        *,
        padding: str | None = None,
        unknown: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> None:
        if not isinstance(tokenizer, str) and not hasattr(tokenizer, "to_str"):
            raise TypeError(f"tokenizer: expected a tokenizer or its JSON, got {type(tokenizer).__name__}")
        self._tokenizer = _loaded(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self._json = self._tokenizer.to_str()
        self._specials = dict(zip(_SPECIALS, (padding, unknown, start, stop), strict=True))
        for name, token in self._specials.items():
            if token is not None and token not in self:
                raise ValueError(f"{name}: expected a token of the tokenizer, got {token!r}")
        self.padding_id, self.unknown_id, self.start_id, self.stop_id = (
            None if token is None else self._tokenizer.token_to_id(token) for token in self._specials.values()
        )
        self.tokens = [self._tokenizer.id_to_token(n) for n in range(len(self))]

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        *,
        size: int,
        padding: str | None = None,
        unknown: str | None = None,
        start: str | None = None,
        stop: str | None = None,
    ) -> SubwordVocabulary:
        """Learn byte-pair encoding of the texts' bytes (Sennrich et al. 2016; Radford et al. 2019), which knows every text.

        Parameters
        ----------
        texts : iterable of str
        size : int
            Tokens in all: the special ones, 256 bytes, and pieces of words.
        padding, unknown, start, stop : str, optional
            Become the first tokens, in this order.
        """
        tokenizers = _library()
        specials = dict(zip(_SPECIALS, (padding, unknown, start, stop), strict=True))
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        named = [token for token in specials.values() if token is not None]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=named, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer, **specials)

    def encode(self, text: str | Iterable[str]) -> np.ndarray:
        """The ids of a text, or of tokens as `tokens` writes them.

        Returns
        -------
        ndarray (number of tokens,) of int64

        Raises
        ------
        ValueError
            For a token that there is not, where none stands for unknown ones.
        """
        if isinstance(text, str):
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        ids = [self._tokenizer.token_to_id(token) for token in text]
        return np.array([self._known(token, n) for token, n in zip(text, ids, strict=True)], np.int64)

    def _known(self, token: str, n: int | None) -> int:
        n = self.unknown_id if n is None else n
        if n is None:
            raise ValueError(f"text: the model's vocabulary has no {token!a}")
        return n

    def decode(self, ids: Any) -> str:
        """The text of a sequence of ids. IndexError for an id that the vocabulary does not have."""
        ids = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= len(self))]
        if outside.size:
            raise IndexError(f"ids: expected ids below {len(self)}, got {outside[0]}")
        text: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return text

    def id(self, token: str) -> int:
        """The id of one token; that of unknown ones, or ValueError, where the vocabulary lacks it."""
        return int(self.encode([token])[0])

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class."""
        return {"tokenizer": self._json, **self._specials}

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, Any]) -> SubwordVocabulary:
        """The vocabulary that gave this configuration."""
        return cls(**configuration)

    def __len__(self) -> int:
        size: int = self._tokenizer.get_vocab_size()
        return size

    def __contains__(self, token: object) -> bool:
        return isinstance(token, str) and self._tokenizer.token_to_id(token) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubwordVocabulary) and self.configuration() == other.configuration()

    def __hash__(self) -> int:
        return hash(self._json)

    def __repr__(self) -> str:
        specials = "".join(f", {name}={token!r}" for name, token in self._specials.items() if token is not None)
        return f"SubwordVocabulary({len(self)} tokens{specials})"


def _loaded(text: str) -> Any:
    tokenizers = _library()
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer: expected a tokenizer or its JSON, got a string that is none ({error})") from None


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError('tokenizers is missing: pip install "fastseq-kernels[subwords]"') from None
    return tokenizers
