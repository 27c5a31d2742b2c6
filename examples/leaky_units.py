"""Leaky units and connections across several time steps, composed from a cell.

    h_t = a h_{t-1} + (1 - a) tanh(W x_t + U h_{t-1} + V h_{t-k} + b)

with a fixed or learned for each unit. Two ways for a gradient to come from afar without a gate: a unit with a near 1 forgets
slowly, and the connection to h_{t-k} makes the way k times shorter. What the layer learns is the first number that it was shown.

    python examples/leaky_units.py
"""

import argparse
import os
from collections import deque

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs


class LeakyRNN(fs.nn.Module):
    """A loop around an RNNCell. leak: the a that units start with; skip: k, 0 for no such connection."""

    def __init__(self, input_size, hidden_size, *, leak=0.0, learned=False, skip=0, rng=None):
        self.hidden_size, self.skip, self.learned = hidden_size, skip, learned
        self.cell = fs.nn.RNNCell(input_size + (hidden_size if skip else 0), hidden_size, rng=rng)
        start = np.full(hidden_size, leak, np.float32)
        self.leak = fs.nn.Parameter(np.log(start / (1 - start))) if learned else start

    def forward(self, x):
        a = fs.functional.sigmoid(self.leak) if self.learned else self.leak
        h = fs.Tensor(np.zeros((x.shape[1], self.hidden_size), np.float32))
        before, outputs = deque([h] * self.skip, maxlen=self.skip or 1), []  # the last k states, the oldest first
        for x_t in x:
            read = fs.concatenate([x_t, before[0]], axis=1) if self.skip else x_t
            h = a * h + (1 - a) * self.cell(read, h)
            before.append(h)
            outputs.append(h)
        return fs.stack(outputs)


def train(layer, length, steps):
    """The mean squared error of the first number, read from the last state, over the last tenth of the steps."""
    rng, head, losses = np.random.default_rng(1), fs.nn.Linear(layer.hidden_size, 1, rng=2), []
    parameters = [*layer.parameters(), *head.parameters()]
    adam = fs.optim.Adam(parameters, lr=3e-3)
    for _ in range(steps):
        x = rng.uniform(-1, 1, (length, 32, 1)).astype(np.float32)
        loss = fs.functional.mse_loss(head(layer(fs.Tensor(x))[-1]), x[0])
        adam.zero_grad()
        loss.backward()
        fs.optim.clip_grad_norm(parameters, 1.0)
        adam.step()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, steps // 10) :]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3 if QUICK else 300, help="of training (default %(default)s)")
    parser.add_argument("--length", type=int, default=10 if QUICK else 40, help="of a sequence (default %(default)s)")
    options = parser.parse_args()

    print(f"predicting nothing: mean squared error {1 / 3:.3f}")
    for name, kind in {
        "plain": {},
        "leaky, a = 0.9": {"leak": 0.9},
        "leaky, a learned from 0.9": {"leak": 0.9, "learned": True},
        "across 10 steps": {"skip": 10},
        "both, a learned from 0.5": {"leak": 0.5, "learned": True, "skip": 10},
    }.items():
        layer = LeakyRNN(1, 32, rng=0, **kind)
        print(f"{name:28} {train(layer, options.length, options.steps):.3f}", flush=True)


if __name__ == "__main__":
    main()
