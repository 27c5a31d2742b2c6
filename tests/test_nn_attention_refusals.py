"""What attention's modules refuse, and that the sentence names an argument of the module that was called."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn

X = np.zeros((3, 2, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(np.zeros((3, 2, 5))), r"query: expected shape \(T, B, 4\) or \(T, 4\), got \(3, 2, 5\)"),
        (lambda m: m(np.zeros(4)), r"query: expected shape \(T, B, 4\) or \(T, 4\), got \(4,\)"),
        (lambda m: m(X, np.zeros((3, 4))), r"key: expected shape \(T, B, 4\), got \(3, 4\)"),
        (lambda m: m(X[:, 0], X), r"key: expected shape \(T, 4\), got \(3, 2, 4\)"),
        (lambda m: m(X, np.zeros((3, 5, 4))), r"key: expected 2 rows, as query has, got 5"),
        (lambda m: m(X, X, np.zeros((4, 2, 4))), r"value: expected 3 positions, as key has, got 4"),
        (lambda m: m(X, key_padding_mask=np.zeros((3, 2), bool)), r"key_padding_mask: expected shape \(2, 3\), got \(3, 2\)"),
        (lambda m: m(X, key_padding_mask=np.zeros((2, 3), int)), r"key_padding_mask: expected bool \(True = blocked\) or floats"),
        (lambda m: m(X, attn_mask=np.zeros((2, 3), bool)), r"attn_mask: expected shape \(3, 3\) or \(4, 3, 3\), got \(2, 3\)"),
        (lambda m: m(X, attn_mask=np.zeros((3, 3), np.uint8)), r"attn_mask: expected bool \(True = blocked\) or floats"),
        (lambda m: m(X, attn_mask=np.zeros((3, 3), np.float16)), r"attn_mask: expected float32, float64"),
        (lambda m: m(X.astype(complex)), r"query: expected float32, float64"),
        (lambda m: m(X, cache={}), r"cache: expected a KeyValueCache, got dict"),
        (lambda m: m(fs.Tensor(X), cache=nn.KeyValueCache()), r"cache: expected None while recording"),
    ],
)
def test_what_multihead_attention_refuses(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(nn.MultiheadAttention(4, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MultiheadAttention(4, 3), "num_heads: expected a divisor of embed_dim = 4, got 3"),
        (lambda: nn.MultiheadAttention(4, 0), "num_heads: expected at least 1"),
        (lambda: nn.MultiheadAttention(4, 2, dropout=2), "dropout: expected a probability"),
        (lambda: nn.MultiheadAttention(4, 2, dtype=np.float16), "dtype: expected float32 or float64"),
        (lambda: nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(4)), "rotary: expected a RotaryEmbedding of head_dim 2"),
        (lambda: nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(2, dtype=float)), "rotary: expected one of dtype float32, as the layer's, got float64"),
        (lambda: nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(2), kdim=3), "rotary: expected None with kdim = 3 and vdim = 4"),
        (lambda: nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(2), vdim=3), "rotary: expected None with kdim = 4 and vdim = 3"),
        (lambda: nn.Transformer(4, 2, custom_encoder=3), "custom_encoder: expected a Module, got int"),
        (lambda: nn.Transformer(4, 2, custom_decoder="x"), "custom_decoder: expected a Module, got str"),
        (lambda: nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(2))(X, X + 1), "key: expected query itself"),
        (lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True)(X, cache=nn.KeyValueCache()), "cache: expected None, for a layer with"),
        (lambda: nn.TransformerEncoderLayer(4, 2, activation="tanh"), "activation: expected 'relu' or 'gelu', got 'tanh'"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8)(X[..., :3]), r"src: expected shape \(T, B, 4\) or \(T, 4\), got \(3, 2, 3\)"),
        (lambda: nn.TransformerDecoderLayer(4, 2, 8, batch_first=True)(X, X[..., :3]), r"memory: expected shape \(B, T, 4\)"),
        (lambda: nn.TransformerEncoder(None, 2), "encoder_layer: expected a Module, got NoneType"),
        (lambda: nn.TransformerDecoder(nn.Linear(2, 2), 2, 1e-5), "norm: expected a Module, got float"),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 0), "num_layers: expected at least 1, got 0"),
    ],
)
def test_what_is_refused_at_the_start(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def encoder_layer(*args, **options):
    return nn.TransformerEncoderLayer(4, 2, 8)(*args, **options)


def encoder(*args, **options):
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2)(*args, **options)


def decoder_layer(*args, **options):
    return nn.TransformerDecoderLayer(4, 2, 8)(*args, **options)


def decoder(*args, **options):
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 2)(*args, **options)


def transformer(*args, **options):
    return nn.Transformer(4, 2, 1, 1, 8)(*args, **options)


WRONG = np.zeros((7, 7), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder_layer(X, src_mask=WRONG), "src_mask: expected shape (3, 3)"),
        (lambda: encoder_layer(X, src_key_padding_mask=WRONG), "src_key_padding_mask: expected shape (2, 3)"),
        (lambda: encoder(X, mask=WRONG), "mask: expected shape (3, 3)"),
        (lambda: encoder(X, src_key_padding_mask=WRONG), "src_key_padding_mask: expected shape (2, 3)"),
        *(
            (lambda module=module, name=name: module(X, X, **{name: WRONG}), f"{name}: expected shape ")
            for module in (decoder_layer, decoder, transformer)
            for name in ("tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask")
        ),
        (lambda: transformer(X, X, src_mask=WRONG), "src_mask: expected shape (3, 3)"),
        (lambda: transformer(X, X, src_key_padding_mask=WRONG), "src_key_padding_mask: expected shape (2, 3)"),
        (lambda: encoder_layer(X, is_causal=WRONG), "is_causal: expected True or False, got ndarray; a mask is src_mask"),
        (lambda: decoder_layer(X, X, memory_is_causal=WRONG), "memory_is_causal: expected True or False, got ndarray; a mask is memory_mask"),
        (lambda: decoder_layer(X, X[:, 0]), "memory: expected shape (T, B, 4), got (3, 4)"),
        (lambda: decoder(X, X[:, :1]), "memory: expected 2 rows, as tgt has, got 1"),
        (lambda: transformer(X[:, :1], X), "src: expected 2 rows, as tgt has, got 1"),
        (lambda: nn.TransformerEncoderLayer(4, 3), "nhead: expected a divisor of d_model = 4, got 3"),
        (lambda: nn.TransformerDecoderLayer(4, 2.5), "nhead: expected an integer, got float"),
        (lambda: nn.TransformerDecoderLayer(4, 2, layer_norm_eps="x"), "layer_norm_eps: expected a number, got str"),
        (lambda: nn.Transformer(4, 3), "nhead: expected a divisor of d_model = 4, got 3"),
        (lambda: nn.Transformer(4, 2, layer_norm_eps=-1.0), "layer_norm_eps: expected a number of at least 0"),
        (lambda: nn.Transformer.generate_square_subsequent_mask(2.5), "sz: expected an integer, got float"),
    ],
)
def test_sentences_name_the_arguments_of_the_module_that_was_called(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [np.ones((3, 3), bool), "no", 2, None], ids=["array", "word", "number", "None"])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda **flag: nn.MultiheadAttention(4, 2, **flag), ("bias", "add_bias_kv", "add_zero_attn", "batch_first")),
        (lambda **flag: nn.MultiheadAttention(4, 2)(X, **flag), ("need_weights", "average_attn_weights", "is_causal")),
        (lambda **flag: nn.TransformerEncoderLayer(4, 2, **flag), ("bias", "batch_first", "norm_first")),
        (lambda **flag: nn.TransformerDecoderLayer(4, 2, **flag), ("bias", "batch_first", "norm_first")),
        (lambda **flag: nn.Transformer(4, 2, 1, 1, 8, **flag), ("bias", "batch_first", "norm_first")),
        (encoder_layer, ("is_causal",)),
        (encoder, ("is_causal",)),
        (decoder_layer, ("tgt_is_causal", "memory_is_causal")),
        (decoder, ("tgt_is_causal", "memory_is_causal")),
        (transformer, ("src_is_causal", "tgt_is_causal", "memory_is_causal")),
        (lambda **flag: nn.SinusoidalPositionalEncoding(4, **flag), ("batch_first",)),
        (lambda **flag: nn.LearnedPositionalEncoding(4, 4, **flag), ("batch_first",)),
        (lambda **flag: nn.OneHotPositionalEncoding(4, **flag), ("batch_first",)),
        (lambda **flag: nn.RotaryEmbedding(4, **flag), ("interleaved",)),
    ],
)
def test_flags_are_true_or_false(make, names, value):
    """An array where a flag belongs was meant for another argument; PyTorch's None for a causal flag is none."""
    given = () if make not in (encoder_layer, encoder) else (X,)
    given = (X, X) if make in (decoder_layer, decoder, transformer) else given
    optional = {encoder: {"is_causal"}, decoder: {"tgt_is_causal"}, transformer: {"src_is_causal", "tgt_is_causal"}}.get(make, set())
    came = "2" if type(value) is int else type(value).__name__
    for name in names:
        make(*given, **{name: np.True_})
        if value is None and name in optional:
            make(*given, **{name: None})
            continue
        with pytest.raises(TypeError, match=f"^{name}: expected True or False, got {came}"):
            make(*given, **{name: value})


@pytest.mark.parametrize("name", ["MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer"])
def test_arguments_that_are_not_there_are_reported_under_the_public_name(name):
    with pytest.raises(TypeError, match=f"^{name}.__init__.. got an unexpected keyword argument 'device'"):
        getattr(nn, name)(4, 2, device="cpu")
