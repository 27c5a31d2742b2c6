"""Vocabularies: characters and words, special tokens, and what a model's argument may be."""

import numpy as np
import pytest

from fastseq import models
from fastseq.models import Vocabulary, as_vocabulary

TEXT = "zebra, \u00e9t\u00e9 \U0001f600\n"


def test_characters_are_sorted_and_go_both_ways():
    vocabulary = Vocabulary(TEXT)
    assert vocabulary.tokens == sorted(set(TEXT))
    text = "\u00e9te \U0001f600bra\n"
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int64
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.encode("").dtype == np.int64
    assert "z" in vocabulary
    assert "ze" not in vocabulary
    assert vocabulary.unknown_id is None
    assert repr(vocabulary) == f"Vocabulary({len(set(TEXT))} characters)"


def test_words_keep_their_order_behind_the_special_tokens():
    vocabulary = Vocabulary(["the", "cat"], separator=" ", stop="</s>", start="<s>", unknown="?", padding="_")
    assert vocabulary.tokens == ["_", "?", "<s>", "</s>", "the", "cat"]
    assert (vocabulary.padding_id, vocabulary.unknown_id, vocabulary.start_id, vocabulary.stop_id) == (0, 1, 2, 3)
    assert vocabulary.encode("the  old cat ").tolist() == [4, 1, 5]
    assert vocabulary.encode(["<s>", "cat", "dog"]).tolist() == [2, 5, 1]
    assert vocabulary.decode([2, 4, 5, 3]) == "<s> the cat </s>"
    assert vocabulary.id("dog") == 1
    assert repr(vocabulary) == "Vocabulary(6 tokens, padding='_', unknown='?', start='<s>', stop='</s>')"


def test_a_special_token_may_be_one_of_the_characters():
    vocabulary = Vocabulary("ab\n", stop="\n")
    assert vocabulary.tokens == ["\n", "a", "b"]
    assert vocabulary.stop_id == 0
    assert vocabulary.encode("a\n").tolist() == [1, 0]


def test_the_most_frequent_words_come_first():
    texts = ["b a b c", ["a", "d", "b"], "<unk> c"]
    assert Vocabulary.from_texts(texts).tokens == ["<unk>", "b", "a", "c", "d"]
    assert Vocabulary.from_texts(texts, size=2, padding="_").tokens == ["_", "<unk>", "b", "a"]
    assert Vocabulary.from_texts(texts, min_count=2, unknown=None).tokens == ["b", "a", "c"]
    assert Vocabulary.from_texts(["abca"], separator="").encode("ab").tolist() == [1, 2]


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary(TEXT), Vocabulary("ba", unknown="?", stop="b"), Vocabulary(["b", "a"]), Vocabulary(["x y", "z"], separator="|", start="<s>")],
    ids=repr,
)
def test_a_vocabulary_comes_back_from_its_configuration(vocabulary):
    twin = as_vocabulary(vocabulary.configuration())
    assert twin == vocabulary
    assert hash(twin) == hash(vocabulary)
    assert repr(twin) == repr(vocabulary)
    assert twin != Vocabulary("another")
    assert vocabulary != vocabulary.tokens


def test_what_a_model_takes_for_a_vocabulary():
    vocabulary = Vocabulary("ab")
    assert as_vocabulary(vocabulary) is vocabulary
    assert as_vocabulary("ba") == vocabulary
    numbers = as_vocabulary(12)
    assert len(numbers) == 12
    assert numbers.decode([3, 11]) == "3 11"
    for wrong in (None, ["a"], True, 2.0):
        with pytest.raises(TypeError, match="vocabulary: expected a Vocabulary"):
            as_vocabulary(wrong)


def test_vocabularies_refuse():
    vocabulary = Vocabulary("abc")
    with pytest.raises(ValueError, match=r"text: the model's vocabulary has no '\\n' '!' 'd'"):
        vocabulary.encode("ab!d\n")
    with pytest.raises(ValueError, match="has no 'ab'"):
        vocabulary.id("ab")
    for outside in (3, -1):
        with pytest.raises(IndexError, match=f"ids: expected ids below 3, got {outside}"):
            vocabulary.decode([0, outside])
    for nothing in ("", []):
        with pytest.raises(ValueError, match="tokens: expected at least one, got none"):
            Vocabulary(nothing)
    with pytest.raises(ValueError, match="tokens: expected each once, got more than one 'a'"):
        Vocabulary(["a", "b", "a"])
    with pytest.raises(ValueError, match="tokens: expected each once, got more than one '_'"):
        Vocabulary("ab", padding="_", unknown="_")
    with pytest.raises(TypeError, match="tokens: expected strings, got int"):
        Vocabulary([1, 2])
    assert models.Vocabulary is Vocabulary
