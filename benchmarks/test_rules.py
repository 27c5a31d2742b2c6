"""The rules hold: a wrong answer is not timed, and the tables say what the times say."""

import importlib

import numpy as np
import pytest

from benchmarks import epochs, machine, memory, peers, table
from benchmarks.problems import AdditiveAttention, CrossEntropy, Matmul, Recurrent, WrongAnswerError, verify
from benchmarks.problems_decoder import Decoder
from benchmarks.problems_transformer import Attention, EncoderLayer

PROBLEMS = [Matmul(3, 5, 4), Matmul(3, 5, 4, packed=True), CrossEntropy("inference", 5, 7), CrossEntropy("training", 5, 7),
            *(Attention(mode, 2, 3, 5, 5, 4, causal) for mode in ("inference", "training") for causal in (False, True)), Attention("inference", 2, 3, 1, 5, 4),
            *(EncoderLayer(mode, 2, 5, 6, 3, 7) for mode in ("inference", "training")),
            *(AdditiveAttention(mode, 2, 3, 5, 4, ragged) for mode in ("inference", "training") for ragged in (False, True)),
            *(Recurrent(cell, mode, T=4, B=2, I=3, H=5) for cell in ("LSTM", "GRU", "RNN") for mode in ("inference", "training", "step")),
            *(Recurrent(cell, mode, T=14, B=3, I=3, H=5, **form) for cell in ("LSTM", "GRU") for mode in ("inference", "training")
              for form in ({"ragged": True}, {"layers": 2, "bidirectional": True})),
            *(Decoder(cell, mode, B=2, T=4, S=3, H=5) for cell in ("LSTM", "GRU") for mode in ("inference", "training"))]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", peers.installed())
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_implementation_is_right_again_and_again(problem, name):
    if not peers.can(name, problem):
        pytest.skip("not one of its tasks")
    call = getattr(peers.IMPLEMENTATIONS[name](1), problem.task)(problem)
    verify(problem, name, call.answer())
    call.run()
    if problem.task != "recurrent_step":  # a stream goes on from where it is
        verify(problem, name, call.answer())


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_a_wrong_answer_is_refused(problem):
    for name, right in problem.answer.items():
        off = right.copy()
        off.flat[-1] += 2e-4 * np.abs(right).max()
        for wrong in (off, -right, np.full_like(right, np.nan), right[None]):
            with pytest.raises(WrongAnswerError, match=name):
                verify(problem, "someone", problem.answer | {name: wrong})
    missing = dict(list(problem.answer.items())[1:])
    with pytest.raises(WrongAnswerError):
        verify(problem, "someone", missing)


def test_the_peak_is_a_rate_of_this_machine():
    one = machine.peak_gflops("portable", 1)[1]
    assert 0.1 < one < 1000


def test_a_table_takes_the_shortest_time_of_all_turns():
    rows = [("fastseq", 2e-6), ("torch", 8e-6), ("numpy", 9e-6), ("fastseq", 3e-6), ("torch", 5e-6)]
    made = [{"extra_info": {"problem": "matmul 2x2x2", "implementation": name}, "stats": {"min": seconds}} for name, seconds in rows]
    times = table.read(made)["matmul"]
    assert table.ratio(times["matmul 2x2x2"]) == pytest.approx(2.5)
    assert list(table.table(times))[-1] == "| 2x2x2 | 2.0 | 5.0 | 9.0 | - | - | 2.50 |"
    assert table.summary(times) == "Geometric mean of the ratios 2.50, least 2.50."


def test_the_tables_of_fastseq_beside_itself():
    line = [{"extra_info": {"problem": f"GRU step B{B}", "implementation": "fastseq", "line": "GRU, B doubled", "gflop": B}, "stats": {"min": seconds}}
            for B, seconds in ((1, 3e-6), (2, 5e-6), (2, 6e-6))]
    option = {"option": "GRU zoneout", "mode": "training", "plain_seconds": 2e-6, "ratio": 1.5, "target": 1.3}
    kept = {"memory": "GRU", "sizes": "T9", "checkpoint_every": 3, "ratio": 1.2, "unit_bytes": 10**6, "results_bytes": 10**6, "plain_bytes": 5 * 10**6,
            "bytes": 2 * 10**6}
    made = line + [{"extra_info": info, "stats": {"min": 3e-6}} for info in (option, kept, kept | {"checkpoint_every": 9})]
    assert table.read(made) == {}
    assert list(table.scaling(made))[2:] == ["| GRU, B doubled | B1 | B2 | 3, 5 | 2.00 | 1.67 |"]
    assert list(table.options(made))[2:] == ["| GRU zoneout | training | 3.0 | 2.0 | 1.50 | 1.3, not reached |"]
    assert list(table.memory(made))[2:] == [
        "| GRU | T9 | - | 5 | 1 | 4.00 | 1.00 |", "| GRU | T9 | 3 | 2 | 1 | 1.00 | 1.20 |", "| GRU | T9 | 9 | 2 | 1 | 1.00 | 1.20 |"]


def test_the_table_of_memory_as_a_size_doubles():
    made = [{"extra_info": {"grows": "attention", "problem": f"attention training T{T}", "implementation": name, "bytes": peak * 10**6, "results_bytes": T * 10**6},
             "stats": {"min": 1e-3}} for T, name, peak in ((1, "fastseq", 2), (1, "numpy", 4), (2, "fastseq", 4), (2, "numpy", 16), (2, "numpy", 16))]
    assert table.read(made) == {}
    assert list(table.growth(made))[2:] == [
        "| attention | fastseq | T1 | T2 | 2.0, 4.0 | 1.0, 2.0 | 2.00 |", "| attention | numpy | T1 | T2 | 4.0, 16.0 | 1.0, 2.0 | 4.00 |"]


@pytest.mark.skipif(not memory.can_measure(), reason="only Linux tells a process's peak memory since a moment")
def test_memory_of_attention_grows_as_the_text_and_no_faster():
    peaks = {name: [memory.attention_peak_bytes(name, T=T, B=1, heads=1, D=64, threads=1) for T in (1024, 4096)] for name in ("fastseq", "numpy")}
    assert peaks["fastseq"][1] < 7 * peaks["fastseq"][0]
    assert peaks["numpy"][1] > 10 * peaks["numpy"][0]


@pytest.mark.skipif(not memory.can_measure(), reason="only Linux tells a process's peak memory since a moment")
def test_memory_is_seen_and_checkpoints_save_it():
    plain, kept = (memory.peak_bytes("GRU", T=400, B=16, I=8, H=64, checkpoint_every=every, threads=1) for every in (None, 20))
    results = 4 * 400 * 16 * (64 + 8)
    assert results < kept < plain


@pytest.mark.parametrize("losses", [(1.0, 1.002), (float("nan"), 1.0), (1.0, float("inf"))])
def test_an_epoch_of_two_models_that_differ_is_not_timed(losses):
    with pytest.raises(AssertionError, match="differ"):
        epochs._check_same(losses)


@pytest.mark.parametrize("task", epochs.tasks())
def test_the_same_model_in_pytorch_is_the_same(task):
    pytest.importorskip("torch")
    twin = importlib.import_module(f"benchmarks.twins.{task}")
    batch = twin.batches(None)[0]
    epochs._check_same([twin.with_fastseq(3)(batch), twin.with_torch(3)(batch)])
    assert 0 < twin.SHARE <= 1
