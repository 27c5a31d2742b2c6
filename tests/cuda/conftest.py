"""Where the tests of the CUDA path run: on a GPU through CuPy, or on the CPU through the stand-in and the emulator."""

import importlib
import importlib.util
import os
import shutil
import sys
import warnings

import numpy as np
import pytest

_OURS = ("cupy", "cupy_backends", "cupyx")
_BACKEND = "fastseq.backends"
_POOLS = pytest.StashKey()


def _real():
    """Whether CuPy is here with a GPU."""
    if os.environ.get("FASTSEQ_CUDA_EMULATED") or importlib.util.find_spec("cupy") is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of CuPy, about the machine: here they would be errors, and hide the GPU
            import cupy

            return cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:
        return False


REAL = _real()


def _is_ours(name):
    return name.partition(".")[0] in _OURS or (name.startswith(f"{_BACKEND}.cuda") and name.count(".") == 2)


class _Installed:
    """The stand-in's modules, and those of fastseq that import them, in sys.modules while this folder's tests are read or run."""

    modules = None

    def __enter__(self):
        if REAL:
            return
        if _Installed.modules is None:
            from tests.cuda import stand_in

            for name in [n for n in sys.modules if _is_ours(n)]:
                del sys.modules[name]  # a CuPy without a GPU
            _Installed.modules = stand_in.modules()
        sys.modules.update(_Installed.modules)
        for name, module in _Installed.modules.items():
            if name.startswith(_BACKEND) and _BACKEND in sys.modules:
                setattr(sys.modules[_BACKEND], name.rpartition(".")[2], module)

    def __exit__(self, *error):
        if REAL:
            return
        _Installed.modules = {name: module for name, module in sys.modules.items() if _is_ours(name)}
        for name in _Installed.modules:
            del sys.modules[name]
            if name.startswith(_BACKEND):
                vars(sys.modules[_BACKEND]).pop(name.rpartition(".")[2], None)
        if _BACKEND in sys.modules:  # has never seen a GPU
            sys.modules[_BACKEND]._Cuda.backend = sys.modules[_BACKEND]._Cuda.array = None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    with _Installed():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if item.get_closest_marker("cuda") is None:  # pytest asks this of every test
        return (yield)
    with _Installed():
        return (yield)


def pytest_report_header():
    if not REAL:
        return "cuda: emulated on the CPU"
    import cupy

    return f"cuda: {cupy.cuda.runtime.getDeviceProperties(0)['name'].decode()}"


def pytest_itemcollected(item):
    item.add_marker(pytest.mark.cuda)


def pytest_collection_finish(session):
    """NVRTC begins at once: beside the tests that come before its own."""
    modules = {module.__name__: module for item in session.items if hasattr(module := getattr(item, "module", None), "answers")}
    if not session.config.option.collectonly:
        session.config.stash[_POOLS] = [module.start() for module in modules.values()]


def pytest_sessionfinish(session):
    for pool in session.config.stash.get(_POOLS, []):
        pool.shutdown(cancel_futures=True)


def pytest_runtest_setup(item):
    if not REAL and shutil.which("g++") is None:
        pytest.skip("neither a GPU nor g++, which the emulator compiles kernels with")


@pytest.fixture(scope="session")
def cupy():
    """CuPy, or what stands in for it."""
    return importlib.import_module("cupy")


@pytest.fixture(scope="session")
def to_gpu(cupy):
    """An array of the host on the device; tuples, lists and dictionaries of them too, and all else as it is."""

    def moved(x):
        if isinstance(x, np.ndarray):
            return cupy.asarray(x)
        if isinstance(x, tuple | list):
            return type(x)(*map(moved, x)) if hasattr(x, "_fields") else type(x)(map(moved, x))
        if isinstance(x, dict):
            return {key: moved(v) for key, v in x.items()}
        return x

    return moved


@pytest.fixture
def real_gpu():
    """Skips where kernels are emulated."""
    if not REAL:
        pytest.skip("needs a GPU")


@pytest.fixture
def emulated():
    """Skips on a GPU; the settings of the one that is played, put back after the test."""
    if REAL:
        pytest.skip("about the emulator")
    from tests.cuda.stand_in.device import Settings, settings

    yield settings
    vars(settings).clear()
    assert settings.multiprocessors == Settings.multiprocessors
