"""MLP, and the perceptron's rule."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq.models import MLP, Perceptron

CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
XOR = np.array([0, 1, 1, 0])


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu"])
def test_it_is_its_equation(activation, rng):
    model = MLP([3, 7, 5, 2], activation, dtype=np.float64, rng=0)
    x = h = rng.standard_normal((4, 6, 3))
    for layer in model.layers:
        h = h @ layer.weight.data.T + layer.bias.data
        h = h if layer is model.layers[-1] else getattr(F, activation)(h)
    np.testing.assert_allclose(model(x), h, rtol=1e-12, atol=1e-14)
    assert fs.gradcheck(model, [fs.Tensor(x[0], requires_grad=True)])


def test_one_layer_is_linear():
    model = MLP((3, 2), rng=0)
    assert len(model.layers) == 1
    assert np.array_equal(model(np.ones(3)), model.layers[0](np.ones(3)))


def test_it_learns_xor():
    model = MLP([2, 8, 2], "tanh", rng=0)
    adam = fs.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(200):
        loss = F.cross_entropy(model(fs.Tensor(CORNERS)), XOR)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert model(CORNERS).argmax(-1).tolist() == XOR.tolist()
    assert loss.item() < 0.05


def test_dropout_is_for_training_only(rng):
    model = MLP([3, 50, 2], dropout=0.5, rng=0)
    x = rng.standard_normal((4, 3))
    assert not np.array_equal(model(x), model(x))
    model.eval()
    assert np.array_equal(model(x), model(x))


def test_it_saves_and_loads(tmp_path, rng):
    model = MLP([3, 4, 2], "silu", dropout=0.1, rng=0).eval()
    model.save(tmp_path / "mlp")
    x = rng.standard_normal((5, 3))
    assert np.array_equal(fs.load(tmp_path / "mlp").eval()(x), model(x))


@pytest.mark.parametrize("sizes", [[3], "34", 5])
def test_sizes_are_at_least_two(sizes):
    with pytest.raises(ValueError, match="sizes: expected those of inputs, hidden layers and outputs"):
        MLP(sizes)


def test_other_refusals():
    with pytest.raises(ValueError, match="sizes: expected at least 1, got 0"):
        MLP([3, 0, 2])
    with pytest.raises(ValueError, match="activation: expected"):
        MLP([3, 2], "step")


# ---------------------------------------------------------------- the perceptron


def test_the_rule_by_hand():
    neuron = Perceptron(2)
    assert neuron.update(np.array([[1.0, 2.0]]), [0]) == 0  # 0 > 0 is false: a negative, rightly
    assert neuron.update(np.array([[1.0, 2.0]]), [1]) == 1
    assert (neuron.weight.data.tolist(), float(neuron.bias.data)) == ([1, 2], 1)
    assert neuron.update(np.array([[3.0, -1.0]]), [0]) == 1
    assert (neuron.weight.data.tolist(), float(neuron.bias.data)) == ([-2, 3], 0)


def test_it_stops_making_mistakes_where_a_line_parts_the_classes(rng):
    x = rng.standard_normal((200, 5))
    y = x @ [1, -2, 3, 0.5, 1] + 0.3 > 0
    neuron = Perceptron(5)
    mistakes = [neuron.update(x, y) for _ in range(1000)]
    assert mistakes[0] > 0
    assert mistakes[-1] == 0
    assert np.array_equal(neuron(x), y)
    assert neuron(fs.Tensor(x)).dtype == np.int64


def test_it_never_learns_xor():
    neuron = Perceptron(2)
    assert min(neuron.update(CORNERS, XOR) for _ in range(500)) > 0
    assert not any(p.requires_grad for p in neuron.parameters())


def test_it_saves_and_loads_too(tmp_path):
    neuron = Perceptron(2)
    neuron.update(CORNERS, [0, 1, 1, 1])
    neuron.save(tmp_path / "neuron")
    assert fs.load(tmp_path / "neuron").weight.data.tolist() == neuron.weight.data.tolist()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((2, 3)), [0, 1], r"x: expected shape \(..., 2\), got \(2, 3\)"),
        (np.ones(2), 1, r"x: expected shape \(N, 2\), got \(2,\)"),
        (np.ones((2, 2)), [0], r"y: expected shape \(2,\), got \(1,\)"),
        (np.ones((2, 2)), [1, -1], "y: expected classes 0 and 1, got -1"),
    ],
)
def test_the_rule_refuses(x, y, message):
    neuron = Perceptron(2)
    with pytest.raises(ValueError, match=message):
        neuron.update(x, y)
    assert not neuron.weight.data.any()
