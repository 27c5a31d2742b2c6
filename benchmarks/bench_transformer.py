"""A transformer's encoder layer: sentences of a translation model, a small and a long one."""

from typing import Any

import pytest

from benchmarks.problems_transformer import EncoderLayer

# Rows, positions, width, heads, and width of the feed-forward part: the base model of Vaswani et al. (2017) at half its width, and beside it.
SIZES = ((16, 128, 256, 8, 1024), (4, 32, 64, 4, 256), (2, 1024, 256, 8, 1024))


@pytest.mark.contest(tuple(EncoderLayer("inference", *sizes) for sizes in SIZES))
def test_encoder_layer_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(EncoderLayer("training", *sizes) for sizes in SIZES))
def test_encoder_layer_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
