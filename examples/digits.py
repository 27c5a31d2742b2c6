"""Handwritten digits five ways: a multi-layer perceptron, LeNet, 20 highway layers, 20 plain ones, and an LSTM that reads row by row.

The 1,797 digits of 8 x 8 pixels are scikit-learn's, so no file is needed: the first 1,437 to train on, the last 360, which other people
wrote, to test on. All are trained alike, on images that are turned, stretched and moved a little, anew in each epoch.

    python examples/digits.py
    python examples/digits.py --model lenet --epochs 80
"""

import argparse
import os

import numpy as np
from sklearn.datasets import load_digits

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
TRAINING = 1437
GRID = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij")).reshape(2, 64) - 3.5  # pixels from the middle


class Classifier:
    """What all models share: images (B, 8, 8) and their classes give a loss."""

    def loss(self, images, labels):
        return fs.functional.cross_entropy(self(fs.Tensor(images)), labels)


class ByRows(Classifier, fs.nn.Module):
    """An LSTM over the rows of images; what it believes after each, or after the last."""

    def __init__(self, hidden_size=128, rng=None):
        self.lstm = fs.nn.LSTM(8, hidden_size, rng=rng)
        self.dropout = fs.nn.Dropout(0.3, rng=rng)
        self.head = fs.nn.Linear(hidden_size, 10, rng=rng)

    def states(self, images):
        return self.lstm(images.transpose(1, 0, 2))[0]

    def forward(self, images):
        return self.head(self.dropout(self.states(images)[-1]))

    def row_by_row(self, images):
        return fs.functional.softmax(self.head(self.states(images)))


class Deep(Classifier, fs.nn.Module):
    """20 layers of 64 units, each one a highway or plain."""

    def __init__(self, highway, rng=None):
        self.first, self.last = fs.nn.Linear(64, 64, rng=rng), fs.nn.Linear(64, 10, rng=rng)
        self.dropout = fs.nn.Dropout(0.2, rng=rng)
        plain = lambda: fs.nn.Sequential(fs.nn.Linear(64, 64, rng=rng), fs.nn.ReLU())  # noqa: E731
        self.layers = fs.nn.Sequential(*[fs.nn.Highway(64, rng=rng) if highway else plain() for _ in range(20)])

    def forward(self, images):
        h = self.dropout(fs.functional.relu(self.first(images.reshape(len(images), 64))))
        return self.last(self.dropout(self.layers(h)))


class Flat(Classifier, fs.models.MLP):
    def forward(self, images):
        return super().forward(images.reshape(len(images), 64))


class OneChannel(Classifier, fs.models.LeNet):
    def forward(self, images):
        return super().forward(images.reshape(len(images), 1, 8, 8))


#: What makes each model, the epochs it trains for, the learning rate, and images in a batch.
MODELS = {
    "mlp": (lambda rng: Flat([64, 256, 256, 10], dropout=0.3, rng=rng), 100, 2e-3, 32),
    "lenet": (lambda rng: OneChannel(10, image_size=8, kernel_size=3, widths=(32, 64, 120, 84), dropout=0.3, rng=rng), 80, 2e-3, 32),
    "highway": (lambda rng: Deep(True, rng), 100, 3e-3, 64),
    "plain": (lambda rng: Deep(False, rng), 100, 3e-3, 64),
    "rows": (lambda rng: ByRows(rng=rng), 120, 4e-3, 32),
}


def digits():
    """Images (1797, 8, 8) of numbers from 0 to 1, and their classes."""
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32).reshape(-1, 8, 8), labels


def moved(images, rng):
    """Each image turned by up to 0.2, sheared and scaled by up to 15 %, moved by up to 0.7 pixels; between pixels, their mean."""
    n = len(images)
    turn, shear, scale = rng.uniform(-1, 1, (3, n)) * [[0.2], [0.15], [0.1]]
    matrix = np.array([[np.cos(turn), shear - np.sin(turn)], [np.sin(turn), np.cos(turn)]]).transpose(2, 0, 1) * (1 + scale)[:, None, None]
    places = np.clip(matrix @ GRID + 4.5 + rng.uniform(-0.7, 0.7, (n, 2, 1)), 0, 8.999)  # in images with a border of one zero
    (i, j), (u, v) = places.astype(int).transpose(1, 0, 2), (places % 1).transpose(1, 0, 2)
    padded, each = np.pad(images, ((0, 0), (1, 1), (1, 1))), np.arange(n)[:, None]
    above = padded[each, i, j] * (1 - v) + padded[each, i, j + 1] * v
    below = padded[each, i + 1, j] * (1 - v) + padded[each, i + 1, j + 1] * v
    return (above * (1 - u) + below * u).reshape(images.shape).astype(np.float32)


class Moved:
    """Batches in a new order, of images moved anew, each time that they are gone through."""

    def __init__(self, images, labels, batch_size, rng):
        self.images, self.labels, self.batch_size, self.rng = images, labels, batch_size, rng

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __iter__(self):
        order = self.rng.permutation(len(self.images))
        for chosen in np.array_split(order, len(self)):
            yield moved(self.images[chosen], self.rng), self.labels[chosen]


def train(name, images, labels, epochs, seed):
    """A trained model, and the seconds that it took."""
    make, usual, lr, batch_size = MODELS[name]
    rng = np.random.default_rng(seed)
    model, batches = make(rng), Moved(images, labels, batch_size, rng)
    epochs = epochs or (1 if QUICK else usual)
    adam = fs.optim.AdamW(model.parameters(), lr=lr)
    schedule = fs.optim.CosineDecay(adam, epochs * len(batches))
    history = fs.training.fit(model, batches, optimizer=adam, schedule=schedule, epochs=epochs, max_norm=1.0)
    return model, history.seconds


def draw(model, images, path):
    """Some digits, and what the LSTM believes after each of their rows."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')
        return
    beliefs = model.row_by_row(images)  # (8, B, 10)
    figure, axes = plt.subplots(2, len(images), figsize=(1.6 * len(images), 3.6), layout="constrained")
    for k, (above, below) in enumerate(axes.T):
        above.imshow(images[k], cmap="gray_r")
        below.imshow(beliefs[:, k], cmap="viridis", vmin=0, vmax=1, aspect="auto")
        above.set_axis_off()
        below.set(xticks=range(0, 10, 3), yticks=[])
    axes[1, 0].set(ylabel="rows read", yticks=range(8), yticklabels=range(1, 9))
    figure.supxlabel("digit")
    figure.savefig(path, dpi=120)
    print(f"wrote {path}: what the LSTM believes after each row")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--epochs", type=int, help="(default: each model's own, 80 to 120)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    images, labels = digits()
    for name in MODELS if options.model == "all" else [options.model]:
        model, seconds = train(name, images[:TRAINING], labels[:TRAINING], options.epochs, options.seed)
        accuracy = np.mean(model(images[TRAINING:]).argmax(-1) == labels[TRAINING:])
        print(f"{name:8} {sum(p.size for p in model.parameters()):7,} parameters, {seconds:4.0f} s: {accuracy:.1%} of the test digits right", flush=True)
        if name == "rows":
            draw(model, images[TRAINING : TRAINING + 10], "digits.png")


if __name__ == "__main__":
    main()
