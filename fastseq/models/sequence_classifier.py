"""One label for a sequence: a recurrent layer and what is made of its states, or a transformer and its [CLS]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import namespace, placed, to_cpu
from fastseq.functional import _check
from fastseq.models._cells import checked_cell
from fastseq.models._encoders import BertEncoder, RecurrentEncoder, checked_ids
from fastseq.models.vocabulary import Vocabulary, as_vocabulary
from fastseq.nn import AttentionPooling, Dropout, Linear, Module, pad_sequences
from fastseq.nn._inputs import brought
from fastseq.runtime import generator

_POOLINGS = {"transformer": ("cls", "mean", "attention")}


class SequenceClassifier(Module):
    """Scores of the classes that a sequence may belong to.

    The text's states are read by a recurrent layer in both directions, or by a transformer, and become one vector by `pooling`:

    - "last": the last state of each direction;
    - "mean": the average over the steps;
    - "attention": `nn.AttentionPooling`, the steps weighed by how well they fit the last one;
    - "cls", of a transformer: the state at the vocabulary's start token, [CLS], which the model puts before the text (Devlin et al. 2019).

    Parameters
    ----------
    vocabulary : Vocabulary, or what makes one
        "cls" wants one with a start token.
    classes : int, or sequence of names
    embedding_size : int
        Length of the tokens' vectors, and the width of a transformer.
    hidden_size : int
        Units of the recurrent layer in each direction; of a transformer: of the feed-forward part of its layers.
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3", "transformer"}
    pooling : {"last", "mean", "attention", "cls"}
    num_layers : int
    bidirectional : bool
        False reads from left to right only; a transformer always sees both sides.
    heads, max_length, segments : int
        Of a transformer: its heads, the longest text with [CLS], and kinds of segments, 0 where they are not told apart.
    dropout : float in [0, 1]
        On what the layers read and on the pooled vector, between layers, and within a transformer's.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    vocabulary : Vocabulary
    classes : list
        The names, or numbers from 0 where there are none.
    encoder : Module
        `encoder.requires_grad_(False)` freezes all but the pooling and the head.
    pool : nn.AttentionPooling or None
    head : nn.Linear

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> words = fs.models.Vocabulary(["a", "good", "bad", "film"], separator=" ", unknown="<unk>")
    >>> model = fs.models.SequenceClassifier(words, ["bad", "good"], 8, 16, pooling="attention", rng=0)
    >>> batch, lengths = fs.nn.pad_sequences([words.encode("a good film"), words.encode("bad")])
    >>> model(batch, lengths).shape
    (2, 2)
    >>> labels = model.classify(["a good film", "bad"])
    """

    def __init__(
        self,
        vocabulary: Any,
        classes: int | Sequence[Any],
        embedding_size: int = 64,
        hidden_size: int = 128,
        *,
        cell: str = "lstm",
        pooling: str = "last",
        num_layers: int = 1,
        bidirectional: bool = True,
        heads: int = 4,
        max_length: int = 512,
        segments: int = 0,
        dropout: float = 0.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.vocabulary: Vocabulary = as_vocabulary(vocabulary)
        self.classes = named("classes", classes)
        self.cell, self.pooling = cell, pooling
        checked_cell(cell, ("transformer",))
        _check.choice("pooling", pooling, _POOLINGS.get(cell, ("last", "mean", "attention")))
        if pooling == "cls" and self.vocabulary.start_id is None:
            raise ValueError("vocabulary: expected one with a start token, which pooling 'cls' puts before each text")
        drawn = generator(rng)
        common = {"num_layers": num_layers, "padding_idx": self.vocabulary.padding_id, "dropout": dropout, "dtype": dtype, "rng": drawn}
        sizes = len(self.vocabulary), embedding_size, hidden_size
        self.encoder: Any
        if cell == "transformer":
            self.encoder = BertEncoder(*sizes, heads=heads, max_length=max_length, segments=segments, **common)
        else:
            self.encoder = RecurrentEncoder(*sizes, cell=cell, bidirectional=bidirectional, **common)
        self.pool = AttentionPooling(self.encoder.size, self.encoder.size, dtype=dtype, rng=drawn) if pooling == "attention" else None
        self.dropout = Dropout(dropout, rng=drawn)
        self.head = Linear(self.encoder.size, len(self.classes), dtype=dtype, rng=drawn)
        self._options = {
            "embedding_size": embedding_size, "hidden_size": hidden_size, "cell": cell, "pooling": pooling, "num_layers": num_layers,
            "bidirectional": bidirectional, "heads": heads, "max_length": max_length, "segments": segments, "dropout": dropout,
            "dtype": np.dtype(dtype),
        }  # fmt: skip

    def forward(self, ids: Any, lengths: Any = None, segments: Any = None) -> Any:
        """Scores of the classes for each text.

        Parameters
        ----------
        ids : (T, B) integers
            Without [CLS].
        lengths : (B,) integers from 0 to T, optional
        segments : (T, B) integers, optional
            Of a transformer with segments: which one each token is of; [CLS] is of segment 0.

        Returns
        -------
        logits : (B, classes)

        Raises
        ------
        ValueError, TypeError, IndexError
            Shapes, lengths or ids that do not fit.
        """
        ids, lengths = checked_ids(ids, lengths, self.head.weight)
        return self.head(self.dropout(self._pooled(*self._prepared(ids, lengths, segments))))

    def loss(self, ids: Any, lengths: Any, labels: Any, segments: Any = None) -> Any:
        """Cross-entropy of the classes (B,), of which -100 does not count, recorded: what `fs.training.fit` minimises."""
        return functional.cross_entropy(self(Tensor(ids), lengths, segments), brought(labels, self.head.weight, "labels"))

    def classify(self, texts: Iterable[Any], *, batch_size: int = 64) -> list[Any]:
        """The likeliest class of each text: a name of `classes`.

        Parameters
        ----------
        texts : iterable of str, or of sequences of tokens
            What the vocabulary encodes.
        batch_size : int
            How many are read together.
        """
        return [self.classes[k] for k in self.scores(texts, batch_size=batch_size).argmax(axis=1)]

    def scores(self, texts: Iterable[Any], *, batch_size: int = 64) -> np.ndarray:
        """The scores (N, classes) of texts as `classify` takes them, without dropout; a softmax makes probabilities of them."""
        if isinstance(texts, str):
            raise TypeError("texts: expected several, got one; put it into a list")
        with self.evaluating():
            parts = [to_cpu(self(*batch)) for batch in padded((self.vocabulary.encode(text) for text in texts), batch_size)]
        return np.concatenate([np.zeros((0, len(self.classes)), self.head.weight.dtype), *parts])

    def attention(self, ids: Any, lengths: Any = None) -> np.ndarray:
        """How much of each token went into the text's vector: weights (B, T) that sum to one.

        Those of the pooling; with "cls" what [CLS] took from the text's tokens in the last layer, all heads averaged. For `fs.plot.attention`.

        Raises
        ------
        ValueError
            If the pooling is neither "attention" nor "cls".
        """
        _check.choice("pooling", self.pooling, ("attention", "cls"))
        ids, lengths = checked_ids(_check.data(ids), lengths, self.head.weight)
        with self.evaluating():
            ids, lengths, segments = self._prepared(ids, lengths, None)
            if self.pool is not None:
                return to_cpu(self.pool(self._states(ids, lengths, segments)[0], lengths, return_weights=True)[1])
            weights = to_cpu(self.encoder.attention(ids, lengths, segments))[:, 0, 1:]
        return weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(weights.dtype).tiny)

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class, the vocabulary as its configuration."""
        return {"vocabulary": self.vocabulary.configuration(), "classes": self.classes, **self._options}

    def _prepared(self, ids: Any, lengths: np.ndarray, segments: Any) -> tuple[Any, np.ndarray, Any]:
        """What the encoder reads: with "cls" one token more."""
        if self.pooling != "cls":
            return ids, lengths, segments
        values = _check.data(ids)
        longer = functional.concatenate([placed(np.full((1, values.shape[1]), self.vocabulary.start_id, values.dtype), values), values])
        if segments is not None:
            kinds = brought(segments, self.head.weight, "segments")
            segments = functional.concatenate([namespace(kinds).zeros_like(kinds[:1]), kinds])
        return Tensor(longer) if isinstance(ids, Tensor) else longer, lengths + 1, segments

    def _states(self, ids: Any, lengths: np.ndarray, segments: Any) -> tuple[Any, Any]:
        """All states, and the last ones of a recurrent layer."""
        if self.cell == "transformer":
            return self.encoder(ids, lengths, segments), None
        return self.encoder(ids, lengths)

    def _pooled(self, ids: Any, lengths: np.ndarray, segments: Any) -> Any:
        y, last = self._states(ids, lengths, segments)
        if self.pooling == "last":
            return last
        if self.pooling == "cls":
            return y[0]
        if self.pool is not None:
            return self.pool(y, lengths)
        return mean_over(y, lengths)


def mean_over(y: Any, lengths: np.ndarray) -> Any:
    """The average (B, H) of the steps (T, B, H) of each row, zeros for a row without any."""
    inside = np.arange(len(y))[:, None] < lengths
    shares = placed((inside / np.maximum(lengths, 1)).astype(y.dtype), _check.data(y))
    return (y * shares[:, :, None]).sum(axis=0)


def named(name: str, value: int | Sequence[Any]) -> list[Any]:
    """Names of classes, or numbers from 0 to one below `value`."""
    names = list(range(_check.integer(name, value, 1, 2**31))) if isinstance(value, int | np.integer) else list(value)
    if isinstance(value, str) or not names or len(set(names)) != len(names):
        raise ValueError(f"{name}: expected a number of classes, or distinct names, got {value!r}")
    return names


def padded(sequences: Iterable[np.ndarray], batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids (T, B), lengths (B,)) of the sequences, T at least 1."""
    batch_size, found = _check.integer("batch_size", batch_size, 1, 2**31), list(sequences)
    for start in range(0, len(found), batch_size):
        part = found[start : start + batch_size]
        yield pad_sequences(part, T=max(1, *map(len, part)))
