"""Convolution, max pooling and batch norm on the device, each against the reference."""

import numpy as np
import pytest

from fastseq.backends import reference
from fastseq.backends.window import Window
from tests.cuda.against_reference import LAYOUTS, check, laid_out, run
from tests.tolerance import assert_same_bits

# x, O, kernel, groups, window's stride, dilation and before, and the positions
CONVOLUTIONS = {
    "one row": ((3, 4, 1, 17), 6, 2, Window((1, 3), (1, 1), (1, 2), (0, 4), (1, 17))),
    "image": ((2, 3, 7, 6), 5, 1, Window((3, 2), (1, 1), (1, 1), (1, 0), (7, 5))),
    "stride": ((2, 4, 9, 8), 4, 4, Window((3, 3), (2, 3), (2, 1), (2, 1), (5, 3))),
    "point": ((3, 4, 3, 3), 2, 1, Window((1, 1), (1, 1), (1, 1), (0, 0), (3, 3))),
    "past the end": ((1, 2, 4, 4), 2, 1, Window((2, 2), (2, 2), (3, 3), (1, 1), (3, 3))),
    "no samples": ((0, 2, 4, 4), 2, 1, Window((2, 2), (1, 1), (1, 1), (0, 0), (3, 3))),
}


def convolution(name, dtype, rng):
    shape, O, groups, window = CONVOLUTIONS[name]
    x = rng.standard_normal(shape).astype(dtype)
    weight, bias = rng.standard_normal((O, shape[1] // groups, *window.kernel)).astype(dtype), rng.standard_normal(O).astype(dtype)
    return x, weight, bias, rng.standard_normal((len(x), O, *window.out)).astype(dtype), {"groups": groups, "window": window}


# All columns at once; those of a sample; and those of a few positions.
@pytest.mark.parametrize("columns", [1 << 26, 3000, 500])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, columns, dtype, rng, monkeypatch):
    monkeypatch.setattr("fastseq.backends.cuda_conv._COLUMNS", columns)
    x, weight, bias, dy, options = convolution(name, dtype, rng)
    check("conv_forward", x, weight, bias, terms=weight[0].size, **options)
    check("conv_forward", x, weight, None, terms=weight[0].size, **options)
    check("conv_backward", dy, x, weight, terms=dy.size, **options)
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        asked = dict(zip(("need_dx", "need_dweight", "need_dbias"), needs, strict=True))
        check("conv_backward", dy, x, weight, terms=dy.size, **options, **asked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolution_in_any_layout(layout, dtype, rng):
    x, weight, bias, dy, options = convolution("image", dtype, rng)
    check("conv_forward", x, weight, bias, layout=layout, terms=weight[0].size, **options)
    check("conv_backward", dy, x, weight, layout=layout, terms=dy.size, **options)


POOLS = [
    ((2, 3, 6, 8), Window((2, 2), (2, 2), (1, 1), (0, 0), (3, 4))),
    ((2, 3, 7, 5), Window((3, 2), (1, 2), (2, 1), (1, 1), (5, 3))),
    ((0, 3, 6, 8), Window((2, 2), (2, 2), (1, 1), (0, 0), (3, 4))),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "window"), POOLS)
def test_max_pool(shape, window, layout, dtype, rng):
    x = np.round(2 * rng.standard_normal(shape)).astype(dtype)  # with equal elements
    check("max_pool_forward", x, layout=layout, window=window)
    y, places = reference.max_pool_forward(x, window=window)
    check("max_pool_backward", rng.standard_normal(y.shape).astype(dtype), places, shape, terms=6, window=window)


def test_max_pool_of_nan_and_infinity(dtype):
    x = np.zeros((1, 1, 4, 4), dtype)
    x[0, 0, 0, 1], x[0, 0, 2:, 2:], x[0, 0, 2, 0] = np.nan, -np.inf, np.inf
    window = Window((2, 2), (2, 2), (1, 1), (0, 0), (2, 2))
    for got, want in zip(run("max_pool_forward", x, window=window), reference.max_pool_forward(x, window=window), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(5, 3), (131, 67), (3, 1), (4, 3, 7), (3, 2, 1100), (600, 1, 9)], ids=str)
def test_batch_norm(shape, dtype, rng):
    x, dy = (3 + rng.standard_normal(shape).astype(dtype) for _ in range(2))
    weight, bias, mean, spread = (rng.standard_normal(shape[1]).astype(dtype) for _ in range(4))
    terms, options = x.size // shape[1], {"eps": 1e-3}
    for w, b in ((weight, bias), (None, None), (weight, None), (None, bias)):
        check("batch_norm_forward", x, w, b, terms=terms, **options)
    run_given = {"mean": mean, "variance": spread**2}
    got = run("batch_norm_forward", x, weight, bias, **{k: laid_out(v) for k, v in run_given.items()}, **options)
    want = reference.batch_norm_forward(x, weight, bias, **run_given, **options)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)
    assert_same_bits(got[1], mean)
    _, mean, variance = reference.batch_norm_forward(x, weight, bias, **options)
    for given in (False, True):
        for w in (weight, None):
            check("batch_norm_backward", dy, x, w, mean, variance, terms=10 * terms, given=given, **options)
    for needs in ((True, False, False), (False, True, False), (False, False, True)):
        asked = dict(zip(("need_dx", "need_dweight", "need_dbias"), needs, strict=True))
        check("batch_norm_backward", dy, x, weight, mean, variance, terms=10 * terms, given=False, **options, **asked)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 7)], ids=str)
def test_batch_norm_in_any_layout(shape, layout, dtype, rng):
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    weight, bias = (rng.standard_normal(shape[1]).astype(dtype) for _ in range(2))
    check("batch_norm_forward", x, weight, bias, layout=layout, terms=30, eps=1e-3)
    _, mean, variance = reference.batch_norm_forward(x, weight, bias, eps=1e-3)
    check("batch_norm_backward", dy, x, weight, mean, variance, layout=layout, terms=200, given=False, eps=1e-3)
