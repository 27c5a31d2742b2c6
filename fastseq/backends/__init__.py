"""Where the arithmetic is done: one module per kind of array, all with the same functions.

`cpu` computes on NumPy arrays with the C kernels; `reference` is the same in plain NumPy, to read and to test against. The arrays
choose: there is no switch.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from fastseq.backends import cpu

_NumPy = np.ndarray


def backend_of(*arrays: Any) -> ModuleType:
    """The backend for these arrays.

    Parameters
    ----------
    *arrays : ndarray

    Returns
    -------
    module
        With the functions of `fastseq.backends.reference`.

    Raises
    ------
    TypeError
        If one of them is something else; for a GPU array the message says how to move the layer.

    Examples
    --------
    >>> import numpy as np
    >>> backend_of(np.zeros(3)).__name__
    'fastseq.backends.cpu'
    """
    for array in arrays:
        if type(array) is not _NumPy and not isinstance(array, _NumPy):
            raise TypeError(_refusal(array))
    return cpu


def _refusal(array: Any) -> str:
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    if hasattr(array, "__cuda_array_interface__"):
        return f'expected a NumPy array, got {kind}, which is on a GPU; this layer is on the CPU: move one of them with .to("cuda") or .get()'
    return f"expected a NumPy array, got {kind}"
