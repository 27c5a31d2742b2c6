"""Every model of the house, with dropout and each with another optimiser, goes on from its checkpoint with the same bits."""

import numpy as np
import pytest

import fastseq as fs
from fastseq.training import Batches, BucketBatches, CarriedState, MaskedPairs, SkipGramBatches, TextStreams, fit
from tests.training_problems import Interrupt, same

TEXT = "the cat sat on the mat and the dog sat on the log. " * 20
SPECIAL = {"padding": "<pad>", "unknown": "<unk>", "start": "<s>", "stop": "</s>"}


def ragged(n=24, most=9, words=10):
    rng = np.random.default_rng(0)
    return [rng.integers(4, words, length) for length in rng.integers(1, most, n)]


def recurrent_language_model():
    model = fs.models.LanguageModel(TEXT, 8, 12, cell="gru", num_layers=2, dropout=0.3)
    return model, TextStreams(model.vocabulary.encode(TEXT), 4, 16, shift=True), fs.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9)


def transformer_language_model():
    model = fs.models.LanguageModel(TEXT, 8, 16, cell="transformer", heads=2, num_layers=2, dropout=0.3, tie_weights=True)
    return model, TextStreams(model.vocabulary.encode(TEXT), 4, 16, shift=True), fs.optim.AdamW(model.parameters(), lr=1e-3)


def classifier():
    model = fs.models.SequenceClassifier(fs.models.Vocabulary("abcdef", **SPECIAL), 2, 8, 12, pooling="attention", dropout=0.3)
    return model, BucketBatches(ragged(), np.arange(24) % 2, batch_size=4), fs.optim.Adagrad(model.parameters(), lr=1e-2)


def tagger():
    model = fs.models.SequenceTagger(fs.models.Vocabulary("abcdef", **SPECIAL), 3, 8, 12, dropout=0.3)
    return model, BucketBatches(ragged(), [row % 3 for row in ragged()], batch_size=4), fs.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def translator():
    words = fs.models.Vocabulary("abcdef", **SPECIAL)
    model = fs.models.Seq2Seq(words, words, 8, 12, dropout=0.3)
    targets = [np.concatenate([[words.start_id], row, [words.stop_id]]) for row in ragged()]
    return model, BucketBatches((ragged(), targets), batch_size=4), fs.optim.Adam(model.parameters(), lr=1e-2)


def bert():
    words = fs.models.Vocabulary(["[MASK]", *"abcdef"], separator=" ", **SPECIAL)
    model = fs.models.MaskedLanguageModel(words, 8, 16, num_layers=1, heads=2, dropout=0.3)
    return model, MaskedPairs([row - 3 + 4 for row in ragged()], words, batch_size=4), fs.optim.Adam(model.parameters(), lr=1e-2)


def word_vectors():
    vocabulary = fs.models.Vocabulary(sorted(set(TEXT.split())), separator=" ")
    model = fs.models.SkipGram(vocabulary, 8)
    batches = SkipGramBatches(vocabulary.encode(TEXT.strip()), len(vocabulary), window=2, drawn=4, batch_size=64, subsample=0.01)
    return model, batches, fs.optim.SparseAdam(model.parameters(), lr=1e-2)


class Convolutions(fs.nn.Module):
    """Running statistics are buffers, which change in the forward pass."""

    def __init__(self):
        self.layers = fs.nn.Sequential(fs.nn.Linear(5, 8), fs.nn.BatchNorm1d(8), fs.nn.Dropout(0.2), fs.nn.ReLU(), fs.nn.Linear(8, 2))

    def loss(self, x, y):
        return fs.functional.cross_entropy(self.layers(fs.Tensor(x)), y)


def batch_statistics():
    model = Convolutions()
    x = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    return model, Batches(x, (x[:, 0] > 0).astype(int), batch_size=8), fs.optim.Adam(model.parameters(), lr=1e-2)


@pytest.mark.parametrize(
    "make", [recurrent_language_model, transformer_language_model, classifier, tagger, translator, bert, word_vectors, batch_statistics]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_goes_on_with_the_same_bits(tmp_path, make, accumulate):
    results = []
    for parts in ([0], [2, 4, 0]):
        for at in parts:
            fs.manual_seed(2)
            model, batches, optimizer = make()
            history = fit(model, batches, optimizer=optimizer, epochs=3, max_norm=1.0, accumulate=accumulate, callbacks=[Interrupt(at)], progress=False,
                          state=CarriedState() if make is recurrent_language_model else None, checkpoint=tmp_path / f"{len(parts)}")  # fmt: skip
            assert history.stopped == ("interrupted" if at else "finished")
        results.append((history["loss"], model.state_dict()))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    assert len(set(results[0][0])) == 3
