"""The attention decoder on a GPU against the reference in float64: cells, scores, ragged batches, and both ways of launching its steps."""

import importlib
import itertools
from dataclasses import replace

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional
from fastseq.backends import reference
from tests.cases import computed_by
from tests.decoder_problems import ATTENTIONS, Problem, results
from tests.tolerance import assert_close, assert_same_bits

CELLS = ("lstm", "gru")


@pytest.fixture(scope="module")
def cuda():
    return importlib.import_module("fastseq.backends.cuda_decoder")


@pytest.fixture
def use_cut(monkeypatch):
    """Makes decoders be cut so."""
    module = importlib.import_module("fastseq.backends.cuda_decoder_cut")

    def use(*cut):
        monkeypatch.setattr(module, "fastest", lambda device, problem: (module.Cut(*cut), module.layout(problem, module.Cut(*cut))))

    return use


@pytest.fixture(scope="module")
def on_gpu(to_gpu):
    """All results of a problem on the GPU, as NumPy arrays."""

    def found(inputs, options, upstream):
        return {name: a.get() for name, a in results(to_gpu(inputs), options, to_gpu(upstream)).items()}

    return found


def wide(arrays):
    return {name: a.astype(np.float64) for name, a in arrays.items()}


def by_reference(inputs, options, upstream):
    with computed_by(reference):
        return results(wide(inputs), options, [None if d is None else d.astype(np.float64) for d in upstream])


SIZES = [
    Problem(T=2, B=6, S=1, I=1, H=1, M=1, A=1),
    Problem(T=1, B=2, S=7, I=3, H=16, M=5, A=17),
    Problem(T=4, B=17, S=9, I=8, H=36, M=16, A=15),
    Problem(T=3, B=2, S=35, I=4, H=67, M=40, A=70),
]
PROBLEMS = [
    replace(size, cell=cell, attention=attention, ragged=ragged) for size in SIZES for cell in CELLS for attention in ATTENTIONS for ragged in (False, True)
]
EMPTY = [replace(Problem(ragged=False), **{name: 0}) for name in "TBS"] + [Problem(attention="dot", S=0), Problem(cell="gru", T=0)]
PROBLEMS += EMPTY + [replace(p, state=False, weights=False) for p in (*SIZES, *EMPTY)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_values_and_gradients(problem, on_gpu, rng):
    dtype = np.float32
    inputs, options, upstream = problem.inputs(rng, dtype), problem.options(rng), problem.upstream(rng, dtype)
    want, got = by_reference(inputs, options, upstream), on_gpu(inputs, options, upstream)
    terms = max(problem.T, 1) * (problem.I + problem.H + problem.width + problem.A + problem.S + problem.B)
    assert got.keys() == want.keys()
    for name in got:
        assert_close(got[name], want[name], dtype=dtype, terms=terms, name=name)


@pytest.mark.parametrize("cell", CELLS)
def test_float64(cell, on_gpu, rng):
    for attention in ("additive", "bilinear"):
        problem = Problem(cell, attention, T=3, B=9, S=6, I=5, H=19, M=12, A=21, ragged=True)
        inputs, options, upstream = problem.inputs(rng, np.float64), problem.options(rng), problem.upstream(rng, np.float64)
        want, got = by_reference(inputs, options, upstream), on_gpu(inputs, options, upstream)
        for name in want:
            assert_close(got[name], want[name], terms=300, name=f"{attention}: {name}")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("variant", [(1, 2), (2, 1), (2, 2), (4, 1), (4, 2)], ids=str)
def test_every_task_size_and_both_ways_of_launching(cell, variant, cuda, on_gpu, use_cut, monkeypatch, rng):
    """One cooperative launch and one launch for each phase of each step: the same bits."""
    problem = Problem(cell, T=3, B=35, S=6, I=5, H=21, M=19, A=35, ragged=True)
    inputs, options, upstream = problem.inputs(rng, np.float32), problem.options(rng), problem.upstream(rng, np.float32)
    use_cut(*variant, 1, False, False)
    want, whole = by_reference(inputs, options, upstream), on_gpu(inputs, options, upstream)
    monkeypatch.setattr(cuda, "cooperative", lambda: False)
    single = on_gpu(inputs, options, upstream)
    for name in want:
        assert_close(whole[name], want[name], terms=400, name=name)
        assert_same_bits(single[name], whole[name], name)


def test_blocks_that_cannot_all_run_at_a_time(cuda, cupy, to_gpu, monkeypatch, rng):
    """A refused launch is followed by one for each phase; another error is not hidden."""
    problem = Problem(T=2, B=2, S=3)
    inputs, options = to_gpu(problem.inputs(rng, np.float32)), problem.options(rng)
    want = functional.attention_decoder_forward(**inputs, **options)[0]
    word = "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE"

    def refused(*arguments):
        error = cupy.cuda.driver.CUDADriverError.__new__(cupy.cuda.driver.CUDADriverError)
        error.args = (word,)
        raise error

    monkeypatch.setattr(cuda._Loop, "whole", refused)
    with pytest.warns(RuntimeWarning, match="no cooperative launch for an attention decoder"):
        again = functional.attention_decoder_forward(**inputs, **options)[0]
    assert_same_bits(again.get(), want.get())
    word = "CUDA_ERROR_ILLEGAL_ADDRESS"
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        functional.attention_decoder_forward(**inputs, **options)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("parts", [1, 3])
def test_what_blocks_keep_changes_no_bit(cell, attention, parts, on_gpu, use_cut, rng):
    """Blocks that share a row; keys and weights in shared memory and not."""
    problem = Problem(cell, attention, T=3, B=1, S=11, I=5, H=21, M=21, A=30)
    inputs, upstream = problem.inputs(rng, np.float32), problem.upstream(rng, np.float32)
    options = {"cell": cell, "attention": attention, "memory_lengths": [9]}
    want, found = by_reference(inputs, options, upstream), []
    for keeps, holds in ((False, False), (True, False), (False, True), (True, True)):
        use_cut(1, 2, parts, keeps, holds)
        found.append(on_gpu(inputs, options, upstream))
    for name in want:
        assert_close(found[0][name], want[name], terms=400, name=name)
        for other in found[1:]:
            assert_same_bits(other[name], found[0][name], name)


def test_the_cut_of_a_large_gpu(monkeypatch):
    """Nothing is larger than a block's shared memory, blocks with something to keep have a multiprocessor each, and small steps are cut small."""
    module = importlib.import_module("fastseq.backends.cuda_decoder_cut")
    here = module.properties()
    monkeypatch.setattr(module, "properties", lambda: here._replace(multiprocessors=132, shared_per_block=227 * 1024))
    module.fastest.cache_clear()
    for B, S, H, item, direction in itertools.product((1, 16, 32, 64, 200), (1, 30, 100, 20000), (64, 256, 512, 1024), (4, 8), ("forward", "backward")):
        problem = module.Problem(direction, 4, module.Sizes(0, B, S, 0, H, H, H), item, True, True)
        cut, layout = module.fastest(0, problem)
        assert layout.reals * item <= 227 * 1024
        assert not cut.keeps or B * cut.parts <= 132
        assert not cut.holds or layout.tasks <= max(132, B * cut.parts)
        assert cut.parts == 1 or S <= 8192
        if B == 32 and H == 256:
            assert cut.holds
    module.fastest.cache_clear()


@pytest.mark.parametrize("attention", ["additive", "bilinear"])
def test_a_long_memory_and_wide_vectors(attention, on_gpu, monkeypatch, rng):
    """Scores that find no room in shared memory, and vectors of more than four units for each thread."""
    monkeypatch.setattr(importlib.import_module("fastseq.backends.cuda_decoder_cut"), "_SCORES_BYTES", 64)
    problem = Problem("gru", attention, T=2, B=2, S=70, I=2, H=9, M=1030, A=1100)
    inputs, options, upstream = problem.inputs(rng, np.float32), problem.options(rng), problem.upstream(rng, np.float32)
    want, got = by_reference(inputs, options, upstream), on_gpu(inputs, options, upstream)
    for name in want:
        assert_close(got[name], want[name], terms=4000, name=name)


@pytest.mark.parametrize("ragged", [False, True])
def test_queries_and_keys_beyond_the_range_of_exponentials(ragged, on_gpu, rng):
    """Rows with far keys, with near ones, and with a query that is far in the first step only."""
    problem = Problem(T=4, B=5, S=6, I=3, H=9, M=8, A=19, ragged=ragged)
    inputs, options, upstream = problem.inputs(rng, np.float32), problem.options(rng), problem.upstream(rng, np.float32)
    inputs["memory"][1, 0] *= 1000
    inputs["h_0"][4] *= 3000
    inputs["u"] *= 0.1
    want, got = by_reference(inputs, options, upstream), on_gpu(inputs, options, upstream)
    for name in want:
        bound = 5000 * np.finfo(np.float32).eps * (1 + np.abs(want[name]).max())
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_whatever_lies_past_the_end_of_a_row(cell, attention, on_gpu, rng):
    """NaN past the ends: bit for bit what other numbers give."""
    problem = Problem(cell, attention, T=5, B=7, S=6, I=4, H=19, M=19, A=21, ragged=True)
    inputs, options, upstream = problem.inputs(rng, np.float32), problem.options(rng), problem.upstream(rng, np.float32)
    want = on_gpu(inputs, options, upstream)
    for b, (T, S) in enumerate(zip(options["lengths"], options["memory_lengths"], strict=True)):
        inputs["x"][T:, b] = upstream[0][T:, b] = upstream[3][T:, b] = np.nan
        inputs["memory"][S:, b] = upstream[3][:, b, S:] = np.nan
    got = on_gpu(inputs, options, upstream)
    for name in want:
        assert_same_bits(got[name], want[name], name)
        assert np.isfinite(got[name]).all()
    for b, (T, S) in enumerate(zip(options["lengths"], options["memory_lengths"], strict=True)):
        assert not got["outputs"][T:, b].any()
        assert not got["weights"][T:, b].any()
        assert not got["weights"][:, b, S:].any()


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_large_scores_and_nan(attention, to_gpu, rng):
    problem = Problem(attention=attention, T=2, B=2, S=5, I=3, H=8, M=8, A=7)
    inputs, options = problem.inputs(rng, np.float32), problem.options(rng)

    def outputs_of(**changed):
        return [a.get() for a in functional.attention_decoder_forward(**to_gpu(inputs | changed), **options)[:4]]

    for scale in (1e4, 1e30):
        found = outputs_of(memory=(scale * inputs["memory"]).astype(np.float32), w_ih=0 * inputs["w_ih"])
        assert all(np.isfinite(a).all() for a in found)
        np.testing.assert_allclose(found[3].sum(axis=2), 1, rtol=1e-5)
    memory = inputs["memory"].copy()
    memory[2, 1] = np.nan
    found = outputs_of(memory=memory)
    assert np.isnan(found[0][:, 1]).all()
    assert np.isfinite(found[0][:, 0]).all()


def test_the_same_bits_again_and_backward_twice_from_one_cache(to_gpu, rng):
    problem = Problem(T=4, B=5, S=6, I=3, H=9, M=8, A=7, ragged=True)
    inputs, options = to_gpu(problem.inputs(rng, np.float32)), problem.options(rng)
    do, dh, dc, da = to_gpu(problem.upstream(rng, np.float32))
    *_, cache = functional.attention_decoder_forward(**inputs, **options)
    whole = functional.attention_decoder_backward(cache, do, dh=dh, dc=dc, dweights=da)
    again = functional.attention_decoder_backward(cache, do, dh=dh, dc=dc, dweights=da)
    for name, found in whole.items():
        assert_same_bits(again[name].get(), found.get(), name)
        assert again[name] is not found


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", [*ATTENTIONS, None])
@pytest.mark.parametrize("feeding", [True, False])
def test_the_layer_whole_and_step_by_step(cell, attention, feeding, to_gpu, rng):
    """The same layer on the host and on the device; generation with a memory in another order."""
    layer = fs.nn.AttentionDecoder(4, 8, 8, cell=cell, attention=attention, input_feeding=feeding, rng=1)
    x, memory = rng.standard_normal((5, 3, 4)).astype(np.float32), rng.standard_normal((6, 3, 8)).astype(np.float32)
    lengths, order = [6, 2, 4], np.array([2, 0, 0, 1])
    want, _ = layer(x, memory, memory_lengths=lengths)
    layer.to("cuda")
    x, memory = to_gpu(x), to_gpu(memory)
    got, _ = layer(x, memory, memory_lengths=lengths)
    assert_close(got.get(), want, terms=200)
    ready, state = layer.start(memory, lengths), None
    for t in range(3):
        output, state = layer.step(x[t], ready, state)
        assert_close(output.get(), want[t], terms=200)
    ready = ready.reorder(order)
    on_device = to_gpu(order)
    state = tuple(a[on_device] for a in state) if cell == "lstm" else state[on_device]
    output, _ = layer.step(x[3][on_device], ready, state)
    assert_close(output.get(), want[3][order], terms=200)


def test_training_the_layer_gives_the_hosts_gradients(to_gpu, rng):
    layer = fs.nn.AttentionDecoder(4, 8, 6, rng=1)
    x, memory = rng.standard_normal((5, 3, 4)).astype(np.float32), rng.standard_normal((6, 3, 6)).astype(np.float32)
    grads = []
    for move in (lambda a: a, to_gpu):
        of_memory = fs.Tensor(move(memory), requires_grad=True)
        outputs, _ = layer(fs.Tensor(move(x)), of_memory, lengths=[5, 3, 4], memory_lengths=[6, 2, 4])
        (outputs * outputs).sum().backward()
        grads.append([of_memory.grad, *(p.grad for p in layer.parameters())])
        layer.zero_grad()
        layer.to("cuda")
    for want, got in zip(*grads, strict=True):
        assert_close(got.get(), want, terms=300)
