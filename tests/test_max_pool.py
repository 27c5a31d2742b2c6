"""Max pooling: its door, NaN and ties, PyTorch's sizes. Values and gradients: cases.py."""

import itertools

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F
from fastseq import nn
from tests.tolerance import assert_same_bits


def test_the_first_of_equal_ones_gets_the_gradient(dtype, isa):
    x = fs.Tensor(np.ones((1, 1, 4, 4), dtype), requires_grad=True)
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad[0, 0].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_overlapping_windows_add_up(dtype, isa):
    x = fs.Tensor(np.array([[[[0.0, 5, 1], [2, 9, 3], [4, 6, 7]]]], dtype), requires_grad=True)
    y = F.max_pool2d(x, 2, stride=1)
    y.backward(np.array([[[[1.0, 2], [3, 4]]]], dtype))
    assert y.data.ravel().tolist() == [9, 9, 9, 9]
    assert x.grad[0, 0, 1, 1] == 10


def test_a_nan_is_greater_than_everything_and_padding_less(dtype, isa):
    x = np.full((1, 1, 2, 3), -np.inf, dtype)
    x[0, 0, 0, 0] = np.nan
    y = F.max_pool2d(x, 2, stride=1, padding=1)
    assert np.isnan(y[0, 0, :2, :2]).all()
    assert (y[0, 0, :, 2:] == -np.inf).all()
    recorded = fs.Tensor(x, requires_grad=True)
    F.max_pool2d(recorded, 2, stride=1, padding=1).sum().backward()
    assert recorded.grad.sum() == y.size  # nothing of it went to the padding


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pytorch_s_sizes_and_values(ceil_mode, isa, rng):
    torch = pytest.importorskip("torch")
    for size, kernel, stride, padding, dilation in itertools.product((4, 5, 6, 7), (1, 2, 3), (1, 2, 3), (0, 1), (1, 2)):
        if 2 * padding > kernel:
            continue
        x = rng.standard_normal((2, 1, size, size + 1)).astype(np.float32)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        theirs = torch.from_numpy(x).requires_grad_()
        try:
            want = torch.nn.functional.max_pool2d(theirs, kernel, **options)
        except RuntimeError:  # no window fits
            with pytest.raises(ValueError, match="x: expected more than"):
                F.max_pool2d(x, kernel, **options)
            continue
        ours = fs.Tensor(x, requires_grad=True)
        got = F.max_pool2d(ours, kernel, **options)
        assert_same_bits(got.data, want.detach().numpy(), f"{size}, {kernel}, {options}")
        dy = rng.integers(-9, 9, got.shape).astype(np.float32)
        got.backward(dy)
        want.backward(torch.from_numpy(dy))
        assert_same_bits(ours.grad, theirs.grad.numpy())


def test_the_explicit_pair_is_the_two_halves(dtype, rng):
    x = fs.Tensor(rng.standard_normal((2, 3, 7, 8)).astype(dtype), requires_grad=True)
    want = F.max_pool2d(x, 3, stride=2, padding=1)
    dy = rng.standard_normal(want.shape).astype(dtype)
    want.backward(dy)
    y, cache = F.max_pool2d_forward(x.data, 3, stride=2, padding=1)
    assert_same_bits(y, want.data)
    for _ in range(2):
        assert_same_bits(F.max_pool2d_backward(cache, dy)["dx"], x.grad)
    with pytest.raises(ValueError, match=r"dy: expected shape \(2, 3, 4, 4\)"):
        F.max_pool2d_backward(cache, dy[:1])
    with pytest.raises(TypeError, match="cache: expected what max_pool2d_forward returned, got int"):
        F.max_pool2d_backward(3, dy)


def test_module(rng):
    x = rng.standard_normal((2, 3, 8, 9)).astype(np.float32)
    pool = nn.MaxPool2d((2, 3), padding=(1, 0), ceil_mode=True)
    assert np.array_equal(pool(x), F.max_pool2d(x, (2, 3), padding=(1, 0), ceil_mode=True))
    assert pool.stride == (2, 3)
    assert repr(pool) == "MaxPool2d(kernel_size=(2, 3), stride=(2, 3), padding=(1, 0), dilation=(1, 1), ceil_mode=True)"
    assert pool(np.ones((1, 1, 4, 4), int)).dtype == np.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: F.max_pool2d(x[0], 2), ValueError, r"x: expected shape \(N, C, H, W\), got \(1, 5, 5\)"),
        (lambda x: F.max_pool2d(x, 6), ValueError, "x: expected more than 5 elements for windows of 6"),
        (lambda x: F.max_pool2d(x, 3, padding=2), ValueError, "padding: expected at most half of kernel_size 3, got 2"),
        (lambda x: F.max_pool2d(x[..., :1], 2, padding=1, dilation=2), ValueError, "x: expected more than 1 elements for windows of 2"),
        (lambda x: F.max_pool2d(x, (1, 2, 3)), ValueError, "kernel_size: expected an integer or 2 of them"),
        (lambda x: F.max_pool2d(x, 2, ceil_mode="yes"), TypeError, "ceil_mode: expected True or False, got str"),
        (lambda x: nn.MaxPool2d(0), ValueError, "kernel_size: expected an integer"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call(np.zeros((1, 1, 5, 5)))
