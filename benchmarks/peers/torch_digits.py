"""The models of `examples/digits.py` in PyTorch, with the weights of ours in their order; and what its tasks in `benchmarks/twins` share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

import fastseq as fs
from examples import digits


def batches(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """One epoch of one of the example's models."""
    images, labels = digits.digits()
    size = digits.MODELS[name][3]
    return list(digits.Moved(images[: digits.TRAINING], labels[: digits.TRAINING], size, np.random.default_rng(0)))


def ours(name: str, seed: int) -> Any:
    """The example's model, without dropout."""
    model = digits.MODELS[name][0](np.random.default_rng(seed))
    for module in model.modules():
        if isinstance(module, fs.nn.Dropout):
            module.p = 0.0
    return model


class ByRows(nn.Module):
    """An LSTM over the rows of images (B, 8, 8)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, hidden_size), nn.Linear(hidden_size, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(images.transpose(0, 1))[0][-1])


def mlp(sizes: list[int]) -> nn.Module:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet(widths: list[int]) -> nn.Module:
    """Two convolutions of 3 x 3, each with pooling, and linear layers on 2 x 2 of what they find."""
    first, second, *hidden = widths
    convolutions = nn.Conv2d(1, first, 3, padding=1), nn.Conv2d(first, second, 3, padding=1)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8))]  # (B, 8, 8) to (B, 1, 8, 8)
    for convolution in convolutions:
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, mlp([4 * second, *hidden, 10]))


class Twin(nn.Module):
    """One of these with the weights of ours, and the loss that `fit` minimises."""

    def __init__(self, model: nn.Module, ours: Any) -> None:
        super().__init__()
        self.model = model
        model.load_state_dict(dict(zip(model.state_dict(), map(torch.from_numpy, ours.state_dict().values()), strict=True)))

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(images), labels)
