"""Highway, Residual, and how weights can start."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq import nn
from fastseq.nn import init


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_a_highway_is_its_equation(activation, rng):
    layer = nn.Highway(5, activation, dtype=np.float64, rng=0)
    h = rng.standard_normal((3, 4, 5))
    g = F.sigmoid(layer.gate(h))
    want = g * getattr(F, activation)(layer.transform(h)) + (1 - g) * h
    np.testing.assert_allclose(layer(h), want, rtol=1e-13)
    assert fs.gradcheck(layer, [fs.Tensor(h, requires_grad=True)])


def test_a_new_highway_carries_its_input_on():
    layer = nn.Highway(4, gate_bias=-30.0, rng=0)
    h = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(layer(h), h, rtol=1e-6)
    assert (nn.Highway(4).gate.bias.data == -2).all()


def test_a_highway_saves_loads_and_refuses(tmp_path):
    layer = nn.Highway(4, "tanh", rng=0)
    layer.save(tmp_path / "highway")
    x = np.ones((2, 4))
    assert np.array_equal(fs.load(tmp_path / "highway")(x), layer(x))
    with pytest.raises(ValueError, match="activation: expected"):
        nn.Highway(4, "step")
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        nn.Highway(0)


def test_a_residual_block_adds_what_its_modules_make_of_x(tmp_path, rng):
    block = nn.Residual(nn.LayerNorm(3), nn.Linear(3, 3, rng=0))
    x = rng.standard_normal((4, 3))
    narrow = x.astype(np.float32)
    assert np.array_equal(block(x), narrow + block[1](block[0](narrow)))
    assert block(x).dtype == np.float32
    assert list(block.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    wide = nn.Residual(nn.Linear(3, 3, dtype=np.float64, rng=0), nn.Tanh())
    assert fs.gradcheck(wide, [fs.Tensor(x, requires_grad=True)])
    block.save(tmp_path / "block")
    assert np.array_equal(fs.load(tmp_path / "block")(x), block(x))
    with pytest.raises(ValueError, match=r"x: expected the shape that the modules return, \(4, 2\), got \(4, 3\)"):
        nn.Residual(nn.Linear(3, 2))(x)


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("shape", [(300, 200), (60, 40, 5)])
def test_glorot_and_he_have_their_variances(distribution, shape):
    taps = int(np.prod(shape[2:]))
    for weight, variance in (
        (init.glorot(shape, distribution=distribution, rng=0), 2 / ((shape[0] + shape[1]) * taps)),
        (init.glorot(shape, gain=3.0, distribution=distribution, rng=0), 9 * 2 / ((shape[0] + shape[1]) * taps)),
        (init.he(shape, distribution=distribution, rng=0), 2 / (shape[1] * taps)),
    ):
        assert weight.shape == shape
        assert weight.dtype == np.float32
        assert abs(weight.var() / variance - 1) < 0.05
        assert abs(weight.mean()) < 0.05 * variance**0.5
        if distribution == "uniform":
            assert abs(weight).max() <= (3 * variance) ** 0.5


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (4, 3, 5)])
def test_orthogonal_matrices(shape):
    weight = init.orthogonal(shape, gain=2.0, dtype=np.float64, rng=0).reshape(shape[0], -1)
    square = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
    np.testing.assert_allclose(square, 4 * np.eye(min(weight.shape)), atol=1e-12)
    assert not np.array_equal(weight, init.orthogonal(shape, gain=2.0, dtype=np.float64, rng=1).reshape(shape[0], -1))


def test_starts_are_seeded_and_refuse():
    fs.manual_seed(3)
    first = init.he((4, 4))
    fs.manual_seed(3)
    assert np.array_equal(init.he((4, 4)), first)
    with pytest.raises(ValueError, match=r"shape: expected at least two axes, \(outputs, inputs, \*kernel\), got \(4,\)"):
        init.orthogonal((4,))
    with pytest.raises(ValueError, match="distribution: expected 'uniform' or 'normal', got 'cauchy'"):
        init.glorot((4, 4), distribution="cauchy")
