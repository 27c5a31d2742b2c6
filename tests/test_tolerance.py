"""The comparisons themselves: what they must accept, and what no bound may let pass."""

import numpy as np
import pytest

from tests.tolerance import assert_close, assert_same_bits, bound

DTYPES = (np.float32, np.float64)
TERMS = (1, 64, 1000)


@pytest.fixture(params=DTYPES, ids=lambda d: d.__name__)
def dtype(request):
    return request.param


@pytest.fixture
def want(rng):
    return rng.standard_normal((5, 7))


@pytest.mark.parametrize("terms", TERMS)
def test_rounding_is_accepted(want, dtype, terms):
    assert_close(want.astype(dtype), want, terms=terms)
    assert_close((want + 0.9 * bound(want, dtype, terms)).astype(dtype), want, terms=terms)


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("element", [0, 17, 34])
@pytest.mark.parametrize("sign", [-1, 1])
def test_twice_the_bound_is_rejected(want, dtype, terms, element, sign):
    got = want.copy()
    got.flat[element] += sign * 2 * bound(want, dtype, terms).flat[element]
    with pytest.raises(AssertionError, match="1 of 35"):
        assert_close(got.astype(dtype), want, terms=terms)


@pytest.mark.parametrize("terms", TERMS)
def test_a_real_sum_passes_and_one_without_its_last_term_does_not(rng, dtype, terms):
    a, b = rng.standard_normal((3, terms)).astype(dtype), rng.standard_normal((terms, 4)).astype(dtype)
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert_close(a @ b, want, terms=terms)
    with pytest.raises(AssertionError):
        assert_close(a[:, :-1] @ b[:-1], want, terms=terms)


@pytest.mark.parametrize("terms", TERMS)
def test_swapped_elements_are_rejected(want, dtype, terms):
    got = want.astype(dtype)
    got[0, 0], got[0, 1] = got[0, 1], got[0, 0]
    with pytest.raises(AssertionError, match="2 of 35"):
        assert_close(got, want, terms=terms)


@pytest.mark.parametrize("terms", TERMS)
def test_a_transposed_matrix_is_rejected(rng, dtype, terms):
    want = rng.standard_normal((6, 6))
    with pytest.raises(AssertionError):
        assert_close(want.T.astype(dtype), want, terms=terms)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_rejected_where_they_are_not_expected(want, dtype, wrong):
    got = want.astype(dtype)
    got[1, 2] = wrong
    with pytest.raises(AssertionError, match=r"1 of 35 .* \(1, 2\)"):
        assert_close(got, want)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_expected_non_finite_values_must_be_the_same(want, dtype, special):
    want[1, 2] = special
    assert_close(want.astype(dtype), want)
    for wrong in {np.nan, np.inf, -np.inf, 0.0} - {special}:
        if np.isnan(special) and np.isnan(wrong):
            continue
        got = want.astype(dtype)
        got[1, 2] = wrong
        with pytest.raises(AssertionError, match="1 of 35"):
            assert_close(got, want)


def test_zeros_must_be_exact(dtype):
    assert_close(np.zeros(3, dtype), np.zeros(3))
    with pytest.raises(AssertionError):
        assert_close(np.array([0, np.finfo(dtype).tiny, 0], dtype), np.zeros(3))


def test_zeros_among_others_may_round(dtype):
    want = np.array([0.0, 1.0])
    assert_close(np.array([np.finfo(dtype).eps, 1], dtype), want)


def test_shape_and_dtype_count(want, dtype):
    with pytest.raises(AssertionError, match="shape"):
        assert_close(want[:1].astype(dtype), want)
    with pytest.raises(AssertionError, match="float16"):
        assert_close(want.astype(np.float16), want, dtype=dtype)


def test_empty_arrays_are_equal(dtype):
    assert_close(np.zeros((0, 3), dtype), np.zeros((0, 3)))


def test_same_bits_sees_one_bit(dtype):
    x = np.ones(4, dtype)
    assert_same_bits(x.copy(), x)
    for wrong in (np.nextafter(x, dtype(2)), x.astype(np.float16), x[:3]):
        with pytest.raises(AssertionError):
            assert_same_bits(wrong, x)
    with pytest.raises(AssertionError, match="bits"):
        assert_same_bits(np.array([0.0, -0.0], dtype), np.array([0.0, 0.0], dtype))
