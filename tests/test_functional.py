"""The rules of `fastseq.functional`: NumPy's results and shapes, gradients of what needs no kernel, options at their edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import fastseq as fs
from fastseq import functional as F
from tests.cases import CASES
from tests.tolerance import assert_close, assert_same_bits


def leaf(*shape, seed=0, dtype=np.float64, above=None):
    x = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return fs.Tensor(x if above is None else np.abs(x) + above, requires_grad=True)


def test_every_operation_with_a_kernel_has_a_case():
    assert {case.op for case in CASES} == {
        "exp", "log", "tanh", "sigmoid", "relu", "softmax", "log_softmax", "cross_entropy", "embedding", "linear", "matmul",
        "dropout", "lstm", "erf", "gelu", "layer_norm", "rms_norm", "linear_cross_entropy",
        "mse_loss", "l1_loss", "rmse_loss", "huber_loss", "binary_cross_entropy_with_logits", "negative_sampling_loss",
        "scaled_dot_product_attention", "self_attention", "additive_attention", "silu", "softplus", "elu", "leaky_relu",
        "conv1d", "conv2d", "max_pool2d", "batch_norm",
    }  # fmt: skip
    assert len({str(case) for case in CASES}) == len(CASES)


# ---------------------------------------------------------------- NumPy's results

shapes = npst.mutually_broadcastable_shapes
floats = st.floats(-8, 8, allow_subnormal=False, width=32)


@st.composite
def broadcastable(draw, count, max_dims=3):
    found = draw(shapes(num_shapes=count, max_dims=max_dims, max_side=4, min_side=0)).input_shapes
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return [draw(npst.arrays(dtype, s, elements=floats)) for s in found]


def summed(grad, shape):
    """NumPy's own way to undo a broadcast."""
    extra = grad.ndim - len(shape)
    grad = grad.sum(axis=tuple(range(extra)))
    for k, n in enumerate(shape):
        if n == 1:
            grad = grad.sum(axis=k, keepdims=True)
    return np.broadcast_to(grad, shape)


@given(broadcastable(2), st.sampled_from(["+", "-", "*"]))
def test_arithmetic_broadcasts_as_numpy(arrays, operator):
    a, b = arrays
    function = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}[operator]
    want = function(a, b)
    s, t = fs.Tensor(a, requires_grad=True), fs.Tensor(b, requires_grad=True)
    for got in (function(s, t), function(s, b), function(a, t)):
        assert_same_bits(got.data, want)
    y = function(s, t)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(y.dtype)
    y.backward(dy)
    da, db = {"+": (dy, dy), "-": (dy, -dy), "*": (dy * b, dy * a)}[operator]
    assert s.grad.dtype == t.grad.dtype == a.dtype
    for got, full, x in ((s.grad, da, a), (t.grad, db, b)):
        assert got.shape == x.shape
        np.testing.assert_allclose(got, summed(np.asarray(full, np.float64), x.shape), rtol=1e-5, atol=1e-4)


@st.composite
def products(draw):
    rows, inner, columns = (draw(st.integers(0, 5)) for _ in range(3))
    first, second = draw(shapes(num_shapes=2, max_dims=2, max_side=3, min_side=0)).input_shapes
    a = (*first, rows, inner) if draw(st.booleans()) else (inner,)
    b = (*second, inner, columns) if draw(st.booleans()) else (inner,)
    return a, b


@given(products())
def test_matmul_has_numpys_shapes(sizes):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(sizes[0]), rng.standard_normal(sizes[1])
    want = np.matmul(a, b)
    assert_close(F.matmul(a, b), want, terms=5)
    s, t = fs.Tensor(a, requires_grad=True), fs.Tensor(b, requires_grad=True)
    (s @ t).sum().backward()
    assert s.grad.shape == a.shape
    assert t.grad.shape == b.shape


@given(st.data())
def test_reductions_have_numpys_results(data):
    x = data.draw(npst.arrays(np.float64, npst.array_shapes(max_dims=3, max_side=4), elements=floats))
    axis = data.draw(st.none() | npst.valid_tuple_axes(x.ndim) | st.integers(-x.ndim, x.ndim - 1))
    keepdims = data.draw(st.booleans())
    for name in ("sum", "mean", "max"):
        want = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        assert_same_bits(getattr(F, name)(x, axis, keepdims), want)
        t = fs.Tensor(x, requires_grad=True)
        y = getattr(t, name)(axis, keepdims)
        assert_same_bits(y.data, want)
        dy = np.random.default_rng(0).standard_normal(y.shape)
        y.backward(dy)
        np.testing.assert_allclose(t.grad.sum(), dy.sum() * (x.size / dy.size if name == "sum" else 1), atol=1e-12)


@given(st.data())
def test_indexing_is_numpys(data):
    x = data.draw(npst.arrays(np.float64, npst.array_shapes(max_dims=3, max_side=4), elements=floats))
    index = data.draw(npst.basic_indices(x.shape, allow_newaxis=True, allow_ellipsis=True))
    t = fs.Tensor(x, requires_grad=True)
    y = t[index]
    assert_same_bits(y.data, x[index])
    dy = np.random.default_rng(0).standard_normal(y.shape)
    y.backward(dy)
    want = np.zeros_like(x)
    want[index] = dy
    assert_same_bits(t.grad, want)


@given(st.data())
def test_fancy_indexing_adds_up_what_is_read_twice(data):
    x = data.draw(npst.arrays(np.float64, npst.array_shapes(min_dims=1, max_dims=3, max_side=4), elements=floats))
    index = data.draw(npst.integer_array_indices(x.shape, result_shape=npst.array_shapes(max_dims=2, max_side=5)))
    for chosen in (index, tuple(fs.Tensor(k) for k in index)):
        t = fs.Tensor(x, requires_grad=True)
        y = t[chosen]
        assert_same_bits(y.data, x[index])
        dy = np.random.default_rng(0).standard_normal(y.shape)
        y.backward(dy)
        want = np.zeros_like(x)
        np.add.at(want, index, dy)
        assert_same_bits(t.grad, want)


def test_indexing_by_a_mask_and_by_a_list():
    t = leaf(4, 3)
    mask = t.data > 0
    assert fs.gradcheck(lambda x: x[mask], [t])
    assert fs.gradcheck(lambda x: x[fs.Tensor(mask)], [t])
    assert fs.gradcheck(lambda x: x[[0, 2, 2]], [t])
    assert fs.gradcheck(lambda x: x[1, [0, 0]], [t])
    assert fs.gradcheck(lambda x: x[1, 2], [t])
    assert fs.gradcheck(lambda x: x[..., None, -1], [t])


@given(st.data())
def test_joins_are_numpys(data):
    base = data.draw(npst.array_shapes(min_dims=1, max_dims=3, max_side=4))
    axis = data.draw(st.integers(-len(base), len(base) - 1))
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(tuple(n if k == axis % len(base) else d for k, d in enumerate(base))) for n in sizes]
    assert_same_bits(fs.concatenate(arrays, axis), np.concatenate(arrays, axis))
    tensors = [fs.Tensor(a, requires_grad=True) for a in arrays]
    y = fs.concatenate(tensors, axis)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    assert_same_bits(np.concatenate([t.grad for t in tensors], axis), dy)
    same = [fs.Tensor(rng.standard_normal(base), requires_grad=True) for _ in sizes]
    y = fs.stack(same, axis)
    assert_same_bits(y.data, np.stack([t.data for t in same], axis))
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    assert_same_bits(np.stack([t.grad for t in same], axis), dy)


@given(broadcastable(2), st.data())
def test_where_is_numpys(arrays, data):
    a, b = arrays
    shape = np.broadcast_shapes(a.shape, b.shape)
    condition = data.draw(npst.arrays(bool, shape))
    s, t = fs.Tensor(a, requires_grad=True), fs.Tensor(b, requires_grad=True)
    y = fs.where(condition, s, t)
    assert_same_bits(y.data, np.where(condition, a, b))
    y.backward(np.ones_like(y.data))
    np.testing.assert_allclose(s.grad, summed(condition.astype(a.dtype), a.shape))
    np.testing.assert_allclose(t.grad, summed((~condition).astype(a.dtype), b.shape))
    assert fs.where(condition, a, 1.5).dtype == fs.where(condition, 0, a).dtype == a.dtype


@given(st.data())
def test_views_are_numpys(data):
    shape = data.draw(npst.array_shapes(min_dims=2, max_dims=4, max_side=4))
    order = data.draw(st.permutations(range(len(shape))))
    first, second = data.draw(st.sampled_from(order)), data.draw(st.sampled_from(order))
    t = fs.Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)
    x = t.data
    pairs = [
        (t.transpose(*order), x.transpose(order)),
        (t.transpose(tuple(order)), x.transpose(order)),
        (t.transpose(), x.T),
        (t.T, x.T),
        (t.swapaxes(first, second - len(shape)), x.swapaxes(first, second)),
        (t.reshape(-1), x.reshape(-1)),
        (t.reshape((x.size, 1)), x.reshape(x.size, 1)),
    ]
    for y, want in pairs:
        assert_same_bits(y.data, want)
        assert np.shares_memory(y.data, x) or y.data.flags.c_contiguous
        t.grad = None
        dy = np.arange(x.size, dtype=np.float64).reshape(y.shape)
        y.backward(dy)
        # The gradient of a rearrangement is the same numbers, put back.
        moved = {float(v): float(d) for v, d in zip(want.ravel(), dy.ravel(), strict=True)}
        assert [moved[float(v)] for v in x.ravel()] == t.grad.ravel().tolist()


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a / b,
        lambda a, b: a / b.sum(0),
        lambda a, b: a**b,
        lambda a, b: a**2 + b**-1 + a**0.5 + b**0 + a**1,
        lambda a, b: 2**a + 3 / b - 1,
        lambda a, b: (5 - a) * (-b),
        lambda a, b: a.mean((0, 1), keepdims=True) * b.max(1, keepdims=True),
    ],
)
def test_gradients_of_what_needs_no_kernel(function):
    assert fs.gradcheck(function, [leaf(3, 4, seed=1, above=0.5), leaf(3, 4, seed=2, above=0.5)])


def test_powers_at_zero():
    x, y = fs.Tensor(np.array([0.0, 0.0, 2.0]), requires_grad=True), fs.Tensor(np.array([0.0, 2.0, 0.0]), requires_grad=True)
    (x**y).sum().backward()
    assert x.grad.tolist() == [0, 0, 0]
    assert y.grad.tolist() == [0, 0, np.log(2.0)]
    x.grad = None
    (x**0).sum().backward()
    assert x.grad.tolist() == [0, 0, 0]


def test_equal_maxima_share_the_gradient():
    t = fs.Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]]), requires_grad=True)
    t.max(axis=1).backward(np.array([1.0, 10.0]))
    assert t.grad.tolist() == [[0, 0.5, 0.5], [10, 0, 0]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_python_numbers_are_weak(dtype):
    t = fs.Tensor(np.array([0.5, 1.5, 2.0], dtype), requires_grad=True)
    for y in (t + 1, 1 + t, t * 2.5, 2.5 * t, t / 3, 3 / t, t - True, t**2, 2.0**t, t**0.5):
        assert y.dtype == dtype
    (t * 2.5 + 1 / t + t**3 + 2**t).sum().backward()
    assert t.grad.dtype == dtype


def test_loss_reductions():
    logits, targets = leaf(5, 3).data, np.array([0, 2, -100, 1, 1])
    each = F.cross_entropy(logits, targets, reduction="none")
    counted = targets != -100
    assert each[2] == 0
    assert_close(F.cross_entropy(logits, targets, reduction="sum"), each.sum(), terms=5)
    assert_close(F.cross_entropy(logits, targets), each[counted].mean(), terms=5)
    assert_close(F.cross_entropy(logits, targets, ignore_index=2 - 102), each[counted].mean(), terms=5)
    want = -np.log(np.exp(logits)[counted, targets[counted]] / np.exp(logits)[counted].sum(1))
    assert_close(each[counted], want, terms=5)
    assert F.cross_entropy(logits, targets).shape == ()


def test_a_mean_over_nothing_is_nan_and_its_gradient_zero():
    logits = leaf(3, 4)
    loss = F.cross_entropy(logits, np.full(3, -100))
    assert np.isnan(loss.item())
    loss.backward()
    assert np.all(logits.grad == 0)
    assert np.isnan(F.cross_entropy(np.zeros((0, 4)), np.zeros(0, int)))


def test_dropout_in_and_out_of_training():
    x = np.ones((50, 40), np.float32)
    assert F.dropout(x, 0.5, training=False) is x
    assert F.dropout(x, 0.0) is x
    assert np.all(F.dropout(x, 1.0) == 0)
    y = F.dropout(x, 0.25, seed=3)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert_same_bits(F.dropout(x, 0.25, seed=3), y)
    for other in ({"seed": 4}, {"seed": 3, "layer": 1}, {"seed": 3, "call": 1}):
        assert np.any(F.dropout(x, 0.25, **other) != y)
    assert_same_bits(F.dropout(x, rng=7), F.dropout(x, rng=np.random.default_rng(7)))
    fs.manual_seed(5)
    first = [F.dropout(x), F.dropout(x)]
    fs.manual_seed(5)
    assert_same_bits(F.dropout(x), first[0])
    assert np.any(first[0] != first[1])
    t = fs.Tensor(x, requires_grad=True)
    F.dropout(t, 0.25, seed=3).backward(x)
    assert_same_bits(t.grad, y)


def test_a_packed_operand(dtype, rng):
    a, b = rng.standard_normal((2, 3, 17)).astype(dtype), rng.standard_normal((17, 9)).astype(dtype)
    packed = F.pack(b)
    assert packed.shape == (17, 9)
    assert packed.dtype == dtype
    for x in (a, a[0], a[0, 0]):
        assert_same_bits(F.matmul(x, packed), F.matmul(x, b))
    assert_same_bits(F.matmul(fs.Tensor(a), packed).data, F.matmul(a, b))
    b[...] = 0  # a snapshot
    assert np.any(F.matmul(a, packed) != 0)
    with pytest.raises(TypeError, match="b: a packed operand is a snapshot without gradients"):
        F.matmul(fs.Tensor(a, requires_grad=True), packed)
    with pytest.raises(ValueError, match=r"a: expected shape \(\.\.\., M, 17\), got \(2, 3, 16\)"):
        F.matmul(a[..., :16], packed)
    other = np.float64 if dtype == np.float32 else np.float32
    with pytest.raises(TypeError, match="b: expected float"):
        F.matmul(a.astype(other), packed)


def test_empty_batches_and_sequences(dtype):
    w_ih, w_hh, b = np.ones((20, 3), dtype), np.ones((20, 5), dtype), np.ones(20, dtype)
    h_0, c_0 = np.full((2, 5), 0.5, dtype), np.full((2, 5), -0.5, dtype)
    y, h, c = F.lstm(np.zeros((0, 2, 3), dtype), w_ih, w_hh, b, b, h_0=h_0, c_0=c_0)
    assert y.shape == (0, 2, 5)
    assert_same_bits(h, h_0)
    assert_same_bits(c, c_0)
    assert not np.shares_memory(h, h_0)
    y, h, c = F.lstm(np.zeros((4, 0, 3), dtype), w_ih, w_hh)
    assert (y.shape, h.shape, c.shape) == ((4, 0, 5), (0, 5), (0, 5))
    inputs = [fs.Tensor(a, requires_grad=True) for a in (np.zeros((0, 2, 3), dtype), w_ih, w_hh, b)]
    F.lstm(*inputs)[1].sum().backward()
    assert [np.any(t.grad) for t in inputs] == [False] * 4


def test_the_explicit_pair_agrees_with_the_tape(dtype, rng):
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((4, 2, 3), (20, 3), (20, 5), (20,), (20,), (2, 5), (2, 5))]
    upstream = [rng.standard_normal(s).astype(dtype) for s in ((4, 2, 5), (2, 5), (2, 5))]
    *outputs, cache = F.lstm_forward(*arrays[:5], h_0=arrays[5], c_0=arrays[6])
    grads = F.lstm_backward(cache, upstream[0], dh=upstream[1], dc=upstream[2])
    tensors = [fs.Tensor(a, requires_grad=True) for a in arrays]
    recorded = F.lstm(*tensors[:5], h_0=tensors[5], c_0=tensors[6])
    for got, want in zip(recorded, outputs, strict=True):
        assert_same_bits(got.data, want)
    y, h, c = recorded
    total = (y * upstream[0]).sum() + (h * upstream[1]).sum() + (c * upstream[2]).sum()
    total.backward()
    for name, t in zip(("dx", "dw_ih", "dw_hh", "db_ih", "db_hh", "dh_0", "dc_0"), tensors, strict=True):
        assert_same_bits(grads[name], t.grad, name)
    without = F.lstm_backward(F.lstm_forward(*arrays[:3], None, arrays[4])[-1], upstream[0])
    assert without["db_ih"] is None
    assert without["db_hh"].shape == (20,)


def test_ids_of_every_integer_type(dtype, rng):
    weight = rng.standard_normal((7, 3)).astype(dtype)
    for kind in "bBhHiIlLqQ":
        ids = np.array([[0, 6], [3, 3]], kind)
        assert_same_bits(F.embedding(ids, weight), weight[ids])
        assert_same_bits(F.embedding(fs.Tensor(ids), weight).data, weight[ids])
