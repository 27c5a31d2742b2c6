"""Peak memory of attention, forwards and backwards, over longer and longer texts: a line here, a parabola where the weights are stored."""

from typing import Any

import pytest

from benchmarks import memory
from benchmarks.problems_transformer import Attention

B, HEADS, D = 1, 2, 64


@pytest.mark.contest(tuple(Attention("training", B, HEADS, T, T, D) for T in (512, 1024, 2048, 4096)))
def test_attention_memory(timed: Any, benchmark: Any, facts: dict[str, Any], problem: Any, turn: int, implementation: str) -> None:
    if not memory.can_measure():
        pytest.skip("only Linux tells a process's peak memory since a moment")
    timed(problem, implementation)
    results = 4 * 4 * B * HEADS * problem.Tq * D  # y and the gradients of q, k and v, which the user gets
    peak = memory.attention_peak_bytes(implementation, T=problem.Tq, B=B, heads=HEADS, D=D, threads=facts["threads"])
    benchmark.extra_info.update(grows="attention training", bytes=peak, results_bytes=results)
