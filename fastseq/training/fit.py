"""The training loop: epochs of steps, a look at the validation after each, all of it saved and resumed exactly."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastseq.autograd import Tensor, no_grad
from fastseq.optim import clip_grad_norm
from fastseq.training.callbacks import Callback, Progress
from fastseq.training.checkpoint import Checkpoint
from fastseq.training.display import Display
from fastseq.training.divergence import TrainingDiverged, is_finite, origin_of_gradient, origin_of_loss
from fastseq.training.history import History
from fastseq.training.random_state import random_state, restore_random_state
from fastseq.training.streams import CarriedState


def fit(
    model: Any,
    batches: Iterable[Any],
    *,
    loss: Callable[..., Any] | None = None,
    optimizer: Any,
    epochs: int = 1,
    validation: Any = None,
    schedule: Any = None,
    max_norm: float | None = None,
    accumulate: int = 1,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    progress: bool = True,
) -> History:
    """Train a model.

    While it trains, the model is in training mode: parts that were in evaluation mode, inside a model that was not, stay so.
    While it validates, and in the end, it is in evaluation mode, ready for use. A validation leaves no trace in the random
    numbers of the training.

    Parameters
    ----------
    model : nn.Module
    batches : iterable of tuples of arrays, (*inputs, target)
        Gone through once per epoch: `Batches`, `BucketBatches`, `TextStreams`, a list, or an object of your own with
        ``__iter__``. One whose order does not follow from the process's generators alone has `state_dict` and
        `load_state_dict`, so that a resumed training sees the same batches.
    loss : function (output, target) -> Tensor of one element, optional
        `output` is ``model(Tensor(inputs[0]), *inputs[1:])``. Left out: ``model.loss(*batch)``. A `CarriedState` carries
        the model's state from batch to batch.
    optimizer : optim.Optimizer
    epochs : int
    validation : batches, or function (model) -> float or dict of floats; optional
        Looked at after each epoch. Batches, and a function that returns one number, give "validation_loss"; a dict's names
        become the history's.
    schedule : object with step(), optional
        Stepped after each step of the optimiser. One whose step takes a figure (`ReduceOnPlateau`) is given
        "validation_loss", or the validation's first figure, after each validation.
    max_norm : float, optional
        Gradients are clipped to this norm, all of them together.
    accumulate : int
        So many batches make one step, with the mean of their gradients, each weighed by its rows; what is left at the
        end of an epoch makes a step too.
    callbacks : sequence of Callback
        Called in this order.
    checkpoint : path or Checkpoint, optional
        Where to write all that is needed to go on. If the file is there already, the training goes on from it, and ends
        with the same bits as one that was never interrupted.
    progress : bool
        Show a bar, or a line per epoch, on standard error.

    Returns
    -------
    History
        "loss" is the mean over the epoch's batches, as they were trained on. Each batch counts with its rows where it
        says how many it has, as those of `Batches` and `BucketBatches` do; otherwise all batches count the same.

    Raises
    ------
    TrainingDiverged
        If a loss or gradient is not finite. The step is not made, and the model's numbers are finite.
    ValueError, TypeError
        If something does not fit together; nothing has been trained then.

    Notes
    -----
    Ctrl-C ends the training after the present step, with a checkpoint if there is one; pressed again, at once.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 2)).astype(np.float32)
    >>> y = (x[:, 0] > x[:, 1]).astype(np.int64)
    >>> model = fs.nn.Linear(2, 2, rng=0)
    >>> batches = fs.training.Batches(x, y, batch_size=20, rng=0)
    >>> history = fs.training.fit(model, batches, loss=fs.functional.cross_entropy, optimizer=fs.optim.Adam(model.parameters(), lr=0.1),
    ...                           epochs=5, progress=False)
    >>> history["loss"][-1] < 0.2
    True
    """
    _check(model, batches, optimizer, epochs, accumulate)
    training = _Training(model, batches, loss, optimizer, validation, schedule, max_norm, accumulate, callbacks, epochs)
    if checkpoint is not None:
        training.checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
    if progress:
        training.display = Display()
    with _interruptible(training):
        return training.run()


class _Training:
    """One call of `fit`."""

    def __init__(
        self, model: Any, batches: Any, loss: Any, optimizer: Any, validation: Any, schedule: Any,
        max_norm: float | None, accumulate: int, callbacks: Sequence[Callback], epochs: int,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.loss, self.optimizer = model, batches, loss, optimizer
        self.validation, self.schedule, self.max_norm = validation, schedule, max_norm
        self.accumulate, self.callbacks = accumulate, list(callbacks)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.schedule_wants_figure = schedule is not None and bool(inspect.signature(schedule.step).parameters)
        self.at = Progress(model, optimizer, epochs=epochs, batches=len(batches) if hasattr(batches, "__len__") else None)
        self.checkpoint: Checkpoint | None = None
        self.display: Display | None = None
        self.interrupted = threading.Event()
        self.total = self.rows = 0.0  # of this epoch's losses, and of their weights
        self.epoch_start: dict[str, Any] = {}  # what this epoch's order of batches followed from

    # ------------------------------------------------------------------ the loop

    def run(self) -> History:
        """All epochs that are left."""
        at = self.at
        if not self.model.training:
            self.model.train()
        begin = time.perf_counter()
        resumed = self._resume()
        begin -= at.seconds
        self._snapshot()
        self._call("on_begin")
        try:
            while at.epoch <= at.epochs and not at.stop and not self.interrupted.is_set():
                for group in self._groups(resumed):
                    self._step(group)
                    at.seconds = time.perf_counter() - begin
                    self._call("on_step")
                    if at.stop or self.interrupted.is_set():
                        break
                    self._save(only_if_due=True)
                resumed = False
                if self.interrupted.is_set():
                    break
                self._end_epoch()
                at.seconds = time.perf_counter() - begin
                self._call("on_epoch")
                at.epoch, at.batch = at.epoch + 1, 0
                self._save(only_if_due=True)
            self._save()
        finally:
            if self.display:
                self.display.close()
        self._call("on_end")
        self.model.eval()
        at.history.stopped = "interrupted" if self.interrupted.is_set() else "early" if at.stop else "finished"
        at.history.steps, at.history.seconds = at.step, at.seconds
        return at.history

    def _groups(self, resumed: bool) -> Iterator[list[Any]]:
        """The batches of an epoch, as many together as make a step; those that were used before the checkpoint are passed over."""
        if not resumed:
            self.total = self.rows = 0.0
            self.epoch_start = {"batches": _state_of(self.batches), "random": random_state(self.model)}
            if isinstance(self.loss, CarriedState):
                self.loss.reset()
        now = random_state(self.model)
        restore_random_state(self.model, self.epoch_start["random"])
        iterator = iter(self.batches)
        used = sum(1 for _ in itertools.islice(iterator, self.at.batch))
        if self.at.batch:
            restore_random_state(self.model, now)
        while group := list(itertools.islice(iterator, self.accumulate)):
            used += len(group)
            yield group
        if not used:
            raise ValueError("batches: expected at least one, got none")

    def _step(self, group: list[Any]) -> None:
        """One step of the optimiser, with the mean of the gradients of these batches."""
        at, weights = self.at, [_rows(batch) for batch in group]
        self.model.zero_grad()
        self.optimizer.zero_grad()
        losses = []
        for batch, weight in zip(group, weights, strict=True):
            value = self._batch_loss(batch)
            losses.append(float(value.item()))
            at.batch += 1
            if not math.isfinite(losses[-1]):
                raise self._diverged(f"the loss became {losses[-1]}", origin_of_loss(self.model, batch, self._batch_loss))
            value.backward(np.full(value.shape, weight / sum(weights), value.dtype))
        at.norm = clip_grad_norm(self.parameters, math.inf if self.max_norm is None else self.max_norm)
        if not math.isfinite(at.norm):
            raise self._diverged(f"the norm of the gradient became {at.norm}", origin_of_gradient(self.model))
        self.optimizer.step()
        if self.schedule is not None and not self.schedule_wants_figure:
            self.schedule.step()
        at.step += 1
        at.loss = float(np.average(losses, weights=weights))
        self.total += at.loss * sum(weights)
        self.rows += sum(weights)

    def _end_epoch(self) -> None:
        """The figures of the epoch, the validation's among them."""
        at = self.at
        at.figures = {"loss": self.total / self.rows}
        if self.validation is not None:
            found = self._validate()
            if self.schedule_wants_figure:
                self.schedule.step(found.get("validation_loss", next(iter(found.values()))))
            at.figures.update(found)
        at.history.record(at.figures)
        self._snapshot()

    def _validate(self) -> dict[str, float]:
        """The validation's figures; modes and random numbers are afterwards what they were."""
        modes = [(module, module.training) for module in self.model.modules()]
        before = random_state(self.model)
        self.model.eval()
        try:
            if callable(self.validation):
                found = self.validation(self.model)
            else:
                found = evaluate(self.model, self.validation, loss=self.loss)
        finally:
            for module, mode in modes:
                module.__dict__["training"] = mode
            restore_random_state(self.model, before)
        figures = {name: float(value) for name, value in found.items()} if isinstance(found, Mapping) else {"validation_loss": float(found)}
        if "loss" in figures:
            raise ValueError('validation: expected names other than "loss", which is the training\'s')
        return figures

    def _batch_loss(self, batch: Any) -> Any:
        return batch_loss(self.model, batch, self.loss)

    def _call(self, moment: str) -> None:
        for callback in [*self.callbacks, *([self.display] if self.display else [])]:
            getattr(callback, moment)(self.at)

    # ------------------------------------------------------------------ what can go wrong

    def _snapshot(self) -> None:
        """Keep the model, if its numbers are finite, for when they are not."""
        if is_finite(self.model):
            self.kept, self.kept_step = self.model.state_dict(), self.at.step

    def _diverged(self, what: str, where: str) -> TrainingDiverged:
        at = self.at
        model = "the model is as before this step"
        if not is_finite(self.model):
            self.model.load_state_dict(self.kept)
            model = f"the model is as after step {self.kept_step}"
        self.model.zero_grad()
        self.model.eval()
        return TrainingDiverged(
            f"{what} in epoch {at.epoch}, batch {at.batch}, at step {at.step + 1} (learning rate {at.learning_rate:.2g}): {where}; {model}; "
            "try a smaller learning rate or max_norm", at.epoch, at.batch, at.step + 1, where)  # fmt: skip

    # ------------------------------------------------------------------ saving and going on

    def _save(self, only_if_due: bool = False) -> None:
        if self.checkpoint is None or (only_if_due and not self.checkpoint.is_due(self.at.step)):
            return
        if not is_finite(self.model):
            raise self._diverged("a parameter stopped being finite", origin_of_loss(self.model, (), lambda batch: None))
        at = self.at
        self.checkpoint.write({
            "epoch": at.epoch, "batch": at.batch, "step": at.step, "seconds": at.seconds, "loss": at.loss, "norm": at.norm,
            "figures": at.figures, "total": self.total, "rows": self.rows, "history": at.history.state_dict(),
            "epoch_start": self.epoch_start, "random": random_state(self.model), "modes": [m.training for m in self.model.modules()],
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "batches": _state_of(self.batches),
            "others": [_state_of(each) for each in self._others()],
        }, at.step)  # fmt: skip

    def _resume(self) -> bool:
        """Take up the checkpoint, if there is one; True in the middle of an epoch."""
        found = self.checkpoint.read() if self.checkpoint else None
        if found is None:
            return False
        at = self.at
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        for each, state in zip(self._others(), found["others"], strict=True):
            if state is not None:
                each.load_state_dict(state)
        at.history.load_state_dict(found["history"])
        for name in ("epoch", "batch", "step", "seconds", "loss", "norm", "figures"):
            setattr(at, name, found[name])
        self.total, self.rows, self.epoch_start = found["total"], found["rows"], found["epoch_start"]
        state = self.epoch_start["batches"] if at.batch else found["batches"]
        if state is not None:
            self.batches.load_state_dict(state)
        restore_random_state(self.model, found["random"])
        return bool(at.batch)

    def _others(self) -> list[Any]:
        """What else remembers something."""
        return [self.schedule, self.loss, self.validation, *self.callbacks]


def evaluate(model: Any, batches: Iterable[Any], *, loss: Callable[..., Any] | None = None) -> float:
    """The mean loss over batches, in evaluation mode and without gradients.

    Parameters
    ----------
    model : nn.Module
        Its mode is afterwards what it was.
    batches : iterable of tuples of arrays, (*inputs, target)
    loss : as in `fit`

    Returns
    -------
    float
        Each batch counts with its rows where it says how many it has, as those of `Batches` and `BucketBatches` do;
        otherwise all batches count the same.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> model, x = fs.nn.Linear(2, 3, rng=0), np.ones((5, 2), np.float32)
    >>> batches = fs.training.Batches(x, np.zeros(5, int), batch_size=2, shuffle=False)
    >>> fs.training.evaluate(model, batches, loss=fs.functional.cross_entropy) > 0
    True
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    total = rows = 0.0
    try:
        with no_grad():
            if isinstance(loss, CarriedState):
                loss.reset()
            for batch in batches:
                weight = _rows(batch)
                total += float(batch_loss(model, batch, loss).item()) * weight
                rows += weight
    finally:
        for module, mode in modes:
            module.__dict__["training"] = mode
    if not rows:
        raise ValueError("batches: expected at least one, got none")
    return total / rows


def batch_loss(model: Any, batch: Any, loss: Callable[..., Any] | None) -> Any:
    """The loss of one batch, as `fit` computes it."""
    if not isinstance(batch, (tuple, list)):
        raise TypeError(f"batches: expected tuples of arrays, got {type(batch).__name__}")
    if loss is None:
        value = model.loss(*batch)
    elif isinstance(loss, CarriedState):
        value = loss(model, *batch)
    else:
        *inputs, target = batch
        value = loss(model(Tensor(inputs[0]), *inputs[1:]), target)
    if not isinstance(value, Tensor) or value.size != 1:
        came = f"one of shape {value.shape}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss: expected a Tensor of one element, got {came}")
    return value


def _rows(batch: Any) -> float:
    """What a batch's loss counts."""
    return float(getattr(batch, "rows", 1))


def _state_of(thing: Any) -> Any:
    """What a checkpoint keeps of an object; None of one that says nothing."""
    return thing.state_dict() if hasattr(thing, "state_dict") else None


def _check(model: Any, batches: Any, optimizer: Any, epochs: int, accumulate: int) -> None:
    for name, value in (("epochs", epochs), ("accumulate", accumulate)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1, got {value!r}")
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        raise TypeError(f"batches: expected something that can be gone through again and again, such as a list, got {type(batches).__name__}")
    own = {id(p) for p in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: expected one that was made with this model's parameters, got none of them")


@contextlib.contextmanager
def _interruptible(training: _Training) -> Iterator[None]:
    """Ctrl-C is heard after the present step; the second one at once. A handler of the program's own is left to it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def hear(number: int, frame: Any) -> None:
        if training.interrupted.is_set():
            raise KeyboardInterrupt
        training.interrupted.set()

    signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
