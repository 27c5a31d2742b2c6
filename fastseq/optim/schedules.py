"""Learning rates that change with the number of steps, or when a figure stops getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastseq.functional import _check
from fastseq.optim.optimizer import Optimizer, checked_at_least


class Schedule:
    """The base of the schedules that follow the number of optimiser steps.

    Each group's learning rate is the one that it had when the schedule was made, times `factor(steps)`. Making a schedule
    sets the rate of the first step; `step()`, called after every optimiser step, sets that of the next one. What else
    changes ``param_groups[...]["lr"]`` is overwritten. A subclass defines `factor`.

    Parameters
    ----------
    optimizer : Optimizer

    Attributes
    ----------
    steps : int
        How many steps the optimiser has made.
    base_rates : list of float
        The groups' learning rates before any factor.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> class Halving(fs.optim.Schedule):
    ...     def factor(self, steps):
    ...         return 0.5**steps
    >>> sgd = fs.optim.SGD([fs.nn.Parameter(np.ones(2))], lr=0.8)
    >>> schedule = Halving(sgd)
    >>> sgd.step(); schedule.step(); sgd.param_groups[0]["lr"]
    0.4
    """

    def __init__(self, optimizer: Optimizer) -> None:
        _check_optimizer(optimizer)
        self.optimizer = optimizer
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.steps = 0
        self._set_rates()

    def factor(self, steps: int) -> float:
        """What the learning rates are multiplied by when `steps` steps have been made."""
        raise NotImplementedError(f"{type(self).__name__} does not define factor")

    def step(self) -> None:
        """Count an optimiser step and set the learning rates of the next one.

        Raises
        ------
        ValueError
            If the optimiser has got further groups since the schedule was made.
        """
        _check_groups(self.optimizer, len(self.base_rates))
        self.steps += 1
        self._set_rates()

    def _set_rates(self) -> None:
        factor = self.factor(self.steps)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule is: ``{"steps": int, "base_rates": [float, ...]}``."""
        return {"steps": self.steps, "base_rates": list(self.base_rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the optimiser's learning rates are set to what they were there.

        Raises
        ------
        ValueError, TypeError
            If something is missing or belongs to another number of groups. Nothing has changed then.
        """
        _check_state(state, ("steps", "base_rates"))
        _check_groups(self.optimizer, len(state["base_rates"]))
        self.base_rates = [float(rate) for rate in state["base_rates"]]
        self.steps = int(state["steps"])
        self._set_rates()


class StepLR(Schedule):
    """The learning rate times `gamma` after every `step_size` steps, as PyTorch's.

    Parameters
    ----------
    optimizer : Optimizer
    step_size : int
    gamma : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> sgd = fs.optim.SGD([fs.nn.Parameter(np.ones(2))], lr=1.0)
    >>> schedule = fs.optim.StepLR(sgd, step_size=2, gamma=0.5)
    >>> [schedule.factor(steps) for steps in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        checked_at_least("gamma", gamma)
        self.step_size, self.gamma = _check.count("step_size", step_size, 1), gamma
        super().__init__(optimizer)

    def factor(self, steps: int) -> float:
        """gamma^(steps // step_size)."""
        return self.gamma ** (steps // self.step_size)


class CosineDecay(Schedule):
    """Half a cosine from the learning rate down to the share `floor` of it (Loshchilov & Hutter 2017), and there it stays.

    Parameters
    ----------
    optimizer : Optimizer
    total_steps : int
    floor : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> sgd = fs.optim.SGD([fs.nn.Parameter(np.ones(2))], lr=1.0)
    >>> schedule = fs.optim.CosineDecay(sgd, total_steps=4)
    >>> [round(schedule.factor(steps), 3) for steps in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, floor: float = 0.0) -> None:
        checked_at_least("floor", floor)
        self.total_steps, self.floor = _check.count("total_steps", total_steps, 1), floor
        super().__init__(optimizer)

    def factor(self, steps: int) -> float:
        """floor + (1 - floor) (1 + cos(pi steps / total_steps)) / 2."""
        return _cosine(steps / self.total_steps, self.floor)


class WarmupCosine(Schedule):
    """A straight line up to the learning rate in `warmup_steps` steps, then half a cosine down to the share `floor` of it.

    Step number n of the first `warmup_steps` is made with n / warmup_steps of the learning rate: none is made with 0.

    Parameters
    ----------
    optimizer : Optimizer
    total_steps : int
        The warm-up's and the decay's together.
    warmup_steps : int
        Fewer than `total_steps`.
    floor : float

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> sgd = fs.optim.SGD([fs.nn.Parameter(np.ones(2))], lr=1.0)
    >>> schedule = fs.optim.WarmupCosine(sgd, total_steps=6, warmup_steps=2, floor=0.1)
    >>> [round(schedule.factor(steps), 3) for steps in range(8)]
    [0.5, 1.0, 1.0, 0.868, 0.55, 0.232, 0.1, 0.1]
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup_steps: int, floor: float = 0.0) -> None:
        checked_at_least("floor", floor)
        self.total_steps, self.floor = _check.count("total_steps", total_steps, 1), floor
        self.warmup_steps = _check.count("warmup_steps", warmup_steps, 0)
        if self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps: expected fewer than the {total_steps} of total_steps, got {warmup_steps}")
        super().__init__(optimizer)

    def factor(self, steps: int) -> float:
        """(steps + 1) / warmup_steps at first, then the cosine of the steps since."""
        if steps < self.warmup_steps:
            return (steps + 1) / self.warmup_steps
        return _cosine((steps - self.warmup_steps) / (self.total_steps - self.warmup_steps), self.floor)


class InverseSqrt(Schedule):
    """A straight line up to the learning rate in `warmup_steps` steps, then down with the root of the steps (Vaswani et al. 2017).

    Their rate d^-0.5 min(n^-0.5, n warmup^-1.5) of step number n is this with lr = (d warmup_steps)^-0.5.

    Parameters
    ----------
    optimizer : Optimizer
    warmup_steps : int
        At least 1.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> sgd = fs.optim.SGD([fs.nn.Parameter(np.ones(2))], lr=1.0)
    >>> schedule = fs.optim.InverseSqrt(sgd, warmup_steps=4)
    >>> [schedule.factor(steps) for steps in (0, 1, 3, 15)]
    [0.25, 0.5, 1.0, 0.5]
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int) -> None:
        self.warmup_steps = _check.count("warmup_steps", warmup_steps, 1)
        super().__init__(optimizer)

    def factor(self, steps: int) -> float:
        """min(n / warmup_steps, sqrt(warmup_steps / n)) with n = steps + 1."""
        share = (steps + 1) / self.warmup_steps
        return min(share, 1 / math.sqrt(share))


class ReduceOnPlateau:
    """The learning rate times `factor` when a figure has not got better `patience + 1` times in a row, as PyTorch's.

    Unlike the other schedules it is told a figure, after each validation: ``schedule.step(validation_loss)``.

    Parameters
    ----------
    optimizer : Optimizer
    mode : {"min", "max"}
        Whether the figure should fall or rise.
    factor : float
        Below 1.
    patience : int
        How many figures in a row may be no better than the best.
    threshold : float
        By how much a figure must be better to count: of the best ("rel"), or as such ("abs").
    threshold_mode : {"rel", "abs"}
    cooldown : int
        How many figures to pass over after a reduction.
    min_lr : float
        No group's rate is brought below it.

    Attributes
    ----------
    best : float
        The best figure so far.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> sgd = fs.optim.SGD([fs.nn.Parameter(np.ones(2))], lr=1.0)
    >>> schedule = fs.optim.ReduceOnPlateau(sgd, factor=0.5, patience=1)
    >>> rates = []
    >>> for figure in (3.0, 2.0, 2.0, 2.1, 1.0):
    ...     schedule.step(figure)
    ...     rates.append(sgd.param_groups[0]["lr"])
    >>> rates
    [1.0, 1.0, 1.0, 0.5, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        _check_optimizer(optimizer)
        for name, value, words in (("mode", mode, ("min", "max")), ("threshold_mode", threshold_mode, ("rel", "abs"))):
            if value not in words:
                raise ValueError(f"{name}: expected {words[0]!r} or {words[1]!r}, got {value!r}")
        checked_at_least("threshold", threshold)
        checked_at_least("min_lr", min_lr)
        checked_at_least("factor", factor)
        if factor >= 1:
            raise ValueError(f"factor: expected less than 1, got {factor}")
        self.optimizer, self.mode, self.factor = optimizer, mode, factor
        self.patience, self.cooldown = _check.count("patience", patience, 0), _check.count("cooldown", cooldown, 0)
        self.threshold, self.threshold_mode, self.min_lr = threshold, threshold_mode, min_lr
        self.best = math.inf if mode == "min" else -math.inf
        self.waited = self.cooling = 0

    def step(self, figure: float) -> None:
        """Take the figure of a validation; NaN is never better."""
        figure = float(figure)
        if self._is_better(figure):
            self.best, self.waited = figure, 0
        else:
            self.waited += 1
        if self.cooling > 0:
            self.cooling, self.waited = self.cooling - 1, 0
        if self.waited > self.patience:
            self.cooling, self.waited = self.cooldown, 0
            for group in self.optimizer.param_groups:
                group["lr"] = max(group["lr"] * self.factor, min(self.min_lr, group["lr"]))

    def _is_better(self, figure: float) -> bool:
        """Whether the figure passes the best one by the threshold."""
        relative, absolute = (self.threshold, 0.0) if self.threshold_mode == "rel" else (0.0, self.threshold)
        if self.mode == "min":
            return figure < self.best * (1 - relative) - absolute
        return figure > self.best * (1 + relative) + absolute

    def state_dict(self) -> dict[str, Any]:
        """What has been seen: ``{"best", "waited", "cooling"}``; the learning rates are in the optimiser's own state."""
        return {"best": self.best, "waited": self.waited, "cooling": self.cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. ValueError or TypeError where something is missing."""
        _check_state(state, ("best", "waited", "cooling"))
        self.best, self.waited, self.cooling = float(state["best"]), int(state["waited"]), int(state["cooling"])


def _cosine(share: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected an Optimizer, got {type(optimizer).__name__}")


def _check_groups(optimizer: Optimizer, known: int) -> None:
    if len(optimizer.param_groups) != known:
        raise ValueError(f"optimizer: expected {known} parameter groups, as the schedule knows, got {len(optimizer.param_groups)}")


def _check_state(state: Any, names: tuple[str, ...]) -> None:
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"state: expected {', '.join(names)}, got none of {', '.join(missing)}")
