"""The training behind `fastseq train`: `fit`, with looks at held-out text shared out over the whole of it in place of epochs."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastseq import functional
from fastseq.backends import placed
from fastseq.models import LanguageModel
from fastseq.models.carried_state import CarriedState
from fastseq.optim import Adam
from fastseq.training.callbacks import Callback, EarlyStopping, Progress
from fastseq.training.checkpoint import Checkpoint
from fastseq.training.divergence import TrainingDiverged
from fastseq.training.evaluation import without_a_trace
from fastseq.training.fit import fit
from fastseq.training.streams import TextStreams

#: More epochs than any training has: the callback ends it.
_ENDLESS = 2**62


@dataclass(frozen=True)
class CharacterOptions:
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

    def rate(self, share: float) -> float:
        """The learning rate at `share` (0 to 1) of the training: a straight line up, then half a cosine (Loshchilov & Hutter 2017)."""
        if share < self.warmup:
            return self.learning_rate * share / self.warmup
        fallen = min(1.0, (share - self.warmup) / (1 - self.warmup))
        return self.learning_rate * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * fallen)))


@dataclass
class CharacterProgress:
    """Where a training is; what `on_step` is given.

    Attributes
    ----------
    share : float
        Of the training, 0 to 1.
    loss : float
        The mean over about the last 50 steps.
    held_out_bits : float
        Bits per character at the last look; NaN before the first.
    """

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
class CharacterResult:
    """What came of a training.

    Attributes
    ----------
    stopped : str
        "finished", "early" (no better figure for a while) or "interrupted".
    bits_per_char : float
        On the held-out text, of the best model, which is the one that the model now is and that the file holds.
    history : list of (step, bits per character)
    """

    stopped: str
    bits_per_char: float
    train_bits_per_char: float
    characters: int
    steps: int
    seconds: float
    chars_per_second: float
    history: list[tuple[int, float]] = field(repr=False)


def train_character_model(
    model: LanguageModel,
    train_ids: np.ndarray,
    held_out_ids: np.ndarray,
    options: CharacterOptions | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    on_step: Callable[[CharacterProgress], None] | None = None,
) -> CharacterResult:
    """Train to the end, to the end of patience, or until Ctrl-C.

    Parameters
    ----------
    model : LanguageModel
        Changed in place; in the end it is the best one that was seen.
    train_ids, held_out_ids : ndarray of int64
    options : CharacterOptions
    path : path, optional
        Where the best model so far is written each time that it gets better.
    checkpoint : path or Checkpoint, optional
        As in `fit`.
    on_step : callable, optional
        Called after each step.

    Raises
    ------
    TrainingDiverged
        If the loss is no longer finite; the model is then the best one before that.

    Examples
    --------
    >>> import fastseq as fs
    >>> from fastseq.training.character_model import CharacterOptions, train_character_model
    >>> model = fs.models.LanguageModel("ab", 4, 8, rng=0)
    >>> ids = model.vocabulary.encode("ab" * 2000)
    >>> result = train_character_model(model, ids[:3600], ids[3600:], CharacterOptions(epochs=3, batch_size=4, seed=0))
    >>> result.stopped, result.bits_per_char < 0.1
    ('finished', True)
    """
    options = options or CharacterOptions()
    streams = TextStreams(train_ids, options.batch_size, options.sequence_length, shift=True, rng=options.seed)
    looks = _Looks(options, held_out_ids, streams, path, on_step)
    try:
        history = fit(model, streams, optimizer=Adam(model.parameters(), lr=options.learning_rate), epochs=_ENDLESS, max_norm=options.max_norm,
                      callbacks=[looks], checkpoint=checkpoint, state=CarriedState(), progress=False)  # fmt: skip
    except TrainingDiverged as error:
        raise looks.explained(error, model) from None
    p = looks.progress
    stopped = "finished" if p.share >= 1 and history.stopped == "early" else history.stopped
    return CharacterResult(
        stopped, looks.stopping.best, p.bits_per_char, p.characters, p.steps, p.seconds, p.chars_per_second, looks.history
    )


class _Looks(Callback):
    """Sets the learning rate, looks at the held-out text, keeps the best model, and ends the training."""

    def __init__(
        self, options: CharacterOptions, held_out_ids: np.ndarray, streams: TextStreams, path: Any, on_step: Callable[[CharacterProgress], None] | None
    ) -> None:
        self.options, self.held_out_ids, self.path, self.tell = options, held_out_ids, path, on_step
        self.characters_per_step = streams.batch_size * streams.sequence_length
        self.goal = options.epochs * (len(streams.ids) - 1)
        self.progress = CharacterProgress()
        self.stopping = EarlyStopping(options.patience)
        self.history: list[tuple[int, float]] = []
        self.best: dict[str, np.ndarray] | None = None

    def on_begin(self, progress: Progress) -> None:
        self._set_rate(progress)

    def on_step(self, progress: Progress) -> None:
        p, looks = self.progress, self.options.evaluations
        looked = math.floor(p.share * looks)
        p.steps, p.characters, p.seconds = progress.step, progress.step * self.characters_per_step, progress.seconds
        p.learning_rate = progress.learning_rate
        # A running mean over about 50 steps; a plain mean before that.
        p.loss = progress.loss if p.steps == 1 else p.loss + (progress.loss - p.loss) / min(p.steps, 50)
        p.share = min(1.0, p.seconds / self.options.seconds if self.options.seconds else p.characters / self.goal)
        if math.floor(p.share * looks) > looked:
            self._look(progress.model)
        self._set_rate(progress)
        progress.stop = p.share >= 1 or self.stopping.should_stop
        if self.tell:
            self.tell(p)

    def on_end(self, progress: Progress) -> None:
        """A last look, after Ctrl-C too; then the model is the best one."""
        if self.progress.steps and (not self.history or self.history[-1][0] != self.progress.steps):
            self._look(progress.model)
        self._restore(progress.model)

    def explained(self, error: TrainingDiverged, model: LanguageModel) -> TrainingDiverged:
        """The error with where the best model is, which `model` then is."""
        best = "no model was kept"
        if self.best is not None:
            self._restore(model)
            place = f" and is in {self.path}" if self.path else ""
            best = f"the best model before that needs {self.stopping.best:.3f} bits per character{place}"
        return TrainingDiverged(f"{error}; {best}", error.epoch, error.batch, error.step, error.where)

    def _set_rate(self, progress: Progress) -> None:
        """That of the coming step, by the share of the training that will be over at its end."""
        p, warmup = self.progress, self.options.warmup
        ahead = p.share * (p.steps + 1) / p.steps if p.steps else 0.5 * warmup
        progress.optimizer.param_groups[0]["lr"] = self.options.rate(ahead)

    def _look(self, model: LanguageModel) -> None:
        bits = bits_per_character(model, self.held_out_ids)
        self.progress.held_out_bits = bits
        self.history.append((self.progress.steps, bits))
        if self.stopping.update(bits) or self.best is None:
            self.best = model.state_dict()
            if self.path is not None:
                model.save(self.path)

    def _restore(self, model: LanguageModel) -> None:
        if self.best is not None:
            model.load_state_dict(self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"progress": dict(vars(self.progress)), "stopping": self.stopping.state_dict(), "history": list(self.history), "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.progress = CharacterProgress(**state["progress"])
        self.stopping.load_state_dict(state["stopping"])
        self.history, self.best = list(state["history"]), state["best"]


def bits_per_character(model: LanguageModel, ids: np.ndarray) -> float:
    """Bits per character that the model needs for a text, in evaluation mode.

    A long text is read as up to 16 streams of at least 2,000 characters, each from an empty state.

    Parameters
    ----------
    model : LanguageModel
        With a recurrent cell.
    ids : ndarray (n,) of int64, n >= 2

    Returns
    -------
    float

    Examples
    --------
    >>> import fastseq as fs
    >>> model = fs.models.LanguageModel("abcd", 4, 8, rng=0)
    >>> model.head.weight.data[...] = 0
    >>> model.head.bias.data[...] = 0
    >>> round(fs.training.bits_per_character(model, model.vocabulary.encode("abcd" * 10)), 6)
    2.0
    """
    streams = max(1, min(16, len(ids) // 2000))
    length = (len(ids) - 1) // streams
    total, state = 0.0, None
    with without_a_trace(model):
        for inputs, targets in _slices(ids, streams, length):
            logits, state = model(inputs, state)
            losses = functional.cross_entropy(logits.reshape(-1, logits.shape[2]), placed(targets.reshape(-1), logits), reduction="none")
            total += float(losses.sum(dtype=np.float64))
    return total / (streams * length) / math.log(2)


def _slices(ids: np.ndarray, streams: int, length: int, step: int = 256) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All of `streams` streams of `length` characters, at most `step` at a time."""
    inputs, targets = (ids[k : k + streams * length].reshape(streams, length).T for k in (0, 1))
    for t in range(0, length, step):
        yield np.ascontiguousarray(inputs[t : t + step]), np.ascontiguousarray(targets[t : t + step])
