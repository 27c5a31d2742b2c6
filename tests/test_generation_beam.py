"""Beam search, against greedy generation and against every text that there is."""

import contextlib
import itertools

import numpy as np
import pytest

from fastseq import models
from fastseq.generation import beam_search, generate


class Table:
    """A model whose next token depends on the last one only, by a table of probabilities."""

    def __init__(self, probabilities, vocabulary):
        self.log_probs, self.vocabulary = np.log(probabilities), vocabulary

    def evaluating(self):
        return contextlib.nullcontext()

    def decoding(self, prompt):
        return TableDecoding(self.log_probs, np.asarray(prompt))


class TableDecoding:
    def __init__(self, table, tokens):
        self.table, self.logits = table, table[tokens]

    def step(self, tokens):
        self.logits = self.table[tokens]
        return self.logits

    def select(self, rows):
        self.logits = self.logits[rows]


def table(seed, tokens="abc"):
    rng = np.random.default_rng(seed)
    V = len(tokens) + 1
    return Table(rng.dirichlet(np.full(V, 0.5), V), models.Vocabulary(tokens, stop="$"))


def all_texts(model, first, length):
    """{ids: log-probability} of everything that ends within `length` tokens or is cut off there."""
    found = {}
    for n in range(length + 1):
        for ids in itertools.product(range(1, len(model.vocabulary)), repeat=n):
            path = [first, *ids, 0] if n < length else [first, *ids]
            found[ids] = sum(model.log_probs[a, b] for a, b in itertools.pairwise(path))
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_enough_beams_find_the_best_of_all_texts(seed, length_penalty):
    model, most = table(seed), 4
    rows = beam_search(model, [1, 2], beams=400, max_length=most, length_penalty=length_penalty, n_best=5)
    for first, found in zip([1, 2], rows, strict=True):
        scores = {ids: log_prob / min(len(ids) + 1, most) ** length_penalty for ids, log_prob in all_texts(model, first, most).items()}
        best = sorted(scores.values(), reverse=True)[:5]
        assert np.allclose([hypothesis.score for hypothesis in found], best)
        assert all(np.isclose(scores[tuple(hypothesis.ids)], hypothesis.score) for hypothesis in found)
        assert all(np.isclose(all_texts(model, first, most)[tuple(h.ids)], h.log_prob) for h in found)


@pytest.mark.parametrize("seed", range(10))
def test_one_beam_is_greedy(seed):
    model = table(seed, "abcdef")
    found = beam_search(model, [1, 2, 3], beams=1, max_length=12)
    greedy = generate(model, [1, 2, 3], max_length=12, temperature=0)
    for (hypothesis,), ids in zip(found, greedy, strict=True):
        assert np.array_equal(hypothesis.ids, ids)


@pytest.mark.parametrize("beams", [2, 3, 8])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_more_beams_are_never_worse_than_greedy(beams, length_penalty):
    for seed in range(40):
        model = table(seed, "abcdef")
        prompts = [1, 2, 3, 4]
        greedy, found = (beam_search(model, prompts, beams=n, max_length=12, length_penalty=length_penalty) for n in (1, beams))
        for (one,), (best,) in zip(greedy, found, strict=True):
            assert best.score >= one.score - 1e-12


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer"])
def test_language_models_are_searched(cell):
    model = models.LanguageModel(models.Vocabulary("abc", stop="$"), 8, 16, cell=cell, heads=2, dropout=0.5, rng=1)
    for parameter in model.parameters():
        parameter.data *= 3  # so that texts differ in their probabilities
    prompts = np.array([[1, 2, 3], [3, 1, 1]])
    together = beam_search(model, prompts, beams=4, max_length=6, n_best=3)
    assert model.training
    model.eval()
    for row, found in enumerate(together):
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert len({tuple(h.ids) for h in found}) == 3
        (alone,) = beam_search(model, prompts[:, [row]], beams=4, max_length=6, n_best=3)
        assert all(np.array_equal(a.ids, b.ids) for a, b in zip(alone, found, strict=True))
        for hypothesis in found:
            written = [*hypothesis.ids] + [0] * (len(hypothesis.ids) < 6)
            logits, _ = model(np.array([*prompts[:, row], *written[:-1]])[:, None])
            logits = logits[1:, 0].astype(float)
            log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            assert np.isclose(log_probs[range(len(written)), written].sum(), hypothesis.log_prob, atol=1e-4)
            assert np.isclose(hypothesis.score, hypothesis.log_prob / len(written))
    greedy = generate(model, prompts, max_length=6, temperature=0)
    for (one,), ids in zip(beam_search(model, prompts, beams=1, max_length=6), greedy, strict=True):
        assert np.array_equal(one.ids, ids)


def test_impossible_tokens_are_not_followed():
    with np.errstate(divide="ignore"):
        model = Table(np.array([[1.0, 0, 0], [0, 0, 1.0], [1.0, 0, 0]]), models.Vocabulary("ab", stop="$"))
    ((only,),) = beam_search(model, [1], beams=3, max_length=5, n_best=3)
    assert only.ids.tolist() == [2]
    assert only.log_prob == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams: expected at least 1"),
        ({"max_length": 0}, "max_length: expected at least 1"),
        ({"n_best": 5}, "n_best: expected at most beams = 4, got 5"),
        ({"length_penalty": -1}, "length_penalty: expected a number of at least 0"),
        ({"stop": "x"}, "stop: expected tokens of the vocabulary"),
    ],
)
def test_beam_search_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        beam_search(table(0), [1], **({"max_length": 3} | options))
    with pytest.raises(ValueError, match="logits: expected numbers, got NaN"):
        beam_search(Table(np.full((2, 2), np.nan), models.Vocabulary("a", stop="$")), [1], max_length=3)
