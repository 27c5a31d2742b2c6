"""The training loop: what it reads, what it keeps, how it ends."""

import itertools
import math

import numpy as np
import pytest

import fastseq as fs
from fastseq import models
from fastseq.training import EarlyStopping, TextStreams, TrainingDiverged, trainer
from fastseq.training.trainer import Trainer, TrainingOptions, evaluate, warmup_cosine

TEXT = "the cat sat on the mat and the dog sat on the log, said the cat to the dog. " * 40


def new_model(dropout=0.0):
    return models.LanguageModel(TEXT, 8, 32, dropout=dropout, rng=0)


def split(model):
    ids = model.vocabulary.encode(TEXT)
    return ids[:2700], ids[2700:]


def options(**changes):
    return TrainingOptions(
        **{"epochs": 6, "batch_size": 4, "sequence_length": 16, "evaluations": 4, "seed": 0, **changes}
    )


@pytest.mark.parametrize(
    ("n", "batch", "length", "start"),
    [(13, 2, 3, 0), (100, 4, 8, 0), (100, 4, 8, 3), (1000, 7, 13, 5), (2, 4, 8, 0), (9, 4, 8, 0)],
)
def test_streams_are_contiguous_and_targets_are_the_next_characters(n, batch, length, start):
    ids = np.arange(n)
    streams = TextStreams(ids, batch, length)
    pieces = list(streams.pieces(start))
    assert pieces
    for inputs, targets in pieces:
        assert inputs.shape == targets.shape == (streams.sequence_length, streams.batch_size)
        assert np.array_equal(targets, inputs + 1)
    whole = np.concatenate([inputs for inputs, _ in pieces])
    assert np.array_equal(np.diff(whole, axis=0), np.ones((len(whole) - 1, streams.batch_size)))
    assert len(np.unique(whole)) == whole.size
    assert whole[0, 0] == start
    assert (n - 1 - start) - whole.size < streams.batch_size * (streams.sequence_length + 1)


@pytest.mark.parametrize("n", [2, 3, 9, 50, 1000])
def test_endless_streams_begin_anew_with_each_pass(n):
    streams = TextStreams(np.arange(n), 4, 8)
    taken = list(itertools.islice(streams.endless(np.random.default_rng(0)), 200))
    assert taken[0][2]
    for (before, _, _), (inputs, _, first) in itertools.pairwise(taken):
        assert first == (inputs[0] != before[-1] + 1).any()
    if n == 1000:
        assert len({inputs[0, 0] for inputs, _, first in taken if first}) > 1
    with pytest.raises(ValueError, match="at least 2 characters"):
        TextStreams(np.arange(1), 4, 8)


def test_warmup_cosine():
    shares = np.linspace(0, 1, 101)
    rates = np.array([warmup_cosine(s, 0.1, 0.05) for s in shares])
    assert rates[0] == 0
    assert np.allclose(np.diff(rates[:11]), 0.1)
    assert rates.max() == rates[10] == 1
    assert (np.diff(rates[10:]) < 0).all()
    assert math.isclose(rates[-1], 0.05)
    assert warmup_cosine(0, 0, 0.05) == 1
    assert warmup_cosine(1.5, 0.1, 0.05) == warmup_cosine(1, 0.1, 0.05)


def test_early_stopping():
    stopping = EarlyStopping(patience=3, min_delta=0.1)
    assert [stopping.update(f) for f in (2.0, 1.95, 1.8, 1.75, math.nan)] == [True, False, True, False, False]
    assert not stopping.should_stop
    assert not stopping.update(1.9)
    assert stopping.should_stop
    assert stopping.best == 1.8


@pytest.mark.parametrize("n", [2, 100, 4100, 9000])
def test_evaluate_is_the_cross_entropy_in_bits(n):
    model = new_model(dropout=0.5)
    ids = np.resize(model.vocabulary.encode(TEXT), n)
    streams = max(1, n // 2000)
    length = (n - 1) // streams
    model.eval()
    total = 0.0
    for s in range(streams):
        logits, _ = model(ids[s * length : (s + 1) * length, None])
        z = logits[:, 0].astype(np.float64)
        total += (np.log(np.exp(z).sum(1)) - z[np.arange(length), ids[s * length + 1 : (s + 1) * length + 1]]).sum()
    model.train()
    assert math.isclose(evaluate(model, ids), total / (streams * length) / math.log(2), rel_tol=1e-5)
    assert model.training


def test_training_learns_and_keeps_the_best(tmp_path):
    model = new_model()
    train, held_out = split(model)
    seen = []
    path = tmp_path / "model"
    start = evaluate(model, held_out)
    result = Trainer(
        model, train, held_out, options(), path=path, on_step=lambda p: seen.append((p.steps, p.share, p.learning_rate))
    ).run()
    assert result.stopped == "finished"
    assert start > 3.5
    assert result.bits_per_char < 1.0
    assert result.bits_per_char == min(bits for _, bits in result.history) == evaluate(model, held_out)
    assert evaluate(fs.load(path), held_out) == result.bits_per_char
    assert len(result.history) == 4
    assert not model.training
    assert [steps for steps, _, _ in seen] == list(range(1, result.steps + 1))
    assert seen[-1][1] == 1
    assert max(rate for *_, rate in seen) <= TrainingOptions().learning_rate
    assert math.isclose(seen[-1][2], TrainingOptions().learning_rate * TrainingOptions().floor, rel_tol=0.05)
    assert result.characters == result.steps * 64
    assert abs(result.characters - 6 * 2699) <= 64
    assert result.chars_per_second == result.characters / result.seconds


def test_training_repeats_with_its_seed():
    results = []
    for _ in range(2):
        model = new_model(dropout=0.2)
        results.append((Trainer(model, *split(model), options(epochs=1)).run(), model.state_dict()))
    assert results[0][0].history == results[1][0].history
    assert all(np.array_equal(a, results[1][1][name]) for name, a in results[0][1].items())


def test_training_by_the_clock_ends_with_the_clock(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(ticks) * 0.5)
    model = new_model()
    shares = []
    result = Trainer(
        model, *split(model), options(seconds=10.0, epochs=1e9), on_step=lambda p: shares.append(p.share)
    ).run()
    assert (result.stopped, result.steps, result.seconds) == ("finished", 20, 10.0)
    assert np.allclose(shares, np.arange(1, 21) / 20)


def test_training_stops_early_and_returns_to_the_best(monkeypatch):
    model = new_model()
    figures = iter([3.0, 2.0, 2.5, 2.4, 2.3, 9.9])
    states = []

    def measured(model, ids):
        states.append(model.state_dict())
        return next(figures)

    monkeypatch.setattr(trainer, "evaluate", measured)
    result = Trainer(model, *split(model), options(epochs=20, evaluations=20, patience=3)).run()
    assert (result.stopped, result.bits_per_char) == ("early", 2.0)
    assert [bits for _, bits in result.history] == [3.0, 2.0, 2.5, 2.4, 2.3]
    assert all(np.array_equal(a, states[1][name]) for name, a in model.state_dict().items())


@pytest.mark.parametrize("interrupted_at", [1, 3, 60])
def test_an_interruption_keeps_what_was_learnt(tmp_path, interrupted_at):
    model = new_model()
    train, held_out = split(model)

    def on_step(progress):
        if progress.steps == interrupted_at:
            raise KeyboardInterrupt

    path = tmp_path / "model"
    result = Trainer(model, train, held_out, options(), path=path, on_step=on_step).run()
    assert (result.stopped, result.steps) == ("interrupted", interrupted_at)
    assert result.bits_per_char == evaluate(model, held_out) == evaluate(fs.load(path), held_out)
    assert not math.isinf(result.bits_per_char)


def test_an_interruption_during_a_look_loses_nothing(tmp_path, monkeypatch):
    model = new_model()
    path = tmp_path / "model"
    calls = itertools.count()
    save = type(model).save

    def interrupted_save(self, target):
        if next(calls) == 1:
            raise KeyboardInterrupt
        save(self, target)

    monkeypatch.setattr(type(model), "save", interrupted_save)
    result = Trainer(model, *split(model), options(), path=path).run()
    assert result.stopped == "interrupted"
    assert len(result.history) == 3  # the second look and the one after the interruption are of the same model
    assert result.history[1] == result.history[2]
    assert evaluate(fs.load(path), split(model)[1]) == result.bits_per_char == result.history[1][1]


def test_a_loss_that_is_no_number_ends_the_training_clearly(tmp_path):
    model = new_model()
    path = tmp_path / "model"

    def on_step(progress):
        if progress.steps == 100:
            model.head.bias.data[...] = math.nan

    with pytest.raises(
        TrainingDiverged,
        match=rf"the loss became nan at step 101 .*best model .* is in {path}; try a smaller learning rate",
    ):
        Trainer(model, *split(model), options(), path=path, on_step=on_step).run()
    assert all(np.isfinite(p.data).all() for p in model.parameters())
    assert all(np.isfinite(p.data).all() for p in fs.load(path).parameters())
    broken = new_model()
    broken.head.bias.data[...] = math.inf
    with pytest.raises(TrainingDiverged, match=r"at step 1 .*no model was kept"):
        Trainer(broken, *split(broken), options()).run()


@pytest.mark.parametrize(
    "name",
    ["epochs", "seconds", "batch_size", "sequence_length", "learning_rate", "max_norm", "evaluations", "patience"],
)
def test_options_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}: expected more than 0, got 0"):
        TrainingOptions(**{name: 0})


@pytest.mark.parametrize("n", [100, 120, 700])
def test_short_texts_are_trained_on_all_the_same(n):
    model = new_model()
    ids = model.vocabulary.encode(TEXT[:n])
    result = Trainer(model, ids[: n - n // 10], ids[n - n // 10 :], TrainingOptions(epochs=3, seed=0)).run()
    assert result.stopped == "finished"
    assert result.steps >= 1


def test_the_state_is_carried_but_the_gradient_is_cut(monkeypatch):
    model = new_model()
    states = []
    forward = type(model).forward

    def watched(self, ids, state=None):
        if self.training:
            states.append(state)
        return forward(self, ids, state)

    monkeypatch.setattr(type(model), "forward", watched)
    Trainer(model, *split(model), options(epochs=1.5)).run()
    assert states[0] is None
    assert sum(s is None for s in states) == 2
    assert not any(part.requires_grad for s in states if s for part in s)
    assert all(part.data.any() for s in states if s for part in s)
