"""Time against size, fastseq alone: T, B and H doubled one at a time. No cost may grow faster than its work."""

from typing import Any

import pytest

from benchmarks.problems import Recurrent

BASE = {"T": 100, "B": 16, "I": 64, "H": 128}
DOUBLED = {"T": (100, 200, 400, 800), "B": (8, 16, 32, 64), "H": (64, 128, 256, 512)}
LINES = [(f"{cell} {mode}, {axis} doubled", tuple(Recurrent(cell, mode, **BASE | {axis: size}) for size in sizes))
         for cell in ("LSTM", "GRU", "RNN") for mode in ("inference", "training") for axis, sizes in DOUBLED.items()]
TIMES = [(line, turn, problem) for line, problems in LINES for turn in (1, 2) for problem in problems]


@pytest.mark.parametrize(("line", "turn", "problem"), TIMES, ids=[f"{line}-{turn}-{problem}" for line, turn, problem in TIMES])
def test_recurrent_scaling(timed: Any, benchmark: Any, line: str, turn: int, problem: Recurrent) -> None:
    timed(problem, "fastseq")
    benchmark.extra_info.update(line=line, gflop=problem.gflop)
