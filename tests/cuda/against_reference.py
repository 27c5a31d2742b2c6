"""What the tests of the CUDA backend's operations share: a call on the device, in any layout, against the reference in float64."""

import numpy as np

from fastseq.backends import cuda, reference
from tests.tolerance import assert_close

#: How an array lies on the device: in order, in order but not from a multiple of 16 bytes on, or with gaps in every axis.
LAYOUTS = ("dense", "shifted", "spread")


def laid_out(x, layout="dense"):
    """The array on the device in this layout; anything but an array as it is."""
    import cupy

    if not isinstance(x, np.ndarray) or layout == "dense" or x.ndim == 0:
        return cupy.asarray(x) if isinstance(x, np.ndarray) else x
    if layout == "shifted":
        flat = cupy.empty(x.size + 1, x.dtype)
        flat[1:] = cupy.asarray(np.ascontiguousarray(x).reshape(-1))
        return flat[1:].reshape(x.shape)
    wide = cupy.empty(tuple(2 * n + 1 for n in x.shape), x.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    view[...] = cupy.asarray(x)
    return view


def in_double(x):
    """Floats of the reference's arguments."""
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x


def host(x):
    """What came back, on the host."""
    if isinstance(x, tuple | list):
        return tuple(host(v) for v in x)
    return x.get() if hasattr(x, "get") else x


def run(name, *arrays, layout="dense", **options):
    """The backend's result on the host, from the host's arrays."""
    found = getattr(cuda, name)(*(laid_out(x, layout) for x in arrays), **options)
    if name.endswith("_backward"):
        for x in found if isinstance(found, tuple) else (found,):
            assert x is None or x.base is None, "the tape copies gradients that are views"
    return host(found)


def check(name, *arrays, terms=1, layout="dense", **options):
    """Asserts that the backend's result is the reference's; terms: how many numbers a result adds up."""
    dtype = next(x.dtype for x in arrays if isinstance(x, np.ndarray) and x.dtype.kind == "f")
    got, want = run(name, *arrays, layout=layout, **options), getattr(reference, name)(*map(in_double, arrays), **options)
    if not isinstance(want, tuple):
        got, want = (got,), (want,)
    assert len(got) == len(want)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if w is None:
            assert g is None
        elif np.asarray(w).dtype.kind == "f":
            assert_close(g, w, dtype=dtype, terms=terms, name=f"{name}, result {i}")
        else:
            np.testing.assert_array_equal(g, w)
