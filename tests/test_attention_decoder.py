"""The attention decoder: reference by differences, kernels by the reference, bits, PyTorch as a witness, and what bad input gets."""

from dataclasses import replace

import numpy as np
import pytest

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
            from fastseq import functional

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
