"""nn.LSTM as a layer: names, shapes, states, streams and current weights. The arithmetic itself is tested with the operation."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional, nn


def written_out(layer, x, h, c):
    """The layer's equations in float64: y, h, all c."""
    w, u = layer.weight_ih_l0.data.astype(np.float64), layer.weight_hh_l0.data.astype(np.float64)
    bias = 0.0 if layer.bias_ih_l0 is None else layer.bias_ih_l0.data.astype(np.float64) + layer.bias_hh_l0.data
    hidden, cells = [], []
    for x_t in x.astype(np.float64):
        i, f, g, o = np.split(x_t @ w.T + h @ u.T + bias, 4, axis=-1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        hidden.append(h)
        cells.append(c)
    return np.array(hidden), h, np.array(cells)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in ((6, 3, 4), (1, 3, 5), (1, 3, 5))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-6), (np.float64, 1e-13)])
def test_values_and_states(data, dtype, tolerance, bias):
    x, h_0, c_0 = data
    layer = nn.LSTM(4, 5, bias=bias, dtype=dtype, rng=1)
    y, (h, c), (hidden, cells) = layer(x, (h_0, c_0), return_states=True)
    want_y, want_h, want_c = written_out(layer, x, h_0[0], c_0[0])
    assert y.shape == (6, 3, 5)
    assert hidden.shape == cells.shape == (1, 6, 3, 5)
    assert y.dtype == h.dtype == c.dtype == cells.dtype == dtype
    for got, want in ((y, want_y), (h[0], want_h), (c[0], want_c[-1]), (hidden[0], want_y), (cells[0], want_c)):
        assert np.abs(got - want).max() < tolerance
    assert np.array_equal(layer(x)[0], layer(x, (np.zeros((1, 3, 5)), np.zeros((1, 3, 5))))[0])


def test_names_shapes_and_start():
    layer = nn.LSTM(4, 5, rng=0)
    assert {name: value.shape for name, value in layer.state_dict().items()} == {
        "weight_ih_l0": (20, 4),
        "weight_hh_l0": (20, 5),
        "bias_ih_l0": (20,),
        "bias_hh_l0": (20,),
    }
    assert np.array_equal(layer.bias_ih_l0.data[5:10], np.ones(5))
    assert np.array_equal(layer.bias_hh_l0.data[5:10], np.zeros(5))
    others = [layer.weight_ih_l0.data, layer.weight_hh_l0.data, layer.bias_ih_l0.data[:5], layer.bias_hh_l0.data[10:]]
    assert all(0 < abs(a).max() <= 1 / np.sqrt(5) for a in others)
    plain = nn.LSTM(4, 5, forget_bias=None, rng=0)
    assert abs(plain.bias_ih_l0.data[5:10]).max() <= 1 / np.sqrt(5)
    assert plain.bias_hh_l0.data[5:10].all()
    assert nn.LSTM(4, 5, forget_bias=2.5).bias_ih_l0.data[5:10].tolist() == [2.5] * 5
    assert list(nn.LSTM(4, 5, bias=False).state_dict()) == ["weight_ih_l0", "weight_hh_l0"]


def test_batch_first_and_single_sequences_give_the_same(data):
    x, h_0, c_0 = data
    layer, turned = nn.LSTM(4, 5, rng=1), nn.LSTM(4, 5, batch_first=True, rng=1)
    y, (h, c), (hidden, cells) = layer(x, (h_0, c_0), return_states=True)
    for wrap in (np.asarray, fs.Tensor):
        y2, (h2, c2), (hidden2, cells2) = turned(wrap(x.swapaxes(0, 1)), (wrap(h_0), wrap(c_0)), return_states=True)
        assert isinstance(y2, type(wrap(x)))
        for a, b in ((y2.swapaxes(0, 1), y), (h2, h), (c2, c), (hidden2, hidden), (cells2, cells)):
            assert np.array_equal(
                a.numpy() if isinstance(a, fs.Tensor) and not a.requires_grad else getattr(a, "data", a), b
            )
        for one in (layer, turned):
            y1, (h1, c1), (hidden1, cells1) = one(wrap(x[:, 1]), (wrap(h_0[:, 1]), wrap(c_0[:, 1])), return_states=True)
            assert (y1.shape, h1.shape, c1.shape, hidden1.shape, cells1.shape) == (
                (6, 5),
                (1, 5),
                (1, 5),
                (1, 6, 5),
                (1, 6, 5),
            )
            for a, b in (
                (y1, y[:, 1]),
                (h1, h[:, 1]),
                (c1, c[:, 1]),
                (hidden1, hidden[:, :, 1]),
                (cells1, cells[:, :, 1]),
            ):
                assert np.array_equal(a.data if isinstance(a, fs.Tensor) else a, b)


@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_everything(data, batch_first):
    x, h_0, c_0 = data
    layer = nn.LSTM(4, 5, batch_first=batch_first, dtype=np.float64, rng=1)
    x = np.ascontiguousarray(x.swapaxes(0, 1)) if batch_first else x
    names = [name for name, _ in layer.named_parameters()]
    arrays = [x, h_0, c_0, *layer.parameters()]

    def outputs(x, h_0, c_0, *parameters):
        for name, parameter in zip(names, parameters, strict=True):
            setattr(layer, name, nn.Parameter(parameter.data))
        y, (h, c) = layer(x, (h_0, c_0))
        return (y * weights[0]).sum() + (h * weights[1]).sum() + (c * weights[2]).sum()

    rng = np.random.default_rng(5)
    weights = [rng.standard_normal(s) for s in (x.shape[:2] + (5,), (1, 3, 5), (1, 3, 5))]
    tensors = [
        fs.Tensor(np.array(getattr(a, "data", a) if isinstance(a, fs.Tensor) else a), requires_grad=True)
        for a in arrays
    ]
    outputs(*tensors).backward()
    got = [t.grad for t in tensors[:3]] + [p.grad for p in layer.parameters()]
    plain = [t.data for t in tensors]
    for k, gradient in enumerate(got):
        move = rng.standard_normal(plain[k].shape)
        moved = [[fs.Tensor(a + s * 1e-6 * move if j == k else a) for j, a in enumerate(plain)] for s in (1, -1)]
        want = (outputs(*moved[0]).item() - outputs(*moved[1]).item()) / 2e-6
        assert abs(np.sum(gradient * move) - want) < 1e-7 * (1 + abs(want)), k


def test_the_state_goes_on_and_can_be_cut_off(data):
    x, *_ = data
    layer = nn.LSTM(4, 5, rng=1)
    whole, _ = layer(x)
    first, state = layer(fs.Tensor(x[:4]))
    second, _ = layer(fs.Tensor(x[4:]), tuple(s.detach() for s in state))
    assert np.array_equal(np.concatenate([first.data, second.data]), whole)
    second.sum().backward()
    through = layer.weight_ih_l0.grad
    layer.zero_grad()
    _, state = layer(fs.Tensor(x[:4]))
    layer(fs.Tensor(x[4:]), state)[0].sum().backward()
    assert not np.allclose(through, layer.weight_ih_l0.grad)


def test_the_layer_sees_the_weights_of_the_moment(data):
    x, *_ = data
    layer = nn.LSTM(4, 5, rng=1)
    view = layer.weight_hh_l0.data[:, 2]
    for change in (
        lambda: layer.weight_ih_l0.data.__imul__(1.5),
        lambda: view.__iadd__(0.25),
        lambda: layer.bias_hh_l0.data.__setitem__(3, 2.0),
        lambda: layer.load_state_dict(nn.LSTM(4, 5, rng=2).state_dict()),
    ):
        layer(x)
        change()
        zeros = np.zeros((3, 5))
        assert np.abs(layer(x)[0] - written_out(layer, x, zeros, zeros)[0]).max() < 2e-6


def test_weights_of_another_shape_or_dtype_are_named(data):
    x, *_ = data
    for value in (np.zeros((20, 6), np.float32), np.zeros((20, 5))):
        layer = nn.LSTM(4, 5)
        layer.weight_hh_l0.data = value
        for call in (lambda layer=layer: layer(x), layer.stream):
            with pytest.raises(ValueError, match=r"weight_hh_l0: expected float32 of shape \(20, 5\), got"):
                call()


def test_copies_do_not_carry_packed_weights(data):
    x, *_ = data
    layer = nn.LSTM(4, 5, rng=1)
    y, _ = layer(x)
    assert layer._packed is not None
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._packed is None
        assert np.array_equal(twin(x)[0], y)
        twin.weight_ih_l0.data[...] = 0
        assert np.array_equal(layer(x)[0], y)


@pytest.mark.parametrize("shape", [(0, 3, 4), (6, 0, 4), (0, 4)])
def test_empty_time_and_batch(shape):
    layer = nn.LSTM(4, 5)
    y, (h, c) = layer(np.zeros(shape, np.float32))
    assert y.shape == (*shape[:-1], 5)
    assert h.shape == c.shape == ((1, shape[1], 5) if len(shape) == 3 else (1, 5))
    assert not h.any()
    assert not c.any()


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
    with pytest.raises(ValueError, match=message):
        nn.LSTM(4, 5)(x)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, 4\)"):
        nn.LSTM(4, 5, batch_first=True)(np.zeros((3, 4, 5)))


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ((np.zeros((1, 3, 4)), np.zeros((1, 3, 5))), ValueError, r"h_0: expected shape \(1, 3, 5\), got \(1, 3, 4\)"),
        ((np.zeros((1, 3, 5)), np.zeros((3, 5))), ValueError, r"c_0: expected shape \(1, 3, 5\), got \(3, 5\)"),
        (np.zeros((1, 3, 5)), TypeError, r"state: expected \(h_0, c_0\)"),
        ((np.zeros((1, 3, 5)),), TypeError, "state: expected"),
        ((np.zeros((1, 3, 5), complex), np.zeros((1, 3, 5))), TypeError, "h_0: expected float32"),
    ],
)
def test_states_of_another_shape(data, state, error, message):
    layer = nn.LSTM(4, 5)
    with pytest.raises(error, match=message):
        layer(data[0], state)
    with pytest.raises(error):
        layer(fs.Tensor(data[0]), state)


@pytest.mark.parametrize("left_out", ["bias_ih_l0", "bias_hh_l0"])
def test_one_bias_alone_counts(left_out):
    lstm = nn.LSTM(3, 5, rng=0)
    setattr(lstm, left_out, None)
    x = np.random.default_rng(1).standard_normal((4, 2, 3), dtype=np.float32)
    arrays = [None if p is None else p.data for p in (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.bias_ih_l0, lstm.bias_hh_l0)]
    expected = functional.lstm(x, *arrays)[0]
    assert np.array_equal(lstm(x)[0], expected)
    assert np.array_equal(lstm(fs.Tensor(x))[0].data, expected)


def test_what_this_version_lacks_says_so():
    with pytest.raises(ValueError, match="num_layers: expected 1"):
        nn.LSTM(4, 5, num_layers=2)
    with pytest.raises(ValueError, match="bidirectional: expected False"):
        nn.LSTM(4, 5, bidirectional=True)


def test_inputs_with_any_strides(data):
    x, *_ = data
    layer = nn.LSTM(4, 5, rng=1)
    want = layer(x.astype(np.float32))[0]
    x = x.astype(np.float32)
    read_only = x.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    for given in (np.asfortranarray(x), x[::-1].copy()[::-1], np.repeat(x, 2, axis=2)[:, :, ::2], read_only, unaligned):
        assert np.array_equal(layer(given)[0], want)


def test_stream_gives_the_bits_of_the_sequence(data):
    x = data[0].astype(np.float32)
    layer = nn.LSTM(4, 5, rng=1)
    y, (h, c) = layer(x)
    stream = layer.stream(batch_size=3)
    steps = [stream.step(x_t) for x_t in x]
    assert np.array_equal(steps, y)
    assert len({a.ctypes.data for a in steps}) == len(steps)
    assert np.array_equal(stream.state[0], h[0])
    assert np.array_equal(stream.state[1], c[0])


def test_stream_state_out_and_reset(data):
    x, h_0, c_0 = (a.astype(np.float32) for a in data)
    layer = nn.LSTM(4, 5, rng=1)
    stream = layer.stream(batch_size=3)
    stream.state = (h_0[0], c_0[0])
    y, _ = layer(x, (h_0, c_0))
    out = np.empty((3, 5), np.float32)
    assert stream.step(x[0], out) is out
    assert stream.step(x[1], out=out) is out
    assert np.array_equal(out, y[1])
    taken = stream.state
    taken[0][...] = 9
    assert np.array_equal(stream.state[0], y[1])
    stream.reset(rows=[1])
    assert not stream.state[0][1].any()
    assert stream.state[0][0].any()
    stream.reset()
    assert np.array_equal(stream.step(x[0]), layer(x)[0][0])


def test_stream_is_a_snapshot_until_refreshed(data):
    x = data[0].astype(np.float32)
    layer = nn.LSTM(4, 5, rng=1)
    stream = layer.stream(batch_size=3)
    before = layer(x[:1])[0][0]
    layer.weight_ih_l0.data[...] *= 2
    after = layer(x[:1])[0][0]
    assert np.array_equal(stream.step(x[0]), before)
    stream.reset()
    stream.refresh()
    assert np.array_equal(stream.step(x[0]), after)
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("bad", [np.zeros((3, 5), np.float32), np.zeros((2, 4), np.float32), np.zeros(4, np.float32)])
def test_stream_refuses_other_shapes_and_keeps_its_state(bad):
    stream = nn.LSTM(4, 5).stream(batch_size=3)
    stream.step(np.ones((3, 4), np.float32))
    before = stream.state
    with pytest.raises(ValueError, match="x: expected"):
        stream.step(bad)
    assert np.array_equal(stream.state, before)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        nn.LSTM(4, 5).stream(batch_size=0)


def test_parity_with_pytorch(data):
    torch = pytest.importorskip("torch")
    x, h_0, c_0 = (a.astype(np.float32) for a in data)
    theirs = torch.nn.LSTM(4, 5)
    layer = nn.LSTM(4, 5)
    layer.load_state_dict(theirs.state_dict())
    xt = torch.from_numpy(x.copy()).requires_grad_()
    ht, ct = (torch.from_numpy(a.copy()).requires_grad_() for a in (h_0, c_0))
    y_t, (h_t, c_t) = theirs(xt, (ht, ct))
    dy, dh, dc = (
        np.random.default_rng(3).standard_normal(s).astype(np.float32) for s in ((6, 3, 5), (1, 3, 5), (1, 3, 5))
    )
    torch.autograd.backward([y_t, h_t, c_t], [torch.from_numpy(a) for a in (dy, dh, dc)])
    mine = [fs.Tensor(a, requires_grad=True) for a in (x, h_0, c_0)]
    y, (h, c) = layer(mine[0], (mine[1], mine[2]))
    ((y * dy).sum() + (h * dh).sum() + (c * dc).sum()).backward()
    pairs = [
        (y.data, y_t),
        (h.data, h_t),
        (c.data, c_t),
        *((m.grad, t.grad) for m, t in zip(mine, (xt, ht, ct), strict=True)),
    ]
    pairs += [(p.grad, theirs.get_parameter(name).grad) for name, p in layer.named_parameters()]
    for ours, other in pairs:
        assert np.allclose(ours, other.detach().numpy(), rtol=1e-4, atol=1e-5)
