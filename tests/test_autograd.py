"""Tensor and the tape: what is recorded, where gradients go, and what a wrong use is told."""

import copy
import gc
import pickle
import sys
import threading
import weakref

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional
from fastseq.autograd import is_recording


def leaf(*shape, seed=0, dtype=np.float64):
    return fs.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


# ---------------------------------------------------------------- Tensor


def test_a_tensor_takes_the_array_as_it_is():
    x = np.arange(6.0).reshape(2, 3)[:, ::-1]
    t = fs.Tensor(x)
    assert t.data is x
    assert t.numpy() is x
    assert (t.shape, t.dtype, t.ndim, t.size, len(t)) == ((2, 3), np.float64, 2, 6, 2)
    assert t.grad is None
    assert not t.requires_grad


def test_what_is_no_array_becomes_one():
    assert fs.Tensor([1, 2]).data.tolist() == [1, 2]
    assert fs.Tensor(2.5).item() == 2.5


def test_a_tensor_of_a_tensor_is_refused():
    with pytest.raises(TypeError, match=r"data: expected an array, got a Tensor; pass tensor\.data"):
        fs.Tensor(fs.Tensor(np.ones(2)))


@pytest.mark.parametrize("dtype", [np.int64, np.float16, bool, np.complex64])
def test_only_two_dtypes_have_gradients(dtype):
    fs.Tensor(np.ones(2, dtype))
    with pytest.raises(TypeError, match="only float32 and float64 arrays have gradients, got"):
        fs.Tensor(np.ones(2, dtype), requires_grad=True)


def test_conversions_to_python():
    t = leaf(1) * 1.0
    assert float(t) == t.item() == t.data[0]
    assert isinstance(float(t), float)
    assert bool(fs.Tensor(np.array([1.0])))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(fs.Tensor(np.ones(2)))
    with pytest.raises(ValueError, match="size 1"):
        leaf(2).item()
    with pytest.raises(TypeError):
        len(fs.Tensor(1.0))


def test_iteration_gives_rows_that_are_recorded():
    t = leaf(3, 2)
    first, _, last = t
    (first * 2.0 + last).sum().backward()
    assert t.grad.tolist() == [[2, 2], [0, 0], [1, 1]]
    with pytest.raises(TypeError):
        next(iter(fs.Tensor(1.0)))


def test_repr_names_what_it_is():
    assert repr(fs.Tensor(np.array([1.0, 2.0]))) == "Tensor(array([1., 2.]))"
    assert repr(fs.Tensor(np.array(1.0), requires_grad=True)) == "Tensor(array(1.), requires_grad=True)"


def test_detach_shares_the_array_and_stops_gradients():
    t = leaf(3)
    d = t.detach()
    assert d.data is t.data
    assert not d.requires_grad
    (t * d).sum().backward()
    np.testing.assert_array_equal(t.grad, t.data)


def test_assignment_to_elements_is_refused():
    t = leaf(3)
    with pytest.raises(TypeError, match="elements cannot be assigned"):
        t[0] = 1.0
    assert t.data[0] != 1.0


def test_numpy_never_swallows_a_gradient():
    t = leaf(3)
    for use in (np.asarray, np.array, np.exp, np.sum, lambda x: np.concatenate([x, x]), lambda x: np.stack([x])):
        with pytest.raises(TypeError):
            use(t)
    with pytest.raises(TypeError, match=r"the gradient would be lost; use fastseq\.functional, or \.data"):
        np.asarray(t * 2.0)


def test_numpy_takes_what_has_no_gradient_to_lose():
    t = leaf(3)
    assert np.asarray(t.detach()) is t.data
    with fs.no_grad():
        np.testing.assert_array_equal(np.asarray(t), t.data)
    plain = fs.Tensor(np.arange(3))
    assert np.asarray(plain, dtype=np.float32).dtype == np.float32
    assert np.array(plain) is not plain.data
    with pytest.raises(ValueError, match="copy"):
        np.array(plain, dtype=np.float32, copy=False)


def test_copies_and_pickles_of_a_leaf():
    t = leaf(2, 3)
    t.grad = np.ones((2, 3))
    for made in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        np.testing.assert_array_equal(made.data, t.data)
        assert made.data is not t.data
        assert made.requires_grad
        assert made.grad is None
    pair = copy.deepcopy([t, t])
    assert pair[0] is pair[1]
    for duplicate in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"use \.detach\(\)"):
            duplicate(t * 2.0)


# ---------------------------------------------------------------- what is recorded


def test_a_tensor_comes_out_exactly_where_one_goes_in():
    x = np.ones((2, 3))
    assert type(functional.tanh(x)) is np.ndarray
    assert type(functional.matmul(x, x.T)) is np.ndarray
    for t, recorded in ((fs.Tensor(x), False), (fs.Tensor(x, requires_grad=True), True)):
        y = functional.tanh(t)
        assert type(y) is fs.Tensor
        assert y.requires_grad is recorded
        assert is_recording(y) is recorded
        for y in (functional.matmul(x, t.T), t @ x.T, x.T @ t, x + t, t - x, 2 * t, t / 2, t**2, 2**t, -t):
            assert type(y) is fs.Tensor
            assert y.requires_grad is recorded


def test_no_grad_is_a_context_and_a_decorator():
    t = leaf(2)
    with fs.no_grad():
        with fs.no_grad():
            assert not (t * 2.0).requires_grad
        assert not (t * 2.0).requires_grad
    assert (t * 2.0).requires_grad

    @fs.no_grad()
    def double(x):
        return x * 2.0

    assert not double(t).requires_grad
    assert not double(t).requires_grad
    assert (t * 2.0).requires_grad
    with pytest.raises(KeyError), fs.no_grad():
        raise KeyError
    assert (t * 2.0).requires_grad


def test_no_grad_counts_for_its_own_thread():
    t, found = leaf(2), []
    with fs.no_grad():
        other = threading.Thread(target=lambda: found.append((t * 2.0).requires_grad))
        other.start()
        other.join()
    assert found == [True]


# ---------------------------------------------------------------- backward


def test_gradients_add_up_over_uses_and_calls():
    t = leaf(3)
    (t * t + t).sum().backward()
    np.testing.assert_allclose(t.grad, 2 * t.data + 1)
    (t * 3.0).sum().backward()
    np.testing.assert_allclose(t.grad, 2 * t.data + 4)


def test_backward_of_a_leaf():
    t, dy = leaf(3), np.array([1.0, 2.0, 3.0])
    t.backward(dy)
    t.backward(dy)
    assert t.grad.tolist() == [2, 4, 6]
    assert dy.tolist() == [1, 2, 3]


def test_a_diamond_is_walked_once():
    calls = []

    class Counted(fs.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, dy):
            calls.append(dy.copy())
            return dy

    t = leaf(2)
    middle = Counted.apply(t)
    left, right = middle * 2.0, middle * 3.0
    (left * right + middle).sum().backward()
    assert len(calls) == 1
    np.testing.assert_allclose(t.grad, 12 * t.data + 1)


def test_interior_gradients_are_not_kept():
    t = leaf(2)
    y = t * 2.0
    y.sum().backward()
    assert y.grad is None
    assert t.grad is not None


def test_gradients_of_different_leaves_are_different_arrays():
    a, b = leaf(3, seed=1), leaf(3, seed=2)
    dy = np.ones(3)
    (a + b).backward(dy)
    assert not np.shares_memory(a.grad, b.grad)
    assert not np.shares_memory(a.grad, dy)
    a.grad *= 5
    assert b.grad.tolist() == [1, 1, 1]
    assert dy.tolist() == [1, 1, 1]
    inputs = [leaf(*s, seed=k) for k, s in enumerate([(4, 2, 3), (20, 3), (20, 5), (20,), (20,)])]
    functional.lstm(*inputs)[0].sum().backward()
    grads = [x.grad for x in inputs]
    assert all(not np.shares_memory(g, h) for k, g in enumerate(grads) for h in grads[:k])
    assert all(g.flags.writeable for g in grads)


def test_an_accumulation_does_not_reach_gradients_under_way():
    """A leaf's running total is its own array, though the first gradient to arrive flows on elsewhere too."""
    a, b = leaf(3, seed=1), leaf(3, seed=2)
    c = b * 1.0
    s = a + c  # one gradient for both
    (s + a * 10.0).sum().backward()
    assert a.grad.tolist() == [11, 11, 11]
    assert b.grad.tolist() == [1, 1, 1]


def test_outputs_that_are_not_used_get_no_gradient():
    inputs = [leaf(*s, seed=k) for k, s in enumerate([(4, 2, 3), (20, 3), (20, 5)])]
    for chosen in range(3):
        for x in inputs:
            x.grad = None
        functional.lstm(*inputs)[chosen].sum().backward()
        assert all(np.any(x.grad != 0) for x in inputs)
    assert fs.gradcheck(lambda *a: functional.lstm(*a)[1], inputs)
    assert fs.gradcheck(lambda *a: functional.lstm(*a)[2], inputs)


def test_the_upstream_gradient():
    t = leaf(2, 2)
    y = t * 3.0
    y.backward(np.array([[1.0, 2.0], [3.0, 4.0]]), retain_graph=True)
    assert t.grad.tolist() == [[3, 6], [9, 12]]
    y.backward(fs.Tensor(np.ones((2, 2))), retain_graph=True)
    y.backward([[0.0, 0.0], [0.0, 1.0]])
    assert t.grad.tolist() == [[6, 9], [12, 18]]


@pytest.mark.parametrize(
    ("grad", "error", "message"),
    [
        (None, ValueError, r"grad: a Tensor of shape \(2, 2\) needs an upstream gradient, y\.backward\(dy\)"),
        (np.ones(2), ValueError, r"grad: expected shape \(2, 2\), got \(2,\)"),
        (1.0, ValueError, r"grad: expected shape \(2, 2\), got \(\)"),
        (np.ones((2, 2), np.float32), TypeError, "grad: expected float64, got float32"),
        (leaf(2, 2), NotImplementedError, "second derivatives are not offered"),
    ],
)
def test_wrong_upstream_gradients_change_nothing(grad, error, message):
    t = leaf(2, 2)
    y = t * 3.0
    with pytest.raises(error, match=message):
        y.backward(grad)
    assert t.grad is None
    y.backward(np.ones((2, 2)))
    assert t.grad.tolist() == [[3, 3], [3, 3]]


def test_backward_without_anything_recorded_says_what_to_do():
    with fs.no_grad():
        loss = (leaf(2) * 2.0).sum()
    for y in (loss, fs.Tensor(np.ones(1)), functional.tanh(fs.Tensor(np.ones(1)))):
        with pytest.raises(RuntimeError, match=r"wrap the model's inputs in fs\.Tensor\(\.\.\.\)"):
            y.backward()


def test_a_second_backward_raises_unless_the_graph_is_retained():
    t = leaf(3)
    loss = (t * t).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    np.testing.assert_allclose(t.grad, 4 * t.data)
    with pytest.raises(RuntimeError, match="the graph was freed by an earlier backward"):
        loss.backward()
    np.testing.assert_allclose(t.grad, 4 * t.data)


def test_a_graph_freed_in_part_is_not_walked_in_part():
    t = leaf(3)
    shared = t * 2.0
    first, second = shared.sum(), (shared * shared).sum() + t.sum()
    first.backward()
    before = t.grad.copy()
    with pytest.raises(RuntimeError, match="freed"):
        second.backward()
    np.testing.assert_array_equal(t.grad, before)


def test_second_derivatives_raise():
    t = leaf(1)
    with pytest.raises(NotImplementedError, match="second derivatives are not offered; a gradient is a plain array"):
        (t * t).backward(create_graph=True)
    (t * t).backward()
    assert type(t.grad) is np.ndarray


def test_an_optimiser_step_between_forward_and_backward_raises():
    w, x = leaf(3, seed=1), leaf(3, seed=2)
    stale = (w * x).sum()
    fresh = (w * x).sum()
    fresh.backward()
    before = [w.grad.copy(), x.grad.copy()]
    fs.optim.SGD([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="an input of mul was changed in place, by an optimiser's step"):
        stale.backward()
    np.testing.assert_array_equal(w.grad, before[0])
    np.testing.assert_array_equal(x.grad, before[1])
    (w * x).sum().backward()
    np.testing.assert_allclose(x.grad, before[1] + w.data)


def test_an_error_on_the_way_leaves_all_gradients_as_they_were():
    class Broken(fs.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1.0

        @staticmethod
        def backward(ctx, dy):
            raise KeyError("broken")

    a, b = leaf(2, seed=1), leaf(2, seed=2)
    a.grad = np.ones(2)
    with pytest.raises(KeyError):
        (Broken.apply(b) + a * 2.0).sum().backward()
    assert a.grad.tolist() == [1, 1]
    assert b.grad is None


def test_a_long_chain_needs_no_deep_stack():
    t = leaf(2)
    y = t
    for _ in range(20 * sys.getrecursionlimit()):
        y = y + 1.0
    y.sum().backward()
    assert t.grad.tolist() == [1, 1]


def test_a_long_chain_that_is_dropped_frees_itself():
    t = leaf(2)
    y = t
    for _ in range(50_000):
        y = y * 1.0
    del y
    y = t * 2.0
    y.sum().backward()
    assert t.grad.tolist() == [2, 2]


def test_the_graph_holds_no_cycle_and_backward_frees_what_it_saved():
    gc.collect()
    gc.disable()
    try:
        x = leaf(4, 3)
        y = functional.tanh(x @ np.ones((3, 2)))
        node = weakref.ref(y)
        loss = (y * y).sum()
        del y
        loss.backward()
        held = loss._node
        assert held.backward is None
        assert held.edges == []
        del loss, held
        assert node() is None
        z = functional.exp(leaf(5))
        node = weakref.ref(z)
        del z
        assert node() is None
    finally:
        gc.enable()


def test_two_threads_can_go_backward_at_once():
    w = np.random.default_rng(0).standard_normal((30, 30))
    want = []

    def work(k, out):
        x = leaf(20, 30, seed=k)
        for _ in range(20):
            x.grad = None
            functional.tanh(x @ w).sum().backward()
        out[k] = x.grad

    together = {}
    workers = [threading.Thread(target=work, args=(k, together)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(4):
        alone = {}
        work(k, alone)
        want.append(alone[k])
        np.testing.assert_array_equal(together[k], want[k])
