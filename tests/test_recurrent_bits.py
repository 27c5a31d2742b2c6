"""Which bits of a recurrent layer depend on what: threads, batches, padding, checkpoints, the other direction, streams."""

from dataclasses import replace

import numpy as np
import pytest

import fastseq as fs
from fastseq.backends import cpu, reference
from fastseq.backends.recurrent import CELLS, Noise
from tests.conftest import using
from tests.recurrent_problems import (
    NOISE,
    ONE_THREAD,
    OPTIONS,
    SOME_WAYS,
    Problem,
    assert_all_same,
    gradients,
    options_named,
)
from tests.tolerance import assert_close, assert_same_bits


@pytest.mark.parametrize("option", OPTIONS, ids=", ".join)
def test_bits_do_not_depend_on_threads(option, dtype, isa, rng):
    """The batch split, the units split, and the directions side by side."""
    problem = replace(OPTIONS[option], T=5, B=13, I=20, H=35)
    a = problem.inputs(rng, dtype)
    results = []
    for n in (1, 2, 3):
        with fs.threads(n), fs.runtime.force_threads():
            results.append(problem.results(cpu, a))
    for n in (2, 3):
        assert_all_same(results[n - 1], results[0], f"on {n} threads")


@pytest.mark.parametrize("cell", CELLS)
def test_bits_of_a_layer_that_takes_its_threads_by_itself(cell, rng):
    """A size above every threshold of work, so that no switch is needed."""
    problem = Problem(cell, T=12, B=16, I=64, H=160, directions=2, lengths=True)
    a = problem.inputs(rng, np.float32)
    results = []
    for n in (1, 2):
        with fs.threads(n):
            results.append(problem.results(cpu, a))
    assert_all_same(results[1], results[0], "on 2 threads")


def _rowwise(option):
    return not OPTIONS[option].noise.training  # masks are drawn by row


@pytest.mark.parametrize("option", [o for o in OPTIONS if _rowwise(o)], ids=", ".join)
def test_a_row_alone_has_the_bits_that_it_has_in_a_batch(option, dtype, rng):
    problem = replace(OPTIONS[option], B=13, H=21)
    a = problem.inputs(rng, dtype)
    for isa, threads in SOME_WAYS:
        with using(isa, threads):
            whole = problem.results(cpu, a)
            for rows in (slice(0, 1), slice(6, 7), slice(12, 13), slice(1, 4)):
                part = problem.results(cpu, a.rows(rows))
                for name in ("y", "h_n", "c_n", "cells", "dx", "dh_0", "dc_0", "dstates"):
                    if name in whole:
                        assert_same_bits(part[name], whole[name][..., rows, :], f"{name}, rows {rows} ({isa}, {threads} threads)")


@pytest.mark.parametrize("junk", [1e30, np.nan])
@pytest.mark.parametrize("option", [o for o in OPTIONS if OPTIONS[o].lengths], ids=", ".join)
def test_padding_does_not_matter(option, junk, dtype, rng):
    """Neither how much there is, nor what stands in it; gradients for it have nowhere to go."""
    problem = OPTIONS[option]
    a = problem.inputs(rng, dtype)
    past = np.arange(problem.T + 3)[:, None] >= a.lengths

    def padded(value, axis):
        if value is None:
            return None
        wide = np.concatenate([value, np.zeros_like(value.take([0, 0, 0], axis))], axis)
        wide[past if axis == 0 else (slice(None), past)] = True if value.dtype == bool else junk
        return wide

    spoiled = a._replace(x=padded(a.x, 0), dy=padded(a.dy, 0), reset=padded(a.reset, 0), dcells=padded(a.dcells, 1))
    for isa, threads in ONE_THREAD:
        with using(isa, threads):
            want, got = problem.results(cpu, a), problem.results(cpu, spoiled)
        for name in want:
            label = f"{name} ({isa}, {threads} threads)"
            if name in ("y", "dx", "cells", "dstates"):
                axis = 0 if name in ("y", "dx") else 1
                assert not got[name].take(range(problem.T, problem.T + 3), axis).any(), label
                if name != "dstates":
                    assert_same_bits(got[name].take(range(problem.T), axis), want[name], label)
            elif name in ("h_n", "c_n", "dh_0", "dc_0"):
                assert_same_bits(got[name], want[name], label)
            else:
                assert_close(got[name], want[name].astype(np.float64), terms=problem.terms, name=label)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_full_lengths_are_no_lengths(cell, directions, dtype, isa, rng):
    for noise in (Noise(), NOISE["all noise"]):
        problem = Problem(cell, directions=directions, noise=noise, H=17)
        a = problem.inputs(rng, dtype)
        want = problem.results(cpu, a)
        got = problem.results(cpu, a._replace(lengths=np.full(problem.B, problem.T)))
        assert_all_same(got, want)


@pytest.mark.parametrize("option", OPTIONS, ids=", ".join)
def test_checkpoints_give_the_same_bits(option, dtype, rng):
    problem = replace(OPTIONS[option], T=7)
    a = problem.inputs(rng, dtype)
    for isa, threads in ONE_THREAD:
        with using(isa, threads):
            want = problem.results(cpu, a)
            for every in (1, 3, 100):
                assert_all_same(problem.results(cpu, a, checkpoint_every=every), want, f"every {every} ({isa})")


@pytest.mark.parametrize("cell", CELLS)
def test_backward_twice_from_checkpoints(cell, dtype, isa, rng):
    problem = Problem(cell, T=7, lengths=True, reset=True, directions=2, noise=NOISE["all noise"])
    a = problem.inputs(rng, dtype)
    *_, cache = problem.forward(cpu, a, checkpoint_every=3)
    first = {name: g.copy() for name, g in gradients(cpu, cache, a).items()}
    gradients(cpu, cache, a._replace(dy=2 * a.dy))
    assert_all_same(gradients(cpu, cache, a), first)


@pytest.mark.parametrize("cell", CELLS)
def test_checkpoints_of_the_reference(cell, rng):
    problem = Problem(cell, T=7, lengths=True, reset=True, directions=2, noise=NOISE["all noise"])
    a = problem.inputs(rng, np.float64)
    want = problem.results(reference, a)
    assert_all_same(problem.results(reference, a, checkpoint_every=3), want)


@pytest.mark.parametrize("option", [o for o in OPTIONS if OPTIONS[o].directions == 1 and _rowwise(o)], ids=", ".join)
def test_two_directions_are_each_alone(option, dtype, rng):
    """The forward one to the bit; and beside it the reverse one has no say in it."""
    alone = OPTIONS[option]
    both = replace(alone, directions=2)
    a = both.inputs(rng, dtype)
    P = both.P or both.H
    first = a._replace(
        h_0=None if a.h_0 is None else a.h_0[:1],
        c_0=None if a.c_0 is None else a.c_0[:1],
        weights=a.weights[:1],
        dy=a.dy[..., :P],
        dh_n=a.dh_n[:1],
        dc_n=None if a.dc_n is None else a.dc_n[:1],
        dcells=None if a.dcells is None else a.dcells[:1],
    )
    for isa, threads in SOME_WAYS:
        with using(isa, threads):
            got, want = both.results(cpu, a), alone.results(cpu, first)
        for name in want:
            if name == "dx":
                continue
            part = got[name][..., :P] if name == "y" else got[name] if name.endswith("[0]") else got[name][:1]
            assert_same_bits(part, want[name], f"{name} ({isa}, {threads} threads)")


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("zoneout", [(0.0, 0.0), (0.3, 0.6)])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stream_has_the_bits_of_the_sequence(cell, layers, zoneout, dtype, rng):
    noise = Noise(zoneout_h=zoneout[0], zoneout_c=zoneout[1])
    for B, H in ((1, 9), (1, 33), (5, 17)):
        _stream_is_sequence(Problem(cell, T=6, B=B, H=H, state="", noise=noise), layers, zoneout, dtype, rng)


STREAMED = options_named(
    "peephole", "projection", "wide projection", "layer norm", "layer norm, no bias", "no bias", "one bias", "the other bias"
)


@pytest.mark.parametrize("option", STREAMED, ids=", ".join)
def test_a_stream_with_options_has_the_bits_of_the_sequence(option, dtype, rng):
    _stream_is_sequence(replace(OPTIONS[option], T=6, state=""), 2, (0.0, 0.0), dtype, rng)


@pytest.mark.parametrize("cell", CELLS)
def test_a_thousand_streams_in_one_batch(cell, rng):
    _stream_is_sequence(Problem(cell, T=3, B=1000, H=12, state=""), 2, (0.0, 0.0), np.float32, rng)


def _stream_is_sequence(problem, layers, zoneout, dtype, rng):
    above = replace(problem, I=problem.P or problem.H)
    drawn = [(p, p.inputs(rng, dtype)) for p in [problem] + [above] * (layers - 1)]
    for isa, threads in SOME_WAYS:
        with using(isa, threads):
            packed, y = [], drawn[0][1].x
            for p, a in drawn:
                packed.append(cpu.recurrent_pack(p.cell, a.weights))
                y, *_ = p.forward(cpu, a._replace(x=y), training=False, states=False, packed=packed[-1])
            stream = cpu.recurrent_stream(tuple(packed), batch_size=problem.B, zoneout=zoneout)
            out = np.empty_like(y[0])
            for t, x_t in enumerate(drawn[0][1].x):
                if t % 2:
                    assert stream.step(x_t, out=out) is out
                    got = out
                else:
                    got = stream.step(x_t)
                assert_same_bits(got, y[t], f"step {t} ({isa}, {threads} threads)")


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_of_a_stream(cell, dtype, isa, rng):
    """Set, read, continued, and some rows of it forgotten, as the sequence does with h_0, c_0 and a reset."""
    problem = Problem(cell, T=6, reset=True)
    a = problem.inputs(rng, dtype)
    forgotten = np.array([False, True, False, True, True])
    a = a._replace(reset=np.zeros_like(a.reset))
    a.reset[3] = forgotten
    y, h_n, c_n, *_ = problem.forward(cpu, a, training=False, states=False)
    stream = cpu.recurrent_stream((cpu.recurrent_pack(cell, a.weights),), batch_size=problem.B)
    stream.state = (a.h_0, a.c_0) if cell == "lstm" else a.h_0
    for t, x_t in enumerate(a.x):
        if t == 3:
            stream.reset(np.flatnonzero(forgotten))
        assert_same_bits(stream.step(x_t), y[t], f"step {t}")
    h, c = stream.state if cell == "lstm" else (stream.state, None)
    assert_same_bits(h, h_n, "h")
    if c is not None:
        assert_same_bits(c, c_n, "c")
    stream.reset()
    fresh, *_ = problem.forward(cpu, a._replace(h_0=None, c_0=None, reset=None), training=False, states=False)
    assert_same_bits(stream.step(a.x[0]), fresh[0], "after a reset")



@pytest.mark.parametrize("cell", ["lstm", "gru_before"])
def test_ragged_rows_shared_out_over_chunks_of_the_input_product(cell, rng):
    """Large enough for its threads and for several chunks; the workers come to the chunks' ends at different times."""
    problem = Problem(cell, T=60, B=24, I=96, H=256)
    a = problem.inputs(rng, np.float32)._replace(lengths=rng.integers(5, 61, 24))
    with using(None, 1):
        want, *_ = problem.forward(cpu, a, training=False, states=False)
    for n in (2, 3):
        with using(None, n):
            for _ in range(20):
                got, *_ = problem.forward(cpu, a, training=False, states=False)
                assert_same_bits(got, want, f"{n} threads")
