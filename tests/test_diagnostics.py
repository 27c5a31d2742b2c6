"""The gradient that arrives at each state, against finite differences that push the state itself."""

import sys

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional, nn
from fastseq.diagnostics import gradient_flow
from tests import finite_differences
from tests.test_nn_recurrent import KINDS
from tests.tolerance import assert_close, assert_same_bits

T, B, I, H = 5, 3, 4, 5


def made(kind, **options):
    layer, own = KINDS[kind]
    return layer(I, H, **{"rng": 1, "dtype": np.float64} | own | options)


def alone(layer, number, suffix=""):
    """One layer and direction of a stack, as a layer of its own that runs forwards."""
    name = f"_l{number}{suffix}"
    state = {key.removesuffix(name) + "_l0": p.data for key, p in layer.named_parameters() if key.endswith(name)}
    kinds = {key: getattr(layer, key) for key in ("proj_size", "peephole", "layer_norm", "reset_after", "nonlinearity") if hasattr(layer, key)}
    one = type(layer)(state["weight_ih_l0"].shape[1], H, dtype=np.float64, zoneout=layer.zoneout if layer.zoneout[1] else layer.zoneout[0], **kinds)
    one.load_state_dict(state)
    return one.eval()


def pushed(layer, x, t, push, lengths=None, reset=None):
    """y of a layer of one direction where `push` is added to h_t of the rows that have a step t, for y and all that follows."""
    if lengths is not None:
        push = push * (np.asarray(lengths) > t)[:, None]

    def part(times, state=None):
        cut = None if lengths is None else np.clip(np.asarray(lengths) - times.start, 0, times.stop - times.start)
        return layer(x[times], state, lengths=cut, reset=None if reset is None else reset[times])

    y, state = part(slice(0, t + 1))
    y = np.concatenate([y[:-1], y[-1:] + push])
    state = (state[0] + push, state[1]) if isinstance(state, tuple) else state + push
    return np.concatenate([y, part(slice(t + 1, len(x)), state)[0]]) if t + 1 < len(x) else y


def norm_by_differences(loss, width):
    push = np.zeros((B, width))
    return np.sqrt(np.sum(finite_differences.gradient(lambda: loss(push), push) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_against_finite_differences(kind, rng):
    layer = made(kind, zoneout=0.3)
    x, lengths, reset = rng.standard_normal((T, B, I)), np.array([5, 2, 4]), rng.random((T, B)) < 0.3
    dy = rng.standard_normal(layer(x)[0].shape)
    got = gradient_flow(layer, x, dy, lengths=lengths, reset=reset)
    one = alone(layer, 0)
    want = [norm_by_differences(lambda p, t=t: np.sum(dy * pushed(one, x, t, p, lengths, reset)), dy.shape[2]) for t in range(T)]
    np.testing.assert_allclose(got, [want], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["rnn", "projection", "gru"])
def test_stacked_in_both_directions(kind, rng):
    """The lower layer's states act through the upper one, and the reverse direction's on earlier steps."""
    layer = made(kind, num_layers=2, bidirectional=True)
    x = rng.standard_normal((T, B, I))
    dy = rng.standard_normal(layer(x)[0].shape)
    ones = [[alone(layer, number, suffix) for suffix in ("", "_reverse")] for number in range(2)]
    width = dy.shape[2] // 2

    def loss(place, t, push):
        y = x
        for number, (ahead, back) in enumerate(ones):
            sides = [pushed(ahead, y, t, push) if place == (number, 0) else ahead(y)[0]]
            y = y[::-1]
            sides.append((pushed(back, y, T - 1 - t, push) if place == (number, 1) else back(y)[0])[::-1])
            y = np.concatenate(sides, axis=2)
        return np.sum(dy * y)

    want = [[norm_by_differences(lambda p, t=t, place=(k, d): loss(place, t, p), width) for t in range(T)] for k in range(2) for d in range(2)]
    np.testing.assert_allclose(gradient_flow(layer, x, dy), want, rtol=1e-7, atol=1e-9)


def test_a_loss_gives_the_dy_that_it_has(rng):
    layer, head = made("lstm"), nn.Linear(H, 2, dtype=np.float64)
    x, wanted = rng.standard_normal((T, B, I)), rng.standard_normal((B, 2))
    y = fs.Tensor(layer(x)[0], requires_grad=True)
    functional.mse_loss(head(y[-1]), wanted).backward()
    assert_same_bits(gradient_flow(layer, x, loss=lambda y: functional.mse_loss(head(y[-1]), wanted)), gradient_flow(layer, x, y.grad))
    assert all(p.grad is None for p in layer.parameters())


def test_batch_first_and_a_single_sequence(rng):
    x, lengths, reset = rng.standard_normal((T, B, I)), np.array([5, 2, 4]), rng.random((T, B)) < 0.3
    layer, first = made("lstm", num_layers=2), made("lstm", num_layers=2, batch_first=True)
    state, dy = tuple(rng.standard_normal((2, B, H)) for _ in range(2)), rng.standard_normal((T, B, H))
    want = gradient_flow(layer, x, dy, state=state, lengths=lengths, reset=reset)
    got = gradient_flow(first, x.swapaxes(0, 1), dy.swapaxes(0, 1), state=state, lengths=lengths, reset=reset.T)
    assert_same_bits(got, want)
    rows = [
        gradient_flow(layer, x[:, b], dy[:, b], state=tuple(s[:, b] for s in state), lengths=lengths[b], reset=reset[:, b])
        for b in range(B)
    ]
    assert_close(np.sqrt(np.sum(np.square(rows), axis=0)), want)


def test_masks_of_training_are_left_out(rng):
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, H))
    plain, noisy = made("gru", num_layers=2), made("gru", num_layers=2, dropout=0.5, recurrent_dropout=0.5)
    assert_same_bits(gradient_flow(noisy, x, dy), gradient_flow(plain, x, dy))


def test_a_gradient_far_below_float32_is_measured(rng):
    layer = nn.RNN(1, 8, rng=0)
    norms = gradient_flow(layer, np.zeros((180, 1, 1), np.float32), loss=lambda y: y[-1].sum())
    assert 0 < norms[0, 0] < 1e-23, "its square is no float32"


def test_bad_input(rng):
    layer, x = made("gru"), rng.standard_normal((T, B, I))
    dy = np.ones((T, B, H))
    with pytest.raises(TypeError, match="layer: expected a recurrent layer, got Linear"):
        gradient_flow(nn.Linear(3, 4), x, dy)
    with pytest.raises(TypeError, match="dy, loss: expected one of the two, got neither"):
        gradient_flow(layer, x)
    with pytest.raises(TypeError, match="dy, loss: expected one of the two, got both"):
        gradient_flow(layer, x, dy, loss=lambda y: y.sum())
    with pytest.raises(ValueError, match=r"dy: expected y's shape \(5, 3, 5\), got \(5, 3, 4\)"):
        gradient_flow(layer, x, x)
    with pytest.raises(ValueError, match=r"x: expected three axes, or two .* got shape \(5, 3, 3\)"):
        gradient_flow(layer, x[:, :, :3], dy)
    with pytest.raises(ValueError, match="lengths: expected"):
        gradient_flow(layer, x, dy, lengths=[1, 2, 9])
    with pytest.raises(ValueError, match="reset: expected shape"):
        gradient_flow(layer, x, dy, reset=np.zeros((B, T), bool))


# ---------------------------------------------------------------- drawing


class Axes:
    """What `gradient_flow` asks of matplotlib's."""

    def __init__(self):
        self.lines, self.calls = {}, []

    def plot(self, values, *, label):
        self.lines[label] = values

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args))


def test_every_layer_and_direction_is_a_line(rng):
    x, dy = rng.standard_normal((T, B, I)), np.zeros((T, B, 2 * H))
    dy[2] = 1
    ax, layer = Axes(), made("gru", num_layers=2, bidirectional=True)
    norms = gradient_flow(layer, x, dy, ax=ax)
    assert list(ax.lines) == ["layer 0", "layer 0, reverse", "layer 1", "layer 1, reverse"]
    assert [name for name, *_ in ax.calls] == ["set_yscale", "set_xlabel", "set_ylabel", "legend"]
    assert np.isnan(ax.lines["layer 1"][3:]).all()
    assert_same_bits(ax.lines["layer 1"][:3], norms[2, :3])


def test_a_label_of_ones_own(rng):
    x, ax = rng.standard_normal((T, B, I)), Axes()
    gradient_flow(made("gru"), x, np.ones((T, B, H)), ax=ax, label="GRU")
    gradient_flow(made("rnn", num_layers=2), x, np.ones((T, B, H)), ax=ax, label="RNN")
    assert list(ax.lines) == ["GRU", "RNN, layer 0", "RNN, layer 1"]


def test_without_matplotlib_the_extra_is_named(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "fastseq-kernels\[plot\]"'):
        gradient_flow(made("gru"), rng.standard_normal((T, B, I)), np.ones((T, B, H)), plot=True)


def test_a_figure_of_its_own(rng):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    gradient_flow(made("gru"), rng.standard_normal((T, B, I)), np.ones((T, B, H)), plot=True)
    axes = pyplot.gcf().axes
    pyplot.close()
    assert len(axes) == 1
    assert axes[0].get_yscale() == "log"


@pytest.mark.parametrize(("loss", "message"), [
    (3, "loss: expected a function of y, got int"),
    (lambda y: 1.0, "loss: expected a function that returns a Tensor of one element, got float"),
    (lambda y: y, "loss: expected a function that returns a Tensor of one element, got one of shape"),
])  # fmt: skip
def test_a_loss_that_is_none_is_refused(loss, message):
    layer = fs.nn.RNN(3, 4, rng=0)
    with pytest.raises(TypeError, match=message):
        gradient_flow(layer, np.zeros((5, 2, 3), np.float32), loss=loss)
