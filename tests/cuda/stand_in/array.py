"""CuPy's ndarray over memory of the host: as strict as CuPy about what is on the device and what is not."""

import operator

import numpy as np

from tests.cuda.stand_in import device
from tests.cuda.stand_in.device import Memory, MemoryPointer, settings

_SCALARS = (bool, int, float, complex, np.generic)


def unwrapped(value):
    """The NumPy array of a device array, here or in a list, tuple or dictionary; NumPy's own are refused, as CuPy does."""
    if isinstance(value, ndarray):
        return value._a
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(unwrapped(v) for v in value)
    if isinstance(value, dict):
        return {key: unwrapped(v) for key, v in value.items()}
    return value


def _memory_of(a):
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a.base if isinstance(a.base, Memory) else None


def empty_numpy(shape, dtype, strides=None):
    """A NumPy array on fresh device memory; where strides are given, with those of a dense array."""
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {dtype}")
    shape = tuple(int(n) for n in shape) if isinstance(shape, tuple | list) else (int(shape),)
    if min(shape, default=0) < 0:
        raise ValueError("negative dimensions are not allowed")
    count = int(np.prod(shape, dtype=np.int64))
    flat = np.asarray(Memory(count * dtype.itemsize)).view(dtype)
    if dtype.kind == "b":
        flat.fill(True)
    return flat.reshape(shape) if strides is None or not count else np.ndarray(shape, dtype, flat, 0, strides)


def wrapped(value):
    """Device arrays of what NumPy answered: views of device memory as views, all else on memory of its own."""
    if isinstance(value, np.ndarray | np.generic):
        a = np.asarray(value)
        if _memory_of(a) is not None:
            return ndarray._of(a, ndarray._of(a))
        dense = np.empty_like(a)  # its strides are in a's order of axes, as CuPy has them
        a = empty_numpy(a.shape, a.dtype, dense.strides)
        a[...] = value
        return ndarray._of(a)
    if isinstance(value, list | tuple):
        return type(value)(wrapped(v) for v in value) if type(value) in (list, tuple) else tuple(wrapped(v) for v in value)
    return value


def apply(function, *args, **keywords):
    """A NumPy function on device arrays."""
    device.refuse_while_capturing(f"call {getattr(function, '__name__', function)}")
    out = keywords.get("out")
    outs = out if isinstance(out, tuple) else (out,)
    result = function(*[unwrapped(a) for a in args], **unwrapped(keywords))
    return next((o for o in outs if o is not None and o._a is result), None) if isinstance(result, np.ndarray) and out is not None else wrapped(result)


class _Flags:
    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = flags.c_contiguous, flags.f_contiguous, flags.owndata
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous

    def __getitem__(self, name):
        return getattr(self, name.lower())


class ndarray:
    """An array on the device."""

    __array_priority__ = 100
    __module__ = "cupy"

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order="C"):
        dtype = np.dtype(dtype)
        shape = shape if isinstance(shape, tuple) else (shape,)
        if memptr is None:
            self._a = empty_numpy(shape, dtype)
        else:
            whole = np.asarray(memptr.mem)[memptr.ptr - memptr.mem.ptr :]
            whole = whole[: whole.size // dtype.itemsize * dtype.itemsize].view(dtype)
            self._a = whole[: int(np.prod(shape))].reshape(shape) if strides is None else np.ndarray(shape, dtype, whole, 0, strides)
        self._base = None

    @classmethod
    def _of(cls, a, base=None):
        self = object.__new__(cls)
        self._a, self._base = a, base
        return self

    def _view(self, a):
        return ndarray._of(a, self._base if self._base is not None else self)

    # ------------------------------------------------------------ what it is

    shape = property(lambda self: self._a.shape)
    strides = property(lambda self: self._a.strides)
    dtype = property(lambda self: self._a.dtype)
    size = property(lambda self: self._a.size)
    ndim = property(lambda self: self._a.ndim)
    itemsize = property(lambda self: self._a.itemsize)
    nbytes = property(lambda self: self._a.nbytes)
    flags = property(lambda self: _Flags(self._a.flags))
    base = property(lambda self: self._base)
    device = property(lambda self: device.Device(0))
    T = property(lambda self: self._view(self._a.T))
    mT = property(lambda self: self._view(self._a.mT))
    real = property(lambda self: self._view(self._a.real))

    @property
    def data(self):
        memory = _memory_of(self._a)
        return MemoryPointer(memory, self._a.ctypes.data - memory.ptr)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr if self.size else 0, False),
            "strides": None if self._a.flags.c_contiguous else self.strides,
            "descr": self.dtype.descr,
            "version": 3,
            "stream": 1,
        }

    def __len__(self):
        return len(self._a)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        return repr(self._a)

    def __str__(self):
        return str(self._a)

    # ------------------------------------------------------------ to the host and from it

    def _read(self):
        device.refuse_while_capturing("bring an array to the host")
        settings.host_reads += 1
        return self._a

    def get(self, stream=None, order="C", out=None, blocking=True):
        if out is None:
            return np.array(self._read(), order=order)
        out[...] = self._read()
        return out

    def set(self, arr, stream=None):
        device.refuse_while_capturing("bring an array to the device")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        self._a[...] = arr

    def item(self, *args):
        return self._read().item(*args)

    def tolist(self):
        return self._read().tolist()

    def tobytes(self, order="C"):
        return self._read().tobytes(order)

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __bool__(self):
        return bool(self._read())

    def __int__(self):
        return int(self._read())

    def __float__(self):
        return float(self._read())

    def __complex__(self):
        return complex(self._read())

    def __index__(self):
        return operator.index(self._read()[()])

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memory):
        return self.copy()

    def __reduce__(self):
        import cupy

        return cupy.asarray, (self.get(),)

    # ------------------------------------------------------------ NumPy's doors

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        out = keywords.get("out", ())
        if any(isinstance(o, np.ndarray) for o in out):
            raise TypeError(f"Unsupported type {np.ndarray}")
        if method != "__call__":
            return NotImplemented
        if len(out) == 1:
            keywords["out"] = out[0]
        return apply(ufunc, *inputs, **keywords)

    def __array_function__(self, function, types, args, keywords):
        import cupy

        found = getattr(cupy, function.__name__, None)
        return NotImplemented if found is None else found(*args, **keywords)

    # ------------------------------------------------------------ parts

    def __getitem__(self, key):
        device.refuse_while_capturing("index an array") if not _is_basic(key) else None
        key = unwrapped(key)
        found = self._a[key if Ellipsis in _ellipses(key) else (*key, ...) if isinstance(key, tuple) else (key, ...)]
        return self._view(found) if _memory_of(found) is not None else wrapped(found)

    def __setitem__(self, key, value):
        device.refuse_while_capturing("assign to an array")
        if not isinstance(value, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(value)}")
        self._a[unwrapped(key)] = unwrapped(value)

    def fill(self, value):
        device.refuse_while_capturing("fill an array")
        self._a.fill(unwrapped(value))

    def _viewing(name):
        def method(self, *args, **keywords):
            found = getattr(self._a, name)(*args, **keywords)
            return self._view(found) if _memory_of(found) is not None else wrapped(found)

        method.__name__ = name
        return method

    reshape, transpose, ravel, squeeze, view, swapaxes, diagonal = map(
        _viewing, ("reshape", "transpose", "ravel", "squeeze", "view", "swapaxes", "diagonal")
    )

    def _computing(name):
        def method(self, *args, **keywords):
            if {"where", "initial"} & keywords.keys():
                raise TypeError(f"cupy.ndarray.{name} takes neither where nor initial")
            return apply(getattr(self._a, name), *args, **keywords)

        method.__name__ = name
        return method

    _METHODS = "all any argmax argmin argsort clip cumprod cumsum dot flatten max mean min nonzero prod repeat round std sum take trace var copy searchsorted"
    for _name in _METHODS.split():
        locals()[_name] = _computing(_name)
    del _name, _METHODS, _viewing, _computing

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return apply(self._a.astype, dtype, order=order)

    def sort(self, axis=-1):
        device.refuse_while_capturing("sort an array")
        self._a.sort(axis)

    # ------------------------------------------------------------ operators

    def __matmul__(self, other):
        return _binary(np.matmul, self, other)

    def __neg__(self):
        return apply(np.negative, self)

    def __pos__(self):
        return self.copy()

    def __abs__(self):
        return apply(np.absolute, self)

    def __invert__(self):
        return apply(np.invert, self)

    __hash__ = None


def _is_basic(key):
    return all(k is None or k is Ellipsis or isinstance(k, int | slice | np.integer) for k in (key if isinstance(key, tuple) else (key,)))


def _ellipses(key):
    return [k for k in (key if isinstance(key, tuple) else (key,)) if k is Ellipsis]


def _binary(ufunc, left, right, out=None):
    for other in (left, right):
        if not isinstance(other, (ndarray, *_SCALARS)):
            if isinstance(other, np.ndarray):
                raise TypeError(f"Unsupported type {type(other)}")
            return NotImplemented
    return apply(ufunc, left, right) if out is None else apply(ufunc, left, right, out=out)


def _operators():
    names = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "floordiv": np.floor_divide, "mod": np.remainder,
        "pow": np.power, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift,
    }  # fmt: skip
    for name, ufunc in names.items():
        setattr(ndarray, f"__{name}__", lambda self, other, u=ufunc: _binary(u, self, other))
        setattr(ndarray, f"__r{name}__", lambda self, other, u=ufunc: _binary(u, other, self))
        setattr(ndarray, f"__i{name}__", lambda self, other, u=ufunc: _binary(u, self, other, out=self))
    comparisons = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    for name, ufunc in comparisons.items():
        setattr(ndarray, f"__{name}__", lambda self, other, u=ufunc: _binary(u, self, other))


_operators()
