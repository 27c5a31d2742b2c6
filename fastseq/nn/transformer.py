"""Stacks of transformer layers, and both of them as one model, with PyTorch's arguments and parameter names."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from fastseq.functional import _check
from fastseq.nn import init
from fastseq.nn._inputs import checked_size, rename_argument
from fastseq.nn.cache import CachingModule, KeyValueCache
from fastseq.nn.containers import ModuleList
from fastseq.nn.masks import causal_mask
from fastseq.nn.module import Module
from fastseq.nn.norm import LayerNorm
from fastseq.nn.transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer
from fastseq.runtime import generator, next_seed


class _Stack(CachingModule):
    """Copies of one layer, called in turn, and a norm."""

    def __init__(self, layer: Module, name: str, num_layers: int, norm: Module | None) -> None:
        for argument, given in ((name, layer), ("norm", norm)):
            if not isinstance(given, Module) and not (given is None and argument == "norm"):
                raise TypeError(f"{argument}: expected a Module, got {type(given).__name__}")
        self.num_layers = checked_size("num_layers", num_layers)
        self.layers = ModuleList([_copied(layer, k) for k in range(self.num_layers)])
        self.norm = norm
        # What a file says of this module: the first copy stands for the layer, which needs not be kept.
        args, keywords = self._arguments
        kept = {id(layer): self.layers[0]}
        self.__dict__["_arguments"] = (tuple(kept.get(id(a), a) for a in args), {n: kept.get(id(a), a) for n, a in keywords.items()})


def _copied(layer: Module, number: int) -> Module:
    """A copy with the same weights, whose dropout draws other masks than the other copies do."""
    twin = copy.deepcopy(layer)
    for module in twin.modules():
        seed = module.__dict__.get("_seed")
        if seed is not None:
            module.__dict__["_seed"] = next_seed(np.random.default_rng([seed, number]))
    return twin


class TransformerEncoder(_Stack):
    """`num_layers` copies of a `TransformerEncoderLayer`, one on the other.

    With `is_causal=True` it is a decoder-only language model's body; `KeyValueCache` then makes it write step by step. As in
    PyTorch the copies start with equal weights. A PyTorch state dict loads as it is.

    Parameters
    ----------
    encoder_layer : TransformerEncoderLayer
        Copied; a module of your own takes the arguments `src, src_mask=, src_key_padding_mask=, is_causal=`.
    num_layers : int
    norm : Module, optional
        What the last layer's output goes through; pre-norm stacks want one.
    enable_nested_tensor, mask_check : bool
        PyTorch's, taken so that its calls work; nothing depends on them.

    Attributes
    ----------
    layers : ModuleList
    norm : Module or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> layer = fs.nn.TransformerEncoderLayer(8, 2, 32, norm_first=True)
    >>> encoder = fs.nn.TransformerEncoder(layer, 3, fs.nn.LayerNorm(8))
    >>> encoder(np.ones((5, 2, 8), np.float32)).shape
    (5, 2, 8)
    """

    def __init__(
        self,
        encoder_layer: Module,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__(encoder_layer, "encoder_layer", num_layers, norm)

    def forward(
        self,
        src: Any,
        mask: Any = None,
        src_key_padding_mask: Any = None,
        is_causal: bool | None = None,
        *,
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Take src to the same shape.

        Parameters
        ----------
        src : (T, B, E), with `batch_first` (B, T, E), or (T, E)
        mask : (T, T) or (B heads, T, T), optional
            Of bool, True = blocked, or numbers added to the scores. A causal mask is recognised and costs nothing.
        src_key_padding_mask : (B, T), or (T,) for a single sequence; optional
            Of bool, True = blocked, or numbers added to the scores.
        is_causal : bool, optional
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
        causal = bool(is_causal)
        more = {} if cache is None else {"cache": cache}
        try:
            for layer in self.layers:
                src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=causal, **more)
        except (TypeError, ValueError) as error:
            rename_argument(error, {"src_mask": "mask"})
            raise
        return src if self.norm is None else self.norm(src)


class TransformerDecoder(_Stack):
    """`num_layers` copies of a `TransformerDecoderLayer`, one on the other.

    As in PyTorch the copies start with equal weights. A PyTorch state dict loads as it is.

    Parameters
    ----------
    decoder_layer : TransformerDecoderLayer
        Copied.
    num_layers : int
    norm : Module, optional
        What the last layer's output goes through.

    Attributes
    ----------
    layers : ModuleList
    norm : Module or None

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> decoder = fs.nn.TransformerDecoder(fs.nn.TransformerDecoderLayer(8, 2, 32, rng=0), 2).eval()
    >>> x, memory = np.ones((4, 3, 8), np.float32), np.ones((7, 3, 8), np.float32)
    >>> y = decoder(x, memory, tgt_is_causal=True)
    >>> cache = fs.nn.KeyValueCache()
    >>> steps = [decoder(x[t : t + 1], memory, cache=cache) for t in range(4)]
    >>> np.allclose(np.concatenate(steps), y, atol=1e-5)
    True
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        super().__init__(decoder_layer, "decoder_layer", num_layers, norm)

    def forward(
        self,
        tgt: Any,
        memory: Any,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
        *,
        cache: KeyValueCache | None = None,
    ) -> Any:
        """Take tgt to the same shape; the arguments are those of `TransformerDecoderLayer.forward`.

        A causal `tgt_mask` is recognised and costs nothing.
        """
        causal = bool(tgt_is_causal)
        more = {} if cache is None else {"cache": cache}
        for layer in self.layers:
            tgt = layer(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=causal,
                memory_is_causal=memory_is_causal,
                **more,
            )
        return tgt if self.norm is None else self.norm(tgt)


class Transformer(Module):
    """An encoder, and a decoder that looks at its output (Vaswani et al. 2017), without embeddings and output layer.

    Every matrix starts Xavier-uniform, as PyTorch's. To write step by step, call `model.encoder` once and `model.decoder` with a
    `KeyValueCache`. A PyTorch state dict loads as it is.

    Parameters
    ----------
    d_model, nhead : int
        E, and the heads, a divisor of it.
    num_encoder_layers, num_decoder_layers : int
    dim_feedforward, dropout, activation
        As of `TransformerEncoderLayer`.
    custom_encoder, custom_decoder : Module, optional
        In place of the `TransformerEncoder` and `TransformerDecoder` that are made otherwise.
    layer_norm_eps, batch_first, norm_first, bias, dtype, rng
        As of `TransformerEncoderLayer`.

    Attributes
    ----------
    encoder : TransformerEncoder
    decoder : TransformerDecoder
        Both end in a LayerNorm.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> model = fs.nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    >>> src, tgt = np.ones((3, 7, 8), np.float32), np.ones((3, 4, 8), np.float32)
    >>> model(src, tgt, tgt_is_causal=True, src_key_padding_mask=fs.nn.padding_mask([7, 5, 2])).shape
    (3, 4, 8)
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        *,
        dtype: Any = np.float32,
        rng: Any = None,
    ) -> None:
        drawn = generator(rng)
        self.d_model, self.nhead, self.batch_first = checked_size("d_model", d_model), checked_size("nhead", nhead), bool(batch_first)
        options = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)

        for name, custom in (("custom_encoder", custom_encoder), ("custom_decoder", custom_decoder)):
            if custom is not None and not isinstance(custom, Module):
                raise TypeError(f"{name}: expected a Module, got {type(custom).__name__}")
        if custom_encoder is None:
            encoder_layer = TransformerEncoderLayer(*options, dtype=dtype, rng=drawn)
            custom_encoder = TransformerEncoder(encoder_layer, num_encoder_layers, norm())
        if custom_decoder is None:
            decoder_layer = TransformerDecoderLayer(*options, dtype=dtype, rng=drawn)
            custom_decoder = TransformerDecoder(decoder_layer, num_decoder_layers, norm())
        self.encoder, self.decoder = custom_encoder, custom_decoder
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.data[...] = init.xavier_uniform(drawn, parameter.shape, parameter.dtype)

    def forward(
        self,
        src: Any,
        tgt: Any,
        src_mask: Any = None,
        tgt_mask: Any = None,
        memory_mask: Any = None,
        src_key_padding_mask: Any = None,
        tgt_key_padding_mask: Any = None,
        memory_key_padding_mask: Any = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Any:
        """Take src, and tgt up to each position, to what follows in tgt.

        Parameters
        ----------
        src : (S, B, E), with `batch_first` (B, S, E), or (S, E)
        tgt : (T, B, E), laid out as `src`
        src_mask, tgt_mask, memory_mask : (S, S), (T, T), (T, S), or one for each row and head (B heads, .., ..); optional
            Of bool, True = blocked, or numbers added to the scores.
        src_key_padding_mask, tgt_key_padding_mask, memory_key_padding_mask : (B, S), (B, T), (B, S); optional
            Likewise. As in PyTorch the memory's is not taken from the source's.
        src_is_causal, tgt_is_causal, memory_is_causal : bool
            Position i sees the positions up to i; no mask is needed for it.

        Returns
        -------
        like `tgt`

        Raises
        ------
        ValueError, TypeError
            Shapes, dtypes or masks that do not fit.
        """
        try:
            memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal)
        except (TypeError, ValueError) as error:
            rename_argument(error, {"mask": "src_mask", "is_causal": "src_is_causal"})
            raise
        try:
            return self.decoder(
                tgt,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=tgt_is_causal,
                memory_is_causal=memory_is_causal,
            )
        except (TypeError, ValueError) as error:
            rename_argument(error, {"memory": "src"})
            raise

    @staticmethod
    def generate_square_subsequent_mask(sz: int, dtype: Any = np.float32) -> np.ndarray:
        """PyTorch's causal mask (sz, sz): 0 where the query sees the key, -inf where it does not."""
        return np.where(causal_mask(_check.integer("sz", sz, 0, 2**31)), -np.inf, 0.0).astype(dtype)
