"""A training's figures over its epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastseq.plot.figure import axes, numbers

#: With more epochs than this the lines go without a dot at each.
_DOTS = 40


def curves(
    history: Mapping[str, Sequence[float]], names: Sequence[str] | None = None, *, ax: Any = None, log: bool = False, title: str = ""
) -> Any:
    """Draw the figures of a training epoch by epoch: losses to the left axis, everything else, such as accuracies, to the right.

    Where there is a validation loss, a ring marks its lowest point: what lies beyond it is overfitting.

    Parameters
    ----------
    history : training.History, or mapping of names to one number per epoch
    names : sequence of str, optional
        Which figures to draw; all of them otherwise.
    ax : matplotlib Axes, optional
        Draw there. A new figure otherwise.
    log : bool
        Whether losses stand on a logarithmic scale.
    title : str

    Returns
    -------
    matplotlib Axes
        That of the losses; of the others where there are no losses.

    Raises
    ------
    ValueError, TypeError
        If there is nothing to draw, or a figure of that name is missing.
    ImportError
        If matplotlib is missing.

    Examples
    --------
    >>> import fastseq as fs
    >>> history = {"loss": [2.0, 1.0, 0.5], "validation_loss": [2.1, 1.5, 1.6], "accuracy": [0.5, 0.7, 0.7]}
    >>> ax = fs.plot.curves(history)  # doctest: +SKIP
    >>> ax.figure.savefig("curves.png")  # doctest: +SKIP
    """
    drawn = {name: _figure(history, name) for name in (history if names is None else names)}
    if not any(values.size for values in drawn.values()):
        raise ValueError("history: expected at least one figure of one epoch, got none")
    ax = axes(ax, (5.5, 3.6))
    losses = [name for name in drawn if name.endswith("loss")]
    others = [name for name in drawn if name not in losses]
    left = _lines(ax, drawn, losses or others, 0)
    right = _lines(ax.twinx(), drawn, others, len(losses)) if losses and others else []
    if "validation_loss" in losses and np.isfinite(drawn["validation_loss"]).any():
        _mark_lowest(ax, drawn["validation_loss"])
    if log and losses:
        ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)
    lines = left + right
    if len(lines) > 1:  # above the lines, of which no place is free for certain
        ax.legend(handles=lines, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines), frameon=False)
    if title:
        ax.set_title(title, pad=28 if len(lines) > 1 else None)
    return ax


def _figure(history: Mapping[str, Sequence[float]], name: str) -> np.ndarray:
    if name not in history:
        raise ValueError(f"names: expected some of {', '.join(history)}, got {name!r}")
    values = numbers(name, history[name])
    if values.ndim != 1:
        raise ValueError(f"{name}: expected one number per epoch, got shape {values.shape}")
    return values


def _lines(ax: Any, drawn: dict[str, np.ndarray], names: list[str], first: int) -> list[Any]:
    """A line for each name, in colours from number `first` on; the axis says what it is of."""
    lines = []
    for number, name in enumerate(names, first):
        values = drawn[name]
        lines += ax.plot(np.arange(1, len(values) + 1), values, color=f"C{number}", marker="." if len(values) <= _DOTS else None,
                         label=name.replace("_", " "))  # fmt: skip
    ax.set_ylabel("loss" if names and names[0].endswith("loss") else names[0].replace("_", " ") if len(names) == 1 else "")
    for side in ("top", *(["right"] if not first else [])):
        ax.spines[side].set_visible(False)
    return lines


def _mark_lowest(ax: Any, values: np.ndarray) -> None:
    best = int(np.nanargmin(values))
    ax.plot([best + 1], [values[best]], "o", markersize=9, markerfacecolor="none", markeredgecolor="0.3")
    ax.annotate(f"{values[best]:.3g}", (best + 1, values[best]), (6, 6), textcoords="offset points", fontsize=9, color="0.3")
