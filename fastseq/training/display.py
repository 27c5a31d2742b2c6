"""What a training shows of itself on standard error: a bar where somebody watches, a line per epoch otherwise."""

from __future__ import annotations

import sys
from typing import Any

from fastseq.training.callbacks import Callback, Progress

#: So many lines at the most, where there is no bar.
_LINES = 100


class Display(Callback):
    """A bar over the batches of each epoch, where standard error is a terminal and tqdm is installed, and a line for each epoch."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._tqdm = _tqdm() if sys.stderr.isatty() else None

    def on_step(self, progress: Progress) -> None:
        """Move the bar."""
        if self._tqdm is None:
            return
        if self._bar is None:
            self._bar = self._tqdm(total=progress.batches, desc=_name(progress), leave=False, dynamic_ncols=True, file=sys.stderr)
        self._bar.set_postfix_str(f"loss {progress.loss:.4g}, lr {progress.learning_rate:.2g}", refresh=False)
        self._bar.update(progress.batch - self._bar.n)

    def on_epoch(self, progress: Progress) -> None:
        """Write the epoch's figures."""
        self.close()
        if self._tqdm or progress.epoch in (1, progress.epochs) or progress.stop or not progress.epoch % -(-progress.epochs // _LINES):
            figures = "  ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
            sys.stderr.write(f"{_name(progress)}  {figures}  {progress.seconds:.1f} s\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _name(progress: Progress) -> str:
    return f"epoch {progress.epoch}/{progress.epochs}"


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
