"""The decoder of a sequence-to-sequence model as a problem, with its right answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.problems import CELLS, GATES, WEIGHTS, Arrays, Problem
from fastseq.backends import reference
from fastseq.backends.attention_decoder import DecoderWeights


@dataclass(frozen=True)
class Decoder(Problem):
    """A decoder with additive attention, fed into its cell, over T steps of B rows with memories of S; mode: "inference" or "training".

    All sizes (input, state, memory, attention) are H.
    """

    cell: str  # "LSTM" or "GRU"
    mode: str
    B: int
    T: int
    S: int
    H: int

    def __str__(self) -> str:
        return f"decoder {self.cell} {self.mode} B{self.B} T{self.T} S{self.S} H{self.H}"

    @property
    def task(self) -> str:
        return f"attention_decoder_{self.mode}"

    @property
    def gflop(self) -> float:
        step = (3 * GATES[self.cell] + 3) * self.H * self.H + 2 * self.S * self.H  # cell, query and output; scores' units are not counted
        return 2e-9 * (3 if self.mode == "training" else 1) * self.B * (self.T * step + self.S * self.H * self.H)

    @cached_property
    def weights(self) -> Arrays:
        """Under the names of fastseq's layer."""
        rng, H, G = np.random.default_rng(1), self.H, GATES[self.cell]
        shapes = {"weight_ih": (G * H, 2 * H), "weight_hh": (G * H, H), "bias_ih": (G * H,), "bias_hh": (G * H,), "weight_query": (H, H), "weight_key": (H, H),
                  "bias_key": (H,), "weight_score": (H,), "weight_out": (H, 2 * H), "bias_out": (H,)}
        return {name: rng.uniform(-H**-0.5, H**-0.5, shape).astype(np.float32) for name, shape in shapes.items()}

    @cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x (T, B, H), memory (S, B, H) and the outputs' upstream gradient."""
        rng = np.random.default_rng(2)
        x, memory, dy = (rng.standard_normal((steps, self.B, self.H), np.float32) for steps in (self.T, self.S, self.T))
        return x, memory, dy

    @cached_property
    def answer(self) -> Arrays:
        x, memory, dy = (a.astype(np.float64) for a in self.data)
        w = {name: a.astype(np.float64) for name, a in self.weights.items()}
        of = DecoderWeights(*(w[name] for name in (*WEIGHTS, "weight_out", "bias_out", "weight_query", "weight_score")))
        values = memory.swapaxes(0, 1)
        keys = values @ w["weight_key"].T + w["bias_key"]
        packed = reference.attention_decoder_pack(CELLS[self.cell], of)
        y, *_, cache = reference.attention_decoder_forward(x, keys, values, None, None, packed, training=True)
        if self.mode == "inference":
            return {"y": y}
        grads = reference.attention_decoder_backward(cache, dy, None, None, None)
        dkeys, dw = grads["dkeys"], grads["weights"]
        dmemory = grads["dmemory"] + dkeys @ w["weight_key"]
        found = {"weight_key": np.einsum("bsa,bsm->am", dkeys, values), "bias_key": dkeys.sum(axis=(0, 1)), "weight_query": dw.w_query, "weight_score": dw.u}
        found |= {"weight_out": dw.w_out, "bias_out": dw.b_out} | dict(zip(WEIGHTS, dw[:4], strict=True))
        return {"y": y, "dx": grads["dx"], "dmemory": dmemory.swapaxes(0, 1)} | found
