"""CUDA sources on the CPU: what NVRTC and the driver do for a module, done by g++ and `runtime.cpp`.

A source is compiled behind `emulator.h` and kept in `$FASTSEQ_EMULATOR_CACHE`, or a folder of the
system's temporary one, under the hash of everything that it came from.

Under AddressSanitizer, which sees reads and writes outside of arrays and of shared memory::

    FASTSEQ_CUDA_ASAN=1 LD_PRELOAD="$(gcc -print-file-name=libasan.so)" \\
        ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=0 python -m pytest tests/cuda

`FASTSEQ_CUDA_RACES=1 python -m pytest tests/cuda` looks for accesses of two threads to one byte that no barrier or flag puts in order; it
takes some ten times as long.

`FASTSEQ_EMULATOR_ORDER=forward` or `backward` starts threads and blocks in that order; without it every other launch is backward.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ASAN = os.environ.get("FASTSEQ_CUDA_ASAN") == "1"
RACES = os.environ.get("FASTSEQ_CUDA_RACES") == "1"
_HEADERS = ("types.h", "math.h", "runtime.h", "emulator.h", "launch.h", "switch.h", "races.h", "fibers.h", "order.h", "runtime.cpp")
# -ffp-contract=fast: nvcc too fuses a product into the sum that it feeds
_FLAGS = ["-std=c++17", "-O1", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-fstack-clash-protection", "-fno-exceptions", "-fno-rtti", "-w"]
# A GPU refuses a misaligned float2, a CPU does not; an index behind a local array is seen where it is no constant.
_TRAPS = ("-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error")
# The scheduler's own frames are left in the middle; it tells the sanitizer of the stacks that it goes to.
_ASAN_FLAGS = {"kernel": ("-fsanitize=address", "-fsanitize-recover=address", "-g"), "runtime": ("-DEMU_ASAN",)}
_RACES_FLAGS = {"kernel": ("-fsanitize=thread", "-nodefaultlibs", "-lc"), "runtime": ("-DEMU_RACES", "-O3")}
_KERNEL = re.compile(
    r'extern\s*"C"\s*__global__\s*(?:void\s*)?(?:__launch_bounds__\s*\((?P<bounds>(?:[^()]|\([^()]*\))*)\)\s*)?(?:void\s+)?(?P<name>\w+)\s*\('
)


class EmulatorError(RuntimeError):
    """What a GPU would answer with an error, a hang or silence."""


def compiler():
    """The path of g++, or None."""
    return shutil.which("g++")


def cache():
    """The folder of compiled sources."""
    folder = Path(os.environ.get("FASTSEQ_EMULATOR_CACHE") or Path(tempfile.gettempdir()) / f"fastseq-emulator-{os.getuid()}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _fingerprint():
    """What every compiled source depends on: the emulator, the compiler and the processor."""
    state = hashlib.sha256(repr((ASAN, RACES)).encode())
    for name in _HEADERS:
        state.update((HERE / name).read_bytes())
    state.update(" ".join([*_FLAGS, *_TRAPS]).encode())
    state.update(subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout)
    flags = re.search(r"^flags.*$", Path("/proc/cpuinfo").read_text(), re.M)
    state.update(flags.group().encode() if flags else os.uname().machine.encode())
    return state.digest()


def _gxx(arguments, text=None):
    command = [compiler(), *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise EmulatorError(f"g++ refuses a kernel's source:\n{done.stderr[:6000]}")
    return done.stdout


def compiled(kind, text, arguments):
    """The shared object of C++ text, compiled unless it is there."""
    key = hashlib.sha256(_fingerprint() + repr((kind, text, arguments)).encode()).hexdigest()[:32]
    path = cache() / f"{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as folder:
            source, output = Path(folder) / f"{kind}.cpp", Path(folder) / "out.so"
            source.write_text(text)
            flags = [*_FLAGS, f"-I{HERE}", *((*_TRAPS, "-g1") if kind == "kernel" else ()), *(_ASAN_FLAGS.get(kind, ()) if ASAN else ()), *(_RACES_FLAGS.get(kind, ()) if RACES else ())]
            _gxx([*flags, *arguments, "-o", str(output), str(source), "-lm"])
            output.replace(path)
    return path


class _Launch(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_ulonglong),
        ("cooperative", ctypes.c_int),
        ("backward", ctypes.c_int),
        ("call", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
    ]


class Parameter(ctypes.Structure):
    """One of a kernel's parameters, as `launch.h` describes it."""

    _fields_ = [("size", ctypes.c_int), ("kind", ctypes.c_int), ("pointee_size", ctypes.c_int), ("pointee_kind", ctypes.c_int)]


@functools.cache
def _runtime():
    path = compiled("runtime", (HERE / "runtime.cpp").read_text(), [])
    library = ctypes.PyDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # PyDLL: one launch at a time, under the interpreter's lock
    library.emu_run.restype = ctypes.c_char_p
    return library


_PLACE = re.compile(r" \[(/\S+)\+(0x[0-9a-f]+)\]")


class Kernel:
    """A `__global__` function that runs on the CPU."""

    def __init__(self, library, name, text):
        self.name, self._text = name, text
        self._call = ctypes.cast(getattr(library, f"emu_call_{name}"), ctypes.c_void_p)
        describe = getattr(library, f"emu_describe_{name}")
        found = (Parameter * describe(None))()
        describe(found)
        self.parameters = list(found)
        self.most_threads = getattr(library, f"emu_bounds_{name}")() or 1024
        self._launches = 0

    def run(self, grid, block, arguments, shared, cooperative):
        """Runs all threads; `arguments` are bytes, each of its parameter's size."""
        held = [ctypes.create_string_buffer(a, len(a)) for a in arguments]
        pointers = (ctypes.c_void_p * (len(held) + 1))(*[ctypes.addressof(h) for h in held])
        order = os.environ.get("FASTSEQ_EMULATOR_ORDER")
        backward = order == "backward" or (order is None and self._launches % 2)
        self._launches += 1
        launch = _Launch((*grid,), (*block,), shared, cooperative, backward, self._call, pointers)
        error = _runtime().emu_run(ctypes.byref(launch))
        if error is not None:
            raise EmulatorError(f"{self.name}: {_PLACE.sub(self._line, error.decode())}")

    def _line(self, place):
        """The line of the source that an address in the shared object belongs to, and those of its callers that are in the same function."""
        found = subprocess.run(["addr2line", "-i", "-e", *place.groups()], capture_output=True, text=True).stdout if shutil.which("addr2line") else ""
        lines = self._text.splitlines()
        known = [lines[int(n) - 1].strip() for n in re.findall(r"kernel\.cu:(\d+)", found) if 0 < int(n) <= len(lines)]
        return f" (`{'` in `'.join(known)}`)" if known else ""


class Module:
    """The kernels of a source."""

    def __init__(self, text, options):
        # Behind emulator.h, not on the command line: the header's own names are not a kernel's macros.
        macros = "".join(f"#define {o[2:].replace('=', ' ', 1) if '=' in o else o[2:] + ' 1'}\n" for o in options if o.startswith("-D"))
        plain, text = text, f'{macros}#line 1 "kernel.cu"\n{text}'
        shown = _gxx(["-std=c++17", "-E", "-P", "-xc++", f"-I{HERE}", "-DFSQ_EMULATED", "-DEMU_FIND_KERNELS", "-include", "emulator.h", "-"], text)
        found = {m["name"]: m["bounds"] or "0" for m in _KERNEL.finditer(shown)}
        launchers = "".join(f"EMU_KERNEL({name}, {bounds})\n" for name, bounds in found.items())
        whole = f"{text}\n{launchers}"
        _runtime()
        path = compiled("kernel", whole, ["-DFSQ_EMULATED", "-include", "emulator.h"])
        library = ctypes.PyDLL(str(path))
        self.kernels = {name: Kernel(library, name, plain) for name in found}
