"""Memory and time of training over a long sequence, with and without checkpoints."""

from typing import Any

import numpy as np
import pytest

import fastseq
from benchmarks import memory
from benchmarks.peers import with_fastseq

T, B, I, H = 2000, 16, 128, 256
X, DY = (np.random.default_rng(seed).standard_normal((T, B, size), np.float32) for seed, size in ((2, I), (3, H)))


@pytest.mark.parametrize("every", [200, 45])  # 45 is the square root of T: as many checkpoints as steps between two
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_recurrent_memory(compared: Any, facts: dict[str, Any], cell: str, every: int) -> None:
    if not memory.can_measure():
        pytest.skip("only Linux tells a process's peak memory since a moment")
    layer = getattr(fastseq.nn, cell)(I, H, rng=0)
    plain, kept = (with_fastseq.training(layer, X, DY, **options) for options in ({}, {"checkpoint_every": every}))
    want, got = plain.answer(), kept.answer()
    assert all(np.array_equal(got[name], want[name]) for name in want), "checkpoints change the bits"
    peaks = [memory.peak_bytes(cell, T=T, B=B, I=I, H=H, checkpoint_every=k, threads=facts["threads"]) for k in (None, every)]
    # y and the gradients of x and of the weights, which the user gets
    results = want["y"].nbytes + sum(gradient.nbytes for name, gradient in want.items() if name != "y")
    compared(kept.run, plain.run, memory=cell, sizes=f"T{T} B{B} I{I} H{H}", checkpoint_every=every, unit_bytes=4 * T * B * H,
             results_bytes=results, plain_bytes=peaks[0], bytes=peaks[1])
