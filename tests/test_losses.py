"""Losses at their edges: scores far out, the kink, agreement of all, labels of several kinds."""

import numpy as np
import pytest

import fastseq as fs
from fastseq import functional as F


def gradients(function, *arrays):
    leaves = [fs.Tensor(a, requires_grad=True) for a in arrays]
    y = function(*leaves)
    y.backward(np.ones(y.shape, y.dtype))
    return [leaf.grad for leaf in leaves]


def test_no_score_is_too_large(dtype):
    x = np.array([-1000, -80, 0, 80, 1000], dtype)
    for label, want, slope in ((0, [0, np.exp(-80.0), np.log(2), 80, 1000], [0, np.exp(-80.0), 0.5, 1, 1]), (1, [1000, 80, np.log(2), np.exp(-80.0), 0], [-1, -1, -0.5, -np.exp(-80.0), 0])):
        target = np.full(5, label, dtype)
        got = F.binary_cross_entropy_with_logits(x, target, reduction="none")
        np.testing.assert_allclose(got, want, rtol=1e-6)
        got = gradients(lambda a, t=target: F.binary_cross_entropy_with_logits(a, t, reduction="none"), x)[0]
        np.testing.assert_allclose(got, slope, rtol=1e-6)
    losses = F.negative_sampling_loss(x, np.stack([-x, x], 1), reduction="none")
    np.testing.assert_allclose(losses, np.abs(x) + np.maximum(-x, 0) + [0, 0, 3 * np.log(2), 0, 0], rtol=1e-6, atol=1e-30)
    positive, negative = gradients(lambda a, b: F.negative_sampling_loss(a, b, reduction="none"), x, x[:, None])
    np.testing.assert_allclose(positive, [-1, -1, -0.5, 0, 0], atol=1e-30)
    np.testing.assert_allclose(negative[:, 0], [0, 0, 0.5, 1, 1], atol=1e-30)


def test_positives_count_more():
    x, t = np.array([[0.3, -1.0], [2.0, 0.5]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    each = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    weighted = F.binary_cross_entropy_with_logits(x, t, pos_weight=np.array([3.0, 5.0], np.float32), reduction="none")
    np.testing.assert_allclose(weighted, each * [[3, 1], [1, 5]])


def test_hubers_two_halves_meet(dtype):
    x = np.array([-3, -2, -1, 0, 1, 2, 3], dtype)
    zero = np.zeros(7, dtype)
    assert F.huber_loss(x, zero, delta=2, reduction="none").tolist() == [4, 2, 0.5, 0, 0.5, 2, 4]
    slopes = gradients(lambda a, b: F.huber_loss(a, b, delta=2, reduction="none"), x, zero)
    assert slopes[0].tolist() == [-2, -2, -1, 0, 1, 2, 2]
    assert slopes[1].tolist() == (-slopes[0]).tolist()


def test_the_root_of_no_error_has_no_slope():
    x = np.ones((2, 3), np.float32)
    assert F.rmse_loss(x, x) == 0
    assert [g.tolist() for g in gradients(F.rmse_loss, x, x)] == [[[0] * 3] * 2] * 2


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.rmse_loss, F.huber_loss, F.binary_cross_entropy_with_logits])
def test_results_keep_the_dtype(loss, dtype):
    x, t = np.array([0.5, -2.0], dtype), np.array([1.0, 0.0], dtype)
    assert loss(x, t).dtype == dtype
    assert loss(fs.Tensor(x), t).data.dtype == dtype
    for gradient in gradients(loss, x, t):
        assert gradient.dtype == dtype
        assert gradient.shape == (2,)
