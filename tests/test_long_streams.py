"""Streams that run for long over loud, vanishing and silent input: 20,000 steps, or a million where FASTSEQ_LONG is set (tests/full.sh)."""

import os

import numpy as np
import pytest

from fastseq import _core
from fastseq.backends import cpu, reference
from fastseq.backends.recurrent import CELLS
from tests.conftest import using
from tests.recurrent_problems import Problem

PHASES = {"ordinary": 500, "saturating": 500, "denormal": 500, "zero": 1500}
CYCLES = 334 if os.environ.get("FASTSEQ_LONG") else 7

#: Of the largest unit of a row; rounding of the many steps that a slow unit remembers adds up.
ACCURACY = {np.dtype(np.float32): 2e-4, np.dtype(np.float64): 1e-11}


def phase_input(phase, problem, dtype, rng):
    x = rng.standard_normal((PHASES[phase], problem.B, problem.I))
    if phase == "saturating":
        x = 1e4 * np.sign(x)
    elif phase == "denormal":
        x = np.sign(x) * (1e-40 if dtype == np.float32 else 1e-310)
    elif phase == "zero":
        x = 0 * x
    return x.astype(dtype)


def assert_no_denormals(a):
    size = np.abs(a)
    assert np.isfinite(a).all()
    assert not ((size > 0) & (size < np.finfo(a.dtype).tiny)).any()


@pytest.mark.parametrize(("dtype", "biases"), [(np.float32, ""), (np.float32, "ih hh"), (np.float64, "")], ids=["f32", "f32 with biases", "f64"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_long_stream_stays_accurate(cell, dtype, biases, rng):
    """Without biases the state decays through the denormals to zero in each silence, and grows again after it."""
    problem = Problem(cell, B=2, I=3, H=9, biases=biases, state="")
    (w,) = problem.inputs(rng, dtype).weights
    w = w._replace(w_hh=(0.4 * w.w_hh).astype(dtype))  # contracting, so that a difference in rounding does not grow
    wide = tuple(None if a is None else a.astype(np.float64) for a in w)
    wanted = reference.recurrent_pack(cell, (type(w)(*wide),))
    streams = {}
    for isa in _core.isas_available():
        with using(isa, 1):
            streams[isa] = cpu.recurrent_stream((cpu.recurrent_pack(cell, (w,)),), batch_size=problem.B)
    h = c = None
    for _ in range(CYCLES):
        for phase in PHASES:
            x = phase_input(phase, problem, dtype, rng)
            want, h, c, *_ = reference.recurrent_forward(x.astype(np.float64), h, c, wanted)
            allowed = ACCURACY[np.dtype(dtype)] * np.abs(want).max(-1, keepdims=True) + 1e3 * np.finfo(dtype).tiny
            for isa, stream in streams.items():
                y = np.empty(want.shape, dtype)
                with using(isa, 1):
                    for x_t, y_t in zip(x, y, strict=True):
                        stream.step(x_t, out=y_t)
                assert_no_denormals(y)
                for state in stream.state if cell == "lstm" else (stream.state,):
                    assert_no_denormals(state)
                assert (np.abs(y - want) <= allowed).all(), f"{phase}, {isa}"
    if not biases:
        assert not y[-1].any()
