"""The teacher-forced decoder of a sequence-to-sequence model with additive attention: the loop over the target is C here, Python elsewhere."""

from typing import Any

import pytest

from benchmarks.problems_decoder import Decoder

# A sentence pair of 30 words each (the size that translation models of 2015 were trained with), and a short one.
SIZES = ({"B": 32, "T": 30, "S": 30, "H": 256}, {"B": 32, "T": 30, "S": 30, "H": 128}, {"B": 8, "T": 12, "S": 12, "H": 64})


@pytest.mark.contest(tuple(Decoder(cell, "inference", **sizes) for cell in ("LSTM", "GRU") for sizes in SIZES))
def test_attention_decoder_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(Decoder(cell, "training", **sizes) for cell in ("LSTM", "GRU") for sizes in SIZES))
def test_attention_decoder_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
