"""AdditiveAttention, DotAttention, BilinearAttention and AttentionPooling: against their equations in NumPy, with every option."""

import copy

import numpy as np
import pytest

import fastseq as fs
from fastseq import nn
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close, assert_same_bits

MODULES = {
    "additive": lambda **options: nn.AdditiveAttention(6, 5, 7, **options),
    "dot": lambda **options: nn.DotAttention(scaled=False),
    "scaled dot": lambda **options: nn.DotAttention(),
    "bilinear": lambda **options: nn.BilinearAttention(6, 5, **options),
}


@pytest.fixture(params=MODULES)
def kind(request):
    return request.param


def problem(kind, rng, dtype):
    """Query, key, value; the dot product's keys are as long as its queries."""
    sizes = ((3, 4, 6), (3, 5, 6 if "dot" in kind else 5), (3, 5, 2))
    return [rng.standard_normal(s).astype(dtype) for s in sizes]


def softmax(scores, seen):
    e = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def expected(kind, module, query, key, value, seen=True, bias=0.0):
    """Output and weights, in float64."""
    query, key, value = (a.astype(np.float64) for a in (query, key, value))
    p = {name: a.data.astype(np.float64) for name, a in module.named_parameters()}
    if kind == "additive":
        q, k = query @ p["query_proj.weight"].T + p["bias"], key @ p["key_proj.weight"].T
        scores = np.tanh(q[:, :, None] + k[:, None]) @ p["u"]
    else:
        query = query @ p["weight"] if kind == "bilinear" else query
        scores = query @ key.swapaxes(1, 2) / (np.sqrt(query.shape[-1]) if kind == "scaled dot" else 1)
    weights = softmax(scores + bias, np.broadcast_to(seen, scores.shape))
    return weights @ value, weights


# ---------------------------------------------------------------- the four scores


def test_values(kind, dtype, isa, rng):
    module, (query, key, value) = MODULES[kind](dtype=dtype, rng=0), problem(kind, rng, dtype)
    y, weights = module(query, key, value, return_weights=True)
    want = expected(kind, module, query, key, value)
    assert type(y) is type(weights) is np.ndarray
    assert_close(y, want[0], dtype=dtype, terms=100)
    assert_close(weights, want[1], dtype=dtype, terms=100)
    assert_close(module(query, key), expected(kind, module, query, key, key)[0], dtype=dtype, terms=100)


def test_lengths_and_masks(kind, dtype, rng):
    module, (query, key, value) = MODULES[kind](dtype=dtype, rng=0), problem(kind, rng, dtype)
    lengths = np.array([5, 0, 2])
    inside = np.arange(5) < lengths[:, None, None]
    for mask in (rng.random((3, 4, 5)) < 0.6, rng.random((4, 5)) < 0.6, rng.random(5) < 0.6, rng.random((3, 1, 5)) < 0.6):
        y, weights = module(query, key, value, key_lengths=lengths, attn_mask=mask, return_weights=True)
        want = expected(kind, module, query, key, value, inside & mask)
        assert_close(y, want[0], dtype=dtype, terms=100)
        assert_close(weights, want[1], dtype=dtype, terms=100)
        assert not y[1].any()
    bias = rng.standard_normal((4, 1))  # float64 in a layer of float32: converted at the door
    bias = bias + np.array([0, 0, -np.inf, 1, 2])
    y = module(query, key, value, attn_mask=bias)
    assert_close(y, expected(kind, module, query, key, value, np.isfinite(bias), bias)[0], dtype=dtype, terms=100)


def test_gradients(kind, rng):
    module, arrays = MODULES[kind](dtype=np.float64, rng=0), problem(kind, rng, np.float64)
    tensors = [fs.Tensor(a, requires_grad=True) for a in arrays]
    options = {"key_lengths": [5, 0, 3], "attn_mask": rng.random((4, 5)) < 0.7, "return_weights": True}
    y, weights = module(*tensors, **options)
    dy, dweights = rng.standard_normal(y.shape), rng.standard_normal(weights.shape)
    ((y * dy).sum() + (weights * dweights).sum()).backward()

    def loss():
        y, weights = module(*arrays, **options)
        return float((y * dy).sum() + (weights * dweights).sum())

    inputs = dict(zip(("query", "key", "value"), tensors, strict=True)) | dict(module.named_parameters())
    for name, tensor in inputs.items():
        assert_gradient(tensor.grad, loss, tensor.data, name, rng)


def test_one_tensor_records_and_the_conversion_is_differentiated(kind, rng):
    module, (query, key, value) = MODULES[kind](rng=0), problem(kind, rng, np.float32)
    wide = fs.Tensor(value.astype(np.float64), requires_grad=True)
    y = module(query, key, wide)
    assert y.dtype == np.float32
    assert_same_bits(y.data, module(query, key, value))
    y.sum().backward()
    assert wide.grad.dtype == np.float64
    assert all(p.grad is not None for p in module.parameters())


def test_copies_files_and_text(kind, rng, tmp_path):
    module, arrays = MODULES[kind](rng=0), problem(kind, rng, np.float32)
    want = module(*arrays)
    module.save(tmp_path / "attention.safetensors")
    for other in (fs.load(tmp_path / "attention.safetensors"), copy.deepcopy(module)):
        assert repr(other) == repr(module)
        assert_same_bits(other(*arrays), want)
    other = MODULES[kind](rng=1)
    other.load_state_dict(module.state_dict())
    assert_same_bits(other(*arrays), want)


def test_text():
    assert repr(nn.DotAttention()) == "DotAttention(scaled=True)"
    assert repr(nn.BilinearAttention(3, 4)) == "BilinearAttention(query_size=3, key_size=4)"
    assert repr(nn.AdditiveAttention(3, 4, 5)).startswith("AdditiveAttention(\n  query_size=3, key_size=4, units=5\n  (query_proj): Linear(")
    assert sorted(nn.AdditiveAttention(3, 4, 5).state_dict()) == ["bias", "key_proj.weight", "query_proj.weight", "u"]


def test_seeds_and_starts():
    first, again = nn.AdditiveAttention(100, 50, 400, rng=3), nn.AdditiveAttention(100, 50, 400, rng=3)
    for (name, a), (_, b) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert_same_bits(a.data, b.data, name)
    for name, bound in (("query_proj.weight", 0.1), ("key_proj.weight", 50**-0.5), ("u", 0.05), ("bias", 0.1)):
        x = dict(first.named_parameters())[name].data
        assert 0.9 * bound < np.abs(x).max() <= bound


# ---------------------------------------------------------------- pooling


def test_pooling(dtype, isa, rng):
    pool, h, lengths = nn.AttentionPooling(5, 7, dtype=dtype, rng=0), rng.standard_normal((6, 4, 5)).astype(dtype), np.array([6, 0, 1, 4])
    for given, n in ((lengths, lengths), (None, np.full(4, 6))):
        y, weights = pool(h, given, return_weights=True)
        q = np.tanh(h.astype(np.float64) @ pool.weight.data.T + pool.bias.data)
        for b in range(4):
            inside = np.arange(6) < n[b]
            w = softmax(q[:, b] @ q[n[b] - 1, b], inside)
            assert_close(weights[b], w, dtype=dtype, terms=100)
            assert_close(y[b], w @ h[:, b].astype(np.float64), dtype=dtype, terms=100)
        assert_same_bits(pool(h, given), y)
    assert not pool(h, lengths)[1].any()


def test_pooling_does_not_look_past_a_row_s_end(dtype, rng):
    pool, h, lengths = nn.AttentionPooling(5, 7, dtype=dtype, rng=0), rng.standard_normal((6, 3, 5)).astype(dtype), np.array([6, 0, 4])
    want = pool(h, lengths, return_weights=True)
    h[4:, 2] = h[:, 1] = np.nan
    for got, clean in zip(pool(h, lengths, return_weights=True), want, strict=True):
        assert_same_bits(got, clean)


def test_pooling_gradients(rng):
    pool, h = nn.AttentionPooling(3, 4, dtype=np.float64, rng=0), rng.standard_normal((5, 3, 3))
    x, lengths = fs.Tensor(h, requires_grad=True), [5, 0, 2]
    y, weights = pool(x, lengths, return_weights=True)
    dy, dweights = rng.standard_normal(y.shape), rng.standard_normal(weights.shape)
    ((y * dy).sum() + (weights * dweights).sum()).backward()

    def loss():
        y, weights = pool(h, lengths, return_weights=True)
        return float((y * dy).sum() + (weights * dweights).sum())

    for name, tensor in {"h": x, **dict(pool.named_parameters())}.items():
        assert_gradient(tensor.grad, loss, tensor.data, name, rng)
    assert not x.grad[:, 1].any()
    assert not x.grad[2:, 2].any()


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (0, 0, 3)])
def test_pooling_of_nothing(shape):
    pool = nn.AttentionPooling(3, 4)
    for h in (np.zeros(shape), fs.Tensor(np.zeros(shape))):
        y, weights = pool(h, return_weights=True)
        assert y.shape == (shape[1], 3)
        assert weights.shape == (shape[1], shape[0])
        assert y.dtype == weights.dtype == np.float32


def test_pooling_pickles_and_shows_itself(rng, tmp_path):
    pool, h = nn.AttentionPooling(5, 7, rng=0), rng.standard_normal((6, 4, 5))
    pool.save(tmp_path / "pool.safetensors")
    assert_same_bits(fs.load(tmp_path / "pool.safetensors")(h), pool(h))
    assert repr(pool) == "AttentionPooling(hidden_size=5, attention_size=7)"


# ---------------------------------------------------------------- bad input

Q, K, V = np.zeros((2, 3, 6)), np.zeros((2, 4, 5)), np.zeros((2, 4, 2))
REFUSED = [
    (lambda: nn.AdditiveAttention(6, 5, 7)(Q[0], K), ValueError, r"query: expected shape \(B, Tq, 6\), got \(3, 6\)"),
    (lambda: nn.AdditiveAttention(6, 5, 7)(Q, K[..., :4]), ValueError, r"key: expected shape \(2, Tk, 5\), got \(2, 4, 4\)"),
    (lambda: nn.BilinearAttention(6, 5)(Q, K, V[:, :3]), ValueError, r"value: expected shape \(2, 4, Dv\), got \(2, 3, 2\)"),
    (lambda: nn.DotAttention()(Q, K), ValueError, r"key: expected shape \(2, Tk, 6\), got \(2, 4, 5\)"),
    (lambda: nn.DotAttention()(Q[0, 0, 0], K), ValueError, r"query: expected shape \(B, Tq, D\), got \(\)"),
    (lambda: nn.DotAttention()(Q, Q, attn_mask=np.ones((3, 4), bool)), ValueError,
     r"attn_mask: expected a shape that broadcasts to \(2, 3, 3\), got \(3, 4\)"),
    (lambda: nn.DotAttention()(Q, Q, attn_mask=np.ones((3, 3), int)), TypeError, r"attn_mask: expected bool \(True = may attend\)"),
    (lambda: nn.BilinearAttention(6, 5)(Q, K, key_lengths=[5, 1]), ValueError, "key_lengths: expected lengths from 0 to 4, got 5"),
    (lambda: nn.BilinearAttention(6, 5)(Q.astype(complex), K), TypeError, "query: expected float32, float64, integers or bools"),
    (lambda: nn.AdditiveAttention(6, 0, 7), ValueError, "key_size: expected at least 1, got 0"),
    (lambda: nn.AttentionPooling(6, 7)(K), ValueError, r"h: expected shape \(T, B, 6\), got \(2, 4, 5\)"),
    (lambda: nn.DotAttention(K), TypeError, "scaled: expected True or False, got ndarray"),
    (lambda: nn.AttentionPooling(5, 7)(K, [2, 1, 3, 0]), ValueError, "lengths: expected integers from 0 to 2, the number of steps, got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED, ids=[s[:50] for _, _, s in REFUSED])
def test_what_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
