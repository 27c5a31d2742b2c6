"""Two problems that only a memory solves, for every recurrent layer (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016).

Adding: of T pairs (number, mark) two are marked, far apart; what is the sum of their numbers? Answering 1 always errs by 0.167.
Copying: ten symbols, T blanks, a signal; now repeat them. Without a memory cross-entropy cannot fall below 10 ln 8 / (T + 20).

How a layer starts decides how soon it learns: the recurrent matrices turn what they get and do not shrink it (orthogonal; the RNN's
is the identity, Le et al. 2015), and gates begin by keeping what they hold for up to T steps (Tallec & Ollivier 2018). Gradients are
clipped. For copying, normalised sums (layer norm) bring an LSTM much farther in fewer steps.

    python examples/long_memory.py                           all, some minutes on two cores; writes long_memory.png
    python examples/long_memory.py --problem adding --cell gru --length 1000
"""

import argparse
import os

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
SYMBOLS, SHOWN, LOOK = 8, 10, 50  # LOOK: steps between two looks at held-out sequences
CELLS = {
    "rnn": lambda *sizes, **options: fs.nn.RNN(*sizes, nonlinearity="relu", **options),
    "lstm": fs.nn.LSTM,
    "lstm, layer norm": lambda *sizes, **options: fs.nn.LSTM(*sizes, layer_norm=True, **options),
    "gru": fs.nn.GRU,
    "gru, reset before": lambda *sizes, **options: fs.nn.GRU(*sizes, reset_after=False, **options),
    "mut1": fs.nn.MUT1,
    "mut2": fs.nn.MUT2,
    "mut3": fs.nn.MUT3,
}
#: problem, cell, T, units, learning rate, steps (of adding at most: it ends when solved)
RUNS = [
    ("adding", "rnn", 30, 64, 1e-3, 4000),
    ("adding", "lstm", 400, 64, 1e-2, 2000),
    ("adding", "gru", 400, 64, 1e-2, 2000),
    ("adding", "gru, reset before", 400, 64, 1e-2, 2000),
    ("adding", "mut1", 100, 64, 1e-2, 2000),
    ("adding", "mut2", 100, 64, 1e-2, 2000),
    ("adding", "mut3", 100, 64, 1e-2, 2000),
    ("copying", "lstm", 100, 64, 1e-2, 5000),
    ("copying", "lstm, layer norm", 100, 64, 1e-2, 3000),
    ("copying", "gru", 100, 128, 1e-2, 3000),
    ("copying", "gru, reset before", 100, 128, 1e-2, 3000),
]


class Adding:
    """(T, B, 2) numbers and marks -> (B, 1) sums."""

    sizes, every_step, max_norm, solved = (2, 1), False, 1.0, 0.01

    def __init__(self, T):
        self.T, self.without_memory = T, 1 / 6

    def batch(self, B, rng):
        rows, x = np.arange(B), np.zeros((self.T, B, 2), np.float32)
        x[..., 0] = rng.uniform(0, 1, (self.T, B))
        first, second = rng.integers(0, self.T // 2, B), rng.integers(self.T // 2, self.T, B)
        x[first, rows, 1] = x[second, rows, 1] = 1
        return x, x[first, rows, :1] + x[second, rows, :1]

    def loss(self, sums, targets):
        return fs.functional.mse_loss(sums, targets)

    def start(self, layer, H, rng):
        """A gate that keeps a state for so many steps keeps a share of 1 - 1 / steps of it at each: its bias is log(steps)."""
        steps = rng.uniform(1, self.T, H)
        if isinstance(layer, fs.nn.LSTM):
            layer.bias_ih_l0.data[: 2 * H] = np.log([1 / steps, steps]).ravel()  # what the forget gate keeps the input gate refuses
        elif isinstance(layer, fs.nn.GRU):
            layer.bias_ih_l0.data[H : 2 * H] = np.log(steps)


class Copying:
    """(T + 20, B, 10) one-hot symbols -> (T + 20, B) symbols: blanks, and at last those shown."""

    sizes, every_step, max_norm, solved = (SYMBOLS + 2, SYMBOLS + 1), True, 0.2, 0.0

    def __init__(self, T):
        self.T, self.without_memory = T, SHOWN * np.log(SYMBOLS) / (T + 2 * SHOWN)

    def batch(self, B, rng):
        ids, targets = np.zeros((2, self.T + 2 * SHOWN, B), int)
        ids[:SHOWN] = targets[-SHOWN:] = rng.integers(1, SYMBOLS + 1, (SHOWN, B))
        ids[-SHOWN - 1] = SYMBOLS + 1  # the signal
        return np.eye(SYMBOLS + 2, dtype=np.float32)[ids], targets

    def loss(self, scores, targets):
        return fs.functional.cross_entropy(scores.reshape(-1, scores.shape[2]), targets.reshape(-1))

    def start(self, layer, H, rng):
        if isinstance(layer, fs.nn.LSTM):
            layer.bias_ih_l0.data[H : 2 * H] = np.log(self.T)


class Batches:
    """Fresh sequences for each of the `count` steps of an epoch."""

    def __init__(self, problem, count, rng):
        self.problem, self.count, self.rng = problem, count, rng

    def __len__(self):
        return self.count

    def __iter__(self):
        return (self.problem.batch(32, self.rng) for _ in range(self.count))


class Reader(fs.nn.Module):
    """A recurrent layer, and a linear one after each step or after the last."""

    def __init__(self, cell, problem, units, rng):
        self.problem = problem
        self.layer = CELLS[cell](problem.sizes[0], units, rng=rng)
        self.head = fs.nn.Linear(units, problem.sizes[1], rng=rng)
        matrices = self.layer.weight_hh_l0.data
        for gate in np.split(matrices, len(matrices) // units):
            gate[...] = np.eye(units) if cell == "rnn" else fs.nn.init.orthogonal(gate.shape, rng=rng)
        problem.start(self.layer, units, rng)

    def forward(self, x):
        y, _ = self.layer(x)
        return self.head(y if self.problem.every_step else y[-1])

    def loss(self, x, targets):
        return self.problem.loss(self(fs.Tensor(x)), targets)


class StopWhenSolved(fs.training.Callback):
    def __init__(self, loss):
        self.loss = loss

    def on_epoch(self, progress):
        progress.stop = progress.figures["validation_loss"] < self.loss


def train(problem, cell, units, learning_rate, steps, seed):
    """The loss on held-out sequences after every LOOK steps."""
    rng = np.random.default_rng(seed)
    model = Reader(cell, problem, units, rng)
    held_out = [problem.batch(100, rng) for _ in range(5)]
    adam = fs.optim.Adam(model.parameters(), lr=learning_rate)
    look = min(LOOK, steps)
    return fs.training.fit(
        model, Batches(problem, look, rng), optimizer=adam, schedule=fs.optim.CosineDecay(adam, steps), epochs=steps // look,
        validation=held_out, max_norm=problem.max_norm, callbacks=[StopWhenSolved(problem.solved)])


def draw(curves, path):
    from matplotlib import pyplot

    problems = [p for p in ("adding", "copying") if any(p == problem for problem, *_ in curves)]
    figure, axes = pyplot.subplots(1, len(problems), figsize=(5.5 * len(problems), 4.2), squeeze=False, layout="constrained")
    for ax, name in zip(axes[0], problems, strict=True):
        for problem, cell, T, without, losses in curves:
            if problem == name:
                ax.plot(LOOK * np.arange(1, len(losses) + 1), np.array(losses) / without, label=f"{cell}, T = {T}")
        ax.axhline(1, color="0.6", lw=1, ls=(0, (4, 2)), label="without a memory")
        ax.set(title=name, xlabel="steps", ylabel="loss, as a share of that without a memory", ylim=(0, 1.4))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problem", choices=("adding", "copying"), help="only this one")
    parser.add_argument("--cell", choices=CELLS, help="only this one")
    parser.add_argument("--length", type=int, default=20 if QUICK else None, help="T, in place of each run's own")
    parser.add_argument("--steps", type=int, default=2 if QUICK else None, help="at most, in place of each run's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="long_memory.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    curves = []
    print(f"{'problem':9}{'layer':19}{'T':>5}{'steps':>7}{'seconds':>9}{'loss':>9}{'without a memory':>18}")
    for problem, cell, T, units, learning_rate, steps in RUNS:
        if options.problem not in (None, problem) or options.cell not in (None, cell):
            continue
        task = {"adding": Adding, "copying": Copying}[problem](options.length or T)
        history = train(task, cell, units, learning_rate, options.steps or steps, options.seed)
        losses = history["validation_loss"]
        curves.append((problem, cell, task.T, task.without_memory, losses))
        print(f"{problem:9}{cell:19}{task.T:5}{history.steps:7}{history.seconds:9.0f}{losses[-1]:9.4f}{task.without_memory:18.4f}", flush=True)
    try:
        draw(curves, options.output)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
