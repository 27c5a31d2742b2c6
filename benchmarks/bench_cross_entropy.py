"""Softmax cross-entropy over the characters or words of a language model: the mean loss alone, and with the gradient of the logits."""

from typing import Any

import pytest

from benchmarks.problems import CrossEntropy

# Rows x vocabulary: one piece of a character model, several, and of a word model (Zaremba et al. 2014: 20 texts of 35 words).
SIZES = ((512, 96), (4096, 96), (700, 10000))


@pytest.mark.contest(tuple(CrossEntropy("inference", *sizes) for sizes in SIZES))
def test_cross_entropy_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(CrossEntropy("training", *sizes) for sizes in SIZES))
def test_cross_entropy_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
