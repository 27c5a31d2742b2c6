"""What a training leaves behind: figures, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any


class History(Mapping[str, list[float]]):
    """The figures of a training: one number per epoch under each name.

    A mapping from names (``"loss"``, ``"validation_loss"`` and whatever a validation function gave) to lists of equal
    lengths; NaN stands where a figure was not taken in an epoch.

    Attributes
    ----------
    stopped : str
        "finished"; "early", where a callback ended it; "interrupted" by Ctrl-C.
    epochs, steps : int
        How many epochs were finished, and how many steps the optimiser made.
    seconds : float
        How long it took, earlier parts of a resumed training included.

    Examples
    --------
    >>> from fastseq.training import History
    >>> history = History()
    >>> history.record({"loss": 0.5}); history.record({"loss": 0.25, "validation_loss": 0.75})
    >>> history["loss"], history["validation_loss"], history.best("loss")
    ([0.5, 0.25], [nan, 0.75], (2, 0.25))
    """

    def __init__(self) -> None:
        self._figures: dict[str, list[float]] = {}
        self.stopped = "finished"
        self.epochs, self.steps, self.seconds = 0, 0, 0.0

    def record(self, figures: Mapping[str, float]) -> None:
        """Take the figures of one more epoch."""
        for name in figures:
            self._figures.setdefault(name, [math.nan] * self.epochs)
        for name, values in self._figures.items():
            values.append(float(figures.get(name, math.nan)))
        self.epochs += 1

    def best(self, name: str, mode: str = "min") -> tuple[int, float]:
        """The epoch, counted from 1, with the lowest figure (the highest for mode "max"), and the figure; NaN is passed over."""
        sign = {"min": 1, "max": -1}[mode]
        found = [(sign * value, epoch) for epoch, value in enumerate(self[name], 1) if not math.isnan(value)]
        if not found:
            raise ValueError(f"name: expected a figure that is a number in some epoch, got {name!r}, which never is")
        value, epoch = min(found)
        return epoch, sign * value

    def __getitem__(self, name: str) -> list[float]:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        last = "".join(f", {name} {values[-1]:.4g}" for name, values in self._figures.items())
        return f"History({self.stopped} after {self.epochs} epochs, {self.steps} steps, {self.seconds:.1f} s{last})"

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_figures"}
        return {**kept, "figures": {name: list(values) for name, values in self._figures.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the history that `state_dict` was taken of."""
        self.__dict__.update({name: value for name, value in state.items() if name != "figures"})
        self._figures = {name: list(values) for name, values in state["figures"].items()}
