"""A label for each token: a recurrent layer in both directions over words and their spelling (Ling et al. 2015; Lample et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import to_cpu
from fastseq.functional import _check
from fastseq.models._encoders import RecurrentEncoder, checked_ids
from fastseq.models.sequence_classifier import named, padded
from fastseq.models.vocabulary import Vocabulary, as_vocabulary, split
from fastseq.nn import Dropout, Linear, Module
from fastseq.nn._inputs import brought, plain_array
from fastseq.runtime import generator


class SequenceTagger(Module):
    """Scores of the tags that each token may have; with `classes`, also of what the whole sequence is.

    A token's vector is a row of a table and, with `characters`, the last states of a second recurrent layer that spells it in both
    directions: what it knows of words that it has never seen. The second head reads the last states of the first layer.

    Parameters
    ----------
    vocabulary : Vocabulary, or what makes one
        Of the tokens.
    tags : int, or sequence of names
    embedding_size, hidden_size : int
        Length of the tokens' vectors; units of the recurrent layer in each direction.
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3"}
    num_layers : int
    bidirectional : bool
    characters : Vocabulary, or what makes one; optional
        Of the characters, with a padding token, which fills short words.
    character_embedding_size, character_hidden_size : int
        Length of their vectors; units of the layer that spells, in each direction.
    word_length : int
        How many characters of a word are read; of a longer word both ends are.
    classes : int, or sequence of names; optional
        What a whole sequence may be.
    dropout : float in [0, 1]
        On what the layer over words reads and on its states, while training.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    vocabulary, characters : Vocabulary
    tags, classes : list
        The names, or numbers from 0 where there are none; `classes` is None without the second head.
    speller, encoder : Module
    head, class_head : nn.Linear

    Examples
    --------
    >>> import fastseq as fs
    >>> words = fs.models.Vocabulary(["the", "dog", "barks"], separator=" ", unknown="<unk>", padding="<pad>")
    >>> letters = fs.models.Vocabulary("abcdefghijklmnopqrstuvwxyz", unknown="<unk>", padding="<pad>")
    >>> tagger = fs.models.SequenceTagger(words, ["DET", "NOUN", "VERB"], 8, 16, characters=letters, rng=0)
    >>> tokens = tagger.encode(["the", "cat", "barks"])
    >>> tokens.shape, tagger(tokens[:, None]).shape
    ((3, 21), (3, 1, 3))
    >>> found = tagger.tag([["the", "cat", "barks"], ["dog"]])
    """

    def __init__(
        self,
        vocabulary: Any,
        tags: int | Sequence[Any],
        embedding_size: int = 100,
        hidden_size: int = 100,
        *,
        cell: str = "lstm",
        num_layers: int = 1,
        bidirectional: bool = True,
        characters: Any = None,
        character_embedding_size: int = 25,
        character_hidden_size: int = 25,
        word_length: int = 20,
        classes: int | Sequence[Any] | None = None,
        dropout: float = 0.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.vocabulary: Vocabulary = as_vocabulary(vocabulary)
        self.characters: Vocabulary | None = None if characters is None else as_vocabulary(characters)
        self.tags, self.classes = named("tags", tags), None if classes is None else named("classes", classes)
        self.word_length = _check.integer("word_length", word_length, 2, 2**31)
        if self.characters is not None and self.characters.padding_id is None:
            raise ValueError("characters: expected a vocabulary with a padding token, which tells where a word ends")
        drawn = generator(rng)
        common = {"cell": cell, "dtype": dtype, "rng": drawn}
        self.speller, features = None, 0
        if self.characters is not None:
            sizes = len(self.characters), character_embedding_size, character_hidden_size
            self.speller = RecurrentEncoder(*sizes, padding_idx=self.characters.padding_id, **common)
            features = self.speller.size
        self.encoder = RecurrentEncoder(
            len(self.vocabulary), embedding_size, hidden_size, features=features, num_layers=num_layers, bidirectional=bidirectional,
            padding_idx=self.vocabulary.padding_id, dropout=dropout, **common,
        )  # fmt: skip
        self.dropout = Dropout(dropout, rng=drawn)
        self.head = Linear(self.encoder.size, len(self.tags), dtype=dtype, rng=drawn)
        self.class_head = None if self.classes is None else Linear(self.encoder.size, len(self.classes), dtype=dtype, rng=drawn)
        self._options = {
            "embedding_size": embedding_size, "hidden_size": hidden_size, "cell": cell, "num_layers": num_layers,
            "bidirectional": bidirectional, "character_embedding_size": character_embedding_size,
            "character_hidden_size": character_hidden_size, "word_length": word_length, "dropout": dropout, "dtype": np.dtype(dtype),
        }  # fmt: skip

    def forward(self, tokens: Any, lengths: Any = None) -> Any:
        """Scores of the tags of each token, and with `classes` of each sequence.

        Parameters
        ----------
        tokens : (T, B) integers, with `characters` (T, B, 1 + word_length)
            Ids of the words, with `characters` each followed by those of its characters: what `encode` makes, padded.
        lengths : (B,) integers from 0 to T, optional

        Returns
        -------
        logits : (T, B, tags)
        class_logits : (B, classes)
            With `classes`.

        Raises
        ------
        ValueError, TypeError, IndexError
            Shapes, lengths or ids that do not fit.
        """
        # On a GPU too words are taken apart here: how long each is decides how far the characters' layer reads.
        values, features = _check.data(tokens) if self.speller is None else _check.plain("tokens", tokens), None
        if self.speller is not None:
            _check.shape("tokens", values, ("T", "B", 1 + self.word_length))
            values, letters = np.ascontiguousarray(values[..., 0]), values[..., 1:]
        ids, lengths = checked_ids(Tensor(values) if isinstance(tokens, Tensor) else values, lengths, self.head.weight, "tokens")
        if self.speller is not None:
            features = self._spelled(letters, lengths, isinstance(tokens, Tensor))
        y, last = self.encoder(ids, lengths, features)
        logits = self.head(self.dropout(y))
        return logits if self.class_head is None else (logits, self.class_head(self.dropout(last)))

    def loss(self, tokens: Any, lengths: Any, tags: Any, classes: Any = None) -> Any:
        """Cross-entropy of the tags (T, B), of which -100 does not count, plus that of the classes (B,) where the model has them.

        It is recorded: what `fs.training.fit` minimises. `fs.training.BucketBatches` makes the batches, of what `encode` gives.
        """
        scores = self(Tensor(plain_array(tokens, "tokens")), lengths)
        logits, class_logits = (scores, None) if self.class_head is None else scores
        loss = functional.cross_entropy(logits.reshape(-1, len(self.tags)), brought(tags, self.head.weight, "tags").reshape(-1))
        return loss if class_logits is None else loss + functional.cross_entropy(class_logits, brought(classes, self.head.weight, "classes"))

    def encode(self, words: str | Sequence[str]) -> np.ndarray:
        """What the model reads of a sequence: ids (T,), with `characters` (T, 1 + word_length), each id followed by its characters'.

        A string is split as the vocabulary splits its texts.
        """
        words = split(words, getattr(self.vocabulary, "separator", ""))
        ids = self.vocabulary.encode(words)
        if self.characters is None:
            return ids
        tokens = np.full((len(words), 1 + self.word_length), self.characters.padding_id, np.int64)
        tokens[:, 0] = ids
        for row, word in zip(tokens, words, strict=True):
            letters = self.characters.encode(list(word))
            if len(letters) > self.word_length:
                half = self.word_length // 2
                letters = np.concatenate([letters[:half], letters[half - self.word_length :]])
            row[1 : 1 + len(letters)] = letters
        return tokens

    def tag(self, sentences: Iterable[Sequence[str]], *, batch_size: int = 64) -> list[Any]:
        """The likeliest tag of each token of each sentence: a list of names per sentence; with `classes` pairs (tags, class)."""
        if isinstance(sentences, str):
            raise TypeError("sentences: expected several, got one; put it into a list")
        found: list[Any] = []
        with self.evaluating():
            for tokens, lengths in padded((self.encode(words) for words in sentences), batch_size):
                found += self._named(self(tokens, lengths), lengths)
        return found

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class, vocabularies as their configurations."""
        characters = None if self.characters is None else self.characters.configuration()
        named_parts = {"vocabulary": self.vocabulary.configuration(), "tags": self.tags, "characters": characters, "classes": self.classes}
        return named_parts | self._options

    def _named(self, scores: Any, lengths: np.ndarray) -> list[Any]:
        logits = to_cpu(scores if self.classes is None else scores[0])
        tags = [[self.tags[k] for k in row[:n]] for row, n in zip(logits.argmax(axis=2).T, lengths, strict=True)]
        if self.classes is None:
            return tags
        return list(zip(tags, [self.classes[k] for k in to_cpu(scores[1]).argmax(axis=1)], strict=True))

    def _spelled(self, letters: np.ndarray, lengths: np.ndarray, recording: bool) -> Any:
        """What the speller makes of the characters (T, B, C) of each token: (T, B, size)."""
        assert self.speller is not None
        assert self.characters is not None
        T, B, C = letters.shape
        inside = np.arange(T)[:, None] < lengths
        upto = (letters != self.characters.padding_id) * np.arange(1, C + 1)  # a word may hold the padding's own character
        counts = np.where(inside, upto.max(axis=2), 0).reshape(-1)
        letters = np.ascontiguousarray(letters.reshape(T * B, C)[:, : max(1, int(counts.max(initial=0)))].T)
        letters = brought(letters, self.head.weight, "tokens")
        _, last = self.speller(Tensor(letters) if recording else letters, counts)
        return last.reshape((T, B, self.speller.size))
