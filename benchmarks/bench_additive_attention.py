"""Additive attention: one query a row, as a decoder asks at each step, and all of a target sequence's at once; ragged sources too."""

from typing import Any

import pytest

from benchmarks.problems import AdditiveAttention

# Rows, queries, keys, units, and whether keys are ragged: sentences of 50 words (Bahdanau et al. 2015).
SIZES = ((32, 1, 50, 256, False), (32, 40, 50, 256, False), (32, 40, 50, 256, True), (1, 1, 50, 256, False), (4, 200, 200, 128, False))


@pytest.mark.contest(tuple(AdditiveAttention("inference", *sizes) for sizes in SIZES))
def test_additive_attention_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(AdditiveAttention("training", *sizes) for sizes in SIZES))
def test_additive_attention_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
