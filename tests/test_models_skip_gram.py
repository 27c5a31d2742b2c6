"""Skip-gram with negative sampling: its loss written out, its batches, training and saving."""

import copy

import numpy as np
import pytest

import fastseq as fs
from fastseq.models import SkipGram, Vocabulary
from fastseq.training import SkipGramBatches
from tests.tolerance import assert_close, assert_same_bits

WORDS = Vocabulary("tea cup sea ship sun".split(), separator=" ")


def text(n=600, seed=0):
    """Tea and sea both stand before cup and ship; sun stands by itself."""
    rng = np.random.default_rng(seed)
    return np.concatenate([[rng.choice([0, 2]), rng.choice([1, 3]), 4, 4, 4, 4] for _ in range(n)])


def test_the_loss_written_out(rng):
    model = SkipGram(WORDS, 7, negatives=3, rng=0)
    model.neighbours.weight.data[...] = rng.standard_normal((5, 7))
    words, neighbours, drawn = np.array([0, 3, 3]), np.array([1, 0, 3]), np.array([4, 2, 2, 1])
    W, U = (table.weight.data.astype(np.float64) for table in (model.words, model.neighbours))
    scores = (W[words] * U[neighbours]).sum(1)
    against = W[words] @ U[drawn].T
    want = np.log1p(np.exp(-scores)) + 3 * np.log1p(np.exp(against)).mean(1)
    loss = model.loss(words, neighbours, drawn)
    assert_close(loss.data, want.mean(), dtype=np.float32, terms=30)
    assert_close(model(words, neighbours), scores, dtype=np.float32, terms=7)
    loss.backward()
    assert model.words.weight.grad.rows.tolist() == [0, 3]
    assert model.neighbours.weight.grad.rows.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError, match="ids: 5 is outside the vocabulary of 5"):
        model.loss(words, neighbours, np.array([5]))


def test_the_gradient_agrees_with_differences(rng):
    model = SkipGram(WORDS, 3, dtype=np.float64, rng=0)
    for table in (model.words, model.neighbours):
        table.weight.data[...] = rng.standard_normal((5, 3))
    batch = np.array([0, 3, 3]), np.array([1, 0, 3]), np.array([4, 2])
    assert fs.gradcheck(lambda *_: model.loss(*batch), [model.words.weight, model.neighbours.weight])


def test_the_pairs_of_a_text():
    ids = np.arange(40)
    batches = SkipGramBatches(ids, 40, window=3, drawn=6, batch_size=50, subsample=1, rng=0)
    found, reach = [], np.zeros((2, 40), int)
    for words, neighbours, drawn in batches:
        assert len(words) == len(neighbours) <= 50
        assert drawn.shape == (6,)
        assert drawn.dtype == np.int64
        found += zip(words.tolist(), neighbours.tolist(), strict=True)
    assert len(set(found)) == len(found)
    for word, neighbour in found:
        side, distance = int(neighbour > word), abs(neighbour - word)
        reach[side, word] = max(reach[side, word], distance)
    assert set(found) == {(w, w + s * d) for w in range(40) for k, s in enumerate((-1, 1)) for d in range(1, reach[k, w] + 1)}
    inner = reach[:, 3:37]
    assert (inner[0] == inner[1]).all()  # as far to the left as to the right
    assert set(inner[0]) == {1, 2, 3}


def test_frequent_words_are_thinned_out_and_draws_follow_the_power():
    ids = np.repeat([0, 1, 2], [90_000, 9_000, 1_000])
    batches = SkipGramBatches(ids, 4, window=1, drawn=100_000, batch_size=10**6, subsample=0.01, rng=0)
    (words, _, drawn), = batches
    kept = np.bincount(words, minlength=4) / 2  # each but the text's ends stands in two pairs
    np.testing.assert_allclose(kept[:3], np.array([90_000, 9_000, 1_000]) * np.sqrt(0.01 / np.array([0.9, 0.09, 0.01])), rtol=0.08)
    shares = np.array([90_000, 9_000, 1_000, 0]) ** 0.75
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 100_000, shares / shares.sum(), atol=0.006)


def test_an_epoch_follows_from_seed_and_number():
    one, two = (SkipGramBatches(text(), 5, batch_size=100, rng=3) for _ in range(2))
    first = list(one)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    again, second = list(two), list(one)
    for batch, same, other in zip(second, again, first, strict=False):
        for a, b in zip(batch, same, strict=True):
            assert_same_bits(a, b)
        assert not np.array_equal(batch[0], other[0])


@pytest.mark.parametrize("name", ["Adagrad", "SparseAdam", "SGD"])
def test_words_that_are_used_alike_come_near_each_other(name, tmp_path):
    model = SkipGram(WORDS, 8, rng=0)
    optimizer = getattr(fs.optim, name)(model.parameters(), lr={"Adagrad": 0.3, "SparseAdam": 0.03, "SGD": 0.5}[name])
    batches = SkipGramBatches(text(), 5, window=1, batch_size=256, subsample=1, rng=0)
    history = fs.training.fit(model, batches, optimizer=optimizer, epochs=12, progress=False)
    assert history["loss"][-1] < history["loss"][0]
    assert model.nearest("tea", 1)[0][0] == "sea"
    assert model.nearest("ship", 1)[0][0] == "cup"
    assert model.similarity("tea", "sea") == pytest.approx(model.nearest("tea", 4)[0][1], rel=1e-5)
    assert [word for word, _ in model.nearest("tea")] == [word for word, _ in sorted(model.nearest("tea"), key=lambda pair: -pair[1])]
    model.save(tmp_path / "vectors.safetensors")
    twin = fs.load(tmp_path / "vectors.safetensors")
    assert twin.vocabulary == WORDS
    assert twin.nearest("tea") == model.nearest("tea")


def test_a_training_goes_on_exactly(tmp_path):
    def run(epochs, checkpoint=None):
        model = SkipGram(WORDS, 8, rng=0)
        adagrad = fs.optim.Adagrad(model.parameters(), lr=0.3)
        batches = SkipGramBatches(text(), 5, batch_size=256, subsample=1, rng=0)
        schedule = fs.optim.CosineDecay(adagrad, 100)
        fs.training.fit(model, batches, optimizer=adagrad, epochs=epochs, schedule=schedule, checkpoint=checkpoint, progress=False)
        return model.state_dict()

    whole = run(4)
    run(2, tmp_path / "checkpoint")
    resumed = run(4, tmp_path / "checkpoint")
    for name, array in whole.items():
        assert_same_bits(resumed[name], array, name)


def test_pytorch_takes_the_same_steps(rng):
    torch = pytest.importorskip("torch")
    model = SkipGram(WORDS, 8, negatives=2, rng=0)
    words, neighbours = (torch.nn.Embedding(5, 8, sparse=True, dtype=torch.float64) for _ in range(2))
    for theirs, ours in ((words, model.words), (neighbours, model.neighbours)):
        theirs.weight.data = torch.tensor(ours.weight.data, dtype=torch.float64)
    mine = fs.optim.SparseAdam(model.parameters(), lr=0.05)
    theirs = torch.optim.SparseAdam([words.weight, neighbours.weight], lr=0.05)
    for _ in range(25):
        batch = [rng.integers(0, 5, n) for n in (6, 6, 3)]
        w, n, d = (torch.from_numpy(part) for part in batch)
        against = torch.nn.functional.logsigmoid(-words(w) @ neighbours(d).T)
        loss = -(torch.nn.functional.logsigmoid((words(w) * neighbours(n)).sum(1)) + 2 * against.mean(1)).mean()
        theirs.zero_grad()
        mine.zero_grad()
        loss.backward()
        ours = model.loss(*batch)
        ours.backward()
        assert ours.item() == pytest.approx(loss.item(), rel=1e-4)
        theirs.step()
        mine.step()
    np.testing.assert_allclose(model.words.weight.data, words.weight.detach().numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SkipGram(WORDS, 0), ValueError, "embedding_dim: expected"),
        (lambda: SkipGram(WORDS, 4, negatives=0), ValueError, "negatives: expected more than 0, got 0"),
        (lambda: SkipGram(None, 4), TypeError, "vocabulary: expected"),
        (lambda: SkipGram(WORDS, 4).nearest("moon"), ValueError, "text: the model's vocabulary has no 'moon'"),
        (lambda: SkipGramBatches([[1, 2]], 5), ValueError, r"ids: expected shape \(n,\), got \(1, 2\)"),
        (lambda: SkipGramBatches([0, 1, 5], 5), ValueError, r"ids: expected at least two ids in \[0, 5\), got 3 from 0 to 5"),
        (lambda: SkipGramBatches([0], 5), ValueError, "ids: expected at least two ids"),
        (lambda: SkipGramBatches([0.5, 1.0], 5), TypeError, "ids: expected integer ids, got float64"),
        (lambda: SkipGramBatches([0, 1], 5, window=0), ValueError, "window: expected an integer in"),
        (lambda: SkipGramBatches([0, 1], 5, drawn=1.5), TypeError, "drawn: expected an integer, got float"),
        (lambda: SkipGramBatches([0, 1], 5, subsample=0), ValueError, "subsample: expected more than 0 and at most 1, got 0"),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_accumulated_and_clipped_row_gradients_are_those_of_whole_tables():
    def run(sparse):
        model = SkipGram(WORDS, 8, rng=0)
        model.words.sparse = model.neighbours.sparse = sparse
        adagrad = fs.optim.Adagrad(model.parameters(), lr=0.3)
        batches = SkipGramBatches(text(50), 5, batch_size=64, subsample=1, rng=0)
        history = fs.training.fit(model, batches, optimizer=adagrad, epochs=2, accumulate=3, max_norm=0.5, progress=False)
        assert type(model.words.weight.grad) is (fs.RowGradient if sparse else np.ndarray)
        return model, history["loss"]

    (rows, losses), (whole, same) = run(True), run(False)
    assert losses == pytest.approx(same, rel=1e-6)
    np.testing.assert_allclose(rows.words.weight.data, whole.words.weight.data, atol=1e-5)
