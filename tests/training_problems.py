"""What the tests of training train: a small net on small data."""

import os
import signal

import numpy as np

import fastseq as fs
from fastseq.training import Batches, Callback, fit


class Net(fs.nn.Module):
    """Two layers with dropout between them."""

    def __init__(self, dropout=0.5, dtype=np.float32, rng=0):
        self.first = fs.nn.Linear(3, 8, dtype=dtype, rng=rng)
        self.drop = fs.nn.Dropout(dropout, rng=rng)
        self.second = fs.nn.Linear(8, 2, dtype=dtype, rng=rng)

    def forward(self, x):
        return self.second(self.drop(fs.functional.tanh(self.first(x))))


def data(n=50, dtype=np.float32):
    x = np.random.default_rng(0).standard_normal((n, 3)).astype(dtype)
    return x, (x[:, 0] > x[:, 1]).astype(np.int64)


def train(model, batches=None, *, lr=0.05, optimizer=None, **options):
    """`fit` with what these tests do not vary."""
    batches = Batches(*data(), batch_size=8, rng=0) if batches is None else batches
    optimizer = optimizer or fs.optim.SGD(model.parameters(), lr=lr)
    return fit(model, batches, optimizer=optimizer, **{"loss": fs.functional.cross_entropy, "progress": False, **options})


def same(one, other):
    return all(np.array_equal(array, other[name]) for name, array in one.items())


class Interrupt(Callback):
    """Ctrl-C after a step, so many times."""

    def __init__(self, step, times=1):
        self.step, self.times = step, times

    def on_step(self, progress):
        if progress.step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
