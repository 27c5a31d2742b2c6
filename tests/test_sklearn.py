"""The estimators follow scikit-learn's conventions, and read sequences of any lengths."""

import pickle

import numpy as np
import pytest

import fastseq as fs

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastseq.sklearn import SequenceClassifier, SequenceRegressor, SequenceTagger
from tests.training_problems import Interrupt

SMALL = {"hidden_size": 16, "epochs": 40, "learning_rate": 0.02, "random_state": 0}


@parametrize_with_checks([SequenceClassifier(**SMALL), SequenceRegressor(**SMALL), SequenceTagger(**SMALL)])
def test_conventions_on_tables(estimator, check):
    check(estimator)


def ramps(n=120, seed=0):
    """Sequences of 4 to 12 steps of two numbers, the first of which rises or falls, and which it does."""
    rng = np.random.default_rng(seed)
    up = rng.integers(0, 2, n).astype(bool)
    X = [np.stack([np.where(u, 1, -1) * np.arange(t), rng.standard_normal(t)], axis=1) for u, t in zip(up, rng.integers(4, 13, n), strict=True)]
    return X, np.where(up, "up", "down")


def phrases(n=160, seed=0):
    """Texts of three words, and whether they are good."""
    rng = np.random.default_rng(seed)
    good = rng.integers(0, 2, n).astype(bool)
    words = np.array([["awful", "bad", "poor"], ["great", "good", "fine"]])[good.astype(int), rng.integers(0, 3, n)]
    return [f"a {word} film" for word in words], good


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_classifier_of_ragged_sequences(pooling, bidirectional):
    X, y = ramps()
    classifier = SequenceClassifier(pooling=pooling, bidirectional=bidirectional, cell="gru", **SMALL).fit(X[:80], y[:80])
    assert classifier.score(X[80:], y[80:]) > 0.9
    probabilities = classifier.predict_proba(X)
    assert probabilities.shape == (120, 2)
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert np.array_equal(classifier.classes_[probabilities.argmax(axis=1)], classifier.predict(X))
    assert classifier.n_features_in_ == 2
    assert np.allclose(classifier.mean_, np.concatenate(X[:80]).mean(axis=0))


def test_an_array_and_a_list_are_read_alike():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 6, 3)), rng.integers(0, 2, 40)
    options = {**SMALL, "epochs": 2}
    of_array, of_list = SequenceClassifier(**options).fit(X, y), SequenceClassifier(**options).fit(list(X), y)
    assert np.array_equal(of_array.predict_proba(X), of_list.predict_proba([x.tolist() for x in X]))
    table = X[..., 0]
    of_table, of_steps = SequenceClassifier(**options).fit(table, y), SequenceClassifier(**options).fit(table[..., None], y)
    assert np.array_equal(of_table.predict_proba(table), of_steps.predict_proba([x[:, None] for x in table]))
    assert (of_table.n_features_in_, of_steps.n_features_in_) == (6, 1)
    assert of_table.predict([[1.0, 2.0], [3.0]]).shape == (2,)  # a table's model reads sequences of other lengths as well


def test_a_prediction_does_not_depend_on_the_sequences_around_it():
    X, y = ramps()
    classifier = SequenceClassifier(**{**SMALL, "epochs": 2}).fit(X, y)
    together = classifier.predict_proba(X)
    assert np.array_equal(together[::-1], classifier.predict_proba(X[::-1]))
    assert np.array_equal(together[7:8], classifier.predict_proba(X[7:8]))


@pytest.mark.parametrize("cell", ["lstm", "transformer"])
def test_classifier_of_texts(cell, tmp_path):
    X, y = phrases()
    pooling = "mean" if cell == "transformer" else "last"
    classifier = SequenceClassifier(cell=cell, pooling=pooling, embedding_size=16, bidirectional=True, **{**SMALL, "epochs": 6}).fit(X[:120], y[:120])
    assert classifier.score(X[120:], y[120:]) == 1
    assert classifier.predict([["a", "great", "film"], "an unknown film"])[0]
    classifier.model_.save(tmp_path / "model")
    assert fs.load(tmp_path / "model").vocabulary == classifier.vocabulary_


class Column:
    """Something like a column of a data frame."""

    ndim = 1

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=object)


def test_a_column_of_a_data_frame():
    X, y = phrases(40)
    options = {**SMALL, "epochs": 2}
    of_column, of_list = SequenceClassifier(**options).fit(Column(X), y), SequenceClassifier(**options).fit(X, y)
    assert np.array_equal(of_column.predict_proba(Column(X)), of_list.predict_proba(X))


def test_tagger_of_words_and_of_numbers():
    rng = np.random.default_rng(0)
    X = [rng.standard_normal(t) for t in rng.integers(2, 9, 100)]
    y = [np.where(x > 0, "plus", "minus") for x in X]
    tagger = SequenceTagger(**SMALL).fit(X[:80], y[:80])
    assert tagger.score(X[80:], y[80:]) > 0.9
    assert [len(row) for row in tagger.predict(X)] == [len(x) for x in X]
    assert [row.shape for row in tagger.predict_proba(X[:3])] == [(len(x), 2) for x in X[:3]]
    texts, _ = phrases()
    tags = [["-", "adjective", "noun"]] * len(texts)
    assert SequenceTagger(embedding_size=8, **{**SMALL, "epochs": 8}).fit(texts, tags).score(texts, tags) == 1


def test_regressor_forecasts_several_values():
    wave = 300 + 5 * np.sin(np.arange(500) / 3)
    windows = np.lib.stride_tricks.sliding_window_view(wave, 30)
    X, y = windows[:, :24], windows[:, 24:]
    forecaster = SequenceRegressor(cell="gru", loss="absolute_error", **SMALL).fit(X[:300], y[:300])
    assert forecaster.score(X[330:], y[330:]) > 0.9
    assert forecaster.predict(X[:2]).shape == (2, 6)
    assert forecaster.model_.horizon == 6
    single = SequenceRegressor(**{**SMALL, "epochs": 2}).fit(X, y[:, 0])
    assert single.predict(X[:2]).shape == (2,)


def test_patience_keeps_the_best_epoch():
    X, y = ramps(60)
    rng = np.random.default_rng(0)
    classifier = SequenceClassifier(hidden_size=32, epochs=100, learning_rate=0.05, patience=3, random_state=0).fit(X, rng.permutation(y))
    assert classifier.history_.stopped == "early"
    assert len(classifier.history_["validation_loss"]) < 100


@pytest.mark.parametrize("kind", [SequenceClassifier, SequenceRegressor])
def test_pipeline_grid_search_and_pickle(kind):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 8))
    y = (X[:, -1] > 0).astype(int)
    search = GridSearchCV(make_pipeline(StandardScaler(), kind(**SMALL)), {f"{kind.__name__.lower()}__cell": ["gru", "rnn"]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5
    again = pickle.loads(pickle.dumps(search))
    assert np.array_equal(again.predict(X), search.predict(X))


def test_cross_validation_of_ragged_sequences():
    X, y = ramps()
    backwards = FunctionTransformer(lambda sequences: [x[::-1] for x in sequences])
    scores = cross_val_score(make_pipeline(backwards, SequenceClassifier(**SMALL)), X, y, cv=3)
    assert scores.shape == (3,)
    tags = [np.where(x[:, 1] > 0, "plus", "minus") for x in X]
    search = GridSearchCV(SequenceTagger(**{**SMALL, "epochs": 3}), {"hidden_size": [4, 8]}, cv=TimeSeriesSplit(2)).fit(X, tags)
    assert search.best_params_["hidden_size"] in (4, 8)


def test_the_same_seed_gives_the_same_bits_and_clones_start_anew():
    X, y = ramps(40)
    first = SequenceClassifier(**{**SMALL, "epochs": 2}, dropout=0.3).fit(X, y)
    second = clone(first)
    with pytest.raises(NotFittedError):
        second.predict(X)
    assert np.array_equal(second.fit(X, y).predict_proba(X), first.predict_proba(X))
    assert np.array_equal(pickle.loads(pickle.dumps(first)).predict_proba(X), first.predict_proba(X))


def test_they_refuse():
    X, y = ramps(20)
    options = {**SMALL, "epochs": 1}
    with pytest.raises(ValueError, match=r"X\[3\]: expected shape \(T, 2\), got \(5, 3\)"):
        SequenceClassifier(**options).fit([*X[:3], np.zeros((5, 3))], y[:4])
    with pytest.raises(ValueError, match=r"X\[1\] contains NaN"):
        SequenceClassifier(**options).fit([X[0], X[1] * np.nan], y[:2])
    with pytest.raises(ValueError, match="pooling: expected one of last, mean, attention, got 'sum'"):
        SequenceClassifier(pooling="sum", **options).fit(X, y)
    with pytest.raises(ValueError, match="loss: expected one of squared_error, absolute_error, got 'huber'"):
        SequenceRegressor(loss="huber", **options).fit(X, np.zeros(20))
    with pytest.raises(TypeError, match="X: expected sequences of numbers, got texts"):
        SequenceRegressor(**options).fit(["a b"], [1.0])
    with pytest.raises(ValueError, match=r"y\[1\]: expected \d+ tags, as many as X\[1\] has steps, got 2"):
        SequenceTagger(**options).fit(X[:2], [np.zeros(len(X[0])), [0, 1]])
    with pytest.raises(ValueError, match="epochs: expected at least 1, got 0"):
        SequenceClassifier(**{**options, "epochs": 0}).fit(X, y)
    fitted = SequenceClassifier(**options).fit(["a b", "c"], [0, 1])
    with pytest.raises(TypeError, match="X: expected texts, or lists of tokens, as in fit"):
        fitted.predict([[1.0, 2.0]])
    with pytest.raises(ValueError, match="requires y to be passed"):
        SequenceTagger(**options).fit(X, None)


def test_ctrl_c_ends_a_search_and_leaves_what_was_learnt(monkeypatch):
    fit = fs.training.fit
    monkeypatch.setattr(fs.training, "fit", lambda *parts, callbacks, **options: fit(*parts, callbacks=[*callbacks, Interrupt(3)], **options))
    X, y = ramps(40)
    classifier = SequenceClassifier(**SMALL)
    for run in (classifier.fit, GridSearchCV(classifier, {"cell": ["lstm", "gru"]}, error_score="raise").fit):
        with pytest.raises(KeyboardInterrupt):
            run(X, y)
    assert (classifier.history_.stopped, classifier.history_.steps) == ("interrupted", 3)
    assert classifier.predict(X).shape == (40,)
