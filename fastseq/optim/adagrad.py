"""Adagrad (Duchi, Hazan, Singer 2011)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastseq.backends import backend_of, namespace
from fastseq.optim.optimizer import Optimizer, checked_at_least, every_row


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients so far: w -= lr' g / (sqrt(sum g^2) + eps).

    g = dw + weight_decay w, and lr' = lr / (1 + lr_decay (step - 1)). Rare features keep large steps. Takes row-sparse gradients
    where there is no weight decay, with the result that dense ones have.

    Parameters
    ----------
    params : iterable of Parameter, or of dict (groups)
    lr : float
    lr_decay : float
    weight_decay : float
    initial_accumulator_value : float
        What the sum starts at.
    eps : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> p = fs.nn.Parameter(np.ones(2))
    >>> adagrad = fs.optim.Adagrad([p], lr=0.1)
    >>> (p * p).sum().backward(); adagrad.step(); p.data.round(6).tolist()
    [0.9, 0.9]
    """

    _arrays = ("sum",)
    _needed = ("step", "sum")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay}
        super().__init__(params, {**options, "initial_accumulator_value": initial_accumulator_value, "eps": eps})

    def _check(self, options: dict[str, Any]) -> None:
        for name in self.defaults:
            checked_at_least(name, options[name])

    def _refusal(self, by_rows: bool, group: dict[str, Any]) -> str:
        return every_row("Adagrad with weight_decay") if by_rows and group["weight_decay"] else ""

    def _update(
        self, array: np.ndarray, gradient: np.ndarray, rows: np.ndarray | None, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if "sum" not in state:
            state.update(step=0, sum=namespace(array).full_like(array, group["initial_accumulator_value"]))
        state["step"] += 1
        backend_of(array).adagrad(
            array,
            state["sum"],
            gradient,
            lr=group["lr"] / (1 + group["lr_decay"] * (state["step"] - 1)),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            rows=rows,
        )
