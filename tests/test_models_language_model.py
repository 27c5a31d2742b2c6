"""Language models of every cell and the transformer: what they compute, state, loss, decoding step by step, files."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import models
from fastseq.models import language_model
from tests.finite_differences import assert_gradient

CELLS = ["lstm", "gru", "rnn", "mut1", "mut2", "mut3"]


def built(cell, **options):
    sizes = (8, 16) if cell == "transformer" else (4, 8)
    return models.LanguageModel("abcde ", *sizes, cell=cell, heads=2, rng=0, **options)


@pytest.fixture
def model():
    return built("lstm", dropout=0.5)


def ids_of(model, T=5, B=3, seed=0):
    return np.random.default_rng(seed).integers(0, len(model.vocabulary), (T, B))


@pytest.mark.parametrize("cell", CELLS)
def test_language_model_is_embedding_cell_linear(cell):
    model = built(cell, dropout=0.5).eval()
    ids = ids_of(model)
    logits, state = model(ids)
    y, own = getattr(model, cell)(model.embedding.weight.data[ids])
    assert logits.shape == (5, 3, 6)
    assert np.array_equal(logits, model.head(y))
    assert isinstance(state, tuple)
    assert np.array_equal(state[0], own[0] if cell == "lstm" else own)
    first, state = model(ids[:1])
    rest, _ = model(ids[1:], state)
    assert np.array_equal(np.concatenate([first, rest]), logits)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_transformer_is_embedding_positions_causal_layers_linear(positions):
    model = built("transformer", num_layers=2, positions=positions).eval()
    ids = ids_of(model)
    logits, state = model(ids)
    scale = np.float32(8**0.5 if positions == "sinusoidal" else 1)
    x = model.positions(model.embedding.weight.data[ids] * scale)
    assert state is None
    assert np.array_equal(logits, model.head(model.transformer(x, is_causal=True)))
    changed = ids.copy()
    changed[3] = (changed[3] + 1) % 6
    assert np.array_equal(model(changed)[0][:3], logits[:3])
    cache = fs.nn.KeyValueCache()
    parts = [model(part, cache)[0] for part in (ids[:2], ids[2:3], ids[3:])]
    assert np.allclose(np.concatenate(parts), logits, rtol=1e-4, atol=1e-5)


def test_a_transformer_starts_as_gpt_2_does():
    model = models.LanguageModel(50, 64, 256, cell="transformer", num_layers=8, rng=0)
    state = model.state_dict()
    assert abs(state["embedding.weight"].std() - 0.02) < 2e-3
    assert abs(state["transformer.layers.3.linear1.weight"].std() - 0.02) < 2e-3
    assert abs(state["transformer.layers.3.linear2.weight"].std() - 0.02 / 4) < 5e-4
    assert not np.array_equal(state["transformer.layers.0.linear1.weight"], state["transformer.layers.1.linear1.weight"])
    assert not state["head.bias"].any()
    assert (state["transformer.norm.weight"] == 1).all()
    other = models.LanguageModel(50, 64, cell="transformer", positions="sinusoidal", rng=0)
    assert abs(other.embedding.weight.data.std() - 1 / 8) < 0.01


def test_language_model_drops_while_training_only(model):
    ids = np.zeros((50, 4), np.int64)
    assert not np.array_equal(model(ids)[0], model(ids)[0])
    model.eval()
    assert np.array_equal(model(ids)[0], model(ids)[0])
    assert (model.input_dropout.p, model.output_dropout.p) == (0.25, 0.5)
    assert built("gru", dropout=0.5, num_layers=2).gru.dropout == 0.5
    assert built("transformer", dropout=0.5).transformer.layers[0].dropout.p == 0.5


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("kept_logits", [0, 2**24])
@pytest.mark.parametrize("cell", [*CELLS, "transformer"])
def test_the_loss_is_the_mean_cross_entropy_and_trains_every_parameter(cell, tie_weights, kept_logits, monkeypatch):
    monkeypatch.setattr(language_model, "_KEPT_LOGITS", kept_logits)
    model = models.LanguageModel("abcde ", 8, 8, cell=cell, heads=2, num_layers=2, tie_weights=tie_weights, max_length=5, rng=0)
    ids, targets = ids_of(model), ids_of(model, seed=1)
    targets[2:, 1] = -100
    loss = model.loss(ids, targets)
    logits, _ = model(ids)
    wanted = fs.functional.cross_entropy(logits.reshape(-1, 6), targets.reshape(-1))
    assert np.allclose(loss.item(), wanted, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    assert (model.head.weight is model.embedding.weight) == tie_weights


@pytest.mark.parametrize("options", [*({"cell": cell, "num_layers": 2} for cell in CELLS), *({"cell": "transformer", "positions": p} for p in ("learned", "sinusoidal"))])
def test_every_gradient_agrees_with_differences(options):
    rng = np.random.default_rng(1)
    model = built(**options, dtype=np.float64)
    inputs, targets = ids_of(model, 3, 2), ids_of(model, 3, 2, seed=1)
    model.loss(inputs, targets).backward()
    for name, parameter in model.named_parameters():
        assert_gradient(parameter.grad, lambda: model.loss(inputs, targets).item(), parameter.data, name, rng)


@pytest.mark.parametrize("cell", CELLS)
def test_the_loss_after_a_state(cell):
    model = built(cell)
    ids, targets = ids_of(model, 6), ids_of(model, 6, seed=1)
    _, state = model(ids[:3])
    first, second = model.loss(ids[:3], targets[:3]), model.loss(ids[3:], targets[3:], state)
    assert np.allclose((first.item() + second.item()) / 2, model.loss(ids, targets).item(), rtol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", [*CELLS, "transformer"])
def test_decoding_step_by_step_equals_the_full_forward(cell, num_layers):
    model = built(cell, num_layers=num_layers).eval()
    ids = ids_of(model, 7)
    logits, _ = model(ids)
    decoding = model.decoding(ids[:3])
    steps = [decoding.logits, *(decoding.step(tokens) for tokens in ids[3:])]
    if cell != "transformer":
        assert np.array_equal(steps, logits[2:])  # steps have the bits of the sequence
    assert np.allclose(steps, logits[2:], rtol=1e-4, atol=1e-5)
    assert decoding.logits is steps[-1]


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer"])
def test_prompts_of_unequal_lengths_are_read_to_their_ends(cell):
    model = built(cell, num_layers=2).eval()
    ids, lengths = ids_of(model, 4), np.array([4, 1, 2])
    decoding = model.decoding(ids, lengths)
    for step in range(3):
        for row, length in enumerate(lengths):
            text = [*ids[:length, row], *range(step)]
            assert np.allclose(decoding.logits[row], model(np.array(text)[:, None])[0][-1, 0], rtol=1e-4, atol=1e-5)
        decoding.step(np.full(3, step))


@pytest.mark.parametrize("cell", ["lstm", "gru", "transformer"])
def test_rows_of_a_decoding_are_selected(cell):
    model = built(cell).eval()
    ids = ids_of(model)
    for rows in ([2, 0, 0, 1], [1], [1, 2, 0]):
        decoding, wanted = model.decoding(ids), model.decoding(ids[:, rows])
        decoding.select(np.array(rows))
        assert np.allclose(decoding.logits, wanted.logits, rtol=1e-4, atol=1e-5)
        tokens = np.arange(len(rows))
        assert np.allclose(decoding.step(tokens), wanted.step(tokens), rtol=1e-4, atol=1e-5)


def test_what_a_prompt_may_be(model):
    assert model.prompt_ids("ab").tolist() == [[1], [2]]
    assert model.prompt_ids("").tolist() == [[0]]
    assert model.prompt_ids([3, 4]).tolist() == [[3], [4]]
    assert models.LanguageModel("ab\nc", 4, 8).prompt_ids("").tolist() == [[0]]
    started = models.LanguageModel(models.Vocabulary("ab", padding="_", start="^"), 4, 8)
    assert started.prompt_ids("b").tolist() == [[1], [3]]
    assert started.prompt_ids("").tolist() == [[1]]


def test_decoding_refuses(model):
    with pytest.raises(ValueError, match="prompt: the model's vocabulary has no 'x'"):
        model.decoding("abx")
    for wrong in (np.zeros((0, 2), int), np.zeros(3), np.zeros((1, 1, 1), int)):
        with pytest.raises(ValueError, match="prompt: expected integers"):
            model.decoding(wrong)
    for wrong in ([0, 1], [3, 1], [1]):
        with pytest.raises(ValueError, match="lengths: expected 2 integers from 1 to 2"):
            model.decoding(np.zeros((2, 2), int), wrong)
    for outside in (-1, 6):
        with pytest.raises(IndexError, match="6"):
            model.decoding("a").step(np.array([outside]))


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("cell", [*CELLS, "transformer"])
def test_a_model_comes_back_from_its_file(cell, tie_weights, tmp_path):
    vocabulary = models.Vocabulary(["the", "cat", "sat"], separator=" ", unknown="?")
    options = {"cell": cell, "num_layers": 2, "dropout": 0.5, "tie_weights": tie_weights, "heads": 2, "max_length": 9, "positions": "sinusoidal"}
    model = models.LanguageModel(vocabulary, 8, 8, **options, rng=0).eval()
    model.save(tmp_path / "model")
    twin = fs.load(tmp_path / "model")
    assert isinstance(twin, models.LanguageModel)
    assert twin.vocabulary == vocabulary
    assert twin.configuration() == model.configuration()
    assert (twin.head.weight is twin.embedding.weight) == tie_weights
    ids = ids_of(model)
    assert np.array_equal(twin(ids)[0], model(ids)[0])


def test_a_model_of_characters_alone_is_made_from_their_string():
    old = {"vocabulary": "abcde ", "embedding_size": 4, "hidden_size": 8, "cell": "lstm", "dropout": 0.5}
    model = models.LanguageModel.from_configuration(old)
    assert model.vocabulary == models.Vocabulary("abcde ")


def test_models_that_there_cannot_be():
    with pytest.raises(ValueError, match="cell: expected one of lstm, gru, rnn, mut1, mut2, mut3, transformer, got 'tree'"):
        models.LanguageModel("ab", cell="tree")
    with pytest.raises(ValueError, match="positions: expected one of learned, sinusoidal, got 'none'"):
        models.LanguageModel("ab", cell="transformer", positions="none")
    with pytest.raises(ValueError, match="tie_weights: expected embedding_size = hidden_size, got 4 and 8"):
        models.LanguageModel("ab", 4, 8, tie_weights=True)
    model = models.LanguageModel("ab", 8, 8, cell="transformer", max_length=3)
    with pytest.raises(ValueError, match="max_length = 3"):
        model(np.zeros((4, 1), int))
