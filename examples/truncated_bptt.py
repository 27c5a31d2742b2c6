"""Sequences without an end: truncated backpropagation through time, and checkpoints where it must not be truncated.

A layer has to repeat, without a pause, what it read `--delay` steps ago. The signal comes in pieces; the state goes on from piece
to piece, the gradient stops at each beginning. Then the gradient of one long sequence, with and without checkpoints.

    python examples/truncated_bptt.py
"""

import argparse
import os
import resource

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
BATCH, PIECE = 16, 20


class Echo(fs.nn.Module):
    """A GRU that is to say what it read some steps ago."""

    def __init__(self):
        self.gru, self.head = fs.nn.GRU(1, 48, rng=0), fs.nn.Linear(48, 1, rng=1)

    def loss(self, x, wanted, state=None):
        y, after = self.gru(fs.Tensor(x), state.value if state else None)
        if state:
            state.value = after  # which cuts it off from what was recorded: the gradient stops here
        return fs.functional.mse_loss(self.head(y), wanted)


def train(signal, delay, carry):
    """The mean squared error over pieces that it has not seen, with the state carried over or zero at each beginning."""
    pieces = [(signal[t : t + PIECE], signal[t - delay : t - delay + PIECE]) for t in range(delay, len(signal) - PIECE + 1, PIECE)]
    cut = len(pieces) - len(pieces) // 10 - 1
    echo, state = Echo(), fs.training.CarriedState() if carry else None
    fs.training.fit(echo, pieces[:cut], optimizer=fs.optim.Adam(echo.parameters(), lr=5e-3), max_norm=1.0, state=state, progress=False)
    return fs.training.evaluate(echo, pieces[cut:], state=state)


def megabytes():
    """The most memory that this process has held so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def gradient(layer, x, every):
    """The gradients of one long sequence, and by how much the peak of memory rose for them, in MB."""
    layer.zero_grad()
    before = megabytes()
    y, _ = layer(fs.Tensor(x), checkpoint_every=every)
    y.mean().backward()
    return [p.grad for p in layer.parameters()], megabytes() - before


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=5 if QUICK else 1500, help="pieces to train on (default %(default)s)")
    parser.add_argument("--delay", type=int, default=8, help="steps to remember (default %(default)s)")
    parser.add_argument("--length", type=int, default=200 if QUICK else 10_000, help="of the long sequence (default %(default)s)")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    signal = rng.choice(np.float32([-1, 1]), (options.delay + options.steps * PIECE, BATCH, 1))
    for carry, text in ((True, "state carried over"), (False, "zero state at each piece")):
        print(f"{text:26} mean squared error {train(signal, options.delay, carry):.3f}", flush=True)

    lstm, x = fs.nn.LSTM(8, 64, rng=0), rng.standard_normal((options.length, 8, 8), np.float32)
    again, less = gradient(lstm, x, int(options.length**0.5))
    whole, more = gradient(lstm, x, None)  # after the other, for a peak never falls
    same = all(np.array_equal(a, b) for a, b in zip(whole, again, strict=True))
    print(f"{options.length} steps at once with checkpoints: {less:.0f} MB more; without: another {more:.0f} MB")
    print(f"the gradients are {'the same' if same else 'not the same'} to the last bit")


if __name__ == "__main__":
    main()
