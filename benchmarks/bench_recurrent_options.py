"""What an option costs: a layer with it in turn with the plain layer, fastseq against itself. The MUT cells stand beside the GRU."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import fastseq
from benchmarks.peers import with_fastseq
from benchmarks.peers.call import Call
from benchmarks.problems import Arrays, compare
from fastseq.backends import reference
from fastseq.backends.recurrent import Weights

T, B, I, H = 100, 32, 128, 256
ONE_PRODUCT, TWO_PRODUCTS = 1.3, 1.6  # the most it may cost, in times of the plain layer: with a step's products in one piece, or in two that wait


class Option(NamedTuple):
    """A layer with an option."""

    plain: str  # the layer to compare with
    name: str
    layer: dict[str, Any] = {}  # what its constructor is given
    call: dict[str, Any] = {}  # what its call is given
    kind: str = ""  # its class, if not the plain layer's
    target: float = ONE_PRODUCT

    def __str__(self) -> str:
        return f"{self.plain} {self.name}"


RESET = np.random.default_rng(5).random((T, B)) < 0.02  # episodes of 50 steps
X, DY = (np.random.default_rng(seed).standard_normal((T, B, size), np.float32) for seed, size in ((2, I), (3, H)))
OPTIONS = (
    Option("LSTM", "recurrent dropout", {"recurrent_dropout": 0.25}),
    Option("LSTM", "zoneout", {"zoneout": (0.1, 0.1)}),
    Option("LSTM", "peephole", {"peephole": True}),
    Option("LSTM", "projection to H / 2", {"proj_size": H // 2}),
    Option("LSTM", "reset mask", call={"reset": RESET}),
    Option("LSTM", "return_states", call={"return_states": True}),
    Option("LSTM", "layer norm", {"layer_norm": True}, target=TWO_PRODUCTS),
    Option("GRU", "recurrent dropout", {"recurrent_dropout": 0.25}),
    Option("GRU", "zoneout", {"zoneout": 0.1}),
    Option("GRU", "reset mask", call={"reset": RESET}),
    Option("GRU", "layer norm", {"layer_norm": True}, target=TWO_PRODUCTS),
    Option("GRU", "reset before", {"reset_after": False}, target=TWO_PRODUCTS),
    *(Option("GRU", kind, kind=kind, target=TWO_PRODUCTS) for kind in ("MUT1", "MUT2", "MUT3")),
)


def _called(kind: str, mode: str, of_layer: dict[str, Any], of_call: dict[str, Any]) -> tuple[Any, Call]:
    layer = getattr(fastseq.nn, kind)(I, H, rng=0, **of_layer)
    for name, parameter in layer.named_parameters():
        if name.startswith(("ln_ih_weight", "ln_hh_weight")):
            parameter.data[...] = 0.1  # with gains of 1 a random layer is chaotic: after 100 steps float32, in NumPy too, is off by 1e-4
    if mode == "inference":
        return layer, with_fastseq.inference(layer, X, **of_call)
    return layer, with_fastseq.training(layer, X, DY[:, :, :of_layer.get("proj_size", H)], **of_call)


def _answer(layer: Any, option: Option, mode: str) -> Arrays:
    """What the reference makes of the layer's latest call, in float64 and with the same masks."""
    table = layer._tables[0][0]
    weights = Weights(*(None if w is None else w.astype(np.float64) for w in layer._weights(table, True)))
    packed = reference.recurrent_pack(layer._cell, (weights,))
    y, h, c, cells, cache = reference.recurrent_forward(
        X.astype(np.float64), None, None, packed, reset=option.call.get("reset"), noise=layer._noise(0, layer._calls),
        training=mode == "training", states=True)
    if mode == "inference":
        found = {"y": y, "h": h} | ({} if c is None else {"c": c})
        return found | ({"states": np.stack([y[None], cells])} if "return_states" in option.call else {})
    grads = reference.recurrent_backward(cache, DY[:, :, :y.shape[2]].astype(np.float64), None, None)
    found = {"y": y, "dx": grads["dx"]}
    for entry, grad in zip(table, grads["weights"][0], strict=False):
        if entry and grad is not None and grad.shape == entry[1]:  # a MUT layer holds some weights in another shape than the operation takes them
            found[entry[0]] = grad
    return found


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_recurrent_option(compared: Any, option: Option, mode: str) -> None:
    if mode == "inference" and "recurrent_dropout" in option.layer:
        pytest.skip("there is none outside of training")
    layer, made = _called(option.kind or option.plain, mode, option.layer, option.call)
    found = made.answer()
    compare(f"{option} {mode}", found, _answer(layer, option, mode))
    _, plain = _called(option.plain, mode, {}, {})
    compared(made.run, plain.run, option=str(option), mode=mode, sizes=f"T{T} B{B} I{I} H{H}", target=option.target)
