"""examples/long_memory.py, an LSTM of 64 on the adding problem with T = 400: the steps between two looks at held-out sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fastseq as fs
from benchmarks.steps import fastseq_step, torch_step
from examples.long_memory import LOOK, Adding, Batches, Reader

NAME = "adding problem, 400 steps, LSTM 64"
SHARE = 1.0
RATE = 1e-2


def batches(data: str | None) -> list[fs.training.Batch]:
    """One epoch; the problem needs no data."""
    return list(Batches(Adding(400), LOOK, np.random.default_rng(0)))


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """One optimiser step a call."""
    return fastseq_step(_model(seed), RATE)


def with_torch(seed: int) -> Callable[[Any], float]:
    """Likewise, from the same weights."""
    return torch_step(_Twin(_model(seed)), RATE)


def _model(seed: int) -> Reader:
    return Reader("lstm", Adding(400), 64, np.random.default_rng(seed))


class _Twin(torch.nn.Module):
    def __init__(self, model: Reader) -> None:
        super().__init__()
        self.layer, self.head = torch.nn.LSTM(2, 64), torch.nn.Linear(64, 1)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})

    def loss(self, x: torch.Tensor, target: torch.Tensor) -> Any:
        """The mean squared error."""
        return torch.nn.functional.mse_loss(self.head(self.layer(x)[0][-1]), target)
