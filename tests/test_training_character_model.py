"""The training of `fastseq train`: what it reads, what it keeps, how it ends."""

import itertools
import math
import os
import signal

import numpy as np
import pytest

import fastseq as fs
from fastseq import models
from fastseq.training import TrainingDiverged, bits_per_character, character_model
from fastseq.training.character_model import CharacterOptions, train_character_model

TEXT = "the cat sat on the mat and the dog sat on the log, said the cat to the dog. " * 40


def new_model(dropout=0.0):
    return models.LanguageModel(TEXT, 8, 32, dropout=dropout, rng=0)


def split(model):
    ids = model.vocabulary.encode(TEXT)
    return ids[:2700], ids[2700:]


def options(**changes):
    return CharacterOptions(**{"epochs": 6, "batch_size": 4, "sequence_length": 16, "evaluations": 4, "seed": 0, **changes})


def interrupt_at(step):
    """Ctrl-C after a step."""
    return lambda progress: os.kill(os.getpid(), signal.SIGINT) if progress.steps == step else None


def test_the_rate_rises_and_falls():
    chosen = CharacterOptions(learning_rate=2.0, warmup=0.1, floor=0.05)
    rates = np.array([chosen.rate(share) for share in np.linspace(0, 1, 101)])
    assert rates[0] == 0
    assert np.allclose(np.diff(rates[:11]), 0.2)
    assert rates.max() == rates[10] == 2
    assert (np.diff(rates[10:]) < 0).all()
    assert math.isclose(rates[-1], 0.1)
    assert CharacterOptions(warmup=0.0).rate(0) == CharacterOptions().learning_rate
    assert chosen.rate(1.5) == chosen.rate(1)


@pytest.mark.parametrize("n", [2, 100, 4100, 9000])
def test_bits_per_character_are_the_cross_entropy(n):
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
    assert math.isclose(bits_per_character(model, ids), total / (streams * length) / math.log(2), rel_tol=1e-5)
    assert model.training


def test_training_learns_and_keeps_the_best(tmp_path):
    model = new_model()
    train, held_out = split(model)
    seen = []
    path = tmp_path / "model"
    start = bits_per_character(model, held_out)
    result = train_character_model(
        model, train, held_out, options(), path=path, on_step=lambda p: seen.append((p.steps, p.share, p.learning_rate))
    )
    assert result.stopped == "finished"
    assert start > 3.5
    assert result.bits_per_char < 1.0
    assert result.bits_per_char == min(bits for _, bits in result.history) == bits_per_character(model, held_out)
    assert bits_per_character(fs.load(path), held_out) == result.bits_per_char
    assert len(result.history) == 4
    assert not model.training
    assert [steps for steps, _, _ in seen] == list(range(1, result.steps + 1))
    assert seen[-1][1] == 1
    assert max(rate for *_, rate in seen) <= CharacterOptions().learning_rate
    assert math.isclose(seen[-1][2], CharacterOptions().learning_rate * CharacterOptions().floor, rel_tol=0.05)
    assert result.characters == result.steps * 64
    assert abs(result.characters - 6 * 2699) <= 64
    assert result.chars_per_second == result.characters / result.seconds


def test_training_repeats_with_its_seed():
    results = []
    for _ in range(2):
        model = new_model(dropout=0.2)
        results.append((train_character_model(model, *split(model), options(epochs=1)), model.state_dict()))
    assert results[0][0].history == results[1][0].history
    assert all(np.array_equal(a, results[1][1][name]) for name, a in results[0][1].items())


@pytest.mark.parametrize("step", [1, 40, 63, 64, 200])
def test_training_goes_on_from_its_checkpoint_with_the_same_bits(tmp_path, step):
    results = []
    for name, stops in (("whole", [0]), ("parts", [step, 0])):
        for stop in stops:
            model = new_model(dropout=0.2)
            result = train_character_model(model, *split(model), options(), path=tmp_path / name, checkpoint=tmp_path / f"{name}.checkpoint",
                                           on_step=interrupt_at(stop))  # fmt: skip
            assert result.stopped == ("interrupted" if stop else "finished")
        results.append((result.history, result.bits_per_char, result.train_bits_per_char))
    assert results[0] == results[1]
    whole, parts = fs.load(tmp_path / "whole").state_dict(), fs.load(tmp_path / "parts").state_dict()
    assert all(np.array_equal(array, parts[name]) for name, array in whole.items())


def test_training_by_the_clock_ends_with_the_clock(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks) * 0.5)
    model = new_model()
    shares = []
    result = train_character_model(model, *split(model), options(seconds=10.0, epochs=1e9), on_step=lambda p: shares.append(p.share))
    assert result.stopped == "finished"
    assert result.seconds >= 10
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_training_stops_early_and_returns_to_the_best(monkeypatch):
    model = new_model()
    figures = iter([3.0, 2.0, 2.5, 2.4, 2.3, 9.9])
    states = []

    def measured(model, ids):
        states.append(model.state_dict())
        return next(figures)

    monkeypatch.setattr(character_model, "bits_per_character", measured)
    result = train_character_model(model, *split(model), options(epochs=20, evaluations=20, patience=3))
    assert (result.stopped, result.bits_per_char) == ("early", 2.0)
    assert [bits for _, bits in result.history] == [3.0, 2.0, 2.5, 2.4, 2.3]
    assert all(np.array_equal(a, states[1][name]) for name, a in model.state_dict().items())


@pytest.mark.parametrize("interrupted_at", [1, 3, 60])
def test_an_interruption_keeps_what_was_learnt(tmp_path, interrupted_at):
    model = new_model()
    train, held_out = split(model)
    path = tmp_path / "model"
    result = train_character_model(model, train, held_out, options(), path=path, on_step=interrupt_at(interrupted_at))
    assert (result.stopped, result.steps) == ("interrupted", interrupted_at)
    assert result.bits_per_char == bits_per_character(model, held_out) == bits_per_character(fs.load(path), held_out)
    assert not math.isinf(result.bits_per_char)


def test_a_loss_that_is_no_number_ends_the_training_clearly(tmp_path):
    model = new_model()
    path = tmp_path / "model"

    def on_step(progress):
        if progress.steps == 100:
            model.head.bias.data[...] = math.nan

    with pytest.raises(TrainingDiverged, match=rf"the loss became nan in epoch 3, .* at step 101 .*head.bias.*best model .* is in {path}"):
        train_character_model(model, *split(model), options(), path=path, on_step=on_step)
    assert all(np.isfinite(p.data).all() for p in model.parameters())
    assert all(np.isfinite(p.data).all() for p in fs.load(path).parameters())
    broken = new_model()
    broken.head.bias.data[...] = math.inf
    with pytest.raises(TrainingDiverged, match=r"at step 1 .*no model was kept"):
        train_character_model(broken, *split(broken), options())


@pytest.mark.parametrize(
    "name", ["epochs", "seconds", "batch_size", "sequence_length", "learning_rate", "max_norm", "evaluations", "patience"]
)
def test_options_are_positive(name):
    with pytest.raises(ValueError, match=f"{name}: expected more than 0, got 0"):
        CharacterOptions(**{name: 0})


@pytest.mark.parametrize("n", [100, 120, 700])
def test_short_texts_are_trained_on_all_the_same(n):
    model = new_model()
    ids = model.vocabulary.encode(TEXT[:n])
    result = train_character_model(model, ids[: n - n // 10], ids[n - n // 10 :], CharacterOptions(epochs=3, seed=0))
    assert result.stopped == "finished"
    assert result.steps >= 1
