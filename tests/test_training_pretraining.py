"""MaskedPairs: what a pair is, what follows and what does not, the same epochs from the same state."""

import numpy as np
import pytest

import fastseq as fs

SPECIAL = {"padding": "[PAD]", "unknown": "[UNK]", "start": "[CLS]", "stop": "[SEP]"}
N = 400
WORDS = fs.models.Vocabulary(["[MASK]", *map(str, range(N))], separator=" ", **SPECIAL)
#: The k-th sentence says k one to four times.
SENTENCES = [WORDS.encode([str(k)] * (1 + k % 4)) for k in range(N)]


def pairs(batches):
    """(first, second, follows) of every pair of an epoch, by the words that are asked."""
    for ids, lengths, segments, words, follows in batches:
        whole = np.where(words == -100, ids, words)
        for b, n in enumerate(lengths):
            row, of = whole[:n, b], segments[:n, b]
            assert (row[0], row[-1]) == (WORDS.start_id, WORDS.stop_id)
            assert (whole[n:, b] == WORDS.padding_id).all()
            first, second = row[of == 0], row[of == 1]
            assert first[-1] == WORDS.stop_id
            said = {int(WORDS.decode([first[1]]))}, {int(WORDS.decode([second[0]]))}
            assert len(first) == 2 + 1 + min(said[0]) % 4
            assert len(second) == 1 + 1 + min(said[1]) % 4
            yield min(said[0]), min(said[1]), int(follows[b])


def test_each_sentence_begins_a_pair_and_half_of_them_follow():
    found = list(pairs(fs.training.MaskedPairs(SENTENCES, WORDS, batch_size=16, rng=0)))
    assert sorted(first for first, _, _ in found) == list(range(N - 1))
    assert all((second == first + 1) == follows for first, second, follows in found)
    assert np.mean([follows for _, _, follows in found]) == pytest.approx(0.5, abs=0.08)


def test_words_are_hidden_as_mask_tokens_does():
    batches = list(fs.training.MaskedPairs(SENTENCES, WORDS, batch_size=16, probability=0.5, rng=0))
    asked = np.concatenate([words[ids >= 4] != -100 for ids, _, _, words, _ in batches])
    assert asked.mean() == pytest.approx(0.5, abs=0.06)
    assert (batches[0][0] == WORDS.id("[MASK]")).any()


def test_epochs_differ_and_come_again():
    batches = fs.training.MaskedPairs(SENTENCES, WORDS, batch_size=16, rng=3)
    first = [tuple(a.tobytes() for a in batch) for batch in batches]
    state = batches.state_dict()
    second = [tuple(a.tobytes() for a in batch) for batch in batches]
    assert first != second
    other = fs.training.MaskedPairs(SENTENCES, WORDS, batch_size=16, rng=4)
    other.load_state_dict(state)
    assert [tuple(a.tobytes() for a in batch) for batch in other] == second
    assert len(batches) == len(first) == -(-(N - 1) // 16)
    next(iter(batches))
    assert batches.state_dict() == other.state_dict()


def test_long_pairs_are_cut():
    sentences = [np.full(50, WORDS.id("7")), np.full(2, WORDS.id("8")), np.full(50, WORDS.id("9"))]
    for ids, *_ in fs.training.MaskedPairs(sentences, WORDS, batch_size=2, max_length=23, rng=0):
        assert len(ids) <= 23


def test_fit_trains_on_it():
    model = fs.models.MaskedLanguageModel(WORDS, 16, 16, dropout=0.0, rng=0)
    batches = fs.training.MaskedPairs(SENTENCES, WORDS, batch_size=64, rng=0)
    history = fs.training.fit(model, batches, optimizer=fs.optim.Adam(model.parameters(), lr=1e-2), epochs=4, progress=False)
    assert history["loss"][-1] < history["loss"][0]


def test_refusals():
    with pytest.raises(ValueError, match="sentences: expected at least two, got 1"):
        fs.training.MaskedPairs(SENTENCES[:1], WORDS, batch_size=2)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        fs.training.MaskedPairs(SENTENCES, WORDS, batch_size=0)
    with pytest.raises(ValueError, match="max_length: expected at least 5"):
        fs.training.MaskedPairs(SENTENCES, WORDS, batch_size=2, max_length=4)
    with pytest.raises(ValueError, match="vocabulary: expected padding"):
        fs.training.MaskedPairs(SENTENCES, fs.models.Vocabulary("abc"), batch_size=2)
