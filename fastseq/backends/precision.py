"""How exactly products of float32 arrays are formed on a GPU; the CPU always multiplies float32 by float32."""

from __future__ import annotations

PRECISIONS = ("highest", "high", "medium")
_process = "highest"


def get_precision() -> str:
    """The word that `set_precision` was last given: "highest" at first."""
    return _process


def set_precision(value: str) -> None:
    """Operands of products in float32 ("highest"), rounded to tf32 ("high") or to bfloat16 ("medium"); sums are float32 always."""
    global _process
    if value not in PRECISIONS:
        raise ValueError(f"precision: expected {', '.join(map(repr, PRECISIONS[:-1]))} or {PRECISIONS[-1]!r}, got {value!r}")
    _process = value
