"""The recurrent kernels against the reference in float64: every cell, option, dtype and instruction set; and masks."""

from dataclasses import replace

import numpy as np
import pytest

from fastseq.backends import cpu, reference
from fastseq.backends.recurrent import CELLS, Noise, Weights, gates_of
from tests.cases import WIDTHS
from tests.conftest import using
from tests.recurrent_problems import (
    NOISE,
    ONE_THREAD,
    OPTIONS,
    SOME_WAYS,
    Inputs,
    Problem,
    assert_all_same,
    gradients,
    options_named,
)
from tests.tolerance import assert_close, assert_same_bits


def assert_like_the_reference(problem, dtype, rng, **options):
    """All outputs and gradients on every instruction set, and nothing that was given is changed."""
    a = problem.inputs(rng, dtype)
    before = a.mapped(np.copy)
    want = problem.results(reference, a.wide(), **options)
    for isa, threads in SOME_WAYS:
        with using(isa, threads):
            got = problem.results(cpu, a, **options)
        assert got.keys() == want.keys()
        for name in got:
            assert_close(got[name], want[name], dtype=dtype, terms=problem.terms, name=f"{name} ({isa}, {threads} threads)")
    for (name, now), (_, then) in zip(a.arrays(), before.arrays(), strict=True):
        assert_same_bits(now, then, name)


# ---------------------------------------------------------------- values and gradients


def _sizes():
    """Every size on its own beside small ones: steps, batches, the input, and units around the vectors and tiles."""
    yield from ({"T": T, "B": B} for T in (1, 2, 7) for B in (1, 3))
    yield from ({"B": B, "T": 2} for B in (7, 13))
    yield from ({"I": I, "T": 2} for I in (0, 1, 17, 33))
    yield from ({"H": H, "B": 3, "T": 2} for H in WIDTHS)
    yield from ({"H": H, "B": 1, "T": 3} for H in (8, 33, 67))
    yield from ({"T": 0}, {"B": 0}, {"T": 0, "B": 0}, {"H": 0})
    yield {"T": 3, "B": 13, "I": 40, "H": 67}


@pytest.mark.parametrize("sizes", list(_sizes()), ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell, sizes, dtype, rng):
    assert_like_the_reference(Problem(cell, **sizes), dtype, rng)


@pytest.mark.parametrize("option", OPTIONS, ids=", ".join)
def test_options(option, dtype, rng):
    assert_like_the_reference(OPTIONS[option], dtype, rng)


LARGER = [o for o in OPTIONS if "," in o[1]] + options_named("lengths", "reset", "zoneout", "projection")


@pytest.mark.parametrize("option", LARGER, ids=", ".join)
def test_options_at_another_size(option, dtype, rng):
    """Tiles of rows and units, whole and not, and a batch that the threads split otherwise."""
    assert_like_the_reference(replace(OPTIONS[option], T=6, B=13, I=3, H=33), dtype, rng)


@pytest.mark.parametrize("option", [o for o in OPTIONS if "direction" in o[1] or "noise" in o[1]], ids=", ".join)
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}, {"B": 1, "H": 1, "T": 3}], ids=str)
def test_options_at_the_smallest_sizes(option, sizes, rng):
    assert_like_the_reference(replace(OPTIONS[option], **sizes), np.float32, rng)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(5,) * 4, (0,) * 4, (1, 0, 0, 0), (1, 2, 3, 4), (4, 3, 2, 1), (5, 0, 5, 0)], ids=str)
def test_lengths_in_any_order(cell, sizes, dtype, rng):
    problem = Problem(cell, T=5, B=4, directions=2, lengths=True)
    a = problem.inputs(rng, dtype)._replace(lengths=np.array(sizes))
    want = problem.results(reference, a.wide())
    for isa, threads in SOME_WAYS:
        with using(isa, threads):
            got = problem.results(cpu, a)
        for name in want:
            assert_close(got[name], want[name], dtype=dtype, terms=problem.terms, name=f"{name} ({isa}, {threads} threads)")
    for b, length in enumerate(sizes):
        assert not got["y"][length:, b].any()
        assert not got["dx"][length:, b].any()
        if length == 0:
            assert_same_bits(got["h_n"][:, b], a.h_0[:, b], "h_n of an empty row")
            assert_same_bits(got["dh_0"][:, b], a.dh_n[:, b], "dh_0 of an empty row")


@pytest.mark.parametrize("cell", CELLS)
def test_resets_everywhere_forget_everything(cell, dtype, isa, rng):
    """Then every step is the first one of a sequence of its own."""
    problem = Problem(cell, reset=True)
    a = problem.inputs(rng, dtype)
    a = a._replace(reset=np.ones_like(a.reset))
    got = problem.results(cpu, a)
    assert not got["dh_0"].any()
    for t in range(problem.T):
        step = a._replace(x=a.x[t : t + 1], h_0=None, c_0=None, reset=None)
        y, *_ = problem.forward(cpu, step, states=False)
        assert_same_bits(y[0], got["y"][t], f"step {t}")


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_reverse_direction_is_the_forward_one_on_reversed_rows(cell, backend, rng):
    """Row by row, with resets moved to the other side of their step."""
    problem = Problem(cell, T=6, directions=2, lengths=True, reset=True)
    a = problem.inputs(rng, np.float64)
    got = problem.results(backend, a)
    alone = replace(problem, directions=1, lengths=False)
    P = problem.H
    for b in range(problem.B):
        n = a.lengths[b]
        reset = np.zeros((n, 1), bool)
        reset[1:, 0] = a.reset[1:n, b][::-1]
        backwards = Inputs(
            x=a.x[:n, b : b + 1][::-1],
            h_0=a.h_0[1:, b : b + 1],
            c_0=None if a.c_0 is None else a.c_0[1:, b : b + 1],
            weights=a.weights[1:],
            lengths=None,
            reset=reset,
            dy=a.dy[:n, b : b + 1, P:][::-1],
            dh_n=a.dh_n[1:, b : b + 1],
            dc_n=None if a.dc_n is None else a.dc_n[1:, b : b + 1],
            dcells=None if a.dcells is None else a.dcells[1:, :n, b : b + 1][:, ::-1],
        )
        row = alone.results(backend, backwards)
        pairs = [("y", row["y"][::-1, 0], got["y"][:n, b, P:]), ("dstates", row["dstates"][0, ::-1, 0], got["dstates"][1, :n, b])]
        pairs += [(name, row[name][0, 0], got[name][1, b]) for name in ("h_n", "c_n", "dh_0", "dc_0") if name in row]
        for name, one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13, err_msg=f"{name}, row {b}")


# ---------------------------------------------------------------- what is asked for


@pytest.mark.parametrize("cell", CELLS)
def test_upstream_gradients_that_are_none_are_zeros(cell, dtype, isa, rng):
    problem = Problem(cell, directions=2)
    a = problem.inputs(rng, dtype)
    *_, cache = problem.forward(cpu, a, states=True)
    for given in ("dy", "dh_n", "dc_n", "dcells"):
        others = {name: getattr(a, name) for name in ("dy", "dh_n", "dc_n", "dcells") if name != given}
        only = a._replace(**dict.fromkeys(others))
        zeros = a._replace(**{name: None if value is None else np.zeros_like(value) for name, value in others.items()})
        got, want = gradients(cpu, cache, only), gradients(cpu, cache, zeros)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=f"{name} of {given} alone")  # -0 is 0


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_comes_that_was_not_asked_for(cell, dtype, rng):
    problem = Problem(cell, directions=2)
    a = problem.inputs(rng, dtype)
    want = problem.results(cpu, a)
    *_, c_n, cells, cache = problem.forward(cpu, a, training=False, states=False)
    assert cells is None
    assert cache is None
    assert (c_n is None) == (cell != "lstm")
    *_, cache = problem.forward(cpu, a, states=False)
    needs = {"need_dx": False, "need_weights": False}
    plain = cpu.recurrent_backward(cache, a.dy, a.dh_n, a.dc_n, **needs)
    assert plain["dx"] is None
    assert plain["weights"] is None or all(w is None for w in plain["weights"])
    assert plain.get("dstates") is None
    for need in needs:
        grads = cpu.recurrent_backward(cache, a.dy, a.dh_n, a.dc_n, **{need: False})
        assert (grads["dx"] is None) == (need == "need_dx")
    if cell != "lstm":
        assert_same_bits(plain["dh_0"], want["dh_0"], "dh_0 alone")
        assert want.get("dc_0") is None


@pytest.mark.parametrize("option", OPTIONS, ids=", ".join)
def test_recording_and_all_states_change_no_bit(option, dtype, rng):
    problem = OPTIONS[option]
    a = problem.inputs(rng, dtype)
    for isa, threads in ONE_THREAD:
        with using(isa, threads):
            y, h_n, c_n, cells, _ = problem.forward(cpu, a)
            for training, states in ((False, False), (True, False), (False, True)):
                plain = problem.forward(cpu, a, training=training, states=states)
                for name, got, want in zip(("y", "h_n", "c_n"), plain[:3], (y, h_n, c_n), strict=True):
                    assert (got is None) == (want is None)
                    if want is not None:
                        assert_same_bits(got, want, f"{name} ({isa}, {threads} threads)")
                if states and cells is not None:
                    assert_same_bits(plain[3], cells, "cells")


@pytest.mark.parametrize("option", OPTIONS, ids=", ".join)
def test_backward_twice(option, dtype, rng):
    """From one cache, with another gradient between; the outputs that it may refer to stay as they are."""
    problem = OPTIONS[option]
    a = problem.inputs(rng, dtype)
    for isa, threads in ONE_THREAD:
        with using(isa, threads):
            *outputs, cache = problem.forward(cpu, a)
            copies = [None if o is None else o.copy() for o in outputs]
            first = gradients(cpu, cache, a)
            kept = {name: g.copy() for name, g in first.items()}
            gradients(cpu, cache, a._replace(dy=2 * a.dy, dh_n=None, dcells=None))
            assert_all_same(gradients(cpu, cache, a), kept, f"again ({isa}, {threads} threads)")
            assert_all_same(first, kept, "of the first call")
            for o, copy in zip(outputs, copies, strict=True):
                assert copy is None or o.tobytes() == copy.tobytes()


# ---------------------------------------------------------------- packed weights


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("option", options_named("plain", "all but noise", "layer norm", "two directions", "no bias"), ids=", ".join)
def test_packed_weights_follow_every_number(option, backend, dtype, rng):
    problem = OPTIONS[option]
    a = problem.inputs(rng, dtype)
    packed = backend.recurrent_pack(problem.cell, a.weights)
    assert packed.cell == problem.cell
    assert len(packed.directions) == problem.directions
    again = backend.recurrent_pack(problem.cell, a.weights, packed=packed)
    if backend is cpu:
        assert again is packed
    for k, w in enumerate(a.weights):
        for name, value in zip(Weights._fields, w, strict=True):
            if value is None:
                continue
            place = (0,) * value.ndim
            value[place] += 1
            packed = backend.recurrent_pack(problem.cell, a.weights, packed=again)
            fresh = backend.recurrent_pack(problem.cell, a.weights)
            got, want = (problem.forward(backend, a, packed=p)[0] for p in (packed, fresh))
            assert_same_bits(got, want, f"after a change of {name}[{k}]")
            again = packed


@pytest.mark.parametrize("cell", CELLS)
def test_packed_weights_are_a_snapshot_or_follow(cell, rng):
    """Other weights under the same packed object: the numbers decide, not the arrays."""
    problem = Problem(cell, directions=2)
    a = problem.inputs(rng, np.float32)
    packed = cpu.recurrent_pack(cell, a.weights)
    same = cpu.recurrent_pack(cell, a.mapped(np.copy).weights, packed=packed)
    assert_same_bits(problem.forward(cpu, a, packed=same)[0], problem.forward(cpu, a)[0])
    other = problem.inputs(np.random.default_rng(5), np.float32)
    packed = cpu.recurrent_pack(cell, other.weights, packed=packed)
    assert_same_bits(problem.forward(cpu, other, packed=packed)[0], problem.forward(cpu, other)[0])


# ---------------------------------------------------------------- masks


def mask_words(noise, kind, direction, t, B, H):
    """The words that Philox draws for every row and unit at step t, from the definition."""
    counter = np.array([[kind, noise.layer + direction, noise.call, 0x7265636E]], np.uint64)
    w0, w1 = (int(w) for w in reference._philox(noise.seed, counter)[0, :2])
    blocks = (H + 3) // 4
    counters = [(u, t, b, 0) for b in range(B) for u in range(blocks)]
    words = reference._philox(w0 | w1 << 32, np.array(counters, np.uint64))
    return words.reshape(B, 4 * blocks)[:, :H]


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("direction", [0, 1])
def test_recurrent_dropout_draws_its_masks_by_the_definition(backend, direction, dtype, isa):
    """ReLU units that only copy themselves: h_1 of ones is the mask itself, and later states its powers."""
    T, B, H, p = 3, 3, 37, 0.4
    noise = Noise(recurrent_dropout=p, training=True, seed=2**63 + 9, layer=5, call=2)
    w = Weights(np.zeros((H, 1), dtype), np.eye(H, dtype=dtype))
    packed = backend.recurrent_pack("rnn_relu", (w, w))
    y, *_ = backend.recurrent_forward(np.zeros((T, B, 1), dtype), np.ones((2, B, H), dtype), None, packed, noise=noise)
    keep = mask_words(noise, 0, direction, 0, B, H) >= np.ceil(p * 2.0**32)
    assert 0 < keep.mean() < 1
    half = y[:: -1 if direction else 1, :, direction * H : (direction + 1) * H]
    for t in range(T):
        np.testing.assert_allclose(half[t], keep / (1 - p) ** (t + 1), rtol=1e-6)


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("direction", [0, 1])
def test_zoneout_draws_its_masks_by_the_definition(backend, direction, dtype, isa):
    """ReLU units that only see their input, another one at every step: those that stay as they were are the mask."""
    T, B, H, p = 4, 3, 37, 0.4
    noise = Noise(zoneout_h=p, training=True, seed=77, layer=2**32 - 2, call=2**31)
    w = Weights(np.ones((H, 1), dtype), np.zeros((H, H), dtype))
    packed = backend.recurrent_pack("rnn_relu", (w, w))
    x = np.broadcast_to(np.arange(1, T + 1, dtype=dtype)[:, None, None], (T, B, 1)).copy()
    y, *_ = backend.recurrent_forward(x, None, None, packed, noise=noise)
    h = np.zeros((B, H))
    for t in range(T)[:: -1 if direction else 1]:
        keep = mask_words(noise, 1, direction, t, B, H) < np.ceil(p * 2.0**32)
        h = np.where(keep, h, x[t])
        np.testing.assert_array_equal(y[t, :, direction * H : (direction + 1) * H], h)


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
def test_zoneout_of_c_draws_its_masks_by_the_definition(backend, dtype, isa):
    """An LSTM whose gates are shut or open and whose candidate is 1: c_t = c_{t-1} + 1, or c_{t-1} where it is kept."""
    T, B, H, p = 5, 3, 37, 0.4
    noise = Noise(zoneout_c=p, training=True, seed=77, layer=1, call=3)
    bias = np.full(4 * H, 200, dtype)
    w = Weights(np.zeros((4 * H, 1), dtype), np.zeros((4 * H, H), dtype), bias)
    packed = backend.recurrent_pack("lstm", (w,))
    _, _, c_n, cells, _ = backend.recurrent_forward(np.zeros((T, B, 1), dtype), None, None, packed, noise=noise, states=True)
    c = np.zeros((B, H))
    for t in range(T):
        keep = mask_words(noise, 2, 0, t, B, H) < np.ceil(p * 2.0**32)
        c = np.where(keep, c, c + 1)
        np.testing.assert_array_equal(cells[0, t], c)
    np.testing.assert_array_equal(c_n[0], c)


@pytest.mark.parametrize("cell", CELLS)
def test_other_seeds_layers_and_calls_draw_other_masks(cell, rng):
    for name in ("recurrent dropout", "zoneout"):
        problem = Problem(cell, noise=NOISE[name])
        a = problem.inputs(rng, np.float32)
        seen = {problem.forward(cpu, a)[0].tobytes()}
        for field in ("seed", "layer", "call"):
            noise = problem.noise._replace(**{field: getattr(problem.noise, field) - 1})
            seen.add(replace(problem, noise=noise).forward(cpu, a)[0].tobytes())
        assert len(seen) == 4


# ---------------------------------------------------------------- memory and special numbers


def _spread(a):
    wide = np.zeros(tuple(2 * n + 1 for n in a.shape), a.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
    view[...] = a
    return view


def _unaligned(a):
    view = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = {"fortran": np.asfortranarray, "strided": _spread, "unaligned": _unaligned, "read-only": _read_only}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("option", options_named("two directions, lengths, reset", "all but noise", "layer norm"), ids=", ".join)
def test_any_layout_gives_the_same_bits(option, layout, dtype, rng):
    problem = OPTIONS[option]
    a = problem.inputs(rng, dtype)
    assert_all_same(problem.results(cpu, a.mapped(LAYOUTS[layout])), problem.results(cpu, a))


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row_and_after_its_step(cell, dtype, isa, rng):
    problem = Problem(cell, T=4, B=5)
    a = problem.inputs(rng, dtype)
    spoiled = a._replace(x=a.x.copy())
    spoiled.x[1, 2, 0] = np.nan
    clean, dirty = (problem.forward(cpu, b, training=False, states=False)[0] for b in (a, spoiled))
    assert np.isnan(dirty[1:, 2]).all()
    rows = [0, 1, 3, 4]
    assert_same_bits(dirty[:, rows], clean[:, rows])
    assert_same_bits(dirty[0], clean[0])


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_stops_nan(cell, dtype, isa, rng):
    """The state is replaced, not multiplied by zero; and so is the gradient."""
    problem = Problem(cell, T=4, B=5, reset=True)
    a = problem.inputs(rng, dtype)
    a = a._replace(reset=np.zeros_like(a.reset))
    a.reset[2] = True
    want = problem.results(cpu, a)
    spoiled = a._replace(x=a.x.copy(), dy=a.dy.copy())
    spoiled.x[1, 2, 0] = np.nan
    got = problem.results(cpu, spoiled)
    assert_same_bits(got["y"][2:], want["y"][2:])
    spoiled = a._replace(dy=a.dy.copy())
    spoiled.dy[2, 2] = np.nan
    got = problem.results(cpu, spoiled)
    assert_same_bits(got["dx"][:2], want["dx"][:2])
    assert_same_bits(got["dh_0"], want["dh_0"])


def test_the_number_of_gates():
    assert [gates_of(cell) for cell in CELLS] == [1, 1, 4, 3, 3, 3, 3, 3]
