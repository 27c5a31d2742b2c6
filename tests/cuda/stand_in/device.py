"""What CuPy knows of a GPU, made up: its properties, memory, streams, events and graphs."""

import ctypes
import threading
import time
import weakref

import numpy as np

from tests.cuda.emulator import build


class CUDARuntimeError(RuntimeError):
    """As `cupy_backends.cuda.api.runtime` has it, with a text alone."""


class CUDADriverError(RuntimeError):
    """As `cupy_backends.cuda.api.driver` has it, with a text alone."""


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory` has it."""


class Settings:
    """The GPU that is played, for tests to change: `monkeypatch.setattr(settings, "multiprocessors", 2)`."""

    name = "emulated on the CPU"
    capability = (9, 0)
    multiprocessors = 4
    shared_per_block = 232448  # bytes, after opting in
    shared_per_multiprocessor = 233472
    threads_per_multiprocessor = 2048
    blocks_per_multiprocessor = 32
    memory = 2**33  # bytes; an allocation beyond raises OutOfMemoryError
    host_reads = 0  # how often something waited for the device to bring its numbers to the host


settings = Settings()

# ---------------------------------------------------------------- memory

_libc = ctypes.CDLL(None)
_libc.free.argtypes = [ctypes.c_void_p]
_libc.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
_used = 0
ALIGNMENT = 512  # of CuPy's pool
# Bytes behind each array that are no numbers, for who reads them, and that are looked at after each launch; a sanitizer has its own.
BEHIND = b"" if build.ASAN else b"\xff" * 64


def _freed(pointer, size):
    global _used
    _used -= size
    ctypes.memset(pointer, 0xFF, size)
    _libc.free(pointer)


class Memory:
    """Bytes on the heap that begin at a multiple of 512, all 0xff: a NaN in every float format, and no number of anything."""

    def __init__(self, size):
        global _used
        refuse_while_capturing("allocate")
        if _used + size > settings.memory:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes (allocated so far: {_used:,} bytes).")
        pointer = ctypes.c_void_p()
        if _libc.posix_memalign(ctypes.byref(pointer), ALIGNMENT, max(size + len(BEHIND), 1)):
            raise MemoryError
        _used += size
        self.ptr, self.size, self.device_id = pointer.value, size, 0
        ctypes.memset(self.ptr, 0xFF, size + len(BEHIND))
        weakref.finalize(self, _freed, self.ptr, size).atexit = False
        self.__array_interface__ = {"data": (self.ptr, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def intact(self):
        """Whether nothing was written behind it."""
        return ctypes.string_at(self.ptr + self.size, len(BEHIND)) == BEHIND


class MemoryPointer:
    """A place in a Memory."""

    def __init__(self, mem, offset):
        self.mem, self.ptr, self.device_id, self.device = mem, mem.ptr + offset, 0, Device(0)

    def __int__(self):
        return self.ptr

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def memset_async(self, value, size, stream=None):
        submit(lambda: ctypes.memset(self.ptr, value, size))


def alloc(size):
    """As `cupy.cuda.alloc`."""
    return MemoryPointer(Memory(size), 0)


class MemoryPool:
    """The default pool; it keeps nothing back."""

    def used_bytes(self):
        return _used

    def total_bytes(self):
        return _used

    def free_bytes(self):
        return 0

    def n_free_blocks(self):
        return 0

    def free_all_blocks(self, stream=None):
        pass

    def set_limit(self, size=None, fraction=None):
        settings.memory = size or Settings.memory

    def get_limit(self):
        return settings.memory


# ---------------------------------------------------------------- streams

_local = threading.local()


class Stream:
    """Runs what it is given at once, unless it is capturing."""

    null = None

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self.ptr = 0 if null else id(self)
        self.null, self.is_non_blocking, self.ptds, self.priority = null, non_blocking, ptds, priority or 0
        self._outer, self._recorded = [], None

    def __enter__(self):
        self._outer.append(get_current_stream())
        return self.use()

    def __exit__(self, *error):
        _local.stream = self._outer.pop()

    def __eq__(self, other):
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self):
        return hash(self.ptr)

    def use(self):
        _local.stream = self
        return self

    @property
    def done(self):
        refuse_while_capturing("query a stream")
        return True

    def synchronize(self):
        refuse_while_capturing("wait for a stream")

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        pass

    def begin_capture(self, mode=None):
        if self.null:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
        if capturing():
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is capturing already")
        self._recorded = []
        _capturing.append(self)

    def end_capture(self):
        if self._recorded is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not capturing")
        graph, self._recorded = Graph(self._recorded), None
        _capturing.remove(self)
        return graph

    def is_capturing(self):
        return self._recorded is not None


_capturing = []


def capturing():
    """The stream that is capturing, or None."""
    return _capturing[0] if _capturing else None


def refuse_while_capturing(what):
    """What is no launch has no place in a graph."""
    if _capturing:
        raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: a graph holds kernel launches and products only, tried to {what}")


def submit(work):
    """Runs the work, or keeps it for the graph of the current stream."""
    stream = get_current_stream()
    if capturing() and not stream.is_capturing():
        raise CUDARuntimeError("cudaErrorStreamCaptureImplicit: another stream is capturing")
    if stream.is_capturing():
        stream._recorded.append(work)
    else:
        work()


Stream.null = Stream(null=True)


def get_current_stream(device_id=-1):
    """As `cupy.cuda.get_current_stream`."""
    return getattr(_local, "stream", Stream.null)


class Graph:
    """Launches to be repeated."""

    def __init__(self, recorded):
        self._recorded = recorded

    def launch(self, stream=None):
        refuse_while_capturing("launch a graph")
        for work in self._recorded:
            work()

    def upload(self, stream=None):
        pass


class Event:
    """The host's time of its recording."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.time = None

    def record(self, stream=None):
        refuse_while_capturing("record an event")
        self.time = time.perf_counter()

    done = True

    def synchronize(self):
        refuse_while_capturing("wait for an event")


def get_elapsed_time(start, end):
    """As `cupy.cuda.get_elapsed_time`: milliseconds."""
    return (end.time - start.time) * 1e3


# ---------------------------------------------------------------- the device


class Device:
    """As `cupy.cuda.Device`."""

    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)
        if self.id != 0:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __int__(self):
        return self.id

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def use(self):
        return self

    def synchronize(self):
        refuse_while_capturing("wait for the device")

    @property
    def compute_capability(self):
        return "".join(map(str, settings.capability))

    @property
    def mem_info(self):
        return memGetInfo()

    @property
    def attributes(self):
        return {
            "MultiProcessorCount": settings.multiprocessors,
            "MaxSharedMemoryPerBlockOptin": settings.shared_per_block,
            "MaxSharedMemoryPerMultiprocessor": settings.shared_per_multiprocessor,
            "CooperativeLaunch": 1,
        }


def memGetInfo():
    """Free and total bytes."""
    return settings.memory - _used, settings.memory


def getDeviceProperties(device):
    """Those that are asked for."""
    Device(device)
    return {
        "name": settings.name.encode(),
        "major": settings.capability[0],
        "minor": settings.capability[1],
        "multiProcessorCount": settings.multiprocessors,
        "sharedMemPerBlock": 49152,
        "sharedMemPerBlockOptin": settings.shared_per_block,
        "sharedMemPerMultiprocessor": settings.shared_per_multiprocessor,
        "maxThreadsPerMultiProcessor": settings.threads_per_multiprocessor,
        "regsPerMultiprocessor": 65536,
        "warpSize": 32,
        "totalGlobalMem": settings.memory,
        "l2CacheSize": 50 * 2**20,
    }


def blocks_per_multiprocessor(threads, shared):
    """How many blocks fit by threads and shared memory; registers are not known here."""
    by_threads = settings.threads_per_multiprocessor // (-(-threads // 32) * 32)
    by_shared = settings.shared_per_multiprocessor // (shared + 1024)  # the driver's own share of each block
    return min(by_threads, by_shared, settings.blocks_per_multiprocessor)


def host_bytes(pointer, size):
    """The bytes at an address of the host."""
    return np.frombuffer((ctypes.c_ubyte * size).from_address(pointer), np.uint8)
