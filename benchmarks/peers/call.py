"""What every library gives for a problem: something to time, and something to verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.problems import Arrays, Recurrent


class Call(NamedTuple):
    """A problem, ready to be solved again and again."""

    run: Callable[[], Any]  # what is timed
    answer: Callable[[], Arrays]  # solves it once and names the arrays, as `Problem.answer` does


def one(name: str, run: Callable[[], Any]) -> Call:
    """A call whose result is the one array of the answer."""
    return Call(run, lambda: {name: np.asarray(run())})


def stepped(problem: Recurrent, step: Callable[[int], Any]) -> Call:
    """A stream: `step(t)` feeds x_t and gives h_t. The answer is its first steps; then x_0 is fed for as long as it is timed."""
    return Call(lambda: step(0), lambda: {"y": np.stack([np.asarray(step(t)).copy() for t in range(problem.T)])})


def outputs(y: Any, state: Any) -> Arrays:
    """The answer of an inference from y and what the library calls state: h, or (h, c)."""
    ends = state if isinstance(state, (tuple, list)) else (state,)
    return {name: np.asarray(array) for name, array in zip("yhc", (y, *ends), strict=False)}
