"""The model "mlp" of `examples/digits.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.steps import fastseq_step, torch_step

NAME = "digits: MLP"
SHARE = 1.0
LR = 2e-3


def batches(data: str | None) -> list[Any]:
    """One epoch of the example, whose data is scikit-learn's."""
    from benchmarks.peers import torch_digits

    return torch_digits.batches("mlp")


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """Of a batch: one step, and the loss before it."""
    from benchmarks.peers import torch_digits

    return fastseq_step(torch_digits.ours("mlp", seed), LR)


def with_torch(seed: int) -> Callable[[Any], float]:
    """The same from the same weights."""
    from benchmarks.peers.torch_digits import Twin, mlp, ours

    return torch_step(Twin(mlp([64, 256, 256, 10]), ours("mlp", seed)), LR)
