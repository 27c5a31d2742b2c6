"""The door of a layer: what comes in is converted once to the layer's dtype, or refused in one sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastseq.autograd import Tensor, is_recording, record
from fastseq.backends import foreign, is_gpu, placed
from fastseq.functional._check import boolean as checked_flag
from fastseq.functional._check import count as checked_size
from fastseq.functional._check import kind, no_array
from fastseq.functional._check import size as checked_elements

__all__ = [
    "any_real_input",
    "brought",
    "checked_dtype",
    "checked_elements",
    "checked_flag",
    "checked_size",
    "id_input",
    "plain_array",
    "real_input",
    "rename_argument",
    "where_the_layer_is",
]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def checked_dtype(dtype: Any) -> np.dtype:
    """float32 or float64 as a numpy.dtype; anything else raises TypeError."""
    with contextlib.suppress(TypeError):
        if dtype is not None and np.dtype(dtype) in _FLOATS:  # NumPy takes None for float64
            return np.dtype(dtype)
    raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")


def rename_argument(error: Exception, names: Mapping[str, str]) -> None:
    """Let a sentence of an inner module name the arguments of the module that was called: `names` says which are which."""
    text = str(error)
    if text.partition(":")[0] in names:
        error.args = (re.sub(r"\b\w+\b", lambda word: names.get(word[0], word[0]), text),)


def real_input(x: Any, dtype: np.dtype, name: str) -> Any:
    """`x` with elements of `dtype`: the same object where they are so already, else a converted copy.

    Tensors stay Tensors, and the gradient flows back through the conversion in the Tensor's own dtype.

    Raises
    ------
    TypeError
        float16, longdouble, complex, object and anything that is not an array of real numbers.
    """
    if type(x) is np.ndarray and x.dtype is dtype:
        return x
    data = x.data if isinstance(x, Tensor) else plain_array(x, name)
    if data.dtype == dtype:
        return x if isinstance(x, Tensor) else data
    if data.dtype.kind not in "iub" and data.dtype.newbyteorder("=") not in _FLOATS:
        raise TypeError(
            f"{name}: expected float32, float64, integers or bools (this layer computes in {dtype}), got {data.dtype}"
        )
    converted = data.astype(dtype)
    if not isinstance(x, Tensor):
        return converted
    if not is_recording(x):
        return Tensor(converted)
    own = data.dtype
    return record((converted,), (x,), lambda gradient: (gradient.astype(own),), "astype")[0]


def any_real_input(x: Any, name: str) -> Any:
    """`x` as float32 or float64, whichever it is; integers and bools become float32."""
    double = hasattr(x, "dtype") and x.dtype == _FLOATS[1]
    return real_input(x, _FLOATS[1] if double else _FLOATS[0], name)


def id_input(ids: Any, name: str) -> Any:
    """`ids` as int64: an array, or a Tensor for a Tensor. TypeError for anything but integers."""
    data = ids.data if isinstance(ids, Tensor) else plain_array(ids, name)
    if data.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {data.dtype}")
    if data.dtype == np.int64:
        return ids if isinstance(ids, Tensor) else data
    if data.dtype == np.uint64 and data.size and data.max() > np.iinfo(np.int64).max:
        raise IndexError(f"{name}: expected ids that fit int64, got {data.max()}")
    converted = data.astype(np.int64)
    return Tensor(converted) if isinstance(ids, Tensor) else converted


def where_the_layer_is(name: str, x: Any, weight: Any) -> None:
    """Raises where the array x and the weights of the layer that it goes into are of different kinds."""
    if is_gpu(x) is is_gpu(weight):
        return
    if is_gpu(x):
        advice = f'move the layer with .to("cuda"), or {name} with .get()'
        raise TypeError(f"{name}: expected a NumPy array, for this layer is on the CPU, got a CuPy array; {advice}")
    advice = f'move {name} with cupy.asarray({name}), or the layer with .to("cpu")'
    raise TypeError(f"{name}: expected a CuPy array, for this layer is on the GPU, got a NumPy array; {advice}")


def plain_array(x: Any, name: str) -> Any:
    """An array-like as an array, NumPy's but for a CuPy array; what would lose a mask is refused."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked one; fill it first")
    if is_gpu(x):
        return x
    if hasattr(x, "__cuda_array_interface__"):
        raise TypeError(f"{name}: {foreign(x)}")
    try:
        array = np.asarray(x)
    except (ValueError, TypeError, RuntimeError):
        raise no_array(name, x) from None
    if array.dtype == object and not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: expected an array of numbers, got {_kind(x)}")
    return array


def brought(x: Any, weight: Any, name: str) -> Any:
    """An array-like, or a Tensor's array, where the weights of a model are: the texts that it reads lie in this computer's memory."""
    array, weight = plain_array(x.data if isinstance(x, Tensor) else x, name), weight.data if isinstance(weight, Tensor) else weight
    if is_gpu(array):
        where_the_layer_is(name, array, weight)
    return placed(array, weight)


def _kind(x: Any) -> str:
    return f"a {type(x).__name__} of objects" if isinstance(x, (list, tuple)) else kind(x)
