"""Maps: what attention looks at, and which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastseq.plot.figure import axes, numbers, pyplot

#: Inches of a word's row or column, of a letter, and of the largest map.
_CELL, _LETTER, _LARGEST = 0.34, 0.085, 16.0


def attention(
    weights: Any,
    source: Sequence[Any] | None = None,
    target: Sequence[Any] | None = None,
    *,
    ax: Any = None,
    values: bool = False,
    title: str = "",
    cmap: Any = "Blues",
) -> Any:
    """Draw attention weights as a map: a row for each target word, a column for each source word, darker where more is taken.

    Parameters
    ----------
    weights : array or Tensor (Tq, Tk)
        Those of one sentence and one head, without padding.
    source, target : sequence of Tk and of Tq words, optional
        A string is the sequence of its characters. Positions are numbered where there are no words.
    ax : matplotlib Axes, optional
        Draw there. A new figure otherwise, as large as the words need.
    values : bool
        Write the weights into the map in place of a colour bar.
    title : str
    cmap : matplotlib colormap or its name
        Light where the weight is zero; the other end is the largest weight.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError, TypeError
        If the weights are no matrix of real numbers, the words are not as many as its rows and columns, or matplotlib does not
        know the Axes or the colormap.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> weights = np.array([[0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    >>> ax = fs.plot.attention(weights, ["the", "house", "."], ["la", "maison"])  # doctest: +SKIP
    >>> ax.figure.savefig("map.png")  # doctest: +SKIP
    """
    a = numbers("weights", weights)
    if a.ndim != 2 or a.size == 0:
        raise ValueError(f"weights: expected shape (Tq, Tk), of one sentence and one head and not empty, got {a.shape}")
    words = _words("source", source, a.shape[1]), _words("target", target, a.shape[0])
    cmap = _colours(cmap)
    if ax is None:
        cell = min(_CELL, _LARGEST / max(a.shape))
        across, down = (_LETTER * max(map(len, names or [""])) for names in words[::-1])
        size = (cell * a.shape[1] + across + (0.4 if values else 1.2), cell * a.shape[0] + down + 0.4 + 0.3 * bool(title))
        ax = axes(None, size)
    else:
        cell = min(_inches(axes(ax, ())) / a.shape[::-1])
    image = _map(ax, a, *words, cell, cmap, _largest(a))
    if values:
        _write(ax, a, cell)
    else:
        _bar(image, ax)
    if title:
        ax.set_title(title)
    return ax


def attention_grid(
    weights: Any,
    source: Sequence[Any] | None = None,
    target: Sequence[Any] | None = None,
    *,
    title: str = "",
    cmap: Any = "Blues",
) -> np.ndarray:
    """Draw the maps of all heads of all layers, a row for each layer, in the same colours.

    Parameters
    ----------
    weights : array or Tensor (layers, heads, Tq, Tk), or a sequence of (heads, Tq, Tk), one for each layer
        Those of one sentence, without padding.
    source, target : sequence of Tk and of Tq words, optional
        Written on the outer maps.
    title : str
    cmap : matplotlib colormap or its name

    Returns
    -------
    ndarray (layers, heads) of matplotlib Axes
        On a new figure.

    Raises
    ------
    ValueError, TypeError
        If shapes do not fit, or matplotlib does not know the colormap.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import numpy as np, fastseq as fs
    >>> axes = fs.plot.attention_grid(np.full((2, 4, 3, 3), 1 / 3))  # doctest: +SKIP
    >>> axes.shape  # doctest: +SKIP
    (2, 4)
    """
    a = _stacked(weights)
    layers, heads, rows, columns = a.shape
    words = _words("source", source, columns), _words("target", target, rows)
    cmap = _colours(cmap)
    cell = min(0.6 * _CELL, _LARGEST / max(layers * rows, heads * columns))
    cell = max(cell, 0.9 / max(rows, columns))  # of a map at least 0.9 inches wide
    across, down = (0.8 * _LETTER * max(map(len, names or [""])) for names in words[::-1])
    size = heads * (cell * columns + 0.1) + across + 1.4, layers * (cell * rows + 0.15) + down + 0.5 + 0.3 * bool(title)
    figure, axes = pyplot().subplots(layers, heads, figsize=size, squeeze=False, layout="constrained")
    largest = _largest(a)
    for (layer, head), ax in np.ndenumerate(axes):
        image = _map(ax, a[layer, head], *words, cell, cmap, largest)
        ax.tick_params(labeltop=layer == 0, labelleft=head == 0)
        if layer == layers - 1:
            ax.set_xlabel(f"head {head}", fontsize=9)
        if head == 0:
            ax.set_ylabel(f"layer {layer}", fontsize=9)
    _bar(image, axes)
    if title:
        figure.suptitle(title)
    return np.asarray(axes)


def confusion_matrix(
    matrix: Any,
    names: Sequence[Any] | None = None,
    *,
    ax: Any = None,
    title: str = "",
    cmap: Any = "Blues",
) -> Any:
    """Draw how often each class was taken for each: a row for each true class, a column for each predicted one.

    A cell is as dark as the share of its row that it holds, so that a rare class is seen as well as a frequent one; the number in
    it is the matrix's own, where there is room.

    Parameters
    ----------
    matrix : array_like (C, C), not negative
        Counts, as ``sklearn.metrics.confusion_matrix`` gives them, or shares.
    names : sequence of C class names, optional
        Numbers from 0 otherwise.
    ax : matplotlib Axes, optional
        Draw there. A new figure otherwise, as large as the names need.
    title : str
    cmap : matplotlib colormap or its name

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ValueError, TypeError
        If the matrix is not square or holds something negative, or the names are not as many as its rows.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import fastseq as fs
    >>> ax = fs.plot.confusion_matrix([[48, 2], [5, 45]], ["ham", "spam"])  # doctest: +SKIP
    >>> ax.figure.savefig("confusion.png")  # doctest: +SKIP
    """
    a = numbers("matrix", matrix)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size:
        raise ValueError(f"matrix: expected shape (C, C), not empty, got {a.shape}")
    if not (a >= 0).all():
        raise ValueError(f"matrix: expected numbers of at least 0, got {a.min()}")
    C = len(a)
    if names is not None and len(names) != C:
        raise ValueError(f"names: expected {C} words, as the matrix has rows, got {len(names)}")
    words = _words("names", range(C) if names is None else names, C)
    cmap = _colours(cmap)
    longest = _LETTER * max(map(len, words or [""]))
    cell = min(1.4 * _CELL, 0.75 * _LARGEST / C)
    ax = axes(ax, [cell * C + longest + 0.6, cell * C + longest + 0.6 + 0.3 * bool(title)])
    cell = min(_inches(ax) / C)
    total = a.sum(axis=1, keepdims=True)
    shares = np.divide(a, total, out=np.zeros_like(a), where=total > 0)
    _map(ax, shares, words, words, cell, cmap, 1.0)
    for (row, column), value in np.ndenumerate(a):
        text = f"{value:.0f}" if (a == np.rint(a)).all() else f"{value:.2f}".replace("0.", ".", 1)
        if value and cell > 0.1 * len(text):
            ax.text(column, row, text, ha="center", va="center", fontsize=float(np.clip(72 * 0.3 * cell, 4, 9)),
                    color="white" if shares[row, column] > 0.6 else "0.2")  # fmt: skip
    ax.set_ylabel("true")
    ax.set_xlabel("predicted")
    ax.xaxis.set_label_position("top")
    if title:
        ax.set_title(title)
    return ax


# ---------------------------------------------------------------- checks


def _stacked(weights: Any) -> np.ndarray:
    """(layers, heads, Tq, Tk), none of them zero."""
    if isinstance(weights, Sequence):
        each = [numbers(f"weights[{n}]", layer) for n, layer in enumerate(weights)]
        for n, layer in enumerate(each):
            if layer.ndim != 3 or layer.shape != each[0].shape:
                wanted = "(heads, Tq, Tk)" if each[0].ndim != 3 else f"{each[0].shape}, as weights[0] has"
                raise ValueError(f"weights[{n}]: expected shape {wanted}, got {layer.shape}")
        a = np.stack(each) if each else np.zeros((0, 0, 0, 0))
    else:
        a = numbers("weights", weights)
    if a.ndim != 4 or a.size == 0:
        raise ValueError(f"weights: expected shape (layers, heads, Tq, Tk), not empty, got {a.shape}")
    return a


def _words(name: str, words: Sequence[Any] | None, count: int) -> list[str] | None:
    """The words as they are written: a space would not be seen."""
    if words is None:
        return None
    shown = [str(word) for word in words]
    if len(shown) != count:
        raise ValueError(f"{name}: expected {count} words, as the weights have {'columns' if name == 'source' else 'rows'}, got {len(shown)}")
    return [word if word.strip() else "\u2423" * len(word) for word in shown]


def _colours(cmap: Any) -> Any:
    """The colormap itself."""
    try:
        return pyplot().get_cmap(cmap)
    except (ValueError, TypeError):
        raise ValueError(f"cmap: expected a matplotlib colormap or its name, got {cmap!r}") from None


# ---------------------------------------------------------------- drawing


def _largest(a: np.ndarray) -> float:
    """The weight that is darkest; 1 where no weight is above zero."""
    found = a[np.isfinite(a)].max(initial=0.0)
    return float(found) if found > 0 else 1.0


def _inches(ax: Any) -> np.ndarray:
    """Width and height of the Axes."""
    box = ax.get_window_extent()
    return np.array([box.width, box.height]) / ax.figure.dpi


def _map(
    ax: Any, a: np.ndarray, source: list[str] | None, target: list[str] | None, cell: float, cmap: Any, largest: float
) -> Any:
    """The map with its words, its first row on top; `cell` is about the height of a row, in inches."""
    rows, columns = a.shape
    image = ax.imshow(a, cmap=cmap, vmin=0.0, vmax=largest, aspect="equal", interpolation="nearest",
                      extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))  # fmt: skip
    size = float(np.clip(72 * 0.5 * cell, 4, 10))
    for axis, words in (("x", source), ("y", target)):
        if words is None:
            ax.locator_params(axis=axis, integer=True)
        else:
            getattr(ax, f"set_{axis}ticks")(range(len(words)), words, fontsize=size, parse_math=False)
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    for label, word in zip(ax.get_xticklabels(), source or (), strict=False):
        label.set_rotation(90 * (len(word) > 1))
    if cell >= 0.15:  # white lines between the cells, if these are large
        ax.set_xticks(np.arange(0.5, columns - 1), minor=True)
        ax.set_yticks(np.arange(0.5, rows - 1), minor=True)
        ax.grid(which="minor", color="white", linewidth=0.8)
        ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    return image


def _bar(image: Any, axes: Any) -> None:
    bar = image.figure.colorbar(image, ax=axes, shrink=0.8, aspect=24, pad=0.02)
    bar.ax.set_title("weight", fontsize=8)
    bar.outline.set_visible(False)


def _write(ax: Any, a: np.ndarray, cell: float) -> None:
    """The weights in their cells, without the zero before the point."""
    for (row, column), weight in np.ndenumerate(a):
        if np.isfinite(weight) and round(abs(weight), 2) > 0:
            text = f"{weight:.2f}".replace("0.", ".", 1)
            ax.text(column, row, text, ha="center", va="center", fontsize=float(np.clip(72 * 0.34 * cell, 3, 9)),
                    color="white" if weight > 0.6 * _largest(a) else "0.2")  # fmt: skip
