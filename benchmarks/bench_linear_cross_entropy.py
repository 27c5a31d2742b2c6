"""The last layer of a language model with its loss: the mean loss alone, and with the gradients of x and the weight."""

from typing import Any

import pytest

from benchmarks.problems import LinearCrossEntropy

# Rows, width, vocabulary: of characters, of words (Zaremba et al. 2014: 20 texts of 35 words), of a batch of a small transformer.
SIZES = ((4096, 256, 96), (700, 650, 10000), (2048, 256, 10000))


@pytest.mark.contest(tuple(LinearCrossEntropy("inference", *sizes) for sizes in SIZES))
def test_linear_cross_entropy_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(LinearCrossEntropy("training", *sizes) for sizes in SIZES))
def test_linear_cross_entropy_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
