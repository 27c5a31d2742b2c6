"""BERT: a transformer that reads both sides and says which words are hidden, and whether two texts follow each other (Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import to_cpu
from fastseq.functional import _check
from fastseq.models._encoders import BertEncoder, checked_ids
from fastseq.models.sequence_classifier import SequenceClassifier
from fastseq.models.vocabulary import Vocabulary, as_vocabulary
from fastseq.nn import GELU, LayerNorm, Linear, Module, Parameter
from fastseq.nn._inputs import brought
from fastseq.runtime import generator

#: The target of a place that is not asked about, as cross-entropy's.
_NOT_ASKED = -100


class MaskedLanguageModel(Module):
    """Scores of the words that stand at each place of a text, read from both sides, and of a pair's second text following the first.

    The text goes through a transformer (`encoder`); what comes out goes through a linear layer, GELU and layer norm, and is compared
    with the vector of every token (its table is the output matrix too). The state at [CLS] goes through a linear layer of its own.
    Pre-norm layers, no pooler: otherwise BERT.

    Parameters
    ----------
    vocabulary : Vocabulary, or what makes one
        With padding, a start token [CLS], a stop token [SEP], and the token "[MASK]".
    embedding_size, hidden_size : int
        Width of the transformer, and of its feed-forward parts.
    num_layers, heads, max_length : int
    dropout : float in [0, 1]
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    vocabulary : Vocabulary
    encoder : Module
    transform : nn.Linear
    norm : nn.LayerNorm
    bias : Parameter (V,)
    next_sentence : nn.Linear

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> special = {"padding": "[PAD]", "unknown": "[UNK]", "start": "[CLS]", "stop": "[SEP]"}
    >>> words = fs.models.Vocabulary(["[MASK]", "a", "dog", "barks"], separator=" ", **special)
    >>> bert = fs.models.MaskedLanguageModel(words, 16, 32, heads=2, rng=0)
    >>> ids, segments = bert.pair("a dog", "a dog barks")
    >>> words.decode(ids), segments.tolist()
    ('[CLS] a dog [SEP] a dog barks [SEP]', [0, 0, 0, 0, 1, 1, 1, 1])
    >>> logits, follows = bert(ids[:, None], None, segments[:, None])
    >>> logits.shape, follows.shape
    ((8, 1, 8), (1, 2))
    """

    def __init__(
        self,
        vocabulary: Any,
        embedding_size: int = 128,
        hidden_size: int = 512,
        *,
        num_layers: int = 2,
        heads: int = 4,
        max_length: int = 512,
        dropout: float = 0.1,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        self.vocabulary: Vocabulary = as_vocabulary(vocabulary)
        _special(self.vocabulary)
        drawn, E = generator(rng), embedding_size
        self._options = {
            "embedding_size": E, "hidden_size": hidden_size, "num_layers": num_layers, "heads": heads, "max_length": max_length,
            "dropout": dropout, "dtype": np.dtype(dtype),
        }  # fmt: skip
        self.encoder = BertEncoder(
            len(self.vocabulary), E, hidden_size, num_layers=num_layers, heads=heads, max_length=max_length, segments=2,
            padding_idx=self.vocabulary.padding_id, dropout=dropout, dtype=dtype, rng=drawn,
        )  # fmt: skip
        self.transform, self.activation, self.norm = Linear(E, E, dtype=dtype, rng=drawn), GELU(), LayerNorm(E, dtype=dtype)
        self.bias = Parameter(np.zeros(len(self.vocabulary), dtype))
        self.next_sentence = Linear(E, 2, dtype=dtype, rng=drawn)

    def forward(self, ids: Any, lengths: Any = None, segments: Any = None) -> tuple[Any, Any]:
        """Scores of the words at each place, and of the two answers to whether the second text follows the first.

        Parameters
        ----------
        ids : (T, B) integers
            [CLS] a [SEP] b [SEP], or without b.
        lengths : (B,) integers from 0 to T, optional
        segments : (T, B) integers, optional
            0 in the first text, 1 in the second; all 0 if left out.

        Returns
        -------
        logits : (T, B, V)
        follows : (B, 2)
            Of no, and of yes.

        Raises
        ------
        ValueError, TypeError, IndexError
            Shapes, lengths or ids that do not fit.
        """
        ids, lengths = checked_ids(ids, lengths, self.bias)
        states = self.encoder(ids, lengths, segments)
        table, bias = self._output(isinstance(ids, Tensor))
        return functional.linear(self._transformed(states), table, bias), self.next_sentence(states[0])

    def loss(self, ids: Any, lengths: Any, segments: Any, words: Any, follows: Any = None) -> Any:
        """Cross-entropy of the hidden words (T, B), -100 where nothing is asked, plus that of (B,) answers, 1 = follows; recorded.

        Only the hidden places are scored against the vocabulary.
        """
        ids, lengths = checked_ids(ids, lengths, self.bias)
        states, words = self.encoder(Tensor(_check.data(ids)), lengths, segments), brought(words, self.bias, "words")
        asked = words != _NOT_ASKED
        loss = functional.linear_cross_entropy(self._transformed(states[asked]), *self._output(True), words[asked])
        return loss if follows is None else loss + functional.cross_entropy(self.next_sentence(states[0]), brought(follows, self.bias, "follows"))

    def pair(self, first: Any, second: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """[CLS] first [SEP] second [SEP] as ids (T,), and 0 or 1 for each of them (T,).

        Parameters
        ----------
        first, second : str, or sequence of tokens
            What the vocabulary encodes; `second` may be left out.
        """
        start, stop = self.vocabulary.start_id, self.vocabulary.stop_id
        parts = [[start, *self.vocabulary.encode(first), stop]]
        if second is not None:
            parts.append([*self.vocabulary.encode(second), stop])
        return np.concatenate(parts).astype(np.int64), np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def fill(self, text: Any) -> str:
        """The text with the likeliest word at each "[MASK]", which is never a special one."""
        ids, _ = self.pair(text)
        with self.evaluating():
            logits, _ = self(ids[:, None])
        mask, special = _special(self.vocabulary)
        logits = to_cpu(logits)
        logits[..., special] = -np.inf
        return self.vocabulary.decode(np.where(ids == mask, logits[:, 0].argmax(axis=1), ids)[1:-1])

    def classifier(self, classes: int | Sequence[Any], *, pooling: str = "cls", dropout: float = 0.1, rng: Any = None) -> SequenceClassifier:
        """A classifier that begins with a copy of this encoder: what fine-tuning starts from.

        Train all of it, or first only what is new: `model.encoder.requires_grad_(False)`.

        Parameters
        ----------
        classes, pooling, dropout, rng
            As of `SequenceClassifier`.
        """
        options = {**self._options, "cell": "transformer", "pooling": pooling, "segments": 2, "dropout": dropout, "rng": rng}
        model = SequenceClassifier(self.vocabulary, classes, **options)
        model.encoder.load_state_dict(self.encoder.state_dict())
        return model

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class, the vocabulary as its configuration."""
        return {"vocabulary": self.vocabulary.configuration(), **self._options}

    def _transformed(self, states: Any) -> Any:
        return self.norm(self.activation(self.transform(states)))

    def _output(self, recording: bool) -> tuple[Any, Any]:
        table, bias = self.encoder.embedding.weight, self.bias
        return (table, bias) if recording else (table.data, bias.data)


def mask_tokens(ids: Any, vocabulary: Vocabulary, rng: Any = None, *, probability: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Hide some words of texts as BERT's training does: what the model reads, and what it is asked.

    Each place but those of special tokens is chosen with `probability`. Of the chosen, 80 % become "[MASK]", 10 % a random word and
    10 % stay as they are, so that the model may trust no place.

    Parameters
    ----------
    ids : (T, B) integers, or of any other shape
    vocabulary : Vocabulary
        As `MaskedLanguageModel`'s.
    rng : None, int or numpy.random.Generator
    probability : float in [0, 1]

    Returns
    -------
    inputs : ndarray of int64, ids' shape
    words : ndarray of int64, ids' shape
        The chosen places' own ids, -100 elsewhere. Where a chance left none, one place is chosen.

    Raises
    ------
    ValueError, TypeError
        If the vocabulary lacks a special token, or `probability` is none.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> special = {"padding": "[PAD]", "unknown": "[UNK]", "start": "[CLS]", "stop": "[SEP]"}
    >>> words = fs.models.Vocabulary(["[MASK]", *"abcdefgh"], separator=" ", **special)
    >>> ids = words.encode("[CLS] a b c d e f g h [SEP]")
    >>> inputs, asked = fs.models.mask_tokens(ids, words, 3)
    >>> bool((asked[[0, -1]] == -100).all())
    True
    """
    mask, special = _special(vocabulary)
    probability, drawn = _check.probability("probability", probability), generator(rng)
    values = _check.plain("ids", ids).astype(np.int64)
    allowed = ~np.isin(values, special)
    chosen = allowed & (drawn.random(values.shape) < probability)
    if probability > 0 and allowed.any() and not chosen.any():
        chosen.reshape(-1)[drawn.choice(np.flatnonzero(allowed))] = True
    kind = drawn.random(values.shape)
    ordinary = np.setdiff1d(np.arange(len(vocabulary)), special)
    inputs = np.where(chosen & (kind < 0.8), mask, values)
    inputs = np.where(chosen & (kind >= 0.9), drawn.choice(ordinary, values.shape) if ordinary.size else values, inputs)
    return inputs, np.where(chosen, values, _NOT_ASKED)


def _special(vocabulary: Vocabulary) -> tuple[int, list[int]]:
    """The id of "[MASK]", and those of all special tokens."""
    named = {"padding": vocabulary.padding_id, "start": vocabulary.start_id, "stop": vocabulary.stop_id}
    missing = [name for name, id in named.items() if id is None] + ["'[MASK]'"] * ("[MASK]" not in vocabulary)
    if missing:
        raise ValueError(f"vocabulary: expected padding, start, stop and '[MASK]', got none for {', '.join(missing)}")
    mask = vocabulary.id("[MASK]")
    return mask, [mask, *(id for id in (*named.values(), vocabulary.unknown_id) if id is not None)]
