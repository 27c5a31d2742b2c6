"""Compiles a kernel with NVRTC, which needs no GPU, and says what it takes of one.

    python -m tests.cuda.nvrtc softmax.cu REAL=float [THREADS=256 ...] [--arch sm_80]

prints registers, spills and shared memory of each function of fastseq/backends/kernels/softmax.cu. NVRTC is the PyPI package
nvidia-cuda-nvrtc.
"""

import argparse
import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from tests.cuda.emulator.build import cache

# Where the package is installed, which may be elsewhere than its tests; not imported, for that takes longer than to compile some kernels.
KERNELS = Path(importlib.util.find_spec("fastseq").origin).parent / "backends" / "kernels"
_INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.M)


class Taken(NamedTuple):
    """Of a multiprocessor, by one thread; shared memory by a block."""

    name: str
    registers: int
    spilled: int  # bytes of stores and loads
    stack: int
    shared: int


def library_path():
    """NVRTC's shared library in the package nvidia-cuda-nvrtc, or None."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations) if spec and spec.submodule_search_locations else []
    found = [p for folder in folders for p in Path(folder).rglob("libnvrtc.so.*") if "alt" not in p.name]
    return max(found, default=None)


@functools.cache
def _library():
    path = library_path()
    if path is None:
        raise ImportError("NVRTC is not here: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(path))


def source(file):
    """A kernel file's text with those that it includes in their places, once each, as cuda_launch.source puts it together."""
    seen = set()

    def expanded(name):
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(lambda found: expanded(found.group(1)), (KERNELS / name).read_text())

    return expanded(file)


def compiled(text, macros=(), arch="sm_90"):
    """What NVRTC's log says of each kernel of a source.

    Raises
    ------
    SyntaxError
        With NVRTC's messages.
    """
    nvrtc, program = _library(), ctypes.c_void_p()
    # CuPy's options, and the compiler's word on registers
    options = ["-std=c++17", "-ftz=true", f"--gpu-architecture={arch}", "--ptxas-options=-v", *(f"-D{m}" for m in macros)]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options]))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise SyntaxError(log.value.decode())
    return _parsed(log.value.decode())


def compiled_file(file, macros=(), arch="sm_90"):
    """What `compiled` says of a kernel file, kept where the emulator keeps its files; a source that does not compile is a SyntaxError returned."""
    text = source(file)
    key = hashlib.sha256(repr((text, macros, arch, library_path().name, Path(__file__).read_text())).encode()).hexdigest()[:32]
    kept = cache() / f"{key}.json"
    if not kept.exists():
        try:
            found = compiled(text, macros, arch)
        except SyntaxError as error:
            return error
        part = kept.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found))
        part.replace(kept)
    return [Taken(*taken) for taken in json.loads(kept.read_text())]


def _parsed(log):
    found = []
    for part in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", part).group(1)
        stack, *spills = map(int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part).groups())
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        found.append(Taken(name, registers, sum(spills), stack, int(shared.group(1)) if shared else 0))
    return found


def main(arguments):
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.cuda.nvrtc", description=__doc__.partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("macros", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--arch", default="sm_90")
    asked = parser.parse_args(arguments)
    found = compiled_file(asked.file, tuple(asked.macros), asked.arch)
    if isinstance(found, SyntaxError):
        sys.stderr.write(f"{found}\n")
        return 1
    for taken in found:
        sys.stdout.write(
            f"{taken.name}: {taken.registers} registers, {taken.spilled} bytes spilled, {taken.stack} of stack, {taken.shared} of static shared memory\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
