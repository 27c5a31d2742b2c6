"""`fit`: what it computes, what it calls, how it stops."""

import math
import signal
import threading

import numpy as np
import pytest

import fastseq as fs
from fastseq.training import Batches, Callback, CarriedState, EarlyStopping, History, TextStreams, evaluate, fit
from tests.training_problems import Interrupt, Net, data, same, train


class Watch(Callback):
    """Keeps what it was told."""

    def __init__(self, *names):
        self.names, self.seen = names, []

    def on_step(self, progress):
        self.seen.append(tuple(getattr(progress, name) for name in self.names))


# ---------------------------------------------------------------- what is computed


def test_fit_is_the_loop_that_one_would_write():
    by_fit, by_hand = Net(), Net()
    history = train(by_fit, epochs=3, max_norm=0.1)
    batches, sgd, losses = Batches(*data(), batch_size=8, rng=0), fs.optim.SGD(by_hand.parameters(), lr=0.05), []
    for _ in range(3):
        total = 0.0
        for x, y in batches:
            loss = fs.functional.cross_entropy(by_hand(fs.Tensor(x)), y)
            sgd.zero_grad()
            loss.backward()
            fs.optim.clip_grad_norm(by_hand.parameters(), 0.1)
            sgd.step()
            total += loss.item() * len(x)
        losses.append(total / 50)
    assert same(by_fit.state_dict(), by_hand.state_dict())
    assert history["loss"] == pytest.approx(losses, rel=1e-12)
    assert (history.stopped, history.epochs, history.steps) == ("finished", 3, 21)


@pytest.mark.parametrize(("accumulate", "steps"), [(2, 4), (3, 3), (7, 1), (100, 1)])
def test_accumulated_batches_are_one_large_batch(accumulate, steps):
    """7 batches of 8 and 2 rows: the last step has fewer batches, and its last batch fewer rows."""
    parts, whole = Net(0.0, np.float64), Net(0.0, np.float64)
    x, y = data(dtype=np.float64)
    one = train(parts, Batches(x, y, batch_size=8, shuffle=False), accumulate=accumulate, epochs=2, max_norm=0.2)
    other = train(whole, Batches(x, y, batch_size=8 * accumulate, shuffle=False), epochs=2, max_norm=0.2)
    assert one.steps == other.steps == 2 * steps
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-12)
    for name, array in parts.state_dict().items():
        assert np.allclose(array, whole.state_dict()[name], rtol=1e-11, atol=1e-13)


def test_means_weigh_rows_not_batches():
    model, (x, y) = Net(0.0), data()
    batches = Batches(x, y, batch_size=49, shuffle=False)  # 49 rows and 1
    whole = fs.functional.cross_entropy(model(x), y).item()
    assert evaluate(model, batches, loss=fs.functional.cross_entropy) == pytest.approx(whole, rel=1e-6)
    history = train(model, batches, lr=0.0, validation=batches)
    assert history["loss"] == pytest.approx([whole], rel=1e-6)
    assert history["validation_loss"] == pytest.approx([whole], rel=1e-6)
    plain = [tuple(batch) for batch in batches]  # which do not say how many rows they have: each counts once
    assert evaluate(model, plain, loss=fs.functional.cross_entropy) != pytest.approx(whole, rel=1e-3)


def test_a_models_own_loss_gets_the_whole_batch():
    class Weighted(Net):
        def loss(self, x, weights, y):
            return (fs.functional.cross_entropy(self(fs.Tensor(x)), y, reduction="none") * weights).mean()

    x, y = data()
    history = train(Weighted(0.0), Batches(x, np.ones(50, np.float32), y, batch_size=10, rng=0), loss=None, epochs=4)
    assert history["loss"][-1] < history["loss"][0]


def test_a_carried_state_is_truncated_backpropagation_written_out():
    text = "the cat sat on the mat. " * 60
    models = [fs.models.LanguageModel(text, 8, 16, rng=0) for _ in range(2)]
    ids = models[0].vocabulary.encode(text)
    state = CarriedState()
    fit(models[0], TextStreams(ids, 4, 16), optimizer=fs.optim.Adam(models[0].parameters(), lr=0.01), epochs=2, state=state, progress=False)
    adam = fs.optim.Adam(models[1].parameters(), lr=0.01)
    for _ in range(2):
        before = None
        for inputs, targets in TextStreams(ids, 4, 16):
            logits, after = models[1](fs.Tensor(inputs), before)
            loss = fs.functional.cross_entropy(logits.reshape(-1, logits.shape[2]), targets.reshape(-1))
            adam.zero_grad()
            loss.backward()
            adam.step()
            before = tuple(part.detach() for part in after)
    for name, array in models[0].state_dict().items():
        assert np.allclose(array, models[1].state_dict()[name], rtol=1e-4, atol=1e-6)
    assert not any(part.requires_grad for part in state.value)
    assert np.allclose(state.value[0].data, before[0].data, rtol=1e-4, atol=1e-6)
    kept = [part.data for part in state.value]
    evaluate(models[0], TextStreams(ids, 4, 16), state=state)
    assert all(part.data is before for part, before in zip(state.value, kept, strict=True))


# ---------------------------------------------------------------- modes and random numbers


def test_it_trains_in_training_mode_and_leaves_a_model_ready_for_use():
    model, modes = Net(), []

    class Modes(Callback):
        def on_step(self, progress):
            modes.append([m.training for m in progress.model.modules()])

    def validation(model):
        assert not any(m.training for m in model.modules())
        with_gradients = model(fs.Tensor(data()[0]))
        assert not with_gradients.requires_grad
        return 1.0

    model.eval()  # as after fs.load
    train(model, callbacks=[Modes()], validation=validation, epochs=2)
    assert np.all(modes)
    assert not any(m.training for m in model.modules())


def test_parts_in_evaluation_mode_stay_so_where_the_model_is_not():
    model, modes = Net(), []
    model.drop.eval()

    def validation(model):
        modes.append([m.training for m in model.modules()])
        return 1.0

    class Modes(Callback):
        def on_step(self, progress):
            modes.append([m.training for m in model.modules()])

    train(model, Batches(*data(), batch_size=50, rng=0), callbacks=[Modes()], validation=validation, epochs=2)
    assert modes == [[True, True, False, True], [False] * 4] * 2


def test_a_validation_leaves_no_trace_in_the_training():
    results = []

    def draws(model):
        fs.runtime.generator().random(5)
        np.random.random(3)  # noqa: NPY002
        model.train()  # and forgets to go back
        model(np.zeros((4, 3), np.float32))
        return {"accuracy": 0.5}

    for validation in (None, Batches(*data(20), batch_size=3, rng=1), draws):
        fs.manual_seed(0)
        model = Net(rng=None)
        train(model, Batches(*data(), batch_size=8), validation=validation, epochs=3)
        results.append(model.state_dict())
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_a_look_at_the_trainings_own_batches_leaves_their_order_alone():
    results = []
    for look in (lambda model, batches: 0.5, lambda model, batches: evaluate(model, batches, loss=fs.functional.cross_entropy)):
        model, batches = Net(), Batches(*data(), batch_size=8, rng=0)
        train(model, batches, validation=lambda model, look=look, batches=batches: look(model, batches), epochs=3)
        results.append(model.state_dict())
    model, batches = Net(), Batches(*data(), batch_size=8, rng=0)
    train(model, batches, validation=batches, epochs=3)
    assert same(results[0], results[1])
    assert same(results[0], model.state_dict())


# ---------------------------------------------------------------- validation, schedules, callbacks


def test_figures_of_a_validation():
    assert train(Net(), validation=lambda model: 0.25, epochs=2)["validation_loss"] == [0.25, 0.25]
    history = train(Net(), validation=lambda model: {"accuracy": 0.5, "f1": np.float32(0.25)})
    assert {name: values for name, values in history.items() if name != "loss"} == {"accuracy": [0.5], "f1": [0.25]}
    for wrong in ({"loss": 1.0}, {}):
        with pytest.raises(ValueError, match=r'validation: expected at least one figure, and none of the name "loss"'):
            train(Net(), validation=lambda model, wrong=wrong: wrong)


def test_a_schedule_steps_with_the_optimiser_not_with_the_batches():
    model = Net()
    sgd = fs.optim.SGD(model.parameters(), lr=1.0)
    watch = Watch("step", "learning_rate")
    train(model, optimizer=sgd, schedule=fs.optim.StepLR(sgd, 1, 0.5), accumulate=3, callbacks=[watch])
    assert watch.seen == [(1, 0.5), (2, 0.25), (3, 0.125)]


@pytest.mark.parametrize("name", ["validation_loss", "error"])
def test_a_plateau_follows_the_validation(name):
    model, figures = Net(), iter([3.0, 2.0, 2.5, 2.5, 2.5])
    sgd, rates = fs.optim.SGD(model.parameters(), lr=1.0), []

    class Rates(Callback):
        def on_epoch(self, progress):
            rates.append(progress.learning_rate)

    train(model, optimizer=sgd, schedule=fs.optim.ReduceOnPlateau(sgd, factor=0.5, patience=1), validation=lambda m: {name: next(figures)},
          epochs=5, callbacks=[Rates()])  # fmt: skip
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5]


def test_callbacks_are_called_in_order_with_where_the_training_is():
    calls = []

    class Told(Callback):
        def __init__(self, name):
            self.name = name

        def on_begin(self, p):
            calls.append((self.name, "begin", p.epoch, p.step))

        def on_step(self, p):
            calls.append((self.name, "step", p.epoch, p.step, p.batch, p.batches))
            assert math.isfinite(p.loss)
            assert p.norm > 0
            assert p.seconds > 0

        def on_epoch(self, p):
            calls.append((self.name, "epoch", p.epoch, p.step, sorted(p.figures), p.history.epochs))

        def on_end(self, p):
            calls.append((self.name, "end", p.step, p.history.stopped))

    train(Net(), Batches(*data(), batch_size=20, rng=0), epochs=2, accumulate=2, callbacks=[Told("a"), Told("b")])
    assert calls[:2] == [("a", "begin", 1, 0), ("b", "begin", 1, 0)]
    assert [call[1:] for call in calls if call[0] == "a"] == [
        ("begin", 1, 0), ("step", 1, 1, 2, 3), ("step", 1, 2, 3, 3), ("epoch", 1, 2, ["loss"], 1),
        ("step", 2, 3, 2, 3), ("step", 2, 4, 3, 3), ("epoch", 2, 4, ["loss"], 2), ("end", 4, "finished")]  # fmt: skip


def test_a_callback_that_stops_in_an_epoch_gets_its_figures():
    class Stop(Callback):
        def on_step(self, progress):
            progress.stop = progress.step == 9

    history = train(Net(), epochs=5, callbacks=[Stop()], validation=lambda model: 1.0)
    assert (history.stopped, history.steps, len(history["loss"]), len(history["validation_loss"])) == ("early", 9, 2, 2)


# ---------------------------------------------------------------- early stopping


def test_early_stopping_counts_what_is_no_better():
    stopping = EarlyStopping(patience=3, min_delta=0.1)
    assert [stopping.update(f) for f in (2.0, 1.95, 1.8, 1.75, math.nan)] == [True, False, True, False, False]
    assert not stopping.should_stop
    assert not stopping.update(1.9)
    assert stopping.should_stop
    assert (stopping.best, stopping.best_epoch) == (1.8, 3)
    rising = EarlyStopping(patience=1, mode="max")
    assert [rising.update(f) for f in (0.1, 0.2, 0.2)] == [True, True, False]


@pytest.mark.parametrize(("figures", "stopped", "best"), [([3, 2, 2.5, 2.4, 9, 9], "early", 2), ([3, 2, 1, 2], "finished", 3), ([3, 2, 1], "finished", 3)])
@pytest.mark.parametrize("restore_best", [True, False])
def test_early_stopping_ends_with_the_best_model_however_it_ends(figures, stopped, best, restore_best):
    model, states, given = Net(), [], iter(figures)

    def validation(model):
        states.append(model.state_dict())
        return next(given)

    stopping = EarlyStopping(2, restore_best=restore_best)
    history = train(model, validation=validation, callbacks=[stopping], epochs=len(figures))
    assert (history.stopped, stopping.best_epoch) == (stopped, best)
    assert same(model.state_dict(), states[best - 1] if restore_best else states[-1])


def test_early_stopping_begins_anew_with_each_training():
    stopping = EarlyStopping(1)
    for model in (Net(), Net(rng=1)):
        figures, states = iter([3, 1, 2]), []

        def validation(model, figures=figures, states=states):
            states.append(model.state_dict())
            return next(figures)

        history = train(model, validation=validation, callbacks=[stopping], epochs=9)
        assert (history.stopped, history.epochs, stopping.best_epoch) == ("early", 3, 2)
        assert same(model.state_dict(), states[1])


def test_early_stopping_watches_the_figure_of_its_name():
    history = train(Net(), callbacks=[EarlyStopping(1, "accuracy", "max")], validation=lambda model: {"accuracy": 0.5}, epochs=9)
    assert (history.stopped, history.epochs) == ("early", 2)
    history = train(Net(), lr=0.0, callbacks=[EarlyStopping(1, "loss", min_delta=0.5)], epochs=9)
    assert history.epochs == 2
    with pytest.raises(ValueError, match="monitor: expected one of loss, validation_loss, got 'accuracy'"):
        train(Net(), callbacks=[EarlyStopping(1, "accuracy")], validation=lambda model: 1.0)
    for options, message in (({"patience": 0}, "patience"), ({"patience": 1, "mode": "up"}, "mode"), ({"patience": 1, "min_delta": -1}, "min_delta")):
        with pytest.raises(ValueError, match=f"{message}: expected"):
            EarlyStopping(**options)
    with pytest.raises(TypeError, match="patience: expected an integer, got float"):
        EarlyStopping(1.5)


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_it_after_the_step():
    watch = Watch("step")
    history = train(Net(), epochs=5, callbacks=[Interrupt(10), watch], validation=lambda model: 1.0)
    assert (history.stopped, history.steps, history.epochs) == ("interrupted", 10, 1)
    assert watch.seen[-1] == (10,)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_it_at_once():
    with pytest.raises(KeyboardInterrupt):
        train(Net(), epochs=5, callbacks=[Interrupt(10, times=2)])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_programs_own_handler_is_left_to_it():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *arguments: heard.append(1))
    try:
        assert train(Net(), callbacks=[Interrupt(2)]).stopped == "finished"
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


def test_it_runs_outside_the_main_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(train(Net())))
    thread.start()
    thread.join()
    assert histories[0].stopped == "finished"


# ---------------------------------------------------------------- what does not fit together


def test_refusals_come_before_anything_is_trained():
    model, (x, y) = Net(), data()
    sgd = fs.optim.SGD(model.parameters(), lr=0.1)
    before = model.state_dict()
    for options, error, message in (
        ({"epochs": 0}, ValueError, "epochs: expected an integer of at least 1, got 0"),
        ({"accumulate": 1.5}, ValueError, "accumulate: expected an integer of at least 1, got 1.5"),
        ({"batches": iter([(x, y)])}, TypeError, "batches: expected something that can be gone through again and again, .* got list_iterator"),
        ({"batches": 3}, TypeError, "batches: expected something that can be gone through again and again"),
        ({"batches": []}, ValueError, "batches: expected at least one, got none in epoch 1"),
        ({"batches": [x]}, TypeError, "batches: expected tuples of arrays, got ndarray"),
        ({"optimizer": fs.optim.SGD(Net().parameters(), lr=0.1)}, ValueError, "optimizer: expected one that was made with this model's parameters"),
        ({"loss": lambda output, target: output.data}, TypeError, "loss: expected a Tensor of one element, got ndarray"),
        ({"loss": lambda output, target: output}, TypeError, r"loss: expected a Tensor of one element, got one of shape \(8, 2\)"),
        ({"loss": CarriedState()}, TypeError, "loss: expected a function of output and target, got CarriedState; give it as state="),
        ({"loss": None}, TypeError, "loss: expected a function of output and target, for Net has no method loss, got None"),
        ({"optimizer": "adam"}, TypeError, "optimizer: expected an optim.Optimizer, got str"),
        ({"schedule": 4}, TypeError, r"schedule: expected an object with step\(\), got int"),
        ({"callbacks": 4}, TypeError, "callbacks: expected a sequence of Callbacks, got int"),
        ({"callbacks": [4]}, TypeError, r"callbacks\[0\]: expected a Callback, got int"),
        ({"validation": iter([(x, y)])}, TypeError, "validation: expected batches that can be gone through .* got list_iterator"),
        ({"batches": [(x,)]}, ValueError, r"batches: expected tuples \(\*inputs, target\), got one of 1"),
        ({"checkpoint": "."}, IsADirectoryError, "checkpoint: expected the path of a file, got the folder ."),
        ({"state": CarriedState()}, ValueError, "state: expected None, for it is given to model.loss, and here loss is given"),
        ({"schedule": fs.optim.ReduceOnPlateau(sgd)}, ValueError, "validation: expected one, for ReduceOnPlateau follows its figure, got None"),
        ({"callbacks": [EarlyStopping(1)]}, ValueError, "validation: expected one, for EarlyStopping watches 'validation_loss', got None"),
    ):
        with pytest.raises(error, match=message):
            train(model, **options)
    assert same(model.state_dict(), before)
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got function"):
        fit(lambda x: x, [(x, y)], loss=fs.functional.cross_entropy, optimizer=sgd)
    with pytest.raises(ValueError, match="batches: expected at least one, got none"):
        evaluate(model, [])


# ---------------------------------------------------------------- history


def test_history_is_a_mapping_of_lists():
    history = History()
    history.record({"loss": 2.0})
    history.record({"loss": 1.0, "accuracy": np.float32(0.5)})
    assert dict(history)["loss"] == [2.0, 1.0]
    assert math.isnan(history["accuracy"][0])
    assert (history.best("loss"), history.best("accuracy", "max"), history.best("loss", "max")) == ((2, 1.0), (2, 0.5), (1, 2.0))
    assert "2 epochs" in repr(history)
    assert "loss 1" in repr(history)
    copied = History()
    copied.load_state_dict(history.state_dict())
    assert repr(copied) == repr(history)
    with pytest.raises(KeyError):
        history["f1"]
