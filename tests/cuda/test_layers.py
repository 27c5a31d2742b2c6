"""Every layer on a GPU: values and the gradients of inputs and parameters as on the CPU, for arrays and Tensors, with options from either side."""

import copy

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from fastseq.backends import is_gpu
from tests.tolerance import assert_close, assert_same_bits

_RNG = np.random.default_rng(0)


def normal(*shape):
    return _RNG.standard_normal(shape).astype(np.float32)


X, MEMORY, LENGTHS = normal(5, 2, 4), normal(7, 2, 6), np.array([5, 3])
RESET, PADDING = _RNG.random((5, 2)) < 0.2, nn.padding_mask([5, 3])

#: A layer, its inputs, and its options.
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3, rng=0), (X,), {}),
    "lstm": (lambda: nn.LSTM(4, 6, rng=0), (X,), {}),
    "lstm, two ways": (lambda: nn.LSTM(4, 6, 2, bidirectional=True, rng=0), (X,), {"lengths": LENGTHS}),
    "lstm, stacked": (lambda: nn.LSTM(4, 6, 2, rng=0).eval(), (X, (normal(2, 2, 6), normal(2, 2, 6))), {"lengths": LENGTHS, "reset": RESET}),
    "lstm, all states": (lambda: nn.LSTM(4, 6, proj_size=3, layer_norm=True, peephole=True, rng=0), (X,), {"return_states": True}),
    "lstm, noisy": (lambda: nn.LSTM(4, 6, recurrent_dropout=0.3, zoneout=(0.2, 0.1), rng=0), (X,), {}),
    "gru, dropout": (lambda: nn.GRU(4, 6, 2, dropout=0.5, batch_first=True, rng=0), (X,), {}),
    "gru, checkpoints": (lambda: nn.GRU(4, 6, reset_after=False, rng=0), (X,), {"checkpoint_every": 2}),
    "rnn": (lambda: nn.RNN(4, 6, nonlinearity="relu", rng=0), (X,), {}),
    "mut1": (lambda: nn.MUT1(4, 6, rng=0), (X,), {}),
    "mut2": (lambda: nn.MUT2(4, 4, rng=0), (X,), {}),
    "mut3, one sequence": (lambda: nn.MUT3(4, 6, rng=0), (X[:, 0],), {"lengths": 4}),
    "lstm cell": (lambda: nn.LSTMCell(4, 6, rng=0), (X[0],), {}),
    "rnn cell, one row": (lambda: nn.RNNCell(4, 6, rng=0), (X[0, 0],), {}),
    "embedding": (lambda: nn.Embedding(9, 4, rng=0), (np.array([[1, 2], [3, 8]]),), {}),
    "batch norm": (lambda: nn.BatchNorm1d(4), (X[:, 0],), {}),
    "batch norm, plain average": (lambda: nn.BatchNorm1d(4, momentum=None), (X[:, 0],), {}),
    "batch norm, in use": (lambda: nn.BatchNorm1d(4).eval(), (X[:, 0],), {}),
    "layer norm": (lambda: nn.LayerNorm(4), (X,), {}),
    "rms norm": (lambda: nn.RMSNorm(4), (X,), {}),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2, rng=0), (X,), {}),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2, rng=0), (normal(2, 2, 4, 4),), {}),
    "max pool": (lambda: nn.MaxPool2d(2), (normal(2, 2, 4, 4),), {}),
    "dropout": (lambda: nn.Dropout(0.5, rng=0), (X,), {}),
    "highway": (lambda: nn.Highway(4, rng=0), (X,), {}),
    "attention": (lambda: nn.MultiheadAttention(4, 2, rng=0), (X,), {}),
    "attention, masks": (lambda: nn.MultiheadAttention(4, 2, rng=0), (X,), {"key_padding_mask": PADDING, "attn_mask": nn.causal_mask(5)}),
    "attention, other keys": (
        lambda: nn.MultiheadAttention(4, 2, dropout=0.3, add_bias_kv=True, add_zero_attn=True, rng=0), (X, normal(7, 2, 4)),
        {"key_padding_mask": nn.padding_mask([7, 2])}),
    "attention, rotary": (
        lambda: nn.MultiheadAttention(4, 2, rotary=nn.RotaryEmbedding(2), rng=0), (X,), {"attn_mask": normal(5, 5), "key_padding_mask": PADDING}),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, rng=0), 2), (X,), {"is_causal": True}),
    "transformer": (lambda: nn.Transformer(4, 2, 1, 1, 8, rng=0), (X, normal(3, 2, 4)), {"src_key_padding_mask": PADDING}),
    "sines": (lambda: nn.SinusoidalPositionalEncoding(4), (X,), {"offset": np.array([1, 2])}),
    "learned positions": (lambda: nn.LearnedPositionalEncoding(9, 4, rng=0), (X,), {"offset": np.array(1)}),
    "one-hot positions": (lambda: nn.OneHotPositionalEncoding(9), (X,), {}),
    "rotary positions": (lambda: nn.RotaryEmbedding(4), (X,), {}),
    "additive scores": (
        lambda: nn.AdditiveAttention(4, 6, units=8, rng=0), (normal(2, 3, 4), normal(2, 5, 6)), {"key_lengths": LENGTHS, "return_weights": True}),
    "dot scores": (lambda: nn.DotAttention(), (normal(2, 3, 4), normal(2, 5, 4)), {"attn_mask": _RNG.random((3, 5)) < 0.5}),
    "bilinear scores": (lambda: nn.BilinearAttention(4, 6, rng=0), (normal(2, 3, 4), normal(2, 5, 6)), {}),
    "pooling": (lambda: nn.AttentionPooling(4, 3, rng=0), (X,), {"lengths": LENGTHS}),
} | {
    f"decoder, {attention}, {cell}{', fed' if fed else ''}": (
        lambda attention=attention, fed=fed, cell=cell: nn.AttentionDecoder(4, 6, 6, attention=attention, input_feeding=fed, cell=cell, rng=0),
        (X, MEMORY), {"lengths": LENGTHS, "memory_lengths": np.array([7, 4]), "return_weights": attention is not None})
    for attention, cell in (("additive", "lstm"), ("bilinear", "gru"), ("dot", "lstm"), ("scaled_dot", "gru"), (None, "lstm"))
    for fed in (True, False)
}  # fmt: skip


def leaves(value):
    if isinstance(value, tuple | list):
        for part in value:
            yield from leaves(part)
    elif value is not None:
        yield value


def plain(layer, inputs, options):
    """All outputs for arrays."""
    return list(leaves(layer(*inputs, **options)))


def recorded(layer, inputs, options, put):
    """Outputs, gradients of the inputs and of the parameters, for Tensors."""
    tensors = [_each(part, lambda a: fs.Tensor(put(a), requires_grad=a.dtype.kind == "f")) for part in inputs]
    outputs, loss = list(leaves(layer(*tensors, **options))), None
    for k, y in enumerate(outputs):
        weight = np.random.default_rng([1, k]).standard_normal(y.shape).astype(y.dtype)
        loss = (y * put(weight)).sum() if loss is None else loss + (y * put(weight)).sum()
    loss.backward()
    return [y.data for y in outputs], [t.grad for t in leaves(tensors) if t.requires_grad], [p.grad for p in layer.parameters()]


def _each(value, change):
    return tuple(_each(part, change) for part in value) if isinstance(value, tuple) else change(value)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_the_same_on_a_gpu(name, to_gpu):
    make, inputs, options = LAYERS[name]
    want_plain, want = plain(make(), inputs, options), recorded(make(), inputs, options, lambda a: a)
    layer = make()
    recorded(layer, inputs, options, lambda a: a)  # its own buffers have moved
    for given in (options, to_gpu(options)):
        for got, expected in ((plain(make().to("cuda"), to_gpu(inputs), given), want_plain), (recorded(make().to("cuda"), inputs, given, to_gpu), want)):
            for a, b in zip(leaves(got), leaves(expected), strict=True):
                assert is_gpu(a)
                assert_close(a.get(), b, terms=400, name=name)
    moved = make().to("cuda")
    recorded(moved, inputs, options, to_gpu)
    for (key, a), b in zip(moved.state_dict().items(), layer.state_dict().values(), strict=True):
        if a.dtype.kind == "f":
            assert_close(a, b, terms=100, name=key)


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 5, 2, rng=0), lambda: nn.GRU(3, 5, rng=0)], ids=["lstm", "gru"])
def test_a_stream_on_a_gpu_steps_as_the_layer_does(make, rng, to_gpu):
    layer, x = make().eval().to("cuda"), to_gpu(rng.standard_normal((4, 2, 3)).astype(np.float32))
    y, state = layer(x)
    stream = layer.stream(2)
    steps = [stream.step(x[t]).copy() for t in range(4)]
    for t in range(4):
        assert_close(steps[t].get(), y[t].get(), terms=40)
    for a, b in zip(leaves(stream.state), leaves(state), strict=True):
        assert_close(a.get(), b.get(), terms=40)
    stream.reset()
    assert_same_bits(stream.step(x[0]).get(), steps[0].get())


def test_a_cache_of_keys_and_values_lies_with_the_model(rng, to_gpu):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, rng=0), 2).eval()
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    want = encoder(x, is_causal=True)
    encoder.to("cuda")
    cache, x = nn.KeyValueCache(), to_gpu(x)
    first = encoder(x[:, :2], cache=cache)
    cache.reorder([1, 0])
    cache.reorder(to_gpu(np.array([1, 0])))
    rest = [encoder(x[:, t : t + 1], cache=cache) for t in range(2, 5)]
    for t, y in enumerate(rest, 2):
        assert_close(y.get()[:, 0], want[:, t], terms=100)
    assert_close(first.get(), want[:, :2], terms=100)
    assert cache.lengths.tolist() == [5, 5]
    assert copy.deepcopy(cache).lengths.tolist() == [5, 5]
    with pytest.raises(ValueError, match="cache: expected the device that it was filled on"):
        encoder.to("cpu")(x.get()[:, :1], cache=cache)


def test_a_cache_of_rows_of_unequal_lengths(rng, to_gpu):
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, batch_first=True, rng=0), 1).eval()
    x, memory = rng.standard_normal((2, 3, 4)).astype(np.float32), rng.standard_normal((2, 6, 4)).astype(np.float32)

    def steps(put):
        cache = nn.KeyValueCache()
        decoder(put(x), put(memory), tgt_key_padding_mask=nn.padding_mask([3, 1]), cache=cache)
        cache.reset([0])
        return decoder(put(x[:, :2]), put(memory), tgt_key_padding_mask=nn.padding_mask([2, 1]), cache=cache)

    want = steps(lambda a: a)
    decoder.to("cuda")
    got = steps(to_gpu).get()
    assert_close(got[0], want[0], terms=100)
    assert_close(got[1, :1], want[1, :1], terms=100)


def test_the_flow_of_gradients(rng, to_gpu):
    layer, x = nn.LSTM(3, 5, 2, rng=0), rng.standard_normal((6, 2, 3)).astype(np.float32)
    want = fs.diagnostics.gradient_flow(layer, x, loss=lambda y: y[-1].sum(), lengths=[6, 4])
    got = fs.diagnostics.gradient_flow(layer.to("cuda"), to_gpu(x), loss=lambda y: y[-1].sum(), lengths=[6, 4])
    assert isinstance(got, np.ndarray)
    assert_close(got.astype(np.float32), want.astype(np.float32), terms=100)
