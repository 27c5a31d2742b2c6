"""+ - * / ** and negation, with NumPy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastseq.autograd import Array, ArrayOrTensor, Tensor, result
from fastseq.backends import namespace
from fastseq.functional import _check


def _operands(a: Any, b: Any) -> tuple[Any, Any]:
    """The two operands as arrays of one dtype, or one of them as a Python number."""
    if _check.is_scalar(a) and _check.is_scalar(b):
        raise TypeError("a, b: expected an array or a Tensor on one side")
    if _check.is_scalar(b):
        return _check.array("a", a), b
    y = _check.array("b", b)
    if _check.is_scalar(a):
        return a, y
    x = _check.array("a", a)
    if type(x) is not type(y):
        _check.together("b", y, x, "a")
    if x.dtype != y.dtype:
        raise TypeError(f"b: expected {x.dtype}, got {y.dtype}; nothing is converted here (a Python number takes any dtype)")
    if x.shape == y.shape:
        return x, y
    try:
        np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        raise ValueError(f"b: expected a shape that broadcasts with {x.shape}, got {y.shape}") from None
    return x, y


def _binary(
    a: Any, b: Any, name: str, forward: Callable[[Any, Any], Array], da: Callable[..., Array], db: Callable[..., Array]
) -> ArrayOrTensor:
    """One elementwise operation; da and db (dy, a, b, y) are the gradients before broadcasting is undone."""
    x, y = _operands(a, b)
    z = forward(x, y)
    need_a, need_b = _check.wants(a), _check.wants(b)

    def backward(dz: Array) -> tuple[Array | None, Array | None]:
        return (
            _undone(da(dz, x, y, z), x.shape) if need_a else None,
            _undone(db(dz, x, y, z), y.shape) if need_b else None,
        )

    return result(z, (a, b), backward, name)


def _undone(grad: Any, shape: tuple[int, ...]) -> Array:
    """The gradient of an operand of this shape."""
    if type(grad) is np.ndarray and grad.shape == shape:
        return grad
    # NumPy makes a number of an array without axes: an array again.
    return _check.unbroadcast(np.asarray(grad) if isinstance(grad, np.generic) else grad, shape)


def add(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """The sum a + b.

    Parameters
    ----------
    a, b : ndarray, Tensor or Python number
        Arrays of one dtype whose shapes broadcast.

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    TypeError, ValueError
        If the dtypes differ, or the shapes do not broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.add(np.ones(2), 1)
    array([2., 2.])
    """
    return _binary(a, b, "add", lambda x, y: x + y, lambda d, x, y, z: d, lambda d, x, y, z: d)


def sub(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """The difference a - b; arguments and errors as in `add`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.sub(np.ones(2), 1)
    array([0., 0.])
    """
    return _binary(a, b, "sub", lambda x, y: x - y, lambda d, x, y, z: d, lambda d, x, y, z: -d)


def mul(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """The product a * b, element by element; arguments and errors as in `add`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.mul(np.ones(2), 3)
    array([3., 3.])
    """
    return _binary(a, b, "mul", lambda x, y: x * y, lambda d, x, y, z: d * y, lambda d, x, y, z: d * x)


def div(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """The quotient a / b; arguments and errors as in `add`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.div(np.ones(2), 2)
    array([0.5, 0.5])
    """
    return _binary(a, b, "div", lambda x, y: x / y, lambda d, x, y, z: d / y, lambda d, x, y, z: -d * z / y)


def pow(a: ArrayOrTensor, b: ArrayOrTensor) -> ArrayOrTensor:
    """The power a ** b; arguments and errors as in `add`. The gradient of b where a = 0 is 0 for b >= 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.pow(np.array([2.0, 3.0]), 2)
    array([4., 9.])
    """
    return _binary(a, b, "pow", lambda x, y: x**y, _pow_base, _pow_exponent)


def _pow_base(d: Array, x: Any, y: Any, z: Array) -> Array:
    # d/dx x^y = y x^(y-1); x^0 is constant, where the formula says 0 * inf at x = 0
    if _check.is_scalar(y):
        return d * (y * x ** (y - 1)) if y != 0 else d * 0
    where = namespace(y).where
    return d * where(y == 0, y, y * x ** where(y == 0, y, y - 1))


def _pow_exponent(d: Array, x: Any, y: Any, z: Array) -> Array:
    # d/dy x^y = x^y log(x); at x = 0 and y >= 0 the limit 0 in place of 0 * -inf
    of_y = namespace(y)
    x = of_y.asarray(x, dtype=y.dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = z * of_y.log(x)
    return d * of_y.where((x == 0) & (y >= 0), y.dtype.type(0), slope)


def neg(a: ArrayOrTensor) -> ArrayOrTensor:
    """-a.

    Examples
    --------
    >>> import numpy as np
    >>> import fastseq as fs
    >>> fs.functional.neg(np.ones(2))
    array([-1., -1.])
    """
    return result(-_check.array("a", a), (a,), lambda dy: (-dy,), "neg")


for _name, _function in (("add", add), ("sub", sub), ("mul", mul), ("truediv", div), ("pow", pow)):
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", lambda self, other, function=_function: function(other, self))
for _name in ("neg", "__neg__"):
    setattr(Tensor, _name, neg)
