"""The figures that `fastseq demo` prints."""

import math

import numpy as np
import pytest

from fastseq import demo, nn


def test_plain_numpy_and_fastseq_agree_before_they_are_timed():
    rows = demo.compare_with_numpy(((3, 2, 4, 5), (1, 1, 2, 7)), seconds=0.01)
    assert [(r.T, r.B, r.I, r.H) for r in rows] == [(3, 2, 4, 5), (1, 1, 2, 7)]
    assert all(r.fastseq_seconds > 0 and math.isclose(r.ratio, r.numpy_seconds / r.fastseq_seconds) for r in rows)


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(demo, "_numpy_lstm", lambda layer: lambda x: np.zeros((3, 2, 5), np.float32))
    with pytest.raises(AssertionError, match="LSTM T3 B2 I4 H5: fastseq and NumPy differ by"):
        demo.compare_with_numpy(((3, 2, 4, 5),), seconds=0.01)


def test_step_and_mean():
    assert 0 < demo.step_seconds(nn.LSTM(3, 4), steps=20) < 1
    assert math.isclose(demo.geometric_mean([2.0, 8.0]), 4.0)
