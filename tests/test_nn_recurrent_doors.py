"""What recurrent layers refuse, their streams, and the cells of one step."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from tests.test_nn_recurrent import KINDS, B, H, I, T, every_kind, made, states_for, tupled
from tests.tolerance import assert_same_bits

S = np.zeros((1, B, H))


@pytest.fixture
def x(rng):
    return rng.standard_normal((T, B, I)).astype(np.float32)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((10, 8, 32)), r"x: expected shape \(T, B, 4\) or \(T, 4\), got \(10, 8, 32\)"),
        (np.zeros(4), r"x: expected shape \(T, B, 4\) or \(T, 4\), got \(4,\)"),
        (np.zeros((2, 3, 4, 4)), r"got \(2, 3, 4, 4\)"),
        (np.float32(1), r"got \(\)"),
    ],
)
def test_inputs_of_another_shape(x, message):
    for layer in (nn.LSTM(4, 5), nn.GRU(4, 5), nn.MUT2(4, 5)):
        with pytest.raises(ValueError, match=message):
            layer(x)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, 4\)"):
        nn.LSTM(4, 5, batch_first=True)(np.zeros((3, 4, 5)))


@pytest.mark.parametrize(
    ("layer", "state", "error", "message"),
    [
        (nn.LSTM, (S[..., :4], S), ValueError, r"h_0: expected shape \(1, 3, 5\), got \(1, 3, 4\)"),
        (nn.LSTM, (S, S[0]), ValueError, r"c_0: expected shape \(1, 3, 5\), got \(3, 5\)"),
        (nn.LSTM, (S[:, :1], S), ValueError, r"h_0: expected shape \(1, 3, 5\), got \(1, 1, 5\)"),
        (nn.LSTM, S, TypeError, r"state: expected \(h_0, c_0\), each of shape \(1, 3, 5\), got ndarray"),
        (nn.LSTM, (S,), TypeError, r"state: expected \(h_0, c_0\), .* got tuple of 1"),
        (nn.LSTM, (S.astype(complex), S), TypeError, "h_0: expected float32"),
        (nn.GRU, (S, S), TypeError, r"state: expected one array h_0 of shape \(1, 3, 5\), got tuple of 2"),
        (nn.GRU, S[0], ValueError, r"state: expected shape \(1, 3, 5\), got \(3, 5\)"),
        (nn.RNN, S.astype(np.float16), TypeError, "state: expected float32"),
    ],
)
def test_states_of_another_shape(layer, state, error, message, x):
    layer = layer(4, 5)
    for given in (x, fs.Tensor(x)):
        with pytest.raises(error, match=message):
            layer(given, state)


def test_states_of_the_shape_of_another_structure(x):
    layer = nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=2)
    with pytest.raises(TypeError, match=r"state: expected \(h_0, c_0\), of shapes \(4, 3, 2\) and \(4, 3, 5\), got int"):
        layer(x, 3)
    with pytest.raises(ValueError, match=r"h_0: expected shape \(4, 2\), got \(1, 5\)"):
        layer(x[:, 0], (S[:, 0], S[:, 0]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lengths": [1, 2]}, ValueError, r"lengths: expected shape \(3,\), got \(2,\)"),
        ({"lengths": 2}, ValueError, r"lengths: expected shape \(3,\), got \(\)"),
        ({"lengths": [1, 2, 7]}, ValueError, "lengths: expected integers from 0 to 6, the number of steps, got 7"),
        ({"lengths": [1, -1, 2]}, ValueError, "lengths: expected integers from 0 to 6, the number of steps, got -1"),
        ({"lengths": np.array([1, 2, 2**63], np.uint64)}, ValueError, "lengths: .* got 9223372036854775808"),
        ({"lengths": [1.0, 2.0, 3.0]}, TypeError, "lengths: expected integers, got float64"),
        ({"lengths": [True, True, False]}, TypeError, "lengths: expected integers, got bool"),
        ({"lengths": [[1], [2, 3], 1]}, ValueError, "lengths: expected an array, got a list"),
        ({"reset": np.zeros((T, B))}, TypeError, "reset: expected bool, got float64"),
        ({"reset": np.zeros((B, T), bool)}, ValueError, r"reset: expected shape \(6, 3\), got \(3, 6\)"),
        ({"reset": np.zeros(T, bool)}, ValueError, r"reset: expected shape \(6, 3\), got \(6,\)"),
        ({"checkpoint_every": 0}, ValueError, r"checkpoint_every: expected an integer in \[1, "),
        ({"checkpoint_every": 2.0}, TypeError, "checkpoint_every: expected an integer, got float"),
    ],
)
def test_options_of_a_call(options, error, message, x):
    for layer in (nn.GRU(4, 5), nn.LSTM(4, 5, num_layers=2)):
        for given in (x, fs.Tensor(x)):
            with pytest.raises(error, match=message):
                layer(given, **options)


def test_options_of_a_call_without_batch_or_with_it_first(x):
    layer = nn.GRU(4, 5, batch_first=True)
    with pytest.raises(ValueError, match=r"reset: expected shape \(3, 6\), got \(6, 3\)"):
        layer(x.swapaxes(0, 1), reset=np.zeros((T, B), bool))
    with pytest.raises(ValueError, match=r"reset: expected shape \(6,\), got \(6, 1\)"):
        layer(x[:, 0], reset=np.zeros((T, 1), bool))
    with pytest.raises(ValueError, match=r"lengths: expected shape \(\), got \(1,\)"):
        layer(x[:, 0], lengths=[3])
    with pytest.raises(ValueError, match="lengths: expected integers from 0 to 6, the number of steps, got 7"):
        layer(x[:, 0], lengths=7)


def test_lengths_of_any_kind(x):
    layer = nn.GRU(4, 5, rng=1)
    want = layer(x, lengths=[6, 0, 3])[0]
    for kind in "bBhHiIlLqQ":
        assert_same_bits(layer(x, lengths=np.array([6, 0, 3], kind))[0], want)
    assert_same_bits(layer(x, lengths=fs.Tensor(np.array([6, 0, 3])))[0], want)
    assert_same_bits(layer(x, lengths=np.array([6, 9, 0, 9, 3])[::2])[0], want)
    assert layer(x[:, :0], lengths=[])[0].shape == (6, 0, 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.GRU(4, 5, num_layers=0), ValueError, "num_layers: expected at least 1, got 0"),
        (lambda: nn.GRU(0, 5), ValueError, "input_size: expected at least 1, got 0"),
        (lambda: nn.GRU(4, 5.0), TypeError, "hidden_size: expected an integer, got float"),
        (lambda: nn.RNN(4, 5, dropout=1.5), ValueError, "dropout: expected a probability between 0 and 1, got 1.5"),
        (lambda: nn.RNN(4, 5, recurrent_dropout=-0.1), ValueError, "recurrent_dropout: expected a probability"),
        (lambda: nn.RNN(4, 5, zoneout=2), ValueError, "zoneout: expected a probability"),
        (lambda: nn.RNN(4, 5, zoneout="a"), TypeError, "zoneout: expected a number, got str"),
        (lambda: nn.GRU(4, 5, zoneout=(0.1, 0.2)), TypeError, "zoneout: expected a probability, got tuple of 2"),
        (lambda: nn.LSTM(4, 5, zoneout=(0.1, 0.2, 0.3)), TypeError, r"zoneout: expected a probability or a pair \(p_h, p_c\), got tuple of 3"),
        (lambda: nn.LSTM(4, 5, zoneout=(0.1, 1.2)), ValueError, "zoneout: expected a probability"),
        (lambda: nn.LSTM(4, 5, proj_size=5), ValueError, "proj_size: expected less than hidden_size, 5, got 5"),
        (lambda: nn.LSTM(4, 5, proj_size=-1), ValueError, "proj_size: expected at least 1, got -1"),
        (lambda: nn.GRU(4, 5, reset_after=False, layer_norm=True), ValueError, "layer_norm: expected False with reset_after=False"),
        (lambda: nn.RNN(4, 5, nonlinearity="sin"), ValueError, "nonlinearity: expected 'tanh' or 'relu', got 'sin'"),
        (lambda: nn.RNNCell(4, 5, nonlinearity="sin"), ValueError, "nonlinearity: expected 'tanh' or 'relu', got 'sin'"),
        (lambda: nn.MUT1(4, 5, dtype=int), TypeError, "dtype: expected float32 or float64"),
        (lambda: nn.GRU(4, 5, bidirectional=True).stream(), ValueError, "stream: expected a layer of one direction"),
        (lambda: nn.GRU(4, 5).stream(0), ValueError, "batch_size: expected at least 1, got 0"),
    ],
)
def test_options_of_a_layer(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "zoneout": 0.25}], ids=str)
@every_kind
def test_stream_gives_the_bits_of_the_sequence(kind, options, x):
    layer = made(kind, **options).eval()
    y, end = layer(x)
    stream = layer.stream(batch_size=B)
    steps = [stream.step(x_t) for x_t in x]
    assert_same_bits(np.array(steps), y)
    assert len({a.ctypes.data for a in steps}) == len(steps)
    assert isinstance(stream.state, tuple) == isinstance(layer, nn.LSTM)
    for got, want in zip(tupled(stream.state), tupled(end), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("kind", ["lstm", "projection", "gru", "mut1"])
def test_stream_state_out_and_reset(kind, x, rng):
    layer = made(kind, num_layers=2)
    state = states_for(layer, rng)
    stream = layer.stream(batch_size=B)
    stream.state = state
    y, _ = layer(x, state)
    out = np.empty_like(y[0])
    assert stream.step(x[0], out) is out
    assert stream.step(x[1], out=out) is out
    assert_same_bits(out, y[1])
    tupled(stream.state)[0][...] = 9  # a copy
    assert_same_bits(tupled(stream.state)[0][1], y[1])
    stream.reset(rows=[1])
    for part in tupled(stream.state):
        assert not part[:, 1].any()
        assert part[:, 0].any()
    stream.reset()
    assert_same_bits(stream.step(x[0]), layer(x)[0][0])


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mut2"])
def test_stream_is_a_snapshot_until_refreshed_and_travels(kind, x):
    layer = made(kind, num_layers=2)
    stream = layer.stream(batch_size=B)
    before = layer(x[:1])[0][0]
    layer.weight_ih_l1.data[...] *= 2
    after = layer(x[:1])[0][0]
    assert not np.array_equal(before, after)
    for one in (stream, copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        one.reset()
        assert_same_bits(one.step(x[0]), before)
        one.reset()
        one.refresh()
        assert_same_bits(one.step(x[0]), after)


@pytest.mark.parametrize("bad", [np.zeros((3, 5), np.float32), np.zeros((2, 4), np.float32), np.zeros(4, np.float32)])
def test_stream_refuses_other_shapes_and_keeps_its_state(bad):
    stream = nn.LSTM(4, 5).stream(batch_size=3)
    stream.step(np.ones((3, 4), np.float32))
    before = stream.state
    with pytest.raises(ValueError, match="x: expected"):
        stream.step(bad)
    assert np.array_equal(stream.state, before)


# ---------------------------------------------------------------- cells

CELLS = [(nn.RNNCell, nn.RNN, {}), (nn.RNNCell, nn.RNN, {"nonlinearity": "relu"}), (nn.LSTMCell, nn.LSTM, {}), (nn.GRUCell, nn.GRU, {})]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cell", "layer", "options"), CELLS)
def test_cells_are_one_step_of_their_layers(cell, layer, options, bias, x, rng):
    cell, layer = cell(I, H, bias, **options, rng=0), layer(I, H, bias=bias, **options)
    layer.load_state_dict({f"{name}_l0": a for name, a in cell.state_dict().items()})
    want_state = states_for(layer, rng)
    state = tuple(a[0] for a in want_state) if isinstance(want_state, tuple) else want_state[0]
    want_state = layer(x[:1], want_state)[1]
    for got, want in zip(tupled(cell(x[0], state)), tupled(want_state), strict=True):
        assert_same_bits(got, want[0])
    for got, want in zip(tupled(cell(x[0])), tupled(layer(x[:1])[1]), strict=True):
        assert_same_bits(got, want[0])
    one = tuple(a[1] for a in state) if isinstance(state, tuple) else state[1]
    for got, want in zip(tupled(cell(x[0, 1], one)), tupled(want_state), strict=True):
        assert_same_bits(got, want[0, 1])


@pytest.mark.parametrize(("cell", "layer", "options"), CELLS)
def test_cells_have_pytorchs_names_and_gradients(cell, layer, options, rng):
    cell = cell(I, H, **options, dtype=np.float64, rng=0)
    state = tuple(fs.Tensor(rng.standard_normal((2, H)), requires_grad=True) for _ in range(1 + (layer is nn.LSTM)))
    inputs = [fs.Tensor(rng.standard_normal((2, I)), requires_grad=True), *state, *cell.parameters()]

    def two_steps(x, *_):
        after = cell(x, cell(x, state if layer is nn.LSTM else state[0]))
        return tupled(after)

    assert fs.gradcheck(two_steps, inputs)
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, type(cell).__name__)(I, H, **options)
    assert [(n, p.shape) for n, p in cell.named_parameters()] == [(n, tuple(p.shape)) for n, p in theirs.named_parameters()]


def test_cells_refuse_and_copy():
    cell = nn.LSTMCell(I, H, bias=False)
    assert repr(cell) == "LSTMCell(4, 5, bias=False)"
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 4\) or \(4,\), got \(2, 3, 4\)"):
        cell(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"h_0: expected shape \(3, 5\), got \(1, 3, 5\)"):
        cell(np.zeros((3, 4)), (S, S))
    with pytest.raises(TypeError, match=r"state: expected \(h_0, c_0\)"):
        cell(np.zeros((3, 4)), S[0])
    h, _ = cell(np.ones((3, 4)))
    for twin in (copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert_same_bits(twin(np.ones((3, 4)))[0], h)


def test_every_layer_is_in_the_table():
    assert {layer for layer, _ in KINDS.values()} == {nn.RNN, nn.LSTM, nn.GRU, nn.MUT1, nn.MUT2, nn.MUT3}
