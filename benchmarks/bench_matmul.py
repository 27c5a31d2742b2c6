"""Products: the shapes of a step, of a layer over a sequence, and square ones; with a right operand that may be prepared, and without."""

from typing import Any

import pytest

from benchmarks.problems import Matmul

PROBLEMS = (
    *(Matmul(*sizes) for sizes in (
        (1, 512, 128), (8, 512, 128), (16, 2048, 512), (64, 64, 64), (256, 256, 256), (512, 512, 512), (1024, 1024, 1024), (3200, 1024, 128))),
    *(Matmul(*sizes, packed=True) for sizes in ((1, 2048, 512), (4, 1024, 256), (16, 2048, 512))),
)


@pytest.mark.contest(PROBLEMS)
def test_matmul(timed: Any, problem: Any, turn: int, implementation: str) -> None:
    timed(problem, implementation)
