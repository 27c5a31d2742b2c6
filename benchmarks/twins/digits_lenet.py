"""The model "lenet" of `examples/digits.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.steps import fastseq_step, torch_step

NAME = "digits: LeNet"
SHARE = 1.0
LR = 2e-3


def batches(data: str | None) -> list[Any]:
    """One epoch of the example, whose data is scikit-learn's."""
    from benchmarks.peers import torch_digits

    return torch_digits.batches("lenet")


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """Of a batch: one step, and the loss before it."""
    from benchmarks.peers import torch_digits

    return fastseq_step(torch_digits.ours("lenet", seed), LR)


def with_torch(seed: int) -> Callable[[Any], float]:
    """The same from the same weights."""
    from benchmarks.peers.torch_digits import Twin, lenet, ours

    return torch_step(Twin(lenet([32, 64, 120, 84]), ours("lenet", seed)), LR)
