"""Recurrent layers with any options at once, against the reference: at the backends, with random masks; and as layers of `nn`."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastseq as fs
from fastseq.backends import cpu, reference
from fastseq.backends.recurrent import CELLS, Noise, Weights
from tests.conftest import WAYS, using
from tests.recurrent_problems import Problem, Stack
from tests.tolerance import assert_same_bits, bound

# Fewer than the profile's hundred, each being many arrays; tests/full.sh asks for thousands.
examples = settings() if os.environ.get("HYPOTHESIS_PROFILE") == "long" else settings(max_examples=60)

_shares = st.sampled_from([0.0, 0.2, 0.5, 0.9])
_words = st.integers(0, 2**32 - 1)


@st.composite
def problems(draw, noise=True):
    """One layer with any options that its cell has."""
    cell = draw(st.sampled_from(CELLS))
    lstm = cell == "lstm"
    drawn = Noise()
    if noise and draw(st.booleans()):
        training, seed = draw(st.booleans()), draw(st.integers(0, 2**64 - 1))
        layer = draw(st.integers(0, 2**32 - 8))
        drawn = Noise(draw(_shares), draw(_shares), draw(_shares) if lstm else 0.0, training, seed, layer, draw(_words))
    return Problem(
        cell,
        T=draw(st.integers(0, 6)),
        B=draw(st.integers(0, 7)),
        I=draw(st.integers(1, 9)),
        H=draw(st.integers(1, 35)),
        P=draw(st.sampled_from([0, 0, 1, 4, 11])) if lstm else 0,
        directions=draw(st.integers(1, 2)),
        biases=draw(st.sampled_from(["ih hh", "", "ih", "hh"])),
        state=draw(st.sampled_from(["hc", "", "h", "c"])),
        lengths=draw(st.booleans()),
        reset=draw(st.booleans()),
        peephole=lstm and draw(st.booleans()),
        layer_norm=cell in ("lstm", "gru") and draw(st.booleans()),
        noise=drawn,
    )


def _dtypes(problem):
    """Float64 alone where float32 may rightly be far off: a ReLU on the other side of 0, the norm of sums that are nearly equal."""
    return [np.float64] if problem.cell == "rnn_relu" or problem.layer_norm else [np.float32, np.float64]


def _assert_near(got, want, dtype, terms, name):
    """`assert_close`, but all of a small result may be what remains of terms of the size of one, or, in a norm, of a hundred."""
    assert got.dtype == dtype, name
    assert got.shape == want.shape, name
    allowed = bound(want, dtype, terms) + (100 if dtype == np.float64 else 1) * terms * np.finfo(dtype).eps
    off = np.abs(got - want) > allowed
    assert np.isfinite(got).all(), name
    assert not off.any(), f"{name}: expected {want[off][:3]}, got {got[off][:3]}"


def _assert_stacks_agree(stack, dtype, seed, **options):
    inputs = stack.inputs(np.random.default_rng(seed), dtype)
    want = stack.results(reference, [a.wide() for a in inputs])
    terms = 2 * sum(p.terms for p in stack.problems)
    first = None
    for isa, threads in [way for way in WAYS if way[1] != 2]:
        with using(isa, threads):
            got = stack.results(cpu, inputs)
            assert got.keys() == want.keys()
            for name in got:
                _assert_near(got[name], want[name], dtype, terms, f"{name} ({isa}, {threads} threads)")
            if threads == 1:
                first = isa, got
            elif first is not None and first[0] == isa:
                for name in got:
                    assert_same_bits(got[name], first[1][name], f"{name} ({isa}, {threads} threads)")
            again = stack.results(cpu, inputs, **options)
            for name in got:
                assert_same_bits(again[name], got[name], f"{name} ({isa}, {threads} threads, {options})")


@examples
@given(st.data(), problems(), st.integers(1, 2), st.integers(0, 2**32), st.integers(1, 8))
def test_any_options_at_once(data, problem, layers, seed, every):
    """Values and all gradients; bits on any number of threads, and with checkpoints."""
    dtype = data.draw(st.sampled_from(_dtypes(problem)))
    _assert_stacks_agree(Stack.of(problem, layers), dtype, seed, checkpoint_every=every)


@pytest.mark.parametrize("cell", CELLS)
def test_everything_at_once(cell):
    """Two layers of two directions with every option that the cell has."""
    noise = Noise(0.3, 0.2, 0.4 if cell == "lstm" else 0.0, True, 5, 1, 2)
    problem = Problem(cell, T=7, B=7, H=19, directions=2, lengths=True, reset=True, noise=noise)
    problem = replace(problem, layer_norm=cell in ("lstm", "gru"), peephole=cell == "lstm", P=11 if cell == "lstm" else 0)
    for dtype in _dtypes(problem):
        _assert_stacks_agree(Stack.of(problem, 2), dtype, 3, checkpoint_every=3)


@examples
@given(problems(noise=False), st.integers(0, 2**32), st.data())
def test_rows_of_any_problem_have_their_own_bits(problem, seed, data):
    """Any part of any batch, among all others or alone."""
    problem = replace(problem, B=max(problem.B, 1))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    start = data.draw(st.integers(0, problem.B - 1))
    rows = slice(start, data.draw(st.integers(start + 1, problem.B)))
    a = problem.inputs(np.random.default_rng(seed), dtype)
    isa, threads = data.draw(st.sampled_from(WAYS))
    with using(isa, threads):
        whole, part = problem.results(cpu, a), problem.results(cpu, a.rows(rows))
    for name in ("y", "h_n", "c_n", "cells", "dx", "dh_0", "dc_0", "dstates"):
        if name in whole:
            assert_same_bits(part[name], whole[name][..., rows, :], name)


# ---------------------------------------------------------------- layers of nn


def layer_of(problem, layers, **options):
    """The layer that computes a stack of such problems; its parameters are random."""
    kind, more = {
        "rnn_tanh": (fs.nn.RNN, {}),
        "rnn_relu": (fs.nn.RNN, {"nonlinearity": "relu"}),
        "lstm": (fs.nn.LSTM, {"proj_size": problem.P, "peephole": problem.peephole, "layer_norm": problem.layer_norm}),
        "gru": (fs.nn.GRU, {"layer_norm": problem.layer_norm}),
        "gru_before": (fs.nn.GRU, {"reset_after": False}),
        "mut1": (fs.nn.MUT1, {}),
        "mut2": (fs.nn.MUT2, {}),
        "mut3": (fs.nn.MUT3, {}),
    }[problem.cell]
    layer = kind(problem.I, problem.H, layers, bias=bool(problem.biases), bidirectional=problem.directions == 2, **more, **options)
    rng = np.random.default_rng(7)
    for name, p in layer.named_parameters():
        spread = 1 / np.sqrt(max(p.data.shape[-1], 1)) if p.data.ndim == 2 else 0.4
        p.data[...] = ("ln" in name and "weight" in name) + spread * rng.standard_normal(p.data.shape)
    return layer


def weights_of(layer, problem, suffix, values):
    """The reference's weights of one direction, from a layer's parameters or their gradients by name."""
    cell, H = problem.cell, problem.H

    def found(name):
        return values.get(f"{name}{suffix}")

    if "mut" not in cell:
        weights = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr", "w_ch": "weight_ch"}
        return Weights(**{n: found(weights.get(n, n)) for n in Weights._fields})
    w, u, projection = found("weight_ih"), found("weight_hh"), found("weight_proj")
    if cell == "mut1":
        u = np.concatenate([u[:H], np.zeros((H, H)), u[H:]])
    if cell != "mut3":
        I = w.shape[1]
        # Identity where the input has the size of the state.
        direct = np.eye(H) if projection is None else projection
        w = np.concatenate([w, direct] if cell == "mut1" else [direct, w])
        assert (projection is None) == (I == H)
    return Weights(w, u, found("bias"))


def stack_of(layer, problem, layers, x, state, lengths, reset):
    """The problems and inputs that the reference gets for this layer, in float64."""
    values = {n: p.data.astype(np.float64) for n, p in layer.named_parameters()}
    D = problem.directions
    stack = Stack.of(problem, layers)
    inputs = []
    for k, p in enumerate(stack.problems):
        weights = tuple(weights_of(layer, p, f"_l{k}{'_reverse' * d}", values) for d in range(D))
        own = p.inputs(np.random.default_rng(0), np.float64)
        h, c = (None if s is None else s[D * k : D * k + D].astype(np.float64) for s in state)
        own = own._replace(x=x.astype(np.float64), h_0=h, c_0=c, weights=weights, lengths=lengths, reset=reset)
        inputs.append(own._replace(dy=np.zeros_like(own.dy), dh_n=np.zeros_like(own.dh_n)))
    return stack, inputs


@examples
@given(problems(noise=False), st.integers(1, 2), st.booleans(), st.booleans(), st.integers(0, 2**32), st.data())
def test_layers_compute_what_the_reference_does(problem, layers, batch_first, given_state, seed, data):
    """Parameters by name and direction, states of all layers, lengths and resets, zoneout's expectation; all gradients."""
    zoneout = data.draw(st.sampled_from([(0.0, 0.0), (0.3, 0.1)]))
    bias = "ih hh" if problem.biases else ""
    lstm = problem.cell == "lstm"
    P = problem.P if problem.P < problem.H else 0  # a layer only projects to fewer units
    problem = replace(problem, P=P, biases=bias, noise=Noise(zoneout_h=zoneout[0], zoneout_c=zoneout[1] if lstm else 0.0))
    layer = layer_of(problem, layers, batch_first=batch_first, zoneout=zoneout if lstm else zoneout[0], dtype=np.float64).eval()
    rng = np.random.default_rng(seed)
    T, B, H, P, D = problem.T, problem.B, problem.H, problem.P or problem.H, problem.directions
    x, drawn = rng.standard_normal((T, B, problem.I)), problem.inputs(rng, np.float64)
    state = (rng.standard_normal((layers * D, B, P)), rng.standard_normal((layers * D, B, H)) if lstm else None)
    if not given_state:
        state = (None, None)
    stack, inputs = stack_of(layer, problem, layers, x, state, drawn.lengths, drawn.reset)
    dy, dh = rng.standard_normal((T, B, D * P)), rng.standard_normal((layers * D, B, P))
    dc = rng.standard_normal((layers * D, B, H)) if lstm else None
    dcells = rng.standard_normal((layers * D, T, B, H)) if lstm else None
    dstates = rng.standard_normal((layers * D, T, B, P))
    for k in range(layers):
        part = slice(D * k, D * k + D)
        # y is all hidden states of the top layer; the loss sees those of every layer too.
        through = np.concatenate(list(dstates[part]), axis=-1)
        inputs[k] = inputs[k]._replace(dy=through, dh_n=dh[part], **({"dc_n": dc[part], "dcells": dcells[part]} if lstm else {}))
    want = _stack_with_losses(stack, inputs, dy)

    tensors = [None if s is None else fs.Tensor(s, requires_grad=True) for s in state]
    xt = fs.Tensor(x.swapaxes(0, 1).copy() if batch_first else x, requires_grad=True)
    given = None if not given_state else tuple(tensors) if lstm else tensors[0]
    reset = None if drawn.reset is None else drawn.reset.T if batch_first else drawn.reset
    y, last, states = layer(xt, given, lengths=drawn.lengths, reset=reset, return_states=True)
    (h, c), (hidden, cells) = (last, states) if lstm else ((last, None), (states, None))
    time_first = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    loss = (y * time_first(dy)).sum() + (h * dh).sum() + (hidden * dstates).sum()
    if lstm:
        loss = loss + (c * dc).sum() + (cells * dcells).sum()
    loss.backward()

    def compare(name, got, expected):
        _assert_near(np.asarray(got), expected, np.float64, 4 * sum(p.terms for p in stack.problems), name)

    def stacked(name):
        return np.concatenate([want[f"{k} {name}"] for k in range(layers)])

    compare("y", time_first(y.data), want[f"{layers - 1} y"])
    compare("h_n", h.data, stacked("h_n"))
    compare("dx", time_first(xt.grad), want["0 dx"])
    split = [want[f"{k} y"][..., d * P : d * P + P] for k in range(layers) for d in range(D)]
    compare("states", hidden.data, np.stack(split))
    if lstm:
        compare("c_n", c.data, stacked("c_n"))
        compare("cells", cells.data, stacked("cells"))
    if given_state:
        compare("dh_0", tensors[0].grad, stacked("dh_0"))
        if lstm:
            compare("dc_0", tensors[1].grad, stacked("dc_0"))
    _compare_weight_gradients(layer, stack, want, compare)


def _stack_with_losses(stack, inputs, dy):
    """Like `Stack.results`, but a layer's dy is its own (the loss sees its states) and what comes from above."""
    found, caches, x = {}, [], inputs[0].x
    for k, (p, a) in enumerate(zip(stack.problems, inputs, strict=True)):
        y, h_n, c_n, cells, cache = p.forward(reference, a._replace(x=x))
        found |= {f"{k} y": y, f"{k} h_n": h_n, f"{k} c_n": c_n, f"{k} cells": cells}
        caches.append(cache)
        x = y
    from_above = dy
    for k in reversed(range(len(caches))):
        a = inputs[k]
        grads = reference.recurrent_backward(caches[k], a.dy + from_above, a.dh_n, a.dc_n, dcells=a.dcells)
        found |= {f"{k} dx": grads["dx"], f"{k} dh_0": grads["dh_0"], f"{k} dc_0": grads["dc_0"], f"{k} weights": grads["weights"]}
        from_above = grads["dx"]
    return found


def _compare_weight_gradients(layer, stack, want, compare):
    """By the layer's names; of a MUT's matrices the blocks that the layer has."""
    gradients = {n: p.grad for n, p in layer.named_parameters()}
    assert all(g is not None for g in gradients.values())
    for k, problem in enumerate(stack.problems):
        for d, dw in enumerate(want[f"{k} weights"]):
            suffix = f"_l{k}{'_reverse' * d}"
            got = weights_of(layer, problem, suffix, gradients)
            for name, mine, theirs in zip(Weights._fields, got, dw, strict=True):
                assert (mine is None) == (theirs is None), name
                if theirs is None:
                    continue
                if name == "w_ih" and f"weight_proj{suffix}" not in gradients and problem.cell in ("mut1", "mut2"):
                    own = slice(0, 2 * problem.H) if problem.cell == "mut1" else slice(problem.H, 3 * problem.H)
                    mine, theirs = mine[own], theirs[own]
                compare(f"d{name}{suffix}", mine, theirs)
