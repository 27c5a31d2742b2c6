"""The first link of the chain: the reference backend against finite differences in float64, every operation and gradient."""

import numpy as np
import pytest

from fastseq.backends import reference
from tests.cases import CASES, computed_by
from tests.finite_differences import assert_gradient, gradient


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case, rng):
    inputs = {name: a.copy() for name, a in case.inputs(rng, np.float64).items()}
    with computed_by(reference):
        results = case.evaluate(inputs, np.random.default_rng(1))
        upstream = np.random.default_rng(1)
        weights = [upstream.standard_normal(results[f"output {k}"].shape) for k in range(len(case.call(inputs)))]

        frozen = case.options.get("padding_idx")  # to the gradient this row of the table is a constant
        row = None if frozen is None else inputs["weight"][frozen].copy()

        def loss():
            if row is not None:
                inputs["weight"][frozen] = row
            return sum(float(np.sum(y * weight)) for y, weight in zip(case.call(inputs), weights, strict=True))

        for name in case.differentiable:
            assert_gradient(results[f"d{name}"], loss, inputs[name], f"{case}: d{name}", rng)


def test_differences_of_a_known_function():
    x = np.array([[0.3, -1.2], [2.0, 0.0]])
    np.testing.assert_allclose(gradient(lambda: float(np.sum(np.sin(x))), x), np.cos(x), rtol=1e-10)
    assert x.tolist() == [[0.3, -1.2], [2.0, 0.0]]


@pytest.mark.parametrize("size", [3, 100])
def test_a_wrong_gradient_is_rejected(size, rng):
    x = rng.standard_normal(size)
    right = 2 * x
    assert_gradient(right, lambda: float(np.sum(x * x)), x, "x", rng)
    for wrong in (right * (1 + 1e-5), -right, right[::-1], np.where(np.arange(size) == 1, 0, right), np.full(size, np.nan)):
        with pytest.raises(AssertionError):
            assert_gradient(wrong, lambda: float(np.sum(x * x)), x, "x", rng)


def test_lstm_by_hand():
    """One unit, one input, two steps, with numbers worked out from the equations one by one."""
    w_ih, w_hh = np.array([[0.5], [-0.3], [0.8], [0.1]]), np.array([[0.2], [0.4], [-0.6], [0.7]])
    b_ih, b_hh = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.0, 1.0, 0.0, -0.1])
    x, h, c = [1.5, -0.7], 0.25, -0.5
    for x_t in x:
        sums = [w_ih[k, 0] * x_t + w_hh[k, 0] * h + b_ih[k] + b_hh[k] for k in range(4)]
        i, f, o = (1 / (1 + np.exp(-sums[k])) for k in (0, 1, 3))
        c = f * c + i * np.tanh(sums[2])
        h = o * np.tanh(c)
    packed = reference.lstm_pack(w_ih, w_hh, b_ih, b_hh)
    y, h_n, c_n, cache = reference.lstm_forward(
        np.array(x).reshape(2, 1, 1), np.array([[0.25]]), np.array([[-0.5]]), packed, training=False
    )
    assert cache is None
    np.testing.assert_allclose([y[1, 0, 0], h_n[0, 0], c_n[0, 0]], [h, h, c], rtol=1e-14)


def test_philox_known_answers():
    """The vectors for philox4x32-10 that Random123 (Salmon et al. 2011) publishes in its kat_vectors."""
    ones, low = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
    pi = ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], 0x299F31D0A4093822)
    for counter, key, want in (
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ones] * 4, low, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (*pi, [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        assert reference._philox(key, np.array([counter], np.uint64))[0].tolist() == want


def test_dropout_keeps_the_right_share_at_the_right_scale():
    y = reference.dropout(np.ones(100_000), p=0.3, seed=1, layer=0, call=0)
    assert sorted(set(y.tolist())) == [0.0, 1 / 0.7]
    assert abs(np.mean(y > 0) - 0.7) < 5 * np.sqrt(0.3 * 0.7 / 100_000)


def test_softmax_of_nothing_is_zero():
    x = np.array([[-np.inf, -np.inf], [0.0, -np.inf]])
    assert reference.softmax_forward(x).tolist() == [[0, 0], [1, 0]]


def test_adam_by_hand():
    """Two steps of one parameter, from the algorithm's own lines."""
    w, m, v, lr, b1, b2, eps = 1.0, 0.0, 0.0, 0.1, 0.9, 0.99, 1e-8
    arrays = [np.array([a]) for a in (w, m, v)]
    for step, g in ((1, 0.5), (2, -2.0)):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w -= lr * (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps)
        reference.adam(
            *arrays, np.array([g]), lr=lr, beta1=b1, beta2=b2, eps=eps, weight_decay=0.0, decoupled=False, step=step
        )
        np.testing.assert_allclose([a[0] for a in arrays], [w, m, v], rtol=1e-14)
