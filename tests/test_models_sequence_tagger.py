"""SequenceTagger: words and their spelling, one head or two, gradients, PyTorch's outputs, saving."""

import numpy as np
import pytest

import fastseq as fs
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close

WORDS = fs.models.Vocabulary(["the", "dog", "barks", "at", "a", "cat"], separator=" ", unknown="<unk>", padding="<pad>")
LETTERS = fs.models.Vocabulary("abcdefghijklmnopqrstuvwxyz", unknown="?", padding="_")
TAGS = ["DET", "NOUN", "VERB", "ADP"]
SENTENCES = [["the", "dog", "barks", "at", "a", "squirrel"], ["a", "cat"], ["dog", "barks", "the"]]
TAGGED = [[0, 1, 2, 3, 0, 1], [0, 1], [1, 2, 0]]


def made(**options):
    return fs.models.SequenceTagger(WORDS, TAGS, 6, 4, **{"characters": LETTERS, "character_embedding_size": 3, "character_hidden_size": 2,
                                                          "word_length": 6, "rng": 0} | options)  # fmt: skip


def batch(model):
    """tokens, lengths, tags."""
    tags, _ = fs.nn.pad_sequences(TAGGED, padding_value=-100)
    return *fs.nn.pad_sequences([model.encode(words) for words in SENTENCES]), tags


KINDS = [{}, {"characters": None}, {"classes": 3}, {"characters": None, "classes": ["x", "y"], "cell": "gru"}, {"num_layers": 2, "bidirectional": False}]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_gradients_of_every_parameter(options, rng):
    model = made(dtype=np.float64, **options)
    arguments = batch(model) + (([1, 0, 1],) if model.classes else ())
    model.loss(*arguments).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name
        assert_gradient(parameter.grad, lambda: model.loss(*arguments).item(), parameter.data, name, rng)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_padding_and_the_rows_around_change_nothing(options):
    model = made(dtype=np.float64, **options)
    *inputs, _ = batch(model)
    together = model(*inputs)
    for k, words in enumerate(SENTENCES):
        alone = model(model.encode(words)[:, None])
        if model.classes:
            assert_close(alone[1][0], together[1][k], terms=100)
        logits, of_all = (alone[0], together[0]) if model.classes else (alone, together)
        assert logits.shape == (len(words), 1, 4)
        assert_close(logits[:, 0], of_all[: len(words), k], terms=100)


def test_a_word_is_its_row_and_its_spelling_in_both_directions():
    model = made()
    tokens = model.encode(["barks", "at"])
    _, (h, _) = model.speller.lstm(model.speller.embedding(tokens[:, 1:].T), lengths=[5, 2])
    x = np.concatenate([model.encoder.embedding(tokens[:, 0]), h[0], h[1]], axis=1)
    y, _ = model.encoder.lstm(x[:, None])
    assert_close(model(tokens[:, None]), model.head(y), terms=20)


def test_both_ends_of_a_long_word_are_read():
    model = made(word_length=6)
    assert LETTERS.decode(model.encode(["abcdefghij", "abc"])[:, 1:]) == "abchijabc___"
    assert LETTERS.decode(made(word_length=5).encode(["abcdefghij"])[:, 1:]) == "abhij"


def test_unknown_words_are_told_apart_by_their_spelling():
    model = made()
    first, second = (model(model.encode([word])[:, None]) for word in ("squirrel", "running"))
    assert not np.array_equal(first, second)


def test_sentences_get_names():
    model = made(dropout=0.5)
    found = model.tag(SENTENCES, batch_size=2)
    *inputs, _ = batch(model)
    assert model.training
    best = model.eval()(*inputs).argmax(axis=2).T
    assert found == [[TAGS[k] for k in row[: len(words)]] for row, words in zip(best, SENTENCES, strict=True)]
    assert model.tag([]) == []
    two = made(classes=["question", "answer"]).tag(SENTENCES)
    assert [len(tags) for tags, _ in two] == [6, 2, 3]
    assert {kind for _, kind in two} <= {"question", "answer"}


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_one_file_holds_all_of_it(options, tmp_path):
    model = made(**options)
    model.save(tmp_path / "model")
    twin = fs.load(tmp_path / "model")
    assert twin.configuration() == model.configuration()
    assert (twin.vocabulary, twin.characters) == (model.vocabulary, model.characters)
    assert twin.tag(SENTENCES) == model.tag(SENTENCES)


def test_it_learns_tags_and_classes():
    model = made(classes=3)
    adam = fs.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(40):
        adam.zero_grad()
        model.loss(*batch(model), [2, 0, 1]).backward()
        adam.step()
    assert model.tag(SENTENCES) == [([TAGS[t] for t in tags], k) for tags, k in zip(TAGGED, [2, 0, 1], strict=True)]


def test_pytorch_agrees():
    torch = pytest.importorskip("torch")
    model = made(dtype=np.float64, num_layers=2)
    tokens, lengths, _ = batch(model)
    ids, spelling = tokens[..., 0], tokens[..., 1:]
    weights = {name: torch.from_numpy(w) for name, w in model.state_dict().items()}

    def run(prefix, inputs, x, lengths, layers):
        lstm = torch.nn.LSTM(inputs, 4 if prefix == "encoder" else 2, layers, bidirectional=True, dtype=torch.float64)
        lstm.load_state_dict({name.removeprefix(f"{prefix}.lstm."): w for name, w in weights.items() if name.startswith(f"{prefix}.lstm")})
        return lstm(torch.nn.utils.rnn.pack_padded_sequence(x, torch.from_numpy(lengths), enforce_sorted=False))

    real = np.arange(len(ids))[:, None] < lengths
    words = spelling[real]
    letters = weights["speller.embedding.weight"][torch.from_numpy(words.T)]
    _, (h, _) = run("speller", 3, letters, (words != LETTERS.padding_id).sum(1), 1)
    spelled = torch.zeros((*ids.shape, 4), dtype=torch.float64)
    spelled[torch.from_numpy(real)] = torch.cat([h[0], h[1]], 1)
    x = torch.cat([weights["encoder.embedding.weight"][torch.from_numpy(ids)], spelled], 2)
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(run("encoder", 10, x, lengths, 2)[0])
    want = (y @ weights["head.weight"].T + weights["head.bias"]).detach().numpy()
    assert_close(model(tokens, lengths), want, terms=300)


def test_refusals():
    with pytest.raises(ValueError, match="characters: expected a vocabulary with a padding token"):
        made(characters="abc")
    with pytest.raises(ValueError, match="cell: expected one of"):
        made(cell="transformer")
    model = made()
    tokens, lengths, _ = batch(model)
    with pytest.raises(ValueError, match=r"tokens: expected shape \(T, B, 7\), got \(6, 3\)"):
        model(tokens[..., 0], lengths)
    with pytest.raises(ValueError, match=r"tokens: expected shape \(T, B\), got \(6, 3, 7\)"):
        made(characters=None)(tokens, lengths)
    with pytest.raises(ValueError, match="lengths"):
        model(tokens, [7, 1, 1])
    with pytest.raises(TypeError, match="sentences: expected several, got one; put it into a list"):
        model.tag("the dog")


def test_a_string_is_split_as_the_vocabulary_does_it():
    model = made().eval()
    assert np.array_equal(model.encode("the  dog barks"), model.encode(["the", "dog", "barks"]))
    assert model.tag(["the dog"]) == model.tag([["the", "dog"]])


def test_a_word_may_hold_the_character_of_padding():
    model = made().eval()
    one, other = (model(model.encode([word])[:, None]) for word in ("x", "x_yz"))
    assert not np.array_equal(one, other)
