"""Products, pointwise functions, softmax and its losses on the device, each against the reference."""

import numpy as np
import pytest

from fastseq.backends import cpu, cuda, reference
from tests.cuda.against_reference import LAYOUTS, check, laid_out, run
from tests.tolerance import assert_close, assert_same_bits

FUNCTIONS = ("exp", "log", "tanh", "sigmoid", "relu", "erf", "gelu", "gelu_tanh", "silu", "softplus", "elu", "leaky_relu")

# ---------------------------------------------------------------- products


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 7), (7, 8)),
        ((2, 3, 7), (7, 6)),
        ((0, 7), (7, 6)),
        ((3, 0), (0, 4)),
        ((3, 5, 7), (3, 7, 4)),
        ((2, 3, 5, 7), (2, 3, 7, 4)),
        ((2, 1, 5, 7), (3, 7, 4)),
        ((3, 1, 2, 7), (1, 2, 7, 3)),
        ((5, 7), (2, 7, 1)),
        ((0, 5, 7), (0, 7, 4)),
    ],
    ids=str,
)
def test_matmul(a, b, layout, dtype, rng):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in (a, b))
    check("matmul", a, b, terms=7, layout=layout)
    bias = rng.standard_normal(b.shape[-1]).astype(dtype)
    got = cuda.matmul(laid_out(a, layout), laid_out(b, layout), bias=laid_out(bias, layout), function="tanh").get()
    assert_close(got, reference.matmul(*(x.astype(np.float64) for x in (a, b)), bias=bias.astype(np.float64), function="tanh"), dtype=dtype, terms=7)


@pytest.mark.parametrize("function", ["identity", "sigmoid", "relu", "gelu"])
@pytest.mark.parametrize("shape", [(1, 3, 1), (67, 5, 20), (3, 4, 300)], ids=str)
def test_matmul_with_what_follows(shape, function, dtype, rng, to_gpu):
    M, K, N = shape
    a, b, bias = (rng.standard_normal(s).astype(dtype) for s in ((M, K), (N, K), (N,)))
    want = reference.matmul(a.astype(np.float64), b.T.astype(np.float64), bias=bias.astype(np.float64), function=function)
    assert_close(cuda.matmul(to_gpu(a), to_gpu(b).T, bias=to_gpu(bias), function=function).get(), want, dtype=dtype, terms=K + 2)


def test_a_transposed_batch_is_one_product_or_many(dtype, rng, to_gpu):
    x = rng.standard_normal((2, 5, 3, 4)).astype(dtype)  # heads between batch and time
    k = rng.standard_normal((2, 6, 3, 4)).astype(dtype)
    got = cuda.matmul(to_gpu(x).swapaxes(1, 2), to_gpu(k).transpose(0, 2, 3, 1)).get()
    assert_close(got, x.swapaxes(1, 2).astype(np.float64) @ k.transpose(0, 2, 3, 1), dtype=dtype, terms=4)


def test_a_packed_operand_is_a_snapshot(dtype, rng, to_gpu):
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((5, 7), (9, 7)))
    weight = to_gpu(b)
    packed = cuda.pack(weight.T)
    weight.fill(0)
    assert packed.shape == (7, 9)
    assert packed.dtype == dtype
    assert_same_bits(packed.numpy(), b.T)
    assert_close(cuda.matmul(to_gpu(a), packed).get(), a.astype(np.float64) @ b.T, dtype=dtype, terms=7)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 4), (200, 33), (1000, 40), (3, 0)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_backward(shape, layout, dtype, rng):
    check("bias_backward", rng.standard_normal(shape).astype(dtype), terms=shape[0], layout=layout)


# ---------------------------------------------------------------- pointwise


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pointwise(function, layout, dtype, rng):
    x = rng.standard_normal((5, 67)).astype(dtype) * 3
    x = np.abs(x) + dtype(0.1) if function == "log" else x
    dy = rng.standard_normal(x.shape).astype(dtype)
    check("pointwise_forward", x, function=function, parameter=0.3, layout=layout, terms=32)
    saved = reference.pointwise_forward(x, function=function) if function in ("exp", "tanh", "sigmoid", "relu") else x
    check("pointwise_backward", saved, dy, function=function, parameter=0.3, layout=layout, terms=32)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(function, dtype):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 200, -200, 1e30, -1e30], dtype)
    with np.errstate(all="ignore"):
        want = reference.pointwise_forward(x, function=function, parameter=0.5)  # in the dtype itself: its range counts here
        slopes = reference.pointwise_backward(x, np.ones_like(x), function=function, parameter=0.5)
    got = run("pointwise_forward", x, function=function, parameter=0.5)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps, atol=2 * np.finfo(dtype).tiny)
    got = run("pointwise_backward", x, np.ones_like(x), function=function, parameter=0.5)
    if function in ("exp", "log", "relu", "erf", "gelu", "gelu_tanh", "silu", "softplus", "elu", "leaky_relu"):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(slopes))
        np.testing.assert_allclose(got, slopes, rtol=16 * np.finfo(dtype).eps, atol=2 * np.finfo(dtype).tiny)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 1030])
def test_dropout_has_the_masks_of_the_cpu(n, dtype, rng):
    x = rng.standard_normal(n).astype(dtype)
    options = {"p": 0.37, "seed": 0x123456789ABCDEF0, "layer": 9, "call": 4}
    want = cpu.dropout(x, **options)
    for layout in LAYOUTS:
        assert_same_bits(run("dropout", x, layout=layout, **options), want)
    assert not run("dropout", x, **(options | {"p": 1.0})).any()
    assert_same_bits(run("dropout", x, **(options | {"p": 0.0})), x)


# ---------------------------------------------------------------- softmax

# Of a warp, of blocks, and of more than registers hold; with and without accesses of 16 bytes. Each length is a compilation.
ROWS = [
    *((shape, np.float32) for shape in ((3, 1), (9, 20), (5, 67), (2, 1030), (1, 5000), (2, 16390), (0, 5), (3, 0))),
    *((shape, np.float64) for shape in ((9, 20), (5, 67), (2, 16390), (0, 5), (3, 0))),
]


@pytest.mark.parametrize(("shape", "dtype"), ROWS, ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, shape, dtype, rng):
    x, dy = (2 * rng.standard_normal(shape).astype(dtype) for _ in range(2))
    check(f"{name}_forward", x, terms=max(shape[-1], 1) // 8 + 8)
    check(f"{name}_backward", getattr(reference, f"{name}_forward")(x), dy, terms=max(shape[-1], 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_of_any_layout_has_the_same_bits(layout, dtype, rng):
    x = rng.standard_normal((2, 3, 20)).astype(dtype)
    assert_same_bits(run("softmax_forward", x, layout=layout), run("softmax_forward", x))
    assert_same_bits(run("softmax_forward", x[:1], layout=layout), run("softmax_forward", x)[:1])


def infinite_logits(V, dtype):
    x = np.zeros((6, V), dtype)
    x[0, :3] = 0, -np.inf, 2
    x[1] = -np.inf
    x[2, :4] = 1000, -1000, 0, 999
    x[3, 1] = np.nan
    x[4, 2] = np.inf
    x[5, 1:] = -np.inf
    return x


@pytest.mark.parametrize("V", [20, 16390])
def test_softmax_and_its_loss_with_infinite_logits(V, dtype):
    x = infinite_logits(V, dtype)
    for name in ("softmax_forward", "log_softmax_forward"):
        check(name, x, terms=V // 8)
    targets, options = np.array([0, 1, 3, 2, 0, 0]), {"ignore_index": -100, "label_smoothing": 0.0}
    check("cross_entropy_forward", x, targets, terms=V // 8 + 2000, **options)  # the reference takes a logit near 1000 from lse
    with np.errstate(all="ignore"):
        lse = reference.cross_entropy_forward(x, targets, **options)[1]
    check("cross_entropy_backward", lse, x, targets, np.ones(6, dtype), terms=8, **options)


# ---------------------------------------------------------------- cross entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(9, 20), (70, 67), (2, 16390), (0, 5)], ids=str)
def test_cross_entropy(shape, smoothing, dtype, rng):
    N, V = shape
    logits, targets = (2 * rng.standard_normal(shape)).astype(dtype), rng.integers(0, V, N)
    targets[::4] = -7
    options = {"ignore_index": -7, "label_smoothing": smoothing}
    check("cross_entropy_forward", logits, targets, terms=V // 8 + 8, **options)
    lse = reference.cross_entropy_forward(logits, targets, **options)[1]
    for dlosses in (rng.standard_normal(N).astype(dtype), np.array(0.3, dtype)):
        check("cross_entropy_backward", lse, logits, targets, dlosses, terms=16, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cross_entropy_in_any_layout(layout, dtype, rng):
    logits, targets = rng.standard_normal((6, 20)).astype(dtype), rng.integers(0, 20, 6)
    options = {"ignore_index": -7, "label_smoothing": 0.1}
    check("cross_entropy_forward", logits, targets, layout=layout, terms=20, **options)
    lse = reference.cross_entropy_forward(logits, targets, **options)[1]
    check("cross_entropy_backward", lse, logits, targets, rng.standard_normal(6).astype(dtype), layout=layout, terms=20, **options)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (2,), (1, 0), (1, 2), (2, 0), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1, 600), (3, 0, 2)], ids=str)
def test_sum_backward(shape, axes, dtype, rng):
    dy = rng.standard_normal([n for k, n in enumerate(shape) if k not in axes]).astype(dtype)
    for count in (1, 3):
        check("sum_backward", dy, shape, axes, count=count)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [0, 1, 7, 1500])
def test_mean_loss(n, layout, dtype, rng):
    losses, targets = rng.standard_normal(n).astype(dtype), rng.integers(0, 5, n)
    losses[targets == 3] = 0
    for ignored in (3, -7):
        check("mean_loss", losses, targets, layout=layout, ignore_index=ignored)
    check("mean_loss", 0 * losses, 0 * targets, layout=layout, ignore_index=0)


def test_no_classes(dtype):
    options = {"ignore_index": 0, "label_smoothing": 0.1}
    check("cross_entropy_forward", np.zeros((3, 0), dtype), np.zeros(3, np.int64), **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("N", "H", "V", "rows"), [(13, 5, 20, 4), (70, 9, 67, 70), (1, 3, 1, 1), (0, 3, 5, 1)])
def test_linear_cross_entropy(N, H, V, rows, biased, smoothing, dtype, rng, monkeypatch):
    monkeypatch.setattr("fastseq.backends.cuda_softmax._LOGITS", rows * V * np.dtype(dtype).itemsize)
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in ((N, H), (V, H), (V,)))
    bias, targets = bias if biased else None, rng.integers(0, V, N)
    targets[::5] = -7
    options = {"ignore_index": -7, "label_smoothing": smoothing}
    check("linear_cross_entropy_forward", x, weight, bias, targets, terms=V + H, **options)
    lse = reference.linear_cross_entropy_forward(x, weight, bias, targets, **options)[1]
    for dlosses in (rng.standard_normal(N).astype(dtype), np.array(0.3, dtype)):
        for needs in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
            asked = dict(zip(("need_dx", "need_dweight", "need_dbias"), needs, strict=True))
            check("linear_cross_entropy_backward", lse, x, weight, bias, targets, dlosses, terms=V + N, **options, **asked)


def test_inputs_stay_as_they_are(dtype, rng, to_gpu):
    x, weight, bias = (rng.standard_normal(s).astype(dtype) for s in ((8, 5), (20, 5), (20,)))
    targets, options = rng.integers(0, 20, 8), {"ignore_index": -7, "label_smoothing": 0.0}
    lse = reference.linear_cross_entropy_forward(x, weight, bias, targets, **options)[1]
    arrays = (lse, x, weight, bias, targets, np.ones(8, dtype))
    on_gpu = to_gpu(arrays)
    cuda.linear_cross_entropy_backward(*on_gpu, **options)
    cuda.matmul(on_gpu[1], on_gpu[2].T, bias=on_gpu[3], function="relu")
    for before, after in zip(arrays, on_gpu, strict=True):
        assert_same_bits(after.get(), before)
