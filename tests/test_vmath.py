"""exp, expm1 (as ELU), log, tanh, sigmoid, softplus, erf and GELU of csrc/simd/vmath.h: the errors and special values that stand there, on each instruction set.

float64 against mpmath; float32 against NumPy's float64 on a sample (tests/c/vmath_exhaustive.c goes through all 2^32).
"""

import math
import platform

import numpy as np
import pytest

from fastseq.backends import cpu

#: Greatest error in ulp: with fused multiply-adds, and float32 without them. float64 has one bound.
ULP32 = {"exp": (2, 2), "log": (2, 2), "tanh": (3, 4), "sigmoid": (3, 4), "erf": (3, 3), "gelu": (6, 6), "softplus": (3, 3), "elu": (3, 3)}
ULP64 = {"exp": 2, "log": 2, "tanh": 4, "sigmoid": 4, "erf": 4, "gelu": 6, "softplus": 3, "elu": 3}
FUNCTIONS = tuple(ULP32)

#: What comes at 0, -0, inf, -inf, NaN.
SPECIAL = {
    "exp": (1.0, 1.0, np.inf, 0.0, np.nan),
    "log": (-np.inf, -np.inf, np.inf, np.nan, np.nan),
    "tanh": (0.0, -0.0, 1.0, -1.0, np.nan),
    "sigmoid": (0.5, 0.5, 1.0, 0.0, np.nan),
    "erf": (0.0, -0.0, 1.0, -1.0, np.nan),
    "gelu": (0.0, -0.0, np.inf, -0.0, np.nan),
    "softplus": (float(np.log(2)), float(np.log(2)), np.inf, 0.0, np.nan),
    "elu": (0.0, -0.0, np.inf, -1.0, np.nan),
}


def _each(function, x):
    return np.frompyfunc(function, 1, 1)(x).astype(np.float64)


#: What NumPy has no function for, in float64.
WIDE = {
    "sigmoid": lambda x: np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x))),
    "erf": lambda x: _each(math.erf, x),
    "gelu": lambda x: 0.5 * x * _each(math.erfc, -x / math.sqrt(2)),
    "softplus": lambda x: np.logaddexp(x, 0),
    "elu": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
}


def sample(function, dtype, n):
    """Inputs of all sizes: any bit pattern, a range in which the result is neither 0 nor its limit, the edges of both."""
    rng = np.random.default_rng(7)
    info = np.finfo(dtype)
    bits = rng.integers(0, 2 ** (8 * info.dtype.itemsize), n, np.uint64, endpoint=False)
    anything = bits.astype(f"u{info.dtype.itemsize}").view(dtype)
    edge = np.log(info.max), np.log(info.tiny), np.log(info.smallest_subnormal)
    around = np.concatenate([np.asarray(e) * (1 + rng.uniform(-1e-3, 1e-3, n // 8)) for e in edge])
    near_one = 1 + rng.uniform(-0.6, 0.6, n // 2) * 10.0 ** -rng.integers(0, 12, n // 2)
    middle = rng.uniform(-1, 1, n) * (15 if dtype == np.float32 else 39)  # down to the underflow of GELU's tail
    wide = rng.uniform(-2, 2, n) * 10.0 ** rng.integers(-5, 3, n)
    tiny = rng.uniform(0, 4, n // 8).astype(dtype) * info.tiny
    x = np.concatenate([anything[np.isfinite(anything)], *(v.astype(dtype) for v in (around, near_one, middle, wide, tiny))])
    return np.abs(x) if function == "log" else x


def exact(function, x):
    """function(x) of an mpmath number."""
    mp = pytest.importorskip("mpmath")
    if function == "sigmoid":
        e = mp.exp(-abs(x))
        return e / (1 + e) if x < 0 else 1 / (1 + e)
    if function == "gelu":
        return x * mp.erfc(-x / mp.sqrt(2)) / 2 if abs(x) < 100 else max(x, mp.mpf(0))  # mpmath fails at large numbers
    if function == "softplus":
        return max(x, mp.mpf(0)) + mp.log1p(mp.exp(-abs(x)))
    if function == "elu":
        return mp.expm1(x) if x < 0 else x
    return mp.ninf if function == "log" and x == 0 else getattr(mp, function)(x)


def ulp_of(exact_value, dtype):
    """The last place of the float nearest to exact_value, a float64; the least denormal's where that is larger."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(exact_value)
    return np.ldexp(1.0, np.clip(exponent - info.nmant - 1, info.minexp - info.nmant, info.maxexp - info.nmant - 1))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float64_against_mpmath(isa, function):
    mp = pytest.importorskip("mpmath")
    x = sample(function, np.float64, 800)
    y = cpu.pointwise_forward(x, function=function, parameter=1.0)
    greatest = mp.mpf(np.finfo(np.float64).max)
    with mp.workdps(60):
        for xi, yi in zip(x, y, strict=True):
            want = exact(function, mp.mpf(xi))
            if abs(want) > greatest:
                assert yi == np.copysign(np.inf, float(mp.sign(want))), f"{function}({xi!r})"
            else:
                error = abs(mp.mpf(yi) - want) / mp.mpf(ulp_of(float(want), np.float64))
                assert error <= ULP64[function], f"{function}({xi!r}) is {mp.nstr(error, 4)} ulp off"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float32_against_float64(isa, function):
    x = sample(function, np.float32, 200_000)
    y = cpu.pointwise_forward(x, function=function, parameter=1.0).astype(np.float64)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        wide = x.astype(np.float64)
        want = WIDE[function](wide) if function in WIDE else getattr(np, function)(wide)
    beyond = np.abs(want) > np.finfo(np.float32).max
    finite = np.minimum(y, 2.0**128)  # an infinity counts as the float that would come next
    error = np.abs(finite - np.where(beyond, finite, want)) / ulp_of(np.where(beyond, 1.0, want), np.float32)
    has_fma = isa in ("avx2", "avx512") or platform.machine() in ("arm64", "aarch64")
    worst = int(np.argmax(error))
    assert error[worst] <= ULP32[function][not has_fma], f"{function}({x[worst]!r}) is {error[worst]:.3f} ulp off"
    assert np.all(y[beyond] >= np.finfo(np.float32).max)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(isa, function, dtype):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan], dtype)
    want = np.array([*SPECIAL[function], np.nan], dtype)
    y = cpu.pointwise_forward(x, function=function, parameter=1.0)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(np.signbit(y[:4][want[:4] == 0]), np.signbit(want[:4][want[:4] == 0]))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_nan_stays_one(isa, dtype, function):
    info = np.finfo(dtype)
    unsigned = np.dtype(f"u{info.dtype.itemsize}").type
    payloads = np.array([1, 2 ** (info.nmant - 1) - 1, 2 ** (info.nmant - 1), 2**info.nmant - 1], unsigned)
    infinities = np.array([[np.inf], [-np.inf]], dtype).view(unsigned)
    nans = (infinities | payloads).view(dtype)
    assert np.isnan(nans).all()
    assert np.isnan(cpu.pointwise_forward(nans, function=function, parameter=1.0)).all()


def test_underflow_is_gradual(isa, dtype):
    info = np.finfo(dtype)
    x = np.linspace(np.log(info.tiny), np.log(info.smallest_subnormal), 50).astype(dtype)
    for function in ("exp", "sigmoid", "softplus"):
        y = cpu.pointwise_forward(x, function=function, parameter=1.0)
        assert np.all((y > 0) & (y <= info.tiny * (1 + 1000 * info.eps)))  # the logarithm was rounded
        assert np.all(np.diff(y) <= 0)
        assert len(np.unique(y)) > 40
    tiny = np.array([info.smallest_subnormal, -3 * info.smallest_subnormal, info.tiny], dtype)
    np.testing.assert_array_equal(cpu.pointwise_forward(tiny, function="tanh"), tiny)
    np.testing.assert_array_equal(cpu.pointwise_forward(tiny, function="elu", parameter=1.0), tiny)
