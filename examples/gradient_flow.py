"""Where the gradient goes: an RNN, a GRU and an LSTM on the copy memory task (Hochreiter & Schmidhuber 1997, Arjovsky et al. 2016).

Ten symbols are shown, then nothing for `--gap` steps, then a signal: now repeat them. Whatever a layer is to learn about the
symbols has to come back from the last steps to the first. The picture shows how much of dL/dh_t arrives there, for the loss of
the ten answers, before training and after it: in the simple RNN a few steps back it is gone, in the gated layers it is not.

    python examples/gradient_flow.py                 half a minute on two cores; writes gradient_flow.png
    python examples/gradient_flow.py --gap 300       farther back
"""

import argparse
import os

import numpy as np

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
SYMBOLS, SHOWN, BATCH = 8, 10, 32
BLANK, SIGNAL = 0, SYMBOLS + 1
LAYERS = {"RNN": (fs.nn.RNN, "#c44e52"), "GRU": (fs.nn.GRU, "#55a868"), "LSTM": (fs.nn.LSTM, "#4c72b0")}


def batch(gap, rng):
    """One-hot inputs (T, B, 10) and targets (T, B): blanks, and at last the symbols again."""
    T = gap + 2 * SHOWN
    ids, targets = np.full((T, BATCH), BLANK), np.full((T, BATCH), BLANK)
    ids[:SHOWN] = targets[-SHOWN:] = rng.integers(1, SYMBOLS + 1, (SHOWN, BATCH))
    ids[-SHOWN - 1] = SIGNAL
    return np.eye(SYMBOLS + 2, dtype=np.float32)[ids], targets


def loss_of(head, y, targets):
    return fs.functional.cross_entropy(head(y).reshape(-1, SYMBOLS + 1), targets.reshape(-1))


def train(layer, head, gap, steps):
    """Adam on fresh batches; returns the share of the answers that are right at the end."""
    rng, parameters = np.random.default_rng(1), [*layer.parameters(), *head.parameters()]
    adam = fs.optim.Adam(parameters, lr=2e-3)
    for _ in range(steps):
        x, targets = batch(gap, rng)
        y, _ = layer(fs.Tensor(x))
        adam.zero_grad()
        loss_of(head, y, targets).backward()
        fs.optim.clip_grad_norm(parameters, 1.0)
        adam.step()
    x, targets = batch(gap, rng)
    return float((head(layer(x)[0]).argmax(-1) == targets)[-SHOWN:].mean())


def flow(layer, head, gap):
    """The norm of dL/dh_t at each step, L being the loss of the answers alone."""
    x, targets = batch(gap, np.random.default_rng(2))
    return fs.diagnostics.gradient_flow(layer, x, loss=lambda y: loss_of(head, y[-SHOWN:], targets[-SHOWN:]))[0]


def draw(flows, gap, steps, path):
    from matplotlib import pyplot

    figure, (ax, table) = pyplot.subplots(1, 2, figsize=(10, 4.8), width_ratios=(5, 1), layout="constrained")
    for name, (before, after) in flows.items():
        color = LAYERS[name][1]
        ax.plot(np.where(before > 0, before, np.nan), color=color, lw=1.4, ls=(0, (4, 2)))
        ax.plot(np.where(after > 0, after, np.nan), color=color, lw=2.2)
    T = gap + 2 * SHOWN
    for start, end, text in ((0, SHOWN, "symbols\nshown"), (T - SHOWN, T, "symbols\nasked for")):
        ax.axvspan(start - 0.5, end - 0.5, color="0.92", zorder=0)
        ax.text((start + end - 1) / 2, 0.98, text, transform=ax.get_xaxis_transform(), ha="center", va="top", fontsize=8, color="0.35")
    ax.set(yscale="log", ylim=(None, 1e3 * max(norms.max() for pair in flows.values() for norms in pair)))  # room for the words
    ax.set(xlim=(-0.5, T - 0.5), xlabel="time step $t$", ylabel=r"$\|\partial L / \partial h_t\|$  (log scale)")
    ax.set_title(f"The gradient on its way back through {gap} empty steps", loc="left")
    ax.grid(axis="y", color="0.9", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    for name, (_, color) in LAYERS.items():
        table.plot([], [], color=color, lw=2.2, label=name)
    table.plot([], [], color="0.3", lw=1.4, ls=(0, (4, 2)), label="before training")
    table.plot([], [], color="0.3", lw=2.2, label=f"after {steps} steps")
    table.axis("off")
    table.legend(loc="upper left", frameon=False, borderaxespad=0)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3 if QUICK else 500, help="of training (default %(default)s)")
    parser.add_argument("--gap", type=int, default=20 if QUICK else 100, help="empty steps (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="units (default %(default)s)")
    parser.add_argument("--output", default="gradient_flow.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    flows = {}
    print(f"{'':6}{'|dL/dh| at the last step':>26}{'at the first, untrained':>26}{'and trained':>14}{'right answers':>16}")
    for name, (kind, _) in LAYERS.items():
        layer, head = kind(SYMBOLS + 2, options.hidden, rng=0), fs.nn.Linear(options.hidden, SYMBOLS + 1, rng=1)
        before = flow(layer, head, options.gap)
        right = train(layer, head, options.gap, options.steps)
        after = flow(layer, head, options.gap)
        flows[name] = before, after
        print(f"{name:6}{after[-1]:26.1e}{before[0]:26.1e}{after[0]:14.1e}{right:16.0%}", flush=True)
    try:
        draw(flows, options.gap, options.steps, options.output)
        print(f"wrote {options.output}")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')


if __name__ == "__main__":
    main()
