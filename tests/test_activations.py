"""Functions of each element beyond those of test_functional.py: kinks, tails, parameters, compositions, modules, PyTorch."""

import math

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq import nn
from fastseq.nn.activations import ACTIVATIONS, activation_named
from tests.tolerance import assert_close

#: Every one of them, with arguments that are not the defaults.
CALLS = {
    "leaky_relu": ({}, {"negative_slope": 0.2}, {"negative_slope": -1.0}),
    "elu": ({}, {"alpha": 0.4}),
    "selu": ({},),
    "silu": ({},),
    "softplus": ({}, {"beta": 3.0}),
    "logsigmoid": ({},),
    "mish": ({},),
    "softsign": ({},),
    "hardtanh": ({}, {"min_val": -0.5, "max_val": 2.0}),
    "relu6": ({},),
}
MODULES = {
    "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU, "silu": nn.SiLU, "softplus": nn.Softplus, "logsigmoid": nn.LogSigmoid,
    "mish": nn.Mish, "softsign": nn.Softsign, "hardtanh": nn.Hardtanh, "relu6": nn.ReLU6,
}  # fmt: skip
EVERY = [(name, options) for name, calls in CALLS.items() for options in calls]


def value_and_slope(name, x, **options):
    t = fs.Tensor(x, requires_grad=True)
    y = getattr(F, name)(t, **options)
    y.backward(np.ones_like(x))
    return y.data, t.grad


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_gradients(name, options, rng):
    x = rng.uniform(-4, 8, (3, 5))
    assert fs.gradcheck(lambda t: getattr(F, name)(t, **options), [fs.Tensor(x, requires_grad=True)])


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_pytorch_has_the_same(name, options, dtype, isa, rng):
    torch = pytest.importorskip("torch")
    x = np.concatenate([rng.uniform(-10, 10, 40), [-90.0, -1.0, -0.5, 0.0, 1.0, 2.0, 6.0, 90.0]]).astype(dtype)
    theirs = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    want = getattr(torch.nn.functional, name)(theirs, **options)
    want.sum().backward()
    y, slope = value_and_slope(name, x, **options)
    if name == "softplus" and dtype == np.float64:  # from 20 on, theirs is x itself: off by 2e-9
        np.testing.assert_allclose(y, want.detach().numpy(), rtol=3e-9)
        np.testing.assert_allclose(slope, theirs.grad.numpy(), rtol=3e-9)
        return
    assert_close(y, want.detach().numpy(), dtype=dtype, terms=8)
    assert_close(slope, theirs.grad.numpy(), dtype=dtype, terms=8)


@pytest.mark.parametrize(
    ("name", "at", "slope"),
    [("relu", 0.0, 0.0), ("leaky_relu", 0.0, 0.01), ("elu", 0.0, 1.0), ("hardtanh", -1.0, 0.0), ("hardtanh", 1.0, 0.0), ("relu6", 6.0, 0.0)],
)
def test_slopes_at_kinks(name, at, slope, dtype, isa):
    assert value_and_slope(name, np.array([at], dtype))[1] == dtype(slope)


def test_tails_keep_their_digits(dtype, isa):
    """Where exp(x) is tiny, what is left of each function is exp(x) itself, and of its derivative too."""
    x = np.array([-40.0, -60.0, -80.0], dtype)
    tail = np.exp(x.astype(np.float64))
    eps = 16 * np.finfo(dtype).eps
    for name, y, slope in (
        ("softplus", tail, tail),
        ("silu", x * tail, tail * (1 + x)),
        ("elu", -1 + tail, tail),
        ("logsigmoid", x, np.ones(3)),
    ):
        found, found_slope = value_and_slope(name, x)
        np.testing.assert_allclose(found, y, rtol=eps, err_msg=name)
        np.testing.assert_allclose(found_slope, slope, rtol=eps, err_msg=f"slope of {name}")
    found, slope = value_and_slope("softplus", -x)
    np.testing.assert_array_equal(found, -x)
    np.testing.assert_array_equal(slope, np.ones(3))


@pytest.mark.parametrize("name", ["leaky_relu", "elu", "silu", "softplus", "relu6", "hardtanh"])
def test_infinities_and_nan(name, dtype, isa):
    y, slope = value_and_slope(name, np.array([np.inf, -np.inf, np.nan], dtype))
    want = {
        "leaky_relu": (np.inf, -np.inf), "elu": (np.inf, -1), "silu": (np.inf, 0), "softplus": (np.inf, 0), "relu6": (6, 0), "hardtanh": (1, -1)
    }[name]  # fmt: skip
    assert tuple(y[:2]) == want
    assert np.isnan(y[2])
    assert slope[0] == (0 if name in ("relu6", "hardtanh") else 1)
    assert slope[1] == (dtype(0.01) if name == "leaky_relu" else 0)


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_tensors_have_them_as_methods_and_networks_as_modules(name, options, rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    want = getattr(F, name)(x, **options)
    assert np.array_equal(getattr(fs.Tensor(x), name)(**options).data, want)
    module = MODULES[name](**options)
    assert np.array_equal(module(x), want)
    assert module(np.arange(3)).dtype == np.float32
    assert all(str(value) in repr(module) for value in options.values())


def test_a_name_stands_for_a_function():
    for name in ACTIVATIONS:
        assert activation_named(name) is getattr(F, name)
    with pytest.raises(ValueError, match=r"activation: expected 'elu', .* or 'tanh', got 'step'"):
        activation_named("step")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.leaky_relu(x, "0.1"), TypeError, "negative_slope: expected a number, got str"),
        (lambda x: F.elu(x, math.nan), ValueError, "alpha: expected a finite number, got nan"),
        (lambda x: F.softplus(x, 0.0), ValueError, "beta: expected a number above 0, got 0.0"),
        (lambda x: F.hardtanh(x, 1.0, 1.0), ValueError, "max_val: expected more than min_val 1.0, got 1.0"),
        (lambda x: F.silu(x.astype(int)), TypeError, "x: expected float32 or float64, got int64"),
        (lambda x: nn.Hardtanh(2, 1), ValueError, "max_val: expected more than min_val 2, got 1"),
        (lambda x: nn.ELU(True), TypeError, "alpha: expected a number, got bool"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros(3))
