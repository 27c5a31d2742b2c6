"""Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), and Adam of the rows of a table that have a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastseq.backends import backend_of, is_gpu, namespace
from fastseq.optim.optimizer import Optimizer, _Entry, checked_at_least


class Adam(Optimizer):
    """Steps scaled by running means of the gradient and of its square.

    m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, w -= lr m^ / (sqrt(v^) + eps), where m^ and v^ are
    corrected for having started at zero and g = dw + weight_decay w.

    Parameters
    ----------
    params : iterable of Parameter, or of dict (groups)
    lr : float
    betas : (float, float)
    eps : float
    weight_decay : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> p = fs.nn.Parameter(np.ones(2))
    >>> adam = fs.optim.Adam([p], lr=0.1)
    >>> (p * p).sum().backward(); adam.step(); p.data.round(6).tolist()
    [0.9, 0.9]
    """

    _arrays = ("exp_avg", "exp_avg_sq")
    _needed = ("step", "exp_avg", "exp_avg_sq")
    _decoupled = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay"):
            checked_at_least(name, options[name])
        _check_betas(options["betas"])

    def _update_all(self, entries: list[_Entry], group: dict[str, Any]) -> None:
        alike: dict[tuple[bool, int], list[tuple[np.ndarray, ...]]] = {}  # of one device and number of steps
        for array, gradient, _, state in entries:
            _count(state, array)
            work = alike.setdefault((is_gpu(array), state["step"]), [])
            work.append((array, state["exp_avg"], state["exp_avg_sq"], gradient))
        beta1, beta2 = group["betas"]
        for (_, step), work in alike.items():
            backend_of(work[0][0]).adam_all(
                tuple(work),
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                decoupled=self._decoupled,
                step=step,
            )


class AdamW(Adam):
    """Adam whose weight decay acts on the weights themselves, not through the gradient: w is first multiplied by
    1 - lr weight_decay.

    Parameters
    ----------
    params : iterable of Parameter, or of dict (groups)
    lr : float
    betas : (float, float)
    eps : float
    weight_decay : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> p = fs.nn.Parameter(np.ones(2))
    >>> adam = fs.optim.AdamW([p], lr=0.1, weight_decay=0.5)
    >>> (p * 0.0).sum().backward(); adam.step(); p.data.round(6).tolist()
    [0.95, 0.95]
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class SparseAdam(Optimizer):
    """Adam for row-sparse gradients: a row without a gradient keeps its running means and stays as it is.

    For tables of `Embedding(sparse=True)`. The rows that have a gradient take Adam's step; the correction counts the table's steps,
    and eps is added before it, as in PyTorch.

    Parameters
    ----------
    params : iterable of Parameter, or of dict (groups)
        Of which every gradient is row-sparse.
    lr : float
    betas : (float, float)
    eps : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> table = fs.nn.Embedding(1000, 2, sparse=True)
    >>> table.weight.data[...] = 1.0
    >>> adam = fs.optim.SparseAdam(table.parameters(), lr=0.5)
    >>> table(fs.Tensor(np.array([3]))).sum().backward(); adam.step()
    >>> table.weight.data[2:5, 0].round(6).tolist()
    [1.0, 0.5, 1.0]
    """

    _arrays = ("exp_avg", "exp_avg_sq")
    _needed = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps"):
            checked_at_least(name, options[name])
        _check_betas(options["betas"])

    def _refusal(self, by_rows: bool, group: dict[str, Any]) -> str:
        return "" if by_rows else "SparseAdam takes the gradients of Embedding(sparse=True), got a dense one; use Adam for this parameter"

    def _update(
        self, array: np.ndarray, gradient: np.ndarray, rows: np.ndarray | None, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        _count(state, array)
        beta1, beta2 = group["betas"]
        backend_of(array).adam(
            array,
            state["exp_avg"],
            state["exp_avg_sq"],
            gradient,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"] / math.sqrt(1 - beta2 ** state["step"]),
            weight_decay=0.0,
            decoupled=False,
            step=state["step"],
            rows=rows,
        )


def _count(state: dict[str, Any], array: np.ndarray) -> None:
    """One step more; running means that start at zero."""
    if "exp_avg" not in state:
        own = namespace(array)
        state.update(step=0, exp_avg=own.zeros_like(array), exp_avg_sq=own.zeros_like(array))
    state["step"] += 1


def _check_betas(betas: Any) -> None:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas: expected two numbers, got {betas!r}")
    for beta in betas:
        checked_at_least("betas", beta)
        if beta >= 1:
            raise ValueError(f"betas: expected two numbers from 0 up to but not 1, got {betas}")
