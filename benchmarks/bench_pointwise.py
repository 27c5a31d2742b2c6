"""GELU of the inner layer of a transformer: the function alone, and with its derivative. NumPy has no erf to make it of."""

from typing import Any

import pytest

from benchmarks.problems import Gelu

SIZES = (4096, 1 << 20)


@pytest.mark.contest(tuple(Gelu("inference", n) for n in SIZES))
def test_gelu_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(Gelu("training", n) for n in SIZES))
def test_gelu_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
