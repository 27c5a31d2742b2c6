"""The training loop of a character language model: truncated backpropagation through time over contiguous text."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastseq import functional
from fastseq.autograd import Tensor
from fastseq.models import LanguageModel
from fastseq.optim import Adam, clip_grad_norm
from fastseq.runtime import generator
from fastseq.training.callbacks import EarlyStopping
from fastseq.training.divergence import TrainingDiverged
from fastseq.training.streams import TextStreams

State = Any


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast to train.

    Parameters
    ----------
    epochs : float
        Passes over the training text; not used where `seconds` is given.
    seconds : float, optional
        Time to train for; the learning rate follows the clock then.
    batch_size, sequence_length : int
        Texts side by side, and characters read before each step.
    learning_rate : float
        The largest; it rises to it over the share `warmup` of the training and falls to the share `floor` of it as a cosine.
    max_norm : float
        Gradients are clipped to it.
    evaluations : int
        How often to look at the held-out text.
    patience : int
        Stop after so many looks without a better figure.
    seed : int, optional
        Of the places where the streams start.
    """

    epochs: float = 10.0
    seconds: float | None = None
    batch_size: int = 16
    sequence_length: int = 32
    learning_rate: float = 8e-3
    warmup: float = 0.02
    floor: float = 0.02
    max_norm: float = 1.0
    evaluations: int = 10
    patience: int = 4
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length", "evaluations", "patience", "learning_rate", "max_norm", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds: expected more than 0, got {self.seconds}")


@dataclass
class Progress:
    """Where a training is; what `train` hands to `on_step` after each step."""

    share: float = 0.0
    steps: int = 0
    characters: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    loss: float = math.nan
    held_out_bits: float = math.nan

    @property
    def bits_per_char(self) -> float:
        """The running training loss in bits."""
        return self.loss / math.log(2)

    @property
    def chars_per_second(self) -> float:
        """Characters trained on per second so far, looks at the held-out text included."""
        return self.characters / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Attributes
    ----------
    stopped : str
        "finished", "early" (no better figure for a while) or "interrupted".
    bits_per_char : float
        On the held-out text, of the best model, which is the one that the model now is and that the file holds.
    """

    stopped: str
    bits_per_char: float
    train_bits_per_char: float
    characters: int
    steps: int
    seconds: float
    chars_per_second: float
    history: list[tuple[int, float]] = field(repr=False)


def evaluate(model: LanguageModel, ids: np.ndarray) -> float:
    """Bits per character that the model needs for a text, in evaluation mode.

    A long text is read as up to 16 streams of at least 2,000 characters, each from an empty state.

    Parameters
    ----------
    model : LanguageModel
    ids : ndarray (n,) of int64, n >= 2

    Returns
    -------
    float
    """
    mode, streams = model.training, max(1, min(16, len(ids) // 2000))
    length = (len(ids) - 1) // streams
    total, state = 0.0, None
    model.eval()
    try:
        for inputs, targets in _slices(ids, streams, length):
            logits, state = model(inputs, state)
            losses = functional.cross_entropy(
                logits.reshape(-1, logits.shape[2]), targets.reshape(-1), reduction="none"
            )
            total += float(np.sum(losses, dtype=np.float64))
    finally:
        model.train(mode)
    return total / (streams * length) / math.log(2)


def _slices(ids: np.ndarray, streams: int, length: int, step: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All of `streams` streams of `length` characters, at most `step` at a time."""
    inputs, targets = (ids[k : k + streams * length].reshape(streams, length).T for k in (0, 1))
    for t in range(0, length, step):
        yield np.ascontiguousarray(inputs[t : t + step]), np.ascontiguousarray(targets[t : t + step])


def warmup_cosine(share: float, warmup: float, floor: float) -> float:
    """The learning rate at `share` (0 to 1) of a training, as a share of the largest.

    A straight line up to 1 at `warmup`, then half a cosine (Loshchilov & Hutter 2017) down to `floor`.

    Examples
    --------
    >>> from fastseq.training.trainer import warmup_cosine
    >>> [round(warmup_cosine(share, 0.1, 0.0), 3) for share in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if share < warmup:
        return share / warmup
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup))))


class Trainer:
    """One training of one model; `run` does it.

    Parameters
    ----------
    model : LanguageModel
        Changed in place; in the end it is the best one that was seen.
    train_ids, held_out_ids : ndarray of int64
    options : TrainingOptions
    path : path, optional
        Where the best model so far is written each time that it gets better.
    on_step : callable, optional
        Called with the `Progress` after each step.

    Examples
    --------
    >>> import fastseq as fs
    >>> from fastseq.training.trainer import Trainer, TrainingOptions
    >>> model = fs.models.LanguageModel("ab", 4, 8, rng=0)
    >>> ids = model.vocabulary.encode("ab" * 2000)
    >>> result = Trainer(model, ids[:3600], ids[3600:], TrainingOptions(epochs=3, batch_size=4, seed=0)).run()
    >>> result.stopped, result.bits_per_char < 0.1
    ('finished', True)
    """

    def __init__(
        self,
        model: LanguageModel,
        train_ids: np.ndarray,
        held_out_ids: np.ndarray,
        options: TrainingOptions | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        on_step: Callable[[Progress], None] | None = None,
    ) -> None:
        self.model, self.held_out_ids, self.path, self.on_step = model, held_out_ids, path, on_step
        self.options = options or TrainingOptions()
        self.streams = TextStreams(train_ids, self.options.batch_size, self.options.sequence_length)
        self.parameters = list(model.parameters())
        self.adam = Adam(self.parameters, lr=self.options.learning_rate)
        self.progress = Progress()
        self.stopping = EarlyStopping(self.options.patience)
        self.history: list[tuple[int, float]] = []
        self._goal = self.options.epochs * (len(train_ids) - 1)
        self._best: dict[str, np.ndarray] | None = None
        self._evaluated_at = -1

    def run(self) -> TrainingResult:
        """Train to the end, to the end of patience, or until Ctrl-C.

        Raises
        ------
        TrainingDiverged
            If the loss is no longer finite; the model is then the best one before that.
        """
        try:
            stopped = self._train()
            self._evaluate()
        except KeyboardInterrupt:
            self._keep_what_was_learnt()
            stopped = "interrupted"
        self._restore()
        p = self.progress
        return TrainingResult(
            stopped,
            self.stopping.best,
            p.bits_per_char,
            p.characters,
            p.steps,
            p.seconds,
            p.chars_per_second,
            self.history,
        )

    def _train(self) -> str:
        progress, looks, state = self.progress, self.options.evaluations, None
        self.model.train()
        begin = time.perf_counter()
        for inputs, targets, first in self.streams.endless(generator(self.options.seed)):
            looked = math.floor(progress.share * looks)
            progress.learning_rate = self.options.learning_rate * warmup_cosine(
                self._share_ahead(), self.options.warmup, self.options.floor
            )
            loss, state = self._step(inputs, targets, None if first else state)
            self._advance(inputs.size, loss, time.perf_counter() - begin)
            if math.floor(progress.share * looks) > looked:
                self._evaluate()
            if self.on_step:
                self.on_step(progress)
            if progress.share >= 1:
                return "finished"
            if self.stopping.should_stop:
                return "early"
        raise AssertionError("the streams have no end")

    def _step(self, inputs: np.ndarray, targets: np.ndarray, state: State) -> tuple[float, State]:
        """Read one piece, step once; the loss, and the state cut off from the tape."""
        logits, state = self.model(Tensor(inputs), state)
        loss = functional.cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1))
        value = loss.item()
        if not math.isfinite(value):
            self._diverged(value)
        self.adam.zero_grad()
        loss.backward()
        clip_grad_norm(self.parameters, self.options.max_norm)
        self.adam.param_groups[0]["lr"] = self.progress.learning_rate
        self.adam.step()
        return value, tuple(s.detach() for s in state)

    def _share_ahead(self) -> float:
        """The share of the training at the end of the step that comes."""
        p = self.progress
        return p.share * (p.steps + 1) / p.steps if p.steps else 0.5 * self.options.warmup

    def _advance(self, characters: int, loss: float, seconds: float) -> None:
        p = self.progress
        p.steps, p.characters, p.seconds = p.steps + 1, p.characters + characters, seconds
        # A running mean over about 50 steps; a plain mean before that.
        p.loss = loss if p.steps == 1 else p.loss + (loss - p.loss) / min(p.steps, 50)
        p.share = min(1.0, seconds / self.options.seconds if self.options.seconds else p.characters / self._goal)

    # ------------------------------------------------------------------ the best model

    def _evaluate(self) -> None:
        """Look at the held-out text, unless the model is still the one that was looked at last."""
        if self._evaluated_at == self.progress.steps:
            return
        self._evaluated_at = self.progress.steps
        bits = evaluate(self.model, self.held_out_ids)
        self.progress.held_out_bits = bits
        self.history.append((self.progress.steps, bits))
        if bits < self.stopping.best:
            self._keep()
        self.stopping.update(bits)

    def _keep(self) -> None:
        self._best = self.model.state_dict()
        if self.path is not None:
            self.model.save(self.path)

    def _keep_what_was_learnt(self) -> None:
        """After Ctrl-C: the present model, where it is better than the best or nothing has been kept yet."""
        if self._best is None:
            self._keep()
        self._evaluated_at = -1
        self._evaluate()

    def _restore(self) -> None:
        if self._best is not None:
            self.model.load_state_dict(self._best)
        self.model.eval()

    def _diverged(self, loss: float) -> None:
        best = "no model was kept"
        if self._best is not None:
            best = f"the best model before that needs {self.stopping.best:.3f} bits per character" + (
                f" and is in {self.path}" if self.path else ""
            )
        step, rate = self.progress.steps + 1, self.progress.learning_rate
        self._restore()
        raise TrainingDiverged(
            f"the loss became {loss} at step {step} (learning rate {rate:.2g}); {best}; try a smaller learning rate"
        )
