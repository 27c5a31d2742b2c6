"""The score of examples/intents_slots.py, beside the rules of CoNLL's conlleval, written out."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).resolve().parent.parent / "examples" / "intents_slots.py"
if not PATH.exists():
    pytest.skip("the examples are not beside the tests", allow_module_level=True)
SPECIFICATION = importlib.util.spec_from_file_location("intents_slots", PATH)
example = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(example)


def conlleval(sentences):
    """Chunks of true and found tags counted as conlleval.pl does, tag by tag; F1 in [0, 1]."""
    right = said = wanted = 0
    for true, found in sentences:
        inside = False
        before = "O", "O"
        for pair in [*zip(true, found, strict=True), ("O", "O")]:
            ends, begins = ([changes(old, new, k) for old, new in zip(before, pair, strict=True)] for k in (0, 1))
            if inside and ends[0] and ends[1]:
                right, inside = right + 1, False
            elif inside and (ends[0] != ends[1] or pair[0][2:] != pair[1][2:]):
                inside = False
            if begins[0] and begins[1] and pair[0][2:] == pair[1][2:]:
                inside = True
            wanted, said = wanted + begins[0], said + begins[1]
            before = pair
    return 2 * right / (said + wanted) if said + wanted else 0.0


def changes(old, new, begins):
    """Whether a chunk ends between two tags, or begins there."""
    (before, _, kind), (now, _, kind_now) = old.partition("-"), new.partition("-")
    here = now if begins else before
    return here != "O" and (now == "B" or before == "O" or now == "O" or kind != kind_now)


def test_spans():
    assert example.spans(["O", "B-a", "I-a", "O", "B-b", "B-b"]) == {(1, 3, "a"), (4, 5, "b"), (5, 6, "b")}
    assert example.spans(["I-a", "I-b", "I-b", "B-b"]) == {(0, 1, "a"), (1, 3, "b"), (3, 4, "b")}
    assert example.spans(["O", "O"]) == example.spans([]) == set()


def test_f1_by_hand():
    true, found = ["B-a", "I-a", "O", "B-b"], ["B-a", "O", "O", "B-b"]
    assert example.f1([true], [found]) == pytest.approx(2 * 1 / (2 + 2))
    assert example.f1([true], [true]) == 1.0
    assert example.f1([["O"]], [["O"]]) == 0.0


def test_f1_is_that_of_conlleval():
    rng = np.random.default_rng(0)
    tags = np.array(["O", "B-a", "I-a", "B-b", "I-b"])
    for _ in range(300):
        true = [tags[rng.integers(5, size=n)].tolist() for n in rng.integers(1, 9, 4)]
        found = [[t if rng.random() < 0.7 else str(rng.choice(tags)) for t in row] for row in true]
        assert example.f1(true, found) == pytest.approx(conlleval(zip(true, found, strict=True)))


def test_words_and_tags_of_a_command():
    words, tags = example.tagged([("Play ", None), ("L'Amour Toujours", "track"), (" by", None), ("  ", "artist")])
    assert words == ["play", "l", "'", "amour", "toujours", "by"]
    assert tags == ["O", "B-track", "I-track", "I-track", "I-track", "O"]
