"""The rules hold: a wrong answer is not timed, and the tables say what the times say."""

import numpy as np
import pytest

from benchmarks import machine, peers, table
from benchmarks.problems import LSTM, CrossEntropy, Matmul, WrongAnswerError, verify

PROBLEMS = [Matmul(3, 5, 4), Matmul(3, 5, 4, packed=True), CrossEntropy("inference", 5, 7), CrossEntropy("training", 5, 7),
            LSTM("inference", T=4, B=2, I=3, H=5), LSTM("training", T=4, B=2, I=3, H=5), LSTM("step", B=2, I=3, H=5)]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", peers.installed())
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_implementation_is_right_again_and_again(problem, name):
    if not peers.can(name, problem):
        pytest.skip("not one of its tasks")
    call = getattr(peers.IMPLEMENTATIONS[name](1), problem.task)(problem)
    verify(problem, name, call.answer())
    call.run()
    if problem.task != "lstm_step":  # a stream goes on from where it is
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
