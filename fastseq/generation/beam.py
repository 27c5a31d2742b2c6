"""Beam search: the likeliest continuations, several at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastseq.backends import to_cpu
from fastseq.generation.decoding import GenerativeModel, check_room, checked_count, checked_number, stop_ids


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One continuation that beam search found.

    Attributes
    ----------
    ids : ndarray (n,) of int64
        Without the stop token.
    log_prob : float
        Log-probability of ids, and of the stop token where it ended so.
    score : float
        log_prob / (number of tokens, the stop token counted) ** length_penalty.
    """

    ids: np.ndarray
    log_prob: float
    score: float


def beam_search(
    model: GenerativeModel,
    *source: Any,
    beams: int = 4,
    max_length: int,
    length_penalty: float = 1.0,
    n_best: int = 1,
    stop: int | str | Iterable[int | str] | None = None,
) -> list[list[Hypothesis]]:
    """The best continuations that a search with `beams` hypotheses at a time finds, for each row.

    A hypothesis that ends keeps its place, so the search of a row is over when `beams` have ended, or earlier where none that is
    left can become better. The greedy continuation is never dropped: what is found scores at least as much. With one beam it
    is the greedy one.

    Parameters
    ----------
    model, *source, stop
        As in `generate`.
    beams : int
        How many hypotheses a row follows.
    max_length : int
        Most tokens of a hypothesis, the stop token counted.
    length_penalty : float
        The power of the length in the score: 0 compares plain log-probabilities, which favours short ones.
    n_best : int
        How many to return for each row, at most `beams`; there may be fewer.

    Returns
    -------
    list of B lists of Hypothesis
        The best first.

    Raises
    ------
    ValueError, TypeError
        An option out of range, or what the model says of its source.

    Examples
    --------
    >>> import fastseq as fs
    >>> model = fs.models.LanguageModel("ab", 4, 8, rng=0)
    >>> ((best, second),) = fs.generation.beam_search(model, "abab", beams=3, max_length=5, n_best=2)
    >>> best.score >= second.score, len(best.ids)
    (True, 5)
    """
    width, most = checked_count("beams", beams, 1), checked_count("max_length", max_length, 1)
    wanted, stops = checked_count("n_best", n_best, 1), stop_ids(model, stop)
    if wanted > width:
        raise ValueError(f"n_best: expected at most beams = {width}, got {wanted}")
    checked_number("length_penalty", length_penalty)
    with model.evaluating():
        decoding = model.decoding(*source)
        check_room(decoding, most)
        rows = [_Row(width, most, length_penalty, wanted, stops) for _ in range(len(decoding.logits))]
        first = np.arange(len(rows))  # where each row's live hypotheses begin in the batch
        while True:
            log_probs = _log_softmax(to_cpu(decoding.logits))
            parents, tokens, sizes = [], [], []
            for row, begin in zip(rows, first, strict=True):
                kept = row.advance(log_probs[begin : begin + len(row.live)])
                parents += [begin + parent for parent, _ in kept]
                tokens += [token for _, token in kept]
                sizes.append(len(kept))
            if not tokens:
                return [row.best() for row in rows]
            first = np.cumsum([0, *sizes[:-1]])
            decoding.select(np.array(parents, np.int64))
            decoding.step(np.array(tokens, np.int64))


class _Row:
    """The search of one row: `live` holds (ids, log-probability), the greedy one first as long as it lives."""

    def __init__(self, beams: int, most: int, penalty: float, wanted: int, stops: np.ndarray) -> None:
        self.beams, self.most, self.penalty, self.wanted = beams, most, penalty, wanted
        self.stops = set(stops.tolist())
        self.live: list[tuple[list[int], float]] = [([], 0.0)]
        self.greedy = True  # whether the first of `live` is the greedy continuation
        self.ended: list[Hypothesis] = []

    def advance(self, log_probs: np.ndarray) -> list[tuple[int, int]]:
        """Take each live hypothesis one token on, with (live, V) log-probabilities: (parent, token) of those that live on."""
        if not self.live:
            return []
        chosen = self._candidates(log_probs)
        before, greedy = self.live, self.greedy
        self.live, kept = [], []
        for n, (parent, token) in enumerate(chosen):
            ids, log_prob = before[parent]
            log_prob += float(log_probs[parent, token])
            ends = token in self.stops
            if ends or len(ids) + 1 == self.most:
                self._end(ids if ends else [*ids, token], log_prob, len(ids) + 1)
                self.greedy &= not (greedy and n == 0)
            else:
                self.live.append(([*ids, token], log_prob))
                kept.append((parent, token))
        if self._settled():
            self.live = []
        return kept if self.live else []

    def _candidates(self, log_probs: np.ndarray) -> list[tuple[int, int]]:
        """The likeliest (parent, token), as many as there are places, the greedy one first."""
        V = log_probs.shape[1]
        totals = (log_probs + np.array([log_prob for _, log_prob in self.live])[:, None]).reshape(-1)
        order = np.argsort(-totals, kind="stable")[: self.beams - len(self.ended)]
        order = order[totals[order] > -np.inf]
        if self.greedy:
            likeliest = int(log_probs[0].argmax())
            order = np.array([likeliest, *order[order != likeliest]])[: max(len(order), 1)]
        return [divmod(int(n), V) for n in order]

    def _end(self, ids: list[int], log_prob: float, length: int) -> None:
        self.ended.append(Hypothesis(np.array(ids, np.int64), log_prob, log_prob / length**self.penalty))

    def _settled(self) -> bool:
        """Whether no live hypothesis can become one of the wanted: its score rises with its length alone."""
        if len(self.ended) < self.wanted or not self.live:
            return False
        reachable = max(log_prob for _, log_prob in self.live) / self.most**self.penalty
        return self.best()[-1].score >= reachable

    def best(self) -> list[Hypothesis]:
        """The wanted ones, the best first."""
        return sorted(self.ended, key=lambda hypothesis: -hypothesis.score)[: self.wanted]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    if np.isnan(logits).any():
        raise ValueError("logits: expected numbers, got NaN")
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
