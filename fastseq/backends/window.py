"""What the backends' convolution and pooling take beside arrays."""

from __future__ import annotations

from typing import NamedTuple

Pair = tuple[int, int]


class Window(NamedTuple):
    """What an output position sees, as (rows, columns): element i of the kernel at position p is p stride - before + i dilation.

    A one-dimensional convolution has one row. `out` is the number of positions; what lies past the end follows from it.
    """

    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    out: Pair
