"""Layer norm and RMS norm beyond the table of cases: outputs that nobody uses, sums over many rows, NaN, bad input, the modules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastseq as fs
from fastseq import functional as F
from fastseq.backends import cpu, reference
from tests.conftest import WAYS, using
from tests.tolerance import assert_close, assert_same_bits


def arrays(rng, dtype, *shapes):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def leaves(*values):
    return [fs.Tensor(v.copy(), requires_grad=True) for v in values]


@pytest.mark.parametrize("used", ["y", "s", "both"])
def test_outputs_that_nobody_uses(used, dtype, isa, threads, rng):
    x, residual, weight, bias, dy, ds = arrays(rng, dtype, (5, 17), (5, 17), 17, 17, (5, 17), (5, 17))
    fused, plain = leaves(x, residual, weight, bias), leaves(x, residual, weight, bias)
    y, s = F.layer_norm(fused[0], *fused[2:], residual=fused[1])
    want_s = plain[0] + plain[1]
    want_y = F.layer_norm(want_s, *plain[2:])
    assert_same_bits(s.data, want_s.data)
    assert_same_bits(y.data, want_y.data)
    for a, b in ((y, s), (want_y, want_s)):
        loss = {"y": (a * dy).sum, "s": (b * ds).sum, "both": ((a * dy).sum() + (b * ds).sum()).sum}[used]()
        loss.backward()
    for got, want in zip(fused, plain, strict=True):
        assert (got.grad is None) == (want.grad is None)
        if got.grad is not None:
            assert_close(got.grad, want.grad.astype(np.float64), dtype=dtype, terms=4)
    assert not np.shares_memory(fused[0].grad, fused[1].grad)


def test_one_tensor_as_both_summands(rng):
    x, dy, ds = arrays(rng, np.float64, (3, 9), (3, 9), (3, 9))
    (once,), (twice,) = leaves(x), leaves(x)
    y, s = F.layer_norm(once, residual=once)
    want_s = 2.0 * twice
    want_y = F.layer_norm(want_s)
    for a, b in ((y, s), (want_y, want_s)):
        ((a * dy).sum() + (b * ds).sum()).backward()
    np.testing.assert_allclose(once.grad, twice.grad, rtol=1e-13)


@pytest.mark.parametrize("wanted", ["x", "residual", "weight", "bias"])
def test_a_gradient_for_one_input_only(wanted, rng):
    names = ("x", "weight", "bias", "residual")
    values = dict(zip(names, arrays(rng, np.float64, (3, 9), 9, 9, (3, 9)), strict=True))
    dy = rng.standard_normal((3, 9))
    grads = []
    for need in (names, (wanted,)):
        tensors = {name: fs.Tensor(v, requires_grad=name in need) for name, v in values.items()}
        (F.layer_norm(**tensors)[0] * dy).sum().backward()
        assert [name for name in names if tensors[name].grad is not None] == [name for name in names if name in need]
        grads.append(tensors[wanted].grad)
    assert_same_bits(grads[1], grads[0])


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("M", [1, 7, 8, 9, 256, 257, 1000])
def test_sums_over_any_number_of_rows(M, centred, dtype, rng):
    s, dy, ds = arrays(rng, dtype, (M, 19), (M, 19), (M, 19))
    weight = rng.standard_normal(19).astype(dtype)
    wide = [a.astype(np.float64) for a in (s, dy, ds, weight)]
    *_, mean, rstd = reference.layer_norm_forward(wide[0], None, wide[3], None, eps=1e-5, centred=centred)
    want = reference.layer_norm_backward(wide[1], wide[2], wide[0], mean, rstd, wide[3])
    first = None
    for isa, threads in WAYS:
        with using(isa, threads):
            *_, mean, rstd = cpu.layer_norm_forward(s, None, weight, None, eps=1e-5, centred=centred)
            got = cpu.layer_norm_backward(dy, ds, s, mean, rstd, weight)
            for name, a, b in zip(("dx", "dweight", "dbias"), got, want, strict=True):
                assert_close(a, b, dtype=dtype, terms=M + 40, name=f"{name} ({isa}, {threads} threads)")
            first = got if threads == 1 else first
            for a, b in zip(got, first, strict=True):
                assert_same_bits(a, b)


@given(st.data())
def test_options_in_combination(data):
    """Values and gradients of any choice of arrays, against the reference."""
    leading = tuple(data.draw(st.lists(st.integers(0, 5), max_size=2)))
    N = data.draw(st.sampled_from([8, 15, 16, 17, 40, 130]))
    centred, has = data.draw(st.booleans()), data.draw(st.sets(st.sampled_from(["residual", "weight", "bias", "ds"])))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, residual, dy, ds = (rng.standard_normal((*leading, N)) for _ in range(4))
    weight, bias = (rng.standard_normal(N) if name in has else None for name in ("weight", "bias"))
    results = []
    for backend in (cpu, reference):
        forward = backend.layer_norm_forward(x, residual if "residual" in has else None, weight, bias, eps=1e-3, centred=centred)
        _, s, mean, rstd = forward
        results.append((*forward, *backend.layer_norm_backward(dy, ds if "ds" in has else None, s, mean, rstd, weight)))
    for got, want in zip(*results, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert_close(got, want, terms=8 * N + dy.size // N)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row(value, dtype, isa, rng):
    x, weight, bias = arrays(rng, dtype, (5, 19), 19, 19)
    spoiled = x.copy()
    spoiled[2, 3] = value
    for op in (lambda v: F.layer_norm(v, weight, bias), lambda v: F.rms_norm(v, weight)):
        clean, dirty = op(x), op(spoiled)
        assert np.isnan(dirty[2, 3])
        assert_same_bits(dirty[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_a_row_of_equal_numbers_is_the_bias(dtype, isa, rng):
    bias = rng.standard_normal(19).astype(dtype)
    x = np.array([[0.0], [3.0], [-1024.0]], dtype) * np.ones(19, dtype)
    assert_same_bits(F.layer_norm(x, np.ones(19, dtype), bias), np.broadcast_to(bias, x.shape).copy())
    assert not F.layer_norm(x[:, :1]).any()
    assert not F.rms_norm(np.zeros((2, 5), dtype)).any()


def test_a_large_mean_costs_no_digits_of_the_variance(dtype, isa, rng):
    x = (rng.standard_normal((7, 67)) + 1e3).astype(dtype)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(F.layer_norm(x), want, atol=3e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("given", [(), ("weight",), ("weight", "bias"), ("residual",), ("weight", "bias", "residual")], ids=str)
def test_the_explicit_pair_of_layer_norm(given, dtype, rng):
    values = dict(zip(("x", "weight", "bias", "residual"), arrays(rng, dtype, (4, 17), 17, 17, (4, 17)), strict=True))
    values = {name: a for name, a in values.items() if name in ("x", *given)}
    dy, ds = arrays(rng, dtype, (4, 17), (4, 17))
    tensors = {name: fs.Tensor(a, requires_grad=True) for name, a in values.items()}
    y, *s = recorded if type(recorded := F.layer_norm(**tensors)) is tuple else (recorded,)
    ((y * dy).sum() + sum((a * ds).sum() for a in s)).backward()
    *outputs, cache = F.layer_norm_forward(**values)
    for got, want in zip(outputs, (y, *s), strict=True):
        assert_same_bits(got, want.data)
    first, again = (F.layer_norm_backward(cache, dy, ds=ds if s else None) for _ in range(2))
    assert set(first) == {"dx", "dweight", "dbias"} | {f"d{name}" for name in given}
    for name, grad in first.items():
        assert (grad is None) == (name[1:] not in values)
        if grad is not None:
            assert_same_bits(grad, tensors[name[1:]].grad)
            assert_same_bits(again[name], grad)
    assert not s or not np.shares_memory(first["dx"], first["dresidual"])


@pytest.mark.parametrize("weighted", [True, False])
def test_the_explicit_pair_of_rms_norm(weighted, dtype, rng):
    x, weight, dy = arrays(rng, dtype, (2, 3, 17), 17, (2, 3, 17))
    inputs = leaves(x, weight) if weighted else leaves(x)
    y = F.rms_norm(*inputs)
    y.backward(dy)
    got, cache = F.rms_norm_forward(*[t.data for t in inputs])
    assert_same_bits(got, y.data)
    for found in (F.rms_norm_backward(cache, dy) for _ in range(2)):
        assert_same_bits(found["dx"], inputs[0].grad)
        assert (found["dweight"] is None) == (not weighted)
        if weighted:
            assert_same_bits(found["dweight"], inputs[1].grad)


def test_bad_input_is_refused_in_a_sentence():
    x, n = np.ones((2, 3)), np.ones(3)
    for call, error, text in (
        (lambda: F.layer_norm(np.float64(1.0)), ValueError, "x: expected at least one axis, got ()"),
        (lambda: F.layer_norm([1.0]), TypeError, "x: expected an array or a Tensor, got list"),
        (lambda: F.layer_norm(np.ones(3, int)), TypeError, "x: expected float32 or float64, got int64"),
        (lambda: F.layer_norm(x, np.ones(2)), ValueError, "weight: expected shape (3,), got (2,)"),
        (lambda: F.layer_norm(x, n, np.ones((1, 3))), ValueError, "bias: expected shape (3,), got (1, 3)"),
        (lambda: F.layer_norm(x, n.astype(np.float32)), TypeError, "weight: expected float64, got float32"),
        (lambda: F.layer_norm(x, residual=n), ValueError, "residual: expected shape (2, 3), got (3,)"),
        (lambda: F.layer_norm(x, eps=-1.0), ValueError, "eps: expected a number of at least 0, got -1.0"),
        (lambda: F.layer_norm(x, eps="1"), TypeError, "eps: expected a number, got str"),
        (lambda: F.rms_norm(x, np.ones(4)), ValueError, "weight: expected shape (3,), got (4,)"),
        (lambda: F.rms_norm(x, eps=np.nan), ValueError, "eps: expected a number of at least 0, got nan"),
        (lambda: F.layer_norm_forward(x, bias=fs.Tensor(n)), TypeError, "bias: expected an array, got a Tensor; layer_norm records"),
        (lambda: F.layer_norm_backward(1, x), TypeError, "cache: expected what layer_norm_forward returned, got int"),
        (lambda: F.rms_norm_backward(F.layer_norm_forward(x)[1], x), TypeError,
         "cache: expected what rms_norm_forward returned, got what layer_norm_forward did"),
        (lambda: F.layer_norm_backward(F.layer_norm_forward(x)[1], n), ValueError, "dy: expected shape (2, 3), got (3,)"),
        (lambda: F.layer_norm_backward(F.layer_norm_forward(x)[1], fs.Tensor(x)), TypeError, "dy: expected an array, got a Tensor"),
        (lambda: F.layer_norm_backward(F.layer_norm_forward(x)[1], x, ds=x), TypeError, "ds: expected None without a residual, got ndarray"),
        (lambda: fs.nn.LayerNorm((2, 3)), ValueError, "normalized_shape: expected one size, that of the last axis, got (2, 3)"),
        (lambda: fs.nn.LayerNorm(0), ValueError, "normalized_shape: expected at least 1, got 0"),
        (lambda: fs.nn.LayerNorm(3, eps=-1), ValueError, "eps: expected a number of at least 0, got -1"),
        (lambda: fs.nn.LayerNorm(4)(x), ValueError, "x: expected shape (..., 4), got (2, 3)"),
        (lambda: fs.nn.LayerNorm(3)(x, np.ones((2, 4))), ValueError, "residual: expected shape (..., 3), got (2, 4)"),
        (lambda: fs.nn.RMSNorm("3"), TypeError, "normalized_shape: expected an integer, got str"),
        (lambda: fs.nn.GELU("exact"), ValueError, "approximate: expected 'none' or 'tanh', got 'exact'"),
        (lambda: F.gelu(x, "erf"), ValueError, "approximate: expected 'none' or 'tanh', got 'erf'"),
        (lambda: F.linear(x, x, function="exp"), ValueError, "function: expected 'identity', 'tanh', 'sigmoid', 'relu' or 'gelu', got 'exp'"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == text


# ---------------------------------------------------------------- modules


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"bias": False}, {"elementwise_affine": False}], ids=str)
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_modules_are_pytorchs(name, options, dtype, rng):
    torch = pytest.importorskip("torch")
    if name == "RMSNorm" and "bias" in options:
        pytest.skip("RMSNorm has no bias")
    theirs = getattr(torch.nn, name)(19, **options, dtype=torch.float32 if dtype == np.float32 else torch.float64)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.from_numpy(rng.standard_normal(19)))
    ours = getattr(fs.nn, name)((19,), **options, dtype=dtype)
    ours.load_state_dict({key: p.numpy() for key, p in theirs.state_dict().items()})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    if name == "RMSNorm" and "eps" not in options:
        theirs.eps = ours.eps  # theirs follows x
    x, dy = arrays(rng, dtype, (4, 3, 19), (4, 3, 19))
    xt = torch.tensor(x.astype(np.float64), requires_grad=True)
    want = theirs.double()(xt)
    want.backward(torch.from_numpy(dy.astype(np.float64)))
    (mine,) = leaves(x)
    y = ours(mine)
    y.backward(dy)
    assert_close(y.data, want.detach().numpy(), dtype=dtype, terms=76)
    assert_close(mine.grad, xt.grad.numpy(), dtype=dtype, terms=76)
    for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(p.grad, q.grad.numpy(), dtype=dtype, terms=90, name=key)
    assert_same_bits(ours(x), y.data)


def test_a_module_with_a_residual(rng):
    norm = fs.nn.LayerNorm(9, dtype=np.float64)
    x, residual = arrays(rng, np.float64, (3, 9), (3, 9))
    y, s = norm(x, residual)
    assert isinstance(y, np.ndarray)
    assert_same_bits(s, x + residual)
    assert_same_bits(y, norm(x + residual))
    recorded, total = norm(x, fs.Tensor(residual))
    assert recorded.requires_grad
    assert_same_bits(total.data, s)
    assert repr(norm) == "LayerNorm((9,), eps=1e-05, elementwise_affine=True)"


# ---------------------------------------------------------------- GELU


def test_gelus_with_tanh_is_its_formula(dtype, isa, rng):
    """Relative to its own size far into the tail: what tanh + 1 would lose, sigmoid keeps, up to the rounding of its argument."""
    x = np.concatenate([np.linspace(-6, 6, 4001), rng.standard_normal(500)]).astype(dtype)
    wide = x.astype(np.longdouble)
    inner = 2 * np.sqrt(2 / np.longdouble(np.pi)) * (wide + np.longdouble(0.044715) * wide**3)
    want = wide / (1 + np.exp(-inner))
    assert np.all(np.abs(F.gelu(x, "tanh") - want) <= np.finfo(dtype).eps * (6 + 2 * np.abs(inner)) * np.abs(want))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelus_derivative_far_out(approximate, dtype, isa):
    x = fs.Tensor(np.array([-np.inf, -1e30, -200, -50, 50, 200, 1e30, np.inf, np.nan], dtype), requires_grad=True)
    y = F.gelu(x, approximate)
    y.backward(np.ones(9, dtype))
    np.testing.assert_array_equal(y.data, np.array([0, 0, 0, 0, 50, 200, 1e30, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(x.grad, [0, 0, 0, 0, 1, 1, 1, 1, np.nan])


def test_linear_with_gelu_keeps_its_bits_when_recorded(dtype, isa, threads, rng):
    x, weight, bias = arrays(rng, dtype, (13, 21), (37, 21), 37)
    plain = F.linear(x, weight, bias, function="gelu")
    assert_same_bits(F.linear(*leaves(x, weight, bias), function="gelu").data, plain)
    assert_same_bits(F.gelu(F.linear(x, weight, bias)), plain)
