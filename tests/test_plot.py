"""Attention maps: the words stand at their rows and columns, colours at their weights, and what does not fit is refused in a sentence."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import fastseq as fs

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

SOURCE, TARGET = ["the", "house", "is", "red"], ["la", "maison", "est", "rouge", "."]


@pytest.fixture
def weights(rng):
    return rng.dirichlet(np.ones(len(SOURCE)), len(TARGET))


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    pyplot.close("all")


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def labels(ticks):
    return [label.get_text() for label in ticks]


def overlaps(ax):
    """Whether a label covers its neighbour."""
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()], [label.get_window_extent() for label in ax.get_yticklabels()]
    return any(a.overlaps(b) for each in boxes for a, b in pairwise(each))


def outside(figure):
    """What is cut off at the figure's edges."""
    figure.draw_without_rendering()
    whole = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return max(-whole.x0, -whole.y0, whole.x1 - width, whole.y1 - height)


def test_rows_are_targets_and_columns_sources(weights):
    ax = fs.plot.attention(weights, SOURCE, TARGET)
    assert np.array_equal(drawn(ax), weights)
    assert labels(ax.get_xticklabels()) == SOURCE
    assert labels(ax.get_yticklabels()) == TARGET
    assert list(ax.get_yticks()) == [0, 1, 2, 3, 4]
    assert ax.yaxis_inverted()  # the first target on top
    assert ax.images[0].get_clim() == (0, weights.max())


@pytest.mark.parametrize("kind", [fs.Tensor, np.float32, np.ndarray.tolist], ids=["tensor", "float32", "list"])
def test_what_weights_may_be(weights, kind):
    assert np.allclose(drawn(fs.plot.attention(kind(weights), SOURCE, TARGET)), weights, atol=1e-7)


def test_a_string_is_its_characters():
    ax = fs.plot.attention(np.eye(3), "a b", "$_$")
    assert labels(ax.get_xticklabels()) == ["a", "\u2423", "b"]
    assert labels(ax.get_yticklabels()) == ["$", "_", "$"]


def test_words_are_not_formulas():
    ax = fs.plot.attention(np.eye(2), ["$x", "$5$"], ["a$b$", "\\frac$"])
    ax.figure.draw_without_rendering()
    assert labels(ax.get_xticklabels()) == ["$x", "$5$"]
    assert not any(label.get_parse_math() for label in (*ax.get_xticklabels(), *ax.get_yticklabels()))


def test_without_words_positions_are_numbered(weights):
    ax = fs.plot.attention(weights)
    ax.figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_axes_of_ones_own_are_drawn_in(weights):
    figure, axes = pyplot.subplots(1, 2)
    assert fs.plot.attention(weights, SOURCE, TARGET, ax=axes[1]) is axes[1]
    assert not axes[0].images
    assert pyplot.get_fignums() == [figure.number]


def test_values_stand_in_their_cells():
    ax = fs.plot.attention([[0.25, 0.75, 0.0], [np.nan, 1.0, 0.001]], values=True, title="weights")
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(0, 0): ".25", (1, 0): ".75", (1, 1): "1.00"}
    assert ax.get_title() == "weights"
    assert len(ax.figure.axes) == 1  # no colour bar


@pytest.mark.parametrize("count", [1, 2, 12, 60])
def test_words_of_long_sentences_do_not_collide(rng, count):
    words = [f"word-number-{n}" for n in range(count)]
    ax = fs.plot.attention(rng.random((count, count)), words, words)
    assert not overlaps(ax)
    assert outside(ax.figure) <= 0.05
    assert max(ax.figure.get_size_inches()) < 20


def test_weights_of_zero_have_a_scale():
    assert fs.plot.attention(np.zeros((2, 2))).images[0].get_clim() == (0, 1)


# ---------------------------------------------------------------- heads and layers


@pytest.mark.parametrize("kind", [np.asarray, list, lambda a: [fs.Tensor(layer) for layer in a]], ids=["array", "list", "tensors"])
def test_a_map_for_each_head_of_each_layer(rng, kind):
    a = rng.random((2, 3, len(TARGET), len(SOURCE)))
    axes = fs.plot.attention_grid(kind(a), SOURCE, TARGET, title="all")
    assert axes.shape == (2, 3)
    for place, ax in np.ndenumerate(axes):
        assert np.array_equal(drawn(ax), a[place])
        assert ax.images[0].get_clim() == (0, a.max())
    assert [ax.get_xlabel() for ax in axes[-1]] == ["head 0", "head 1", "head 2"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["layer 0", "layer 1"]
    assert outside(axes[0, 0].figure) <= 0.05
    assert not overlaps(axes[0, 0])


def test_a_grid_of_one():
    assert fs.plot.attention_grid(np.ones((1, 1, 1, 1))).shape == (1, 1)


def test_weights_of_a_layer_are_drawn_as_they_come(rng):
    q = rng.standard_normal((1, 2, 4, 8))
    _, w = fs.functional.scaled_dot_product_attention(q, q, q, is_causal=True, return_weights=True)
    axes = fs.plot.attention_grid(w, "abcd", "abcd")
    assert not np.triu(drawn(axes[0, 1]), 1).any()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((np.ones((1, 2, 3)),), ValueError, r"weights: expected shape \(Tq, Tk\), of one sentence and one head and not empty, got \(1, 2, 3\)"),
    ((np.ones((0, 3)),), ValueError, "and not empty, got"),
    ((np.ones((2, 3)), "ab"), ValueError, "source: expected 3 words, as the weights have columns, got 2"),
    ((np.ones((2, 3)), None, "abc"), ValueError, "target: expected 2 words, as the weights have rows, got 3"),
    ((np.ones((2, 3), complex),), TypeError, "weights: expected real numbers, got complex128"),
    ((np.array([["a"]]),), TypeError, "weights: expected real numbers"),
])  # fmt: skip
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        fs.plot.attention(*arguments)
    assert not pyplot.get_fignums()


def test_axes_and_colours_that_matplotlib_does_not_know(weights):
    for options, error, message in [
        ({"ax": 3}, TypeError, "^ax: expected a matplotlib Axes, got int$"),
        ({"cmap": "Bluish"}, ValueError, "^cmap: expected a matplotlib colormap or its name, got 'Bluish'$"),
        ({"cmap": 3}, ValueError, "^cmap: expected a matplotlib colormap or its name, got 3$"),
    ]:
        with pytest.raises(error, match=message):
            fs.plot.attention(weights, **options)
    with pytest.raises(ValueError, match="cmap: expected a matplotlib colormap or its name, got 'Bluish'"):
        fs.plot.attention_grid(weights[None, None], cmap="Bluish")
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(("weights", "message"), [
    (np.ones((2, 3, 4)), r"weights: expected shape \(layers, heads, Tq, Tk\), not empty, got \(2, 3, 4\)"),
    (np.ones((0, 3, 4, 4)), r"not empty, got \(0, 3, 4, 4\)"),
    ([], "weights: expected shape"),
    ([np.ones((3, 4))], r"weights\[0\]: expected shape \(heads, Tq, Tk\), got \(3, 4\)"),
    ([np.ones((3, 4, 4)), np.ones((2, 4, 4))], r"weights\[1\]: expected shape \(3, 4, 4\), as weights\[0\] has, got \(2, 4, 4\)"),
])  # fmt: skip
def test_bad_grids(weights, message):
    with pytest.raises(ValueError, match=message):
        fs.plot.attention_grid(weights)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(("draw", "shape"), [(fs.plot.attention, (2, 2)), (fs.plot.attention_grid, (1, 1, 2, 2))])
def test_without_matplotlib_the_extra_is_named(monkeypatch, draw, shape):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "fastseq-kernels\[plot\]"'):
        draw(np.ones(shape))


def test_the_package_does_not_import_matplotlib():
    check = "import sys, fastseq; fastseq.plot.attention; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
