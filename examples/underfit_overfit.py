"""Underfitting and overfitting, drawn once; k-fold validation chooses a net, and digits that nobody has looked at judge it.

scikit-learn has the handwritten digits, the folds and the scaling, whose means come from the training part alone, in each fold too.

    python examples/underfit_overfit.py
"""

import argparse
import os

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import KFold, train_test_split
from sklearn.preprocessing import StandardScaler

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
FEW, WRONG = 200, 0.15  # images to train on where overfitting is to be seen, and the share of them with a wrong label
#: name: units of the hidden layer, share of them dropped, weight decay
NETS = {"too small": (2, 0.0, 0.0), "too large": (512, 0.0, 0.0), "large, with dropout and weight decay": (512, 0.8, 1.0)}


def net(units, dropout, seed):
    """One hidden layer."""
    return fs.nn.Sequential(fs.nn.Linear(64, units, rng=seed), fs.nn.ReLU(), fs.nn.Dropout(dropout, rng=seed), fs.nn.Linear(units, 10, rng=seed))


def scaled(training, *others):
    """(images, labels) of each, the images to mean 0 and deviation 1 of the training images."""
    scaler = StandardScaler().fit(training[0])
    return [(scaler.transform(x).astype(np.float32), y) for x, y in (training, *others)]


def accuracy(model, x, y):
    return float(np.mean(model(x).argmax(1) == y))


def train(shape, training, held_out, epochs, seed, patience=None):
    """A model and its history, the figures of the held-out images among them."""
    units, dropout, decay = shape
    model = net(units, dropout, seed)

    def look(model):
        x, y = held_out
        return {"validation_loss": fs.functional.cross_entropy(model(x), y), "accuracy": accuracy(model, x, y)}

    history = fs.training.fit(
        model, fs.training.Batches(*training, batch_size=50, rng=seed), loss=fs.functional.cross_entropy, validation=look, epochs=epochs,
        optimizer=fs.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=decay),
        callbacks=[fs.training.EarlyStopping(patience)] if patience else [], progress=False)
    return model, history


def curves(pool, epochs, seed, path):
    """Train each net on a few images, and draw what happens."""
    few, rest = train_test_split(np.arange(len(pool[1])), train_size=FEW, stratify=pool[1], random_state=seed)
    (images, labels), held_out = scaled(*((pool[0][rows], pool[1][rows]) for rows in (few, rest)))
    rng = np.random.default_rng(seed)
    wrong = rng.random(FEW) < WRONG
    training, histories = (images, np.where(wrong, rng.integers(0, 10, FEW), labels)), {}
    print(f"{FEW} images to train on, {wrong.sum()} of them with a random label; {len(rest)} to look at:")
    for name, shape in NETS.items():
        _, histories[name] = train(shape, training, held_out, epochs, seed)
        epoch, lowest = histories[name].best("validation_loss")
        losses = [histories[name][figure][-1] for figure in ("loss", "validation_loss")]
        print(f"  {name:36} loss {losses[0]:.4f}, held out {losses[1]:.3f}; the lowest was {lowest:.3f}, in epoch {epoch}")
    try:
        figure, places = fs.plot.pyplot().subplots(1, len(NETS), figsize=(13, 3.8), sharey=True, layout="constrained")
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')
        return
    for ax, (name, history) in zip(places, histories.items(), strict=True):
        fs.plot.curves(history, ["loss", "validation_loss"], ax=ax, log=True, title=name)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=3 if QUICK else 150, help="of the curves; the folds end early (default %(default)s)")
    parser.add_argument("--folds", type=int, default=2 if QUICK else 5, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the splits, the weights and the batches (default %(default)s)")
    parser.add_argument("--output", default="underfit_overfit.png", help="the picture (default %(default)s)")
    options = parser.parse_args()

    x, y = load_digits(return_X_y=True)
    pool, test = (x[:1437], y[:1437]), (x[1437:], y[1437:])  # the last ones, which nobody looks at before the end
    curves(pool, options.epochs, options.seed, options.output)

    print(f"{options.folds} folds of {len(pool[1])} images:")
    means = {}
    for units in (2, 8, 32, 128, 512):
        found = []
        # In order: neighbours are alike, perhaps by one hand, and shuffled folds would promise 0.98 where the hold-out gives 0.93.
        for number, (inside, outside) in enumerate(KFold(options.folds).split(pool[0])):
            parts = scaled(*((pool[0][rows], pool[1][rows]) for rows in (inside, outside)))
            model, _ = train((units, 0.2, 0.01), *parts, options.epochs, options.seed + number, patience=5)
            found.append(accuracy(model, *parts[1]))
        means[units] = np.mean(found)
        print(f"  {units:4} units: accuracy {means[units]:.3f} +- {np.std(found, ddof=1):.3f}")

    best = max(means, key=lambda units: (means[units], -units))
    inside, outside = train_test_split(np.arange(1437), test_size=0.1, stratify=pool[1], random_state=options.seed)
    training, held_out, (images, labels) = scaled(*((pool[0][rows], pool[1][rows]) for rows in (inside, outside)), test)
    model, _ = train((best, 0.2, 0.01), training, held_out, options.epochs, options.seed, patience=5)
    print(f"{best} units, on the {len(labels)} images kept apart: accuracy {accuracy(model, images, labels):.3f}; rows are true digits:")
    print(confusion_matrix(labels, model(images).argmax(1)))


if __name__ == "__main__":
    main()
