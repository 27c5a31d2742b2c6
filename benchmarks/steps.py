"""One step of training on a batch, in fastseq and in PyTorch, for the tasks of `benchmarks/twins` whose models have a method `loss`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import fastseq as fs


def fastseq_step(model: Any, lr: float, max_norm: float = 1.0) -> Callable[[Sequence[Any]], float]:
    """Adam on ``model.loss(*batch)``."""
    adam = fs.optim.Adam(model.parameters(), lr=lr)

    def step(batch: Sequence[Any]) -> float:
        loss = model.loss(*batch)
        adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(model.parameters(), max_norm)
        adam.step()
        return loss.item()

    return step


def torch_step(model: Any, lr: float, max_norm: float = 1.0) -> Callable[[Sequence[Any]], float]:
    """The same in PyTorch; the batch's arrays become tensors without a copy."""
    import torch

    adam = torch.optim.Adam(model.parameters(), lr=lr)

    def step(batch: Sequence[Any]) -> float:
        loss = model.loss(*map(torch.from_numpy, batch))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        adam.step()
        return loss.item()

    return step
