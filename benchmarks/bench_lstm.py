"""One LSTM layer: inference over a sequence, training (forward, and back through time to all gradients), and one step of a stream."""

from typing import Any

import pytest

from benchmarks.problems import LSTM

# The pair of T100 and T1000 draws a line: ten times the steps in ten times the time.
INFERENCE = tuple(LSTM("inference", T=T, B=B, I=I, H=H) for T, B, I, H in (
    (100, 1, 16, 32), (100, 1, 64, 128), (1000, 1, 64, 128), (100, 1, 256, 512), (100, 16, 64, 128), (100, 32, 128, 256), (35, 20, 650, 650)))
TRAINING = tuple(LSTM("training", T=T, B=B, I=I, H=H) for T, B, I, H in (
    (100, 1, 16, 32), (100, 1, 64, 128), (1000, 1, 64, 128), (100, 16, 64, 128), (100, 32, 128, 256), (35, 20, 650, 650)))
STEP = tuple(LSTM("step", B=B, I=I, H=H) for B, I, H in ((1, 16, 32), (1, 64, 128), (1, 256, 512), (16, 64, 128)))


@pytest.mark.contest(INFERENCE)
def test_lstm_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(TRAINING)
def test_lstm_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(STEP)
def test_lstm_step(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
