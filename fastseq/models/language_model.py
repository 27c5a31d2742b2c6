"""Language models: embedding, a recurrent layer or a causal transformer, linear (Graves 2013; Karpathy 2015; Radford 2018)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.backends import placed
from fastseq.functional import _check
from fastseq.models._cells import checked_cell, recurrent
from fastseq.models.carried_state import CarriedState
from fastseq.models.vocabulary import as_vocabulary
from fastseq.nn import (
    Dropout,
    Embedding,
    KeyValueCache,
    LayerNorm,
    LearnedPositionalEncoding,
    Linear,
    Module,
    SinusoidalPositionalEncoding,
    TransformerEncoder,
    TransformerEncoderLayer,
    padding_mask,
)
from fastseq.nn._inputs import brought
from fastseq.runtime import generator

# Scores of a batch up to 64 MiB are kept for the backward pass; computing them again, as linear_cross_entropy does, made a step with
# 10,000 words and 700 places 1.25 times as long (LSTM 256, one thread).
_KEPT_LOGITS = 2**24
_POSITIONS = ("learned", "sinusoidal")


class LanguageModel(Module):
    """Scores of the next token from all tokens before it.

    With `cell="transformer"` it is a GPT: pre-norm layers of causal attention and feed-forward parts with GELU, a norm, the head.

    Parameters
    ----------
    vocabulary : Vocabulary, or what `as_vocabulary` takes
    embedding_size, hidden_size : int
        Widths of the token vectors and of the recurrent layers; of the transformer's layers and of their feed-forward parts.
    cell : {"lstm", "gru", "rnn", "mut1", "mut2", "mut3", "transformer"}
    num_layers : int
    dropout : float
        While training. Recurrent: the probability of dropping an element of each layer's output, and half of it for the token
        vectors. Transformer: of positions, attention's weights, and each part's output.
    tie_weights : bool
        The head's matrix is the embedding's, for which the last layer must be as wide as the embedding (Press & Wolf 2017).
    heads : int
        Of a transformer's attention.
    max_length : int
        The most tokens that a transformer with learned positions reads.
    positions : {"learned", "sinusoidal"}
        Of a transformer.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    vocabulary : Vocabulary
    embedding : nn.Embedding
    lstm, or gru, rnn, mut1, mut2, mut3, transformer : the layers, under the cell's name
    positions : the transformer's positional encoding
    head : nn.Linear

    Raises
    ------
    ValueError
        For a cell or positions that there are not, or widths that do not fit.

    Examples
    --------
    >>> import fastseq as fs
    >>> model = fs.models.LanguageModel("abc ", 8, 16)
    >>> logits, state = model(model.vocabulary.encode("a cab").reshape(5, 1))
    >>> logits.shape
    (5, 1, 4)
    >>> gpt = fs.models.LanguageModel("abc ", 8, 32, cell="transformer", heads=2, num_layers=2, tie_weights=True)
    >>> gpt.loss([[0, 1], [2, 3]], [[2, 3], [1, 0]]).backward()
    """

    def __init__(
        self,
        vocabulary: Any,
        embedding_size: int = 64,
        hidden_size: int = 256,
        *,
        cell: str = "lstm",
        num_layers: int = 1,
        dropout: float = 0.0,
        tie_weights: bool = False,
        heads: int = 4,
        max_length: int = 512,
        positions: str = "learned",
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        checked_cell(cell, ("transformer",))
        if positions not in _POSITIONS:
            raise ValueError(f"positions: expected one of {', '.join(_POSITIONS)}, got {positions!r}")
        if tie_weights and cell != "transformer" and embedding_size != hidden_size:
            raise ValueError(f"tie_weights: expected embedding_size = hidden_size, got {embedding_size} and {hidden_size}")
        self.vocabulary = as_vocabulary(vocabulary)
        self.cell, self.dropout, self.tie_weights = cell, float(dropout), bool(tie_weights)
        self._sizes = {"embedding_size": embedding_size, "hidden_size": hidden_size, "num_layers": num_layers}
        self._transformer_options: dict[str, Any] = {"heads": heads, "max_length": max_length, "positions": positions}
        rng, V = generator(rng), len(self.vocabulary)
        self.embedding = Embedding(V, embedding_size, dtype=dtype, rng=rng)
        if cell == "transformer":
            self._build_transformer(rng)
        else:
            self.input_dropout = Dropout(dropout / 2, rng=rng)
            between = dropout if num_layers > 1 else 0.0
            setattr(self, cell, recurrent(cell, embedding_size, hidden_size, num_layers, dropout=between, dtype=dtype, rng=rng))
            self.output_dropout = Dropout(dropout, rng=rng)
        self.head = Linear(embedding_size if cell == "transformer" else hidden_size, V, dtype=dtype, rng=rng)
        if cell == "transformer":
            self._initialize(rng)
        if tie_weights:
            self.embedding.weight = self.head.weight

    def _build_transformer(self, rng: np.random.Generator) -> None:
        E, H, L = self._sizes.values()
        heads, max_length, positions = self._transformer_options.values()
        dtype = self.embedding.dtype
        if positions == "learned":
            self.positions: Any = LearnedPositionalEncoding(max_length, E, self.dropout, dtype=dtype, rng=rng)
        else:
            self.positions = SinusoidalPositionalEncoding(E, self.dropout, dtype=dtype, rng=rng)
        layer = TransformerEncoderLayer(E, heads, H, self.dropout, "gelu", norm_first=True, dtype=dtype, rng=rng)
        self.transformer = TransformerEncoder(layer, L, LayerNorm(E, dtype=dtype))

    def _initialize(self, rng: np.random.Generator) -> None:
        """GPT-2's start: matrices normal with deviation 0.02, those that end in the residual sum smaller with the depth; biases 0."""
        depth = (2 * self._sizes["num_layers"]) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                deviation = 0.02 * (depth if name.endswith(("out_proj.weight", "linear2.weight")) else 1.0)
                parameter.data[...] = rng.standard_normal(parameter.shape) * deviation
            elif name.endswith("bias"):
                parameter.data[...] = 0
        if isinstance(self.positions, SinusoidalPositionalEncoding):  # the sines are as large as the vectors times sqrt(E)
            for table in (self.embedding.weight, self.head.weight):
                table.data *= 50 * table.shape[1] ** -0.5

    def forward(self, ids: Any, state: Any = None) -> Any:
        """Scores at every place of (T, B) texts.

        Parameters
        ----------
        ids : (T, B) integers
        state : what an earlier call returned, optional
            A transformer takes a `nn.KeyValueCache`, and goes on from what is in it.

        Returns
        -------
        logits : (T, B, V)
        state : (h, c) for an LSTM, else (h,), each (num_layers, B, H); a transformer's is the cache that it was given, or None
        """
        y, after = self.states(ids, state)
        return self.head(y), after

    def loss(self, inputs: Any, targets: Any, state: Any = None) -> Any:
        """The mean cross-entropy in nats, for training: a Tensor of one element.

        Parameters
        ----------
        inputs : (T, B) integers
        targets : (T, B) integers
            What follows each input; places with -100 do not count.
        state : CarriedState or what `forward` returned, optional
            A CarriedState, which `fit` takes, is gone on from and left at the end of the inputs, without the gradient.
        """
        carried = isinstance(state, CarriedState)
        before = state.placed(self.head.weight.data) if carried else state
        asked = brought(targets, self.head.weight, "targets").reshape(-1)
        looked_at = _check.looked_at("targets", asked, len(self.vocabulary), ignore=-100)
        y, after = self.states(Tensor(brought(inputs, self.head.weight, "inputs")), before)
        if carried:
            state.value = after
        flat = y.reshape(-1, y.shape[2])
        if len(asked) * len(self.vocabulary) <= _KEPT_LOGITS:
            return functional.cross_entropy(self.head(flat), looked_at)
        return functional.linear_cross_entropy(flat, self.head.weight, self.head.bias, looked_at)

    def states(self, ids: Any, state: Any = None) -> tuple[Any, Any]:
        """What stands before the head (T, B, width), and the state: `forward` without the head, for fine-tuning to other tasks."""
        ids = self._own(ids, "ids")
        if self.cell == "transformer":
            return self._attend(ids, state), state
        lstm = self.cell == "lstm"
        before = state if lstm or state is None else state[0]
        y, after = self.recurrent(self.input_dropout(self.embedding(ids)), before)
        return self.output_dropout(y), after if lstm else (after,)

    def _own(self, ids: Any, name: str) -> Any:
        """Ids where the model is, a Tensor for a Tensor."""
        moved = brought(ids, self.head.weight, name)
        return Tensor(moved) if isinstance(ids, Tensor) else moved

    def _attend(self, ids: Any, cache: KeyValueCache | None, padding: np.ndarray | None = None) -> Any:
        x = self.embedding(ids)
        if isinstance(self.positions, SinusoidalPositionalEncoding):
            x = x * x.shape[2] ** 0.5
        if cache is None:
            return self.transformer(self.positions(x), is_causal=True)
        offset = cache.lengths if cache.lengths.size else 0
        return self.transformer(self.positions(x, offset=offset), src_key_padding_mask=padding, cache=cache)

    @property
    def recurrent(self) -> Any:
        """The recurrent layer."""
        return getattr(self, self.cell)

    def decoding(self, prompt: Any = "", lengths: Any = None) -> Any:
        """The model after it has read a prompt, for `fastseq.generation`.

        Parameters
        ----------
        prompt : (T, B) or (T,) integers, or str
            What `prompt_ids` takes.
        lengths : (B,) integers, optional
            How many tokens of each row count, at least 1.

        Returns
        -------
        RecurrentDecoding or TransformerDecoding
        """
        ids = self.prompt_ids(prompt)
        if lengths is not None:
            lengths = _check.plain("lengths", lengths)
            if lengths.shape != ids.shape[1:] or not ((lengths >= 1) & (lengths <= len(ids))).all():
                raise ValueError(f"lengths: expected {ids.shape[1]} integers from 1 to {len(ids)}, got {lengths.tolist()}")
        return (TransformerDecoding if self.cell == "transformer" else RecurrentDecoding)(self, ids, lengths)

    def prompt_ids(self, prompt: Any) -> np.ndarray:
        """The ids (T, B) that are read of a prompt.

        Parameters
        ----------
        prompt : (T, B) or (T,) integers, or str
            A string is read after the vocabulary's start token, if there is one. Where there is none, an empty string stands
            for a line's end or else for the first token.

        Raises
        ------
        ValueError
            For an empty array, or a string with tokens that the vocabulary lacks.
        """
        if isinstance(prompt, str):
            start = self.vocabulary.start_id
            try:
                ids = self.vocabulary.encode(prompt)
                if start is not None or not ids.size:
                    first = self.vocabulary.id("\n") if "\n" in self.vocabulary else 0
                    ids = np.array([first if start is None else start, *ids])
            except ValueError as error:
                raise ValueError(f"prompt: {str(error).removeprefix('text: ')}") from None
            return ids[:, None]
        ids = _check.plain("prompt", prompt)
        ids = ids[:, None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or ids.dtype.kind not in "iu" or not len(ids):
            raise ValueError(f"prompt: expected integers (T, B) with T of at least 1, got {ids.dtype} {ids.shape}")
        return ids

    def configuration(self) -> dict[str, Any]:
        """The arguments of the class, the vocabulary as its own configuration."""
        return {
            "vocabulary": self.vocabulary.configuration(),
            **self._sizes,
            "cell": self.cell,
            "dropout": self.dropout,
            "tie_weights": self.tie_weights,
            **self._transformer_options,
            "dtype": self.embedding.dtype,
        }


class RecurrentDecoding:
    """What `LanguageModel.decoding` of a recurrent model gives: a snapshot of its weights, and a state for each row.

    Attributes
    ----------
    logits : ndarray (B, V)
        Scores of the next token.

    Examples
    --------
    >>> import fastseq as fs, numpy as np
    >>> decoding = fs.models.LanguageModel("abc", 8, 16).decoding("ab")
    >>> decoding.select(np.array([0, 0]))
    >>> decoding.step(np.array([1, 2])).shape
    (2, 3)
    """

    def __init__(self, model: LanguageModel, ids: np.ndarray, lengths: np.ndarray | None) -> None:
        self._model, B = model, ids.shape[1]
        y, state = model.recurrent(model.embedding(model._own(ids, "prompt")), lengths=lengths)
        last = _last(y, lengths)
        self._stream = model.recurrent.stream(B)
        self._stream.state = state
        self.logits = model.head(last)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token in each row, (B,); returns the scores (B, V) of the next. IndexError for an id that the model lacks."""
        self.logits = self._model.head(self._stream.step(self._model.embedding(self._model._own(tokens, "tokens"))))
        return self.logits

    def select(self, rows: np.ndarray) -> None:
        """Let row r go on from what row rows[r] has read."""
        state, rows = self._stream.state, placed(rows, self.logits)
        if len(rows) != len(self.logits):
            self._stream = self._model.recurrent.stream(len(rows))
        self._stream.state = tuple([part[:, rows] for part in state]) if isinstance(state, tuple) else state[:, rows]
        self.logits = self.logits[rows]


class TransformerDecoding:
    """What `LanguageModel.decoding` of a transformer gives: the keys and values of what each row has read.

    Attributes
    ----------
    logits : ndarray (B, V)
        Scores of the next token.
    room : int or None
        How many more tokens can be read; None where sinusoidal positions know no end.

    Examples
    --------
    >>> import fastseq as fs, numpy as np
    >>> model = fs.models.LanguageModel("abc", 8, 16, cell="transformer", heads=2).eval()
    >>> model.decoding("ab").step(np.array([1])).shape
    (1, 3)
    """

    def __init__(self, model: LanguageModel, ids: np.ndarray, lengths: np.ndarray | None) -> None:
        self._model, self._cache = model, KeyValueCache()
        T = len(ids)
        read = T if lengths is None else int(lengths.max(initial=0))
        self.room = model.positions.max_length - read if isinstance(model.positions, LearnedPositionalEncoding) else None
        y = model._attend(model._own(ids, "prompt"), self._cache, None if lengths is None else padding_mask(lengths, T))
        self.logits = model.head(_last(y, lengths))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Read one token in each row, (B,); returns the scores (B, V) of the next. IndexError for an id that the model lacks."""
        self.logits = self._model.head(self._model._attend(self._model._own(tokens[None], "tokens"), self._cache)[0])
        self.room = None if self.room is None else self.room - 1
        return self.logits

    def select(self, rows: np.ndarray) -> None:
        """Let row r go on from what row rows[r] has read."""
        self._cache.reorder(rows)
        self.logits = self.logits[placed(rows, self.logits)]


def _last(y: Any, lengths: np.ndarray | None) -> Any:
    """Each row's last step of y (T, B, width)."""
    return y[-1] if lengths is None else y[placed(lengths - 1, y), placed(np.arange(len(lengths)), y)]
