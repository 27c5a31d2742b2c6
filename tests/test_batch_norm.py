"""Batch norm: running statistics, PyTorch's module step by step, given moments, its door. Values and gradients of a batch's: cases.py."""

import copy

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq import nn
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close, assert_same_bits


@pytest.mark.parametrize("options", [{}, {"momentum": 0.3, "eps": 0.1}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 7)])
def test_pytorch_s_module_step_by_step(options, shape, dtype, isa, rng):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm1d(5, dtype=torch.float64, **options)
    ours = nn.BatchNorm1d(5, dtype=dtype, **options)
    if ours.affine:
        start = {"weight": rng.standard_normal(5), "bias": rng.standard_normal(5)}
        theirs.load_state_dict({name: torch.from_numpy(a) for name, a in start.items()}, strict=False)
        ours.load_state_dict(start, strict=False)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for training in (True, True, False, True, False):
        ours.train(training)
        theirs.train(training)
        x = (3 + 2 * rng.standard_normal(shape)).astype(dtype)
        t, u = fs.Tensor(x, requires_grad=True), torch.from_numpy(x.astype(np.float64)).requires_grad_()
        y, z = ours(t), theirs(u)
        dy = rng.standard_normal(shape).astype(dtype)
        ours.zero_grad()
        theirs.zero_grad()
        y.backward(dy)
        z.backward(torch.from_numpy(dy.astype(np.float64)))
        assert_close(y.data, z.detach().numpy(), terms=60)
        assert_close(t.grad, u.grad.numpy(), terms=200)
        for name, p in theirs.named_parameters():
            assert_close(getattr(ours, name).grad, p.grad.numpy(), terms=200, name=name)
        for name, buffer in theirs.named_buffers():
            assert_close(np.asarray(getattr(ours, name), dtype), buffer.numpy(), terms=60, name=name)


def test_in_evaluation_a_row_does_not_depend_on_the_others(dtype, isa, rng):
    norm = nn.BatchNorm1d(3, dtype=dtype)
    norm(rng.standard_normal((20, 3)).astype(dtype))
    norm.eval()
    x = rng.standard_normal((9, 3, 5)).astype(dtype)
    assert_same_bits(norm(x[4:5]), norm(x)[4:5])
    before = copy.deepcopy(norm.state_dict())
    norm(x)
    assert all(np.array_equal(before[name], a) for name, a in norm.state_dict().items())


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5)])
def test_gradients_with_given_moments(shape, rng):
    x, weight, bias = rng.standard_normal(shape), rng.standard_normal(3), rng.standard_normal(3)
    mean, variance, dy = rng.standard_normal(3), rng.random(3) + 0.1, rng.standard_normal(shape)
    tensors = {name: fs.Tensor(a, requires_grad=True) for name, a in (("x", x), ("weight", weight), ("bias", bias))}
    y, used_mean, used_variance = F.batch_norm(**tensors, mean=mean, variance=variance)
    assert_same_bits(used_mean, mean)
    assert_same_bits(used_variance, variance)
    y.backward(dy)

    def loss():
        return float(np.sum(dy * F.batch_norm(x, weight=weight, bias=bias, mean=mean, variance=variance)[0]))

    for name, a in (("x", x), ("weight", weight), ("bias", bias)):
        assert_gradient(tensors[name].grad, loss, a, name, rng)


@pytest.mark.parametrize("given", [True, False])
def test_the_explicit_pair_is_the_two_halves(given, dtype, rng):
    x, weight = (fs.Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for shape in ((4, 3, 5), (3,)))
    moments = {"mean": np.zeros(3, dtype), "variance": np.ones(3, dtype)} if given else {}
    want, *used = F.batch_norm(x, weight=weight, **moments)
    dy = rng.standard_normal(want.shape).astype(dtype)
    want.backward(dy)
    y, mean, variance, cache = F.batch_norm_forward(x.data, weight=weight.data, **moments)
    for got, right in ((y, want.data), (mean, used[0]), (variance, used[1])):
        assert_same_bits(got, right)
    for _ in range(2):
        grads = F.batch_norm_backward(cache, dy)
        assert_same_bits(grads["dx"], x.grad)
        assert_same_bits(grads["dweight"], weight.grad)
        assert grads["dbias"] is None
    with pytest.raises(TypeError, match="dy: expected an array, got a Tensor"):
        F.batch_norm_backward(cache, fs.Tensor(dy))


def test_a_backward_after_the_statistics_moved_on_uses_those_of_its_forward(rng):
    norm = nn.BatchNorm1d(2).eval()
    x = fs.Tensor(rng.standard_normal((3, 2)).astype(np.float32), requires_grad=True)
    y = norm(x)
    norm.running_var[...] = 100
    y.sum().backward()
    assert np.allclose(x.grad, 1 / np.sqrt(1 + 1e-5))


def test_a_channel_far_from_zero_keeps_its_digits(isa):
    x = np.float32(1000) + np.arange(64, dtype=np.float32).reshape(64, 1) / 64
    y, mean, variance = F.batch_norm(x)
    wide = x.astype(np.float64)
    assert_close(mean, wide.mean(0), terms=64)
    np.testing.assert_allclose(variance, wide.var(0), rtol=1e-5)
    np.testing.assert_allclose(y, (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), atol=1e-3)


def test_it_saves_and_loads_its_buffers(tmp_path, rng):
    norm = nn.BatchNorm1d(3, momentum=None)
    for _ in range(3):
        norm(rng.standard_normal((5, 3)))
    norm.save(tmp_path / "norm")
    again = fs.load(tmp_path / "norm")
    x = rng.standard_normal((2, 3)).astype(np.float32)
    assert int(again.num_batches_tracked) == 3
    assert np.array_equal(again(x), norm.eval()(x))
    assert repr(again) == "BatchNorm1d(3, eps=1e-05, momentum=None, affine=True, track_running_stats=True)"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.batch_norm(x[0]), ValueError, r"x: expected shape \(N, C\) or \(N, C, L\), got \(3,\)"),
        (lambda x: F.batch_norm(x[:1]), ValueError, r"x: expected at least two values of each channel.*got shape \(1, 3\)"),
        (lambda x: F.batch_norm(x, mean=np.zeros(3)), TypeError, "variance: expected an array, as the other one of mean and variance is given, got None"),
        (lambda x: F.batch_norm(x, weight=np.zeros(2)), ValueError, r"weight: expected shape \(3,\), got \(2,\)"),
        (lambda x: F.batch_norm(x, eps=-1.0), ValueError, "eps: expected a number of at least 0"),
        (lambda x: nn.BatchNorm1d(4)(x), ValueError, r"x: expected shape \(N, 4\) or \(N, 4, L\), got \(2, 3\)"),
        (lambda x: nn.BatchNorm1d(3)(x[:1]), ValueError, "x: expected at least two values of each channel"),
        (lambda x: nn.BatchNorm1d(3, momentum=2.0), ValueError, "momentum: expected a probability between 0 and 1"),
        (lambda x: nn.BatchNorm1d(0), ValueError, "num_features: expected at least 1"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros((2, 3)))
