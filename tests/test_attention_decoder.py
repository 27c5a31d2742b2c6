"""The attention decoder: reference by differences, kernels by the reference, bits, PyTorch as a witness, and what bad input gets."""

from dataclasses import replace

import numpy as np
import pytest

from fastseq.backends import reference
from tests.cases import computed_by
from tests.decoder_problems import ATTENTIONS, Problem, results
from tests.finite_differences import assert_gradient

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
