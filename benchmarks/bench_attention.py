"""Scaled dot-product attention: inference and training, causal and not, and steps of decoding, where one query sees a cache of keys."""

from typing import Any

import pytest

from benchmarks.problems_transformer import Attention

# B, heads, T, D: a batch of sentences, texts, long texts.
SIZES = ((8, 8, 128, 64), (1, 8, 512, 64), (4, 8, 512, 64), (1, 4, 2048, 64), (2, 8, 512, 128))
DECODING = ((1, 8, 512, 64), (1, 8, 4096, 64), (16, 8, 1024, 64))


def _problems(mode: str) -> tuple[Attention, ...]:
    return tuple(Attention(mode, B, heads, T, T, D, causal) for causal in (False, True) for B, heads, T, D in SIZES)


@pytest.mark.contest(_problems("inference"))
def test_attention_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(_problems("training"))
def test_attention_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(Attention("inference", B, heads, 1, Tk, D) for B, heads, Tk, D in DECODING))
def test_attention_decoding(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
