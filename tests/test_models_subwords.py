"""Subwords through the tokenizers library, with the methods of a vocabulary."""

import copy
import pickle

import numpy as np
import pytest

import fastseq as fs
from fastseq.models import LanguageModel, SubwordVocabulary, as_vocabulary

tokenizers = pytest.importorskip("tokenizers")
TEXTS = ["low lower lowest, low", "new newer newest! caf\u00e9\n"]


@pytest.fixture(scope="module")
def vocabulary():
    return SubwordVocabulary.from_texts(TEXTS, size=280, padding="<pad>", start="<s>", stop="</s>")


def test_every_text_goes_both_ways(vocabulary):
    assert vocabulary.tokens[:3] == ["<pad>", "<s>", "</s>"]
    assert (vocabulary.padding_id, vocabulary.unknown_id, vocabulary.start_id, vocabulary.stop_id) == (0, None, 1, 2)
    for text in (*TEXTS, "", "  two  spaces\n", "\u4e2d\u6587 \U0001f600"):
        ids = vocabulary.encode(text)
        assert ids.dtype == np.int64
        assert vocabulary.decode(ids) == text
    assert len(vocabulary.encode("lower")) < 5
    assert len(vocabulary) == len(vocabulary.tokens)
    assert len(vocabulary) <= 280


def test_tokens_are_found_by_name(vocabulary):
    assert vocabulary.encode(["</s>", "low"]).tolist() == [2, vocabulary.id("low")]
    assert "low" in vocabulary
    assert "nothing of the kind" not in vocabulary
    assert 3 not in vocabulary
    assert vocabulary.decode([1, vocabulary.id("low"), 2]) == "<s>low</s>"
    assert repr(vocabulary) == f"SubwordVocabulary({len(vocabulary)} tokens, padding='<pad>', start='<s>', stop='</s>')"


def test_a_tokenizer_of_another_kind():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vocabulary = SubwordVocabulary(tokenizer, unknown="?")
    assert vocabulary.encode("b c a").tolist() == [1, 2, 0]
    assert vocabulary.encode(["b", "c"]).tolist() == [1, 2]


def test_copies_are_equal(vocabulary, tmp_path):
    model = LanguageModel(vocabulary, 4, 8, rng=0)
    model.save(tmp_path / "model")
    for twin in (
        as_vocabulary(vocabulary.configuration()),
        pickle.loads(pickle.dumps(vocabulary)),
        copy.deepcopy(vocabulary),
        fs.load(tmp_path / "model").vocabulary,
    ):
        assert twin == vocabulary
        assert hash(twin) == hash(vocabulary)
        assert twin.encode(TEXTS[1]).tolist() == vocabulary.encode(TEXTS[1]).tolist()
    assert as_vocabulary(vocabulary) is vocabulary
    assert vocabulary != SubwordVocabulary(vocabulary.configuration()["tokenizer"])


def test_a_model_writes_subwords(vocabulary):
    model = LanguageModel(vocabulary, 4, 8, rng=0)
    (ids,) = fs.generation.generate(model, "low", max_length=20, rng=0)
    assert isinstance(vocabulary.decode(ids), str)


def test_subwords_refuse(vocabulary):
    with pytest.raises(ValueError, match=r"text: the model's vocabulary has no '<unk>'"):
        vocabulary.encode(["<unk>"])
    with pytest.raises(IndexError, match=f"ids: expected ids below {len(vocabulary)}, got {len(vocabulary)}"):
        vocabulary.decode([len(vocabulary)])
    with pytest.raises(ValueError, match="stop: expected a token of the tokenizer, got '<none>'"):
        SubwordVocabulary(vocabulary.configuration()["tokenizer"], stop="<none>")
    with pytest.raises(ValueError, match="tokenizer: expected a tokenizer or its JSON"):
        SubwordVocabulary("no tokenizer")
    with pytest.raises(TypeError, match="tokenizer: expected a tokenizer or its JSON, got int"):
        SubwordVocabulary(3)
