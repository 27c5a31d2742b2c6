"""Drawing tokens one after another: greedy, by temperature, among the likeliest k, or among those that make up a share p."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fastseq.backends import to_cpu
from fastseq.generation.decoding import GenerativeModel, check_room, checked_count, checked_number, stop_ids
from fastseq.runtime import generator, next_seed


def sample(
    logits: np.ndarray,
    rng: int | np.random.Generator | Sequence[np.random.Generator] | None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Any:
    """Ids drawn from softmax(logits / temperature), cut off after the likeliest.

    Parameters
    ----------
    logits : ndarray (B, V) or (V,)
        A CuPy array is copied from the GPU.
    rng : None, int or numpy.random.Generator, or a Generator for each row
    temperature : float
        At least 0; 0 takes the likeliest id.
    top_k : int, optional
        Draw among so many of the likeliest; at a tie the smaller id is the likelier.
    top_p : float in (0, 1], optional
        Draw among the fewest of the likeliest that have this share of the probability together (Holtzman et al. 2020).

    Returns
    -------
    ndarray (B,) of int64, or int for (V,)

    Raises
    ------
    ValueError
        An option out of range, or NaN among the logits.

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.generation import sample
    >>> sample(np.array([0.0, 3.0, 1.0]), np.random.default_rng(0), temperature=0)
    1
    >>> sample(np.array([[0.0, 3.0, 2.9], [5.0, 0.0, 0.0]]), np.random.default_rng(1), top_k=2).tolist()
    [1, 0]
    """
    _check_options(temperature, top_k, top_p)
    logits = np.asarray(to_cpu(logits))
    if logits.ndim not in (1, 2) or not logits.shape[-1]:
        raise ValueError(f"logits: expected shape (B, V) or (V,), got {logits.shape}")
    if np.isnan(logits).any():
        raise ValueError("logits: expected numbers, got NaN")
    rows = logits.reshape(-1, logits.shape[-1])
    if temperature == 0:
        ids = rows.argmax(axis=1)
    else:
        ids = _drawn(rows, _uniform(rng, len(rows)), temperature, top_k, top_p)
    return ids if logits.ndim == 2 else int(ids[0])


def _uniform(rng: Any, n: int) -> np.ndarray:
    """A number in [0, 1) for each row."""
    if not isinstance(rng, Sequence):
        return generator(rng).random(n)
    if len(rng) != n:
        raise ValueError(f"rng: expected one for each of {n} rows, got {len(rng)}")
    return np.array([each.random() for each in rng])


def _drawn(rows: np.ndarray, uniform: np.ndarray, temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    order = np.argsort(-rows, axis=1, kind="stable")[:, :top_k]
    scores = np.take_along_axis(rows, order, axis=1).astype(np.float64)
    with np.errstate(invalid="ignore"):  # an infinity less itself, in a row without any other
        weights = np.nan_to_num(np.exp((scores - scores[:, :1]) / temperature), nan=1.0)
    sums = np.cumsum(weights, axis=1)
    if top_p is not None:
        weights[sums - weights >= top_p * sums[:, -1:]] = 0
        sums = np.cumsum(weights, axis=1)
    # The first place whose sum is above the drawn one; rounding must not lead past the last that counts.
    places = (sums <= (uniform * sums[:, -1])[:, None]).sum(axis=1)
    places = np.minimum(places, (weights > 0).sum(axis=1) - 1)
    return np.take_along_axis(order, places[:, None], axis=1)[:, 0]


def generate(
    model: GenerativeModel,
    *source: Any,
    max_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | str | Iterable[int | str] | None = None,
    on_token: Callable[[np.ndarray], Any] | None = None,
    rng: int | np.random.Generator | None = None,
) -> list[np.ndarray]:
    """What the model writes, row by row.

    Parameters
    ----------
    model : a model with `decoding`, such as LanguageModel or Seq2Seq
    *source
        What its `decoding` takes: a language model's prompt, a translator's source and lengths.
    max_length : int
        Most tokens to write in a row. A transformer with learned positions can go on for so many only.
    temperature, top_k, top_p
        As in `sample`; temperature 0 is greedy.
    stop : id or token, or several; optional
        A row ends where one of them comes; it is not among the row's ids. The default is the vocabulary's stop token, if it
        has one; () lets nothing end a row.
    on_token : callable, optional
        Called after each step with the ids (B,) that were written, -1 in rows that have ended.
    rng : None, int or numpy.random.Generator
        Each row draws from a stream of its own, so what is written in it does not depend on the rows around it.

    Returns
    -------
    list of B ndarray of int64
        What was written in each row, without prompt and stop token.

    Raises
    ------
    ValueError, TypeError
        An option out of range, or what the model says of its source.

    Examples
    --------
    >>> import fastseq as fs
    >>> model = fs.models.LanguageModel("ab", 4, 8, rng=0)
    >>> (ids,) = fs.generation.generate(model, "abab", max_length=10, rng=0)
    >>> len(model.vocabulary.decode(ids))
    10
    """
    _check_options(temperature, top_k, top_p)
    most, stops, seed = checked_count("max_length", max_length, 0), stop_ids(model, stop), next_seed(generator(rng))
    with model.evaluating():
        decoding = model.decoding(*source)
        check_room(decoding, most)
        B = len(decoding.logits)
        rngs = [np.random.default_rng([seed, row]) for row in range(B)]
        steps: list[np.ndarray] = []
        ended = np.zeros(B, bool)
        while len(steps) < most and B:
            tokens = sample(decoding.logits, rngs, temperature=temperature, top_k=top_k, top_p=top_p)
            ended |= np.isin(tokens, stops)
            if ended.all():
                break
            steps.append(np.where(ended, -1, tokens))
            if on_token is not None:
                on_token(steps[-1])
            if len(steps) < most:
                decoding.step(tokens)
    written = np.array(steps, np.int64).reshape(len(steps), B)
    return [row[row >= 0] for row in written.T]


def _check_options(temperature: float, top_k: int | None, top_p: float | None) -> None:
    checked_number("temperature", temperature)
    if top_k is not None:
        checked_count("top_k", top_k, 1)
    if top_p is not None and not 0 < checked_number("top_p", top_p) <= 1:
        raise ValueError(f"top_p: expected a number above 0 and at most 1, got {top_p}")
