"""Vocabulary and the character language model."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import models


def test_vocabulary_is_sorted_and_goes_both_ways():
    vocabulary = models.Vocabulary("zebra, \u00e9t\u00e9 \U0001f600\n")
    assert vocabulary.characters == "".join(sorted(set("zebra, \u00e9t\u00e9 \U0001f600\n")))
    text = "\u00e9te \U0001f600bra\n"
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int64
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode("").shape == (0,)
    assert len(vocabulary) == len(vocabulary.characters)
    assert "z" in vocabulary
    assert "ze" not in vocabulary
    assert vocabulary == models.Vocabulary(vocabulary.characters)
    assert vocabulary != models.Vocabulary("ab")
    assert len({vocabulary, models.Vocabulary(vocabulary.characters)}) == 1


def test_vocabulary_refuses():
    vocabulary = models.Vocabulary("abc")
    with pytest.raises(ValueError, match=r"text: the model's vocabulary has no '\\n' '!' 'd'"):
        vocabulary.encode("ab!d\n")
    with pytest.raises(IndexError, match="ids: expected ids below 3, got 3"):
        vocabulary.decode([0, 3])
    with pytest.raises(ValueError, match="at least one character"):
        models.Vocabulary("")
    with pytest.raises(TypeError, match="characters: expected a string"):
        models.Vocabulary(["a"])


@pytest.fixture
def model():
    return models.LanguageModel("abcde ", 4, 8, dropout=0.5, rng=0)


def test_language_model_is_embedding_lstm_linear(model):
    ids = model.vocabulary.encode("abc ed").reshape(3, 2)
    model.eval()
    logits, (h, c) = model(ids)
    y, state = model.lstm(model.embedding.weight.data[ids])
    assert np.array_equal(logits, model.head(y))
    assert np.array_equal(h, state[0])
    assert logits.shape == (3, 2, 6)
    first, state = model(ids[:1])
    rest, state = model(ids[1:], state)
    assert np.array_equal(np.concatenate([first, rest]), logits)
    assert np.array_equal(state[1], c)


def test_language_model_drops_while_training_only(model):
    ids = np.zeros((50, 4), np.int64)
    assert not np.array_equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert np.array_equal(model(ids)[0], model(ids)[0])
    assert (model.input_dropout.p, model.output_dropout.p) == (0.25, 0.5)


def test_language_model_trains_every_parameter(model):
    logits, _ = model(fs.Tensor(np.array([[0, 1], [2, 3]])))
    fs.functional.cross_entropy(logits.reshape(-1, 6), np.array([1, 2, 3, 4])).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_stream_reads_one_character_at_a_time(model):
    model.eval()
    ids = model.vocabulary.encode("bad cab")
    logits, _ = model(ids[:, None])
    stream = model.stream()
    for token, want in zip(ids, logits[:, 0], strict=True):
        assert np.allclose(stream.step(int(token)), want, rtol=1e-5, atol=1e-6)
    stream.reset()
    assert np.allclose(stream.step(int(ids[0])), logits[0, 0], rtol=1e-5, atol=1e-6)
    for outside in (-1, 6):
        with pytest.raises(IndexError, match="token: expected an id below 6"):
            stream.step(outside)


def test_vocabulary_travels_with_the_model(model, tmp_path):
    model.save(tmp_path / "model")
    twin = fs.load(tmp_path / "model")
    assert isinstance(twin, models.LanguageModel)
    assert twin.vocabulary == model.vocabulary
    assert twin.dropout == 0.5
    ids = np.zeros((3, 1), np.int64)
    assert np.array_equal(twin(ids)[0], model.eval()(ids)[0])


@pytest.mark.parametrize("cell", ["gru", "rnn", "mut1", "mut2", "mut3"])
def test_language_models_of_other_cells(cell, tmp_path):
    model = models.LanguageModel("abcde ", 4, 8, cell=cell, rng=0).eval()
    ids = model.vocabulary.encode("abc ed").reshape(3, 2)
    logits, state = model(ids)
    assert isinstance(state, tuple)
    assert np.array_equal(logits, model.head(getattr(model, cell)(model.embedding.weight.data[ids])[0]))
    first, state = model(ids[:1])
    rest, _ = model(ids[1:], state)
    assert np.array_equal(np.concatenate([first, rest]), logits)
    model.save(tmp_path / "model")
    assert np.array_equal(fs.load(tmp_path / "model")(ids)[0], logits)
    assert np.allclose(model.stream().step(int(ids[0, 0])), logits[0, 0], rtol=1e-5, atol=1e-6)


def test_a_cell_that_there_is_not():
    with pytest.raises(ValueError, match="cell: expected one of lstm, gru, rnn, mut1, mut2, mut3, got 'tree'"):
        models.LanguageModel("ab", cell="tree")
