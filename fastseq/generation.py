"""Text from a language model, one character at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastseq.models import LanguageModel
from fastseq.runtime import generator


def sample(logits: np.ndarray, rng: np.random.Generator, *, temperature: float = 1.0, top_k: int | None = None) -> int:
    """An id drawn from softmax(logits / temperature), among the `top_k` most likely.

    Parameters
    ----------
    logits : ndarray (V,)
    rng : numpy.random.Generator
    temperature : float
        At least 0; 0 takes the most likely id.
    top_k : int, optional
        At least 1; at a tie the smaller id is the likelier.

    Returns
    -------
    int

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.generation import sample
    >>> sample(np.array([0.0, 3.0, 1.0]), np.random.default_rng(0), temperature=0)
    1
    """
    if temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[:top_k]
    scores = logits[order].astype(np.float64)
    weights = np.exp((scores - scores[0]) / temperature)
    return int(order[np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), side="right")])


def generate(
    model: LanguageModel,
    prompt: str = "",
    *,
    length: int = 500,
    temperature: float = 1.0,
    top_k: int | None = None,
    rng: int | np.random.Generator | None = None,
) -> Iterator[str]:
    """The characters that the model goes on with, as they come; the prompt itself is not among them.

    Parameters
    ----------
    model : LanguageModel
    prompt : str
        Read first; without one the model starts as after a line's end.
    length : int
        How many characters.
    temperature : float
        Below 1 the likely ones come more often, at 0 always the likeliest.
    top_k : int, optional
        Draw among so many of the likeliest only.
    rng : None, int or numpy.random.Generator

    Yields
    ------
    str
        One character.

    Raises
    ------
    ValueError
        An option out of range, or characters in the prompt that the model does not know.

    Examples
    --------
    >>> import fastseq as fs
    >>> from fastseq.generation import generate
    >>> model = fs.models.LanguageModel("ab", 4, 8, rng=0)
    >>> text = "".join(generate(model, "abab", length=10, rng=0))
    >>> len(text), set(text) <= set("ab")
    (10, True)
    """
    if not (temperature >= 0 and np.isfinite(temperature)):
        raise ValueError(f"temperature: expected a number of at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    if length < 0:
        raise ValueError(f"length: expected at least 0, got {length}")
    vocabulary = model.vocabulary
    start = prompt or ("\n" if "\n" in vocabulary else vocabulary.characters[0])
    try:
        ids = vocabulary.encode(start)
    except ValueError as error:
        raise ValueError(f"prompt: {str(error).removeprefix('text: ')}") from None
    return _continuation(model, ids, length, temperature, top_k, generator(rng))


def _continuation(
    model: LanguageModel, ids: np.ndarray, length: int, temperature: float, top_k: int | None, rng: np.random.Generator
) -> Iterator[str]:
    stream = model.stream()
    for token in ids:
        logits = stream.step(int(token))
    for _ in range(length):
        token = sample(logits, rng, temperature=temperature, top_k=top_k)
        yield model.vocabulary.characters[token]
        logits = stream.step(token)
