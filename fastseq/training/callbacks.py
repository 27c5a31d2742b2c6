"""What can be done between the steps and the epochs of a training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastseq.functional import _check
from fastseq.nn._inputs import checked_size
from fastseq.training.history import History


@dataclass
class Progress:
    """Where a training is; what callbacks are given.

    Attributes
    ----------
    model, optimizer
        Those that are trained.
    epoch : int
        The present one, from 1; in `on_epoch` the one that has just ended.
    epochs : int
        How many there are to be.
    batch : int
        How many batches of this epoch have been used.
    batches : int or None
        How many an epoch has, where they know it.
    step : int
        How many steps the optimiser has made since the training began.
    loss : float
        Of the last step's batches.
    norm : float
        Of the last step's gradient, before clipping.
    figures : dict
        Of the last epoch: "loss", "validation_loss" and the like.
    history : History
    seconds : float
        Since the training began.
    stop : bool
        Set it, and the training ends: after this step, with a last look at the validation, or after this epoch.
    """

    model: Any
    optimizer: Any
    epoch: int = 1
    epochs: int = 1
    batch: int = 0
    batches: int | None = None
    step: int = 0
    loss: float = math.nan
    norm: float = math.nan
    figures: dict[str, float] = field(default_factory=dict)
    history: History = field(default_factory=History)
    seconds: float = 0.0
    stop: bool = False

    @property
    def learning_rate(self) -> float:
        """Of the optimiser's first group, for its next step."""
        return float(self.optimizer.param_groups[0]["lr"])


class Callback:
    """What `fit` calls as it goes; a subclass defines what it needs.

    What a callback remembers belongs into `state_dict`, so that a training that goes on from a checkpoint goes on exactly.

    Examples
    --------
    >>> from fastseq.training import Callback
    >>> class StopAt(Callback):
    ...     def __init__(self, step):
    ...         self.at = step
    ...     def on_step(self, progress):
    ...         progress.stop = progress.step >= self.at
    """

    def on_begin(self, progress: Progress) -> None:
        """Before the first step, after a checkpoint has been loaded."""

    def on_step(self, progress: Progress) -> None:
        """After each step of the optimiser."""

    def on_epoch(self, progress: Progress) -> None:
        """After each epoch and its validation; `progress.figures` has its figures."""

    def on_end(self, progress: Progress) -> None:
        """After the last epoch, or where the training was ended before."""

    def state_dict(self) -> dict[str, Any]:
        """What to put into a checkpoint: numbers, strings, arrays, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""


class EarlyStopping(Callback):
    """Ends a training when a figure has stopped getting better, and puts the model back to where it was best.

    Parameters
    ----------
    patience : int
        How many epochs in a row may be no better than the best.
    monitor : str
        Which figure to watch.
    mode : {"min", "max"}
        Whether it should fall or rise.
    min_delta : float
        By how much a figure must be better than the best to count.
    restore_best : bool
        In the end, however it comes, the model is the one of the best epoch.

    Attributes
    ----------
    best : float
        The best figure so far.
    best_epoch : int
        Its epoch, from 1; 0 before any.
    waited : int
        How many epochs have passed since.

    Examples
    --------
    >>> from fastseq.training import EarlyStopping
    >>> stopping = EarlyStopping(patience=2)
    >>> [stopping.update(figure) for figure in (2.0, 1.5, 1.6, 1.7)], stopping.should_stop
    ([True, True, False, False], True)
    """

    def __init__(
        self,
        patience: int,
        monitor: str = "validation_loss",
        mode: str = "min",
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode: expected 'min' or 'max', got {mode!r}")
        if _check.number("min_delta", min_delta) < 0:
            raise ValueError(f"min_delta: expected at least 0, got {min_delta}")
        self.patience, self.monitor, self.mode = checked_size("patience", patience), monitor, mode
        self.min_delta, self.restore_best = min_delta, restore_best
        self._begin()

    def _begin(self) -> None:
        """What is known before any figure."""
        self.best, self.best_epoch, self.waited = math.inf if self.mode == "min" else -math.inf, 0, 0
        self._seen, self._has_stopped = 0, False
        self._best_model: dict[str, Any] | None = None

    def update(self, figure: float) -> bool:
        """Take a figure; True where it is the best so far. NaN never is."""
        better = figure < self.best - self.min_delta if self.mode == "min" else figure > self.best + self.min_delta
        self._seen += 1
        if better:
            self.best, self.best_epoch, self.waited = float(figure), self._seen, 0
        else:
            self.waited += 1
        return better

    @property
    def should_stop(self) -> bool:
        """Whether patience is at its end."""
        return self.waited >= self.patience

    def on_begin(self, progress: Progress) -> None:
        """Forget an earlier training; one that it has ended and that is taken up again goes on after all where patience is greater now."""
        if not progress.step:
            self._begin()
        elif self._has_stopped:
            progress.stop = self._has_stopped = self.should_stop

    def on_epoch(self, progress: Progress) -> None:
        """Look at the epoch's figure.

        Raises
        ------
        ValueError
            If there is no figure of that name.
        """
        if self.monitor not in progress.figures:
            raise ValueError(f"monitor: expected one of {', '.join(progress.figures)}, got {self.monitor!r}; validation= gives more figures")
        if self.update(progress.figures[self.monitor]) and self.restore_best:
            self._best_model = progress.model.state_dict()
        if self.should_stop:
            progress.stop = self._has_stopped = True

    def on_end(self, progress: Progress) -> None:
        """Put the best model back."""
        if self._best_model is not None:
            progress.model.load_state_dict(self._best_model)

    def state_dict(self) -> dict[str, Any]:
        """The best figure and model, and how long it has been waited for a better one."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited, "seen": self._seen,
                "has_stopped": self._has_stopped, "model": self._best_model}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
        self._seen, self._has_stopped, self._best_model = state["seen"], state["has_stopped"], state["model"]
