"""Forecaster: a window in, the next values out."""

import numpy as np
import pytest

import fastseq as fs
from fastseq.models import Forecaster
from tests.finite_differences import assert_gradient


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((7, 4, 3)).astype(np.float32)


def test_it_is_the_last_state_and_a_linear_layer(x):
    model = Forecaster(3, 8, 5, rng=0)
    forecast = model(x)
    assert forecast.shape == (4, 5)
    assert np.array_equal(forecast, model.head(model.recurrent(x)[0][-1]))


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "mut1", "mut2", "mut3"])
def test_every_cell_saves_and_loads(cell, x, tmp_path):
    model = Forecaster(3, 8, 2, cell=cell, num_layers=2, dropout=0.3, anchor=1, rng=0)
    model.save(tmp_path / "model")
    again = fs.load(tmp_path / "model")
    assert again.configuration() == model.configuration()
    assert np.array_equal(again(x), model.eval()(x))


def test_windows_of_different_lengths_end_at_their_own_end(x):
    model = Forecaster(3, 8, 5, anchor=2, rng=0)
    lengths = np.array([7, 1, 3, 6])
    forecast = model(x, lengths)
    for row, length in enumerate(lengths):
        assert np.array_equal(forecast[row], model(x[:length, row : row + 1])[0])


def test_an_anchored_forecast_starts_from_the_last_value(x):
    plain, anchored = Forecaster(3, 8, 5, rng=0), Forecaster(3, 8, 5, anchor=1, rng=0)
    assert np.array_equal(anchored(x), plain(x) + x[-1, :, 1:2])


def test_the_loss_is_the_mean_absolute_error_and_reaches_every_parameter(x):
    model = Forecaster(3, 8, 5, rng=0)
    target = np.random.default_rng(1).standard_normal((5, 4))  # float64, as windows of anyone's arrays are
    loss = model.loss(x, target)
    assert np.isclose(loss.item(), np.abs(model(x) - target.T).mean(), rtol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("anchor", [None, 0])
def test_gradient_of_the_windows(anchor):
    rng = np.random.default_rng(2)
    model = Forecaster(2, 3, 2, cell="gru", anchor=anchor, dtype=np.float64, rng=0)
    windows, lengths, weights = rng.standard_normal((4, 2, 2)), np.array([4, 2]), rng.standard_normal((2, 2))
    recorded = fs.Tensor(windows, requires_grad=True)
    (model(recorded, lengths) * weights).sum().backward()
    assert_gradient(recorded.grad, lambda: float((model(windows, lengths) * weights).sum()), windows, "dx", rng)


def test_it_learns_a_sine():
    t = np.arange(400)
    series = np.sin(2 * np.pi * t / 20).astype(np.float32)
    x = np.stack([series[s : s + 20] for s in range(300)], axis=1)[..., None]
    target = np.stack([series[s + 20 : s + 25] for s in range(300)], axis=1)
    model = Forecaster(1, 16, 5, rng=0)
    adam, losses = fs.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(60):
        loss = model.loss(x, target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_it_refuses(x):
    model = Forecaster(3, 8, 5, rng=0)
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 3\) with T > 0, got \(0, 4, 3\)"):
        model(x[:0])
    with pytest.raises(ValueError, match=r"x: expected shape \(T, B, 3\)"):
        model(x[:, 0])
    with pytest.raises(ValueError, match="lengths: expected at least one step in every window, got 0"):
        model(x, [7, 0, 1, 2])
    with pytest.raises(ValueError, match=r"target: expected shape \(5, 4\), got \(4, 5\)"):
        model.loss(x, np.zeros((4, 5)))
    with pytest.raises(ValueError, match="anchor: expected an input from 0 to 2, got 3"):
        Forecaster(3, 8, 5, anchor=3)
    with pytest.raises(ValueError, match="cell: expected one of lstm"):
        Forecaster(3, 8, 5, cell="tree")
    with pytest.raises(ValueError, match="horizon: expected at least 1, got 0"):
        Forecaster(3, 8, 0)
