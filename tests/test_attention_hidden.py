"""What a query does not see: rows with nothing to attend to, NaN and infinities behind masks, and what must show all the same."""

import numpy as np
import pytest

import fastseq as fs
from tests.attention_problems import arrays, attend, gradients
from tests.tolerance import assert_same_bits


def test_nothing_to_attend_to(dtype, isa, threads, rng):
    q, k, v = arrays(rng, dtype, Tq=66, Tk=70)
    hidden = np.ones((66, 70), bool)
    hidden[[0, 5, 65]] = False
    additive = np.where(hidden, 0, -np.inf).astype(dtype)
    dy = rng.standard_normal((2, 2, 66, 3)).astype(dtype)
    for mask in (hidden, additive):
        y, w = attend(q, k, v, mask, return_weights=True)
        for rows in (y, w, gradients((q, k, v), dy, attn_mask=mask)[1]):
            assert not rows[:, :, [0, 5, 65]].any()
            assert np.isfinite(rows).all()
            assert rows[:, :, 1].any()
    for grad in gradients((q, k, v), dy, key_lengths=[0, 70])[:]:
        assert not grad[0].any()
        assert grad[1].any()
    for Tq in (1, 66):
        assert not attend(q[:, :, :Tq], k, v, np.zeros((Tq, 70), bool)).any()
        assert not attend(q[:, :, :Tq], k, v, is_causal=True, causal_offset=-100).any()


# ---------------------------------------------------------------- what must not leak, and what must


@pytest.mark.parametrize("Tq", [1, 3, 66])
@pytest.mark.parametrize("way", ["bool", "by key", "additive", "lengths", "causal", "window"])
def test_nan_in_hidden_keys_does_not_leak(Tq, way, dtype, isa, threads, rng):
    q, k, v = arrays(rng, dtype, Tq=Tq, Tk=150)
    hidden = np.zeros(150, bool)
    hidden[{"lengths": slice(90, None), "causal": slice(Tq + 80, None), "window": slice(0, 40)}.get(way, slice(3, 150, 7))] = True
    options = {
        "bool": {"attn_mask": np.broadcast_to(~hidden, (Tq, 150)).copy()},
        "by key": {"attn_mask": ~hidden},
        "additive": {"attn_mask": np.where(hidden, -np.inf, 0).astype(dtype)},
        "lengths": {"key_lengths": [90, 90]},
        "causal": {"is_causal": True, "causal_offset": 80},
        "window": {"window": 11, "causal_offset": 50},
    }[way]
    dy = rng.standard_normal((2, 2, Tq, 3)).astype(dtype)
    clean = gradients((q, k, v), dy, **options)
    for bad in (np.nan, np.inf):
        k[:, :, hidden], v[:, :, hidden] = bad, bad
        for got, want in zip(gradients((q, k, v), dy, **options), clean, strict=True):
            assert_same_bits(got, want)
        assert not np.isnan(attend(q, k, v, **options, return_weights=True)[1]).any()


@pytest.mark.parametrize("Tq", [1, 66])
def test_what_a_query_that_sees_nothing_holds_does_not_matter(Tq, dtype, isa, threads, rng):
    q, k, v = arrays(rng, dtype, Tq=Tq, Tk=70)
    dy, sees = rng.standard_normal((2, 2, Tq, 3)).astype(dtype), np.ones((2, 1, Tq, 70), bool)
    sees[1, :, 0] = False
    clean = gradients((q, k, v), dy, attn_mask=sees)
    q[1, :, 0], dy[1, :, 0] = np.nan, np.inf
    for got, want in zip(gradients((q, k, v), dy, attn_mask=sees), clean, strict=True):
        assert_same_bits(got, want)


def test_one_query_whose_scores_are_large_has_its_weight(rng):
    """Forward and backward go the same way, by pieces or by tiles: p = exp(score - lse) with the very score that lse came from."""
    q, k, v = (x * np.float32(200) for x in arrays(rng, np.float32, Tq=1, Tk=1, D=64))
    dy = rng.standard_normal((2, 2, 1, 3)).astype(np.float32)
    mask = fs.Tensor(rng.standard_normal((1, 1)).astype(np.float32), requires_grad=True)
    for options in ({}, {"attn_mask": mask}, {"return_weights": True}):
        tensors = [fs.Tensor(x, requires_grad=True) for x in (q, k, v)]
        y = attend(*tensors, **options)
        (y[0] if "return_weights" in options else y).backward(dy)
        assert_same_bits(tensors[2].grad, dy)


@pytest.mark.parametrize(("Tq", "Tk"), [(0, 5), (5, 0), (1, 0), (0, 0)])
def test_nothing_at_all(Tq, Tk, dtype, isa, threads, rng):
    """One head, so that workers share blocks, of which there are none."""
    inputs = arrays(rng, dtype, B=1, heads=1, Tq=Tq, Tk=Tk)
    y, *grads = gradients(inputs, np.ones((1, 1, Tq, 3), dtype), dropout_p=0.0)
    assert not y.any()
    assert not any(g.any() for g in grads)
    assert [g.shape for g in grads] == [x.shape for x in inputs]


def test_lengths_that_change_after_the_call(rng):
    """They are the caller's array; the call keeps what it saw."""
    q, k, v = arrays(rng, np.float32)
    lengths = np.array([7, 3])
    want = gradients((q, k, v), np.ones((2, 2, 5, 3), np.float32), key_lengths=[7, 3])
    tensors = [fs.Tensor(x, requires_grad=True) for x in (q, k, v)]
    y = attend(*tensors, key_lengths=lengths)
    lengths[:] = 10**8
    y.backward(np.ones((2, 2, 5, 3), np.float32))
    for t, grad in zip(tensors, want[1:], strict=True):
        assert_same_bits(t.grad, grad)


def test_a_mask_of_one_sequence_without_heads(rng):
    q, k, v = (x[0, 0] for x in arrays(rng, np.float64))
    mask = fs.Tensor(rng.standard_normal((5, 7)), requires_grad=True)
    assert fs.gradcheck(lambda m: attend(q, k, v, m), [mask])
    with pytest.raises(ValueError, match=r"attn_mask: expected a shape that broadcasts to \(5, 7\), got \(1, 5, 7\)"):
        attend(q, k, v, np.ones((1, 5, 7), bool))


def test_sizes_whose_scratch_could_not_be_addressed():
    q, k = np.zeros((2**13, 1, 0), np.float32), np.zeros((1, 2**59, 0), np.float32)
    with pytest.raises(ValueError, match="larger than the address space"):
        attend(q, k, k, enable_gqa=True)


@pytest.mark.parametrize("Tq", [1, 3])
def test_nan_in_a_key_that_is_seen_shows(Tq, dtype, isa, rng):
    q, k, v = arrays(rng, dtype, Tq=Tq, Tk=70)
    mask = np.ones(70, bool)
    mask[3] = False
    k[0, 1, 66, 0] = np.nan
    v[1, 0, 2, 1] = np.nan
    y = attend(q, k, v, mask)
    assert np.isnan(y[0, 1]).all()
    assert np.isnan(y[1, 0, :, 1]).all()
    assert np.isnan(y).sum() == Tq * 3 + Tq
    assert np.isfinite(y[0, 0]).all()


def test_a_key_hidden_from_some_queries_does_not_reach_them(dtype, isa, rng):
    """Not even where the others of its tile do: a NaN stays out of y and dq of the queries before it."""
    q, k, v = arrays(rng, dtype, Tq=70, Tk=70)
    dy = np.ones((2, 2, 70, 3), dtype)
    for options in ({"is_causal": True}, {"attn_mask": np.tri(70, dtype=bool)}):
        clean = gradients((q, k, v), dy, **options)
        for at, which in ((k, 1), (v, 2)):
            for bad in (np.nan, np.inf):
                kept = at[:, :, 66].copy()
                at[:, :, 66] = bad
                y, dq, _, _ = gradients((q, k, v), dy, **options)
                assert_same_bits(y[:, :, :66], clean[0][:, :, :66])
                assert_same_bits(dq[:, :, :66], clean[1][:, :, :66])
                if np.isnan(bad):  # an infinite key may give a score of -inf, which is hidden
                    assert np.isnan(y[:, :, 66:] if which == 2 else dq[:, :, 66:]).all()
                at[:, :, 66] = kept
