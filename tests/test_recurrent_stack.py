"""Stacked layers in one call: the bits of the layers one after the other, however the threads share them."""

import itertools

import numpy as np
import pytest

import fastseq as fs
from fastseq.backends import cpu, reference
from fastseq.backends.recurrent import Noise, Weights, gates_of
from tests.tolerance import assert_close, assert_same_bits


def layers_of(backend, cell, sizes, dtype, rng):
    """Packed layers of sizes (I, H, H, ...)."""
    layers = []
    for I, H in itertools.pairwise(sizes):
        rows = gates_of(cell) * H
        shapes = ((rows, I), (rows, H), (rows,), None if cell.startswith("mut") else (rows,))
        arrays = [None if shape is None else rng.uniform(-1, 1, shape).astype(dtype) / np.sqrt(H).astype(dtype) for shape in shapes]
        layers.append(backend.recurrent_pack(cell, (Weights(*arrays),)))
    return tuple(layers)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru", "gru_before", "mut1"])
@pytest.mark.parametrize(("T", "B", "sizes"), [(1, 2, (3, 5, 5)), (2, 3, (3, 5, 5, 5)), (30, 1, (7, 20, 20)), (101, 5, (4, 33, 33, 33))])
def test_the_bits_of_one_layer_after_the_other(cell, T, B, sizes, dtype, isa, threads, rng):
    layers = layers_of(cpu, cell, sizes, dtype, rng)
    L, H, zoneout = len(layers), sizes[-1], (0.1, 0.2 if cell == "lstm" else 0.0)
    x, h_0 = rng.standard_normal((T, B, sizes[0])).astype(dtype), rng.standard_normal((L, B, H)).astype(dtype)
    c_0 = rng.standard_normal((L, B, H)).astype(dtype) if cell == "lstm" else None
    for lengths, reset in ((None, None), (rng.integers(0, T + 1, B), rng.random((T, B)) < 0.2)):
        y, h, c = cpu.recurrent_stack(x, h_0, c_0, layers, lengths=lengths, reset=reset, zoneout=zoneout)
        below = x
        for k, layer in enumerate(layers):
            c_k = None if c_0 is None else c_0[k : k + 1]
            noise = Noise(zoneout_h=zoneout[0], zoneout_c=zoneout[1])
            below, h_k, c_k, *_ = cpu.recurrent_forward(below, h_0[k : k + 1], c_k, layer, lengths=lengths, reset=reset, noise=noise)
            assert_same_bits(h[k], h_k[0], f"h of layer {k}")
            if c is not None:
                assert_same_bits(c[k], c_k[0], f"c of layer {k}")
        assert_same_bits(y, below)


def test_both_backends_agree(dtype, rng):
    state = rng.bit_generator.state
    results = []
    for backend in (cpu, reference):
        rng.bit_generator.state = state
        layers = layers_of(backend, "gru", (4, 9, 9), dtype, rng)
        results.append(backend.recurrent_stack(rng.standard_normal((6, 3, 4)).astype(dtype), None, None, layers))
    for got, want in zip(*results, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert_close(got, want, dtype=dtype, terms=60, name="stack")


@pytest.mark.parametrize("options", [{}, {"zoneout": (0.2, 0.3)}, {"proj_size": 6}])
def test_layers_use_it_only_where_nothing_is_recorded(options, threads, rng):
    """The same numbers by both ways of `forward`."""
    layer = fs.nn.LSTM(5, 9, num_layers=3, **options).eval()
    x, lengths = rng.standard_normal((8, 4, 5)).astype(np.float32), [8, 0, 3, 5]
    plain, (h, c) = layer(x, lengths=lengths)
    recorded, (h_t, c_t) = layer(fs.Tensor(x, requires_grad=True), lengths=lengths)
    for got, want in ((plain, recorded), (h, h_t), (c, c_t)):
        assert_same_bits(got, want.data)
