"""Additive attention on a GPU against the reference in float64: every option together, what is hidden, what is far, bits."""

import importlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastseq as fs
from fastseq import functional as F
from fastseq.backends import reference
from tests.test_additive_attention import RESULTS, arrays, assert_all_close, random_mask, wide
from tests.test_additive_attention import run as run_on
from tests.tolerance import assert_close, assert_same_bits


@pytest.fixture(scope="module")
def run(to_gpu):
    """All that forward and backward give on the GPU, as NumPy arrays."""
    cuda = importlib.import_module("fastseq.backends.cuda")

    def results(inputs, mask=None, key_lengths=None):
        return {name: a.get() for name, a in run_on(cuda, to_gpu(inputs), to_gpu(mask), key_lengths).items()}

    return results


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 3), st.sampled_from([1, 7, 9, 20, 70, 150]), st.sampled_from([1, 5, 32, 35, 64, 65, 150]), st.sampled_from([1, 4, 33, 64, 70]),
    st.sampled_from([1, 31, 32, 70]), st.sampled_from([None, "bool", "bias"]), st.booleans(), st.sampled_from([0.01, 1.0, 12.0]),
    st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_options_in_combination(run, B, Tq, Tk, D, Dv, kind, lengths, spread, dtype, seed):
    rng = np.random.default_rng(seed)
    B = 1 if Tq * Tk > 5000 else B
    inputs = arrays(rng, dtype, B, Tq, Tk, D, Dv, spread)
    inputs[3] /= np.sqrt(D)
    mask = None if kind is None else random_mask(rng, dtype, kind, B, Tq, Tk)
    key_lengths = rng.integers(0, Tk + 1, B) if lengths else None
    wide_mask = mask.astype(np.float64) if kind == "bias" else mask
    assert_all_close(run(inputs, mask, key_lengths), run_on(reference, wide(inputs), wide_mask, key_lengths), inputs, dtype, "cuda")


def test_scores_that_do_not_fit_shared_memory(run, rng):
    inputs = arrays(rng, np.float32, 1, 3, 1100, 8, 5)
    mask = random_mask(rng, np.float32, "bool", 1, 3, 1100)
    assert_all_close(run(inputs, mask, np.array([1050])), run_on(reference, wide(inputs), mask, np.array([1050])), inputs, np.float32, "long")


def test_more_queries_than_blocks_take_at_a_time(run, rng):
    """Planes of dk that are added up, and blocks with several groups of queries, whose sums do not depend on chance."""
    for B, D in ((1, 8), (3, 70)):
        inputs = arrays(rng, np.float32, B, 300, 40, D, 3)
        got = run(inputs)
        assert_all_close(got, run_on(reference, wide(inputs)), inputs, np.float32, "long")
        again = run(inputs)
        for name in RESULTS:
            assert_same_bits(again[name], got[name], name)


def test_blocks_backwards_fit_every_gpu():
    """The least shared memory of a block, of compute capability 8.6 and 8.9, holds what float64 needs with fewer queries for each warp."""
    backward_bytes = importlib.import_module("fastseq.backends.cuda_additive")._backward_bytes
    assert backward_bytes(8, 8) <= 99 * 1024 < backward_bytes(16, 8)


@pytest.mark.parametrize("by", ["lengths", "bool", "bias"])
def test_hidden_keys_do_not_leak(by, run, rng):
    """NaN in k and v of a hidden key changes nothing but perhaps a last bit, and past the end not even that."""
    dtype = np.float32
    inputs = arrays(rng, dtype, 2, 3, 7, 19, 9)
    seen = np.ones((2, 3, 7), bool)
    seen[0, :, 4:] = False
    key_lengths, mask = None, seen if by == "bool" else np.where(seen, 0.5, -np.inf).astype(dtype)
    if by == "lengths":
        key_lengths, mask = np.array([4, 7]), None
    dirty = [a.copy() for a in inputs]
    for x in dirty[1:3]:
        x[~seen.any(axis=1)] = np.nan
    want, got = run(inputs, mask, key_lengths), run(dirty, mask, key_lengths)
    for name in RESULTS:
        assert np.isfinite(got[name]).all(), name
        if by == "lengths":
            assert_same_bits(got[name], want[name], name)
        assert_close(got[name], want[name], terms=100, name=name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_key_hidden_from_one_query_reaches_only_the_others(value, run, rng):
    inputs = arrays(rng, np.float32, 2, 3, 7, 19, 9)
    seen = np.ones((2, 3, 7), bool)
    seen[1, 0, 2] = False
    want = run(inputs, seen)
    inputs[2][1, 2] = value
    got = run(inputs, seen)
    assert_same_bits(got["y"][0], want["y"][0])
    assert_same_bits(got["y"][1, 0], want["y"][1, 0])
    assert not np.isfinite(got["y"][1, 1:]).any()
    inputs[1][1, 2, 3] = np.nan
    got = run(inputs, seen)
    for name in ("y", "weights", "dq"):
        assert_same_bits(got[name][0], want[name][0], name)
        assert_close(got[name][1, 0], want[name][1, 0], terms=100, name=name)
        assert np.isnan(got[name][1, 1]).any()


def test_a_nan_that_is_seen_shows(run, rng):
    for k in range(4):
        inputs = arrays(rng, np.float32, 2, 3, 5, 17, 3)
        inputs[k][0] = np.nan
        got = run(inputs)
        assert np.isnan(got["y"][0]).all()
        if k != 2:
            assert np.isnan(got["weights"][0]).all()
        assert np.isfinite(got["y"][1]).all() or k == 3


@pytest.mark.parametrize("by", ["lengths", "bool", "bias"])
def test_a_query_with_nothing_to_attend_to(by, run, rng):
    inputs = arrays(rng, np.float32, 2, 3, 5, 17, 3)
    inputs[0][1] = inputs[1][1] = inputs[2][1] = np.nan
    seen = np.ones((2, 1, 1), bool)
    seen[1] = False
    mask = {"lengths": None, "bool": seen, "bias": np.where(seen, 0, -np.inf).astype(np.float32)}[by]
    got = run(inputs, mask, np.array([5, 0]) if by == "lengths" else None)
    for name in ("y", "weights", "dq", "dk", "dv", "dscores"):
        assert not got[name][1].any(), name
        assert np.isfinite(got[name][0]).all()
    assert np.isfinite(got["du"]).all()


@pytest.mark.parametrize("size", [25.0, 100.0, 1e4, 1e30])
def test_far_queries_and_keys(size, dtype, run, rng):
    """Beyond the range of the exponentials, with opposite signs that leave sums of the size of one."""
    inputs = arrays(rng, dtype, 2, 6, 9, 19, 4)
    shift = np.where(rng.random(19) < 0.4, size, 0).astype(dtype)
    inputs[0][:, 1::2] += shift
    inputs[1][:, ::3] -= shift
    if size > 1e3:  # no sum cancels here: only tanh = 1 is left of it
        inputs[1][:, ::3] += shift
    inputs[3] /= np.sqrt(19)
    assert_all_close(run(inputs), run_on(reference, wide(inputs)), inputs, dtype, "far")


def test_the_edge_of_the_range(dtype, run, rng):
    """All units at the largest number that goes through exponentials, both signs."""
    edge = 10 if dtype == np.float32 else 85
    for signs in ((1, 1), (-1, -1), (1, -1)):
        inputs = arrays(rng, dtype, 1, 2, 3, 8, 2)
        inputs[0][:], inputs[1][:] = (sign * edge for sign in signs)
        assert_all_close(run(inputs), run_on(reference, wide(inputs)), inputs, dtype, "edge")


def test_scores_of_any_size(run, rng):
    inputs = arrays(rng, np.float32, 1, 4, 6, 8, 3, spread=3)
    inputs[3] *= 1e4
    got = run(inputs)
    assert all(np.isfinite(got[name]).all() for name in RESULTS)
    assert np.allclose(got["weights"].sum(axis=-1), 1, rtol=1e-5)
    inputs[3][0] = np.inf
    seen = np.array([True, True, True, False])[None, :, None]
    hidden = run(inputs, seen)
    assert not any(hidden[name][0, 3].any() for name in ("y", "weights", "dq", "dscores"))


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4, 5), (2, 0, 3, 4, 5), (2, 2, 0, 4, 5), (2, 2, 3, 0, 5), (2, 2, 3, 4, 0)], ids=str)
def test_nothing(sizes, run, rng):
    inputs = arrays(rng, np.float32, *sizes)
    got, want = run(inputs), run_on(reference, wide(inputs))
    for name in RESULTS:
        assert_close(got[name], want[name], terms=20, name=name)


def test_through_the_tape_with_a_gradient_of_the_mask(to_gpu, rng):
    """Tensors over the device's arrays give what Tensors over the host's give."""
    inputs = arrays(rng, np.float32, 2, 3, 4, 5, 2)[:4]
    mask = rng.standard_normal((3, 4)).astype(np.float32)
    found = []
    for move in (lambda x: x, to_gpu):
        tensors = [fs.Tensor(move(a), requires_grad=True) for a in (*inputs, mask)]
        y, w = F.additive_attention(*tensors[:4], attn_mask=tensors[4], key_lengths=[4, 2], return_weights=True)
        ((y * y).sum() + (w * w).sum()).backward()
        found.append([x if isinstance(x, np.ndarray) else x.get() for x in (y.data, w.data, *(t.grad for t in tensors))])
    for want, got in zip(*found, strict=True):
        assert_close(got, want, terms=200)
