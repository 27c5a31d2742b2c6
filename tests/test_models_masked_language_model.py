"""MaskedLanguageModel: what is hidden and asked, pairs, gradients, PyTorch's outputs, fine-tuning with frozen parts, saving."""

import numpy as np
import pytest

import fastseq as fs
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close

SPECIAL = {"padding": "[PAD]", "unknown": "[UNK]", "start": "[CLS]", "stop": "[SEP]"}
WORDS = fs.models.Vocabulary(["[MASK]", *"abcdefghij"], separator=" ", **SPECIAL)
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
PAIRS = [("a b c", "d e"), ("f g", None), ("h", "i j a")]


def made(**options):
    return fs.models.MaskedLanguageModel(WORDS, 6, 10, **{"heads": 2, "max_length": 12, "dropout": 0.0, "rng": 0} | options)


def batch(model):
    """ids, lengths, segments, asked words and answers."""
    ids, segments = (fs.nn.pad_sequences(column) for column in zip(*(model.pair(*pair) for pair in PAIRS), strict=True))
    words = np.full(ids[0].shape, -100)
    words[1:3] = ids[0][1:3]
    words[words < 5] = -100
    return ids[0], ids[1], segments[0], words, np.array([1, 0, 1])


def test_a_pair_is_marked():
    ids, segments = made().pair("a b", "c x")
    assert ids.tolist() == [CLS, 5, 6, SEP, 7, UNKNOWN, SEP]
    assert segments.tolist() == [0, 0, 0, 0, 1, 1, 1]
    ids, segments = made().pair(["a"])
    assert (ids.tolist(), segments.tolist()) == ([CLS, 5, SEP], [0, 0, 0])


def test_fifteen_of_a_hundred_are_asked_eighty_ten_ten():
    ids = np.random.default_rng(0).integers(0, len(WORDS), (400, 500))
    inputs, asked = fs.models.mask_tokens(ids, WORDS, 1)
    chosen, special = asked != -100, ids < 5
    assert not chosen[special].any()
    assert np.array_equal(asked[chosen], ids[chosen])
    assert np.array_equal(inputs[~chosen], ids[~chosen])
    assert chosen[~special].mean() == pytest.approx(0.15, abs=0.005)
    hidden, kept = inputs[chosen] == MASK, inputs[chosen] == ids[chosen]
    assert hidden.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / 10, abs=0.01)  # a random word may be the same
    random = inputs[chosen][~hidden]
    assert set(random.tolist()) == set(range(5, 15))
    again, _ = fs.models.mask_tokens(ids, WORDS, 1)
    assert np.array_equal(again, inputs)


def test_something_is_always_asked():
    for seed in range(20):
        _, asked = fs.models.mask_tokens(WORDS.encode("[CLS] a b [SEP]"), WORDS, seed, probability=0.01)
        assert (asked != -100).sum() == 1
    assert (fs.models.mask_tokens(WORDS.encode("a b c"), WORDS, 0, probability=0.0)[1] == -100).all()
    assert (fs.models.mask_tokens(WORDS.encode("[CLS] [SEP]"), WORDS, 0)[1] == -100).all()


def test_gradients_of_every_parameter(rng):
    model = made(dtype=np.float64)
    arguments = batch(model)
    model.loss(*arguments).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name
        assert_gradient(parameter.grad, lambda: model.loss(*arguments).item(), parameter.data, name, rng)


def test_the_loss_is_that_of_the_asked_words_and_of_the_answers():
    model = made(dtype=np.float64)
    ids, lengths, segments, words, follows = batch(model)
    logits, answers = model(ids, lengths, segments)
    asked = words != -100
    one = fs.functional.cross_entropy(logits[asked], words[asked])
    assert_close(model.loss(ids, lengths, segments, words).data, one, terms=100)
    assert_close(model.loss(ids, lengths, segments, words, follows).data, one + fs.functional.cross_entropy(answers, follows), terms=100)


def test_padding_and_the_rows_around_change_nothing():
    model = made(dtype=np.float64)
    ids, lengths, segments, *_ = batch(model)
    logits, follows = model(ids, lengths, segments)
    for k, n in enumerate(lengths):
        alone = model(ids[:n, k : k + 1], None, segments[:n, k : k + 1])
        assert_close(alone[0][:, 0], logits[:n, k], terms=200)
        assert_close(alone[1][0], follows[k], terms=200)
    assert_close(model(ids, lengths)[0], model(ids, lengths, np.zeros_like(ids))[0])


def test_pytorch_agrees():
    torch = pytest.importorskip("torch")
    model = made(dtype=np.float64)
    w = {name: torch.from_numpy(value) for name, value in model.state_dict().items()}
    layer = torch.nn.TransformerEncoderLayer(6, 2, 10, 0.0, "gelu", norm_first=True, dtype=torch.float64)
    theirs = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(6, dtype=torch.float64), enable_nested_tensor=False)
    theirs.load_state_dict({name.removeprefix("encoder.transformer."): v for name, v in w.items() if name.startswith("encoder.transformer.")})
    ids, lengths, segments, *_ = batch(model)
    table, T = w["encoder.embedding.weight"], len(ids)
    x = table[torch.from_numpy(ids)] + w["encoder.segments.weight"][torch.from_numpy(segments)] + w["encoder.positions.weight"][:T, None]
    y = theirs(x, src_key_padding_mask=torch.arange(T) >= torch.from_numpy(lengths)[:, None])
    h = torch.nn.functional.gelu(y @ w["transform.weight"].T + w["transform.bias"])
    logits = torch.nn.functional.layer_norm(h, (6,), w["norm.weight"], w["norm.bias"]) @ table.T + w["bias"]
    follows = y[0] @ w["next_sentence.weight"].T + w["next_sentence.bias"]
    got = model(ids, lengths, segments)
    real = np.arange(T)[:, None] < lengths
    assert_close(got[0][real], logits.detach().numpy()[real], terms=300)
    assert_close(got[1], follows.detach().numpy(), terms=300)


def test_it_learns_what_follows_and_fills_in():
    """Texts count through the alphabet: the hidden letter is the one between its neighbours, and b follows a where it counts on."""
    model, draws = fs.models.MaskedLanguageModel(WORDS, 32, 64, dropout=0.0, rng=0), np.random.default_rng(0)
    adam = fs.optim.Adam(model.parameters(), lr=3e-3)
    first = np.array([CLS, 0, 0, 0, SEP, 0, 0, 0, SEP])
    segments = np.repeat([0, 1], [5, 4])[:, None].repeat(64, axis=1)
    for _ in range(150):
        start, follows = draws.integers(10, size=64), draws.integers(2, size=64)
        second = start + 3 + (1 - follows) * draws.integers(1, 10, 64)
        ids = first[:, None].repeat(64, axis=1)
        ids[1:4], ids[5:8] = 5 + (start + np.arange(3)[:, None]) % 10, 5 + (second + np.arange(3)[:, None]) % 10
        loss = model.loss(*mixed(ids, draws, segments), follows)
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert model.fill("c [MASK] e") == "c d e"
    assert model.training
    model.eval()
    for second, answer in (("d e f", 1), ("h i j", 0)):
        ids, of = model.pair("a b c", second)
        assert model(ids[:, None], None, of[:, None])[1].argmax() == answer


def mixed(ids, draws, segments):
    inputs, words = fs.models.mask_tokens(ids, WORDS, draws)
    return inputs, None, segments, words


def test_fine_tuning_begins_with_a_copy_of_the_encoder():
    bert = made(dtype=np.float64)
    model = bert.classifier(["no", "yes"], dropout=0.0, rng=1)
    assert isinstance(model, fs.models.SequenceClassifier)
    ids = WORDS.encode("a b c")[:, None]
    marked = np.concatenate([[[CLS]], ids])
    assert_close(model(ids), model.head(bert.encoder(marked)[0]), terms=20)
    model.encoder.embedding.weight.data[...] = 0
    assert bert.encoder.embedding.weight.data.any()


def test_frozen_parts_stay_as_they_are():
    model = made().classifier(2, rng=1)
    model.encoder.requires_grad_(False)
    before = model.state_dict()
    adam = fs.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.loss(WORDS.encode("a b c d")[:, None], [4], [1]).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    adam.step()
    for name, value in model.state_dict().items():
        assert np.array_equal(value, before[name]) == name.startswith("encoder"), name
    model.encoder.requires_grad_(True)
    model.loss(WORDS.encode("a b c d")[:, None], [4], [1]).backward()
    assert all(p.grad is not None for p in model.encoder.transformer.parameters())


def test_one_file_holds_all_of_it(tmp_path):
    model = made()
    model.save(tmp_path / "bert")
    twin = fs.load(tmp_path / "bert")
    assert twin.configuration() == model.configuration()
    ids, lengths, segments, *_ = batch(model)
    assert all(np.array_equal(a, b) for a, b in zip(twin(ids, lengths, segments), model.eval()(ids, lengths, segments), strict=True))
    model.classifier(["no", "yes"]).save(tmp_path / "classifier")
    assert fs.load(tmp_path / "classifier").classes == ["no", "yes"]


def test_refusals():
    with pytest.raises(ValueError, match=r"vocabulary: expected padding, start, stop and '\[MASK\]', got none for padding, start, stop, '\[MASK\]'"):
        fs.models.MaskedLanguageModel("abc")
    with pytest.raises(ValueError, match="probability"):
        fs.models.mask_tokens([5, 6], WORDS, 0, probability=1.5)
    with pytest.raises(ValueError, match=r"ids: expected shape \(T, B\)"):
        made()(np.array([2, 5, 3]))
