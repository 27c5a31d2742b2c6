"""The first link of the chain: the reference backend against finite differences in float64, every operation and gradient."""

import math
from dataclasses import replace

import numpy as np
import pytest

from fastseq.backends import reference
from fastseq.backends.recurrent import CELLS
from tests.cases import CASES, computed_by
from tests.finite_differences import assert_gradient, gradient
from tests.recurrent_problems import NOISE, OPTIONS, Problem, gradients
from tests.tolerance import assert_close


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case, rng):
    inputs = {name: a.copy() for name, a in case.inputs(rng, np.float64).items()}
    with computed_by(reference):
        results = case.evaluate(inputs, np.random.default_rng(1))
        upstream = np.random.default_rng(1)
        weights = [upstream.standard_normal(results[f"output {k}"].shape) for k in range(len(case.call(inputs)))]

        frozen = case.options.get("padding_idx")  # to the gradient this row of the table is a constant
        row = None if frozen is None else inputs["weight"][frozen].copy()

        def loss():
            if row is not None:
                inputs["weight"][frozen] = row
            return sum(float(np.sum(y * weight)) for y, weight in zip(case.call(inputs), weights, strict=True))

        for name in case.differentiable:
            assert_gradient(results[f"d{name}"], loss, inputs[name], f"{case}: d{name}", rng)


def test_differences_of_a_known_function():
    x = np.array([[0.3, -1.2], [2.0, 0.0]])
    np.testing.assert_allclose(gradient(lambda: float(np.sum(np.sin(x))), x), np.cos(x), rtol=1e-10)
    assert x.tolist() == [[0.3, -1.2], [2.0, 0.0]]


@pytest.mark.parametrize("size", [3, 100])
def test_a_wrong_gradient_is_rejected(size, rng):
    x = rng.standard_normal(size)
    right = 2 * x
    assert_gradient(right, lambda: float(np.sum(x * x)), x, "x", rng)
    for wrong in (right * (1 + 1e-5), -right, right[::-1], np.where(np.arange(size) == 1, 0, right), np.full(size, np.nan)):
        with pytest.raises(AssertionError):
            assert_gradient(wrong, lambda: float(np.sum(x * x)), x, "x", rng)


# ---------------------------------------------------------------- recurrent layers

_EVERYTHING = {"directions": 2, "lengths": True, "reset": True, "noise": NOISE["all noise"]}
_MORE = {"lstm": {"peephole": True, "layer_norm": True, "P": 2}, "gru": {"layer_norm": True}}
_SMALL = {"T": 3, "B": 4, "I": 3, "H": 4}
PROBLEMS = {option: replace(problem, **_SMALL, P=min(problem.P, 2)) for option, problem in OPTIONS.items()}
PROBLEMS |= {(cell, "everything"): Problem(cell, **_SMALL, **_EVERYTHING, **_MORE.get(cell, {})) for cell in CELLS}


def _smooth_inputs(problem, rng):
    """Inputs that differences can follow: no sum of a ReLU next to its kink, no layer norm of nearly equal numbers."""
    while True:
        inputs = problem.inputs(rng, np.float64)
        *_, cache = problem.forward(reference, inputs)
        steps = [s for direction in cache.steps for s in direction if len(s.rows)]
        if problem.cell == "rnn_relu" and min(np.abs(s.a).min() for s in steps) < 3e-3:
            continue
        norms = [n[1] for s in steps for n in (s.norm_ih, s.norm_hh, getattr(s, "norm_c", None)) if n] if problem.layer_norm else []
        if not any(np.any((std < 0.05) & (std > np.sqrt(1e-5))) for std in norms):  # equal ones, of a state of zeros, stay equal
            return inputs


def _once(drawn):
    """The same masks, each drawn once."""
    known = {}

    def draw(*where_and_like):
        key = (*where_and_like[:-1], where_and_like[-1].shape)
        if key not in known:
            known[key] = drawn(*where_and_like)
        return known[key]

    return draw


@pytest.mark.parametrize("option", PROBLEMS, ids=", ".join)
def test_recurrent_gradients(option, rng, monkeypatch):
    """Each input, each weight, and, for dstates, numbers that are added to h_t of each step, as the next steps and y see it."""
    problem = PROBLEMS[option]
    a = _smooth_inputs(problem, rng)
    got = gradients(reference, problem.forward(reference, a)[-1], a)
    added = np.zeros_like(got["dstates"])
    step = reference._step_forward

    def step_and_add(cell, w, s):
        h, c = step(cell, w, s)
        return h + added[s.direction, s.t, s.rows], c

    monkeypatch.setattr(reference, "_step_forward", step_and_add)
    monkeypatch.setattr(reference, "_drawn", _once(reference._drawn))

    def loss():
        outputs = problem.forward(reference, a, training=False)[:4]
        upstream = (a.dy, a.dh_n, a.dc_n, a.dcells)
        return sum(float(np.sum(o * g)) for o, g in zip(outputs, upstream, strict=True) if o is not None)

    differenced = {name: x for name, x in a.arrays() if x.dtype == np.float64 and name not in ("dy", "dh_n", "dc_n", "dcells")}
    differenced["states"] = added
    if problem.cell == "mut1":  # the block of z is no weight
        for k, w in enumerate(a.weights):
            assert not got[f"dw_hh[{k}]"][4:8].any()
            assert not w.w_hh[4:8].any()
    assert {f"d{name}" for name in differenced} == got.keys() - ({"dh_0", "dc_0"} - {f"d{name}_0" for name in problem.state})
    for name, x in differenced.items():
        assert_gradient(got[f"d{name}"], loss, x, f"{problem}: d{name}", rng)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_a_state_of_zeros_that_was_not_given(cell, rng):
    problem = Problem(cell, **_SMALL)
    a = problem.inputs(rng, np.float64)
    zeros = a._replace(h_0=np.zeros_like(a.h_0), c_0=None if a.c_0 is None else np.zeros_like(a.c_0))
    got, want = (problem.results(reference, i) for i in (a._replace(h_0=None, c_0=None), zeros))
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
def test_recurrent_cells_by_hand(cell, rng):
    """Rows, steps and units one by one, from the equations."""
    problem = Problem(cell, **_SMALL)
    a = problem.inputs(rng, np.float64)
    y, h_n, c_n, cells, cache = problem.forward(reference, a, training=False)
    (w,), (T, B, _), H = a.weights, a.x.shape, problem.H

    def sigmoid(v):
        return 1 / (1 + math.exp(-v))

    for b in range(B):
        h, c = a.h_0[0, b].tolist(), [0.0] * H if a.c_0 is None else a.c_0[0, b].tolist()
        for t in range(T):
            p = [sum(m * v for m, v in zip(row, a.x[t, b], strict=True)) + bias for row, bias in zip(w.w_ih, w.b_ih, strict=True)]
            q = [sum(m * v for m, v in zip(row, h, strict=True)) + bias for row, bias in zip(w.w_hh, w.b_hh, strict=True)]
            for u in range(H):
                s = [p[u + k] + q[u + k] for k in range(0, len(p), H)]
                if cell == "lstm":
                    c[u] = sigmoid(s[1]) * c[u] + sigmoid(s[0]) * math.tanh(s[2])
                    h[u] = sigmoid(s[3]) * math.tanh(c[u])
                elif cell == "gru":
                    n = math.tanh(p[u + 2 * H] + sigmoid(s[0]) * q[u + 2 * H])
                    h[u] = sigmoid(s[1]) * h[u] + (1 - sigmoid(s[1])) * n
                else:
                    h[u] = math.tanh(s[0]) if cell == "rnn_tanh" else max(s[0], 0.0)
            np.testing.assert_allclose(y[t, b], h, rtol=1e-12, atol=1e-14)
            if cell == "lstm":
                np.testing.assert_allclose(cells[0, t, b], c, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(h_n[0, b], y[-1, b])
    assert cache is None
    assert (c_n is None) == (cell != "lstm")


@pytest.mark.parametrize("option", [o for o in PROBLEMS if PROBLEMS[o].lengths], ids=", ".join)
def test_what_stands_past_the_end_is_never_read(option, rng):
    problem = PROBLEMS[option]
    a = problem.inputs(rng, np.float64)
    past = np.arange(problem.T)[:, None] >= a.lengths
    assert past.any()
    spoiled = a.mapped(np.copy)
    for array in (spoiled.x, spoiled.dy, *(() if a.dcells is None else spoiled.dcells)):
        array[past] = np.nan
    want, got = problem.results(reference, a), problem.results(reference, spoiled)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    for name in ("y", "dx", *(() if a.dcells is None else ("cells",))):
        assert not got[name][..., past, :].any(), name
    empty = a.lengths == 0
    assert empty.any()
    np.testing.assert_array_equal(got["h_n"][:, empty], a.h_0[:, empty])
    np.testing.assert_array_equal(got["dh_0"][:, empty], a.dh_n[:, empty])


@pytest.mark.parametrize("option", PROBLEMS, ids=", ".join)
def test_recurrent_float32(option, rng):
    """The results are float32 throughout, and checkpoints change none of them; nothing that was given changes."""
    problem = PROBLEMS[option]
    a = problem.inputs(rng, np.float32)
    before = a.mapped(np.copy)
    got, wide = problem.results(reference, a), problem.results(reference, a.wide())
    again = problem.results(reference, a, checkpoint_every=2)
    for name in wide:
        assert got[name].dtype == np.float32, name
        assert got[name].tobytes() == again[name].tobytes(), name
        assert_close(got[name], wide[name], dtype=np.float32, terms=problem.terms, name=name)
    for (name, now), (_, then) in zip(a.arrays(), before.arrays(), strict=True):
        np.testing.assert_array_equal(now, then, err_msg=name)


def test_recurrent_pack_is_a_snapshot_that_is_kept_while_no_number_changes(rng):
    problem = Problem("lstm", **_SMALL)
    a = problem.inputs(rng, np.float64)
    packed = reference.recurrent_pack("lstm", a.weights)
    assert reference.recurrent_pack("lstm", a.mapped(np.copy).weights, packed=packed) is packed
    y, *_ = problem.forward(reference, a, packed=packed)
    a.weights[0].b_hh[-1] += 1
    np.testing.assert_array_equal(problem.forward(reference, a, packed=packed)[0], y)
    assert reference.recurrent_pack("lstm", a.weights, packed=packed) is not packed


@pytest.mark.parametrize("option", [o for o in PROBLEMS if PROBLEMS[o].directions == 1 and not PROBLEMS[o].noise.training], ids=", ".join)
def test_recurrent_stream_is_the_sequence(option, rng):
    """And so is the stack. Two layers, from a state that is set, through the forgetting of some rows, to weights that are loaded."""
    first = replace(PROBLEMS[option], state="hc", lengths=False, reset=True)
    above = replace(first, I=first.P or first.H)
    a, b = (problem.inputs(rng, np.float64) for problem in (first, above))
    forgotten = np.array([False, True, True, False])
    a.reset[:] = False
    a.reset[2] = forgotten
    z, h_a, c_a, *_ = first.forward(reference, a)
    y, h_b, c_b, *_ = above.forward(reference, b._replace(x=z, reset=a.reset))
    layers = tuple(reference.recurrent_pack(first.cell, i.weights) for i in (a, b))
    stream = reference.recurrent_stream(layers, batch_size=first.B, zoneout=first.noise[1:3])
    lstm = first.cell == "lstm"
    h_0, c_0 = np.concatenate([a.h_0, b.h_0]), np.concatenate([a.c_0, b.c_0]) if lstm else None
    stream.state = (h_0, c_0) if lstm else h_0
    whole = reference.recurrent_stack(a.x, h_0, c_0, layers, reset=a.reset, zoneout=first.noise[1:3])
    out = np.empty_like(y[0])
    for t, x_t in enumerate(a.x):
        if t == 2:
            stream.reset(np.flatnonzero(forgotten))
        got = stream.step(x_t, out=out if t % 2 else None)
        assert (got is out) == bool(t % 2)
        np.testing.assert_allclose(got, y[t], rtol=1e-12, atol=1e-14)
    h, c = stream.state if lstm else (stream.state, None)
    wants = (y, np.concatenate([h_a, h_b]), np.concatenate([c_a, c_b]) if lstm else None)
    for got, want in [*zip((h, c), wants[1:], strict=True), *zip(whole, wants, strict=True)]:
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    other = first.inputs(rng, np.float64)
    stream.load((reference.recurrent_pack(first.cell, other.weights), layers[1]))
    z, *_ = first.forward(reference, other._replace(x=a.x[:1], h_0=h_a, c_0=c_a, reset=None))
    y, *_ = above.forward(reference, b._replace(x=z, h_0=h_b, c_0=c_b, reset=None))
    np.testing.assert_allclose(stream.step(a.x[0]), y[0], rtol=1e-12, atol=1e-14)
    stream.reset()
    assert not any(np.any(s) for s in (stream.state if lstm else (stream.state,)))


# ---------------------------------------------------------------- the other operations


def test_philox_known_answers():
    """The vectors for philox4x32-10 that Random123 (Salmon et al. 2011) publishes in its kat_vectors."""
    ones, low = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
    pi = ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822)
    for counter, key, want in (
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, low, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (*pi, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        assert reference._philox(key, np.array([counter], np.uint64))[0].tolist() == want


def test_dropout_keeps_the_right_share_at_the_right_scale():
    y = reference.dropout(np.ones(100_000), p=0.3, seed=1, layer=0, call=0)
    assert sorted(set(y.tolist())) == [0.0, 1 / 0.7]
    assert abs(np.mean(y > 0) - 0.7) < 5 * np.sqrt(0.3 * 0.7 / 100_000)


def test_softmax_of_nothing_is_zero():
    x = np.array([[-np.inf, -np.inf], [0.0, -np.inf]])
    assert reference.softmax_forward(x).tolist() == [[0, 0], [1, 0]]


def test_adam_by_hand():
    """Two steps of one parameter, from the algorithm's own lines."""
    w, m, v, lr, b1, b2, eps = 1.0, 0.0, 0.0, 0.1, 0.9, 0.99, 1e-8
    arrays = [np.array([a]) for a in (w, m, v)]
    for step, g in ((1, 0.5), (2, -2.0)):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= lr * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps)
        reference.adam(
            *arrays, np.array([g]), lr=lr, beta1=b1, beta2=b2, eps=eps, weight_decay=0.0, decoupled=False, step=step
        )
        np.testing.assert_allclose([a[0] for a in arrays], [w, m, v], rtol=1e-14)
