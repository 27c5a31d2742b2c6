"""A line of the table: the same computation in both libraries, and when its answer is right."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from benchmarks.cuda.device import Device

Answer = dict[str, torch.Tensor]

#: The largest error of an array, as a share of its largest entry, that is let through whatever the other library's is.
TOLERANCES = {"highest": 1e-4, "high": 5e-3, "medium": 3e-2}


class WrongAnswerError(AssertionError):
    """An implementation computes something else: it is not timed."""


class Call(NamedTuple):
    """Something to time, and something to verify."""

    run: Callable[[], Any]
    answer: Callable[[], Answer]  # solves it once and names the results
    enter: Callable[[], None] | None = None  # before each turn, outside the time: a switch of the whole process


@dataclass(frozen=True, kw_only=True)
class Case:
    """The computation and its sizes. Subclasses are dataclasses of their sizes; data is drawn from a seed, so it is the same at each call."""

    precision: str = "high"
    quick: bool = False  # in the short table, and timed first

    @property
    @abstractmethod
    def family(self) -> str:
        """Under which the table's end sums up."""

    @property
    @abstractmethod
    def target(self) -> float | None:
        """PyTorch's time over fastseq's that is wanted; None where nothing was promised."""

    @property
    def flop(self) -> float:
        """Operations of its products, a multiply-add being two; 0 where there are none to speak of."""
        return 0.0

    @property
    def bytes(self) -> float:
        """What must pass through memory at least; 0 where it was not counted."""
        return 0.0

    @abstractmethod
    def theirs(self, device: Device) -> dict[str, Call]:
        """PyTorch's ways to compute it, of which the fastest counts. The first one also gives the answer's names."""

    @abstractmethod
    def ours(self, device: Device) -> Call:
        """fastseq's."""

    @abstractmethod
    def truth(self, device: Device) -> Answer:
        """By PyTorch in float64."""

    def floor(self, rates: dict[str, float]) -> float:
        """Seconds that the device needs at least, by its measured rates; 0 where nothing is known."""
        return max(self.flop / rates[self.precision], self.bytes / rates["bytes"])


def errors(who: str, got: Answer, right: Answer) -> dict[str, float]:
    """The largest error of each array as a share of the array's largest entry; WrongAnswerError where one is missing or shaped otherwise."""
    found = {}
    for name, want in right.items():
        if name not in got or got[name].shape != want.shape:
            raise WrongAnswerError(f"{who}: {name}: expected shape {tuple(want.shape)}, got {tuple(got[name].shape) if name in got else None}")
        if not want.numel():
            continue
        error, largest = (got[name].double() - want.double()).abs().max(), want.double().abs().max()
        found[name] = float(error / largest) if largest > 0 else float(error)
    return found


def verify(case: Case, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """WrongAnswerError unless each error is within the tolerance of the precision, or of twice PyTorch's own."""
    for name, error in ours.items():
        allowed = max(TOLERANCES[case.precision], 2 * theirs.get(name, 0.0))
        if not error <= allowed:  # NaN is wrong too
            raise WrongAnswerError(f"fastseq, {case}: {name}: off by {error:.2g} of its largest entry, allowed {allowed:.2g}")
