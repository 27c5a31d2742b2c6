"""SequenceClassifier: each pooling by its equation, gradients, PyTorch's outputs, texts of unequal lengths, saving."""

import numpy as np
import pytest

import fastseq as fs
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close

WORDS = fs.models.Vocabulary("abcdefg", unknown="?", padding="_", start="^")
KINDS = [("lstm", "last"), ("gru", "mean"), ("lstm", "attention"), ("rnn", "last"), ("mut1", "attention"),
         ("transformer", "cls"), ("transformer", "mean"), ("transformer", "attention")]  # fmt: skip
IDS = WORDS.encode("abcdefgabcdefga").reshape(5, 3)
LENGTHS = np.array([5, 2, 4])


def made(cell, pooling, **options):
    return fs.models.SequenceClassifier(WORDS, 3, 6, 4, cell=cell, pooling=pooling, **{"heads": 2, "max_length": 12, "rng": 0} | options)


@pytest.mark.parametrize(("cell", "pooling"), KINDS)
def test_gradients_of_every_parameter(cell, pooling, rng):
    model = made(cell, pooling, dtype=np.float64, num_layers=2)
    labels = np.array([2, 0, 1])
    model.loss(IDS, LENGTHS, labels).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name
        assert_gradient(parameter.grad, lambda: model.loss(IDS, LENGTHS, labels).item(), parameter.data, name, rng)


@pytest.mark.parametrize(("cell", "pooling"), KINDS)
def test_padding_and_the_rows_around_change_nothing(cell, pooling):
    model = made(cell, pooling, dtype=np.float64)
    together = model(IDS, LENGTHS)
    other = IDS.copy()
    other[2:, 1] = WORDS.id("g")
    assert np.array_equal(model(other, LENGTHS), together)
    for k, n in enumerate(LENGTHS):
        assert_close(model(IDS[:n, k : k + 1])[0], together[k], terms=100)
    assert_close(model(fs.Tensor(IDS), LENGTHS).data, together)


def test_each_pooling_is_what_it_says():
    x = IDS[:, :1]
    for pooling in ("last", "mean", "attention"):
        model = made("lstm", pooling)
        y, (h, _) = model.encoder.lstm(model.encoder.embedding(x))
        want = {"last": np.concatenate([h[0], h[1]], axis=1), "mean": y.mean(axis=0), "attention": model.pool(y) if model.pool else None}[pooling]
        assert_close(model(x), model.head(want), terms=20)
    model = made("lstm", "last", bidirectional=False)
    assert_close(model(x), model.head(model.encoder.lstm(model.encoder.embedding(x))[1][0][0]), terms=20)
    model = made("transformer", "cls")
    marked = np.concatenate([[[WORDS.start_id]], x])
    assert_close(model(x), model.head(model.encoder(marked)[0]), terms=20)


@pytest.mark.parametrize(("cell", "pooling"), [kind for kind in KINDS if kind[1] in ("attention", "cls")])
def test_what_it_looked_at_sums_to_one_within_each_text(cell, pooling):
    weights = made(cell, pooling, dropout=0.5).attention(IDS, LENGTHS)
    assert_close(weights.sum(axis=1), np.ones(3), terms=10)
    assert not weights[1, 2:].any()
    assert weights[0].all()


def test_dropout_in_training_only():
    model = made("transformer", "cls", dropout=0.5, num_layers=2)
    assert not np.array_equal(model(IDS), model(IDS))
    assert np.array_equal(model.scores(["abc"]), model.scores(["abc"]))
    assert model.training
    model.eval()
    assert np.array_equal(model(IDS), model(IDS))


def test_layers_of_a_transformer_start_apart():
    first, second = made("transformer", "cls", num_layers=2).encoder.transformer.layers
    assert not np.array_equal(first.linear1.weight.data, second.linear1.weight.data)


def test_texts_get_names():
    model = fs.models.SequenceClassifier(WORDS, ["good", "bad"], 8, 8, rng=0)
    texts = ["abc", "", "fff", "xyz", ["a", "b"]]
    scores = model.scores(texts, batch_size=2)
    assert scores.shape == (5, 2)
    assert model.classify(texts) == [["good", "bad"][k] for k in scores.argmax(axis=1)]
    assert_close(scores[0], model(WORDS.encode("abc")[:, None])[0], terms=20)
    assert model.classify([]) == []


@pytest.mark.parametrize(("cell", "pooling"), KINDS)
def test_one_file_holds_all_of_it(cell, pooling, tmp_path):
    model = made(cell, pooling, dropout=0.25, num_layers=2, dtype=np.float64)
    model.save(tmp_path / "model")
    twin = fs.load(tmp_path / "model")
    assert twin.vocabulary == WORDS
    assert twin.configuration() == model.configuration()
    assert np.array_equal(twin(IDS, LENGTHS), model.eval()(IDS, LENGTHS))


def test_it_learns_which_letter_came_first():
    draws = np.random.default_rng(0)
    for cell, pooling in (("gru", "last"), ("transformer", "cls")):
        model = fs.models.SequenceClassifier(WORDS, 3, 16, 16, cell=cell, pooling=pooling, bidirectional=False, rng=0)
        adam = fs.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(80):
            ids = draws.integers(3, 6, (5, 32))
            loss = model.loss(ids, np.full(32, 5), ids[0] - 3)
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert loss.item() < 0.2, cell


@pytest.mark.parametrize(("cell", "pooling"), [("lstm", "last"), ("gru", "mean"), ("transformer", "mean"), ("transformer", "cls")])
def test_pytorch_agrees(cell, pooling):
    torch = pytest.importorskip("torch")
    model = made(cell, pooling, num_layers=2, dtype=np.float64)
    weights = {name: torch.from_numpy(value) for name, value in model.encoder.state_dict().items()}
    marked, lengths = (np.concatenate([np.full((1, 3), WORDS.start_id), IDS]), LENGTHS + 1) if pooling == "cls" else (IDS, LENGTHS)
    x = weights["embedding.weight"][torch.from_numpy(marked)]
    if cell == "transformer":
        layer = torch.nn.TransformerEncoderLayer(6, 2, 4, 0.0, "gelu", norm_first=True, dtype=torch.float64)
        theirs = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(6, dtype=torch.float64), enable_nested_tensor=False)
        theirs.load_state_dict({name.removeprefix("transformer."): w for name, w in weights.items() if name.startswith("transformer.")})
        padding = torch.arange(len(marked)) >= torch.from_numpy(lengths)[:, None]
        y = theirs(x + weights["positions.weight"][: len(marked), None], src_key_padding_mask=padding)
    else:
        theirs = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](6, 4, 2, bidirectional=True, dtype=torch.float64)
        theirs.load_state_dict({name.removeprefix(f"{cell}."): w for name, w in weights.items() if name.startswith(cell)})
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(lengths), enforce_sorted=False)
        y, state = theirs(packed)
        y, last = torch.nn.utils.rnn.pad_packed_sequence(y)[0], (state[0] if cell == "lstm" else state)[-2:]
    inside = (torch.arange(len(y))[:, None] < torch.from_numpy(lengths))[..., None]
    pooled = {"last": lambda: torch.cat([*last], 1), "cls": lambda: y[0], "mean": lambda: (y * inside).sum(0) / inside.sum(0)}[pooling]()
    want = pooled @ torch.from_numpy(model.head.weight.data).T + torch.from_numpy(model.head.bias.data)
    assert_close(model(IDS, LENGTHS), want.detach().numpy(), terms=300)


def test_refusals():
    with pytest.raises(ValueError, match="pooling: expected 'cls', 'mean' or 'attention', got 'last'"):
        made("transformer", "last")
    with pytest.raises(ValueError, match="pooling: expected 'last', 'mean' or 'attention', got 'cls'"):
        made("lstm", "cls")
    with pytest.raises(ValueError, match="cell: expected one of"):
        made("tree", "last")
    with pytest.raises(ValueError, match="vocabulary: expected one with a start token"):
        fs.models.SequenceClassifier("abc", 2, cell="transformer", pooling="cls")
    for classes in ("ab", [], ["a", "a"], 0):
        with pytest.raises(ValueError, match="classes: expected"):
            fs.models.SequenceClassifier("abc", classes)
    model = made("lstm", "last")
    with pytest.raises(ValueError, match=r"ids: expected shape \(T, B\), got \(5,\)"):
        model(IDS[:, 0])
    with pytest.raises(ValueError, match="lengths: expected integers from 0 to 5"):
        model(IDS, [6, 1, 1])
    with pytest.raises(IndexError):
        model(IDS + 10)
    with pytest.raises(ValueError, match="pooling: expected 'attention' or 'cls', got 'last'"):
        model.attention(IDS)
    with pytest.raises(TypeError, match="texts: expected several, got one; put it into a list"):
        model.classify("a good film")
