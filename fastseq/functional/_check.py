"""What every operation checks before a kernel runs, and the sentences for what it finds.

`data` unwraps; the others raise, naming the argument, what was expected and what came. Nothing here converts a dtype.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Any, NamedTuple

import numpy as np

from fastseq.autograd import Array, Tensor
from fastseq.backends import backend_of, foreign, is_gpu, to_cpu

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
#: Most elements of one result or cache: the bytes of an array must fit a signed machine word.
MOST_ELEMENTS = sys.maxsize // 8

_MOST_OF_ONE = MOST_ELEMENTS >> 10  # with what a kernel needs beside it
_WEAK = (float, int, bool)


def data(x: Any) -> Any:
    """The array of a Tensor, or of ids that were looked at; anything else as it is."""
    return x.data if isinstance(x, Tensor) else x.ids if type(x) is Inside else x


def wants(x: Any) -> bool:
    """Whether a gradient is to be computed for this input."""
    return isinstance(x, Tensor) and x.requires_grad


def is_scalar(x: Any) -> bool:
    """Whether x is a plain Python number, which takes the dtype of what it meets."""
    return type(x) in _WEAK


def array(name: str, x: Any) -> Array:
    """The array of an argument that must be an array or a Tensor."""
    x = data(x)
    if type(x) is np.ndarray or is_gpu(x):
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked one; fill it first")
    if isinstance(x, np.ndarray | np.generic):
        return np.asarray(x)
    if hasattr(x, "__cuda_array_interface__"):
        raise TypeError(f"{name}: {foreign(x)}")
    raise TypeError(f"{name}: expected an array or a Tensor, got {kind(x)}")


def plain(name: str, x: Any) -> np.ndarray:
    """An array-like or Tensor as a NumPy array; a CuPy array is copied from the GPU."""
    x = to_cpu(data(x))
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected a plain array, got a masked one; fill it first")
    if hasattr(x, "__cuda_array_interface__"):
        raise TypeError(f"{name}: {foreign(x)}")
    try:
        return np.asarray(x)
    except (ValueError, TypeError, RuntimeError):
        raise no_array(name, x) from None


def mask(name: str, x: Any) -> Array:
    """An array-like or Tensor as an array: NumPy's, or a CuPy array as it is."""
    x = data(x)
    return x if is_gpu(x) else plain(name, x)


def no_array(name: str, x: Any) -> ValueError | TypeError:
    """What to raise where NumPy raised: rows of unequal lengths, a tuple of arrays, another library's tensor on its own tape."""
    if getattr(x, "requires_grad", False):
        return TypeError(f"{name}: expected an array, got a {kind(x)} that requires a gradient, which would be lost; pass {name}.detach()")
    error = ValueError if isinstance(x, list | tuple) else TypeError
    return error(f"{name}: expected an array, got a {kind(x)} that NumPy cannot make one of")


def kind(x: Any) -> str:
    """The name of x's type, after its module where it is another library's."""
    found = type(x)
    own = found.__module__ in ("builtins", "numpy") or found.__module__.startswith("fastseq")
    return found.__name__ if own else f"{found.__module__}.{found.__name__}"


def floats(name: str, x: Any) -> Array:
    """The array of an argument that must be float32 or float64."""
    x = array(name, x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32 or float64, got {x.dtype}")
    return x


def like(name: str, x: Any, other: Array, beside: str = "x") -> Array:
    """The array of an argument that must have the dtype of another one, called `beside`, and be where it is."""
    x = array(name, x)
    if type(x) is not type(other):
        together(name, x, other, beside)
    if x.dtype != other.dtype:
        raise TypeError(f"{name}: expected {other.dtype}, got {x.dtype}")
    return x


def together(name: str, x: Array, other: Array, beside: str = "x") -> None:
    """Raises where one of two arrays is NumPy's and the other one CuPy's."""
    if is_gpu(x) is is_gpu(other):
        return
    if is_gpu(x):
        advice = f'move {beside} with cupy.asarray({beside}), or the layer with .to("cpu")'
        raise TypeError(f"{name}: expected a NumPy array like {beside}, got a CuPy array; {advice}")
    advice = f'move {name} with cupy.asarray({name}), or the layer that has it with .to("cuda"), or {beside} with .get()'
    raise TypeError(f"{name}: expected a CuPy array like {beside}, got a NumPy array; {advice}")


def shape(name: str, x: Array, expected: tuple[int | str, ...]) -> None:
    """Raises unless x has this shape; a letter stands for any size."""
    if x.shape == expected or (x.ndim == len(expected) and all(isinstance(e, str) or e == n for e, n in zip(expected, x.shape, strict=True))):
        return
    text = ", ".join(str(e) for e in expected) + ("," if len(expected) == 1 else "")
    raise ValueError(f"{name}: expected shape ({text}), got {x.shape}")


def integer(name: str, value: Any, low: int, high: int) -> int:
    """An int in [low, high)."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = operator.index(value)
    if not low <= number < high:
        raise ValueError(f"{name}: expected an integer in [{low}, {high}), got {number}")
    return number


def count(name: str, value: Any, least: int = 1) -> int:
    """An int of at least `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number


def sizes(name: str, value: Any, axes: int, low: int) -> tuple[int, ...]:
    """An integer for each axis from one integer or as many as there are axes."""
    many = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(many) != axes:
        raise ValueError(f"{name}: expected {'one integer' if axes == 1 else f'an integer or {axes} of them'}, got {value!r}")
    return tuple(integer(name, number, low, MOST_ELEMENTS) for number in many)


def boolean(name: str, value: Any, array_hint: str = "") -> bool:
    """True or False, NumPy's too, 0 or 1; `array_hint` ends the sentence for an array."""
    if type(value) is bool:
        return value
    if isinstance(value, np.bool_ | int | np.integer) and value in (0, 1):
        return bool(value)
    came = value if isinstance(value, int | np.integer) else type(value).__name__
    raise TypeError(f"{name}: expected True or False, got {came}{array_hint if hasattr(value, 'shape') else ''}")


def no_tensors(operation: str, **arguments: Any) -> None:
    """Raises where an argument of a forward half is a Tensor."""
    for name, x in arguments.items():
        if isinstance(x, Tensor):
            raise TypeError(f"{name}: expected an array, got a Tensor; {operation} records")


def gradient(name: str, x: Any, saved: Array, sizes: tuple[int, ...]) -> Array:
    """A gradient that a backward half is given: an array of the dtype of what was saved, and of this shape."""
    if isinstance(x, Tensor):
        raise TypeError(f"{name}: expected an array, got a Tensor")
    x = like(name, x, saved)
    shape(name, x, sizes)
    return x


def made_by(forward: str, cache: Any, kind: type) -> None:
    """Raises unless the cache is of the kind that this forward half returns."""
    if not isinstance(cache, kind):
        raise TypeError(f"cache: expected what {forward} returned, got {type(cache).__name__}")


def axis(name: str, value: Any, ndim: int) -> int:
    """An axis counted from the front."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    number = operator.index(value)
    if not -ndim <= number < ndim:
        raise ValueError(f"{name}: expected an axis of an array with {ndim} axes, got {number}")
    return number % ndim


def size(name: str, *sizes: int) -> None:
    """Raises where an array of these sizes, or what a kernel needs beside it, could not be addressed; no size counts as 0."""
    if not 0 < math.prod(sizes) <= _MOST_OF_ONE and math.prod([max(n, 1) for n in sizes]) > _MOST_OF_ONE:
        raise ValueError(f"{name}: a result of shape {sizes} is larger than the address space")


def integers(name: str, x: Any, other: Array | None = None, beside: str = "x") -> Array:
    """Ids as int64; where `other`, called `beside`, is given they must be where it is."""
    x = array(name, x)
    if other is not None and type(x) is not type(other):
        together(name, x, other, beside)
    if x.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integer ids, got {x.dtype}")
    return x if x.dtype == np.int64 else x.astype(np.int64)


def counts(name: str, x: Any) -> np.ndarray:
    """Integers from an array-like, of any integer dtype, in this computer's memory; an empty list has no other type."""
    found = plain(name, x)
    if found.dtype.kind not in "iu" and not (found.size == 0 and isinstance(x, list | tuple)):
        raise TypeError(f"{name}: expected integers, got {found.dtype}")
    return found


def ids_inside(name: str, ids: Array, limit: int, backend: Any, original: Any, ignore: int | None = None) -> None:
    """Raises IndexError for an id outside [0, limit) other than `ignore`; `original` is what the caller passed."""
    position = backend.ids_find_outside(ids, limit)
    if position < 0:
        return
    flat = ids.reshape(-1)
    outside = (flat < 0) | (flat >= limit)
    if ignore is not None:
        outside &= flat != ignore
    if outside.any():
        found = int(data(original).reshape(-1)[int(outside.argmax())])
        raise IndexError(f"{name}: {found} is outside the vocabulary of {limit}")


class Inside(NamedTuple):
    """Ids that `looked_at` found inside [0, limit), where a loss takes targets."""

    ids: Array
    limit: int


def looked_at(name: str, ids: Array, limit: int, ignore: int) -> Inside:
    """The ids, once `ids_inside` has let them through: a model looks before it begins, for on a GPU a look waits for what was begun."""
    found = integers(name, ids).copy()  # of which nobody changes an element any more
    ids_inside(name, found, limit, backend_of(found), ids, ignore=ignore)
    return Inside(found, limit)


def not_looked_at(ids: Any, limit: int) -> bool:
    """Whether `ids_inside` has still to look at these."""
    return type(ids) is not Inside or ids.limit != limit


def probability(name: str, p: Any) -> float:
    """A number in [0, 1]."""
    if not isinstance(p, float | int | np.floating | np.integer) or isinstance(p, bool):
        raise TypeError(f"{name}: expected a number, got {type(p).__name__}")
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name}: expected a probability between 0 and 1, got {p}")
    return float(p)


def not_negative(name: str, value: Any) -> float:
    """A number of at least 0."""
    if not isinstance(value, float | int | np.floating | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name}: expected a number of at least 0, got {value}")
    return float(value)


def number(name: str, value: Any) -> float:
    """A finite number."""
    if not isinstance(value, float | int | np.floating | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of these words."""
    if value not in choices:
        raise ValueError(f"{name}: expected {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}, got {value!r}")


def reduction(value: Any) -> None:
    """Raises unless `value` names a reduction of losses."""
    choice("reduction", value, ("mean", "sum", "none"))


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an operand of this shape that was broadcast to grad's shape: summed over the axes that grew."""
    if grad.shape == shape:
        return grad
    extra = grad.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(extra + k for k, n in enumerate(shape) if n == 1 and grad.shape[extra + k] != 1)
    return grad.sum(axis=axes, keepdims=True).reshape(shape)
