"""One layer of a transformer's encoder and of its decoder, with PyTorch's arguments and parameter names (Vaswani et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.nn._inputs import checked_dtype, checked_size, real_input, rename_argument
from fastseq.nn.cache import CachingModule, KeyValueCache
from fastseq.nn.dropout import Dropout
from fastseq.nn.linear import Linear
from fastseq.nn.module import Module
from fastseq.nn.multihead import MultiheadAttention
from fastseq.nn.norm import LayerNorm
from fastseq.nn.positions import RotaryEmbedding
from fastseq.runtime import generator

_ACTIVATIONS = ("relu", "gelu")
# What the layers' arguments are called in the modules they consist of.
_OPTIONS = {"embed_dim": "d_model", "num_heads": "nhead", "eps": "layer_norm_eps"}
_OWN = {"query": "src", "attn_mask": "src_mask", "key_padding_mask": "src_key_padding_mask"}
_TARGET = {"query": "tgt", "attn_mask": "tgt_mask", "key_padding_mask": "tgt_key_padding_mask", "is_causal": "tgt_is_causal"}
_MEMORY = {
    "query": "tgt",
    "key": "memory",
    "value": "memory",
    "attn_mask": "memory_mask",
    "key_padding_mask": "memory_key_padding_mask",
    "is_causal": "memory_is_causal",
}


class _Layer(CachingModule):
    """What both layers have: attention to themselves, a feed-forward part, and `_norms` norms with a dropout each."""

    _norms: int
    _names: dict[str, str]  # of the arguments that self-attention gets
    norm1: Module
    norm2: Module
    norm3: Module
    dropout1: Dropout
    dropout2: Dropout
    dropout3: Dropout

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int,
        dropout: float,
        activation: str,
        layer_norm_eps: float,
        batch_first: bool,
        norm_first: bool,
        bias: bool,
        rotary: RotaryEmbedding | None,
        dtype: Any,
        rng: Any,
    ) -> None:
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation: expected 'relu' or 'gelu', got {activation!r}")
        self.d_model, width = checked_size("d_model", d_model), checked_size("dim_feedforward", dim_feedforward)
        self.batch_first, self.norm_first, self.activation = bool(batch_first), bool(norm_first), activation
        self.dtype, drawn = checked_dtype(dtype), generator(rng)

        def attention(rotary: RotaryEmbedding | None) -> MultiheadAttention:
            return MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, rotary=rotary, dtype=dtype, rng=drawn
            )

        try:
            self.self_attn = attention(rotary)
            norms = [LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype) for _ in range(self._norms)]
        except (TypeError, ValueError) as error:
            rename_argument(error, _OPTIONS)
            raise
        if self._norms == 3:
            self.multihead_attn = attention(None)
        self.linear1 = Linear(d_model, width, bias, dtype=dtype, rng=drawn)
        self.dropout = Dropout(dropout, rng=drawn)
        self.linear2 = Linear(width, d_model, bias, dtype=dtype, rng=drawn)
        for k, norm in enumerate(norms, 1):
            setattr(self, f"norm{k}", norm)
        for k in range(1, self._norms + 1):
            setattr(self, f"dropout{k}", Dropout(dropout, rng=drawn))

    def _door(self, x: Any, name: str) -> Any:
        x = real_input(x, self.dtype, name)
        if len(x.shape) not in (2, 3) or x.shape[-1] != self.d_model:
            batched = f"(B, T, {self.d_model})" if self.batch_first else f"(T, B, {self.d_model})"
            raise ValueError(f"{name}: expected shape {batched} or (T, {self.d_model}), got {x.shape}")
        return x

    def _attend(self, x: Any, padding: Any, mask: Any, is_causal: bool, cache: KeyValueCache | None) -> Any:
        try:
            y, _ = self.self_attn(x, None, None, padding, False, mask, is_causal=is_causal, cache=cache)
        except (TypeError, ValueError) as error:
            rename_argument(error, self._names)
            raise
        return self.dropout1(y)

    def _feed_forward(self, x: Any) -> Any:
        one = self.linear1
        if isinstance(x, Tensor):
            x = functional.linear(x, one.weight, one.bias, function=self.activation)
        else:
            x = functional.linear(x, one.weight.data, None if one.bias is None else one.bias.data, function=self.activation)
        return self.linear2(self.dropout(x))

    def extra_repr(self) -> str:
        """The options that the children do not show."""
        return f"activation={self.activation!r}, norm_first={self.norm_first}, batch_first={self.batch_first}"


def _add_norm(norm: Module, x: Any, residual: Any) -> tuple[Any, Any]:
    """norm(x + residual), in one pass over them, and x + residual."""
    if isinstance(norm, LayerNorm):
        return norm(x, residual)
    total = functional.add(x, residual)  # another norm, which the user has put in its place
    return norm(total), total


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward part, each added to its input and normalised.

    x = norm1(x + attention(x)), norm2(x + linear2(f(linear1(x)))); with `norm_first` the norms stand before the two parts, and
    nothing stands after the sums (pre-norm). Dropout follows the attention, f and both parts while training. A PyTorch state
    dict loads as it is.

    Parameters
    ----------
    d_model : int
        E, the width of inputs and outputs.
    nhead : int
        Heads, a divisor of E.
    dim_feedforward : int
    dropout : float in [0, 1]
    activation : {"relu", "gelu"}
        f.
    layer_norm_eps : float
    batch_first : bool
        Arrays are (B, T, E) in place of (T, B, E).
    norm_first : bool
    bias : bool
        False leaves out the biases of projections and norms.
    rotary : RotaryEmbedding, optional
        Turns the queries and keys of self-attention by their positions.
    dtype : float32 or float64
    rng : None, int or numpy.random.Generator

    Attributes
    ----------
    self_attn : MultiheadAttention
    linear1, linear2 : Linear
    norm1, norm2 : LayerNorm

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> layer = fs.nn.TransformerEncoderLayer(8, 2, 32, batch_first=True)
    >>> layer(np.ones((3, 5, 8), np.float32), src_key_padding_mask=fs.nn.padding_mask([5, 2, 4])).shape
    (3, 5, 8)
    """

    _norms = 2
    _names = _OWN

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        rotary: RotaryEmbedding | None = None,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        options = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)
        super().__init__(*options, rotary, dtype, rng)

    def forward(
        self,
        src: Any,
        src_mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool = False,
        *,
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Take src to the same shape.

        Parameters
        ----------
        src : (T, B, E), with `batch_first` (B, T, E), or (T, E)
        src_mask : (T, T) or (B heads, T, T), optional
            Of bool, True = blocked, or numbers added to the scores.
        src_key_padding_mask : (B, T), or (T,) for a single sequence; optional
            Of bool, True = blocked, or numbers added to the scores.
        is_causal : bool
            Each position sees itself and those before it; no mask is needed for it.
        cache : KeyValueCache, optional
            src goes on from what it holds; see there.

        Returns
        -------
        like `src`

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes or masks that do not fit.
        """
        x = self._door(src, "src")
        masks = (src_key_padding_mask, src_mask, is_causal, cache)
        if self.norm_first:
            y, x = _add_norm(self.norm2, self._attend(self.norm1(x), *masks), x)
            return functional.add(x, self.dropout2(self._feed_forward(y)))
        x, _ = _add_norm(self.norm1, self._attend(x, *masks), x)
        return _add_norm(self.norm2, self.dropout2(self._feed_forward(x)), x)[0]


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to a memory (an encoder's output) and a feed-forward part, each added to its input and normalised.

    Post-norm or pre-norm as in `TransformerEncoderLayer`. A PyTorch state dict loads as it is.

    Parameters
    ----------
    d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, rotary, dtype, rng
        As of `TransformerEncoderLayer`.

    Attributes
    ----------
    self_attn, multihead_attn : MultiheadAttention
        To the sequence itself, and to the memory.
    linear1, linear2 : Linear
    norm1, norm2, norm3 : LayerNorm

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> layer = fs.nn.TransformerDecoderLayer(8, 2, 32)
    >>> x, memory = np.ones((4, 3, 8), np.float32), np.ones((7, 3, 8), np.float32)
    >>> layer(x, memory, tgt_is_causal=True).shape
    (4, 3, 8)
    """

    _norms = 3
    _names = _TARGET

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        rotary: RotaryEmbedding | None = None,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        options = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)
        super().__init__(*options, rotary, dtype, rng)

    def forward(
        self,
        tgt: Any,
        memory: Any,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        *,
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Take tgt to the same shape.

        Parameters
        ----------
        tgt : (T, B, E), with `batch_first` (B, T, E), or (T, E)
        memory : (Tm, B, E), laid out as `tgt`
        tgt_mask, memory_mask : (T, T) or (B heads, T, T), (T, Tm) or (B heads, T, Tm); optional
            Of bool, True = blocked, or numbers added to the scores.
        tgt_key_padding_mask, memory_key_padding_mask : (B, T) and (B, Tm), without B for a single sequence; optional
            Of bool, True = blocked, or numbers added to the scores.
        tgt_is_causal, memory_is_causal : bool
            Position i sees the positions up to i; no mask is needed for it.
        cache : KeyValueCache, optional
            tgt goes on from what it holds, and the memory is looked at in the first call only; see there.

        Returns
        -------
        like `tgt`

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes or masks that do not fit.
        """
        x, memory = self._door(tgt, "tgt"), self._door(memory, "memory")
        own = (tgt_key_padding_mask, tgt_mask, tgt_is_causal, cache)
        other = (memory, memory_key_padding_mask, memory_mask, memory_is_causal, cache)
        if self.norm_first:
            y, x = _add_norm(self.norm2, self._attend(self.norm1(x), *own), x)
            y, x = _add_norm(self.norm3, self._attend_memory(y, *other), x)
            return functional.add(x, self.dropout3(self._feed_forward(y)))
        x, _ = _add_norm(self.norm1, self._attend(x, *own), x)
        x, _ = _add_norm(self.norm2, self._attend_memory(x, *other), x)
        return _add_norm(self.norm3, self.dropout3(self._feed_forward(x)), x)[0]

    def _attend_memory(self, x: Any, memory: Any, padding: Any, mask: Any, is_causal: bool, cache: KeyValueCache | None) -> Any:
        try:
            y, _ = self.multihead_attn(x, memory, memory, padding, False, mask, is_causal=is_causal, cache=cache)
        except (TypeError, ValueError) as error:
            rename_argument(error, _MEMORY)
            raise
        return self.dropout2(y)
