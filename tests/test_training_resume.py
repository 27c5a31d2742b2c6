"""Checkpoints: a training that goes on from one ends with the same bits as one that was never interrupted."""

import json
import os
import random

import numpy as np
import pytest

import fastseq as fs
from fastseq.training import Batches, Callback, CarriedState, Checkpoint, EarlyStopping, TextStreams, fit
from fastseq.training.checkpoint import read_checkpoint, write_checkpoint
from fastseq.training.random_state import random_state, restore_random_state
from tests.training_problems import Interrupt, Net, data, same, train


def language_training():
    """A model, its streams and its optimiser, always the same."""
    fs.manual_seed(1)
    model = fs.models.LanguageModel("ab c", 8, 16, dropout=0.3)
    streams = TextStreams(model.vocabulary.encode("ab c" * 800), 4, 16, shift=True)
    return model, streams, fs.optim.Adam(model.parameters(), lr=1e-2)


@pytest.mark.parametrize("step", [1, 48, 49, 50, 120])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, step):
    results = []
    for parts in ([0], [step, 0]):
        for at in parts:
            model, streams, adam = language_training()
            history = fit(model, streams, state=CarriedState(), optimizer=adam, epochs=3, max_norm=1.0, validation=streams, callbacks=[Interrupt(at)],
                          checkpoint=tmp_path / f"{len(parts)}", progress=False)  # fmt: skip
            assert (history.stopped, history.steps) == (("interrupted", at) if at else ("finished", 147))
        results.append((history["loss"], history["validation_loss"], model.state_dict()))
    assert results[0][:2] == results[1][:2]
    assert same(results[0][2], results[1][2])


class OwnGenerator:
    """A user's batches with a generator of their own, which know nothing of checkpoints."""

    def __init__(self):
        self.rng = np.random.default_rng(5)

    def __iter__(self):
        x, y = data()
        for rows in self.rng.permutation(50).reshape(10, 5):
            yield x[rows], y[rows]


class SharedGenerators:
    """Another's, who draws wherever numbers can be had, while going on too."""

    def __iter__(self):
        x, y = data()
        order = list(range(50))
        random.shuffle(order)
        for rows in np.array(order).reshape(10, 5):
            noise = np.random.random((5, 3)) + fs.runtime.generator().random((5, 3))  # noqa: NPY002
            yield x[rows] + noise.astype(np.float32), y[rows]


class Listed(list):
    """A list of batches, in the same order each time."""

    def __init__(self):
        x, y = data()
        super().__init__((x[k : k + 5], y[k : k + 5]) for k in range(0, 50, 5))


@pytest.mark.parametrize("kind", [OwnGenerator, SharedGenerators, Listed])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_batches_of_a_users_own_are_resumed_exactly(tmp_path, kind, accumulate):
    results = []
    for parts in ([0], [3, 7, 0]):
        for at in parts:
            fs.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            model = Net(rng=None)
            history = train(model, kind(), epochs=3, callbacks=[Interrupt(at)], accumulate=accumulate, checkpoint=tmp_path / f"{len(parts)}")
        results.append((history["loss"], model.state_dict()))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


@pytest.mark.parametrize("make", [
    lambda sgd: fs.optim.StepLR(sgd, 5, 0.5),
    lambda sgd: fs.optim.WarmupCosine(sgd, 28, 5),
    lambda sgd: fs.optim.ReduceOnPlateau(sgd, factor=0.5, patience=0),
])  # fmt: skip
def test_schedules_go_on_where_they_were(tmp_path, make):
    results = []
    for parts in ([0], [9, 0]):
        for at in parts:
            model, figures = Net(), {1: 1.0, 2: 2.0, 3: 0.5, 4: 0.7}
            sgd = fs.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

            class Count(Callback):
                def on_begin(self, progress):
                    self.progress = progress

            count = Count()
            train(model, optimizer=sgd, schedule=make(sgd), epochs=4, callbacks=[count, Interrupt(at)],
                  validation=lambda model, count=count, figures=figures: figures[count.progress.epoch], checkpoint=tmp_path / f"{len(parts)}")  # fmt: skip
        results.append((sgd.param_groups[0]["lr"], model.state_dict()))
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])


def test_more_epochs_than_a_finished_training_had(tmp_path):
    whole, parts = Net(), Net()
    expected = train(whole, epochs=5)
    for epochs in (2, 2, 5):
        history = train(parts, epochs=epochs, checkpoint=tmp_path / "checkpoint")
        assert (history.stopped, history.epochs, history.steps) == ("finished", epochs, 7 * epochs)
        parts, last = Net(rng=9), parts  # whose numbers the checkpoint replaces
    assert history["loss"] == expected["loss"]
    assert same(last.state_dict(), whole.state_dict())


def test_early_stopping_is_resumed_with_the_best_model(tmp_path):
    figures = [3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5]

    def run(patience, at=0):
        model = Net(rng=7)
        stopping = EarlyStopping(patience)
        history = train(model, epochs=8, callbacks=[stopping, Interrupt(at)], validation=lambda model: next(given), checkpoint=tmp_path / "checkpoint")
        return history, stopping, model.state_dict()

    given = iter(figures)
    history, _, at_two = run(2, at=25)  # in the fourth epoch
    assert history.stopped == "interrupted"
    given = iter(figures[3:])
    for _ in range(2):  # and once more, which ends where it has ended before
        history, stopping, state = run(2)
        assert (history.stopped, history.epochs, stopping.best_epoch) == ("early", 4, 2)
        assert same(state, at_two)
    history, stopping, state = run(3)  # with more patience it goes on
    assert (history.stopped, history.epochs, stopping.best_epoch, history["validation_loss"]) == ("early", 8, 5, figures)
    assert not same(state, at_two)


def test_a_stop_is_remembered(tmp_path):
    class Stop(Callback):
        def on_step(self, progress):
            progress.stop = progress.step == 9

    for _ in range(2):
        assert train(Net(), epochs=5, callbacks=[Stop()], checkpoint=tmp_path / "checkpoint").steps == 9


def test_a_checkpoint_is_of_one_training(tmp_path):
    path = tmp_path / "checkpoint"
    train(Net(), checkpoint=path)
    untouched = path.read_bytes()
    model = Net()
    before = model.state_dict()
    adam = fs.optim.Adam(model.parameters())
    for options, message in (
        ({"optimizer": adam}, "optimizer Adam, got SGD"),
        ({"batches": Batches(*data(), batch_size=5)}, "batches per epoch 10, got 7"),
        ({"accumulate": 2}, "accumulate 2, got 1"),
        ({"callbacks": [Callback()]}, "callback 0 Callback, got none"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint: expected one of a training with {message}"):
            train(model, checkpoint=path, **options)
    assert same(model.state_dict(), before)
    wider = Net()
    wider.second = fs.nn.Linear(8, 5)
    with pytest.raises(ValueError, match=r"state for Net: second.weight: expected shape \(5, 8\), got \(2, 8\)"):
        train(wider, checkpoint=path)
    groups = Net(rng=1).eval()
    before = groups.state_dict()
    parts = [{"params": [*groups.first.parameters()]}, {"params": [*groups.second.parameters()]}]
    with pytest.raises(ValueError, match=r"param_groups: expected groups of \[2, 2\] parameters, got \[4\]"):
        train(groups, checkpoint=path, optimizer=fs.optim.SGD(parts, lr=0.1))
    assert same(groups.state_dict(), before)  # which had been loaded before the optimiser said so
    assert not groups.training
    assert path.read_bytes() == untouched
    with pytest.raises(FileNotFoundError, match=r"checkpoint: there is no folder .*nowhere"):
        train(Net(), checkpoint=tmp_path / "nowhere" / "checkpoint")


def test_how_often_one_is_written(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("fastseq.training.checkpoint.write_checkpoint", lambda path, state: written.append(state["at"]["step"]))
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Minute(Callback):
        def on_step(self, progress):
            clock[0] += 60

    train(Net(), epochs=3, checkpoint=Checkpoint(tmp_path / "a", every_seconds=None))
    assert written == [0, 21]
    written.clear()
    train(Net(), epochs=3, checkpoint=Checkpoint(tmp_path / "b", every_steps=8))
    assert written == [0, 8, 16, 21]
    written.clear()
    train(Net(), epochs=3, checkpoint=Checkpoint(tmp_path / "c", every_seconds=300), callbacks=[Minute()])
    assert written == [0, 5, 10, 15, 20, 21]
    for options in ({"every_seconds": 0}, {"every_steps": -1}):
        with pytest.raises(ValueError, match=r"every_.*: expected more than 0"):
            Checkpoint("path", **options)
    with pytest.raises(TypeError, match="every_seconds: expected a number, got str"):
        Checkpoint("a", every_seconds="1")
    with pytest.raises(TypeError, match="checkpoint: expected a path, got int"):
        Checkpoint(3)


def test_what_cannot_be_written_is_found_before_the_training(tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {"what": object()}

    model = Net()
    before = model.state_dict()
    with pytest.raises(TypeError, match=r"state\.parts\.callback 0\.what: expected numbers, .* got object"):
        train(model, callbacks=[Odd()], checkpoint=tmp_path / "checkpoint")
    assert same(model.state_dict(), before)


# ---------------------------------------------------------------- the file


def test_a_file_holds_exactly_what_was_written(tmp_path):
    path = str(tmp_path / "checkpoint")
    state = {
        "numbers": [1, 2**80, -0.1, float("inf"), float("-inf"), True, None, "text \u00e9"], 3: (4, [5, ()], {}), "scalar": np.float32(0.1), ("a", 1): 2,
        "arrays": {0: np.arange(6).reshape(2, 3).T, 1: np.float64(3)[None][:0], 2: np.array(True), 3: np.zeros((2, 0), np.float32)},
    }  # fmt: skip
    write_checkpoint(path, state)
    found = read_checkpoint(path)
    assert found["numbers"] == state["numbers"]
    assert found[3] == state[3]
    assert found[("a", 1)] == 2
    assert type(found["scalar"]) is np.float32
    assert found["scalar"] == state["scalar"]
    for key, array in state["arrays"].items():
        assert found["arrays"][key].dtype == array.dtype
        assert found["arrays"][key].shape == array.shape
        assert np.array_equal(found["arrays"][key], array)
    with pytest.raises(TypeError, match=r"state\.a\[1\]: expected numbers, strings, arrays, .* got object"):
        write_checkpoint(path, {"a": [1, object()]})
    with pytest.raises(TypeError, match=r"state\.words: expected numbers, strings, arrays, .* got an array of <U1"):
        write_checkpoint(path, {"words": np.array(["a", "b"])})
    assert read_checkpoint(path)["numbers"] == state["numbers"]


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "checkpoint"
    write_checkpoint(str(path), {"a": np.arange(100), "b": "text" * 20})
    whole = path.read_bytes()
    for damage in (whole[:-1], whole[:20], b"", whole[:-300] + bytes([whole[-300] ^ 1]) + whole[-299:], whole.replace(b"texttext", b"textxttt", 1)):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"checkpoint: (damaged or no checkpoint|the checkpoint is damaged)"):
            read_checkpoint(str(path))
    fs.nn.Linear(2, 2).save(path)
    with pytest.raises(ValueError, match="expected a checkpoint that fit has written, got another safetensors file"):
        read_checkpoint(str(path))


def test_a_file_of_another_format_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value: dumps({**value, "format": 7}))
    write_checkpoint(str(path), {})
    with pytest.raises(ValueError, match="expected format 1, got 7"):
        read_checkpoint(str(path))


def test_only_what_dead_processes_left_is_removed(tmp_path):
    names = [".run.123456789.part", f".run.{os.getpid()}.part", ".other.123456789.part", ".run.x.part", "run.123456789.part"]
    for name in names:
        (tmp_path / name).touch()
    assert Checkpoint(tmp_path / "run").read() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


# ---------------------------------------------------------------- random numbers


def test_random_states_are_taken_and_put_back():
    class Own(fs.nn.Module):
        def __init__(self):
            self.rng, self.drop, self.gru = np.random.default_rng(0), fs.nn.Dropout(0.5), fs.nn.GRU(2, 3, recurrent_dropout=0.5)

    model, other = Own(), OwnGenerator()

    def draws():
        return [model.rng.random(), other.rng.random(), random.random(), np.random.random(), fs.runtime.generator().random(),  # noqa: NPY002
                model.drop(np.ones(50, np.float32)).tolist(), model.gru(np.ones((3, 2, 2), np.float32))[0].tolist()]  # fmt: skip

    state = random_state(model, other, [1])
    first = draws()
    assert draws() != first
    restore_random_state(state, model, other, [1])
    assert draws() == first
