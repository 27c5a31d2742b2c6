"""The perceptron: a rule from 1958 that finds a line between two classes if there is one, and goes on for ever if there is none.

Iris flowers of two kinds (scikit-learn's) are parted by their petals after a few passes; the exclusive or of two inputs never is, until a
second layer comes into it, which gradient descent trains.

    python examples/perceptron.py
"""

import argparse
import os

import numpy as np
from sklearn.datasets import load_iris

import fastseq as fs

QUICK = bool(os.environ.get("FASTSEQ_QUICK"))  # only to see that it runs
CORNERS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
XOR = np.array([0, 1, 1, 0])


def learn(x, y, epochs):
    """A neuron, and the mistakes of each pass over the examples, until a pass without one."""
    neuron, mistakes = fs.models.Perceptron(x.shape[1]), []
    while len(mistakes) < epochs and 0 not in mistakes:
        mistakes.append(neuron.update(x, y))
    return neuron, mistakes


def two_layers(steps, seed):
    """The exclusive or by a multi-layer perceptron: what it says of the four corners."""
    model = fs.models.MLP([2, 8, 2], "tanh", rng=seed)
    adam = fs.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(steps):
        loss = fs.functional.cross_entropy(model(fs.Tensor(CORNERS)), XOR)
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model(CORNERS).argmax(-1)


def draw(neuron, x, y, iris, path):
    """The flowers and the line where w . x + b = 0."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print('no picture, for matplotlib is missing: pip install "fastseq-kernels[plot]"')
        return
    _, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for kind in (0, 1):
        axes.scatter(*x[y == kind].T, label=iris.target_names[kind], alpha=0.7)
    (w0, w1), b = neuron.weight.data, neuron.bias.data
    ends = np.array([0.8, 5.4])
    axes.plot(ends, -(b + w0 * ends) / w1, "k--", label="the perceptron's line")
    axes.set(xlabel="petal length (cm)", ylabel="petal width (cm)", xlim=ends, ylim=(0, 2))
    axes.legend()
    axes.figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=100 if QUICK else 10_000, help="passes after which to give up (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    iris = load_iris()
    two = iris.target < 2  # setosa and versicolor
    order = np.random.default_rng(options.seed).permutation(int(two.sum()))
    x, y = iris.data[two][:, 2:][order], iris.target[two][order]
    neuron, mistakes = learn(x, y, options.epochs)
    print(f"iris: mistakes {mistakes}; of {len(y)} flowers {int(np.sum(neuron(x) != y))} are on the wrong side of the line")
    draw(neuron, x, y, iris, "perceptron.png")

    _, mistakes = learn(CORNERS, XOR, options.epochs)
    print(f"exclusive or: after {len(mistakes)} passes still {mistakes[-1]} mistakes a pass, never fewer than {min(mistakes)}")
    print(f"exclusive or by two layers: {two_layers(200, options.seed).tolist()}, as it should be {XOR.tolist()}")


if __name__ == "__main__":
    main()
