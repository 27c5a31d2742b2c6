"""Seq2Seq: gradients, PyTorch as a witness, decoding step by step against whole targets, files, frozen parts, refusals."""

import numpy as np
import pytest

import fastseq as fs
from fastseq.generation import beam_search, generate
from fastseq.models import Seq2Seq, Vocabulary
from tests.finite_differences import assert_gradient
from tests.tolerance import assert_close, assert_same_bits

RECURRENT = [
    {"cell": cell, "attention": attention, "input_feeding": fed}
    for cell, attention, fed in [
        ("lstm", None, False), ("lstm", None, True), ("lstm", "additive", True), ("gru", "additive", True), ("gru", None, True),
        ("gru", "dot", True), ("lstm", "bilinear", True), ("lstm", "additive", False)]
]  # fmt: skip
FORMS = [*RECURRENT, {"cell": "lstm", "bidirectional": False, "num_layers": 2}, {"cell": "transformer", "num_layers": 2, "heads": 2}]
form = pytest.mark.parametrize("options", FORMS, ids=lambda o: "-".join(map(str, o.values())))

SOURCE, SOURCE_LENGTHS = np.array([[0, 1, 2], [3, 2, 0], [1, 0, 0], [2, 0, 0]]), np.array([4, 2, 1])
TARGET, TARGET_LENGTHS = np.array([[2, 3, 4], [4, 4, -100], [3, -100, -100]]), np.array([3, 2, 1])
LETTERS = Vocabulary("abc", start="<s>", stop="</s>")


def made(options, dtype=np.float64, **more):
    return Seq2Seq("wxyz", LETTERS, 4, 6, dtype=dtype, rng=1, **options, **more)


def flat(logits):
    return logits.reshape(-1, logits.shape[-1])


# ---------------------------------------------------------------- training


@form
def test_gradients_are_slopes_of_the_loss(options):
    model, rng = made(options), np.random.default_rng(0)
    batch = SOURCE, SOURCE_LENGTHS, TARGET, TARGET_LENGTHS
    model.loss(*batch).backward()
    for name, p in model.named_parameters():
        with fs.no_grad():
            assert_gradient(p.grad, lambda: model.loss(*batch).item(), p.data, name, rng)


@form
def test_loss_is_the_cross_entropy_of_the_call(options):
    model = made(options, dropout=0.5).eval()
    inputs, wanted, lengths = model.teacher(TARGET, TARGET_LENGTHS)
    logits = model(SOURCE, inputs, SOURCE_LENGTHS, lengths)
    assert logits.shape == (4, 3, 5)
    want = fs.functional.cross_entropy(flat(logits), wanted.reshape(-1))
    assert_close(np.asarray(model.loss(SOURCE, SOURCE_LENGTHS, TARGET).item()), np.asarray(want), terms=30)
    assert model.loss(SOURCE, SOURCE_LENGTHS, TARGET).item() == model.loss(SOURCE, SOURCE_LENGTHS, TARGET, TARGET_LENGTHS).item()
    model.train()
    assert model.loss(SOURCE, SOURCE_LENGTHS, TARGET).item() != model.loss(SOURCE, SOURCE_LENGTHS, TARGET).item()


def test_teacher_frames_targets():
    inputs, wanted, lengths = made({}).teacher(TARGET)
    assert inputs.T.tolist() == [[0, 2, 4, 3], [0, 3, 4, 1], [0, 4, 1, 1]]
    assert wanted.T.tolist() == [[2, 4, 3, 1], [3, 4, 1, -100], [4, 1, -100, -100]]
    assert lengths.tolist() == [4, 3, 2]
    assert made({}).teacher(np.zeros((0, 2), np.int64))[1].tolist() == [[1, 1]]


@form
def test_what_is_padded_changes_nothing(options):
    model = made(options).eval()
    inputs, _, lengths = model.teacher(TARGET)
    logits = model(SOURCE, inputs, SOURCE_LENGTHS, lengths)
    for b, (S, T) in enumerate(zip(SOURCE_LENGTHS, lengths, strict=True)):
        alone = model(SOURCE[:S, b : b + 1], inputs[:T, b : b + 1])
        assert_close(logits[:T, b], alone[:, 0], terms=60)


@form
def test_pytorch_finds_the_same_loss_and_gradients(options):
    torch = pytest.importorskip("torch")
    from tests.torch_seq2seq import Seq2Seq as Witness

    ours = made(options)
    theirs = Witness(ours).double()
    inputs, wanted, _ = ours.teacher(TARGET)
    loss = ours.loss(SOURCE, SOURCE_LENGTHS, TARGET)
    loss.backward()
    other = theirs.loss(*map(torch.from_numpy, (SOURCE, SOURCE_LENGTHS, inputs, wanted)))
    other.backward()
    assert abs(loss.item() - other.item()) < 1e-6
    expected = {name.replace("decoder.cell.", "decoder."): p for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert np.allclose(p.grad, expected[name].grad.numpy(), rtol=1e-5, atol=1e-7), name


# ---------------------------------------------------------------- decoding


@form
@pytest.mark.parametrize("lengths", [SOURCE_LENGTHS, None], ids=["ragged", "whole"])
def test_step_by_step_is_the_whole_call(options, lengths):
    model = made(options, dtype=np.float32).eval()
    inputs, _, _ = model.teacher(np.abs(TARGET) % 5)
    attends = options["cell"] != "transformer" and options.get("attention", "additive") is not None
    logits, *weights = model(SOURCE, inputs, lengths, return_weights=True) if attends else [model(SOURCE, inputs, lengths)]
    decoding = model.decoding(SOURCE, lengths)
    for t, tokens in enumerate([*inputs[1:], None]):
        assert_close(decoding.logits, logits[t], terms=100)
        if attends:
            assert_close(decoding.weights, weights[0][t], terms=100)
        if tokens is not None:
            assert decoding.step(tokens) is decoding.logits


@form
@pytest.mark.parametrize("lengths", [SOURCE_LENGTHS, None], ids=["ragged", "whole"])
def test_rows_are_kept_repeated_and_put_in_another_order(options, lengths):
    model, rows = made(options, dtype=np.float32).eval(), np.array([2, 0, 0, 1])
    decoding, other = model.decoding(SOURCE, lengths), model.decoding(SOURCE[:, rows], None if lengths is None else lengths[rows])
    decoding.step([2, 3, 4])
    other.step(np.array([2, 3, 4])[rows])
    decoding.select(rows)
    assert_close(decoding.logits, other.logits, terms=100)
    for tokens in ([4, 4, 2, 3], [1, 2, 3, 4]):
        assert_close(decoding.step(tokens), other.step(tokens), terms=100)
        if getattr(decoding, "weights", None) is not None:
            assert_close(decoding.weights, other.weights, terms=100)
    decoding.select(np.array([1]))
    assert_close(decoding.step([2]), other.step([2, 2, 2, 2])[1:2], terms=100)


def test_without_attention_the_memory_is_the_last_state():
    model = made({"attention": None}).eval()
    _, (h, c) = model.encoder(model.source_embedding(SOURCE), lengths=SOURCE_LENGTHS)
    h, c = (np.concatenate(list(s), axis=1) for s in (h, c))
    inputs, _, _ = model.teacher(TARGET)
    outputs, _ = model.decoder(model.target_embedding(inputs), h[None], (h, c))
    assert_same_bits(model(SOURCE, inputs, SOURCE_LENGTHS), model.head(outputs))
    assert model.decoding(SOURCE).weights is None


@form
def test_one_beam_is_greedy_and_more_are_no_less_likely(options):
    model = made(options, dtype=np.float32)
    greedy = generate(model, SOURCE, SOURCE_LENGTHS, max_length=6, temperature=0)
    ones = [best for (best,) in beam_search(model, SOURCE, SOURCE_LENGTHS, beams=1, max_length=6)]
    fours = [best for (best,) in beam_search(model, SOURCE, SOURCE_LENGTHS, beams=4, max_length=6, length_penalty=0.0)]
    for b, (ids, one, four) in enumerate(zip(greedy, ones, fours, strict=True)):
        assert ids.tolist() == one.ids.tolist()
        assert four.log_prob >= one.log_prob
        inputs, wanted, _ = model.teacher(one.ids[:, None])
        if len(one.ids) == 6:  # it did not come to an end
            inputs, wanted = inputs[:-1], wanted[:-1]
        logits = model.eval()(SOURCE[: SOURCE_LENGTHS[b], b : b + 1], inputs)
        assert np.isclose(one.log_prob, -fs.functional.cross_entropy(flat(logits), wanted[:, 0], reduction="sum"), rtol=1e-4)


def test_what_is_drawn_at_random_is_seeded():
    model = made({"cell": "gru"}, dtype=np.float32)
    first, again, other = ([row.tolist() for row in generate(model, SOURCE, SOURCE_LENGTHS, max_length=8, rng=seed)] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("options", [{"cell": "gru"}, {"cell": "transformer", "heads": 2}], ids=["gru", "transformer"])
def test_it_learns_to_write_a_word_backwards(options):
    rng = np.random.default_rng(0)
    model = Seq2Seq("wxyz", Vocabulary("wxyz", start="<s>", stop="</s>"), 16, 32, rng=0, **options)
    sources = [rng.integers(0, 4, rng.integers(1, 6)) for _ in range(600)]
    batches = fs.training.BucketBatches((sources, [word[::-1] + 2 for word in sources]), batch_size=20, rng=0)
    fs.training.fit(model, batches, optimizer=fs.optim.Adam(model.parameters(), lr=1e-2), epochs=20, max_norm=1.0, progress=False)
    written = generate(model, *fs.nn.pad_sequences(sources[:100]), max_length=8, temperature=0)
    assert np.mean([np.array_equal(ids, word[::-1] + 2) for ids, word in zip(written, sources, strict=False)]) > 0.6


# ---------------------------------------------------------------- files and frozen parts


@form
def test_a_file_holds_the_model_and_both_vocabularies(options, tmp_path):
    model = Seq2Seq(Vocabulary(["the", "house"], separator=" ", unknown="?"), LETTERS, 4, 6, rng=1, dropout=0.3, **options)
    model.save(tmp_path / "model.safetensors")
    twin = fs.load(tmp_path / "model.safetensors")
    assert isinstance(twin, Seq2Seq)
    assert twin.source_vocabulary == model.source_vocabulary
    assert twin.target_vocabulary == model.target_vocabulary
    assert twin.target_vocabulary.stop_id == 1
    assert_same_bits(twin.decoding(SOURCE % 3).logits, model.eval().decoding(SOURCE % 3).logits)
    assert twin.configuration() == model.configuration()


def test_subwords_on_both_sides(tmp_path):
    pytest.importorskip("tokenizers")
    english, french = ["the red house", "a red rose"], ["la maison rouge", "une rose rouge"]
    vocabularies = [fs.models.SubwordVocabulary.from_texts(texts, size=270, start="<s>", stop="</s>") for texts in (english, french)]
    model = Seq2Seq(*vocabularies, 8, 16, rng=0)
    columns = tuple([v.encode(text) for text in texts] for v, texts in zip(vocabularies, (english, french), strict=True))
    batches = fs.training.BucketBatches(columns, batch_size=2, rng=0)
    fs.training.fit(model, batches, optimizer=fs.optim.Adam(model.parameters(), lr=2e-2), epochs=60, progress=False)
    model.save(tmp_path / "model")
    twin = fs.load(tmp_path / "model")
    written = generate(twin, *fs.nn.pad_sequences(columns[0]), max_length=20, temperature=0)
    assert [twin.target_vocabulary.decode(ids) for ids in written] == french


@form
def test_frozen_parts_stay_and_the_rest_learns(options):
    model = made(options)
    model.encoder.requires_grad_(False)
    model.source_embedding.requires_grad_(False)
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    adam = fs.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.loss(SOURCE, SOURCE_LENGTHS, TARGET).backward()
    adam.step()
    for name, p in model.named_parameters():
        assert np.array_equal(p.data, before[name]) == name.startswith(("encoder", "source_embedding")), name


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(("options", "message"), [
    ({"cell": "tree"}, "cell: expected one of lstm, gru, transformer, got 'tree'"),
    ({"target_vocabulary": Vocabulary("abc", stop="</s>")}, "target_vocabulary: expected one with a start token"),
    ({"target_vocabulary": Vocabulary("abc", start="<s>")}, "target_vocabulary: expected one with a stop token"),
    ({"hidden_size": 7}, "hidden_size: expected an even number, for the encoder reads in two directions, got 7"),
    ({"attention": "tree"}, "attention: expected"),
])  # fmt: skip
def test_what_cannot_be_made(options, message):
    arguments = {"source_vocabulary": "wxyz", "target_vocabulary": LETTERS, "embedding_size": 4, "hidden_size": 6} | options
    with pytest.raises(ValueError, match=message):
        Seq2Seq(**arguments)


def test_what_cannot_be_read():
    model = made({})
    with pytest.raises(ValueError, match=r"target: expected shape \(T, B\)"):
        model.loss(SOURCE, SOURCE_LENGTHS, TARGET[0])
    with pytest.raises(TypeError, match="target: expected integer ids"):
        model.loss(SOURCE, SOURCE_LENGTHS, TARGET * 1.0)
    with pytest.raises(ValueError, match=r"source: expected shape \(S, B\)"):
        model.decoding(SOURCE[0])
    with pytest.raises(IndexError):
        model.decoding(SOURCE + 4)
    with pytest.raises(ValueError, match="return_weights: expected False, for this decoder has no attention"):
        made({"attention": None})(SOURCE, TARGET[:1], return_weights=True)
    with pytest.raises(ValueError, match="return_weights: expected False, for a transformer's layers do not keep them"):
        made({"cell": "transformer", "heads": 2})(SOURCE, TARGET[:1], return_weights=True)


@pytest.mark.parametrize("cell", ["gru", "transformer"])
def test_rows_and_lengths_have_to_fit(cell):
    letters = fs.models.Vocabulary("abc", start="<", stop=">")
    model = fs.models.Seq2Seq(letters, letters, 4, 4, cell=cell, heads=2, rng=0)
    source, target = np.full((5, 4), 2), np.full((3, 4), 3)
    with pytest.raises(ValueError, match=r"target: expected shape \(T, 4\), got \(4, 2\)"):
        model.loss(source, None, target[:, :2])
    with pytest.raises(ValueError, match=r"source: expected shape \(S, B\), got \(5,\)"):
        model(source[:, 0], target)
    for wrong in ([1, 2, 3, 4], [1, 2, 3, -1]):
        with pytest.raises(ValueError, match="target_lengths: expected integers from 0 to 3, the number of steps"):
            model.loss(source, None, target, wrong)
