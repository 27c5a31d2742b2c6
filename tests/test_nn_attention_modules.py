"""Attention's modules without a witness: gradients by differences, hidden rows, dropout, files, copies, wrong inputs."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from tests.tolerance import assert_same_bits


def filled(module, rng):
    """Random numbers in every parameter: none may stay at zero or one, where a mistake could hide."""
    for p in module.parameters():
        p.data[...] = rng.standard_normal(p.shape) * 0.4
    return module


def normal(rng, *shape, dtype=np.float64):
    return rng.standard_normal(shape).astype(dtype)


def assert_gradients(module, call, inputs):
    """Finite differences of every input and parameter."""
    tensors = [fs.Tensor(x, requires_grad=True) for x in inputs]
    parameters = list(module.parameters())
    assert fs.gradcheck(lambda *given: call(*given[: len(tensors)]), [*tensors, *parameters])


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "options",
    [{}, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}, {"kdim": 3, "vdim": 5}, {"rotary": nn.RotaryEmbedding(2, dtype=np.float64)}],
    ids=str,
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_multihead_attention(options, batch_first, rng):
    layer = filled(nn.MultiheadAttention(4, 2, batch_first=batch_first, dtype=np.float64, rng=0, **options), rng)
    padding = nn.padding_mask([3, 0], 3)
    shapes = [(3, 2, 4)] if "kdim" not in options else [(4, 2, 4), (3, 2, 3), (3, 2, 5)]
    inputs = [normal(rng, *(shape if not batch_first else (2, shape[0], shape[2]))) for shape in shapes]

    def call(*given):
        y, weights = layer(*given, key_padding_mask=padding, is_causal=len(given) == 1)
        return (y * y).sum() + (weights * weights).sum()

    assert_gradients(layer, call, inputs)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gradients_of_layers_with_dropout(norm_first, activation, rng):
    """The masks of dropout are drawn again in each call, so each call begins with the same number of calls."""
    layer = nn.TransformerDecoderLayer(4, 2, 5, 0.3, activation, norm_first=norm_first, dtype=np.float64, rng=0)
    filled(layer, rng)
    counted = [m for m in layer.modules() if hasattr(m, "_calls")]

    def call(x, memory):
        for module in counted:
            module._calls = 0
        y = layer(x, memory, tgt_is_causal=True, memory_key_padding_mask=nn.padding_mask([2, 3]))
        return (y * y * y).sum()

    assert_gradients(layer, call, [normal(rng, 3, 2, 4), normal(rng, 3, 2, 4)])


# ---------------------------------------------------------------- what is hidden


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("layout", ["self", "memory"])
def test_rows_that_see_nothing_give_zeros(layout, recorded, rng):
    layer = filled(nn.MultiheadAttention(4, 2, batch_first=True, rng=0), rng)
    x = normal(rng, 2, 3, 4, dtype=np.float32)
    given = [fs.Tensor(x, requires_grad=True)] if recorded else [x]
    given += [] if layout == "self" else given
    given = given if layout == "self" else [given[0], x.copy()]
    numbers = np.zeros((3, 3), np.float32)
    numbers[1] = -np.inf
    y, weights = layer(*given, key_padding_mask=nn.padding_mask([3, 0], 3), attn_mask=numbers)
    if recorded:
        ((y * y).sum() + weights.sum()).backward()
        assert np.isfinite(given[0].grad).all()
        assert all(np.isfinite(p.grad).all() for p in layer.parameters())
        y, weights = y.data, weights.data
    assert not weights[0, 1].any()
    assert not weights[1].any()
    assert weights[0, 0].any()
    assert np.array_equal(y[1], np.broadcast_to(layer.out_proj.bias.data, (3, 4)))
    assert np.array_equal(y[0, 1], layer.out_proj.bias.data)


@pytest.mark.parametrize("padding", ["right", "scattered"])
def test_what_padding_holds_does_not_matter(padding, rng):
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True, rng=0)
    encoder = filled(nn.TransformerEncoder(layer, 2, nn.LayerNorm(4)), rng)
    x = normal(rng, 2, 4, 4, dtype=np.float32)
    mask = np.array([[0, 0, 0, 1], [0, 0, 1, 1]] if padding == "right" else [[0, 1, 0, 0], [1, 0, 0, 1]], bool)
    want = encoder(x, src_key_padding_mask=mask)
    x[mask] = np.nan
    got = encoder(x, src_key_padding_mask=mask)
    assert np.isfinite(got[~mask]).all()
    assert np.array_equal(got[~mask], want[~mask])
    x[0, 0] = np.nan  # one that is seen
    assert np.isnan(encoder(x, src_key_padding_mask=mask)[0, 2]).all()


def test_a_causal_mask_of_any_kind_is_the_flag(rng):
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, 0.0, rng=0), 2)
    x = normal(rng, 5, 3, 4, dtype=np.float32)
    want = layer(x, is_causal=True)
    for mask in (nn.causal_mask(5), nn.Transformer.generate_square_subsequent_mask(5), fs.Tensor(nn.causal_mask(5))):
        got = layer(x, mask=mask)
        assert np.array_equal(got.data if isinstance(got, fs.Tensor) else got, want)
    wider = nn.causal_mask(5)
    wider[4, 0] = True
    assert not np.array_equal(layer(x, mask=wider), want)
    numbers = nn.Transformer.generate_square_subsequent_mask(5)
    numbers[3, 1] = 1e-3
    assert not np.array_equal(layer(x, mask=numbers), want)
    with pytest.raises(ValueError, match=r"^mask: expected shape"):
        layer(x, mask=nn.causal_mask(6))
    x[3:] = 7
    assert np.array_equal(layer(x, is_causal=True)[:3], want[:3])


def test_key_and_value_may_be_left_out(rng):
    layer = filled(nn.MultiheadAttention(4, 2, rng=0), rng)
    x, memory = normal(rng, 3, 2, 4, dtype=np.float32), normal(rng, 5, 2, 4, dtype=np.float32)
    for short, full in (((x,), (x, x, x)), ((x, memory), (x, memory, memory)), ((x, x.copy()), (x, x.copy(), x.copy()))):
        for one, other in zip(layer(*short), layer(*full), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_inputs_are_converted_at_the_door_and_not_changed(rng):
    layer = nn.MultiheadAttention(4, 2, rng=0)
    x = normal(rng, 3, 2, 4)
    x.flags.writeable = False
    mask = normal(rng, 3, 3)
    y, weights = layer(x, attn_mask=mask)
    assert y.dtype == weights.dtype == np.float32
    want, _ = layer(x.astype(np.float32), attn_mask=mask.astype(np.float32))
    assert np.array_equal(y, want)
    assert np.array_equal(layer(np.asfortranarray(x), attn_mask=mask)[0], y)
    t = fs.Tensor(x.copy(), requires_grad=True)
    layer(t)[0].sum().backward()
    assert t.grad.dtype == np.float64


def test_a_tensor_among_the_inputs_records(rng):
    layer = nn.MultiheadAttention(4, 2, rng=0)
    x, memory = normal(rng, 3, 2, 4, dtype=np.float32), normal(rng, 5, 2, 4, dtype=np.float32)
    bias = np.zeros((3, 5), np.float32)
    for given in ((fs.Tensor(x), memory, None), (x, fs.Tensor(memory), None), (x, memory, fs.Tensor(bias, requires_grad=True))):
        layer.zero_grad()
        y, weights = layer(*given[:2], attn_mask=given[2])
        assert isinstance(y, fs.Tensor)
        assert isinstance(weights, fs.Tensor)
        (y * y).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
    assert bias.shape == given[2].grad.shape
    numbers = fs.Tensor(np.zeros((2, 5), np.float32), requires_grad=True)
    layer.zero_grad()
    y, weights = layer(x, memory, key_padding_mask=numbers)
    ((y * y).sum() + (weights * weights).sum()).backward()
    assert numbers.grad.any()
    assert all(p.grad is not None for p in layer.parameters())


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu", "rotary": nn.RotaryEmbedding(4)}], ids=["plain", "rotary"])
def test_the_same_bits_for_any_number_of_threads_and_for_a_row_alone(options, rng):
    layer = nn.TransformerDecoderLayer(16, 4, 40, 0.2, batch_first=True, rng=0, **options)
    x, memory, dy = (normal(rng, 5, n, 16, dtype=np.float32) for n in (19, 23, 19))
    lengths = np.array([19, 3, 0, 7, 18])
    masks = {"tgt_is_causal": True, "tgt_key_padding_mask": nn.padding_mask(lengths), "memory_key_padding_mask": nn.padding_mask(lengths, 23)}

    def results():
        for module in layer.modules():
            module.__dict__.update({"_calls": 0} if hasattr(module, "_calls") else {})
        layer.zero_grad()
        inputs = [fs.Tensor(a, requires_grad=True) for a in (x, memory)]
        y = layer(*inputs, **masks)
        y.backward(dy)
        return [y.data, *(a.grad for a in inputs), *(p.grad for p in layer.parameters())]

    want = results()
    for threads in (1, 2, 3, 7):
        with fs.threads(threads), fs.runtime.force_threads():
            for got, first in zip(results(), want, strict=True):
                assert_same_bits(got, first)
    layer.eval()
    together = layer(x, memory, **masks)
    for row, n in enumerate(lengths):
        if n:
            alone = layer(x[row : row + 1, :n], memory[row : row + 1, :n], tgt_is_causal=True)
            assert_same_bits(together[row, :n], alone[0])


# ---------------------------------------------------------------- dropout


def test_dropout_is_drawn_by_seed_and_call(rng):
    def make(seed):
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.5, rng=seed), 2)

    x = normal(rng, 6, 2, 8, dtype=np.float32)
    one, two = make(1), make(1)
    first, second = one(x), one(x)
    assert not np.array_equal(first, second)
    assert np.array_equal(two(x), first)
    assert np.array_equal(two(x), second)
    assert not np.array_equal(make(2)(x), first)
    calm = one.eval()(x)
    assert np.array_equal(calm, one(x))
    assert np.array_equal(calm, two.eval()(x))


def test_copies_of_a_layer_draw_masks_of_their_own():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.5, rng=0), 3)
    seeds = [m._seed for m in encoder.modules() if hasattr(m, "_seed")]
    assert len(seeds) == 3 * 4
    assert len(set(seeds)) == len(seeds)


def test_dropout_of_the_weights_is_returned(rng):
    layer = nn.MultiheadAttention(8, 2, dropout=0.5, rng=0)
    x = normal(rng, 16, 3, 8, dtype=np.float32)
    _, weights = layer(x, average_attn_weights=False)
    assert 0.3 < (weights == 0).mean() < 0.7
    _, kept = layer.eval()(x, average_attn_weights=False)
    np.testing.assert_allclose(weights[weights != 0], 2 * kept[weights != 0], rtol=1e-5)
    assert nn.MultiheadAttention(8, 2, dropout=1.0)(x)[1].any() == 0


# ---------------------------------------------------------------- start, files, copies, text


def test_parameters_start_as_pytorch_s():
    layer = nn.MultiheadAttention(128, 4, add_bias_kv=True, rng=0)
    for parameter, bound in ((layer.in_proj_weight, (6 / (4 * 128)) ** 0.5), (layer.out_proj.weight, 128**-0.5)):
        assert bound * 0.99 < abs(parameter.data).max() <= bound
    assert not layer.in_proj_bias.data.any()
    assert not layer.out_proj.bias.data.any()
    assert abs(layer.bias_k.data.std() - 128**-0.5) < 0.02
    other = nn.MultiheadAttention(128, 4, kdim=64, rng=0)
    assert abs(other.k_proj_weight.data).max() == pytest.approx((6 / 192) ** 0.5, rel=0.01)
    model = nn.Transformer(64, 4, 2, 2, 128, rng=0)
    assert abs(model.encoder.layers[0].linear1.weight.data).max() == pytest.approx((6 / 192) ** 0.5, rel=0.01)
    assert not np.array_equal(*(layer.linear1.weight.data for layer in model.encoder.layers))
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2)
    assert np.array_equal(*(layer.linear1.weight.data for layer in stack.layers))


class Tagger(nn.Module):
    def __init__(self, width):
        self.positions = nn.LearnedPositionalEncoding(6, width)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, 2, 8), 2, nn.LayerNorm(width))

    def forward(self, x):
        return self.encoder(self.positions(x))


class OwnEncoder(nn.TransformerEncoder):
    """A stack with an __init__ of its own."""

    def __init__(self, width):
        super().__init__(nn.TransformerEncoderLayer(width, 2, 8), 2)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(super().forward(x))


MODELS = {
    "attention": lambda: nn.MultiheadAttention(4, 2, 0.1, add_bias_kv=True, add_zero_attn=True),
    "attention of other widths": lambda: nn.MultiheadAttention(4, 2, bias=False, kdim=4, vdim=4, dtype=np.float64),
    "rotary": lambda: nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(2, 100.0)),
    "encoder layer": lambda: nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", norm_first=True, bias=False),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), num_layers=2, norm=nn.LayerNorm(4)),
    "encoder of a rotary layer": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, rotary=nn.RotaryEmbedding(2)), 2),
    "transformer": lambda: nn.Transformer(4, 2, 1, 2, 8, batch_first=True),
    "transformer with a part of one's own": lambda: nn.Transformer(4, 2, num_decoder_layers=1, dim_feedforward=8, custom_encoder=OwnEncoder4()),
    "stack with an __init__ of its own": lambda: OwnEncoder(4),
    "model": lambda: Tagger(4),
    "sinusoidal": lambda: nn.SinusoidalPositionalEncoding(4, 0.1, base=100.0),
    "one-hot": lambda: nn.OneHotPositionalEncoding(7),
}


class OwnEncoder4(nn.Module):
    def __init__(self):
        self.layer = nn.Linear(4, 4)

    def forward(self, src, mask=None, src_key_padding_mask=None, is_causal=None):
        return self.layer(src)


@pytest.mark.parametrize("name", MODELS)
def test_files_pickles_and_copies(name, tmp_path, rng):
    model = MODELS[name]().eval()
    x = normal(rng, 5, 3, 4, dtype=np.float32)
    given = (x, x) if "transformer" in name else (x,)

    def result(module):
        y = module(*given)
        return y[0] if isinstance(y, tuple) else y

    want = result(model)
    path = tmp_path / "model.safetensors"
    model.save(path)
    for twin in (fs.load(path), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert repr(twin) == repr(model)
        assert list(twin.state_dict()) == list(model.state_dict())
        assert np.array_equal(result(twin), want)
        for p in twin.parameters():
            p.data += 1
    assert np.array_equal(result(model), want)


def test_a_stack_does_not_keep_the_layer_it_copied():
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    encoder = nn.TransformerEncoder(layer, 2)
    layer.linear1.weight.data[...] = 7
    assert not (encoder.layers[0].linear1.weight.data == 7).any()
    assert encoder.configuration()["encoder_layer"] is encoder.layers[0]


def test_text():
    assert repr(nn.MultiheadAttention(4, 2, 0.1)) == (
        "MultiheadAttention(\n  4, num_heads=2, dropout=0.1\n  (out_proj): Linear(in_features=4, out_features=4, bias=True)\n)"
    )
    text = repr(nn.TransformerEncoderLayer(4, 2, 8, norm_first=True))
    assert "activation='relu', norm_first=True" in text
    assert "(linear2): Linear(in_features=8, out_features=4, bias=True)" in text


# ---------------------------------------------------------------- wrong inputs

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


@pytest.mark.parametrize("name", ["MultiheadAttention", "TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer"])
def test_arguments_that_are_not_there_are_reported_under_the_public_name(name):
    with pytest.raises(TypeError, match=f"^{name}.__init__.. got an unexpected keyword argument 'device'"):
        getattr(nn, name)(4, 2, device="cpu")


def test_empty_batches_and_sequences():
    layer = nn.MultiheadAttention(4, 2)
    for shape in ((3, 0, 4), (0, 2, 4), (0, 4)):
        y, weights = layer(np.zeros(shape))
        assert y.shape == shape
        assert weights.shape[-2:] == (shape[0], shape[0])
    y, weights = layer(X, np.zeros((0, 2, 4)))
    assert np.array_equal(y, np.broadcast_to(layer.out_proj.bias.data, y.shape))
    assert weights.shape == (2, 3, 0)
    assert nn.TransformerEncoderLayer(4, 2, 8)(np.zeros((0, 2, 4))).shape == (0, 2, 4)
