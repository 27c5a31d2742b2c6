"""The second link: the C kernels against the reference in float64, every operation, dtype, instruction set and thread count."""

import inspect

import numpy as np
import pytest

import fastseq as fs
from fastseq import _core, functional
from fastseq.backends import cpu, reference
from tests.cases import CASES, Case, Rounded, additive_case, conv_case, layer_norm_case, lstm_case, reference_results
from tests.conftest import WAYS, using
from tests.tolerance import assert_close, assert_same_bits

_ONE = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "decoupled": False, "step": 3}


def _public(module):
    """Its functions, and those that `reference` takes from its other files, reference_<family>.py."""
    return {n: f for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__.startswith(module.__name__) and n[0] != "_"}


def test_the_backends_have_the_same_functions():
    ours, theirs = _public(reference), _public(cpu)
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        assert inspect.signature(ours[name]) == inspect.signature(theirs[name]), name


# ---------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype, rng):
    inputs = case.inputs(rng, dtype)
    inputs = {name: a.copy() for name, a in inputs.items()}  # writable: C does not look at the flag
    before = {name: a.copy() for name, a in inputs.items()}
    want = reference_results(case, inputs, Rounded(1, dtype))
    for isa, threads in WAYS:
        with using(isa, threads):
            got = case.evaluate(inputs, np.random.default_rng(1))
            assert got.keys() == want.keys()
            for name in got:
                assert_close(got[name], want[name], dtype=dtype, terms=case.terms, name=f"{name} ({isa}, {threads} threads)")
            plain = case.evaluate(inputs, None)
            for name in plain:  # a call that records nothing gives the same
                assert_same_bits(plain[name], got[name], f"{name} ({isa}, {threads} threads)")
    for name in inputs:
        assert_same_bits(inputs[name], before[name], name)


@pytest.mark.parametrize("function", ["identity", "tanh", "sigmoid", "relu", "gelu"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 17), (13, 70, 37), (4, 0, 3), (0, 4, 3)], ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("transposed", ["", "a", "b", "ab"])
def test_matmul_with_an_epilogue(function, sizes, packed, transposed, dtype, rng):
    M, K, N = sizes
    a = rng.standard_normal((K, M)).T if "a" in transposed else rng.standard_normal((M, K))
    b = rng.standard_normal((N, K)).T if "b" in transposed else rng.standard_normal((K, N))
    a, b, bias = a.astype(dtype, order="K"), b.astype(dtype, order="K"), rng.standard_normal(N).astype(dtype)
    want = reference.matmul(*(x.astype(np.float64) for x in (a, b)), bias=bias.astype(np.float64), function=function)
    for isa, threads in WAYS:
        with using(isa, threads):
            got = cpu.matmul(a, cpu.pack(b) if packed else b, bias=bias, function=function)
            assert_close(got, want, dtype=dtype, terms=K + 1, name=f"{isa}, {threads} threads")
            dense = cpu.matmul(np.ascontiguousarray(a), np.ascontiguousarray(b), bias=bias, function=function)
            assert_same_bits(got, dense, f"{isa}, {threads} threads")


def test_matmul_over_many_blocks(dtype, isa, threads, rng):
    """Larger than every tile and cache block, none of the sizes a multiple of one."""
    a, b = rng.standard_normal((203, 611)).astype(dtype), rng.standard_normal((611, 317)).astype(dtype)
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert_close(cpu.matmul(a, b), want, dtype=dtype, terms=611)
    assert_same_bits(cpu.matmul(a, cpu.pack(b)), cpu.matmul(a, b))


@pytest.mark.parametrize("n", [0, 1, 7, 8, 17, 1000, 70_001])
def test_sum_squares_and_scale(n, dtype, isa, threads, rng):
    x = rng.standard_normal(n).astype(dtype)
    assert_close(np.array(cpu.sum_squares(x)), np.array(np.sum(x.astype(np.float64) ** 2)), terms=n)
    y = x.copy()
    cpu.scale(y, factor=0.37)
    assert_close(y, x.astype(np.float64) * 0.37, dtype=dtype)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("n", [1, 17, 67])
def test_sgd(n, momentum, nesterov, first, weight_decay, dtype, rng):
    options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "first": first, "weight_decay": weight_decay}
    arrays = rng.standard_normal((3, n)).astype(dtype)
    wide = [x.astype(np.float64) for x in arrays]
    reference.sgd(wide[0], wide[1] if momentum else None, wide[2], **options)
    for isa, threads in WAYS:
        with using(isa, threads):
            w, velocity, grad = arrays.copy()
            cpu.sgd(w, velocity if momentum else None, grad, **options)
            for got, want in zip((w, velocity, grad), wide, strict=True):
                assert_close(got, want, dtype=dtype, name=f"{isa}, {threads} threads")


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("n", [1, 17, 67])
def test_adam(n, step, decoupled, dtype, rng):
    arrays = rng.standard_normal((4, n)).astype(dtype)
    arrays[2] = np.abs(arrays[2])
    wide = [x.astype(np.float64) for x in arrays]
    options = _ONE | {"decoupled": decoupled, "step": step}
    reference.adam(*wide, **options)
    for isa, threads in WAYS:
        with using(isa, threads):
            found = arrays.copy()
            cpu.adam(*found, **options)
            for got, want in zip(found, wide, strict=True):
                assert_close(got, want, dtype=dtype, name=f"{isa}, {threads} threads")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("n", [1, 17, 67])
def test_adagrad(n, weight_decay, dtype, rng):
    arrays = rng.standard_normal((3, n)).astype(dtype)
    arrays[1] = np.abs(arrays[1])
    assert_same_update("adagrad", arrays, {"lr": 0.1, "eps": 1e-3, "weight_decay": weight_decay}, dtype)


@pytest.mark.parametrize(("momentum", "centred"), [(0.0, False), (0.9, False), (0.0, True), (0.9, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("n", [1, 17, 67])
def test_rmsprop(n, momentum, centred, weight_decay, dtype, rng):
    w, square, velocity, mean, grad = rng.standard_normal((5, n)).astype(dtype)
    arrays = [w, square**2 + 1, velocity if momentum else None, mean / 10 if centred else None, grad]
    assert_same_update("rmsprop", arrays, {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, "momentum": momentum, "weight_decay": weight_decay}, dtype)


@pytest.mark.parametrize(
    ("name", "states", "options"),
    [
        ("sgd", 1, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "first": False, "weight_decay": 0.1}),
        ("adagrad", 1, {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1}),
        ("adam", 2, _ONE),
    ],
)
@pytest.mark.parametrize("width", [0, 1, 17, 67])
@pytest.mark.parametrize("rows", [[], [4], [0, 2, 3, 7, 8]], ids=str)
def test_updates_of_rows(name, states, options, width, rows, dtype, rng):
    tables = [np.abs(rng.standard_normal((9, width))).astype(dtype) for _ in range(1 + states)]
    grad = rng.standard_normal((len(rows), width)).astype(dtype)
    assert_same_update(name, [*tables, grad], options | {"rows": np.array(rows, np.int64)}, dtype)


def test_a_variance_that_rounds_below_zero_is_zero(dtype, isa):
    """RMSprop, centred: with a gradient that stays the same the mean's square reaches the mean square."""
    w, square, mean = np.ones(33, dtype), np.full(33, 0.01, dtype), np.full(33, 0.1, dtype) + np.finfo(dtype).eps
    grad = np.full(33, 0.1, dtype)
    grad[5] = np.nan
    cpu.rmsprop(w, square, None, mean, grad, lr=0.1, alpha=0.9, eps=1.0, momentum=0.0, weight_decay=0.0)
    assert np.isnan(w[5])
    assert np.allclose(np.delete(w, 5), 0.99, atol=1e-3)


def assert_same_update(name, arrays, options, dtype):
    """One update by every instruction set and number of threads as by the reference in float64."""
    wide = [None if a is None else a.astype(np.float64) for a in arrays]
    getattr(reference, name)(*wide, **options)
    for isa, threads in WAYS:
        with using(isa, threads):
            found = [None if a is None else a.copy() for a in arrays]
            getattr(cpu, name)(*found, **options)
            for got, want in zip(found, wide, strict=True):
                if want is not None:
                    assert_close(got, want, dtype=dtype, terms=8, name=f"{isa}, {threads} threads")


@pytest.mark.parametrize(("shape", "strides"), [((67,), "all"), ((5, 17), "all"), ((4, 9), "second")])
def test_updates_in_place_of_an_array_in_any_order(shape, strides, dtype, rng):
    base = rng.standard_normal((*shape[:-1], 2 * shape[-1])).astype(dtype)
    w = base[..., ::2] if strides == "second" else np.asfortranarray(base[..., : shape[-1]])
    m, v, grad = np.zeros(shape, dtype), np.zeros(shape, dtype), rng.standard_normal(shape).astype(dtype)
    copies = [np.array(x, np.float64) for x in (w, m, v, grad)]
    cpu.adam(w, m, v, grad, **_ONE)
    reference.adam(*copies, **_ONE)
    assert_close(w, copies[0], dtype=dtype)


@pytest.mark.parametrize("function", ["exp", "log", "tanh", "sigmoid", "relu", "erf", "gelu", "gelu_tanh"])
def test_special_values(function, dtype, isa):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 200, -200, 1e30, -1e30, tiny], dtype)
    with np.errstate(all="ignore"):
        want = reference.pointwise_forward(x, function=function)  # in the dtype itself: its range counts here
    got = cpu.pointwise_forward(x, function=function)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_allclose(got, want, rtol=8 * np.finfo(dtype).eps, atol=2 * tiny)


def test_softmax_and_its_loss_with_infinite_logits(dtype, isa):
    x = np.array([[0, -np.inf, 1, 2], [-np.inf] * 4, [1000, -1000, 0, 999], [np.nan, 0, 0, 0]], dtype)
    assert_close(cpu.softmax_forward(x), reference.softmax_forward(x.astype(np.float64)), dtype=dtype, terms=4)
    targets = np.array([0, 1, 3, 2])
    options = {"ignore_index": -100, "label_smoothing": 0.0}
    want = reference.cross_entropy_forward(x.astype(np.float64), targets, **options)
    got = cpu.cross_entropy_forward(x, targets, **options)
    for k in (0, 2, 3):
        assert_close(got[0][k], want[0][k], dtype=dtype, terms=2000)
        assert_close(got[1][k], want[1][k], dtype=dtype, terms=4)


def test_nan_stays_in_its_row(dtype, isa, threads, rng):
    case = lstm_case(4, 5, 3, 9)
    inputs = case.inputs(rng, dtype)
    spoiled = dict(inputs, x=inputs["x"].copy())
    spoiled["x"][1, 2, 0] = np.nan
    clean, dirty = case.evaluate(inputs, None)["output 0"], case.evaluate(spoiled, None)["output 0"]
    assert np.isnan(dirty[1:, 2]).all()
    rows = [0, 1, 3, 4]
    assert_same_bits(dirty[:, rows], clean[:, rows])
    assert_same_bits(dirty[0], clean[0])


# ---------------------------------------------------------------- memory layouts


def _unaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert x.size == 0 or not view.flags.aligned
    return view


def _spread(x):
    wide = np.zeros(tuple(2 * n + 1 for n in x.shape), x.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    view[...] = x
    return view


def _reversed(x):
    every = (slice(None, None, -1),) * x.ndim
    return np.ascontiguousarray(x[every])[every]


def _fields(x):
    record = np.zeros(x.shape, np.dtype([("tag", np.int8), ("value", x.dtype)]))
    record["value"] = x
    return record["value"]


LAYOUTS = {"fortran": np.asfortranarray, "strided": _spread, "reversed": _reversed, "unaligned": _unaligned, "fields": _fields}
LAID_OUT = [
    Case("linear", {"x": (2, 3, 17), "weight": (9, 17), "bias": (9,)}),
    Case("matmul", {"a": (13, 17), "b": (17, 9)}),
    Case("matmul", {"a": (2, 3, 17), "b": (2, 17, 9)}),
    Case("matmul", {"a": (2, 1, 3, 5), "b": (4, 5, 9)}),
    Case("tanh", {"x": (3, 17)}),
    Case("softmax", {"x": (2, 3, 17)}),
    Case("log_softmax", {"x": (3, 17)}),
    Case("cross_entropy", {"logits": (7, 17), "targets": (7,)}, ids={"targets": 17}),
    layer_norm_case((2, 3), 17, "weight bias residual"),
    Case("rms_norm", {"x": (3, 17), "weight": (17,)}),
    Case("linear_cross_entropy", {"x": (7, 9), "weight": (17, 9), "bias": (17,), "targets": (7,)}, ids={"targets": 17}),
    Case("embedding", {"ids": (4, 3), "weight": (5, 17)}, ids={"ids": 5}),
    Case("dropout", {"x": (3, 17)}, {"p": 0.4, "seed": 1}),
    additive_case(2, 3, 5, 17, 9, return_weights=True),
    lstm_case(3, 4, 5, 17),
    conv_case((3, 4, 17), 6, (3,), groups=2, causal=True),
    conv_case((3, 4, 5, 7), 6, (3, 2)),
    Case("max_pool2d", {"x": (3, 4, 5, 7)}, {"kernel_size": 2}),
    Case("batch_norm", {"x": (5, 3, 7), "weight": (3,), "bias": (3,)}, outputs=1),
    Case("elu", {"x": (3, 17)}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", LAID_OUT, ids=str)
def test_any_layout_gives_the_same_bits(case, layout, dtype, rng):
    inputs = case.inputs(rng, dtype)
    laid_out = {name: LAYOUTS[layout](a) for name, a in inputs.items()}
    want = case.evaluate(inputs, np.random.default_rng(1))
    got = case.evaluate(laid_out, np.random.default_rng(1))
    for name in want:
        assert_same_bits(got[name], want[name], name)
    for name in inputs:
        assert_same_bits(laid_out[name], inputs[name], name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_upstream_gradients_in_any_layout(layout, dtype, rng):
    inputs = lstm_case(3, 4, 5, 17).inputs(rng, dtype)
    y, h, c, cache = functional.lstm_forward(**inputs)
    upstream = [rng.standard_normal(a.shape).astype(dtype) for a in (y, h, c)]
    want = functional.lstm_backward(cache, upstream[0], dh=upstream[1], dc=upstream[2])
    dy, dh, dc = (LAYOUTS[layout](a) for a in upstream)
    got = functional.lstm_backward(cache, dy, dh=dh, dc=dc)
    for name in want:
        assert_same_bits(got[name], want[name], name)


# ---------------------------------------------------------------- bits

BIG = [
    Case("linear", {"x": (67, 70), "weight": (131, 70), "bias": (131,)}),
    Case("matmul", {"a": (5, 40, 70), "b": (5, 70, 33)}),
    Case("softmax", {"x": (130, 67)}),
    Case("cross_entropy", {"logits": (130, 67), "targets": (130,)}, {"label_smoothing": 0.1}, ids={"targets": 67}),
    Case("log_softmax", {"x": (130, 67)}),
    Case("linear_cross_entropy", {"x": (230, 9), "weight": (5400, 9), "bias": (5400,), "targets": (230,)}, ids={"targets": 5400}),
    layer_norm_case((131,), 67, "weight bias residual"),
    Case("rms_norm", {"x": (300, 33), "weight": (33,)}),
    Case("linear", {"x": (67, 70), "weight": (131, 70), "bias": (131,)}, {"function": "gelu"}),
    Case("embedding", {"ids": (300,), "weight": (20, 33)}, ids={"ids": 20}),
    Case("dropout", {"x": (5000,)}, {"p": 0.4, "seed": 3}),
    Case("sigmoid", {"x": (5000,)}),
    additive_case(7, 13, 19, 70, 33, return_weights=True),
    additive_case(1, 130, 19, 70, 33),
    additive_case(13, 1, 19, 70, 33),
    lstm_case(9, 13, 20, 70),
    lstm_case(9, 1, 20, 70),
    conv_case((7, 6, 130), 10, (3,), groups=2, causal=True, dilation=2),
    conv_case((9, 5, 8, 8), 7, (3, 3), padding=1),
    conv_case((1, 200, 40), 30, (3,)),
    conv_case((3, 2, 13000), 4, (3,), stride=2),
    Case("max_pool2d", {"x": (5, 3, 9, 8)}, {"kernel_size": 2}),
    Case("batch_norm", {"x": (131, 67), "weight": (67,), "bias": (67,)}, outputs=1),
    Case("batch_norm", {"x": (13, 7, 33), "weight": (7,), "bias": (7,)}, outputs=1),
    Case("silu", {"x": (5000,)}),
]


@pytest.mark.parametrize("case", BIG, ids=str)
def test_bits_do_not_depend_on_threads(case, dtype, isa, rng):
    inputs = case.inputs(rng, dtype)
    results = {}
    for n in (1, 2, 3, 5):
        with fs.threads(n), fs.runtime.force_threads():
            results[n] = case.evaluate(inputs, np.random.default_rng(1))
    for n in (2, 3, 5):
        for name in results[1]:
            assert_same_bits(results[n][name], results[1][name], f"{name} on {n} threads")


def test_bits_of_a_training_step_that_takes_its_threads_by_itself(dtype, rng):
    """A size above every threshold of work, so that no switch is needed."""
    case = lstm_case(20, 16, 64, 192)
    inputs = case.inputs(rng, dtype)
    results = []
    for n in (1, 2):
        with fs.threads(n):
            results.append(case.evaluate(inputs, np.random.default_rng(1)))
    for name in results[0]:
        assert_same_bits(results[1][name], results[0][name], name)


@pytest.mark.parametrize("n", [1, 1000, 300_000])
def test_bits_of_the_norm_do_not_depend_on_threads(n, dtype, isa, rng):
    x = rng.standard_normal(n).astype(dtype)
    found = set()
    for count in (1, 2, 3):
        with fs.threads(count), fs.runtime.force_threads():
            found.add(cpu.sum_squares(x))
    assert len(found) == 1


@pytest.mark.parametrize("B", [2, 5, 13])
@pytest.mark.parametrize("H", [1, 9, 33, 70])
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(B, H, dtype, isa, threads, rng):
    inputs = lstm_case(5, B, 7, H).inputs(rng, dtype)
    y, h, c, cache = functional.lstm_forward(**inputs)
    upstream = [rng.standard_normal(a.shape).astype(dtype) for a in (y, h, c)]
    whole = functional.lstm_backward(cache, upstream[0], dh=upstream[1], dc=upstream[2])
    for b in (0, B // 2, B - 1):
        row = slice(b, b + 1)
        alone = dict(inputs, x=inputs["x"][:, row], h_0=inputs["h_0"][row], c_0=inputs["c_0"][row])
        y1, h1, c1, cache1 = functional.lstm_forward(**alone)
        grads = functional.lstm_backward(cache1, upstream[0][:, row], dh=upstream[1][row], dc=upstream[2][row])
        for got, want in ((y1, y[:, row]), (h1, h[row]), (c1, c[row])):
            assert_same_bits(got, want, f"row {b}")
        for name, want in (("dx", whole["dx"][:, row]), ("dh_0", whole["dh_0"][row]), ("dc_0", whole["dc_0"][row])):
            assert_same_bits(grads[name], want, f"{name}, row {b}")


ROWWISE = [
    Case("linear", {"x": (13, 70), "weight": (37, 70), "bias": (37,)}),
    Case("softmax", {"x": (13, 67)}),
    Case("log_softmax", {"x": (13, 67)}),
    Case("tanh", {"x": (13, 67)}),
    Case("linear", {"x": (13, 70), "weight": (37, 70), "bias": (37,)}, {"function": "gelu"}),
    layer_norm_case((13,), 67),
    Case("rms_norm", {"x": (13, 67), "weight": (67,)}),
    conv_case((13, 4, 33), 6, (3,), groups=2, causal=True),
    conv_case((13, 2, 8, 8), 5, (3, 3), padding=1),
    conv_case((13, 2, 6000), 5, (5,), padding=1, stride=2),
    Case("max_pool2d", {"x": (13, 2, 8, 8)}, {"kernel_size": 2}),
    Case("softplus", {"x": (13, 67)}),
    Case("cross_entropy", {"logits": (13, 67), "targets": (13,)}, {"reduction": "none"}, ids={"targets": 67}),
    Case("linear_cross_entropy", {"x": (13, 20), "targets": (13,), "weight": (67, 20), "bias": (67,)}, {"reduction": "none"}, ids={"targets": 67}),
]


@pytest.mark.parametrize("case", ROWWISE, ids=str)
def test_rows_of_other_operations_have_their_own_bits(case, dtype, isa, threads, rng):
    inputs = case.inputs(rng, dtype)
    names = [name for name in inputs if name in ("x", "logits", "targets")]
    whole = case.call(inputs)[0]
    for b in (0, 6, 12):
        alone = case.call(inputs | {name: inputs[name][b : b + 1] for name in names})[0]
        assert_same_bits(alone, whole[b : b + 1], f"row {b}")


@pytest.mark.parametrize("cut", [0, 1, 3, 6])
def test_two_halves_have_the_bits_of_the_whole(cut, dtype, isa, rng):
    inputs = lstm_case(6, 3, 7, 17).inputs(rng, dtype)
    y, h, c = functional.lstm(**inputs)
    y1, h1, c1 = functional.lstm(**dict(inputs, x=inputs["x"][:cut]))
    y2, h2, c2 = functional.lstm(**dict(inputs, x=inputs["x"][cut:], h_0=h1, c_0=c1))
    assert_same_bits(np.concatenate([y1, y2]), y)
    assert_same_bits(h2, h)
    assert_same_bits(c2, c)


def test_backward_twice_from_one_cache(dtype, isa, threads, rng):
    inputs = lstm_case(5, 3, 6, 17).inputs(rng, dtype)
    y, h, c, cache = functional.lstm_forward(**inputs)
    dy, dh, dc = (rng.standard_normal(a.shape).astype(dtype) for a in (y, h, c))
    kept = [a.copy() for a in (dy, dh, dc, y)]
    first = functional.lstm_backward(cache, dy, dh=dh, dc=dc)
    again = functional.lstm_backward(cache, dy, dh=dh, dc=dc)
    for name in first:
        assert_same_bits(again[name], first[name], name)
        assert first[name] is not again[name]
    for got, want in zip((dy, dh, dc, y), kept, strict=True):
        assert_same_bits(got, want)


def test_backward_is_linear_in_its_upstream_gradients(dtype, rng):
    """dh and dc left out are zeros, and the three parts add up: none of them is dropped or counted twice."""
    inputs = lstm_case(4, 3, 5, 9).inputs(rng, dtype)
    y, h, c, cache = functional.lstm_forward(**inputs)
    dy, dh, dc = (rng.standard_normal(a.shape).astype(dtype) for a in (y, h, c))
    parts = [
        functional.lstm_backward(cache, dy),
        functional.lstm_backward(cache, np.zeros_like(dy), dh=dh),
        functional.lstm_backward(cache, np.zeros_like(dy), dc=dc),
    ]
    whole = functional.lstm_backward(cache, dy, dh=dh, dc=dc)
    for name in whole:
        assert all(np.any(part[name] != 0) for part in parts), name
        assert_close(whole[name], sum(part[name].astype(np.float64) for part in parts), dtype=dtype, terms=100, name=name)


# ---------------------------------------------------------------- ids and masks


@pytest.mark.parametrize("n", [0, 1, 7, 16, 1000])
def test_ids_find_outside(n, isa, threads, rng):
    ids = rng.integers(0, 10, n)
    assert cpu.ids_find_outside(ids, 10) == -1
    for position in {0, n // 2, n - 1} if n else ():
        for wrong in (10, -1, 2**62, -(2**63)):
            bad = ids.copy()
            bad[position] = wrong
            assert cpu.ids_find_outside(bad, 10) == reference.ids_find_outside(bad, 10) == position
            bad[-1] = -5
            assert cpu.ids_find_outside(bad, 10) == position


def test_the_mask_is_philoxs(isa, threads):
    for n in (1, 15, 1000):
        options = {"p": 0.37, "seed": 0x123456789ABCDEF0, "layer": 9, "call": 4}
        assert_same_bits(cpu.dropout(np.ones(n, np.float32), **options), reference.dropout(np.ones(n, np.float32), **options))


def test_philox_of_the_kernels_is_the_references(rng):
    for _ in range(20):
        key, counter = int(rng.integers(2**64, dtype=np.uint64)), rng.integers(2**32, size=4)
        assert list(_core.philox(key, counter.tolist())) == reference._philox(key, counter[None].astype(np.uint64))[0].tolist()
