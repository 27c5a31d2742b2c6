"""Layer norm of a transformer's rows, alone and with the residual before it: the forward pass, and with the gradients of everything."""

from typing import Any

import pytest

from benchmarks.problems import LayerNorm

# Rows x width: a small encoder's batch of 32 texts of 128 tokens, and wider models.
SIZES = ((4096, 256), (4096, 1024), (64, 512))


@pytest.mark.contest(tuple(LayerNorm("inference", *sizes, residual=residual) for sizes in SIZES for residual in (False, True)))
def test_layer_norm_inference(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)


@pytest.mark.contest(tuple(LayerNorm("training", *sizes, residual=residual) for sizes in SIZES for residual in (False, True)))
def test_layer_norm_training(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
