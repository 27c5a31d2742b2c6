"""examples/forecasting.py, an LSTM of 32 that forecasts a day of fine dust, or a computed series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastseq as fs
from benchmarks.steps import fastseq_step, torch_step
from examples.forecasting import chaos, fine_dust, scaled, windows

NAME = "forecasting 24 hours, LSTM 32"
SHARE = 1.0
RATE = 1e-2
_sizes: list[int] = []  # inputs and horizon of what `batches` has read


def batches(data: str | None) -> list[fs.training.Batch]:
    """One epoch."""
    series = fine_dust(Path(data) / "series") if data else chaos(3000)
    values, observed, cut = scaled(series)[:3]
    x, y, _, _ = windows(series, values[:cut], observed[:cut])
    _sizes[:] = x.shape[2], y.shape[1]
    return list(fs.training.Batches(x, y, batch_size=series.batch, axis=1, rng=0))


def with_fastseq(seed: int) -> Callable[[Any], float]:
    """One optimiser step a call."""
    return fastseq_step(_model(seed), RATE)


def with_torch(seed: int) -> Callable[[Any], float]:
    """Likewise, from the same weights."""
    return torch_step(_Twin(_model(seed)), RATE)


def _model(seed: int) -> fs.models.Forecaster:
    inputs, horizon = _sizes
    return fs.models.Forecaster(inputs, 32, horizon, rng=seed)


class _Twin(torch.nn.Module):
    def __init__(self, model: fs.models.Forecaster) -> None:
        super().__init__()
        self.recurrent = torch.nn.LSTM(model.recurrent.input_size, model.recurrent.hidden_size)
        self.head = torch.nn.Linear(model.recurrent.hidden_size, model.horizon)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})

    def loss(self, x: torch.Tensor, target: torch.Tensor) -> Any:
        """The mean absolute error."""
        return torch.nn.functional.l1_loss(self.head(self.recurrent(x)[0][-1]), target.T)
