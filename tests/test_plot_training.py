"""Curves of a training and confusion matrices: what is drawn is what was given, and what does not fit is refused in a sentence."""

import math
import sys

import numpy as np
import pytest

import fastseq as fs
from fastseq.training import History

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

HISTORY = {"loss": [2.0, 1.0, 0.5], "validation_loss": [2.1, 1.5, 1.6], "accuracy": [0.5, 0.7, 0.6]}


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    pyplot.close("all")


def lines(ax):
    """{label: (x, y)} of the lines with a name of their own."""
    return {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines if not line.get_label().startswith("_")}


def test_losses_stand_left_and_the_rest_right():
    ax = fs.plot.curves(HISTORY)
    left, right = ax.figure.axes
    assert lines(left) == {"loss": ([1, 2, 3], HISTORY["loss"]), "validation loss": ([1, 2, 3], HISTORY["validation_loss"])}
    assert lines(right) == {"accuracy": ([1, 2, 3], HISTORY["accuracy"])}
    assert (left.get_ylabel(), right.get_ylabel(), ax.get_xlabel()) == ("loss", "accuracy", "epoch")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss", "validation loss", "accuracy"]
    colours = [line.get_color() for line in [*left.lines[:2], *right.lines]]
    assert len(set(colours)) == 3
    (ring,) = left.lines[2:]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (2, 1.5)


def test_curves_of_a_fit(rng):
    history = History()
    for epoch in range(100):
        history.record({"loss": 1 / (1 + epoch)} | ({"validation_loss": 1.0} if epoch % 2 else {}))
    ax = fs.plot.curves(history, log=True, title="a training")
    assert (ax.get_yscale(), ax.get_title()) == ("log", "a training")
    assert len(lines(ax)["loss"][0]) == 100
    assert math.isnan(lines(ax)["validation loss"][1][0])
    assert fs.plot.curves(history, ["loss"]).get_legend() is None


def test_chosen_figures_on_axes_of_ones_own():
    _, given = pyplot.subplots()
    ax = fs.plot.curves(HISTORY, ["accuracy"], ax=given)
    assert ax is given
    assert list(lines(ax)) == ["accuracy"]
    assert ax.get_ylabel() == "accuracy"
    assert len(ax.figure.axes) == 1


def test_curves_refuse_what_is_no_history():
    for history, names, error, message in (
        ({}, None, ValueError, "history: expected at least one figure of one epoch, got none"),
        (History(), None, ValueError, "history: expected at least one figure"),
        (HISTORY, ["f1"], ValueError, "names: expected some of loss, validation_loss, accuracy, got 'f1'"),
        ({"loss": [[1.0]]}, None, ValueError, r"loss: expected one number per epoch, got shape \(1, 1\)"),
        ({"loss": ["low"]}, None, TypeError, "loss: expected real numbers"),
    ):
        with pytest.raises(error, match=message):
            fs.plot.curves(history, names)
    with pytest.raises(TypeError, match="ax: expected a matplotlib Axes, got int"):
        fs.plot.curves(HISTORY, ax=3)


def texts(ax):
    return {text.get_position()[::-1]: text.get_text() for text in ax.texts}


def test_rows_of_a_confusion_matrix_are_the_true_classes():
    matrix = np.array([[48, 2], [0, 5]])
    ax = fs.plot.confusion_matrix(matrix, ["ham", "spam"], title="mail")
    assert np.allclose(np.asarray(ax.images[0].get_array()), [[0.96, 0.04], [0, 1]])
    assert texts(ax) == {(0, 0): "48", (0, 1): "2", (1, 1): "5"}
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("predicted", "true", "mail")
    for ticks in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in ticks] == ["ham", "spam"]
    assert ax.yaxis_inverted()


def test_confusion_matrices_of_shares_of_many_classes_and_of_empty_rows():
    assert texts(fs.plot.confusion_matrix([[0.75, 0.25], [0.0, 1.0]])) == {(0, 0): ".75", (0, 1): ".25", (1, 1): "1.00"}
    ax = fs.plot.confusion_matrix(np.full((120, 120), 1234))
    assert not ax.texts  # no room
    assert max(ax.figure.get_size_inches()) < 20
    assert not np.asarray(fs.plot.confusion_matrix(np.zeros((2, 2))).images[0].get_array()).any()
    _, given = pyplot.subplots()
    assert fs.plot.confusion_matrix(np.eye(3), ax=given) is given


def test_confusion_matrices_refuse_what_is_none():
    for matrix, names, error, message in (
        (np.zeros((2, 3)), None, ValueError, r"matrix: expected shape \(C, C\), not empty, got \(2, 3\)"),
        (np.zeros((0, 0)), None, ValueError, r"matrix: expected shape \(C, C\), not empty"),
        ([[1, -1], [0, 1]], None, ValueError, r"matrix: expected numbers of at least 0, got -1"),
        (np.eye(2), ["a"], ValueError, "names: expected 2 words, as the matrix has rows, got 1"),
        ([["a"]], None, TypeError, "matrix: expected real numbers"),
    ):
        with pytest.raises(error, match=message):
            fs.plot.confusion_matrix(matrix, names)


@pytest.mark.parametrize("draw", [lambda: fs.plot.curves(HISTORY), lambda: fs.plot.confusion_matrix(np.eye(2))])
def test_without_matplotlib_the_extra_is_named(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"fastseq-kernels\[plot\]"):
        draw()
