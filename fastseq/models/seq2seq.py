"""Sequence to sequence: an encoder reads, a decoder writes (Sutskever 2014; Cho 2014; Bahdanau 2015; Luong 2015; Vaswani 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import placed
from fastseq.functional import _check
from fastseq.functional.recurrent import checked_lengths
from fastseq.models._cells import last_states
from fastseq.models.vocabulary import as_vocabulary
from fastseq.nn import (
    GRU,
    LSTM,
    AttentionDecoder,
    Dropout,
    Embedding,
    KeyValueCache,
    Linear,
    Module,
    SinusoidalPositionalEncoding,
    Transformer,
    padding_mask,
)
from fastseq.nn._inputs import brought, plain_array
from fastseq.runtime import generator

_LAYERS = {"lstm": LSTM, "gru": GRU}
_IGNORED = -100


class Seq2Seq(Module):
    """Scores of the next target token from a whole source and all target tokens before it.

    With `cell` "lstm" or "gru" a recurrent encoder reads the source; its last state is the decoder's first. With attention the
    decoder looks at all of the encoder's outputs in each step; with `attention` None it sees that state only, and with
    `input_feeding` sees it again in each step. With "transformer" encoder and decoder are stacks of pre-norm layers with
    sinusoidal positions, and decoding keeps keys and values.

    Sources and targets are token ids without special tokens: the model itself puts the target vocabulary's start token before a
    target and its stop token behind it.

    Parameters
    ----------
    source_vocabulary, target_vocabulary : Vocabulary, or what makes one
        The target's has a start and a stop token.
    embedding_size : int
        Width of the token vectors; for "transformer" the width of the whole model.
    hidden_size : int
        Units of the decoder, and of the encoder in both directions together; for "transformer" the width of the layers'
        feed-forward parts.
    cell : {"lstm", "gru", "transformer"}
    attention : {"additive", "dot", "scaled_dot", "bilinear"} or None
        Of a recurrent decoder; see `nn.AttentionDecoder`.
    input_feeding : bool
        Of a recurrent decoder: the context (without attention the encoder's last state) enters each step.
    bidirectional : bool
        Of a recurrent encoder: half of `hidden_size` for each direction.
    num_layers : int
        Layers of the encoder; for "transformer" of the decoder too.
    heads : int
        Of "transformer", a divisor of `embedding_size`.
    dropout : float in [0, 1]
        While training: of token vectors, of what the encoder gives and of what the head gets; for "transformer" as in its layers.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    source_vocabulary, target_vocabulary : Vocabulary
    source_embedding, target_embedding : nn.Embedding
    encoder : nn.LSTM, nn.GRU or nn.TransformerEncoder
    decoder : nn.AttentionDecoder or nn.TransformerDecoder
    head : nn.Linear

    Raises
    ------
    ValueError, TypeError
        If an option is not one of these, or the target's vocabulary lacks its start or stop token.

    Examples
    --------
    >>> import fastseq as fs
    >>> letters = fs.models.Vocabulary("abc", start="<s>", stop="</s>")
    >>> model = fs.models.Seq2Seq("abc", letters, 8, 16, rng=0)
    >>> source, source_lengths = fs.nn.pad_sequences([[0, 1, 2], [2, 1]])
    >>> target, target_lengths = fs.nn.pad_sequences([[4, 3, 2], [3, 4]])
    >>> loss = model.loss(source, source_lengths, target, target_lengths)
    >>> loss.backward()
    >>> model.eval().decoding(source, source_lengths).logits.shape
    (2, 5)
    """

    def __init__(
        self,
        source_vocabulary: Any,
        target_vocabulary: Any,
        embedding_size: int = 128,
        hidden_size: int = 256,
        *,
        cell: str = "lstm",
        attention: str | None = "additive",
        input_feeding: bool = True,
        bidirectional: bool = True,
        num_layers: int = 1,
        heads: int = 4,
        dropout: float = 0.0,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        if cell not in (*_LAYERS, "transformer"):
            raise ValueError(f"cell: expected one of {', '.join(_LAYERS)}, transformer, got {cell!r}")
        self.source_vocabulary, self.target_vocabulary = as_vocabulary(source_vocabulary), as_vocabulary(target_vocabulary)
        for name in ("start", "stop"):
            if getattr(self.target_vocabulary, f"{name}_id") is None:
                raise ValueError(f"target_vocabulary: expected one with a {name} token, got {self.target_vocabulary}")
        self.cell, self.attention, self.input_feeding, self.bidirectional = cell, attention, input_feeding, bidirectional
        self.embedding_size, self.hidden_size, self.num_layers, self.heads = embedding_size, hidden_size, num_layers, heads
        self.dtype, rng = dtype, generator(rng)
        self.source_embedding = Embedding(len(self.source_vocabulary), embedding_size, dtype=dtype, rng=rng)
        self.target_embedding = Embedding(len(self.target_vocabulary), embedding_size, dtype=dtype, rng=rng)
        self.dropout = Dropout(dropout, rng=rng)
        (self._make_transformer if cell == "transformer" else self._make_recurrent)(dropout, rng)
        self.head = Linear(embedding_size if cell == "transformer" else hidden_size, len(self.target_vocabulary), dtype=dtype, rng=rng)

    def _make_recurrent(self, dropout: float, rng: np.random.Generator) -> None:
        E, H, options = self.embedding_size, self.hidden_size, {"dtype": self.dtype, "rng": rng}
        both = _check.boolean("bidirectional", self.bidirectional)
        if both and H % 2:
            raise ValueError(f"hidden_size: expected an even number, for the encoder reads in two directions, got {H}")
        self.encoder: Any = _LAYERS[self.cell](E, H // (1 + both), self.num_layers, dropout=dropout, bidirectional=both, **options)
        self.decoder: Any = AttentionDecoder(
            E, H, H, cell=self.cell, attention=self.attention, input_feeding=self.input_feeding, **options)

    def _make_transformer(self, dropout: float, rng: np.random.Generator) -> None:
        E, layers, options = self.embedding_size, self.num_layers, {"dtype": self.dtype, "rng": rng}
        stacks = Transformer(E, self.heads, layers, layers, self.hidden_size, dropout, "gelu", norm_first=True, **options)
        self.positions = SinusoidalPositionalEncoding(E, dtype=self.dtype)
        for table in (self.source_embedding.weight, self.target_embedding.weight):
            table.data *= E**-0.5  # and the vectors times sqrt(E), as large as the sines: so Adam's steps move them faster
        self.encoder, self.decoder = stacks.encoder, stacks.decoder

    # ------------------------------------------------------------------ training

    def forward(
        self, source: Any, target_inputs: Any, source_lengths: Any = None, target_lengths: Any = None, *, return_weights: bool = False
    ) -> Any:
        """Scores after each target token, all right tokens before it given: teacher forcing.

        Parameters
        ----------
        source : (S, B) integers
        target_inputs : (T, B) integers
            The start token and the target.
        source_lengths, target_lengths : (B,) integers, optional
            Whole rows if left out.
        return_weights : bool
            Also return what the decoder looked at.

        Returns
        -------
        logits : (T, B, V)
        weights : (T, B, S), with `return_weights`

        Raises
        ------
        ValueError, TypeError, IndexError
            Shapes, lengths or ids that do not fit; weights asked of a model without attention, or of a transformer, whose layers
            do not keep them.
        """
        outputs, weights = self._outputs(source, target_inputs, source_lengths, target_lengths, return_weights)
        return (self.head(outputs), weights) if return_weights else self.head(outputs)

    def loss(self, source: Any, source_lengths: Any, target: Any, target_lengths: Any = None) -> Any:
        """Mean cross-entropy, in nats per target token; each target's stop token counts too.

        Parameters
        ----------
        source : (S, B) integers
        source_lengths : (B,) integers, or None
        target : (T, B) integers
            Without start and stop.
        target_lengths : (B,) integers, optional
            If left out, negative ids are what is padded.

        Returns
        -------
        Tensor ()

        Raises
        ------
        ValueError, TypeError, IndexError
            Shapes, lengths or ids that do not fit.
        """
        inputs, wanted, lengths = self.teacher(target, target_lengths)
        outputs, _ = self._outputs(Tensor(plain_array(source, "source")), Tensor(inputs), source_lengths, lengths, False)
        wanted = brought(wanted, self.head.weight, "target").reshape(-1)
        return functional.linear_cross_entropy(
            outputs.reshape((-1, outputs.shape[2])), self.head.weight, self.head.bias, wanted, ignore_index=_IGNORED)

    def teacher(self, target: Any, target_lengths: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the decoder reads of a target, and what it should then say.

        Parameters
        ----------
        target : (T, B) integers
            Without start and stop.
        target_lengths : (B,) integers, optional
            If left out, negative ids are what is padded.

        Returns
        -------
        inputs : ndarray (T + 1, B)
            The start token and the target.
        wanted : ndarray (T + 1, B)
            The target and the stop token, then -100.
        lengths : ndarray (B,)

        Raises
        ------
        ValueError, TypeError
            If `target` is not such an array.

        Examples
        --------
        >>> import fastseq as fs
        >>> letters = fs.models.Vocabulary("abc", start="<s>", stop="</s>")
        >>> model = fs.models.Seq2Seq("abc", letters, 4, 4)
        >>> inputs, wanted, lengths = model.teacher([[2, 3], [4, -100]])
        >>> inputs.T.tolist(), wanted.T.tolist(), lengths.tolist()
        ([[0, 2, 4], [0, 3, 1]], [[2, 4, 1], [3, 1, -100]], [3, 2])
        """
        ids = _check.integers("target", _check.plain("target", target))
        _check.shape("target", ids, ("T", "B"))
        T, B = ids.shape
        given = checked_lengths(target_lengths, T, B, name="target_lengths")
        lengths = (ids >= 0).sum(axis=0) if given is None else given
        start, stop = self.target_vocabulary.start_id, self.target_vocabulary.stop_id
        wanted = np.full((T + 1, B), stop)
        wanted[:T] = np.where(np.arange(T)[:, None] < lengths, ids, stop)
        inputs = np.concatenate([np.full((1, B), start), wanted[:T]])
        wanted[np.arange(T + 1)[:, None] > lengths] = _IGNORED
        return inputs, wanted, lengths + 1

    def _outputs(self, source: Any, inputs: Any, source_lengths: Any, target_lengths: Any, weigh: bool) -> tuple[Any, Any]:
        """What the head gets (T, B, H), and weights (T, B, S) or None."""
        source, inputs = self._own(source, "source"), self._own(inputs, "target")
        _check.shape("source", source, ("S", "B"))
        _check.shape("target", inputs, ("T", source.shape[1]))
        if self.cell == "transformer":
            if weigh:
                raise ValueError("return_weights: expected False, for a transformer's layers do not keep them, got True")
            memory, blocked = self._transformer_memory(source, source_lengths)
            x = self._placed(self.target_embedding(inputs))
            return self.decoder(x, memory, tgt_is_causal=True, memory_key_padding_mask=blocked), None
        memory, lengths, state = self._recurrent_memory(source, source_lengths)
        x = self.dropout(self.target_embedding(inputs))
        outputs, _, *weights = self.decoder(x, memory, state, lengths=target_lengths, memory_lengths=lengths, return_weights=weigh)
        return self.dropout(outputs), weights[0] if weigh else None

    def _own(self, ids: Any, name: str) -> Any:
        """Ids where the model is, a Tensor for a Tensor."""
        moved = brought(ids, self.head.weight, name)
        return Tensor(moved) if isinstance(ids, Tensor) else moved

    # ------------------------------------------------------------------ reading

    def _recurrent_memory(self, source: Any, lengths: Any) -> tuple[Any, Any, Any]:
        """The memory that the decoder looks at, its lengths, and the decoder's first state."""
        memory, last = self.encoder(self.dropout(self.source_embedding(source)), lengths=lengths)
        state = tuple([last_states(self.encoder, s) for s in (last if self.cell == "lstm" else (last,))])
        if self.decoder.attention is None:  # the state is all that is handed on
            memory, lengths = state[0].reshape((1, *state[0].shape)), None
        return self.dropout(memory), lengths, state if self.cell == "lstm" else state[0]

    def _transformer_memory(self, source: Any, lengths: Any) -> tuple[Any, Any]:
        """The encoder's outputs, and which of them are padding."""
        x = self._placed(self.source_embedding(source))
        blocked = None if lengths is None else padding_mask(lengths, x.shape[0])
        return self.encoder(x, src_key_padding_mask=blocked), blocked

    def _placed(self, x: Any, offset: Any = 0) -> Any:
        """A transformer's token vectors, scaled and with their positions."""
        return self.dropout(self.positions(x * self.embedding_size**0.5, offset=offset))

    # ------------------------------------------------------------------ writing

    def decoding(self, source: Any, source_lengths: Any = None) -> RecurrentDecoding | TransformerDecoding:
        """Begin to write: the source is read, and the start token.

        Parameters
        ----------
        source : (S, B) integers
        source_lengths : (B,) integers, optional

        Returns
        -------
        an object with `logits`, `step(tokens)` and `select(rows)`, as `fastseq.generation` uses it; with attention also `weights`

        Raises
        ------
        ValueError, TypeError, IndexError
            Shapes, lengths or ids that do not fit.
        """
        source = _check.integers("source", brought(source, self.head.weight, "source"))
        _check.shape("source", source, ("S", "B"))
        return (TransformerDecoding if self.cell == "transformer" else RecurrentDecoding)(self, source, source_lengths)

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class, the vocabularies as their configurations."""
        names = ("embedding_size", "hidden_size", "cell", "attention", "input_feeding", "bidirectional", "num_layers", "heads", "dtype")
        vocabularies = {name: getattr(self, name).configuration() for name in ("source_vocabulary", "target_vocabulary")}
        return vocabularies | {name: getattr(self, name) for name in names} | {"dropout": self.dropout.p}


class RecurrentDecoding:
    """What `Seq2Seq.decoding` gives of a recurrent model.

    Attributes
    ----------
    logits : ndarray (B, V)
        Of the next token.
    weights : ndarray (B, S) or None
        What the decoder looked at to say so; None without attention.
    """

    def __init__(self, model: Seq2Seq, source: np.ndarray, lengths: Any) -> None:
        self._model = model
        memory, lengths, self._state = model._recurrent_memory(source, lengths)
        self._memory = model.decoder.start(memory, lengths)
        self.step(np.full(source.shape[1], model.target_vocabulary.start_id))

    def step(self, tokens: Any) -> np.ndarray:
        """Read one token of each row, (B,) integers; returns the new `logits`."""
        model = self._model
        weigh = model.decoder.attention is not None
        output, self._state, *weights = model.decoder.step(
            model.target_embedding(model._own(tokens, "tokens")), self._memory, self._state, return_weights=weigh)
        self.weights: np.ndarray | None = weights[0] if weigh else None
        self.logits: np.ndarray = model.head(output)
        return self.logits

    def select(self, rows: Any) -> None:
        """Let row r go on from what row rows[r] has read: (B',) integers."""
        self._memory, rows = self._memory.reorder(rows), placed(rows, self.logits)
        self._state = tuple([s[rows] for s in self._state]) if isinstance(self._state, tuple) else self._state[rows]
        self.logits = self.logits[rows]
        self.weights = None if self.weights is None else self.weights[rows]


class TransformerDecoding:
    """What `Seq2Seq.decoding` gives of a transformer.

    Attributes
    ----------
    logits : ndarray (B, V)
        Of the next token.
    """

    def __init__(self, model: Seq2Seq, source: np.ndarray, lengths: Any) -> None:
        self._model, self._cache = model, KeyValueCache()
        self._memory, self._blocked = model._transformer_memory(source, lengths)
        self.step(np.full(source.shape[1], model.target_vocabulary.start_id))

    def step(self, tokens: Any) -> np.ndarray:
        """Read one token of each row, (B,) integers; returns the new `logits`."""
        model, offset = self._model, self._cache.lengths
        x = model._placed(model.target_embedding(model._own(tokens, "tokens")[None]), offset if len(offset) else 0)
        y = model.decoder(x, self._memory, memory_key_padding_mask=self._blocked, cache=self._cache)
        self.logits: np.ndarray = model.head(y[0])
        return self.logits

    def select(self, rows: Any) -> None:
        """Let row r go on from what row rows[r] has read: (B',) integers."""
        self._cache.reorder(rows)
        self._blocked = None if self._blocked is None else self._blocked[rows]
        rows = placed(rows, self.logits)
        self._memory, self.logits = self._memory[:, rows], self.logits[rows]
