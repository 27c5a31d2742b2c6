"""The attention decoder: reference by differences, kernels by the reference, bits, PyTorch as a witness, and what bad input gets."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastseq as fs
from fastseq import functional
from fastseq.backends import reference
from tests.cases import computed_by
from tests.conftest import WAYS, using
from tests.decoder_problems import ATTENTIONS, Problem, results
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close, assert_same_bits

CELLS = ("lstm", "gru")
SMALL = [
    Problem(cell, attention, ragged=ragged, B=5, T=3)
    for cell in CELLS
    for attention in ATTENTIONS
    for ragged in (False, True)
]
SMALL += [replace(problem, state=False, weights=False) for problem in SMALL if problem.attention == "additive"]


# ---------------------------------------------------------------- the reference


@pytest.mark.parametrize("problem", SMALL, ids=str)
def test_gradients_of_the_reference(problem, rng):
    inputs, options, upstream = problem.inputs(rng, np.float64), problem.options(rng), problem.upstream(rng, np.float64)
    with computed_by(reference):
        got = results(inputs, options, upstream)

        def loss():
            outputs = functional.attention_decoder_forward(**inputs, **options)[:4]
            return sum(float(np.sum(o * d)) for o, d in zip(outputs, upstream, strict=True) if d is not None)

        assert {f"d{name}" for name in inputs} == {n for n in got if n[0] == "d"} - ({"dh_0", "dc_0"} if not problem.state else set())
        for name, x in inputs.items():
            assert_gradient(got[f"d{name}"], loss, x, f"{problem}: d{name}", rng)


# ---------------------------------------------------------------- the kernels


def _wide(arrays):
    return {name: a.astype(np.float64) for name, a in arrays.items()}


SIZES = [
    Problem(T=2, B=6, S=1, I=1, H=1, M=1, A=1),
    Problem(T=1, B=2, S=7, I=3, H=16, M=5, A=17),
    Problem(T=4, B=7, S=9, I=8, H=17, M=16, A=15),
    Problem(T=5, B=13, S=5, I=33, H=31, M=8, A=33),
    Problem(T=3, B=2, S=35, I=4, H=67, M=40, A=70),
]
PROBLEMS = [
    replace(size, cell=cell, attention=attention, ragged=ragged)
    for size in SIZES
    for cell in CELLS
    for attention in ATTENTIONS
    for ragged in (False, True)
]
EMPTY = [replace(Problem(ragged=False), **{name: 0}) for name in "TBS"] + [Problem(attention="dot", S=0), Problem(cell="gru", T=0)]
PROBLEMS += EMPTY + [replace(p, state=False, weights=False) for p in (*SIZES, *EMPTY)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_values_and_gradients(problem, dtype, rng):
    inputs, options, upstream = problem.inputs(rng, dtype), problem.options(rng), problem.upstream(rng, dtype)
    before = {name: a.copy() for name, a in inputs.items()}
    with computed_by(reference):
        want = results(_wide(inputs), options, [None if d is None else d.astype(np.float64) for d in upstream])
    terms = max(problem.T, 1) * (problem.I + problem.H + problem.width + problem.A + problem.S + problem.B)
    first = None
    for isa, threads in WAYS:
        with using(isa, threads):
            got = results(inputs, options, upstream)
        assert got.keys() == want.keys()
        for name in got:
            assert_close(got[name], want[name], dtype=dtype, terms=terms, name=f"{name} ({isa}, {threads} threads)")
        if threads == 1:
            first = got
        for name in got:
            assert_same_bits(got[name], first[name], f"{name} ({isa}, {threads} threads)")
    for name in inputs:
        assert_same_bits(inputs[name], before[name], name)


@pytest.mark.parametrize("ragged", [False, True])
def test_queries_and_keys_beyond_the_range_of_exponentials(ragged, dtype, rng):
    """Rows with far keys, with near ones, and with a query that is far in the first step only."""
    problem = Problem(T=4, B=5, S=6, I=3, H=9, M=8, A=19, ragged=ragged)
    inputs, options, upstream = problem.inputs(rng, dtype), problem.options(rng), problem.upstream(rng, dtype)
    inputs["memory"][1, 0] *= 1000
    inputs["h_0"][4] *= 3000
    inputs["u"] *= 0.1
    with computed_by(reference):
        want = results(_wide(inputs), options, [d.astype(np.float64) for d in upstream])
    for isa, threads in WAYS:
        with using(isa, threads):
            got = results(inputs, options, upstream)
        for name in want:
            bound = 5000 * np.finfo(dtype).eps * (1 + np.abs(want[name]).max())
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=bound, err_msg=f"{name} ({isa}, {threads} threads)")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_row_has_its_own_bits_in_any_batch_and_whatever_lies_past_its_end(cell, attention, dtype, isa, threads, rng):
    problem = Problem(cell, attention, T=5, B=7, S=6, I=4, H=19, M=19, A=21, ragged=True)
    inputs, options, upstream = problem.inputs(rng, dtype), problem.options(rng), problem.upstream(rng, dtype)
    whole = results(inputs, options, upstream)
    weights = {name: a for name, a in inputs.items() if name[0] in "wbu"}
    for b in range(problem.B):
        row, T, S = slice(b, b + 1), options["lengths"][b], options["memory_lengths"][b]
        x, memory = inputs["x"][:, row].copy(), inputs["memory"][:, row].copy()
        x[T:], memory[S:] = np.nan, np.nan
        alone = weights | {"x": x, "memory": memory} | {n: inputs[n][row] for n in ("h_0", "c_0") if n in inputs}
        its = dict(options, lengths=options["lengths"][row], memory_lengths=options["memory_lengths"][row])
        do, dh, dc, da = upstream
        given = [do[:, row].copy(), dh[row], None if dc is None else dc[row], da[:, row].copy()]
        given[0][T:], given[3][T:] = np.nan, np.nan  # past the end they belong to nothing
        given[3][:, :, S:] = np.nan
        got = results(alone, its, given)
        for name in ("outputs", "weights", "dx", "dmemory"):
            assert_same_bits(got[name], np.ascontiguousarray(whole[name][:, row]), f"{name} of row {b}")
        for name in ("h", "c", "dh_0", "dc_0"):
            if name in whole:
                assert_same_bits(got[name], whole[name][row], f"{name} of row {b}")
        assert all(np.isfinite(a).all() for a in got.values())
        assert not got["outputs"][T:].any()
        assert not got["weights"][:, :, S:].any()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_step_by_step_has_the_bits_of_the_whole(cell, attention, dtype, isa, threads, rng):
    problem = Problem(cell, attention, T=5, B=3, S=6, I=4, H=19, M=19, A=21)
    inputs, lengths = problem.inputs(rng, dtype), [6, 0, 3]
    outputs, h, c, weights = functional.attention_decoder(
        **inputs, **problem.options(rng), memory_lengths=lengths, return_weights=True)
    rest = {name: a for name, a in inputs.items() if name not in ("x", "memory", "w_key", "b_key", "h_0", "c_0")}
    ready = functional.decoder_memory(inputs["memory"], inputs.get("w_key"), inputs.get("b_key"), lengths=lengths)
    state = inputs["h_0"], inputs.get("c_0")
    for t in range(problem.T):
        o, *state, a = functional.attention_decoder(
            inputs["x"][t : t + 1], ready, **rest, **problem.options(rng), h_0=state[0], c_0=state[1], return_weights=True)
        assert_same_bits(o[0], outputs[t])
        assert_same_bits(a[0], weights[t])
    assert_same_bits(state[0], h)
    if c is not None:
        assert_same_bits(state[1], c)


def test_backward_twice_from_one_cache_and_linear_in_its_upstream(dtype, rng):
    problem = Problem(T=4, B=5, S=6, I=3, H=9, M=8, A=7, ragged=True)
    inputs, options = problem.inputs(rng, dtype), problem.options(rng)
    *_, cache = functional.attention_decoder_forward(**inputs, **options)
    do, dh, dc, da = problem.upstream(rng, dtype)
    whole = functional.attention_decoder_backward(cache, do, dh=dh, dc=dc, dweights=da)
    again = functional.attention_decoder_backward(cache, do, dh=dh, dc=dc, dweights=da)
    zeros = np.zeros_like(do)
    parts = [
        functional.attention_decoder_backward(cache, do),
        functional.attention_decoder_backward(cache, zeros, dh=dh),
        functional.attention_decoder_backward(cache, zeros, dc=dc),
        functional.attention_decoder_backward(cache, zeros, dweights=da),
    ]
    for name, found in whole.items():
        assert_same_bits(again[name], found, name)
        assert again[name] is not found
        assert_close(found, sum(part[name].astype(np.float64) for part in parts), dtype=dtype, terms=200, name=name)


def test_strange_layouts_and_read_only_arrays(dtype, rng):
    problem = Problem(T=4, B=5, S=6, I=3, H=9, M=8, A=7, ragged=True)
    inputs, options, upstream = problem.inputs(rng, dtype), problem.options(rng), problem.upstream(rng, dtype)
    want = results(inputs, options, upstream)
    strange = {}
    for k, (name, a) in enumerate(inputs.items()):
        doubled = np.repeat(a, 2, axis=-1)[..., ::2]
        raw = np.zeros(a.nbytes + 1, np.uint8)[1:].view(dtype).reshape(a.shape) if a.nbytes else a
        raw[...] = a
        strange[name] = (np.asfortranarray(a), doubled, a[::-1].copy()[::-1], raw)[k % 4]
        strange[name].flags.writeable = False
    got = results(strange, options, [np.asfortranarray(d) for d in upstream])
    for name in want:
        assert_same_bits(np.ascontiguousarray(got[name]), np.ascontiguousarray(want[name]), name)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_large_scores_and_infinities(attention, dtype, isa, rng):
    problem = Problem(attention=attention, T=2, B=2, S=5, I=3, H=8, M=8, A=7)
    inputs, options = problem.inputs(rng, dtype), problem.options(rng)
    for scale in (1e4, 1e30):
        *outputs, _ = functional.attention_decoder_forward(**dict(inputs, memory=scale * inputs["memory"], w_ih=0 * inputs["w_ih"]), **options)
        assert all(np.isfinite(a).all() for a in outputs)
        np.testing.assert_allclose(outputs[3].sum(axis=2), 1, rtol=1e-5)
    seen = dict(inputs, memory=inputs["memory"].copy())
    seen["memory"][2, 1] = np.nan
    *outputs, _ = functional.attention_decoder_forward(**seen, **options)
    assert np.isnan(outputs[0][:, 1]).all()
    assert np.isfinite(outputs[0][:, 0]).all()


@settings(max_examples=60)
@given(
    st.sampled_from(CELLS), st.sampled_from(ATTENTIONS), st.integers(0, 4), st.integers(0, 5), st.integers(0, 6), st.integers(1, 20), st.integers(1, 20),
    st.integers(1, 20), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([np.float32, np.float64]), st.sampled_from(WAYS), st.integers(0, 99),
)  # fmt: skip
def test_options_in_combination(cell, attention, T, B, S, I, H, M, ragged, state, weights, dtype, way, seed):
    problem, rng = Problem(cell, attention, T, B, S, I, H, M, M + 3, ragged, state, weights), np.random.default_rng(seed)
    inputs, options, upstream = problem.inputs(rng, dtype), problem.options(rng), problem.upstream(rng, dtype)
    with computed_by(reference):
        want = results(_wide(inputs), options, [None if d is None else d.astype(np.float64) for d in upstream])
    with using(*way):
        got = results(inputs, options, upstream)
    for name in want:
        bound = 2000 * np.finfo(dtype).eps * (1 + np.abs(want[name]).max(initial=0))
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=bound, err_msg=name)


# ---------------------------------------------------------------- Tensors, and what bad input gets


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_tape_has_the_gradients_of_the_pair(cell, attention, dtype, rng):
    problem = Problem(cell, attention, T=4, B=5, S=6, I=3, H=9, M=8, A=7, ragged=True)
    inputs, options, upstream = problem.inputs(rng, dtype), problem.options(rng), problem.upstream(rng, dtype)
    want = results(inputs, options, upstream)
    tensors = {name: fs.Tensor(a, requires_grad=True) for name, a in inputs.items()}
    outputs = functional.attention_decoder(**tensors, **options, return_weights=True)
    sum((o * d).sum() for o, d in zip(outputs, upstream, strict=True) if d is not None).backward()
    for name, o in zip(("outputs", "h", "c", "weights"), outputs, strict=True):
        assert (o is None) == (name not in want)
        if o is not None:
            assert_same_bits(o.data, want[name], name)
    for name, t in tensors.items():
        assert_close(t.grad, want[f"d{name}"], dtype=dtype, terms=50, name=name)
    plain = functional.attention_decoder(**inputs, **options)
    assert len(plain) == 3
    assert isinstance(plain[0], np.ndarray)
    assert_same_bits(plain[0], want["outputs"])


def _call(changes):
    problem = Problem(T=2, B=3, S=4, I=2, H=5, M=6, A=7)
    rng = np.random.default_rng(0)
    inputs = problem.inputs(rng, np.float64) | problem.options(rng) | changes
    return functional.attention_decoder(**inputs)


BAD = [
    ({"cell": "rnn"}, ValueError, "cell: expected 'lstm' or 'gru', got 'rnn'"),
    ({"attention": "cosine"}, ValueError, "attention: expected one of 'additive', 'dot', 'scaled_dot', 'bilinear', got 'cosine'"),
    ({"x": np.zeros((2, 3))}, ValueError, r"x: expected shape \(T, 3, I\), got \(2, 3\)"),
    ({"x": np.zeros((2, 4, 2))}, ValueError, r"x: expected shape \(T, 3, I\), got \(2, 4, 2\)"),
    ({"x": np.zeros((2, 3, 9))}, ValueError, r"w_ih: expected shape \(20, 15\), got \(20, 8\)"),
    ({"x": np.zeros((2, 3, 2), np.float32)}, TypeError, "expected float32, got float64"),
    ({"memory": np.zeros((4, 6))}, ValueError, r"memory: expected shape \(S, B, M\), got \(4, 6\)"),
    ({"memory": np.zeros((4, 3, 6), int)}, TypeError, "memory: expected float32 or float64, got int64"),
    ({"w_hh": np.zeros((19, 5))}, ValueError, r"w_hh: expected shape \(4 H, H\), got \(19, 5\)"),
    ({"w_out": np.zeros((5, 10))}, ValueError, r"w_out: expected shape \(5, 11\), got \(5, 10\)"),
    ({"b_out": np.zeros(4)}, ValueError, r"b_out: expected shape \(5,\), got \(4,\)"),
    ({"u": None}, TypeError, "u: expected an array with additive attention, got NoneType"),
    ({"w_key": None, "b_key": None}, TypeError, "w_key: expected an array with additive attention, got NoneType"),
    ({"w_query": np.zeros((6, 5)), "u": np.zeros(6)}, ValueError, r"w_key: expected shape \(6, M\), for w_query has 6 rows, got \(7, 6\)"),
    ({"attention": "dot", "w_key": None, "b_key": None, "u": None}, TypeError, "w_query: expected None with dot attention, got ndarray"),
    ({"attention": "dot", "w_key": None, "b_key": None, "u": None, "w_query": None}, ValueError, r"memory: expected shape \(S, B, 5\)"),
    ({"h_0": np.zeros((2, 5))}, ValueError, r"h_0: expected shape \(3, 5\), got \(2, 5\)"),
    ({"lengths": [1, 2, 3]}, ValueError, "lengths: expected integers from 0 to 2, the number of steps, got 3"),
    ({"memory_lengths": [1, 2]}, ValueError, r"^memory_lengths: expected shape \(3,\), got \(2,\)"),
    ({"memory_lengths": [1, 2, 5]}, ValueError, "^memory_lengths: expected integers from 0 to 4, the memory's length, got 5"),
    ({"return_weights": "yes"}, TypeError, "return_weights: expected True or False, got str"),
    ({"cell": "gru"}, TypeError, "c_0: expected None with a GRU, got ndarray"),
]


@pytest.mark.parametrize(("changes", "error", "text"), BAD, ids=lambda value: str(value)[:40] if isinstance(value, dict) else "")
def test_bad_input(changes, error, text):
    with pytest.raises(error, match=text):
        _call(changes)


def test_bad_input_of_the_pair_and_of_a_ready_memory(rng):
    problem = Problem()
    inputs, options = problem.inputs(rng, np.float32), problem.options(rng)
    with pytest.raises(TypeError, match="x: expected an array, got a Tensor"):
        functional.attention_decoder_forward(**dict(inputs, x=fs.Tensor(inputs["x"])), **options)
    *outputs, cache = functional.attention_decoder_forward(**inputs, **options)
    for arguments, error, text in [
        ((None,), TypeError, "cache: expected what attention_decoder_forward returned, got NoneType"),
        ((cache, outputs[0].astype(np.float64)), TypeError, "doutputs: expected float32, got float64"),
        ((cache, outputs[0][1:]), ValueError, r"doutputs: expected shape \(3, 3, 5\), got \(2, 3, 5\)"),
    ]:
        with pytest.raises(error, match=text):
            functional.attention_decoder_backward(arguments[0], *(arguments[1:] or outputs[:1]))
    ready = functional.decoder_memory(inputs["memory"], inputs["w_key"], inputs["b_key"])
    with pytest.raises(TypeError, match="expected None with a DecoderMemory"):
        functional.attention_decoder(**dict(inputs, memory=ready), **options)
    for values, keys, lengths, text in [
        (np.zeros((2, 3)), None, None, r"values: expected shape \(B, S, M\)"),
        (np.zeros((2, 3, 4)), np.zeros((2, 4, 5)), None, r"keys: expected shape \(2, 3, A\), got \(2, 4, 5\)"),
        (np.zeros((2, 3, 4)), None, [4, 0], "^lengths: expected integers from 0 to 3, the memory's length, got 4"),
    ]:
        with pytest.raises(ValueError, match=text):
            functional.DecoderMemory(values, keys, lengths)
    with pytest.raises(IndexError, match="indices: expected integers from 0 to 2, got 3"):
        ready.reorder([0, 3])
    with pytest.raises(ValueError, match=r"indices: expected shape \(N,\), got \(1, 1\)"):
        ready.reorder([[0]])
