"""The n-grams of the examples: probabilities that sum to one, and a text small enough to count by hand."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parent.parent / "examples" / "kneser_ney.py"
if not PATH.exists():
    pytest.skip("the examples are not beside the tests", allow_module_level=True)
spec = importlib.util.spec_from_file_location("kneser_ney", PATH)
kneser_ney = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kneser_ney)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_probabilities_sum_to_one(order):
    rng = np.random.default_rng(0)
    ids, V = rng.zipf(1.5, 3000) % 30, 32  # words 30 and 31 are never seen
    model = kneser_ney.KneserNey(ids, V, order)
    contexts = [tuple(ids[n : n + 5]) for n in range(0, 100, 7)]  # seen
    contexts += [tuple(row) for row in rng.integers(0, V, (20, 5))]  # most of them not
    contexts += [(31,) * 5, (), (3,), (31, 3)]
    for context in contexts:
        probabilities = [model.probability(context, word, order) for word in range(V)]
        assert math.isclose(sum(probabilities), 1, rel_tol=1e-9)
        assert min(probabilities) > 0


def test_a_bigram_counted_by_hand():
    # a b a b a c: bigrams ab 2, ba 2, ac 1, so D_2 = 1 / (1 + 2 * 2) = 0.2. Words are after so many different words: a 1, b 1, c 1,
    # so D_1 = 1 / (1 + 2 * 0) = 1, and p(w) = 0 / 3 + 1 * 3 / 3 / V.
    a, b, c, V = 0, 1, 2, 4
    model = kneser_ney.KneserNey([a, b, a, b, a, c], V, 2)
    lower = 1 / V
    assert math.isclose(model.probability((a,), b, 2), (2 - 0.2) / 3 + 0.2 * 2 / 3 * lower)
    assert math.isclose(model.probability((a,), c, 2), (1 - 0.2) / 3 + 0.2 * 2 / 3 * lower)
    assert math.isclose(model.probability((b,), a, 2), (2 - 0.2) / 2 + 0.2 * 1 / 2 * lower)
    assert math.isclose(model.probability((c,), b, 2), lower)  # nothing came after c
    # the counts themselves at order 1: a 3, b 2, c 1, so D = 1 / (1 + 2) and p(a) = (3 - D) / 6 + D * 3 / 6 / V
    one = kneser_ney.KneserNey([a, b, a, b, a, c], V, 1)
    assert math.isclose(one.probability((), a, 1), (3 - 1 / 3) / 6 + 1 / 3 * 3 / 6 / V)


def test_perplexity_is_that_of_the_words_after_the_first():
    ids = [0, 1, 0, 1, 0, 2, 0, 1]
    model = kneser_ney.KneserNey(ids, 4, 3)
    logs = [math.log(model.probability(tuple(ids[:n]), ids[n], 3)) for n in range(1, len(ids))]
    assert math.isclose(model.perplexity(ids, 3), math.exp(-np.mean(logs)))


def test_words_and_their_vocabulary():
    text = "It's -- said _Jane_ -- a \u00c9t\u00e9, isn't it?"
    assert kneser_ney.words(text) == ["it's", "--", "said", "jane", "--", "a", "\u00e9t\u00e9", ",", "isn't", "it", "?"]
