"""A training step of one `fs.models.Seq2Seq`, and of the same model in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastseq as fs

Step = Callable[[Any], float]
RATE, NORM = 2e-3, 1.0


def step_of(model: fs.models.Seq2Seq) -> Step:
    """In fastseq."""
    parameters = list(model.parameters())
    adam = fs.optim.Adam(parameters, lr=RATE)

    def step(batch: Any) -> float:
        loss = model.loss(*batch)
        adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(parameters, NORM)
        adam.step()
        return loss.item()

    return step


def torch_step_of(model: fs.models.Seq2Seq) -> Step:
    """In PyTorch, from the same weights."""
    import torch

    from tests.torch_seq2seq import Seq2Seq

    twin = Seq2Seq(model)
    parameters = list(twin.parameters())
    adam = torch.optim.Adam(parameters, lr=RATE)

    def step(batch: Any) -> float:
        source, lengths, target, target_lengths = batch
        inputs, wanted, _ = model.teacher(target, target_lengths)
        loss = twin.loss(*map(torch.from_numpy, (source, lengths, inputs, wanted)))
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, NORM)
        adam.step()
        return loss.item()

    return step
