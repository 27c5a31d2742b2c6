"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def heard_between_steps() -> Iterator[threading.Event]:
    """Within the `with` block the first Ctrl-C sets the event, and only the second one raises KeyboardInterrupt.

    A handler of the program's own is left in place, and so is Python's outside the main thread, where no signal is heard.
    """
    asked = threading.Event()

    def hear(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield asked
        return
    signal.signal(signal.SIGINT, hear)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
