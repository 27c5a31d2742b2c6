"""Every optimiser, schedule and initialisation on one problem: a network that reads digits (scikit-learn's, 8 x 8 pixels).

The first 1,150 digits are trained on, the next 287 say when to lower a rate or to stop, the last 360 are the test. Three tables and a
picture: the optimisers at a constant learning rate; SGD with Nesterov's momentum at a rate that is too high for long, under each
schedule; a deeper network from each initialisation. At last all of it together: AdamW, warm-up and cosine, dropout, early stopping.

    python examples/optimizers.py                a minute on two cores; writes optimizers.png
    python examples/optimizers.py --epochs 100   for longer
"""

import argparse
import os

import numpy as np
from sklearn.datasets import load_digits

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
BATCH = 32

OPTIMIZERS = {
    "SGD": lambda p: fs.optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: fs.optim.SGD(p, lr=0.02, momentum=0.9),
    "SGD, Nesterov": lambda p: fs.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "Adagrad": lambda p: fs.optim.Adagrad(p, lr=0.03),
    "RMSprop": lambda p: fs.optim.RMSprop(p, lr=1e-3),
    "RMSprop, centred": lambda p: fs.optim.RMSprop(p, lr=1e-3, centered=True),
    "Adam": lambda p: fs.optim.Adam(p, lr=2e-3),
    "AdamW": lambda p: fs.optim.AdamW(p, lr=2e-3, weight_decay=0.05),
}
SCHEDULES = {
    "constant": lambda o, steps: None,
    "StepLR": lambda o, steps: fs.optim.StepLR(o, max(steps // 4, 1), gamma=0.3),
    "CosineDecay": lambda o, steps: fs.optim.CosineDecay(o, steps),
    "WarmupCosine": lambda o, steps: fs.optim.WarmupCosine(o, steps, steps // 10, floor=0.02),
    "InverseSqrt": lambda o, steps: fs.optim.InverseSqrt(o, max(steps // 10, 1)),
    "ReduceOnPlateau": lambda o, steps: fs.optim.ReduceOnPlateau(o, factor=0.3, patience=2),
}
STARTS = {
    "small: normal, 0.01": lambda shape, rng: 0.01 * rng.standard_normal(shape),
    "Glorot": lambda shape, rng: fs.nn.init.glorot(shape, rng=rng),
    "He": lambda shape, rng: fs.nn.init.he(shape, rng=rng),
    "orthogonal": lambda shape, rng: fs.nn.init.orthogonal(shape, gain=2**0.5, rng=rng),
}


def hasty(parameters):
    """What the schedules are tried with: a learning rate too high to stay at."""
    return fs.optim.SGD(parameters, lr=0.2, momentum=0.9, nesterov=True)


class Rates(fs.training.Callback):
    """Keeps the learning rate and the loss of each step."""

    def __init__(self):
        self.rates, self.losses = [], []

    def on_step(self, progress):
        self.rates.append(progress.learning_rate)
        self.losses.append(progress.loss)


def digits():
    x, y = load_digits(return_X_y=True)
    x = ((x - x[:1150].mean()) / x[:1150].std()).astype(np.float32)
    return [(x[part], y[part]) for part in (slice(1150), slice(1150, 1437), slice(1437, None))]


def train(data, make_optimizer, epochs, *, layers=2, start=None, schedule=None, seed=0):
    """A network trained; its steps, and the share of the test digits that it reads right."""
    digits, held_out, (x_test, y_test) = data
    model = fs.models.MLP([64] * layers + [64, 10], rng=seed)
    rng = np.random.default_rng(seed)
    if start:
        for parameter in model.parameters():
            parameter.data[...] = start(parameter.shape, rng) if parameter.ndim == 2 else 0
    optimizer, steps = make_optimizer(model.parameters()), Rates()
    batches = fs.training.Batches(*digits, batch_size=BATCH, rng=seed)
    plan = schedule(optimizer, epochs * len(batches)) if schedule else None
    fs.training.fit(model, batches, loss=fs.functional.cross_entropy, optimizer=optimizer, epochs=epochs, schedule=plan,
                    validation=[held_out], callbacks=[steps], progress=False)  # fmt: skip
    return steps, float((model(x_test).argmax(-1) == y_test).mean())


def everything(data, epochs, seed):
    """AdamW, warm-up and cosine, dropout, and early stopping."""
    digits, held_out, (x_test, y_test) = data
    model = fs.models.MLP([64, 128, 128, 10], dropout=0.3, rng=seed)
    batches = fs.training.Batches(*digits, batch_size=BATCH, rng=seed)
    adamw = fs.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    history = fs.training.fit(
        model, batches, loss=fs.functional.cross_entropy, optimizer=adamw, epochs=4 * epochs, validation=[held_out], max_norm=1.0,
        schedule=fs.optim.WarmupCosine(adamw, 4 * epochs * len(batches), 2 * len(batches), floor=0.02),
        callbacks=[fs.training.EarlyStopping(patience=8)],
    )  # fmt: skip
    return history, float((model(x_test).argmax(-1) == y_test).mean())


def smooth(losses, width=45):
    """The mean over about an epoch's steps."""
    width = min(width, len(losses))
    return np.convolve(losses, np.ones(width) / width, mode="valid")


def draw(tables, path):
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    rates = axes[1, 0]
    for ax, (title, runs) in zip((axes[0, 0], axes[0, 1], axes[1, 1]), tables.items(), strict=True):
        for n, (name, (steps, right)) in enumerate(runs.items()):
            style = {"color": f"C{n}", "lw": 1.6, "label": f"{name} ({right:.1%})"}
            ax.plot(smooth(steps.losses), **style)
            if "schedule" in title:
                rates.plot(steps.rates, **style)
        ax.set(title=title, xlabel="step", ylabel="training loss", yscale="log")
        ax.legend(frameon=False, fontsize=8)
    rates.set(title="the schedules' learning rates", xlabel="step", ylabel="learning rate", ylim=(0, None))
    for ax in axes.flat:
        ax.grid(color="0.92", lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=1 if QUICK else 25, help="of each training (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    parser.add_argument("--output", default="optimizers.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    def run(make, **more):
        return train(data, make, options.epochs, seed=options.seed, **more)

    data, tables = digits(), {}
    for title, runs in (
        ("optimisers, constant rate", {name: lambda make=make: run(make) for name, make in OPTIMIZERS.items()}),
        ("schedules, SGD with Nesterov", {name: lambda plan=plan: run(hasty, schedule=plan) for name, plan in SCHEDULES.items()}),
        ("initialisations, 10 layers, Adam", {name: lambda start=start: run(OPTIMIZERS["Adam"], layers=9, start=start) for name, start in STARTS.items()}),
    ):  # fmt: skip
        print(f"{title:34}{'last training loss':>20}{'test digits right':>20}")
        tables[title] = {}
        for name, train_it in runs.items():
            tables[title][name] = steps, right = train_it()
            print(f"  {name:32}{smooth(steps.losses)[-1]:20.5f}{right:20.1%}", flush=True)
    history, right = everything(data, options.epochs, options.seed)
    print(f"AdamW, warm-up and cosine, dropout: stopped {history.stopped} after {len(history['loss'])} epochs, test digits right {right:.1%}")
    try:
        draw(tables, options.output)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
