"""Trains one language model twice, in fastseq and in PyTorch, and prints how well and how fast each learnt.

    python -m benchmarks.lm_parity --text book.txt.gz --steps 2000 --cell gru
    python -m benchmarks.lm_parity --text book.txt.gz --words 10000 --epochs 3 --tie-weights --embedding-size 200 --hidden-size 200

Both start from the same weights and see the same batches under the same schedule: embedding, recurrent layer or transformer, linear; Adam
with a warm-up and a cosine, gradients clipped; a recurrent state carried from batch to batch. They take turns of some steps, so that what
disturbs the machine meets both; each turn's seconds are added up. The losses of the first step must agree before anything is timed (with
dropout, those of the model without it). Each library reads the held-out text, the last tenth of characters or twentieth of words, with
its own forward pass, whole: each token after all before it, or for a transformer after half of --sequence-length at least. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

import fastseq as fs
from examples.kneser_ney import corpus
from fastseq.models import LanguageModel, Vocabulary
from fastseq.text import check_text, default_text, read_text

Batch = tuple[np.ndarray, np.ndarray, bool]  # inputs and targets (T, B), and whether the state starts anew
State = Any
TURN = 50  # steps before the other library has its turn


class Learner(Protocol):
    """A library's half of the comparison."""

    def step(self, batch: Batch) -> float:
        """Train on a batch; the loss before it."""

    def logits(self, inputs: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """Scores (T, B, V) in evaluation, and the state after them."""


class FastSeqLearner:
    """The model and the optimiser of `fastseq train`."""

    def __init__(self, model: LanguageModel, args: argparse.Namespace) -> None:
        self.model, self.max_norm, self.state = model.train(), args.max_norm, None
        self.parameters = list(model.parameters())
        self.adam = fs.optim.Adam(self.parameters, lr=args.learning_rate)
        self.schedule = fs.optim.WarmupCosine(self.adam, args.steps, args.steps // 50, args.floor)

    def step(self, batch: Batch) -> float:
        inputs, targets, first = batch
        logits, state = self.model(fs.Tensor(inputs), None if first else self.state)
        loss = fs.functional.cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1))
        self.adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(self.parameters, self.max_norm)
        self.adam.step()
        self.schedule.step()
        self.state = None if state is None else tuple(s.detach() for s in state)
        return float(loss)

    def logits(self, inputs: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        found: tuple[np.ndarray, State] = self.model.eval()(inputs, state)
        self.model.train()
        return found


class PyTorchLearner:
    """The same of PyTorch's layers, with its fused Adam."""

    def __init__(self, model: LanguageModel, args: argparse.Namespace) -> None:
        import torch

        from benchmarks.peers.torch_language_model import TorchLanguageModel, detached

        self.torch, self.detached, self.max_norm, self.state = torch, detached, args.max_norm, None
        torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        self.model = TorchLanguageModel(model)
        self.parameters = list(self.model.parameters())
        self.adam = torch.optim.Adam(self.parameters, lr=args.learning_rate, fused=True)
        schedule = fs.optim.WarmupCosine(fs.optim.SGD(model.parameters(), lr=1.0), args.steps, args.steps // 50, args.floor)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, schedule.factor)

    def step(self, batch: Batch) -> float:
        inputs, targets, first = batch
        logits, state = self.model(self.torch.from_numpy(inputs), None if first else self.state)
        loss = self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.torch.from_numpy(targets).flatten())
        self.adam.zero_grad()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.adam.step()
        self.schedule.step()
        self.state = self.detached(state)
        return float(loss.item())

    def logits(self, inputs: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        self.model.eval()
        with self.torch.inference_mode():
            logits, state = self.model(self.torch.from_numpy(inputs), state)
        self.model.train()
        return logits.numpy(), state


def held_out_loss(learner: Learner, ids: np.ndarray, window: int | None) -> float:
    """Nats for each token but the first; `window` is what a transformer reads at once."""
    step, total, state = window // 2 if window else 1000, 0.0, None
    for n in range(0, len(ids) - 1, step):
        before = min(n, window - step) if window else 0
        targets = ids[n + 1 : n + 1 + step]
        logits, state = learner.logits(np.ascontiguousarray(ids[n - before : n + len(targets), None]), state)
        rows = logits[before:, 0].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        total += float(np.log(np.exp(rows).sum(axis=1)).sum() - rows[np.arange(len(rows)), targets].sum())
    return total / (len(ids) - 1)


def endless(streams: Any) -> Iterator[Batch]:
    """Pass after pass, with True at the first piece of each."""
    while True:
        for n, (inputs, targets) in enumerate(streams):
            yield inputs, targets, n == 0


def train(learners: dict[str, Learner], batches: Iterator[Batch], steps: int) -> dict[str, float]:
    """Seconds of each for `steps` steps; a turn's batches are drawn before it, outside the time."""
    seconds = dict.fromkeys(learners, 0.0)
    for begin in range(0, steps, TURN):
        turn = list(itertools.islice(batches, min(TURN, steps - begin)))
        if not begin:
            check_same(learners, turn[0][0])
        for name, learner in learners.items():
            start = time.perf_counter()
            for batch in turn:
                learner.step(batch)
            seconds[name] += time.perf_counter() - start
    return seconds


def check_same(learners: dict[str, Learner], inputs: np.ndarray) -> None:
    """From the same weights on the same batch: scores that differ come from models that do."""
    one, other = (learner.logits(inputs, None)[0] for learner in learners.values())
    if not np.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise AssertionError(f"the scores before the first step differ by up to {np.abs(one - other).max()}")


def report(losses: dict[str, float], seconds: dict[str, float], tokens: int, unit: str) -> Iterator[str]:
    """The table, and the two ratios that are claimed."""
    figure = "perplexity" if unit == "word" else "bits per character"
    shown = {name: math.exp(loss) if unit == "word" else loss / math.log(2) for name, loss in losses.items()}
    yield f"| library | held-out {figure} | seconds | {unit}s per second |"
    yield "|---|---:|---:|---:|"
    for name in losses:
        yield f"| {name} | {shown[name]:.4f} | {seconds[name]:.1f} | {tokens / seconds[name]:,.0f} |"
    yield ""
    yield (f"The {figure} of fastseq over PyTorch's: {shown['fastseq'] / shown['torch']:.4f}; "
           f"seconds of PyTorch over those of fastseq: {seconds['torch'] / seconds['fastseq']:.2f}.")


def arguments() -> argparse.Namespace:
    """The command line; its defaults are those of `fastseq train`, without dropout."""
    parser = argparse.ArgumentParser(description="Train one language model in fastseq and in PyTorch.")
    parser.add_argument("--text", help="UTF-8 text, plain or gzip (default: the help texts of Python)")
    parser.add_argument("--words", type=int, help="read words, of which so many are known (default: characters)")
    parser.add_argument("--cell", choices=("lstm", "gru", "rnn", "transformer"), default="lstm")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--epochs", type=int, help="passes over the text, in place of --steps")
    parser.add_argument("--embedding-size", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--num-layers", type=int, default=1)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--tie-weights", action="store_true")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    parser.add_argument("--floor", type=float, default=0.02, help="the last learning rate, as a share")
    parser.add_argument("--max-norm", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=fs.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    return parser.parse_args()


def read(args: argparse.Namespace) -> tuple[Vocabulary, np.ndarray, np.ndarray]:
    """The vocabulary, and the ids to train on and held out."""
    if args.words is not None:
        return corpus(args.text, args.words)
    text = default_text() if args.text is None else read_text(args.text)
    check_text(args.text or "pydoc_data.topics", text)
    vocabulary, cut = Vocabulary(text), len(text) - len(text) // 10
    return vocabulary, vocabulary.encode(text[:cut]), vocabulary.encode(text[cut:])


def main() -> None:
    """Train both and print."""
    args = arguments()
    fs.set_num_threads(args.threads)
    vocabulary, training, held_out = read(args)
    options = {name: getattr(args, name) for name in ("cell", "num_layers", "dropout", "tie_weights")}
    model = LanguageModel(vocabulary, args.embedding_size, args.hidden_size, **options, max_length=args.sequence_length, rng=args.seed)
    streams = fs.training.TextStreams(training, args.batch_size, args.sequence_length, shift=True, rng=args.seed)
    args.steps = args.epochs * len(streams) if args.epochs else args.steps
    learners: dict[str, Learner] = {"torch": PyTorchLearner(model, args), "fastseq": FastSeqLearner(model, args)}
    seconds = train(learners, endless(streams), args.steps)
    window = args.sequence_length if args.cell == "transformer" else None
    losses = {name: held_out_loss(learner, held_out, window) for name, learner in learners.items()}
    tokens = args.steps * streams.batch_size * streams.sequence_length
    if args.json:
        print(json.dumps({"held_out_nats": losses, "seconds": seconds, "tokens": tokens, "threads": args.threads}))
    else:
        print(*report(losses, seconds, tokens, "character" if args.words is None else "word"), sep="\n")


if __name__ == "__main__":
    main()
