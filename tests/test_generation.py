"""Sampling and generation."""

import numpy as np
import pytest

from fastseq import models
from fastseq.generation import generate, sample

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))


def counts(**options):
    rng = np.random.default_rng(0)
    return np.bincount([sample(LOGITS, rng, **options) for _ in range(20_000)], minlength=4) / 20_000


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, np.square([0.1, 0.4, 0.2, 0.3]) / 0.3),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 1}, [0, 1, 0, 0]),
        ({"top_k": 99}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 1e-9}, [0, 1, 0, 0]),
    ],
)
def test_sample_follows_the_distribution(options, want):
    assert np.abs(counts(**options) - want).max() < 0.015


def test_sample_breaks_ties_by_the_smaller_id():
    rng = np.random.default_rng(0)
    assert {sample(np.zeros(4), rng, top_k=2) for _ in range(100)} == {0, 1}
    assert sample(np.zeros(4), rng, temperature=0) == 0


def test_sample_survives_impossible_ids():
    logits = np.array([-np.inf, 0.0, -np.inf])
    assert {sample(logits, np.random.default_rng(seed)) for seed in range(50)} == {1}


@pytest.fixture
def model():
    return models.LanguageModel("abc\n", 4, 8, rng=0)


def test_generation_repeats_with_its_seed(model):
    first, second, other = ("".join(generate(model, "ab", length=200, rng=seed)) for seed in (1, 1, 2))
    assert first == second
    assert first != other
    assert len(first) == 200
    assert set(first) == set("abc\n")


def test_greedy_generation_takes_the_likeliest_character(model):
    model.eval()
    text = "ab" + "".join(generate(model, "ab", length=6, temperature=0))
    logits, _ = model(model.vocabulary.encode(text)[:, None])
    assert model.vocabulary.decode(logits[1:-1, 0].argmax(1)) == text[2:]


def test_generation_comes_as_it_is_made(model):
    characters = generate(model, "", length=10**9, rng=0)
    assert [len(next(characters)) for _ in range(3)] == [1, 1, 1]
    assert list(generate(model, "ab", length=0)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: expected"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"temperature": float("inf")}, "temperature: expected"),
        ({"top_k": 0}, "top_k: expected at least 1"),
        ({"length": -1}, "length: expected at least 0"),
        ({"prompt": "abx"}, "prompt: the model's vocabulary has no 'x'"),
    ],
)
def test_generation_refuses_before_it_begins(model, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model, **options)
