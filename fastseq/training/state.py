"""All that a training depends on, to be written down and taken up again."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastseq.models.carried_state import CarriedState
from fastseq.nn import Module
from fastseq.optim import Optimizer
from fastseq.training.callbacks import Callback, EarlyStopping, Progress
from fastseq.training.display import Display
from fastseq.training.divergence import not_finite
from fastseq.training.random_state import random_state, restore_random_state

#: What is kept of `Progress`.
_POSITION = ("epoch", "batch", "step", "loss", "norm", "figures", "seconds", "stop")


class TrainingState:
    """The parts that `fit` was given, and where the training is.

    The order of an epoch's batches follows from `epoch_start`: the state of the batches and of the random numbers when it
    began. In the middle of an epoch both are taken back to there, and the batches that were used are passed over.
    """

    def __init__(
        self, model: Any, batches: Any, loss: Any, optimizer: Any, epochs: int, validation: Any, schedule: Any, accumulate: int,
        callbacks: Iterable[Callback], carried: CarriedState | None,
    ) -> None:  # fmt: skip
        _check_kinds(model, optimizer, schedule, callbacks)
        self.model, self.batches, self.loss, self.optimizer = model, batches, loss, optimizer
        self.validation, self.schedule, self.accumulate, self.callbacks, self.carried = validation, schedule, accumulate, [*callbacks], carried
        self.schedule_takes_figure = schedule is not None and _takes_argument(schedule.step)
        self.at = Progress(model, optimizer, epochs=epochs, batches=len(batches) if hasattr(batches, "__len__") else None)
        self.loss_sum = self.rows = 0.0  # of this epoch: losses times rows, and rows
        self.epoch_start: dict[str, Any] = {}
        # Buffers that are not finite by design, such as a mask of -inf.
        self.constants = not_finite(model) - {name for name, _ in model.named_parameters()}
        self._finite: dict[str, Any] = {}
        self._finite_step = 0

    def parameters(self) -> Iterator[Any]:
        """Those that the optimiser changes."""
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])

    def random_state(self) -> dict[str, Any]:
        """Of the process, the model, and every other part that holds a generator."""
        return random_state(self.model, *self._parts().values())

    def restore_random_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `random_state` gave."""
        restore_random_state(state, self.model, *self._parts().values())

    def begin_epoch(self) -> None:
        """Remember what the order of the batches follows from."""
        self.epoch_start = {"batches": state_of(self.batches), "random": self.random_state()}
        self.loss_sum = self.rows = 0.0
        if self.carried is not None:
            self.carried.reset()

    # ------------------------------------------------------------------ a checkpoint's content

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        return {
            "settings": self._settings(),
            "at": {name: getattr(self.at, name) for name in _POSITION},
            "sums": (self.loss_sum, self.rows),
            "epoch_start": self.epoch_start,
            "parts": {name: state_of(part) for name, part in self._parts().items()},
            "random": self.random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises
        ------
        ValueError
            If the training was another one. Nothing has changed then.
        """
        own, given = self._settings(), state["settings"]
        for name in own | given:
            if own.get(name) != given.get(name):
                raise ValueError(f"checkpoint: expected one of a training with {name} {own.get(name, 'none')}, got {given.get(name, 'none')}")
        before = self.state_dict()
        try:
            self._take(state)
        except Exception:
            self._take(before)
            raise

    def _take(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts().items():
            if state["parts"][name] is not None:
                part.load_state_dict(state["parts"][name])
        for name, value in state["at"].items():
            setattr(self.at, name, value)
        self.loss_sum, self.rows = state["sums"]
        self.epoch_start = dict(state["epoch_start"])
        if self.at.batch and self.epoch_start["batches"] is not None:
            self.batches.load_state_dict(self.epoch_start["batches"])
        self.restore_random_state(state["random"])

    def _parts(self) -> dict[str, Any]:
        """What remembers something, in the order in which it is loaded: a schedule after its optimiser."""
        kept = [callback for callback in self.callbacks if not isinstance(callback, Display)]
        return {
            "model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "loss": self.loss, "carried": self.carried,
            "validation": self.validation, "batches": self.batches, "history": self.at.history,
            **{f"callback {number}": callback for number, callback in enumerate(kept)},
        }  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        """What has to be the same where a training goes on."""
        parts = {name: type(part).__name__ for name, part in self._parts().items()}
        return {**parts, "batches per epoch": self.at.batches, "accumulate": self.accumulate}

    # ------------------------------------------------------------------ numbers that are not finite

    def is_finite(self) -> bool:
        """Whether all numbers of the model are, as far as they were."""
        return not_finite(self.model) <= self.constants

    def keep_if_finite(self) -> None:
        """Keep a copy of the model for when its numbers stop being finite."""
        if self.is_finite():
            self._finite, self._finite_step = self.model.state_dict(), self.at.step

    def make_finite(self) -> str:
        """Leave the model as it is if it is finite, or as it was at the end of the last epoch; a sentence that says which."""
        model = "the model is as before this step"
        if not self.is_finite() and self._finite:
            self.model.load_state_dict(self._finite)
            model = f"the model is as after step {self._finite_step}"
        self.model.zero_grad()
        self.model.eval()
        return model


def _check_kinds(model: Any, optimizer: Any, schedule: Any, callbacks: Any) -> None:
    """TypeError where a part is none at all."""
    for name, value, kind, article in (("model", model, Module, "an nn.Module"), ("optimizer", optimizer, Optimizer, "an optim.Optimizer")):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {article}, got {type(value).__name__}")
    if schedule is not None and not callable(getattr(schedule, "step", None)):
        raise TypeError(f"schedule: expected an object with step(), got {type(schedule).__name__}")
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected a sequence of Callbacks, got {type(callbacks).__name__}")
    for k, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks[{k}]: expected a Callback, got {type(callback).__name__}")


def check(s: TrainingState) -> None:
    """Raise ValueError or TypeError where the parts of a training do not fit together."""
    for name, value in (("epochs", s.at.epochs), ("accumulate", s.accumulate)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if not isinstance(s.batches, Iterable) or isinstance(s.batches, Iterator):
        raise TypeError(f"batches: expected something that can be gone through again and again, such as a list, got {type(s.batches).__name__}")
    if s.loss is not None and not callable(s.loss):
        advice = "; give it as state=" if isinstance(s.loss, CarriedState) else ""
        raise TypeError(f"loss: expected a function of output and target, got {type(s.loss).__name__}{advice}")
    if s.loss is None and not callable(getattr(s.model, "loss", None)):
        raise TypeError(f"loss: expected a function of output and target, for {type(s.model).__name__} has no method loss, got None")
    if s.validation is not None and not callable(s.validation) and (not isinstance(s.validation, Iterable) or isinstance(s.validation, Iterator)):
        raise TypeError(f"validation: expected batches that can be gone through again and again, or a function, got {type(s.validation).__name__}")
    own = {id(parameter) for parameter in s.model.parameters()}
    if not any(id(parameter) in own for parameter in s.parameters()):
        raise ValueError("optimizer: expected one that was made with this model's parameters, got one with none of them")
    if s.loss is not None and s.carried is not None:
        raise ValueError("state: expected None, for it is given to model.loss, and here loss is given")
    if s.validation is None:
        if s.schedule_takes_figure:
            raise ValueError(f"validation: expected one, for {type(s.schedule).__name__} follows its figure, got None")
        for callback in s.callbacks:
            if isinstance(callback, EarlyStopping) and callback.monitor != "loss":
                raise ValueError(f"validation: expected one, for EarlyStopping watches {callback.monitor!r}, got None")


def state_of(part: Any) -> Any:
    """What a checkpoint keeps of an object; None of one that says nothing."""
    return part.state_dict() if hasattr(part, "state_dict") else None


def _takes_argument(function: Any) -> bool:
    return any(p.default is p.empty for p in inspect.signature(function).parameters.values())
