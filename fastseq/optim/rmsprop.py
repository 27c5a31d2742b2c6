"""RMSprop (Tieleman & Hinton 2012), plain, with momentum, and centred (Graves 2013)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastseq.backends import backend_of, namespace
from fastseq.optim.optimizer import Optimizer, checked_at_least


class RMSprop(Optimizer):
    """Steps divided by the root of a running mean of the squared gradient: w -= lr g / (sqrt(s) + eps).

    s = alpha s + (1 - alpha) g^2 with g = dw + weight_decay w; centred, the square of g's own running mean is taken off before
    the root.

    Parameters
    ----------
    params : iterable of Parameter, or of dict (groups)
    lr : float
    alpha : float
        From 0 up to but not 1.
    eps : float
    weight_decay : float
    momentum : float
        0 keeps no velocity; else w -= lr v with v = momentum v + g / (sqrt(s) + eps).
    centered : bool

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> p = fs.nn.Parameter(np.ones(2))
    >>> rmsprop = fs.optim.RMSprop([p], lr=0.01)
    >>> (p * p).sum().backward(); rmsprop.step(); p.data.round(6).tolist()
    [0.9, 0.9]
    """

    _arrays = ("square_avg", "momentum_buffer", "grad_avg")
    _needed = ("square_avg",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**options, "centered": centered})

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "alpha", "eps", "weight_decay", "momentum"):
            checked_at_least(name, options[name])
        if options["alpha"] >= 1:
            raise ValueError(f"alpha: expected a number from 0 up to but not 1, got {options['alpha']}")

    def _update(
        self, array: np.ndarray, gradient: np.ndarray, rows: np.ndarray | None, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        names = ["square_avg", *["momentum_buffer"] * bool(group["momentum"]), *["grad_avg"] * bool(group["centered"])]
        for name in names:
            if name not in state:
                state[name] = namespace(array).zeros_like(array)
        backend_of(array).rmsprop(
            array,
            state["square_avg"],
            state["momentum_buffer"] if group["momentum"] else None,
            state["grad_avg"] if group["centered"] else None,
            gradient,
            lr=group["lr"],
            alpha=group["alpha"],
            eps=group["eps"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )
