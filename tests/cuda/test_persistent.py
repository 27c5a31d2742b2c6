"""The persistent kernels against the reference, whose W_ih is the unit matrix: x then is what the kernels take as products."""

from dataclasses import dataclass

import numpy as np
import pytest

from fastseq.backends import cuda_persistent as persistent
from fastseq.backends import precision, reference
from fastseq.backends.cuda_launch import LaunchRefused
from fastseq.backends.recurrent import Weights, gates_of
from tests.tolerance import assert_close


@dataclass(frozen=True)
class Case:
    """Sizes and options of one direction of a layer."""

    cell: str
    T: int
    B: int
    H: int
    reverse: bool = False
    options: str = "bias state lengths reset dy dh_n dc_n"


@pytest.fixture
def precise():
    """Sets the precision for a test."""
    yield precision.set_precision
    precision.set_precision("highest")


def inputs(case, seed=0):
    """Arrays by name; None for those that the options leave out."""
    rng = np.random.default_rng(seed)
    T, B, H, G = case.T, case.B, case.H, gates_of(case.cell)

    def normal(option, *shape, spread=0.5):
        return (spread * rng.standard_normal(shape)).astype(np.float32) if option in case.options else None

    return {
        "xp": normal("", T, B, G * H),
        "w_hh": normal("", G * H, H, spread=1 / np.sqrt(H)),
        "b_ih": normal("bias", G * H),
        "b_hh": normal("bias", G * H),
        "h_0": normal("state", B, H, spread=3.0),
        "c_0": normal("state", B, H) if case.cell == "lstm" else None,
        "lengths": rng.integers(0 if B > 1 else T, T + 1, B) if "lengths" in case.options else None,
        "reset": rng.random((T, B)) < 0.3 if "reset" in case.options else None,
        "dy": normal("dy", T, B, H),
        "dh_n": normal("dh_n", B, H),
        "dc_n": normal("dc_n", B, H) if case.cell == "lstm" else None,
    }


def wanted(case, a):
    """All results by the reference, in float64."""
    a = {k: v.astype(np.float64) if v is not None and v.dtype == np.float32 else v for k, v in a.items()}
    H, d = case.H, int(case.reverse)
    w = Weights(np.eye(a["xp"].shape[-1]), a["w_hh"], a["b_ih"], a["b_hh"])
    if w.b_ih is None:
        w = w._replace(b_ih=np.zeros(len(w.w_ih)), b_hh=np.zeros(len(w.w_ih)))
    packed = reference.recurrent_pack(case.cell, (w,) * (d + 1))

    def both(x, axis):  # the other direction has zeros
        return None if x is None else np.stack([x] * (d + 1), axis)

    y, h_n, c_n, _, cache = reference.recurrent_forward(
        a["xp"], both(a["h_0"], 0), both(a["c_0"], 0), packed, lengths=a["lengths"], reset=a["reset"], training=True
    )
    dy = None
    if a["dy"] is not None:
        dy = np.concatenate([np.zeros_like(a["dy"])] * d + [a["dy"]], axis=2)
    back = reference.recurrent_backward(
        cache, dy, *(None if x is None else np.stack([np.zeros_like(x)] * d + [x]) for x in (a["dh_n"], a["dc_n"]))
    )
    found = {
        "y": y[..., d * H :], "h_n": h_n[d], "dgates": back["dx"], "dh_0": back["dh_0"][d],
        "dw_hh": back["weights"][d].w_hh, "db_hh": back["weights"][d].b_hh,
    }  # fmt: skip
    return found | ({"c_n": c_n[d], "dc_0": back["dc_0"][d]} if case.cell == "lstm" else {})


def states_before(case, a, y):
    """h_{t-1} of each step that is run, 0 elsewhere."""
    T, B, H = y.shape
    h_0 = np.zeros((B, H)) if a["h_0"] is None else a["h_0"]
    lengths = np.full(B, T) if a["lengths"] is None else a["lengths"]
    before = np.zeros((T, B, H))
    for b, n in enumerate(lengths):
        for t in range(n):
            first, previous = (t == n - 1, t + 1) if case.reverse else (t == 0, t - 1)
            later = t + 1 if case.reverse else t
            if a["reset"] is not None and later < n and a["reset"][later, b]:
                continue
            before[t, b] = h_0[b] if first else y[previous, b]
    return before


def got(case, a, to_gpu, cuts=(None, None)):
    """All results by the kernels."""
    g = {k: None if v is None else to_gpu(v) for k, v in a.items()}
    b = None if a["b_ih"] is None else (g["b_ih"], g["b_hh"])
    y, h_n, c_n, saved = persistent.forward(
        case.cell, g["xp"], g["w_hh"], b, g["h_0"], g["c_0"], g["lengths"], g["reset"], case.reverse, True, cut=cuts[0]
    )
    plain = persistent.forward(
        case.cell, g["xp"], g["w_hh"], b, g["h_0"], g["c_0"], g["lengths"], g["reset"], case.reverse, False, cut=cuts[0]
    )
    np.testing.assert_array_equal(plain[0].get(), y.get())
    assert plain[3] is None
    results = [
        [x if x is None else x.get() for x in persistent.backward(case.cell, saved, g["w_hh"], g["dy"], g["dh_n"], g["dc_n"], cut=cuts[1])]
        for _ in range(2)
    ]
    dgates, dgates_h, dh_0, dc_0 = results[0]
    for x, again in zip(*results, strict=True):
        np.testing.assert_array_equal(x, again)
    y = y.get()
    width = dgates_h.shape[-1]
    flat = dgates_h.reshape(-1, width).astype(np.float64)
    dw = (flat.T @ states_before(case, a, y).reshape(-1, case.H)).astype(np.float32)
    found = {"y": y, "h_n": h_n.get(), "dgates": dgates, "dh_0": dh_0, "dw_hh": dw, "db_hh": flat.sum(0).astype(np.float32)}
    if case.cell == "gru":
        assert c_n is None
        assert dc_0 is None
        return found
    return found | {"c_n": c_n.get(), "dc_0": dc_0}


def check(case, to_gpu, kind="highest", cuts=(None, None)):
    """Compares every result."""
    a = inputs(case)
    want, have = wanted(case, a), got(case, a, to_gpu, cuts)
    assert want.keys() == have.keys()
    for name, value in have.items():
        if kind == "highest":
            if want[name].any():
                assert_close(value, want[name], terms=case.T * (case.H * 4 + case.B + 16), name=name)
            else:
                np.testing.assert_array_equal(value, want[name])
        else:
            usual = np.sqrt(np.mean(want[name] ** 2))
            if name == "dw_hh" and a["h_0"] is not None:  # an error of dgates comes times h, and some of h_0 are far from their usual size
                usual = max(usual, np.sqrt(np.mean(want["dgates"] ** 2)) * np.abs(a["h_0"]).max())
            assert (np.abs(value - want[name]) <= 2**-6 * (np.abs(want[name]) + usual)).all(), name


CASES = [
    Case("lstm", 5, 3, 20),
    Case("gru", 5, 3, 20),
    Case("lstm", 4, 2, 17, reverse=True),
    Case("gru", 4, 2, 18, reverse=True),
    Case("lstm", 3, 2, 16, options=""),
    Case("gru", 3, 1, 16, options="dy"),
    Case("lstm", 1, 1, 1),
    Case("lstm", 6, 20, 40, options="bias lengths dc_n"),
    Case("gru", 6, 20, 40, options="bias state reset dy"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_the_references(case, to_gpu):
    check(case, to_gpu)


def in_several_blocks(case):
    """The cuts, forwards and backwards, whose blocks exchange what they have."""
    both = persistent.forward_cuts, persistent.backward_cuts
    several = [[c for c in cuts(case.cell, case.H, case.B, 2, 4, 232448) if c.grid > c.groups] for cuts in both]
    return [min(cuts, key=lambda c: c.cost, default=None) for cuts in several]


@pytest.mark.parametrize("case", [c for c in CASES if c.H > 16], ids=str)
def test_several_blocks_exchange_their_states(case, to_gpu):
    check(case, to_gpu, cuts=in_several_blocks(case))


@pytest.mark.parametrize("kind", ["high", "medium"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_operands_of_11_bits(cell, kind, to_gpu, precise):
    precise(kind)
    check(Case(cell, 4, 3, 24), to_gpu, kind)


def cut_of(cuts, **wanted):
    """The first cut with these properties."""
    return next(c for c in cuts if all(getattr(c, name) == value for name, value in wanted.items()))


# A second tile of rows, loads in parts, sums divided by 8 warps or by none; gradients of several columns, of two cells in a thread.
WAYS = [
    ("lstm", 70, 18, {"rows": 32, "shares": 1, "units": 32}, {"rows": 32, "units": 32, "warps": 4, "tiles": 2}),
    ("gru", 36, 18, {"rows": 32, "shares": 8, "units": 16}, {"rows": 32, "units": 32, "warps": 8, "tiles": 2}),
]


@pytest.mark.parametrize(("cell", "H", "B", "forward", "backward"), WAYS)
def test_cuts_that_larger_gpus_and_layers_have(cell, H, B, forward, backward, to_gpu, emulated):
    emulated.multiprocessors = 16
    sizes = (cell, H, B, 2, 132, 232448)
    cuts = cut_of(persistent.forward_cuts(*sizes), **forward)._replace(batch=1), cut_of(persistent.backward_cuts(*sizes), **backward)
    check(Case(cell, 3, B, H), to_gpu, cuts=cuts)


def columns_of(cell, rows, tiles):
    """The unit and the gate of each of a block's columns, as `column` in persistent_forward.cu has them."""
    values = 3 if cell == "gru" else 2
    for tile in range(tiles):
        for n in range(8):
            value = tile % values * 2 + n % 2
            if rows <= 8:
                yield tile // gates_of(cell) * 8 + n, tile % gates_of(cell)
            elif cell == "gru":
                yield tile // 3 * 8 + n // 2 * 2 + value // 3, value % 3
            else:
                yield tile // 2 * 4 + n // 2, value


@pytest.mark.parametrize(("multiprocessors", "shared"), [(132, 232448), (108, 166912), (84, 101376), (4, 232448)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_cut_fits_and_covers_all_units_and_rows(cell, multiprocessors, shared):
    found = 0
    for H in (1, 7, 16, 40, 96, 128, 192, 200, 256, 300, 511, 512, 640, 768, 1000, 1024, 1100, 2048):
        for B in (1, 2, 5, 16, 17, 32, 48, 64, 100, 256):
            for split in (1, 2):
                sizes = (cell, H, B, split, multiprocessors, shared)
                for cut in persistent.forward_cuts(*sizes):
                    found += 1
                    assert cut.grid <= multiprocessors
                    assert cut.shared <= shared
                    assert cut.threads <= 256
                    assert (cut.groups - 1) * cut.rows < B <= cut.groups * cut.rows
                    assert (cut.unit_blocks - 1) * cut.units < H <= cut.unit_blocks * cut.units
                    assert cut.units % 8 == 0
                    assert cut.shares * cut.steps * 16 >= H
                    assert 2 * cut.steps * cut.tiles * split + 4 * cut.tiles + 4 * cut.batch * split < 255
                    gates = gates_of(cell)
                    whole = {(unit, gate) for unit in range(cut.units) for gate in range(gates)}
                    assert sorted(whole) == sorted(columns_of(cell, cut.rows, cut.sides * cut.tiles))
                for cut in persistent.backward_cuts(*sizes):
                    found += 1
                    assert cut.grid <= multiprocessors
                    assert cut.shared <= shared
                    assert (cut.groups - 1) * cut.rows < B <= cut.groups * cut.rows
                    assert (cut.unit_blocks - 1) * cut.units < H <= cut.unit_blocks * cut.units
                    assert (cut.column_blocks - 1) * cut.columns < H <= cut.column_blocks * cut.columns
                    assert cut.columns % cut.units == 0
                    assert cut.units in (32, 64, 128)  # a row's threads are a part of a warp
                    assert gates_of(cell) * cut.units // 8 * cut.tiles * split + 4 * cut.tiles < 255
                    t = cut.tiles
                    turned = {8 * t * w + n * t + j for w in range(cut.warps) for j in range(t) for n in range(8)}
                    others = {8 * t * w + j // 2 * 16 + n // 2 * 4 + j % 2 * 2 + n % 2 for w in range(cut.warps) for j in range(t) for n in range(8)}
                    assert turned == others == set(range(cut.columns))
    assert found


def test_what_does_not_fit_is_said(cupy, to_gpu):
    assert not persistent.fits("lstm", 8, 2, np.dtype(np.float64))
    assert not persistent.fits("lstm", 100_000, 2, np.dtype(np.float32))
    assert not persistent.fits("gru", 0, 2, np.dtype(np.float32))
    assert not persistent.fits("rnn_tanh", 8, 2, np.dtype(np.float32))
    assert persistent.fits("gru", 8, 2, np.dtype(np.float32))
    with pytest.raises(ValueError, match="do not fit"):
        persistent.forward("lstm", cupy.zeros((1, 10**5, 4), np.float32), cupy.zeros((4, 1), np.float32), *[None] * 5, False, False)


def test_a_refused_launch_is_an_exception(cupy, to_gpu):
    cut = cut_of(persistent.forward_cuts("lstm", 8, 1, 2, 132, 232448), rows=1)
    cut = cut._replace(groups=10_000)
    a = inputs(Case("lstm", 2, 1, 8))
    with pytest.raises(LaunchRefused, match="COOPERATIVE"):
        persistent.forward("lstm", to_gpu(a["xp"]), to_gpu(a["w_hh"]), *[None] * 5, False, False, cut=cut)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_no_number_stays_in_its_row(cell, to_gpu):
    case = Case(cell, 3, 3, 16, options="dy")
    a = inputs(case)
    a["xp"][0, 1, 5] = np.nan
    have = got(case, a, to_gpu)
    for name in ("y", "dgates"):
        assert np.isnan(have[name][:, 1]).any()
        assert np.isfinite(have[name][:, [0, 2]]).all()


@pytest.mark.parametrize("bits", [0xFFFFFFFF, 0xFFC00000, 0x7F800001, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x80000000, 0x00000001], ids=hex)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_no_number_is_taken_for_one_that_is_not_written(cell, bits, to_gpu):
    """Every block ends, whatever the blocks exchange, the words of memory that is not written among it; and other rows see none of it."""
    case = Case(cell, 9, 20, 40, options="state dy dh_n dc_n")
    clean, a = inputs(case), inputs(case)
    for name in ("h_0", "dh_n"):
        a[name][1] = np.uint32(bits).view(np.float32)
    for name in ("xp", "dy"):
        a[name][4, 1] = np.uint32(bits).view(np.float32)
    cuts = in_several_blocks(case)
    assert all(cut.grid > cut.groups for cut in cuts)
    with np.errstate(invalid="ignore"):
        found, want = (got(case, x, to_gpu, cuts) for x in (a, clean))
    for name in ("y", "dgates"):
        np.testing.assert_array_equal(*(np.delete(results[name], 1, axis=1) for results in (found, want)))
    if not np.isfinite(np.uint32(bits).view(np.float32)):
        assert not np.isfinite(found["dh_0"][1]).all()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("kind", ["highest", "high"])
@pytest.mark.parametrize(("H", "B"), [(1024, 32), (1000, 7), (512, 64), (384, 33), (192, 16), (128, 64)])
def test_large_layers(cell, kind, H, B, to_gpu, precise, real_gpu):
    precise(kind)
    if persistent.fits(cell, H, B, np.dtype(np.float32)):
        check(Case(cell, 20, B, H, reverse=B % 2 == 1), to_gpu, kind)


def test_the_precision_of_the_forward_pass_is_the_backward_passs_too(to_gpu, precise):
    case = Case("lstm", 3, 2, 16, options="dy")
    g = {k: None if v is None else to_gpu(v) for k, v in inputs(case).items()}
    precise("high")
    saved = persistent.forward("lstm", g["xp"], g["w_hh"], *[None] * 5, False, True)[3]
    results = []
    for kind in ("high", "highest"):
        precise(kind)
        results.append(persistent.backward("lstm", saved, g["w_hh"], g["dy"], None, None)[0].get())
    np.testing.assert_array_equal(*results)
