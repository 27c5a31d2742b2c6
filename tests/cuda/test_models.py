"""Models on a GPU: they read NumPy's texts, learn, write and go on from checkpoints as on the CPU."""

import json

import numpy as np
import pytest

import fastseq as fs
from fastseq.cli import main
from fastseq.functional import cross_entropy
from fastseq.generation import beam_search, generate
from fastseq.models import Vocabulary
from fastseq.training import Batches, CarriedState, TextStreams, TrainingDiverged, fit
from tests.tolerance import assert_close

_RNG = np.random.default_rng(0)
SPECIAL = {"padding": "[PAD]", "unknown": "[UNK]", "start": "[CLS]", "stop": "[SEP]"}
WORDS = Vocabulary(["[MASK]", *"abcdefgh"], separator=" ", **SPECIAL)
LETTERS = Vocabulary("abc", start="<s>", stop="</s>")
SPELLING = Vocabulary("abcdefgh", padding="_", unknown="?")
IDS, LENGTHS = _RNG.integers(6, 11, (6, 3)), np.array([6, 4, 5])


def written(model):
    """What a language model writes, and its scores in the middle of it."""
    texts = generate(model, "ab", max_length=4, rng=1)
    decoding = model.decoding(np.array([[0, 1], [1, 1]]), [2, 1])
    decoding.select(np.array([1, 0, 0]))
    decoding.step(np.array([1, 1, 1]))
    found = beam_search(model, "a", beams=2, max_length=3)
    return [*[text.tolist() for text in texts], *[h.ids.tolist() for h in found[0]]], host(decoding.logits)


def translated(model):
    source = np.array([[0, 1], [2, 1]])
    texts = generate(model, source, [2, 1], max_length=4, rng=1)
    found = beam_search(model, source, [2, 1], beams=2, max_length=3)
    return [text.tolist() for text in texts], [[h.ids.tolist() for h in row] for row in found]


def host(x):
    return x if isinstance(x, np.ndarray) else x.get()


def language_model(cell):
    return lambda: fs.models.LanguageModel("abc", 8, 8, num_layers=2, cell=cell, rng=0)


def translator(cell, attention="additive"):
    return lambda: fs.models.Seq2Seq("abc", LETTERS, 8, 8, cell=cell, attention=attention, rng=0)


def classifier(cell, pooling):
    return lambda: fs.models.SequenceClassifier(WORDS, 3, 8, 8, cell=cell, pooling=pooling, segments=2 * (cell == "transformer"), rng=0)


def speller():
    return fs.models.SequenceTagger(WORDS, ["x", "y"], 8, 8, characters=SPELLING, word_length=4, classes=["p", "q"], rng=0)


def skip_gram():
    model = fs.models.SkipGram(WORDS, 8, rng=0)
    model.neighbours.weight.data[...] = np.random.default_rng(5).standard_normal(model.neighbours.weight.shape) / 8
    return model


TEXT = (_RNG.integers(0, 3, (5, 2)), _RNG.integers(0, 3, (5, 2)))
PAIR = (_RNG.integers(0, 3, (5, 2)), np.array([5, 3]), _RNG.integers(2, 5, (4, 2)), np.array([4, 2]))
LABELLED = (IDS, LENGTHS, np.array([0, 1, 2]))
SPELLED = np.stack([speller().encode(["a", "b", "c"]), speller().encode(["d", "e", "f"])], axis=1)

#: A model, a batch of its loss, and what else it does.
MODELS = {
    **{f"language model, {cell}": (language_model(cell), TEXT, written) for cell in ("lstm", "gru", "rnn", "mut1", "transformer")},
    **{f"translator, {cell}": (translator(cell), PAIR, translated) for cell in ("lstm", "gru", "transformer")},
    "translator without attention": (translator("lstm", None), PAIR, translated),
    "classifier, last": (classifier("lstm", "last"), LABELLED, lambda m: m.classify(["a b", "c"])),
    "classifier, mean": (classifier("transformer", "mean"), (*LABELLED, (IDS > 7) * 1), lambda m: m.scores(["a b", "c"])),
    "classifier, attention": (classifier("lstm", "attention"), LABELLED, lambda m: m.attention(IDS, LENGTHS)),
    "classifier, cls": (classifier("transformer", "cls"), (*LABELLED, (IDS > 7) * 1), lambda m: m.attention(IDS, LENGTHS)),
    "tagger": (
        lambda: fs.models.SequenceTagger(WORDS, ["x", "y"], 8, 8, rng=0), (IDS, LENGTHS, _RNG.integers(0, 2, (6, 3))),
        lambda m: m.tag([["a", "b"], ["c"]])),
    "tagger that spells": (speller, (SPELLED, np.array([3, 2]), _RNG.integers(0, 2, (3, 2)), np.array([0, 1])), lambda m: m.tag([["a", "b"], ["c"]])),
    "forecaster": (
        lambda: fs.models.Forecaster(2, 8, horizon=3, anchor=0, rng=0),
        (_RNG.standard_normal((5, 4, 2)).astype(np.float32), np.array([5, 4, 3, 5]), _RNG.standard_normal((3, 4)).astype(np.float32)), None),
    "masked language model": (
        lambda: fs.models.MaskedLanguageModel(WORDS, 8, 16, num_layers=1, heads=2, dropout=0.0, rng=0),
        (IDS, LENGTHS, (IDS > 8) * 1, np.where(_RNG.random(IDS.shape) < 0.4, IDS, -100), np.array([0, 1, 1])), lambda m: m.fill("a [MASK] b")),
    "skip-gram": (skip_gram, (np.array([6, 7, 7]), np.array([7, 6, 9]), np.array([8, 9])), lambda m: [word for word, _ in m.nearest("a", 2)]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_learns_and_works_on_a_gpu(name, to_gpu):
    make, batch, use = MODELS[name]
    model = make()
    loss = model.loss(*batch)
    loss.backward()
    for given in (batch, to_gpu(batch)):
        moved = make().to("cuda")
        found = moved.loss(*given)
        found.backward()
        assert found.item() == pytest.approx(loss.item(), rel=1e-4)
        for (key, p), q in zip(model.named_parameters(), moved.parameters(), strict=True):
            if p.grad is None:
                assert q.grad is None, key
                continue
            got = q.grad.to_dense() if isinstance(q.grad, fs.RowGradient) else q.grad
            assert_close(got.get(), np.asarray(p.grad), terms=2000, name=key)
    if use is not None:
        same(use(moved), use(make()))


def same(got, want):
    if isinstance(want, np.ndarray):
        assert isinstance(got, np.ndarray)
        assert_close(got, want, terms=400)
    elif isinstance(want, tuple):
        for a, b in zip(got, want, strict=True):
            same(a, b)
    else:
        assert got == want


def test_a_perceptron_on_a_gpu(to_gpu):
    x, both = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), np.array([0, 0, 0, 1])
    neuron = fs.models.Perceptron(2).to("cuda")
    assert [neuron.update(to_gpu(x), both) for _ in range(6)] == [1, 3, 3, 2, 1, 0]
    assert neuron(to_gpu(x)).get().tolist() == both.tolist()
    with pytest.raises(TypeError, match="x: expected a CuPy array, for this layer is on the GPU"):
        neuron(x)


# ---------------------------------------------------------------- training


def train(device, epochs=2, checkpoint=None):
    model = fs.models.LanguageModel("abcd", 8, 8, rng=0).to(device)
    streams = TextStreams(np.tile(np.arange(4), 30), 4, 8, shift=False, rng=1)
    optimizer = fs.optim.Adam(model.parameters(), lr=0.01)
    history = fit(model, streams, optimizer=optimizer, epochs=epochs, max_norm=1.0, state=CarriedState(), progress=False, checkpoint=checkpoint,
                  validation=streams)  # fmt: skip
    return model, history


def test_a_training_gives_the_same_on_both_sides():
    model, on_cpu = train("cpu")
    moved, on_gpu = train("cuda")
    for name in ("loss", "validation_loss"):
        assert on_gpu[name] == pytest.approx(on_cpu[name], rel=1e-4)
    for (name, a), b in zip(moved.state_dict().items(), model.state_dict().values(), strict=True):
        assert_close(a, b, terms=5000, name=name)


def test_a_checkpoint_goes_on_from_either_side(tmp_path):
    _, whole = train("cuda", 3)
    train("cuda", 1, tmp_path / "part")
    _, second = train("cpu", 2, tmp_path / "part")
    _, third = train("cuda", 3, tmp_path / "part")
    assert third["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert second["loss"] == pytest.approx(whole["loss"][:2], rel=1e-4)


def test_fit_brings_each_batch_to_the_model(rng):
    x, y = rng.standard_normal((20, 4)).astype(np.float32), rng.integers(0, 3, 20)

    def history(device):
        model = fs.models.MLP([4, 8, 3], rng=0).to(device)
        optimizer = fs.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, fit(model, Batches(x, y, batch_size=5, rng=0), loss=cross_entropy, optimizer=optimizer, epochs=2, accumulate=2,
                                     progress=False)  # fmt: skip

    model, optimizer, found = history("cuda")
    assert found["loss"] == pytest.approx(history("cpu")[2]["loss"], rel=1e-4)
    model.layers[0].weight.data[0, 0] = np.nan
    with pytest.raises(TrainingDiverged, match=r"the parameter layers\.0\.weight holds nan at \[0, 0\]"):
        fit(model, Batches(x, y, batch_size=5, rng=0), loss=cross_entropy, optimizer=optimizer, progress=False)


def test_the_command_line_on_a_gpu(tmp_path, capsys):
    text = tmp_path / "text"
    text.write_text("abcd " * 400)
    options = ["--hidden-size", "8", "--embedding-size", "4", "--epochs", "0.2", "--json", "--device", "cuda", "--output", str(tmp_path / "model")]
    assert main(["train", str(text), *options]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert np.isfinite(figures["bits_per_char"])
    written = []
    for device in ("cuda", "cpu"):
        assert main(["generate", str(tmp_path / "model"), "--length", "20", "--seed", "1", "--json", "--device", device]) == 0
        written.append(json.loads(capsys.readouterr().out)["text"])
    assert written[0] == written[1]


def test_the_command_line_without_a_gpu_says_so(tmp_path, capsys, cupy, monkeypatch):
    fs.models.LanguageModel("abc", 4, 4, rng=0).save(tmp_path / "model")
    monkeypatch.setattr(fs.backends._Cuda, "backend", None)
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    assert main(["generate", str(tmp_path / "model"), "--device", "cuda"]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "fastseq: cuda: no GPU found; the CPU computes with NumPy arrays\n")
