"""What a training shows of itself on standard error: a bar where somebody watches, a line per epoch otherwise."""

from __future__ import annotations

import sys
import time
from typing import Any

from fastseq.training.callbacks import Callback, Progress

#: Without a bar: so many lines for the epochs at the most, and within an epoch one after so many seconds.
_LINES, _PAUSE = 100, 60.0


class Display(Callback):
    """A bar over the batches of each epoch, where standard error is a terminal and tqdm is installed, and a line for each epoch.

    Used in a `with` block, at whose end the bar goes away, whatever happens.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._tqdm = _tqdm() if sys.stderr.isatty() else None
        self._said = time.monotonic()

    def on_begin(self, progress: Progress) -> None:
        """Say where a resumed training goes on."""
        if progress.step:
            self._say(f"going on after step {progress.step}, {_name(progress)}, batch {progress.batch}")

    def on_step(self, progress: Progress) -> None:
        """Move the bar."""
        if self._tqdm is not None:
            if self._bar is None:
                self._bar = self._tqdm(total=progress.batches, desc=_name(progress), leave=False, dynamic_ncols=True, file=sys.stderr)
            self._bar.set_postfix_str(f"loss {progress.loss:.4g}, lr {progress.learning_rate:.2g}", refresh=False)
            self._bar.update(progress.batch - self._bar.n)
        elif time.monotonic() - self._said > _PAUSE:
            of = f"/{progress.batches}" if progress.batches else ""
            self._say(f"{_name(progress)}  batch {progress.batch}{of}  loss {progress.loss:.4g}  {progress.seconds:.1f} s")

    def on_epoch(self, progress: Progress) -> None:
        """Write the epoch's figures."""
        self._close()
        if self._tqdm or progress.epoch in (1, progress.epochs) or progress.stop or progress.epoch % -(-progress.epochs // _LINES) == 0:
            figures = "  ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
            self._say(f"{_name(progress)}  {figures}  {progress.seconds:.1f} s")

    def on_end(self, progress: Progress) -> None:
        """Say why it ended before its time."""
        if progress.history.stopped == "interrupted":
            self._close()
            self._say(f"interrupted after step {progress.step}, {_name(progress)}, batch {progress.batch}")

    def _say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
        self._said = time.monotonic()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()


def _name(progress: Progress) -> str:
    return f"epoch {progress.epoch}/{progress.epochs}"


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
