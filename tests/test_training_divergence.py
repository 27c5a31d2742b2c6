"""Numbers that are not finite: a clear end, where it began, and a model that is still one."""

import math

import numpy as np
import pytest

import fastseq as fs
from fastseq.training import Batches, Callback, TrainingDiverged
from fastseq.training.checkpoint import read_checkpoint
from tests.training_problems import Net, data, same, train


def diverged(model, batches=None, **options):
    """The error, after which the model is finite, in evaluation mode and without gradients."""
    with pytest.raises(TrainingDiverged) as caught, np.errstate(all="ignore"):
        train(model, batches, **options)
    assert all(np.isfinite(array).all() for array in model.state_dict().values())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    return caught.value


class Spoil(Callback):
    """Puts a number where it does not belong, after a step."""

    def __init__(self, step, change):
        self.step, self.change = step, change

    def on_step(self, progress):
        if progress.step == self.step:
            self.change(progress.model)


def test_it_says_in_which_parameter_it_began():
    model, states = Net(), []

    def spoil(model):
        states.append(model.state_dict())
        model.second.weight.data[1, 3] = math.inf

    class Epochs(Callback):
        def on_epoch(self, progress):
            states.append(progress.model.state_dict())

    error = diverged(model, epochs=3, callbacks=[Epochs(), Spoil(9, spoil)])
    assert (error.epoch, error.batch, error.step) == (2, 3, 10)
    assert error.where == "the parameter second.weight holds inf at [1, 3]"
    assert "in epoch 2, batch 3, at step 10 (learning rate 0.05): the parameter second.weight" in str(error)
    assert "the model is as after step 7" in str(error)
    assert same(model.state_dict(), states[0])


def test_it_says_in_which_array_of_the_batch_it_began():
    x, y = data()
    x[20, 1] = math.nan
    model = Net()
    error = diverged(model, Batches(x, y, batch_size=8, shuffle=False))
    assert (error.epoch, error.batch, error.step) == (1, 3, 3)
    assert error.where == "array 0 of the batch holds nan at [4, 1]"
    assert diverged(Net(), [(x[:0], y[:0])]).where == "array 0 of the batch is empty"
    assert "the model is as before this step" in str(error)


def test_it_says_in_which_module_it_began():
    class Overflows(fs.nn.Module):
        def forward(self, x):
            return x * 1e30 * 1e30

    model = fs.nn.Sequential(fs.nn.Linear(3, 4, rng=0), Overflows(), fs.nn.Linear(4, 2, rng=0))
    error = diverged(model)
    assert error.where.startswith("the output of 1 (Overflows) holds ")
    assert error.where.endswith(", and nothing before it")
    assert "forward" not in vars(model[1])


def test_it_says_in_which_gradient_it_began():
    class Root(fs.nn.Module):
        def __init__(self):
            self.below, self.above = fs.nn.Linear(3, 1, rng=0), fs.nn.Linear(1, 1, rng=0)

        def loss(self, x, y):
            return ((self.above(self.below(fs.Tensor(x)) * 0) - self.above.bias) ** 0.5).mean()  # sqrt(0): its slope is infinite

    error = diverged(Root(), loss=None)
    assert "the norm of the gradient became" in str(error)
    assert error.where.startswith("the gradient of above.")


def test_a_step_too_large_for_its_dtype_is_undone():
    model = Net()
    kept = model.state_dict()
    error = diverged(model, lr=1e39)
    assert error.step == 2
    assert error.where.startswith("the parameter first.weight holds ")
    assert same(model.state_dict(), kept)


def test_a_checkpoint_never_holds_what_is_not_finite(tmp_path):
    model = Net()
    error = diverged(model, Batches(*data(), batch_size=50), lr=1e39, checkpoint=tmp_path / "checkpoint")
    assert error.where.startswith("the parameter first.weight holds ")
    assert read_checkpoint(str(tmp_path / "checkpoint"))["at"]["step"] == 0


def test_a_last_step_that_overflows_is_found():
    model = Net()
    before = model.state_dict()
    error = diverged(model, [data()], lr=1e300)
    assert error.where.startswith("the parameter first.weight holds")
    assert "a parameter is no longer finite in epoch 1, batch 1" in str(error)
    assert same(model.state_dict(), before)


def test_a_buffer_that_is_infinite_by_design_is_no_divergence(tmp_path):
    class Masked(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", np.float32([0, -np.inf]))

    assert train(Masked(), checkpoint=tmp_path / "checkpoint").stopped == "finished"
    with pytest.raises(TrainingDiverged) as caught, np.errstate(all="ignore"):
        train(Masked(), [data()], lr=1e300)
    assert caught.value.where.startswith("the parameter first.weight holds")
