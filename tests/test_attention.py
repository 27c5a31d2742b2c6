"""Scaled dot-product attention: what its cases in the table of cases.py do not say - masks, bits, what must not leak, layouts, errors."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import fastseq as fs
from fastseq import functional
from fastseq.backends import cpu, reference
from fastseq.backends.attention import AttentionOptions
from tests.attention_problems import arrays, attend, gradients, plain
from tests.cases import computed_by
from tests.conftest import WAYS, using
from tests.tolerance import assert_close, assert_same_bits

# ---------------------------------------------------------------- values


def test_the_equation(dtype, isa, threads, rng):
    q, k, v = arrays(rng, dtype, Tq=70, Tk=130, D=20, Dv=9)
    assert_close(attend(q, k, v), plain(q, k, v), dtype=dtype, terms=150)
    i, j = np.arange(70)[:, None], np.arange(130)
    for options, seen in (
        ({"is_causal": True}, j <= i),
        ({"is_causal": True, "causal_offset": 60}, j <= i + 60),
        ({"is_causal": True, "window": 5, "causal_offset": 3}, (j <= i + 3) & (j > i - 2)),
        ({"window": 5}, abs(i - j) < 5),
        ({"key_lengths": [130, 3]}, j < np.array([130, 3])[:, None, None, None]),
    ):
        assert_close(attend(q, k, v, **options), plain(q, k, v, seen), dtype=dtype, terms=150, name=str(options))


@st.composite
def problems(draw):
    """A call of the backends with any options together: sizes, masks with fully hidden rows among them, and the seed of its numbers."""
    kv_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (2, 2)]))
    B, Tq, Tk = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 17, 64, 66])), draw(st.sampled_from([1, 2, 9, 64, 65, 130]))
    options = AttentionOptions(
        draw(st.sampled_from([0.0, 0.3, -1.0])),
        draw(st.booleans()),
        draw(st.sampled_from([0, 0, -3, 5, 64])),
        draw(st.sampled_from([0, 0, 1, 4, 70])),
        draw(st.sampled_from([0.0, 0.0, 0.3])),
        draw(st.integers(0, 2**64 - 1)),
    )
    axes = [draw(st.sampled_from([1, n])) for n in (B, kv_heads * group, Tq, Tk)]
    sizes = {"B": B, "heads": kv_heads * group, "kv_heads": kv_heads, "Tq": Tq, "Tk": Tk, "D": draw(st.integers(1, 20)), "Dv": draw(st.integers(1, 20))}
    return sizes, options, draw(st.sampled_from(["", "bool", "float"])), axes, draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2**32 - 1))


@given(problems())
def test_options_in_combination(problem):
    sizes, options, kind, axes, ragged, weights, seed = problem
    rng = np.random.default_rng(seed)
    inputs = arrays(rng, np.float64, **sizes)
    mask = None if not kind else rng.random(axes) < 0.6 if kind == "bool" else np.where(rng.random(axes) < 0.3, -np.inf, rng.standard_normal(axes))
    keywords = {"mask": mask, "key_lengths": rng.integers(0, sizes["Tk"] + 1, sizes["B"]) if ragged else None, "options": options}
    want = reference.attention_forward(*inputs, **keywords, training=True, weights=weights)
    dy, dweights = rng.standard_normal(want[0].shape), rng.standard_normal(want[2].shape) if weights else None
    more = {"weights": want[2], "dweights": dweights, "need_dscores": True}
    want_gradients = reference.attention_backward(*inputs, want[0], want[1], dy, **keywords, **more)
    isa, threads = WAYS[seed % len(WAYS)]
    with using(isa, threads):
        got = cpu.attention_forward(*inputs, **keywords, training=True, weights=weights)
        got_gradients = cpu.attention_backward(*inputs, got[0], got[1], dy, **keywords, **more)
    for name, a, b in zip(("y", "lse", "weights", "dq", "dk", "dv", "dscores"), got + got_gradients, want + want_gradients, strict=True):
        if b is None:
            assert a is None
        else:  # gradients cancel to nothing where one key is seen: their terms are of the size of one
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11, err_msg=name)


def test_large_scores(dtype, isa, rng):
    """Scores of +-1e4 pick the largest; a score of -inf is hidden; nothing overflows."""
    q, k, v = arrays(rng, dtype, Tq=3, Tk=5)
    for mask in (np.array([-1e4, 0, 1e4, -np.inf, 9e3]), np.array([-1e4, -1e4, -1e4, -np.inf, -np.inf])):
        y = attend(q, k, v, mask.astype(dtype))
        seen = np.isfinite(mask)
        below = np.where(seen, mask - mask[seen].max(), 0)  # the same weights, and exp does not overflow in the equation
        assert_close(y, plain(q, k, v, seen, mask=below), dtype=dtype, terms=20_000)  # a score of 1e4 keeps so much less of its digits
    for grad in gradients((q, k, v), np.ones_like(y), attn_mask=mask.astype(dtype)):
        assert np.isfinite(grad).all()


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"window": 40}, {"key_lengths": [130]}, {"dropout_p": 0.3, "seed": 3}], ids=str)
@pytest.mark.parametrize("sizes", [{"Tq": 200, "Tk": 200, "heads": 1}, {"Tq": 70, "Tk": 200, "heads": 3}, {"Tq": 1, "Tk": 1200, "heads": 3}, {"Tq": 70, "Tk": 200, "heads": 4, "kv_heads": 2}], ids=str)  # fmt: skip
def test_bits_do_not_depend_on_threads(options, sizes, dtype, isa, rng):
    """One head among two or three workers goes by blocks, three heads among one or three by heads: the same bits."""
    inputs = arrays(rng, dtype, B=1, D=20, Dv=9, **sizes)
    dy = rng.standard_normal((1, sizes["heads"], sizes["Tq"], 9)).astype(dtype)
    options = dict(options, enable_gqa="kv_heads" in sizes)
    options |= {"key_lengths": [sizes["Tk"] - 70]} if "key_lengths" in options else {}
    results = []
    for count in (1, 2, 3, 7):
        with fs.threads(count), fs.runtime.force_threads():
            results.append(gradients(inputs, dy, **options))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize("Tq", [1, 70])
def test_a_row_has_its_own_bits(Tq, dtype, isa, threads, rng):
    """Whatever stands beside it in the batch, and whatever comes after its end."""
    q, k, v = arrays(rng, dtype, B=3, heads=2, Tq=Tq, Tk=130, D=20)
    dy = rng.standard_normal((3, 2, Tq, 3)).astype(dtype)
    whole = gradients((q, k, v), dy, key_lengths=[130, 71, 5])
    for b, n in ((1, 71), (2, 5)):
        alone = gradients([x[b : b + 1] for x in (q, k[:, :, :n], v[:, :, :n])], dy[b : b + 1])
        for got, want in zip(alone, whole, strict=True):
            assert_same_bits(got, want[b : b + 1, :, : got.shape[2]])
        assert not whole[2][b, :, n:].any()
        assert not whole[3][b, :, n:].any()


def test_a_query_has_its_own_bits(dtype, isa, threads, rng):
    """Whatever queries stand beside it, and whatever keys come later."""
    q, k, v = arrays(rng, dtype, Tq=130, Tk=130, D=20)
    whole = attend(q, k, v, is_causal=True)
    for i, n in ((0, 2), (63, 2), (64, 66), (100, 30)):
        part = attend(q[:, :, i : i + n], k[:, :, : i + n], v[:, :, : i + n], is_causal=True, causal_offset=i)
        assert_same_bits(part, whole[:, :, i : i + n])


def test_one_query_after_the_other_is_the_whole(dtype, isa, rng):
    q, k, v = arrays(rng, dtype, Tq=70, Tk=70, D=20, heads=4, kv_heads=2)
    whole = attend(q, k, v, is_causal=True, enable_gqa=True)
    for i in range(70):
        one = attend(q[:, :, i : i + 1], k, v, is_causal=True, causal_offset=i, enable_gqa=True)
        assert_close(one[:, :, 0], whole[:, :, i], dtype=dtype, terms=90)


def test_masks_of_dropout_are_the_references(isa, threads, rng):
    q, k, v = arrays(rng, np.float64, heads=3, Tq=67, Tk=70)
    options = {"dropout_p": 0.37, "seed": 0x123456789ABCDEF0, "layer": 9, "call": 4, "return_weights": True}
    _, w = attend(q, k, v, **options)
    with computed_by(reference):
        _, want = attend(q, k, v, **options)
    assert np.array_equal(w == 0, want == 0)
    assert 0.3 < np.mean(w == 0) < 0.44
    assert not np.array_equal(w == 0, attend(q, k, v, **(options | {"call": 5}))[1] == 0)


def test_dropout_draws_its_seed(rng):
    q, k, v = arrays(rng, np.float32, Tq=20, Tk=20)
    assert_same_bits(attend(q, k, v, dropout_p=0.5, rng=1), attend(q, k, v, dropout_p=0.5, rng=1))
    assert (attend(q, k, v, dropout_p=0.5, rng=1) != attend(q, k, v, dropout_p=0.5, rng=2)).any()
    fs.manual_seed(3)
    one, two = attend(q, k, v, dropout_p=0.5), attend(q, k, v, dropout_p=0.5)
    assert (one != two).any()
    fs.manual_seed(3)
    assert_same_bits(attend(q, k, v, dropout_p=0.5), one)


# ---------------------------------------------------------------- arrays


def test_any_layout(dtype, isa, rng):
    q, k, v = arrays(rng, dtype, Tq=66, Tk=70, D=16, Dv=16)
    dy = rng.standard_normal(q.shape).astype(dtype)
    want = gradients((q, k, v), dy)

    def unaligned(x):
        memory = np.empty(x.nbytes + 1, np.uint8)[1:]
        y = memory.view(x.dtype).reshape(x.shape)
        y[...] = x
        return y

    layouts = {
        "heads inside": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
        "time first": lambda x: np.ascontiguousarray(x.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3),
        "Fortran": np.asfortranarray,
        "backwards": lambda x: np.ascontiguousarray(x[:, ::-1, ::-1, ::-1])[:, ::-1, ::-1, ::-1],
        "every other": lambda x: np.repeat(x, 2, axis=2)[:, :, ::2],
        "unaligned": unaligned,
        "columns apart": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    }
    for name, layout in layouts.items():
        laid = [layout(x) for x in (q, k, v)]
        for x in laid:
            x.flags.writeable = False
        for got, right in zip(gradients(laid, layout(dy)), want, strict=True):
            assert_same_bits(got, right, name)
        for x, original in zip(laid, (q, k, v), strict=True):
            assert_same_bits(x, original, name)
    for name in ("heads inside", "time first"):
        laid = layouts[name](q)
        assert attend(laid, k, v).strides == laid.strides, name
    assert attend(q, k, v).flags.c_contiguous


def test_inputs_and_masks_stay_as_they_are(dtype, isa, rng):
    q, k, v = arrays(rng, dtype)
    mask = rng.random((5, 7)) < 0.7
    kept = [x.copy() for x in (q, k, v, mask)]
    gradients((q, k, v), np.ones((2, 2, 5, 3), dtype), attn_mask=mask)
    for x, before in zip((q, k, v, mask), kept, strict=True):
        assert_same_bits(x, before)


def test_masks_of_any_strides(dtype, isa, rng):
    q, k, v = arrays(rng, dtype, Tq=66, Tk=70)
    mask = rng.random((2, 2, 66, 70)) < 0.6
    want = attend(q, k, v, mask)
    for other in (np.asfortranarray(mask), np.repeat(mask, 2, axis=3)[..., ::2], np.ascontiguousarray(mask[..., ::-1, ::-1])[..., ::-1, ::-1]):
        assert_same_bits(attend(q, k, v, other), want)
    additive = np.where(mask, 0, -np.inf).astype(dtype)
    for other in (additive, np.asfortranarray(additive), np.repeat(additive, 2, axis=3)[..., ::2]):
        assert_same_bits(attend(q, k, v, other), want)


def test_leading_axes(dtype, rng):
    q, k, v = arrays(rng, dtype, B=6)
    want = attend(q, k, v, key_lengths=[7, 6, 5, 4, 3, 0])
    folded = [x.reshape(2, 3, *x.shape[1:]) for x in (q, k, v)]
    assert_same_bits(attend(*folded, key_lengths=[[7, 6, 5], [4, 3, 0]]).reshape(want.shape), want)
    assert_same_bits(attend(q[1], k[1], v[1], key_lengths=6), want[1])
    assert_same_bits(attend(q[1, 0], k[1, 0], v[1, 0], key_lengths=np.int32(6)), want[1, 0])
    for mask in (rng.random((3, 1, 5, 7)) < 0.7, rng.random((2, 3, 2, 1, 7)) < 0.7, rng.random((1, 1, 2, 5, 7)) < 0.7):
        wide = np.broadcast_to(mask, (2, 3, 2, 5, 7)).reshape(6, 2, 5, 7)
        assert_same_bits(attend(*folded, mask).reshape(want.shape), attend(q, k, v, wide))


def test_self_attention_is_attention(dtype, isa, threads, rng):
    x = rng.standard_normal((3, 70, 36)).astype(dtype)
    parts = [x[..., n * 12 : (n + 1) * 12].reshape(3, 70, 2, 6).swapaxes(1, 2) for n in range(3)]
    dy = rng.standard_normal((3, 70, 12)).astype(dtype)
    want = gradients(parts, dy.reshape(3, 70, 2, 6).swapaxes(1, 2), is_causal=True, key_lengths=[70, 5, 64])
    together = [a.swapaxes(1, 2).reshape(3, 70, 12) for a in want]
    for batch_first, turn in ((True, lambda a: a), (False, lambda a: a.swapaxes(0, 1))):
        t = fs.Tensor(turn(x), requires_grad=True)
        y = functional.self_attention(t, 2, is_causal=True, key_lengths=[70, 5, 64], batch_first=batch_first)
        y.backward(turn(dy))
        assert_same_bits(turn(y.data), together[0])
        assert_same_bits(turn(t.grad), np.concatenate(together[1:], axis=-1))


def test_explicit_pair(dtype, rng):
    q, k, v = arrays(rng, dtype)
    y, cache = functional.scaled_dot_product_attention_forward(q, k, v, is_causal=True)
    dy = rng.standard_normal(y.shape).astype(dtype)
    want = gradients((q, k, v), dy, is_causal=True)
    first, again = (functional.scaled_dot_product_attention_backward(cache, dy) for _ in range(2))
    for name, right in zip(("dq", "dk", "dv"), want[1:], strict=True):
        assert_same_bits(first[name], right)
        assert_same_bits(again[name], right)
        assert first[name] is not again[name]
    assert_same_bits(y, want[0])


@pytest.mark.parametrize("shape", [(5, 7), (2, 1, 1, 7), (1,)], ids=str)
def test_explicit_pairs_have_the_gradient_of_a_mask_of_floats(shape, dtype, rng):
    inputs = [*arrays(rng, dtype), rng.standard_normal(shape).astype(dtype)]
    y, cache = functional.scaled_dot_product_attention_forward(*inputs)
    dy = rng.standard_normal(y.shape).astype(dtype)
    for name, want in zip(("dq", "dk", "dv", "dattn_mask"), gradients(inputs, dy)[1:], strict=True):
        assert_same_bits(functional.scaled_dot_product_attention_backward(cache, dy)[name], want)
    _, cache = functional.scaled_dot_product_attention_forward(*inputs[:3], inputs[3] > 0)
    assert sorted(functional.scaled_dot_product_attention_backward(cache, dy)) == ["dk", "dq", "dv"]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("masked", [True, False])
def test_explicit_pair_of_self_attention(masked, heads, batch_first, dtype, rng):
    qkv, dy = rng.standard_normal((3, 3, 12)).astype(dtype), rng.standard_normal((3, 3, 4)).astype(dtype)
    mask = rng.standard_normal((3, 3)).astype(dtype) if masked else None
    options = {"batch_first": batch_first, "key_lengths": [3, 1, 2]}
    tensors = fs.Tensor(qkv, requires_grad=True), None if mask is None else fs.Tensor(mask, requires_grad=True)
    recorded = functional.self_attention(tensors[0], heads, tensors[1], **options)
    recorded.backward(dy)
    y, cache = functional.self_attention_forward(qkv, heads, mask, **options)
    assert_same_bits(y, recorded.data)
    for _ in range(2):
        found = functional.self_attention_backward(cache, dy)
        assert sorted(found) == (["dattn_mask", "dqkv"] if masked else ["dqkv"])
        assert_same_bits(found["dqkv"], tensors[0].grad)
        if masked:
            assert_same_bits(found["dattn_mask"], tensors[1].grad)


def test_gradients_through_the_weights_alone(rng):
    q, k, v = (fs.Tensor(x, requires_grad=True) for x in arrays(rng, np.float64, Tk=9))
    assert fs.gradcheck(lambda q, k, v: attend(q, k, v, return_weights=True)[1] ** 2, [q, k, v])
    _, w = attend(q, k, v, return_weights=True)
    (w * w).sum().backward()
    assert not v.grad.any()
    assert q.grad.any()


def test_arrays_in_arrays_out(rng):
    q, k, v = arrays(rng, np.float32)
    assert type(attend(q, k, v)) is np.ndarray
    assert not attend(fs.Tensor(q), k, v).requires_grad
    assert attend(q, k, fs.Tensor(v, requires_grad=True)).requires_grad
    with fs.no_grad():
        assert not attend(q, k, fs.Tensor(v, requires_grad=True)).requires_grad


# ---------------------------------------------------------------- bad input

_Q, _K = np.zeros((2, 4, 5, 6)), np.zeros((2, 4, 7, 6))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attend(np.zeros(3), _K, _K), ValueError, r"q: expected shape \(\.\.\., heads, Tq, D\), got \(3,\)"),
        (lambda: attend(_Q, _K[..., :5], _K), ValueError, r"k: expected shape \(2, 4, Tk, 6\) to fit q of shape .*got \(2, 4, 7, 5\)"),
        (lambda: attend(_Q, _K[:1], _K), ValueError, r"k: expected shape \(2, 4, Tk, 6\)"),
        (lambda: attend(_Q, _K, _K[:, :, :3]), ValueError, r"v: expected shape \(2, 4, 7, Dv\) to fit k of shape .*got \(2, 4, 3, 6\)"),
        (lambda: attend(_Q, _K[:, :2], _K[:, :2]), ValueError, "k: expected 4 heads, as q has, got 2; enable_gqa=True"),
        (lambda: attend(_Q, _K[:, :3], _K[:, :3], enable_gqa=True), ValueError, "k: expected a number of heads that divides q's 4, got 3"),
        (lambda: attend(_Q, _K.astype(np.float32), _K), TypeError, "k: expected float64, got float32"),
        (lambda: attend(_Q.astype(int), _K, _K), TypeError, "q: expected float32 or float64, got int64"),
        (lambda: attend(_Q, _K, _K, np.zeros((5, 7), int)), TypeError, r"attn_mask: expected bool \(True = may attend\) or float64, got int64"),
        (lambda: attend(_Q, _K, _K, np.zeros((5, 6), bool)), ValueError, r"attn_mask: expected a shape that broadcasts to \(2, 4, 5, 7\), got \(5, 6\)"),
        (lambda: attend(_Q, _K, _K, key_lengths=[1, 8]), ValueError, "key_lengths: expected lengths from 0 to 7, got 8"),
        (lambda: attend(_Q, _K, _K, key_lengths=[-1, 3]), ValueError, "key_lengths: expected lengths from 0 to 7, got -1"),
        (lambda: attend(_Q, _K, _K, key_lengths=[1]), ValueError, r"key_lengths: expected shape \(2,\), got \(1,\)"),
        (lambda: attend(_Q, _K, _K, key_lengths=[1.0, 2.0]), TypeError, "key_lengths: expected integers, got float64"),
        (lambda: attend(_Q, _K, _K, key_lengths=[[1], [2, 3]]), ValueError, "^key_lengths: expected an array, got a list that NumPy cannot make one of$"),
        (lambda: attend(_Q, _K, _K, key_lengths=[]), ValueError, r"^key_lengths: expected shape \(2,\), got \(0,\)$"),
        (lambda: attend(_Q, _K, _K, window=0), ValueError, "window: expected an integer in"),
        (lambda: attend(_Q, _K, _K, causal_offset=0.5), TypeError, "causal_offset: expected an integer, got float"),
        (lambda: attend(_Q, _K, _K, scale="1"), TypeError, "scale: expected a number, got str"),
        (lambda: attend(_Q, _K, _K, dropout_p=1.5), ValueError, "dropout_p: expected a probability between 0 and 1, got 1.5"),
        (lambda: functional.self_attention(np.zeros((2, 3, 10)), 2), ValueError, "qkv: expected 3 E columns, E a multiple of num_heads = 2, got 10"),
        (lambda: functional.self_attention(np.zeros((2, 3)), 2), ValueError, r"qkv: expected shape \(B, T, 3 E\), got \(2, 3\)"),
        (lambda: functional.scaled_dot_product_attention_backward(1, _Q), TypeError,
         "^cache: expected what scaled_dot_product_attention_forward returned, got int$"),
        (lambda: attend(_Q, _K, _K, is_causal=np.ones((5, 7), bool)), TypeError, "^is_causal: expected True or False, got ndarray; a mask is attn_mask$"),
        (lambda: functional.self_attention_backward(1, _Q), TypeError, "^cache: expected what self_attention_forward returned, got int$"),
        (lambda: functional.self_attention_forward(fs.Tensor(_Q[0]), 2), TypeError, "^qkv: expected an array, got a Tensor; self_attention records$"),
        (lambda: functional.self_attention_backward(functional.self_attention_forward(np.zeros((2, 3, 12)), 2)[1], np.zeros((2, 3, 12))),
         ValueError, r"^dy: expected shape \(2, 3, 4\), got \(2, 3, 12\)$"),
        (lambda: attend(_Q, _K, _K, is_causal="no"), TypeError, "^is_causal: expected True or False, got str$"),
        (lambda: attend(_Q, _K, _K, is_causal=2), TypeError, "^is_causal: expected True or False, got 2$"),
        (lambda: attend(_Q, _K, _K, is_causal=None), TypeError, "^is_causal: expected True or False, got NoneType$"),
        (lambda: attend(_Q, _K, _K, enable_gqa=_Q), TypeError, "^enable_gqa: expected True or False, got ndarray$"),
        (lambda: attend(_Q, _K, _K, return_weights=_Q), TypeError, "^return_weights: expected True or False, got ndarray$"),
        (lambda: functional.scaled_dot_product_attention_forward(_Q, _K, _K, is_causal=_Q), TypeError, "^is_causal: expected True or False, got ndarray"),
        (lambda: functional.self_attention(np.zeros((2, 3, 12)), 2, batch_first="yes"), TypeError, "^batch_first: expected True or False, got str$"),
        (lambda: functional.scaled_dot_product_attention_forward(fs.Tensor(_Q), _K, _K), TypeError, "q: expected an array, got a Tensor"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_counts_as_true(rng):
    q, k, v = arrays(rng, np.float64)
    for yes in (np.True_, 1, np.int8(1)):
        assert_same_bits(attend(q, k, v, is_causal=yes), attend(q, k, v, is_causal=True))
    assert_same_bits(attend(q, k, v, is_causal=0), attend(q, k, v))


def test_no_lengths_of_no_rows():
    assert attend(_Q[:0], _K[:0], _K[:0], key_lengths=[]).shape == (0, 4, 5, 6)


# ---------------------------------------------------------------- PyTorch


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"mask": "bool"}, {"mask": "float"}, {"scale": 0.3}, {"gqa": True}], ids=str)
@pytest.mark.parametrize("sizes", [{"Tq": 1, "Tk": 600}, {"Tq": 65, "Tk": 65}, {"Tq": 30, "Tk": 130}], ids=str)
def test_pytorch_agrees(options, sizes, dtype, rng):
    torch = pytest.importorskip("torch")
    options = dict(options)
    gqa = options.pop("gqa", False)
    sizes = {"Tq": 2, "Tk": 600} if sizes["Tq"] == 1 and "is_causal" in options else sizes  # one key alone: gradients cancel to nothing
    q, k, v = arrays(rng, dtype, heads=4, kv_heads=2 if gqa else 4, D=16, Dv=16, **sizes)
    kind = options.pop("mask", None)
    mask = None if kind is None else rng.random((2, 1, sizes["Tq"], sizes["Tk"])) < 0.8
    mask = np.where(mask, rng.standard_normal(mask.shape), -np.inf).astype(dtype) if kind == "float" else mask
    dy = rng.standard_normal(q.shape).astype(dtype)
    theirs = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    y = torch.nn.functional.scaled_dot_product_attention(*theirs, None if mask is None else torch.from_numpy(mask), enable_gqa=gqa, **options)
    y.backward(torch.from_numpy(dy))
    want = [y.detach().numpy(), *(t.grad.numpy() for t in theirs)]
    for got, right in zip(gradients((q, k, v), dy, attn_mask=mask, enable_gqa=gqa, **options), want, strict=True):
        assert_close(got, right, dtype=dtype, terms=700)
