"""A user's own operation, and the check of its gradients."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional


def leaf(*shape, seed=0, dtype=np.float64):
    return fs.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


class DivMod(fs.Function):
    """x / y and x - y, which keeps an array under PyTorch's names and a number as an attribute."""

    @staticmethod
    def forward(ctx, x, y, factor):
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        return factor * x / y, x - y

    @staticmethod
    def backward(ctx, dq, dd):
        x, y = ctx.saved_tensors
        dq = np.zeros_like(x) if dq is None else ctx.factor * dq
        dd = np.zeros_like(x) if dd is None else dd
        return dq / y + dd, -dq * x / y**2 - dd, None


def test_a_users_function():
    x, y = leaf(3, seed=1), leaf(3, seed=2)
    assert fs.gradcheck(lambda a, b: DivMod.apply(a, b, 2.0), (x, y))
    assert fs.gradcheck(lambda a, b: DivMod.apply(a, b, 2.0)[0], (x, y))
    assert fs.gradcheck(lambda a, b: DivMod.apply(a, b, 2.0)[1], (x, y))
    assert x.grad is None
    q, d = DivMod.apply(x.data, y.data, 2.0)
    assert type(q) is type(d) is np.ndarray
    q, d = DivMod.apply(fs.Tensor(x.data), y.data, 2.0)
    assert type(q) is type(d) is fs.Tensor
    assert not q.requires_grad


def test_a_users_backward_may_return_what_it_keeps():
    kept = np.ones(3)

    class Keeps(fs.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, dy):
            return kept

    t = leaf(3)
    for _ in range(2):
        Keeps.apply(t).sum().backward()
    assert t.grad.tolist() == [2, 2, 2]
    assert kept.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.ones(2), r"Wrong\.backward: gradient 0: expected shape \(3,\), got \(2,\)"),
        ((np.ones(3), np.ones(3)), r"Wrong\.backward: expected 1 gradients, one per argument, got 2"),
    ],
)
def test_a_users_wrong_gradients_are_refused(returned, message):
    class Wrong(fs.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, dy):
            return returned

    t = leaf(3)
    with pytest.raises(ValueError, match=message):
        Wrong.apply(t).sum().backward()
    assert t.grad is None


def test_gradcheck_finds_a_wrong_gradient():
    class Twice(fs.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        def backward(ctx, dy):
            return dy

    t = leaf(3)
    t.grad, before = np.full(3, 7.0), t.data.copy()
    with pytest.raises(AssertionError, match=r"inputs\[0\] at \(0,\): gradient .*, differences"):
        fs.gradcheck(Twice.apply, [t])
    assert t.grad.tolist() == [7, 7, 7]
    np.testing.assert_array_equal(t.data, before)


def test_gradcheck_refuses_what_it_cannot_judge():
    with pytest.raises(TypeError, match=r"inputs\[0\]: expected float64, got float32"):
        fs.gradcheck(functional.tanh, [leaf(3, dtype=np.float32)])
    with pytest.raises(ValueError, match="inputs: none is a Tensor that requires a gradient"):
        fs.gradcheck(functional.tanh, [np.ones(3)])
