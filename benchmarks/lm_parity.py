"""Trains one character language model twice, in fastseq and in PyTorch, and prints how well and how fast each learnt.

    python benchmarks/lm_parity.py --text book.txt.gz --steps 2000

Both start from the same weights and see the same batches under the same schedule: embedding, LSTM, linear; Adam with a warm-up and a
cosine, gradients clipped; the state carried from batch to batch. They take turns of some steps, so that what disturbs the machine
meets both; each turn's seconds are added up. The losses of the first step must agree before anything is timed. The held-out text is
the last tenth; each library reads it with its own forward pass. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

import fastseq as fs
from fastseq.backends import reference
from fastseq.models import LanguageModel
from fastseq.text import check_text, default_text, read_text
from fastseq.training import TextStreams
from fastseq.training.trainer import TrainingOptions, warmup_cosine

Batch = tuple[np.ndarray, np.ndarray, bool]  # inputs and targets (T, B), and whether the state starts anew
State = Any
TURN = 50  # steps before the other library has its turn


class Learner(Protocol):
    """A library's half of the comparison."""

    def step(self, batch: Batch, learning_rate: float) -> float:
        """Train on a batch; the loss before it."""

    def logits(self, inputs: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """Scores (T, B, V) in evaluation, and the state after them."""


class FastSeqLearner:
    """The model and the optimiser of `fastseq train`."""

    def __init__(self, model: LanguageModel, max_norm: float) -> None:
        self.model, self.max_norm, self.state = model, max_norm, None
        self.parameters = list(model.parameters())
        self.adam = fs.optim.Adam(self.parameters, lr=1.0)

    def step(self, batch: Batch, learning_rate: float) -> float:
        inputs, targets, first = batch
        logits, state = self.model(fs.Tensor(inputs), None if first else self.state)
        loss = fs.functional.cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1))
        self.adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(self.parameters, self.max_norm)
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        self.state = tuple(s.detach() for s in state)
        return float(loss)

    def logits(self, inputs: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        found: tuple[np.ndarray, State] = self.model(inputs, state)
        return found


class PyTorchLearner:
    """The same of PyTorch's layers, with its fused Adam."""

    def __init__(self, model: LanguageModel, max_norm: float, threads: int) -> None:
        import torch

        self.torch, self.max_norm, self.state = torch, max_norm, None
        torch.set_num_threads(threads)
        V, E = model.embedding.weight.shape
        self.layers = torch.nn.ModuleDict({
            "embedding": torch.nn.Embedding(V, E), "lstm": torch.nn.LSTM(E, model.lstm.hidden_size), "head": torch.nn.Linear(model.lstm.hidden_size, V)})
        self.layers.load_state_dict({name: torch.from_numpy(array) for name, array in model.state_dict().items()})
        self.adam = torch.optim.Adam(self.layers.parameters(), lr=1.0, fused=True)

    def _forward(self, inputs: Any, state: State) -> tuple[Any, State]:
        y, state = self.layers["lstm"](self.layers["embedding"](inputs), state)
        return self.layers["head"](y), state

    def step(self, batch: Batch, learning_rate: float) -> float:
        inputs, targets, first = batch
        logits, state = self._forward(self.torch.from_numpy(inputs), None if first else self.state)
        loss = self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.torch.from_numpy(targets).flatten())
        self.adam.zero_grad()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.layers.parameters(), self.max_norm)
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        self.state = tuple(s.detach() for s in state)
        return loss.item()

    def logits(self, inputs: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        with self.torch.inference_mode():
            logits, state = self._forward(self.torch.from_numpy(inputs), state)
        return logits.numpy(), state


def held_out_bits(learner: Learner, ids: np.ndarray, streams: int = 16, length: int = 256) -> float:
    """Bits per character over a text that is read as `streams` texts side by side, the losses added up in float64."""
    total, count, state = 0.0, 0, None
    for inputs, targets in TextStreams(ids, streams, length).pieces():
        logits, state = learner.logits(inputs, state)
        losses, _ = reference.cross_entropy_forward(
            logits.reshape(-1, logits.shape[2]).astype(np.float64), targets.reshape(-1), ignore_index=-100, label_smoothing=0.0)
        total, count = total + losses.sum(), count + targets.size
    return float(total / count / math.log(2))


def train(learners: dict[str, Learner], batches: Iterator[Batch], rate: Callable[[int], float], steps: int) -> dict[str, float]:
    """Seconds of each for `steps` steps; a turn's batches are drawn before it, outside the time."""
    seconds, first_losses = dict.fromkeys(learners, 0.0), {}
    for begin in range(0, steps, TURN):
        turn = list(itertools.islice(batches, min(TURN, steps - begin)))
        for name, learner in learners.items():
            start = time.perf_counter()
            losses = [learner.step(batch, rate(begin + i)) for i, batch in enumerate(turn)]
            seconds[name] += time.perf_counter() - start
            first_losses.setdefault(name, losses[0])
        _check_same(first_losses)
    return seconds


def _check_same(losses: dict[str, float]) -> None:
    """From the same weights on the same batch: losses that differ come from models that do."""
    low, high = min(losses.values()), max(losses.values())
    if not high - low <= 1e-5 * high:
        raise AssertionError(f"the losses of the first step differ: {losses}")


def report(bits: dict[str, float], seconds: dict[str, float], characters: int) -> Iterator[str]:
    """The table, and the two ratios that are claimed."""
    yield "| library | held-out bits per character | seconds | characters per second |"
    yield "|---|---:|---:|---:|"
    for name in bits:
        yield f"| {name} | {bits[name]:.4f} | {seconds[name]:.1f} | {characters / seconds[name]:,.0f} |"
    yield ""
    yield (f"Bits of fastseq over those of PyTorch: {bits['fastseq'] / bits['torch']:.4f}; "
           f"seconds of PyTorch over those of fastseq: {seconds['torch'] / seconds['fastseq']:.2f}.")


def arguments() -> argparse.Namespace:
    """The command line; its defaults are those of `fastseq train`, without dropout."""
    usual = TrainingOptions()
    parser = argparse.ArgumentParser(description="Train one character language model in fastseq and in PyTorch.")
    parser.add_argument("--text", help="UTF-8 text, plain or gzip (default: the help texts of Python)")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--embedding-size", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=usual.batch_size)
    parser.add_argument("--sequence-length", type=int, default=usual.sequence_length)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    parser.add_argument("--threads", type=int, default=fs.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    return parser.parse_args()


def main() -> None:
    """Train both and print."""
    args, usual = arguments(), TrainingOptions()
    fs.set_num_threads(args.threads)
    text = default_text() if args.text is None else read_text(args.text)
    check_text(args.text or "pydoc_data.topics", text)
    model = LanguageModel(text, args.embedding_size, args.hidden_size, rng=args.seed)
    ids = model.vocabulary.encode(text)
    cut = len(ids) - len(ids) // 10
    streams = TextStreams(ids[:cut], args.batch_size, args.sequence_length)
    learners: dict[str, Learner] = {"torch": PyTorchLearner(model, usual.max_norm, args.threads), "fastseq": FastSeqLearner(model, usual.max_norm)}

    def rate(step: int) -> float:
        return args.learning_rate * warmup_cosine((step + 1) / args.steps, usual.warmup, usual.floor)
    seconds = train(learners, streams.endless(np.random.default_rng(args.seed)), rate, args.steps)
    bits = {name: held_out_bits(learner, ids[cut:]) for name, learner in learners.items()}
    characters = args.steps * streams.batch_size * streams.sequence_length
    if args.json:
        print(json.dumps({"bits_per_char": bits, "seconds": seconds, "characters": characters, "threads": args.threads}))
    else:
        print(*report(bits, seconds, characters), sep="\n")


if __name__ == "__main__":
    main()
