"""The training loop: epochs of steps, a look at the validation after each epoch, and a way to go on where it was left."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastseq.backends import is_gpu, placed
from fastseq.models.carried_state import CarriedState
from fastseq.optim import clip_grad_norm
from fastseq.training.callbacks import Callback
from fastseq.training.checkpoint import Checkpoint
from fastseq.training.display import Display
from fastseq.training.divergence import TrainingDiverged, origin_of_gradient, origin_of_loss
from fastseq.training.evaluation import batch_loss, evaluate, rows_of, without_a_trace
from fastseq.training.history import History
from fastseq.training.interrupt import heard_between_steps
from fastseq.training.state import TrainingState, check, state_of


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
    state: CarriedState | None = None,
) -> History:
    """Train a model.

    While it learns, the model is in training mode; parts that were in evaluation mode inside a model that was not stay so.
    While it validates, and in the end, it is in evaluation mode, ready for use. A validation leaves no trace in the random
    numbers of the training.

    Parameters
    ----------
    model : nn.Module
    batches : iterable of tuples of arrays, (*inputs, target)
        NumPy's, of which each batch goes where the model is. Gone through once per epoch: `Batches`, `BucketBatches`, `TextStreams`, a list, or an object of your own with
        ``__iter__``. One whose order does not follow from the process's generators alone has `state_dict` and
        `load_state_dict`, so that a resumed training sees the same batches.
    loss : function (output, target) -> Tensor of one element, optional
        `output` is ``model(Tensor(inputs[0]), *inputs[1:])``. Left out: ``model.loss(*batch)``.
    optimizer : optim.Optimizer
    epochs : int
        How many there are to be in all, those before a checkpoint included.
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
        Where to write all that is needed to go on, at once and then now and again. If the file is there already, the training goes on from it, and ends
        with the same bits as one that was never interrupted.
    progress : bool
        Show a bar, or a line per epoch, on standard error.
    state : CarriedState, optional
        For batches that follow one another: ``model.loss(*batch, state)`` goes on from it and leaves the next one's beginning
        there. Each epoch and each validation starts without one.

    Returns
    -------
    History
        "loss" is the mean over the epoch's batches, as they were learnt from. Each batch counts with its rows where it
        says how many it has, as those of `Batches` and `BucketBatches` do; otherwise all batches count the same.

    Raises
    ------
    TrainingDiverged
        If a loss or a gradient is not finite. The step is not made, and the model's numbers are finite.
    ValueError, TypeError
        If something does not fit together.

    Notes
    -----
    Ctrl-C ends the training after the present step, with a checkpoint if there is one; pressed again, at once.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> x = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    >>> y = (x[:, 0] > x[:, 1]).astype(np.int64)
    >>> model = fs.nn.Linear(2, 2, rng=0)
    >>> history = fs.training.fit(model, fs.training.Batches(x, y, batch_size=20, rng=0), loss=fs.functional.cross_entropy,
    ...                           optimizer=fs.optim.Adam(model.parameters(), lr=0.1), epochs=5, progress=False)
    >>> history["loss"][-1] < 0.2
    True
    """
    parts = TrainingState(model, batches, loss, optimizer, epochs, validation, schedule, accumulate, callbacks, state)
    check(parts)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint(checkpoint)
    with heard_between_steps() as interrupted, Display() as display:
        parts.callbacks += [display] if progress else []
        return _Loop(parts, math.inf if max_norm is None else max_norm, checkpoint, interrupted).run()


class _Loop:
    """One call of `fit`. `state` is all that a checkpoint keeps, `at` the part of it that says where the training is."""

    def __init__(self, state: TrainingState, max_norm: float, checkpoint: Checkpoint | None, interrupted: threading.Event) -> None:
        self.state, self.at, self.max_norm = state, state.at, max_norm
        self.checkpoint, self.interrupted = checkpoint, interrupted

    def run(self) -> History:
        """Every epoch that is left."""
        at = self.at
        self._begin()
        while at.epoch <= at.epochs and not self._ends():
            for group in self._groups():
                self._step(group)
                self._call("on_step")
                if self._ends():
                    break
                self._save_if_due()
            if self.interrupted.is_set():
                break  # in the middle of the epoch, with which a checkpoint goes on
            self._look()
            self._call("on_epoch")
            at.epoch, at.batch = at.epoch + 1, 0
            self._save_if_due()
        return self._end()

    def _step(self, group: list[Any]) -> None:
        """Learn from some batches: one step of the optimiser, with the mean of their gradients."""
        s, at, weights, losses = self.state, self.at, [rows_of(batch) for batch in group], []
        s.model.zero_grad()
        s.optimizer.zero_grad()
        for batch, weight in zip(group, weights, strict=True):
            loss, share = batch_loss(s.model, batch, s.loss, s.carried), weight / sum(weights)
            at.batch += 1
            queued = is_gpu(loss.data)
            if queued:  # reading the loss waits for the device, which then has the backward pass to do
                loss.backward(placed(np.full(loss.shape, share, loss.dtype), loss.data))
            losses.append(float(loss.item()))
            if not math.isfinite(losses[-1]):
                raise self._diverged(f"the loss became {losses[-1]}", origin_of_loss(s.model, batch, s.loss, s.carried, constants=s.constants))
            if not queued:
                loss.backward(np.full(loss.shape, share, loss.dtype))
        at.norm = clip_grad_norm(s.parameters(), self.max_norm)
        if not math.isfinite(at.norm):
            raise self._diverged(f"the norm of the gradient became {at.norm}", origin_of_gradient(s.model))
        s.optimizer.step()
        if s.schedule is not None and not s.schedule_takes_figure:
            s.schedule.step()
        at.step += 1
        loss_sum = sum(value * weight for value, weight in zip(losses, weights, strict=True))
        at.loss = loss_sum / sum(weights)
        s.loss_sum, s.rows = s.loss_sum + loss_sum, s.rows + sum(weights)

    def _look(self) -> None:
        """The figures of the epoch that ends, the validation's among them."""
        self._require_finite()  # the last step's numbers have been in no loss
        s = self.state
        figures = {"loss": s.loss_sum / s.rows}
        if s.validation is not None:
            found = self._validated()
            if s.schedule_takes_figure:
                s.schedule.step(found.get("validation_loss", next(iter(found.values()))))
            figures.update(found)
        self.at.figures = figures
        self.at.history.record(figures)
        s.keep_if_finite()

    def _validated(self) -> dict[str, float]:
        s, order = self.state, state_of(self.state.batches)  # a look at the training's batches is a pass through them
        if callable(s.validation):
            with without_a_trace(s.model, s.carried):
                found = s.validation(s.model)
        else:
            found = evaluate(s.model, s.validation, loss=s.loss, state=s.carried)
        if order is not None:
            s.batches.load_state_dict(order)
        figures = dict(found) if isinstance(found, Mapping) else {"validation_loss": found}
        if "loss" in figures or not figures:
            raise ValueError(f'validation: expected at least one figure, and none of the name "loss", got {figures}')
        return {name: float(value) for name, value in figures.items()}

    def _groups(self) -> Iterator[list[Any]]:
        """The batches of the epoch, as many together as make a step; those from before the checkpoint are passed over."""
        s, used = self.state, self.at.batch
        if used:
            now = s.random_state()
            s.restore_random_state(s.epoch_start["random"])
        else:
            s.begin_epoch()
        batches = iter(s.batches)
        if used:
            for _ in itertools.islice(batches, used):
                pass
            s.restore_random_state(now)
        while group := list(itertools.islice(batches, s.accumulate)):
            used += len(group)
            yield group
        if not used:
            raise ValueError(f"batches: expected at least one, got none in epoch {self.at.epoch}")

    # ------------------------------------------------------------------ around the loop

    def _begin(self) -> None:
        """On from the checkpoint if there is one, in training mode."""
        found = self.checkpoint.read() if self.checkpoint else None
        if found is not None:
            self.state.load_state_dict(found)
        if not self.state.model.training:
            self.state.model.train()
        self.state.keep_if_finite()
        self.began = time.perf_counter() - self.at.seconds
        self._call("on_begin")
        if found is None:
            self._save()  # what cannot be written is found out before the training, not after it

    def _ends(self) -> bool:
        return self.at.stop or self.interrupted.is_set()

    def _end(self) -> History:
        self.at.history.stopped = "interrupted" if self.interrupted.is_set() else "early" if self.at.stop else "finished"
        self._save()
        self._call("on_end")
        self.state.model.eval()
        return self.at.history

    def _call(self, moment: str) -> None:
        self.at.seconds = time.perf_counter() - self.began
        self.at.history.steps, self.at.history.seconds = self.at.step, self.at.seconds
        for callback in self.state.callbacks:
            getattr(callback, moment)(self.at)

    def _save_if_due(self) -> None:
        if self.checkpoint and self.checkpoint.is_due(self.at.step):
            self._save()

    def _save(self) -> None:
        if self.checkpoint:
            self._require_finite()
            self.checkpoint.write(self.state.state_dict(), self.at.step)

    def _require_finite(self) -> None:
        if not self.state.is_finite():
            raise self._diverged("a parameter is no longer finite", origin_of_loss(self.state.model, constants=self.state.constants))

    def _diverged(self, what: str, where: str) -> TrainingDiverged:
        """The error to raise; the model's numbers are finite again."""
        at, model = self.at, self.state.make_finite()
        message = f"{what} in epoch {at.epoch}, batch {at.batch}, at step {at.step + 1} (learning rate {at.learning_rate:.2g}): {where}; {model}"
        advice = "" if where.startswith("array") else "; try a smaller learning rate, or max_norm"
        return TrainingDiverged(message + advice, at.epoch, at.batch, at.step + 1, where)
