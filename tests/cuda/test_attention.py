"""Scaled dot-product attention on a GPU against the reference in float64: every option together, what must not leak, layouts."""

import importlib

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from fastseq.backends import cpu, reference
from fastseq.backends.attention import AttentionOptions
from tests.attention_problems import arrays
from tests.tolerance import assert_close, assert_same_bits


@pytest.fixture(scope="module")
def cuda():
    return importlib.import_module("fastseq.backends.cuda")


def computed(cuda, to_gpu, inputs, keywords, dy, *, weights=False, dweights=None, need_dscores=False, out=(None, None, None)):
    """y, lse, weights, dq, dk, dv, dscores of the CUDA backend, as NumPy arrays."""
    keywords = to_gpu(keywords)
    q, k, v = to_gpu(list(inputs))
    y, lse, w = cuda.attention_forward(q, k, v, **keywords, training=True, weights=weights)
    more = {"weights": w, "dweights": to_gpu(dweights)} if weights else {}
    found = cuda.attention_backward(q, k, v, y, lse, to_gpu(dy), **keywords, **more, need_dscores=need_dscores, out=out)
    return [None if x is None else x.get() for x in (y, lse, w, *found)]


def expected(inputs, keywords, dy, *, weights=False, dweights=None, need_dscores=False):
    """The same by the reference in float64."""
    inputs = [x.astype(np.float64) for x in inputs]
    mask = keywords.get("mask")
    if mask is not None and mask.dtype != bool:
        keywords = keywords | {"mask": mask.astype(np.float64)}
    y, lse, w = reference.attention_forward(*inputs, **keywords, training=True, weights=weights)
    more = {"weights": w, "dweights": dweights.astype(np.float64)} if weights else {}
    return [y, lse, w, *reference.attention_backward(*inputs, y, lse, dy.astype(np.float64), **keywords, **more, need_dscores=need_dscores)]


NAMES = ("y", "lse", "weights", "dq", "dk", "dv", "dscores")


@st.composite
def problems(draw):
    """A call with any options together: sizes, masks with fully hidden rows among them, and the seed of its numbers."""
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 3)]))
    B, Tq, Tk = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 17, 64, 66])), draw(st.sampled_from([1, 2, 9, 64, 65, 130]))
    options = AttentionOptions(
        draw(st.sampled_from([0.0, 0.3, -1.0])),
        draw(st.booleans()),
        draw(st.sampled_from([0, 0, -3, 5, 64, 2**60, -(2**60)])),
        draw(st.sampled_from([0, 0, 1, 4, 70, 2**60])),
        draw(st.sampled_from([0.0, 0.0, 0.3, 1.0])),
        draw(st.integers(0, 2**64 - 1)),
    )
    axes = [draw(st.sampled_from([1, n])) for n in (B, kv_heads * group, Tq, Tk)]
    D, Dv = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    sizes = {"B": B, "heads": kv_heads * group, "kv_heads": kv_heads, "Tq": Tq, "Tk": Tk, "D": D, "Dv": Dv}
    kind, ragged, weights = draw(st.sampled_from(["", "bool", "float"])), draw(st.booleans()), draw(st.booleans())
    return sizes, options, kind, axes, ragged, weights, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems())
def test_options_in_combination(problem, cuda, to_gpu):
    sizes, options, kind, axes, ragged, weights, seed = problem
    rng = np.random.default_rng(seed)
    inputs = arrays(rng, np.float64, **sizes)
    mask = None if not kind else rng.random(axes) < 0.6 if kind == "bool" else np.where(rng.random(axes) < 0.3, -np.inf, rng.standard_normal(axes))
    keywords = {"mask": mask, "key_lengths": rng.integers(0, sizes["Tk"] + 1, sizes["B"]) if ragged else None, "options": options}
    shape = (sizes["B"], sizes["heads"], sizes["Tq"])
    more = {"weights": weights, "dweights": rng.standard_normal((*shape, sizes["Tk"])) if weights else None, "need_dscores": True}
    dy = rng.standard_normal((*shape, sizes["Dv"]))
    want = expected(inputs, keywords, dy, **more)
    for name, a, b in zip(NAMES, computed(cuda, to_gpu, inputs, keywords, dy, **more), want, strict=True):
        if b is None:
            assert a is None
        else:
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11, err_msg=name)


def test_masks_of_dropout_are_the_cpus(cuda, to_gpu, rng):
    inputs = arrays(rng, np.float64, heads=3, Tq=67, Tk=70)
    options = AttentionOptions(0.5, dropout=0.37, seed=0x123456789ABCDEF0, layer=9, call=4, tiles=True)
    w = cuda.attention_forward(*to_gpu(inputs), options=options, weights=True)[2].get()
    assert np.array_equal(w == 0, cpu.attention_forward(*inputs, options=options, weights=True)[2] == 0)
    assert 0.3 < np.mean(w == 0) < 0.44


LAYOUTS = {
    "heads inside": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "time first": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3),
    "columns apart": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "every other": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
}


def laid_on_gpu(cupy, x, layout):
    """x on the device with the strides that `layout` gives: of a whole array there, from which the same view is taken."""
    if layout == "heads inside":
        return cupy.asarray(np.ascontiguousarray(x.swapaxes(1, 2))).swapaxes(1, 2)
    if layout == "time first":
        return cupy.asarray(np.ascontiguousarray(x.transpose(2, 0, 1, 3))).transpose(1, 2, 0, 3)
    if layout == "columns apart":
        return cupy.asarray(np.repeat(x, 2, axis=3))[..., ::2]
    return cupy.asarray(np.repeat(x, 2, axis=2))[:, :, ::2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout, cuda, cupy, to_gpu, rng):
    inputs = arrays(rng, np.float64, Tq=9, Tk=11, D=6, Dv=6)
    dy = rng.standard_normal(inputs[0].shape)
    keywords = {"options": AttentionOptions(0.4, causal=True, offset=2)}
    want = computed(cuda, to_gpu, inputs, keywords, dy)
    q, k, v, dy = (laid_on_gpu(cupy, x, layout) for x in (*inputs, dy))
    y, lse, _ = cuda.attention_forward(q, k, v, **keywords, training=True)
    found = cuda.attention_backward(q, k, v, y, lse, dy, **keywords)
    for name, a, b in zip(NAMES, (y, lse, None, *found), want, strict=True):
        if b is not None:
            assert_same_bits(a.get(), b, name)
    if layout in ("heads inside", "time first"):
        assert y.strides == q.strides


def test_gradients_are_written_where_they_are_wanted(cuda, cupy, to_gpu, rng):
    inputs = arrays(rng, np.float64, B=2, heads=2, Tq=5, Tk=5, D=4, Dv=4)
    dy, keywords = rng.standard_normal(inputs[0].shape), {"options": AttentionOptions(0.5)}
    joint = cupy.full((2, 5, 3, 2, 4), 7.0)
    out = tuple(joint[:, :, n].swapaxes(1, 2) for n in range(3))
    want = computed(cuda, to_gpu, inputs, keywords, dy)
    computed(cuda, to_gpu, inputs, keywords, dy, out=out)
    for got, right in zip(out, want[3:6], strict=True):
        assert_same_bits(got.get(), right)


@pytest.mark.parametrize(("Tq", "Tk"), [(0, 5), (5, 0), (1, 0), (0, 0)])
def test_nothing_at_all(Tq, Tk, cuda, to_gpu, rng):
    inputs = arrays(rng, np.float32, B=1, heads=1, Tq=Tq, Tk=Tk)
    found = computed(cuda, to_gpu, inputs, {"options": AttentionOptions(0.5)}, np.ones((1, 1, Tq, 3), np.float32))
    y, _, _, *gradients, _ = found
    assert not y.any()
    assert not any(g.any() for g in gradients)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]


# ---------------------------------------------------------------- what a query does not see


@pytest.mark.parametrize("way", ["bool", "additive", "lengths", "causal", "window"])
def test_nan_in_hidden_keys_does_not_leak(way, cuda, to_gpu, rng, dtype):
    Tq, hidden = 66, np.zeros(150, bool)
    q, k, v = arrays(rng, dtype, Tq=Tq, Tk=150)
    hidden[{"lengths": slice(90, None), "causal": slice(Tq + 80, None), "window": slice(0, 40)}.get(way, slice(3, 150, 7))] = True
    additive = np.where(hidden, -np.inf, 0).astype(dtype).reshape(1, 1, 1, 150)
    mask = {"bool": np.broadcast_to(~hidden, (1, 1, Tq, 150)).copy(), "additive": additive}.get(way)
    options = AttentionOptions(0.5, way == "causal", {"causal": 80, "window": 50}.get(way, 0), 11 if way == "window" else 0)
    keywords = {"mask": mask, "key_lengths": np.array([90, 90]) if way == "lengths" else None, "options": options}
    dy = rng.standard_normal((2, 2, Tq, 3)).astype(dtype)
    clean = expected((q, k, v), keywords, dy)
    for bad in (np.nan, np.inf):
        k[:, :, hidden], v[:, :, hidden] = bad, bad
        for name, got, want in zip(NAMES, computed(cuda, to_gpu, (q, k, v), keywords, dy), clean, strict=True):
            if want is not None:
                assert_close(got, want, dtype=dtype, terms=300, name=name)


def test_a_key_hidden_from_some_queries_does_not_reach_them(cuda, to_gpu, rng, dtype):
    """Not even where the others of its tile do: a NaN stays out of y and dq of the queries before it."""
    inputs = arrays(rng, dtype, Tq=70, Tk=70)
    dy, keywords = np.ones((2, 2, 70, 3), dtype), {"options": AttentionOptions(0.5, True)}
    clean = expected(inputs, keywords, dy)
    for at in (1, 2):
        kept = inputs[at][:, :, 66].copy()
        inputs[at][:, :, 66] = np.nan
        y, _, _, dq, *_ = computed(cuda, to_gpu, inputs, keywords, dy)
        assert_close(y[:, :, :66], clean[0][:, :, :66], dtype=dtype, terms=100)
        assert_close(dq[:, :, :66], clean[3][:, :, :66], dtype=dtype, terms=200)
        assert np.isnan(y[:, :, 66:] if at == 2 else dq[:, :, 66:]).all()
        inputs[at][:, :, 66] = kept


def test_what_a_query_that_sees_nothing_holds_does_not_matter(cuda, to_gpu, rng, dtype):
    q, k, v = arrays(rng, dtype, Tq=66, Tk=70)
    dy, sees = rng.standard_normal((2, 2, 66, 3)).astype(dtype), np.ones((2, 1, 66, 70), bool)
    sees[1, :, 0] = False
    keywords = {"mask": sees, "options": AttentionOptions(0.5)}
    clean = expected((q, k, v), keywords, dy)
    assert not clean[0][1, :, 0].any()
    q[1, :, 0], dy[1, :, 0] = np.nan, np.inf
    for name, got, want in zip(NAMES, computed(cuda, to_gpu, (q, k, v), keywords, dy), clean, strict=True):
        if want is not None:
            assert_close(got, want, dtype=dtype, terms=300, name=name)


# ---------------------------------------------------------------- tensor cores

#: The relative error that rounded operands leave, of the largest number: 2^-9 of bfloat16, 2^-11 of tf32, and sums of them.
ALLOWED = {"medium": 2e-2, "high": 3e-3, "highest": 1e-5}


@pytest.fixture
def precision(request):
    """The word of the parameter, put back after the test."""
    from fastseq.backends.precision import get_precision, set_precision

    before = get_precision()
    set_precision(request.param)
    yield request.param
    set_precision(before)


CUT = {"causal": True, "offset": 5, "window": 70}
MASKED = {"mask": "bool", "dropout": 0.3}
# One of each kernel where they are emulated, for each takes a compiler's time; the others on a GPU.
TENSOR_CORES = [
    *(("medium", *case) for case in ((64, {}), (64, CUT), (64, MASKED), (80, CUT), (128, CUT), (160, CUT))),
    *(("high", *case) for case in ((64, MASKED),)),
    *(("highest", *case) for case in ((64, CUT), (128, {}))),
]
MORE = [
    *(("medium", *case) for case in ((8, MASKED), (128, MASKED), (256, {}), (256, MASKED))),
    *(("high", *case) for case in ((8, {}), (64, CUT), (80, MASKED), (128, {}), (128, MASKED), (200, CUT))),
    *(("highest", *case) for case in ((64, {}), (96, MASKED), (128, CUT), (128, MASKED), (256, {}), (256, MASKED))),
]


@pytest.mark.parametrize(("precision", "D", "options"), TENSOR_CORES, ids=str, indirect=["precision"])
def test_tensor_cores(D, options, precision, cuda, to_gpu, rng):
    check_tensor_cores(D, options, precision, cuda, to_gpu, rng)


@pytest.mark.parametrize(("precision", "D", "options"), MORE, ids=str, indirect=["precision"])
def test_tensor_cores_of_every_kind(D, options, precision, cuda, to_gpu, rng, real_gpu):
    check_tensor_cores(D, options, precision, cuda, to_gpu, rng)


def check_tensor_cores(D, options, precision, cuda, to_gpu, rng):
    inputs = arrays(rng, np.float32, B=2, heads=2, kv_heads=1, Tq=130, Tk=150, D=D, Dv=D - 3)
    options = dict(options)
    mask = rng.random((2, 1, 130, 150)) < 0.7 if options.pop("mask", "") else None
    keywords = {"mask": mask, "key_lengths": np.array([150, 67]), "options": AttentionOptions(D**-0.5, **options, seed=5)}
    dy = rng.standard_normal((2, 2, 130, D - 3)).astype(np.float32)
    more = {"need_dscores": mask is not None or (precision, D) == ("medium", 64)}
    want = expected(inputs, keywords, dy, **more)
    for name, a, b in zip(NAMES, computed(cuda, to_gpu, inputs, keywords, dy, **more), want, strict=True):
        if b is not None:
            np.testing.assert_allclose(a, b, rtol=0, atol=ALLOWED[precision] * np.abs(b[np.isfinite(b)]).max(), err_msg=name)


# ---------------------------------------------------------------- few queries


@pytest.mark.parametrize(("D", "Tq", "kv_heads"), [(64, 1, 4), (20, 1, 2), (7, 3, 2), (130, 2, 1)], ids=str)
@pytest.mark.parametrize("kind", ["", "bool", "float"])
def test_few_queries(D, Tq, kv_heads, kind, dtype, cuda, to_gpu, rng):
    q, k, v = arrays(rng, dtype, B=2, heads=4, kv_heads=kv_heads, Tq=Tq, Tk=700, D=D, Dv=D + D % 2)
    mask = None if not kind else rng.random((2, 4, Tq, 700)) < 0.6 if kind == "bool" else rng.standard_normal((1, 4, 1, 700)).astype(dtype)
    keywords = {"mask": mask, "key_lengths": np.array([600, 0]), "options": AttentionOptions(D**-0.5, True, 590, 560)}
    k[:, :, 600:], v[:, :, 600:] = np.nan, np.inf
    y, lse, _ = cuda.attention_forward(*to_gpu([q, k, v]), **to_gpu(keywords), training=True)
    k[:, :, 600:], v[:, :, 600:] = 0, 0
    mask = keywords["mask"]
    keywords |= {"mask": mask.astype(np.float64) if kind == "float" else mask}
    want = reference.attention_forward(*(x.astype(np.float64) for x in (q, k, v)), **keywords, training=True)
    assert_close(y.get(), want[0], dtype=dtype, terms=700 + D, name="y")
    assert_close(lse.get(), want[1], dtype=dtype, terms=700 + D, name="lse")
