"""Stochastic gradient descent with momentum (Polyak 1964; Nesterov's form as in Sutskever et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastseq.backends import backend_of, namespace
from fastseq.optim.optimizer import Optimizer, checked_at_least, every_row


class SGD(Optimizer):
    """w -= lr v with v = momentum v + (dw + weight_decay w), as PyTorch computes it.

    Takes row-sparse gradients where there is neither momentum nor weight decay.

    Parameters
    ----------
    params : iterable of Parameter, or of dict (groups)
    lr : float
    momentum : float
        0 keeps no velocity.
    nesterov : bool
        Look ahead: w -= lr (dw + momentum v).
    weight_decay : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> p = fs.nn.Parameter(np.ones(2))
    >>> sgd = fs.optim.SGD([p], lr=0.1)
    >>> (p * p).sum().backward(); sgd.step(); p.data.tolist()
    [0.8, 0.8]
    """

    _arrays = ("momentum_buffer",)

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay})

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            checked_at_least(name, options[name])
        if options["nesterov"] and not options["momentum"]:
            raise ValueError("nesterov: expected momentum above 0 with it, got 0")

    def _refusal(self, by_rows: bool, group: dict[str, Any]) -> str:
        if by_rows and (group["momentum"] or group["weight_decay"]):
            return every_row(f"SGD with {'momentum' if group['momentum'] else 'weight_decay'}")
        return ""

    def _update(
        self, array: np.ndarray, gradient: np.ndarray, rows: np.ndarray | None, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        first = group["momentum"] != 0 and "momentum_buffer" not in state
        if first:
            state["momentum_buffer"] = namespace(array).empty_like(array)
        velocity = state["momentum_buffer"] if group["momentum"] else None
        backend_of(array).sgd(
            array,
            velocity,
            gradient,
            lr=group["lr"],
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            first=first,
            weight_decay=group["weight_decay"],
            rows=rows,
        )
