"""Recurrent layers beside the peers: inference over a sequence, training (forward, and back through time to all gradients), one step of a stream."""

from typing import Any

import pytest

from benchmarks.problems import Recurrent

# T, B, I, H. The pair of T100 and T1000 draws a line: ten times the steps in ten times the time.
INFERENCE = ((100, 1, 16, 32), (100, 1, 64, 128), (1000, 1, 64, 128), (100, 1, 256, 512), (100, 16, 64, 128), (1000, 32, 32, 64), (100, 32, 128, 256),
             (35, 20, 650, 650))
TRAINING = ((100, 1, 16, 32), (100, 1, 64, 128), (1000, 1, 64, 128), (100, 16, 64, 128), (1000, 32, 32, 64), (100, 32, 128, 256), (35, 20, 650, 650))
STEP = ((1, 16, 32), (1, 64, 128), (1, 256, 512), (16, 64, 128))
GATED, ALL = ("LSTM", "GRU"), ("LSTM", "GRU", "RNN")


def _problems(mode: str, cells: tuple[str, ...], sizes: tuple[tuple[int, ...], ...], **form: Any) -> tuple[Recurrent, ...]:
    return tuple(Recurrent(cell, mode, T=T, B=B, I=I, H=H, **form) for cell in cells for T, B, I, H in sizes)


MEDIUM = ((100, 32, 128, 256),)
STACK = {"layers": 2, "bidirectional": True}


@pytest.mark.contest(_problems("inference", GATED, INFERENCE) + _problems("inference", ("RNN",), MEDIUM))
def test_recurrent_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(_problems("training", GATED, TRAINING) + _problems("training", ("RNN",), MEDIUM))
def test_recurrent_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(Recurrent(cell, "step", B=B, I=I, H=H) for cell in ALL for B, I, H in STEP))
def test_recurrent_step(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(_problems("inference", GATED, MEDIUM, ragged=True) + _problems("training", GATED, MEDIUM, ragged=True))
def test_recurrent_ragged(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(_problems("inference", GATED, MEDIUM, **STACK) + _problems("training", GATED, MEDIUM, **STACK))
def test_recurrent_stacked(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
