"""PyTorch as a witness of attention's modules: outputs, weights and all gradients, from its own state dicts."""

import numpy as np
import pytest

import fastseq as fs
from tests.tolerance import assert_close

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # at these sizes its threads would only wait for each other

# Roundings of a result: a layer adds up rows of a few tens of elements, several times in a row.
TERMS = 300


def pair(kind, dtype, *arguments, **options):
    """Our module and theirs, in float64, with the same random numbers: their state dict loads as it is."""
    theirs = getattr(torch.nn, kind)(*arguments, **options, dtype=torch.float32 if dtype == np.float32 else torch.float64)
    ours = getattr(fs.nn, kind)(*arguments, **options, dtype=dtype)
    return loaded(ours, theirs)


def loaded(ours, theirs):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in theirs.named_parameters():  # none may stay at zero or one, where a mistake could hide
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.2) + ("norm" in name and "weight" in name))
    ours.load_state_dict({name: p.numpy() for name, p in theirs.state_dict().items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    return ours, theirs.double()


def both(array):
    """The same numbers as a Tensor of ours and as one of theirs in float64, both with a gradient."""
    return fs.Tensor(array, requires_grad=True), torch.tensor(array.astype(np.float64), requires_grad=True)


def theirs_of(mask):
    if mask is None:
        return None
    return torch.from_numpy(mask if mask.dtype == bool else mask.astype(np.float64))


def assert_the_same(ours, theirs, inputs, call, dtype, rng, more=()):
    """Outputs, and the gradients of inputs and parameters under random gradients of the outputs. call(module, convert, *inputs)."""
    mine, other = zip(*inputs, strict=True)
    got = call(ours, lambda mask: mask, *mine)
    want = call(theirs, theirs_of, *other)
    pairs = [(g, w) for g, w in zip(got, want, strict=True) if w is not None] if isinstance(want, tuple) else [(got, want)]
    loss = lost = 0
    for k, (g, w) in enumerate(pairs):
        assert_close(g.data, w.detach().numpy(), dtype=dtype, terms=TERMS, name=f"output {k}")
        dy = rng.standard_normal(g.shape).astype(dtype)
        loss, lost = loss + (g * dy).sum(), lost + (w * torch.from_numpy(dy.astype(np.float64))).sum()
    loss.backward()
    lost.backward()
    for k, (a, b) in enumerate(inputs):
        assert_close(a.grad, b.grad.numpy(), dtype=dtype, terms=TERMS, name=f"gradient of input {k}")
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert_close(p.grad, expected[name].grad.numpy(), dtype=dtype, terms=TERMS, name=name)
    # Arrays in: arrays out, and the same numbers.
    plain = call(ours, lambda mask: mask, *(x.data for x in mine))
    plain = [p for p in plain if p is not None] if isinstance(plain, tuple) else [plain]
    for p, (g, _) in zip(plain, pairs, strict=True):
        assert type(p) is np.ndarray
        assert np.array_equal(p, g.data)


def masks(kind, B, heads, Tq, Tk, dtype, rng):
    """(key_padding_mask, attn_mask) of one kind; no query sees nothing, for which PyTorch has NaN."""
    padding = fs.nn.padding_mask(np.maximum(1, Tk - np.arange(B)), Tk)
    scattered = rng.random((B, Tk)) < 0.4
    scattered[:, 0] = False
    attention = rng.random((Tq, Tk)) < 0.3
    attention[:, 0] = False
    each = rng.random((B * heads, Tq, Tk)) < 0.3
    each[..., 0] = False
    causal = np.triu(np.ones((Tq, Tk), bool), 1)

    def number(mask):
        return np.where(mask, -np.inf, rng.standard_normal(mask.shape)).astype(dtype)

    return {
        "none": (None, None),
        "right padding": (padding, None),
        "scattered": (scattered, None),
        "padding numbers": (number(scattered), None),
        "bool": (None, attention),
        "numbers": (None, number(attention)),
        "bool per head": (None, each),
        "numbers per head": (None, number(each)),
        "causal": (None, causal),
        "causal numbers": (None, np.where(causal, -np.inf, 0.0).astype(dtype)),
        "both": (scattered, attention),
        "both, right padding": (padding, number(attention)),
        "both numbers": (number(scattered), number(each)),
        "causal and padding": (padding, causal),
    }[kind]


KINDS = [
    "none", "right padding", "scattered", "padding numbers", "bool", "numbers", "bool per head", "numbers per head", "causal",
    "causal numbers", "both", "both, right padding", "both numbers", "causal and padding",
]  # fmt: skip
LAYOUTS = {
    "self": {},
    "self, biased": {"add_bias_kv": True, "add_zero_attn": True},
    "self, no bias": {"bias": False},
    "memory": {},
    "memory, biased": {"add_bias_kv": True},
    "memory, zero": {"add_zero_attn": True, "bias": False},
    "three": {},
    "widths": {"kdim": 7, "vdim": 5},
    "widths, biased": {"kdim": 7, "add_bias_kv": True, "add_zero_attn": True},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_multihead_attention(layout, kind, batch_first, dtype, rng):
    B, heads, Tq, E, options = 3, 2, 6, 10, LAYOUTS[layout]
    own = layout.startswith("self")
    Tk = Tq if own or "causal" in kind else 5
    ours, theirs = pair("MultiheadAttention", dtype, E, heads, batch_first=batch_first, **options)
    shapes = [(Tq, E), (Tk, options.get("kdim", E)), (Tk, options.get("vdim", E))]
    shapes = shapes[: 1 if own else 2 if layout.startswith("memory") else 3]
    arrays = [rng.standard_normal((B, T, n) if batch_first else (T, B, n)).astype(dtype) for T, n in shapes]
    padding, attention = masks(kind, B, heads, Tq, Tk, dtype, rng)

    for weights, average in ((True, True), (True, False), (False, True)):
        inputs = [both(a) for a in arrays]

        def call(module, convert, query, *rest, weights=weights, average=average):
            key, value = (rest * 2)[:2] if rest else (query, query)
            return module(
                query, key, value, key_padding_mask=convert(padding), need_weights=weights, attn_mask=convert(attention),
                average_attn_weights=average,
            )  # fmt: skip

        ours.zero_grad()
        theirs.zero_grad()
        assert_the_same(ours, theirs, inputs, call, dtype, rng)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_single_sequence(batch_first, dtype, rng):
    ours, theirs = pair("MultiheadAttention", dtype, 6, 2, batch_first=batch_first)
    padding, attention = np.array([False, False, True, False]), rng.standard_normal((2, 5, 4)).astype(dtype)
    inputs = [both(rng.standard_normal((n, 6)).astype(dtype)) for n in (5, 4)]

    def call(module, convert, query, memory):
        return module(query, memory, memory, key_padding_mask=convert(np.where(padding, -np.inf, 0.0).astype(dtype)), attn_mask=convert(attention))

    assert_the_same(ours, theirs, inputs, call, dtype, rng)


def test_a_learned_mask_gets_its_gradient(dtype, rng):
    ours, theirs = pair("MultiheadAttention", dtype, 6, 2, batch_first=True)
    inputs = [both(rng.standard_normal(shape).astype(dtype)) for shape in ((3, 4, 6), (4, 4))]
    padding = fs.nn.padding_mask([4, 2, 3])

    def call(module, convert, x, mask):
        hidden = padding if module is ours else torch.zeros(3, 4, dtype=torch.float64).masked_fill(torch.from_numpy(padding), -torch.inf)
        return module(x, x, x, key_padding_mask=hidden, attn_mask=mask, need_weights=False)

    assert_the_same(ours, theirs, inputs, call, dtype, rng)


def test_a_hint_that_a_mask_is_causal(dtype, rng):
    """Our flag needs no mask; theirs does."""
    ours, theirs = pair("MultiheadAttention", dtype, 6, 2)
    inputs = [both(rng.standard_normal((5, 3, 6)).astype(dtype))]

    def call(module, convert, x):
        mask = None if module is ours else torch.from_numpy(fs.nn.causal_mask(5))
        return module(x, x, x, attn_mask=mask, is_causal=True, need_weights=module is not ours)[:1]

    assert_the_same(ours, theirs, inputs, call, dtype, rng)


# ---------------------------------------------------------------- layers

OPTIONS = [
    {"norm_first": norm_first, "activation": activation, "batch_first": batch_first, "bias": bias}
    for norm_first in (False, True)
    for activation in ("relu", "gelu")
    for batch_first, bias in ((False, True), (True, True), (True, False))
]
LAYER = (10, 2, 17, 0.0)


def sequences(lengths, options, dtype, rng, B=3):
    return [both(rng.standard_normal((B, T, 10) if options["batch_first"] else (T, B, 10)).astype(dtype)) for T in lengths]


@pytest.mark.parametrize("kind", ["none", "right padding", "scattered", "numbers", "causal", "causal and padding"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_encoder_layer(options, kind, dtype, rng):
    ours, theirs = pair("TransformerEncoderLayer", dtype, *LAYER, **options)
    padding, attention = masks(kind, 3, 2, 6, 6, dtype, rng)

    def call(module, convert, x):
        return module(x, src_mask=convert(attention), src_key_padding_mask=convert(padding))

    assert_the_same(ours, theirs, sequences([6], options, dtype, rng), call, dtype, rng)


@pytest.mark.parametrize("kind", ["none", "right padding", "numbers", "causal and padding"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_decoder_layer(options, kind, dtype, rng):
    ours, theirs = pair("TransformerDecoderLayer", dtype, *LAYER, **options)
    padding, attention = masks(kind, 3, 2, 6, 6, dtype, rng)
    memory_padding, memory_attention = masks("both, right padding" if kind == "numbers" else "right padding", 3, 2, 6, 5, dtype, rng)

    def call(module, convert, x, memory):
        return module(
            x, memory, tgt_mask=convert(attention), memory_mask=convert(memory_attention), tgt_key_padding_mask=convert(padding),
            memory_key_padding_mask=convert(memory_padding),
        )  # fmt: skip

    assert_the_same(ours, theirs, sequences([6, 5], options, dtype, rng), call, dtype, rng)


@pytest.mark.parametrize("options", [o for o in OPTIONS if o["bias"]], ids=str)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_stacks_of_encoder_and_decoder(options, dtype, rng):
    double = torch.float32 if dtype == np.float32 else torch.float64
    for kind, lengths in (("Encoder", [6]), ("Decoder", [6, 5])):
        layer = getattr(torch.nn, f"Transformer{kind}Layer")(*LAYER, **options, dtype=double)
        theirs = getattr(torch.nn, f"Transformer{kind}")(layer, 2, torch.nn.LayerNorm(10, dtype=double))
        layer = getattr(fs.nn, f"Transformer{kind}Layer")(*LAYER, **options, dtype=dtype)
        ours = getattr(fs.nn, f"Transformer{kind}")(layer, 2, fs.nn.LayerNorm(10, dtype=dtype))
        ours, theirs = loaded(ours, theirs)

        def call(module, convert, *inputs, name="mask" if kind == "Encoder" else "tgt_mask"):
            return module(*inputs, **{name: convert(fs.nn.causal_mask(6))})

        assert_the_same(ours, theirs, sequences(lengths, options, dtype, rng), call, dtype, rng)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_the_whole_transformer(norm_first, batch_first, dtype, rng):
    options = {"norm_first": norm_first, "batch_first": batch_first}
    ours, theirs = pair("Transformer", dtype, 10, 2, 2, 2, 17, 0.0, **options)
    assert repr(ours.decoder.layers[1].linear1) == "Linear(in_features=10, out_features=17, bias=True)"
    padding = fs.nn.padding_mask([6, 2, 4])

    def call(module, convert, src, tgt):
        return module(
            src, tgt, tgt_mask=convert(fs.nn.causal_mask(5)), src_key_padding_mask=convert(padding),
            memory_key_padding_mask=convert(padding),
        )  # fmt: skip

    assert_the_same(ours, theirs, sequences([6, 5], options, dtype, rng), call, dtype, rng)
    assert np.array_equal(ours.generate_square_subsequent_mask(4), theirs.generate_square_subsequent_mask(4).numpy())
