"""Sampling and generation."""

import numpy as np
import pytest

from fastseq import models
from fastseq.generation import beam_search, generate, sample

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))
N = 20_000


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
        ({"top_p": 1}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.71}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 1e-9}, [0, 1, 0, 0]),
        ({"top_p": 0.75, "top_k": 3}, [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_sample_follows_the_distribution(options, want):
    drawn = sample(np.tile(LOGITS, (N, 1)), np.random.default_rng(0), **options)
    assert drawn.shape == (N,)
    assert np.abs(np.bincount(drawn, minlength=4) / N - want).max() < 0.015


def test_a_row_is_drawn_alone_or_with_others():
    logits = np.random.default_rng(0).standard_normal((5, 9))
    drawn = sample(logits, [np.random.default_rng(seed) for seed in range(5)], top_p=0.9)
    assert drawn.tolist() == [sample(row, np.random.default_rng(seed), top_p=0.9) for seed, row in enumerate(logits)]
    assert isinstance(sample(logits[0], np.random.default_rng(0)), int)


def test_sample_breaks_ties_by_the_smaller_id():
    rng = np.random.default_rng(0)
    assert set(sample(np.zeros((100, 4)), rng, top_k=2)) == {0, 1}
    assert sample(np.zeros(4), rng, temperature=0) == 0


def test_sample_survives_impossible_ids():
    logits = np.array([-np.inf, 0.0, -np.inf])
    assert {sample(logits, np.random.default_rng(seed), top_k=2) for seed in range(50)} == {1}
    certain = np.array([0.0, np.inf, 3.0])
    assert {sample(certain, np.random.default_rng(seed)) for seed in range(50)} == {1}


@pytest.fixture(params=["lstm", "gru", "transformer"])
def model(request):
    return models.LanguageModel(models.Vocabulary("abc\n"), 8, 16, cell=request.param, heads=2, dropout=0.3, rng=0)


def test_generation_repeats_with_its_seed(model):
    (first,), (second,), (other,) = (generate(model, "ab", max_length=100, rng=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert len(first) == 100
    assert set(first) == {0, 1, 2, 3}
    assert model.training


def test_generation_leaves_the_mode_of_each_part(model):
    model.head.eval()
    generate(model, "ab", max_length=2)
    assert model.training
    assert not model.head.training


def test_greedy_generation_takes_the_likeliest_token(model):
    (ids,) = generate(model, "ab", max_length=6, temperature=0)
    logits, _ = model.eval()(np.concatenate([model.vocabulary.encode("ab"), ids])[:, None])
    assert np.array_equal(logits[1:-1, 0].argmax(1), ids)


def test_a_row_does_not_depend_on_the_rows_around_it(model):
    prompts, lengths = np.array([[1, 2, 3], [2, 3, 1]]), [2, 1, 2]
    together = generate(model, prompts, lengths, max_length=20, rng=7)
    fewer = generate(model, prompts[:, :2], lengths[:2], max_length=20, rng=7)
    assert len(together) == 3
    assert all(np.array_equal(a, b) for a, b in zip(together, fewer, strict=False))
    (alone,) = generate(model, prompts[:, 0], max_length=20, rng=7)
    assert np.array_equal(alone, together[0])


def test_a_row_ends_at_a_stop_token(model):
    prompts = np.ones((1, 20), int)
    free = generate(model, prompts, max_length=12, rng=3)
    for stop, ids in (("\n", [0]), (0, [0]), (["\n", 2], [0, 2])):
        written = generate(model, prompts, max_length=12, stop=stop, rng=3)
        for row, whole in zip(written, free, strict=True):
            ends = [*np.flatnonzero(np.isin(whole, ids)), len(whole)]
            assert np.array_equal(row, whole[: ends[0]])


def test_the_vocabulary_s_stop_token_is_the_default():
    model = models.LanguageModel(models.Vocabulary("abc", stop="$"), 4, 8, rng=0)
    written = generate(model, np.ones((1, 30), int), max_length=50, rng=0)
    assert not any((row == 0).any() for row in written)
    assert min(map(len, written)) < 50
    assert all(len(row) == 50 for row in generate(model, np.ones((1, 30), int), max_length=50, stop=(), rng=0))


def test_tokens_come_as_they_are_written(model):
    steps = []
    written = generate(model, np.ones((1, 3), int), max_length=9, stop=0, on_token=steps.append, rng=1)
    steps = np.array(steps)
    assert [row[row >= 0].tolist() for row in steps.T] == [row.tolist() for row in written]
    assert generate(model, "ab", max_length=0)[0].shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature: expected"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"temperature": float("inf")}, "temperature: expected"),
        ({"top_k": 0}, "top_k: expected at least 1"),
        ({"top_p": 0}, "top_p: expected a number above 0"),
        ({"top_p": 1.1}, "top_p: expected a number above 0"),
        ({"max_length": -1}, "max_length: expected at least 0"),
        ({"stop": "x"}, "stop: expected tokens of the vocabulary, got 'x'"),
        ({"stop": 4}, "stop: expected ids below 4, got 4"),
        ({"stop": [0, -1]}, "stop: expected at least 0, got -1"),
    ],
)
def test_generation_refuses_before_it_begins(model, options, message):
    steps = []
    with pytest.raises(ValueError, match=message):
        generate(model, "ab", on_token=steps.append, **({"max_length": 3} | options))
    assert not steps
    with pytest.raises(ValueError, match="prompt: the model's vocabulary has no 'x'"):
        generate(model, "abx", max_length=3)


def test_sample_refuses():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="logits: expected numbers, got NaN"):
        sample(np.array([0.0, np.nan]), rng)
    for wrong in (np.zeros((1, 1, 1)), np.zeros((2, 0)), np.float64(0)):
        with pytest.raises(ValueError, match="logits: expected shape"):
            sample(wrong, rng)
    for name, wrong, message in (("top_k", 2.0, "an integer, got float"), ("top_p", "1", "a number, got str"), ("temperature", None, "a number, got None")):
        with pytest.raises(TypeError, match=f"{name}: expected {message}"):
            sample(LOGITS, rng, **{name: wrong})
    with pytest.raises(TypeError, match="stop: expected an integer, got float"):
        generate(models.LanguageModel("ab", 4, 8), "ab", max_length=3, stop=[1.0])
    with pytest.raises(ValueError, match="rng: expected one for each of 3 rows, got 1"):
        sample(np.tile(LOGITS, (3, 1)), [rng])


def test_sample_takes_a_seed():
    rows = np.tile(LOGITS, (9, 1))
    assert sample(rows, 5).tolist() == sample(rows, np.random.default_rng(5)).tolist()
    assert sample(rows, None).shape == (9,)


def test_a_transformer_says_for_how_many_tokens_it_has_room():
    model = models.LanguageModel("ab", 8, 8, cell="transformer", heads=2, max_length=6, rng=0)
    steps, prompts = [], np.array([[0, 1], [1, 0], [0, 0]])
    for run in (lambda most: generate(model, prompts, max_length=most, on_token=steps.append), lambda most: beam_search(model, prompts, max_length=most)):
        with pytest.raises(ValueError, match="max_length: expected at most 4, for the model can read 3 more tokens, got 5"):
            run(5)
        assert not steps
        run(4)
        steps.clear()
    assert len(generate(model, prompts, [2, 1], max_length=5)[0]) == 5
    free = models.LanguageModel("ab", 8, 8, cell="transformer", heads=2, max_length=6, positions="sinusoidal", rng=0)
    assert len(generate(free, prompts, max_length=20)[0]) == 20
