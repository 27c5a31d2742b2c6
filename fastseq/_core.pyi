"""The compiled module. Its callers, backends/cpu.py and runtime.py, state the types."""

from typing import Any

def __getattr__(name: str) -> Any: ...
