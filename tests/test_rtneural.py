"""Trained networks of other people: RTNeural's exports from Keras and PyTorch, if FASTSEQ_DATA names a folder that has them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import fastseq as fs

FOLDER = Path(os.environ.get("FASTSEQ_DATA", "nowhere")) / "models" / "rtneural"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="FASTSEQ_DATA names no folder with models/rtneural")

ACTIVATIONS = {"tanh": fs.nn.Tanh, "sigmoid": fs.nn.Sigmoid, "relu": fs.nn.ReLU}


def keras_gates(matrix, order):
    """Keras has gates side by side in the columns; here they are rows, in our order."""
    gates = np.split(np.asarray(matrix, np.float64), len(order), axis=-1)
    return np.concatenate([gates[k] for k in order], axis=-1).T


def keras_layer(description, width, dtype):
    """The modules for one entry of a Keras export that reads `width` inputs."""
    kind, units, weights = description["type"], description["shape"][-1], description["weights"]
    if kind == "lstm":  # i, f, c, o is our own order
        order = (0, 1, 2, 3)
        layer = fs.nn.LSTM(width, units, dtype=dtype)
        biases = {"bias_ih_l0": keras_gates(weights[2], order), "bias_hh_l0": np.zeros(4 * units)}
    elif kind == "gru":  # z, r, h; reset after the product, with a bias for either
        order = (1, 0, 2)
        layer = fs.nn.GRU(width, units, dtype=dtype)
        biases = {f"bias_{side}_l0": keras_gates(row, order) for side, row in zip(("ih", "hh"), weights[2], strict=True)}
    else:
        assert kind in ("dense", "time-distributed-dense")
        layer = fs.nn.Linear(width, units, dtype=dtype)
        layer.load_state_dict({"weight": np.transpose(weights[0]).astype(dtype), "bias": np.asarray(weights[1], dtype)})
        return [layer, *([ACTIVATIONS[description["activation"]]()] if description["activation"] else [])]
    matrices = {"weight_ih_l0": keras_gates(weights[0], order), "weight_hh_l0": keras_gates(weights[1], order)}
    layer.load_state_dict({name: value.astype(dtype) for name, value in (matrices | biases).items()})
    return [layer]


def keras_network(export, dtype):
    """The modules in order; a recurrent one gives a pair."""
    width, modules = export["in_shape"][-1], []
    for description in export["layers"]:
        modules += keras_layer(description, width, dtype)
        width = description["shape"][-1]
    return modules


def torch_network(export, kind, dtype):
    """The two recurrent layers, the second three deep, and the dense one of RTNeural's PyTorch examples."""
    name, layer = kind.lower(), getattr(fs.nn, kind)
    modules = {name: layer(1, 8, dtype=dtype), f"{name}2": layer(8, 8, 3, dtype=dtype), "dense": fs.nn.Linear(8, 1, dtype=dtype)}
    for prefix, module in modules.items():
        start = prefix + "."
        state = {key.removeprefix(start): np.asarray(value, dtype) for key, value in export.items() if key.startswith(start)}
        module.load_state_dict(state)
    return list(modules.values())


def outputs(modules, x):
    """The network over the sequence x (T, 1)."""
    for module in modules:
        x = module(x)
        x = x[0] if isinstance(x, tuple) else x
    return x


def streamed(modules, x):
    """The same step by step, as audio arrives."""
    steps = [m.stream() if hasattr(m, "stream") else None for m in modules]
    y = []
    for x_t in x[:, None]:
        for module, stream in zip(modules, steps, strict=True):
            x_t = module(x_t) if stream is None else stream.step(x_t)
        y.append(x_t[0])
    return np.array(y)


@pytest.mark.parametrize("model", ["lstm", "lstm_1d", "gru", "gru_1d", "lstm_torch", "gru_torch"])
def test_reproduced(model, dtype):
    export = json.loads((FOLDER / f"{model}.json").read_text())
    x, y = (np.loadtxt(FOLDER / f"{model}_{side}_python.csv", ndmin=2) for side in "xy")
    network = torch_network(export, model.split("_")[0].upper(), dtype) if "torch" in model else keras_network(export, dtype)
    x = x.astype(dtype)
    got = outputs(network, x)
    assert got.shape == y.shape
    assert np.abs(got - y).max() <= 1e-6
    assert np.abs(streamed(network, x) - y).max() <= 1e-6
