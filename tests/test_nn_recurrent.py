"""The recurrent layers: names, shapes, states, options and current weights. The arithmetic is tested with the operations."""

import copy
import inspect
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional, nn
from tests.tolerance import assert_same_bits

#: One layer of each cell and of each option that adds parameters, by a name for the test.
KINDS = {
    "rnn": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "lstm": (nn.LSTM, {}),
    "projection": (nn.LSTM, {"proj_size": 2}),
    "all of lstm": (nn.LSTM, {"proj_size": 2, "peephole": True, "layer_norm": True}),
    "gru": (nn.GRU, {}),
    "gru before": (nn.GRU, {"reset_after": False}),
    "gru norm": (nn.GRU, {"layer_norm": True}),
    "mut1": (nn.MUT1, {}),
    "mut2": (nn.MUT2, {}),
    "mut3": (nn.MUT3, {}),
}
STRUCTURES = [{}, {"num_layers": 2}, {"bidirectional": True}, {"num_layers": 3, "bidirectional": True}, {"bias": False}]
T, B, I, H = 6, 3, 4, 5

every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind, **options):
    layer, own = KINDS[kind]
    return layer(I, H, **{"rng": 1} | own | options)


def tupled(state):
    return state if isinstance(state, tuple) else (state,)


def plain(value):
    return value.data if isinstance(value, fs.Tensor) else value


def states_for(layer, rng, batch=(B,)):
    """A random state in the form that the layer takes."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = [getattr(layer, "proj_size", 0) or H] + [H] * isinstance(layer, nn.LSTM)
    arrays = tuple(rng.standard_normal((rows, *batch, n)).astype(layer.dtype) for n in widths)
    return arrays if len(arrays) == 2 else arrays[0]


@pytest.fixture
def x(rng):
    return rng.standard_normal((T, B, I)).astype(np.float32)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("kind", ["rnn", "lstm", "projection", "gru"])
def test_names_shapes_and_order_are_pytorchs(kind, structure):
    torch = pytest.importorskip("torch")
    layer, options = KINDS[kind]
    theirs = getattr(torch.nn, layer.__name__)(I, H, **options, **structure)
    ours = made(kind, **structure)
    assert [(n, p.shape) for n, p in ours.named_parameters()] == [(n, tuple(p.shape)) for n, p in theirs.named_parameters()]
    ours.load_state_dict(theirs.state_dict())
    assert all(np.array_equal(ours.state_dict()[n], p.detach().numpy()) for n, p in theirs.named_parameters())


def test_names_that_pytorch_lacks():
    shapes = {n: a.shape for n, a in made("all of lstm", bidirectional=True).state_dict().items()}
    assert shapes["weight_hr_l0_reverse"] == (2, 5)
    assert shapes["weight_ch_l0_reverse"] == (3, 5)
    assert [shapes[f"ln_{n}_l0"] for n in ("ih_weight", "ih_bias", "hh_weight", "hh_bias", "c_weight", "c_bias")] == [(20,)] * 4 + [(5,)] * 2
    assert {n: a.shape for n, a in made("gru norm", bias=False).state_dict().items() if n.startswith("ln")} == {
        "ln_ih_weight_l0": (15,), "ln_ih_bias_l0": (15,), "ln_hh_weight_l0": (15,), "ln_hh_bias_l0": (15,),
    }  # fmt: skip
    blocks = {"mut1": (10, 10), "mut2": (10, 15), "mut3": (15, 15)}
    for kind, (of_input, of_state) in blocks.items():
        want = {"weight_ih_l0": (of_input, 4), "weight_hh_l0": (of_state, 5), "bias_l0": (15,)}
        want |= {} if kind == "mut3" else {"weight_proj_l0": (5, 4)}
        want |= {"weight_ih_l1": (of_input, 5), "weight_hh_l1": (of_state, 5), "bias_l1": (15,)}  # I = H: no projection
        assert {n: a.shape for n, a in made(kind, num_layers=2).state_dict().items()} == want


def test_start():
    layer = nn.LSTM(4, 5, num_layers=2, bidirectional=True, rng=0)
    for end in ("l0", "l0_reverse", "l1", "l1_reverse"):
        ih, hh = getattr(layer, f"bias_ih_{end}").data, getattr(layer, f"bias_hh_{end}").data
        assert ih[5:10].tolist() == [1] * 5
        assert hh[5:10].tolist() == [0] * 5
        others = [getattr(layer, f"weight_ih_{end}").data, getattr(layer, f"weight_hh_{end}").data, ih[:5], ih[10:], hh[:5]]
        assert all(0 < abs(a).max() <= 1 / np.sqrt(5) for a in others)
    drawn = nn.LSTM(4, 5, forget_bias=None, rng=0)
    assert abs(drawn.bias_ih_l0.data[5:10]).max() <= 1 / np.sqrt(5)
    assert drawn.bias_hh_l0.data[5:10].all()
    assert nn.LSTM(4, 5, forget_bias=2.5).bias_ih_l0.data[5:10].tolist() == [2.5] * 5
    norms = made("all of lstm")
    assert norms.ln_c_weight_l0.data.tolist() == [1] * 5
    assert norms.ln_hh_bias_l0.data.tolist() == [0] * 20
    # Options that draw masks do not move the weights of a seed.
    assert_same_bits(nn.GRU(4, 5, rng=3, zoneout=0.5).weight_hh_l0.data, nn.GRU(4, 5, rng=3).weight_hh_l0.data)


# ---------------------------------------------------------------- values: the operations, put together


def composed(layer, kind, x, state):
    """The layer's y and final states from the operation of one direction, the sequence turned around for the reverse one."""
    D, ends = 1 + layer.bidirectional, []
    y = x
    for k in range(layer.num_layers):
        outputs = []
        for d in range(D):
            own = {n: getattr(layer, f"{a}_l{k}" + "_reverse" * d, None) for n, a in NAMES.items()}
            own = {n: p.data for n, p in own.items() if p is not None}
            start = {f"{n}_0": a[k * D + d] for n, a in zip("hc", tupled(state), strict=False)}
            out, *end = operation(kind)(y[::-1] if d else y, **own, **start)
            outputs.append(out[::-1] if d else out)
            ends.append(end)
        y = np.concatenate(outputs, axis=2)
    return y, *(np.stack(parts) for parts in zip(*ends, strict=True))


NAMES = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr", "w_ch": "weight_ch",
         "bias": "bias", "w_proj": "weight_proj"}  # fmt: skip
NAMES |= {f"ln_{n}": f"ln_{n}" for n in ("ih_weight", "ih_bias", "hh_weight", "hh_bias", "c_weight", "c_bias")}


def operation(kind):
    if kind.startswith("mut"):
        return lambda *a, **k: functional.mut(*a, **k, variant=int(kind[3]))
    name = KINDS[kind][0].__name__.lower()
    options = {n: v for n, v in KINDS[kind][1].items() if n in ("nonlinearity", "reset_after")}
    return lambda *a, **k: getattr(functional, name)(*a, **k, **options)


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@every_kind
def test_layers_and_directions_are_put_together(kind, structure, x, rng):
    layer = made(kind, **structure)
    state = states_for(layer, rng)
    want_y, *want_state = composed(layer, kind, x, state)
    y, end = layer(x, state)
    assert_same_bits(y, want_y)
    for got, want in zip(tupled(end), want_state, strict=True):
        assert_same_bits(got, want)
    recorded, end = layer(fs.Tensor(x), state)
    assert recorded.requires_grad
    for got, want in zip((recorded, *tupled(end)), (want_y, *want_state), strict=True):
        assert_same_bits(got.data, want)
    zeros = tuple(np.zeros_like(a) for a in tupled(state))
    assert_same_bits(layer(x)[0], layer(x, zeros if len(zeros) == 2 else zeros[0])[0])


@pytest.mark.parametrize("wrap", [np.asarray, fs.Tensor])
@every_kind
def test_all_states(kind, wrap, x, rng):
    layer = made(kind, num_layers=2, bidirectional=True)
    y, end, states = layer(wrap(x), lengths=[6, 0, 4], return_states=True)
    assert len(tupled(states)) == len(tupled(end))
    for k, (of_steps, last) in enumerate(zip(tupled(states), tupled(end), strict=True)):
        assert type(of_steps) is type(last)
        of_steps, last = plain(of_steps), plain(last)
        width = H if k else y.shape[2] // 2
        assert of_steps.shape == (4, T, B, width)
        assert last.shape == (4, B, width)
        for row in range(4):
            assert_same_bits(of_steps[row, 0 if row % 2 else 5, 0], last[row, 0])
            assert_same_bits(of_steps[row, 0 if row % 2 else 3, 2], last[row, 2])
        assert not of_steps[:, 4:, 2].any()
        assert not of_steps[:, :, 1].any()
    hidden = plain(tupled(states)[0])
    assert_same_bits(np.concatenate([hidden[2], hidden[3]], axis=2), plain(y))


@pytest.mark.parametrize("wrap", [np.asarray, fs.Tensor])
@pytest.mark.parametrize("kind", ["rnn", "projection", "gru", "mut2"])
def test_batch_first_and_single_sequences_give_the_same(kind, wrap, x, rng):
    options = {"num_layers": 2, "bidirectional": True}
    layer, turned = made(kind, **options), made(kind, **options, batch_first=True)
    state, lengths, reset = states_for(layer, rng), np.array([4, 6, 5], np.uint8), rng.random((T, B)) < 0.3
    parts = layer(x, state, lengths=lengths, reset=reset, return_states=True)
    y, end, states = parts[0], tupled(parts[1]), tupled(parts[2])
    y2, end2, states2 = turned(wrap(x.swapaxes(0, 1)), state, lengths=list(lengths), reset=reset.T, return_states=True)
    for got, want in zip((y2, *tupled(end2), *tupled(states2)), (y.swapaxes(0, 1), *end, *states), strict=True):
        assert_same_bits(plain(got), want)
    one_state = tuple(a[:, 1] for a in tupled(state))
    one_state = one_state if len(one_state) == 2 else one_state[0]
    for one in (layer, turned):
        y1, end1, states1 = one(wrap(x[:, 1]), one_state, lengths=6, reset=reset[:, 1], return_states=True)
        want = (y[:, 1], *(a[:, 1] for a in end), *(a[:, :, 1] for a in states))
        for got, wanted in zip((y1, *tupled(end1), *tupled(states1)), want, strict=True):
            assert_same_bits(plain(got), wanted)


@pytest.mark.parametrize("shape", [(0, 3, I), (6, 0, I), (0, I)])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "mut1"])
def test_empty_time_and_batch(kind, shape):
    layer = made(kind, num_layers=2)
    for wrap in (np.asarray, fs.Tensor):
        y, end, states = layer(wrap(np.zeros(shape, np.float32)), return_states=True)
        assert y.shape == (*shape[:-1], H)
        for last, of_steps in zip(tupled(end), tupled(states), strict=True):
            assert last.shape == (2, *shape[1:-1], H)
            assert of_steps.shape == (2, *shape[:-1], H)
            assert not plain(last).any()


def test_inputs_with_any_strides_and_dtypes(x):
    layer = nn.LSTM(I, H, rng=1)
    want = layer(x)[0]
    read_only = x.copy()
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    strided = (np.asfortranarray(x), x[::-1].copy()[::-1], np.repeat(x, 2, axis=2)[:, :, ::2], read_only, unaligned)
    for given in (*strided, x.astype(np.float64)):
        assert_same_bits(layer(given)[0], want)
    assert layer(np.ones((2, 1, I), bool))[0].dtype == np.float32


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str)
@every_kind
def test_gradients_of_everything(kind, options, rng):
    layer = made(kind, dtype=np.float64, **options)
    x = rng.standard_normal((3, 2, I))
    sizes = (3, 2) if not layer.batch_first else (2, 3)
    x = x.reshape(*sizes, I)
    batch = sizes[layer.batch_first is False]
    steps = sizes[layer.batch_first is True]
    state = [nn.Parameter(a) for a in tupled(states_for(layer, rng, (batch,)))]
    inputs = [fs.Tensor(x, requires_grad=True), *state, *layer.parameters()]
    lengths = np.array([steps, steps - 1])[:batch] if batch == 2 else None

    def outputs(x, *_):
        y, end, states = layer(x, tuple(state) if len(state) == 2 else state[0], lengths=lengths, return_states=True)
        return (y, *tupled(end), *tupled(states))

    assert fs.gradcheck(outputs, inputs)


def test_a_learned_state_gets_its_gradient(x):
    for kind in ("rnn", "lstm", "gru"):
        layer = made(kind, num_layers=2)
        learned = [nn.Parameter(np.full((2, 1, H), 0.1, np.float32)) for _ in range(1 + (kind == "lstm"))]
        state = tuple(p + np.zeros((2, B, H), np.float32) for p in learned)
        y, _ = layer(x, state if kind == "lstm" else state[0])
        y.sum().backward()
        assert all(p.grad.shape == (2, 1, H) and p.grad.all() for p in learned)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_state_goes_on_and_can_be_cut_off(kind, x):
    layer = made(kind)
    whole, _ = layer(x)
    first, state = layer(fs.Tensor(x[:4]))
    cut = tuple(s.detach() for s in state) if kind == "lstm" else state.detach()
    second, _ = layer(fs.Tensor(x[4:]), cut)
    assert_same_bits(np.concatenate([first.data, second.data]), whole)
    second.sum().backward()
    through = layer.weight_ih_l0.grad
    layer.zero_grad()
    _, state = layer(fs.Tensor(x[:4]))
    layer(fs.Tensor(x[4:]), state)[0].sum().backward()
    assert not np.allclose(through, layer.weight_ih_l0.grad)


def test_checkpoints_give_the_same_bits(x):
    layer = nn.LSTM(I, H, num_layers=2, bidirectional=True, zoneout=(0.2, 0.3), dropout=0.3, rng=1)
    grads = []
    for every in (None, 1, 4, 100):
        layer._calls = 0
        layer.zero_grad()
        y, (h, c) = layer(fs.Tensor(x), checkpoint_every=every)
        (y.sum() + (h * c).sum()).backward()
        grads.append([p.grad for p in layer.parameters()])
    for others in grads[1:]:
        for got, want in zip(others, grads[0], strict=True):
            assert_same_bits(got, want)


# ---------------------------------------------------------------- noise


def test_dropout_between_layers_only_while_training(x):
    layer = nn.GRU(I, H, num_layers=2, dropout=0.5, rng=1)
    first, second = layer(x)[0], layer(x)[0]
    assert not np.array_equal(first, second)
    assert_same_bits(nn.GRU(I, H, num_layers=2, dropout=0.5, rng=1)(x)[0], first)
    without = nn.GRU(I, H, num_layers=2, rng=1)(x)
    for got, want in zip(layer.eval()(x), without, strict=True):
        assert_same_bits(got, want)
    layer.train()
    _, ends, hidden = layer(x, return_states=True)
    assert_same_bits(hidden[0], nn.GRU(I, H, num_layers=2, rng=1)(x, return_states=True)[2][0])  # before dropout
    assert not np.array_equal(ends[1], without[1][1])
    assert_same_bits(nn.GRU(I, H, dropout=0.5, rng=1)(x)[0], nn.GRU(I, H, rng=1)(x)[0])  # one layer: nothing between


@pytest.mark.parametrize("options", [{"recurrent_dropout": 0.5}, {"zoneout": 0.5}], ids=str)
@every_kind
def test_masks_are_drawn_anew_and_only_while_training(kind, options, x):
    layer = made(kind, bidirectional=True, **options)
    first, second = layer(x)[0], layer(x)[0]
    assert not np.array_equal(first, second)
    assert_same_bits(made(kind, bidirectional=True, **options)(x)[0], first)
    recorded = made(kind, bidirectional=True, **options)(fs.Tensor(x))[0]
    assert_same_bits(recorded.data, first)
    layer.eval()
    assert_same_bits(layer(x)[0], layer(x)[0])
    if "recurrent_dropout" in options:
        assert_same_bits(layer(x)[0], made(kind, bidirectional=True)(x)[0])


def test_the_expectation_of_zoneout_and_its_keys(x, monkeypatch):
    layer = nn.LSTM(I, H, num_layers=2, zoneout=(0.25, 0.5), rng=1).eval()
    weights = [[p.data for n, p in layer.named_parameters() if n.endswith(end)] for end in ("l0", "l1")]
    y = x
    for arrays in weights:
        y, *_ = functional.lstm(y, *arrays, noise=functional.Noise(zoneout_h=0.25, zoneout_c=0.5))
    assert_same_bits(layer(x)[0], y)
    layer.train()
    noises = [layer._noise(k, layer._next_call()) for k in (0, 1)]
    assert [(n.layer, n.call, n.training, n.zoneout_h, n.zoneout_c) for n in noises] == [(0, 1, True, 0.25, 0.5), (2, 2, True, 0.25, 0.5)]
    assert noises[0].seed == noises[1].seed > 0
    assert nn.LSTM(I, H, zoneout=0.25).zoneout == (0.25, 0.0)


# ---------------------------------------------------------------- the weights of the moment, copies, files


@every_kind
def test_the_layer_sees_the_weights_of_the_moment(kind, x):
    layer, other = made(kind, num_layers=2), made(kind, num_layers=2, rng=2)
    zeros = tuple(np.zeros((2, B, n), np.float32) for n in ([getattr(layer, "proj_size", 0) or H, H][: 1 + isinstance(layer, nn.LSTM)]))
    view = layer.weight_hh_l1.data[:, 1]
    for change in (
        lambda: layer.weight_ih_l0.data.__imul__(1.5),
        lambda: view.__iadd__(0.25),
        lambda: layer.load_state_dict(other.state_dict()),
    ):
        layer(x)
        change()
        assert_same_bits(layer(x)[0], composed(layer, kind, x, zeros)[0])


def test_weights_of_another_shape_or_dtype_are_named(x):
    for value in (np.zeros((20, 6), np.float32), np.zeros((20, 5))):
        layer = nn.LSTM(4, 5)
        layer.weight_hh_l0.data = value
        for call in (lambda layer=layer: layer(x), layer.stream):
            with pytest.raises(ValueError, match=r"weight_hh_l0: expected float32 of shape \(20, 5\), got"):
                call()
    layer = nn.GRU(4, 5)
    layer.weight_ih_l0 = None
    with pytest.raises(ValueError, match=r"weight_ih_l0: expected float32 of shape \(15, 4\), got None"):
        layer(x)


@pytest.mark.parametrize("left_out", ["bias_ih_l0", "bias_hh_l0"])
def test_one_bias_alone_counts(left_out, x):
    for kind in ("rnn", "lstm", "gru"):
        layer = made(kind)
        setattr(layer, left_out, None)
        arrays = [None if p is None else p.data for p in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)]
        expected = operation(kind)(x, *arrays)[0]
        assert_same_bits(layer(x)[0], expected)
        assert_same_bits(layer(fs.Tensor(x))[0].data, expected)


@every_kind
def test_copies_pickles_and_files(kind, x, tmp_path):
    layer = made(kind, num_layers=2, bidirectional=True, zoneout=0.25).eval()
    y = layer(x)[0]
    assert layer._packed is not None
    layer.save(tmp_path / "layer")
    saved = fs.load(tmp_path / "layer").eval()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved):
        assert twin._packed is None
        assert type(twin) is type(layer)
        assert repr(twin) == repr(layer)
        assert_same_bits(twin(x)[0], y)
        twin.weight_ih_l0.data[...] = 0
        assert_same_bits(layer(x)[0], y)


def test_repr_and_signatures():
    assert repr(nn.GRU(4, 5)) == "GRU(4, 5)"
    options = {"num_layers": 2, "dropout": 0.5, "zoneout": (0.1, 0.2), "peephole": True}
    assert repr(nn.LSTM(4, 5, bias=False, **options)) == "LSTM(4, 5, num_layers=2, bias=False, dropout=0.5, zoneout=(0.1, 0.2), peephole=True)"
    common = {"num_layers", "bias", "batch_first", "dropout", "bidirectional", "recurrent_dropout", "zoneout", "dtype", "rng"}
    for layer in (nn.RNN, nn.LSTM, nn.GRU, nn.MUT1, nn.MUT2, nn.MUT3):
        assert common <= set(inspect.signature(layer).parameters)
