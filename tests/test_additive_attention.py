"""Additive attention: masks, hidden and far keys, bits, memory layouts and the explicit pair; its cases are in `cases.py`."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastseq as fs
from fastseq import functional as F
from fastseq.backends import cpu, reference
from tests.conftest import WAYS, using
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close, assert_same_bits

RESULTS = ("y", "weights", "dq", "dk", "dv", "du", "dscores")


def arrays(rng, dtype, B, Tq, Tk, D, Dv, spread=1.0):
    """q, k, v, u, dy, dweights."""
    q, k = (spread * rng.standard_normal(s) for s in ((B, Tq, D), (B, Tk, D)))
    others = (rng.standard_normal(s) for s in ((B, Tk, Dv), (D,), (B, Tq, Dv), (B, Tq, Tk)))
    return [np.asarray(a, dtype) for a in (q, k, *others)]


def run(backend, inputs, mask=None, key_lengths=None):
    """All that forward and backward give, by name."""
    q, k, v, u, dy, dweights = inputs
    y, w = backend.additive_attention_forward(q, k, v, u, mask=mask, key_lengths=key_lengths, need_weights=True)
    grads = backend.additive_attention_backward(q, k, v, u, w, dy, key_lengths=key_lengths, dweights=dweights)
    return dict(zip(RESULTS, (y, w, *grads), strict=True))


def wide(inputs):
    return [a.astype(np.float64) for a in inputs]


def random_mask(rng, dtype, kind, B, Tq, Tk):
    """A mask of a random broadcastable shape, with hidden rows among its rows."""
    shape = tuple(n if rng.random() < 0.7 else 1 for n in (B, Tq, Tk))
    seen = rng.random(shape) < 0.6
    if rng.random() < 0.5:
        seen[..., :1, :] = False
    return seen if kind == "bool" else np.where(seen, rng.standard_normal(shape), -np.inf).astype(dtype)


def assert_all_close(got, want, inputs, dtype, name):
    """Gradients of scores cancel over the keys, the more the nearer tanh is to linear: what counts is the size of what is added up."""
    _, _, v, u, dy, dweights = (np.abs(a.astype(np.float64)) for a in inputs)
    terms = 8 + len(u) + dy.shape[2]
    added = np.max(dy @ v.swapaxes(-1, -2) + dweights)
    sizes = {"y": v.max(), "weights": 1, "dq": added * u.max(), "dk": added * u.max(), "dv": dy.max(), "du": added, "dscores": added}
    for key in RESULTS:
        assert got[key].dtype == dtype
        error = np.abs(got[key] - want[key]).max(initial=0)
        assert error <= np.finfo(dtype).eps * terms * (sizes[key] + np.abs(want[key]).max(initial=0)), f"{key}, {name}: off by {error}"


# ---------------------------------------------------------------- values


@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 35), st.integers(1, 35), st.integers(1, 35), st.sampled_from([None, "bool", "bias"]),
    st.booleans(), st.sampled_from([0.01, 1.0, 12.0]), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_options_in_combination(B, Tq, Tk, D, Dv, kind, lengths, spread, dtype, seed):
    rng = np.random.default_rng(seed)
    inputs = arrays(rng, dtype, B, Tq, Tk, D, Dv, spread)
    inputs[3] /= np.sqrt(D)
    mask = None if kind is None else random_mask(rng, dtype, kind, B, Tq, Tk)
    key_lengths = rng.integers(0, Tk + 1, B) if lengths else None
    wide_mask = mask.astype(np.float64) if kind == "bias" else mask
    want = run(reference, wide(inputs), wide_mask, key_lengths)
    for isa, threads in WAYS:
        with using(isa, threads):
            assert_all_close(run(cpu, inputs, mask, key_lengths), want, inputs, dtype, f"{isa}, {threads} threads")


@pytest.mark.parametrize("kind", ["bool", "bias"])
def test_masks_by_finite_differences(kind, rng):
    """Through the tape and the reference, the mask's own gradient too."""
    from tests.cases import computed_by

    q, k, v, u, dy, dweights = arrays(rng, np.float64, 2, 3, 4, 5, 2)
    mask = random_mask(np.random.default_rng(5), np.float64, kind, 1, 3, 4)
    finite = kind == "bias" and np.isfinite(mask).any()
    with computed_by(reference):
        tensors = [fs.Tensor(a, requires_grad=True) for a in (q, k, v, u)]
        bias = fs.Tensor(mask, requires_grad=True) if finite else mask
        y, w = F.additive_attention(*tensors, attn_mask=bias, return_weights=True)
        ((y * dy).sum() + (w * dweights).sum()).backward()

        def loss():
            y, w = F.additive_attention(q, k, v, u, attn_mask=mask, return_weights=True)
            return float((y * dy).sum() + (w * dweights).sum())

        for tensor, name in zip(tensors, "qkvu", strict=True):
            assert_gradient(tensor.grad, loss, tensor.data, f"d{name}", rng)
        if finite:
            seen = np.isfinite(mask)
            values = mask[seen]

            def loss_of_bias():
                mask[seen] = values
                return loss()

            assert_gradient(bias.grad[seen], loss_of_bias, values, "dmask", rng)
            assert not bias.grad[~seen].any()


def test_a_gradient_of_the_mask(dtype, isa, rng):
    q, k, v, u, _, _ = arrays(rng, dtype, 2, 3, 4, 5, 2)
    mask = rng.standard_normal((3, 1)).astype(dtype)
    bias = fs.Tensor(np.broadcast_to(mask, (3, 4)).copy(), requires_grad=True)
    F.additive_attention(q, k, v, u, attn_mask=bias).sum().backward()
    want = run(reference, wide([q, k, v, u, np.ones((2, 3, 2)), np.zeros((2, 3, 4))]), bias.data.astype(np.float64)[None])
    assert_close(bias.grad, want["dscores"].sum(axis=0), dtype=dtype, terms=300)


def test_weights_alone_carry_gradients(dtype, isa, rng):
    q, k, v, u, _, dweights = arrays(rng, dtype, 2, 3, 4, 5, 2)
    tensors = [fs.Tensor(a, requires_grad=True) for a in (q, k, v, u)]
    _, w = F.additive_attention(*tensors, return_weights=True)
    (w * dweights).sum().backward()
    want = run(reference, wide([q, k, v, u, np.zeros((2, 3, 2)), dweights]))
    for tensor, name in zip(tensors, "qkvu", strict=True):
        assert_close(tensor.grad, want[f"d{name}"], dtype=dtype, terms=300, name=name)
    assert not tensors[2].grad.any()


# ---------------------------------------------------------------- what is hidden, what is far


@pytest.mark.parametrize("Tq", [1, 3])
@pytest.mark.parametrize("by", ["lengths", "bool", "bias"])
def test_hidden_keys_do_not_leak(by, Tq, dtype, isa, threads, rng):
    """NaN in k and v of a hidden key: bit for bit what zeros give, forwards and backwards."""
    inputs = arrays(rng, dtype, 2, Tq, 7, 19, 9)
    seen = np.ones((2, Tq, 7), bool)
    seen[0, :, 4:] = False
    seen[1, 0, 2] = False
    key_lengths = None
    if by == "lengths":
        seen[1, 0, 2] = True
        key_lengths, mask = np.array([4, 7]), None
    else:
        mask = seen if by == "bool" else np.where(seen, 0.5, -np.inf).astype(dtype)
    clean, dirty = [a.copy() for a in inputs], [a.copy() for a in inputs]
    hidden = ~seen.any(axis=1)
    for x, value in ((clean, 0), (dirty, np.nan)):
        x[1][hidden] = value
        x[2][hidden] = value
    want, got = run(cpu, clean, mask, key_lengths), run(cpu, dirty, mask, key_lengths)
    for name in RESULTS:
        assert_same_bits(got[name], want[name], name)
        assert np.isfinite(got[name]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_key_hidden_from_one_query_reaches_only_the_others(value, dtype, isa, threads, rng):
    inputs = arrays(rng, dtype, 2, 3, 7, 19, 9)
    seen = np.ones((2, 3, 7), bool)
    seen[1, 0, 2] = False
    dirty = [a.copy() for a in inputs]
    dirty[2][1, 2] = value
    want, got = run(cpu, inputs, seen), run(cpu, dirty, seen)
    assert_same_bits(got["y"][0], want["y"][0])
    assert_close(got["y"][1, 0], want["y"][1, 0], terms=7)
    assert not np.isfinite(got["y"][1, 1:]).any()
    dirty = [a.copy() for a in inputs]
    dirty[1][1, 2, 3] = np.nan
    got = run(cpu, dirty, seen)
    for name in ("y", "weights", "dq"):
        assert_same_bits(got[name][0], want[name][0], name)
        assert_close(got[name][1, 0], want[name][1, 0], terms=100, name=name)
        assert np.isnan(got[name][1, 1]).any()
        assert np.isnan(got[name][1, 2]).any()


@pytest.mark.parametrize("Tq", [1, 3])
def test_a_nan_that_is_seen_shows(Tq, dtype, isa, rng):
    for k in range(4):
        inputs = arrays(rng, dtype, 2, Tq, 5, 17, 3)
        inputs[k][0] = np.nan
        got = run(cpu, inputs)
        assert np.isnan(got["y"][0]).all()
        if k != 2:
            assert np.isnan(got["weights"][0]).all()
        assert np.isfinite(got["y"][1]).all() or k == 3


@pytest.mark.parametrize("Tq", [1, 3])
@pytest.mark.parametrize("by", ["lengths", "bool", "bias"])
def test_a_query_with_nothing_to_attend_to(by, Tq, dtype, isa, threads, rng):
    inputs = arrays(rng, dtype, 2, Tq, 5, 17, 3)
    inputs[0][1] = inputs[1][1] = inputs[2][1] = np.nan
    seen = np.ones((2, 1, 1), bool)
    seen[1] = False
    mask = {"lengths": None, "bool": seen, "bias": np.where(seen, 0, -np.inf).astype(dtype)}[by]
    got = run(cpu, inputs, mask, np.array([5, 0]) if by == "lengths" else None)
    for name in ("y", "weights", "dq", "dk", "dv", "dscores"):
        assert not got[name][1].any(), name
        assert np.isfinite(got[name][0]).all()
    assert np.isfinite(got["du"]).all()


@pytest.mark.parametrize("size", [25.0, 100.0, 300.0, 1e4, 1e30])
def test_far_queries_and_keys(size, dtype, isa, threads, rng):
    """Beyond the range of the exponentials, with opposite signs that leave sums of the size of one."""
    inputs = arrays(rng, dtype, 2, 6, 9, 19, 4)
    shift = np.where(rng.random(19) < 0.4, size, 0).astype(dtype)
    inputs[0][:, 1::2] += shift
    inputs[1][:, ::3] -= shift
    if size > 1e3:  # no sum cancels here: only tanh = 1 is left of it
        inputs[1][:, ::3] += shift
    inputs[3] /= np.sqrt(19)
    assert_all_close(run(cpu, inputs), run(reference, wide(inputs)), inputs, dtype, "far")


def test_scores_of_any_size(dtype, isa, rng):
    """A softmax of scores of +-1e4, and infinite u."""
    inputs = arrays(rng, dtype, 1, 4, 6, 8, 3, spread=3)
    inputs[3] *= 1e4
    got = run(cpu, inputs)
    assert all(np.isfinite(got[name]).all() for name in RESULTS)
    assert np.allclose(got["weights"].sum(axis=-1), 1, rtol=1e-5)
    inputs[3][0] = np.inf
    seen = np.array([True, True, True, False])[None, :, None]
    hidden = run(cpu, inputs, seen)
    assert not any(hidden[name][0, 3].any() for name in ("y", "weights", "dq", "dscores"))


# ---------------------------------------------------------------- bits


def test_bits_do_not_depend_on_threads(dtype, isa, rng):
    for B, Tq, Tk in ((1, 150, 20), (3, 70, 20), (9, 1, 50), (1, 1, 50), (5, 4, 33)):
        inputs = arrays(rng, dtype, B, Tq, Tk, 70, 37)
        inputs[0][0, 0, 0] = 1e3
        mask = random_mask(rng, dtype, "bool", B, Tq, Tk)
        results = []
        for n in (1, 2, 3, 5):
            with fs.threads(n), fs.runtime.force_threads():
                results.append(run(cpu, inputs, mask))
        for other, name in itertools.product(results[1:], RESULTS):
            assert_same_bits(other[name], results[0][name], name)


def test_a_row_has_its_own_bits_whatever_stands_beside_it(dtype, isa, threads, rng):
    """Alone, and with more padding after its keys; a query among fewer others too."""
    inputs = arrays(rng, dtype, 5, 6, 23, 33, 17)
    key_lengths = np.array([23, 11, 0, 7, 16])
    whole = run(cpu, inputs, None, key_lengths)
    for b, n in enumerate(key_lengths):
        q, k, v, u, dy, dw = (a if a.ndim == 1 else a[b : b + 1] for a in inputs)
        alone = run(cpu, [q, k[:, :n], v[:, :n], u, dy, dw[..., :n]])
        for name in ("y", "dq"):
            assert_same_bits(alone[name], whole[name][b : b + 1], name)
        for name in ("weights", "dscores"):
            assert_same_bits(alone[name], whole[name][b : b + 1, :, :n], name)
            assert not whole[name][b, :, n:].any()
        for name in ("dk", "dv"):
            assert_same_bits(alone[name], whole[name][b : b + 1, :n], name)
            assert not whole[name][b, n:].any()
        fewer = run(cpu, [q[:, 1:4], k[:, :n], v[:, :n], u, dy[:, 1:4], dw[:, 1:4, :n]])
        for name in ("y", "weights", "dq"):
            assert_same_bits(fewer[name], alone[name][:, 1:4], name)


def test_masks_in_any_layout(dtype, rng):
    q, k, v, u, _, _ = arrays(rng, dtype, 3, 4, 5, 6, 2)
    seen = rng.random((3, 4, 5)) < 0.7
    want = F.additive_attention(q, k, v, u, attn_mask=seen)
    for mask in (np.asfortranarray(seen), np.repeat(seen, 2, axis=2)[..., ::2], seen[::-1, ::-1].copy()[::-1, ::-1]):
        assert_same_bits(F.additive_attention(q, k, v, u, attn_mask=mask), want)
    one = np.broadcast_to(seen[1:2, :, :1], seen.shape)
    assert_same_bits(F.additive_attention(q, k, v, u, attn_mask=one[0, :, :1]), F.additive_attention(q, k, v, u, attn_mask=one))
    key_lengths = np.array([5, 2, 0], np.uint8)
    by_mask = np.arange(5) < key_lengths[:, None, None]
    assert_same_bits(F.additive_attention(q, k, v, u, key_lengths=key_lengths), F.additive_attention(q, k, v, u, attn_mask=by_mask))


# ---------------------------------------------------------------- the explicit pair, and bad input


def test_the_explicit_pair(dtype, isa, rng):
    q, k, v, u, dy, dweights = arrays(rng, dtype, 2, 3, 4, 5, 2)
    options = {"attn_mask": rng.random((3, 4)) < 0.7, "key_lengths": [4, 2]}
    y, w, cache = F.additive_attention_forward(q, k, v, u, **options)
    tensors = [fs.Tensor(a, requires_grad=True) for a in (q, k, v, u)]
    yt, wt = F.additive_attention(*tensors, **options, return_weights=True)
    assert_same_bits(y, yt.data)
    assert_same_bits(w, wt.data)
    ((yt * dy).sum() + (wt * dweights).sum()).backward()
    first = F.additive_attention_backward(cache, dy, dweights=dweights)
    again = F.additive_attention_backward(cache, dy, dweights=dweights)
    for tensor, name in zip(tensors, ("dq", "dk", "dv", "du"), strict=True):
        assert_same_bits(first[name], tensor.grad, name)
        assert_same_bits(again[name], first[name], name)
    alone = F.additive_attention_backward(cache, None, dweights=dweights)
    zeros = F.additive_attention_backward(cache, np.zeros_like(dy), dweights=dweights)
    for name in alone:
        assert np.array_equal(alone[name], zeros[name]), name


@pytest.mark.parametrize("shape", [(3, 4), (2, 1, 4), (1,)], ids=str)
def test_the_pair_has_the_gradient_of_a_mask_of_floats(shape, rng):
    q, k, v, u, _, _ = arrays(rng, np.float64, 2, 3, 4, 5, 2)
    mask = fs.Tensor(rng.standard_normal(shape), requires_grad=True)
    y = F.additive_attention(q, k, v, u, attn_mask=mask)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    _, _, cache = F.additive_attention_forward(q, k, v, u, attn_mask=mask.data)
    assert_same_bits(F.additive_attention_backward(cache, dy)["dattn_mask"], mask.grad)
    _, _, cache = F.additive_attention_forward(q, k, v, u, attn_mask=mask.data > 0)
    assert sorted(F.additive_attention_backward(cache, dy)) == ["dk", "dq", "du", "dv"]


def test_arrays_in_arrays_out(rng):
    q, k, v, u, _, _ = arrays(rng, np.float32, 2, 3, 4, 5, 2)
    assert type(F.additive_attention(q, k, v, u)) is np.ndarray
    plain = F.additive_attention(fs.Tensor(q), k, v, u, return_weights=True)
    assert all(isinstance(x, fs.Tensor) and not x.requires_grad for x in plain)
    assert_same_bits(plain[0].data, F.additive_attention(q, k, v, u))


Q, K, V, U = (np.zeros(s, np.float32) for s in ((2, 3, 5), (2, 4, 5), (2, 4, 6), (5,)))
REFUSED = [
    (lambda: F.additive_attention(Q[0], K, V, U), ValueError, r"q: expected shape \(B, Tq, D\), got \(3, 5\)"),
    (lambda: F.additive_attention(Q, K[:1], V, U), ValueError, r"k: expected shape \(2, Tk, 5\), got \(1, 4, 5\)"),
    (lambda: F.additive_attention(Q, K[..., :4], V, U), ValueError, r"k: expected shape \(2, Tk, 5\), got \(2, 4, 4\)"),
    (lambda: F.additive_attention(Q, K, V[:, :3], U), ValueError, r"v: expected shape \(2, 4, Dv\), got \(2, 3, 6\)"),
    (lambda: F.additive_attention(Q, K, V, U[:4]), ValueError, r"u: expected shape \(5,\), got \(4,\)"),
    (lambda: F.additive_attention(Q, K, V, U.astype(float)), TypeError, "u: expected float32, got float64"),
    (lambda: F.additive_attention(Q.astype(int), K, V, U), TypeError, "q: expected float32 or float64, got int64"),
    (lambda: F.additive_attention(Q, K, None, U), TypeError, "v: expected an array or a Tensor, got NoneType"),
    (lambda: F.additive_attention(Q, K, V, U, attn_mask=np.ones((2, 3, 5), bool)), ValueError,
     r"attn_mask: expected a shape that broadcasts to \(2, 3, 4\), got \(2, 3, 5\)"),
    (lambda: F.additive_attention(Q, K, V, U, attn_mask=np.ones((1, 2, 3, 4), bool)), ValueError,
     r"attn_mask: expected a shape that broadcasts to \(2, 3, 4\), got \(1, 2, 3, 4\)"),
    (lambda: F.additive_attention(Q, K, V, U, attn_mask=np.ones((3, 4))), TypeError,
     r"attn_mask: expected bool \(True = may attend\) or float32, got float64"),
    (lambda: F.additive_attention(Q, K, V, U, key_lengths=[4, 5]), ValueError, "key_lengths: expected lengths from 0 to 4, got 5"),
    (lambda: F.additive_attention(Q, K, V, U, key_lengths=[4]), ValueError, r"key_lengths: expected shape \(2,\), got \(1,\)"),
    (lambda: F.additive_attention(Q, K, V, U, key_lengths=[4.0, 1.0]), TypeError, "key_lengths: expected integers, got float64"),
    (lambda: F.additive_attention_forward(fs.Tensor(Q), K, V, U), TypeError, "q: expected an array, got a Tensor; additive_attention records"),
    (lambda: F.additive_attention(Q, K, V, U, return_weights=Q), TypeError, "^return_weights: expected True or False, got ndarray"),
    (lambda: F.additive_attention_backward(3, V), TypeError, "cache: expected what additive_attention_forward returned, got int"),
    (lambda: F.additive_attention_backward(F.additive_attention_forward(Q, K, V, U)[2], V), ValueError,
     r"dy: expected shape \(2, 3, 6\), got \(2, 4, 6\)"),
    (lambda: F.additive_attention_backward(F.additive_attention_forward(Q, K, V, U)[2], None, dweights=V), ValueError,
     r"dweights: expected shape \(2, 3, 4\), got \(2, 4, 6\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED, ids=[s[:60] for _, _, s in REFUSED])
def test_what_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
