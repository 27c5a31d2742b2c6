"""A training that test_training_kill.py kills: python kill_training.py CHECKPOINT RESULT. It prints a line after each step.

Everything that draws or remembers is in it: dropout, recurrent dropout, zoneout, noise from the process's generator, shuffled buckets,
Adam, a schedule, clipping, accumulation, early stopping, and a validation that draws random numbers itself.
"""

import sys

import numpy as np

import fastseq as fs
from fastseq.training import BucketBatches, Callback, Checkpoint, EarlyStopping, fit


class Tagger(fs.nn.Module):
    """A recurrent tagger whose loss draws from the process's generator too."""

    def __init__(self):
        self.embedding = fs.nn.Embedding(20, 8)
        self.dropout = fs.nn.Dropout(0.2)
        self.gru = fs.nn.GRU(8, 12, num_layers=2, dropout=0.2, recurrent_dropout=0.1, zoneout=0.1, bidirectional=True)
        self.head = fs.nn.Linear(24, 3)

    def loss(self, ids, lengths, tags):
        x = self.dropout(self.embedding(fs.Tensor(ids)))
        x = x + fs.runtime.generator().normal(0, 0.01, x.shape).astype(np.float32)
        y, _ = self.gru(x, lengths=lengths)
        return fs.functional.cross_entropy(self.head(y).reshape(-1, 3), tags.reshape(-1))


class Told(Callback):
    """Says that a step is done, so that the test knows when to kill."""

    def on_step(self, progress):
        sys.stdout.write(f"{progress.step}\n")
        sys.stdout.flush()


def main(checkpoint, result):
    fs.manual_seed(3)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 20, n) for n in rng.integers(1, 12, 90)]
    tags = [row % 3 for row in sequences]
    model = Tagger()
    batches = BucketBatches(sequences, tags, batch_size=8, pool=3)
    adam = fs.optim.Adam(model.parameters(), lr=5e-3)
    schedule = fs.optim.WarmupCosine(adam, 60, 10)

    def validation(model):
        fs.runtime.generator().random(7)
        return float(model.loss(*next(iter(batches))).item())

    kept = None if checkpoint == "-" else Checkpoint(checkpoint, every_steps=1)
    fit(model, batches, optimizer=adam, schedule=schedule, epochs=8, accumulate=2, max_norm=0.5, validation=validation, checkpoint=kept,
        callbacks=[EarlyStopping(patience=50), Told()], progress=False)  # fmt: skip
    np.savez(result, **model.state_dict())


if __name__ == "__main__":
    main(*sys.argv[1:])
