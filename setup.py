"""Builds fastseq's one extension module; everything else about the package stands in pyproject.toml.

Each kernel is compiled once per instruction set, into one static library for each: `ISAS` is the list. Each has its own small
sources, csrc/kernels/isa_<name>_<f32|f64>.c, because two setuptools libraries that list the same source share its object file.
FASTSEQ_NO_OPENMP=1 in the environment builds for a single thread.
"""

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy
from Cython.Distutils import build_ext
from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib

ISAS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"],
}
if platform.machine().lower() not in ("x86_64", "amd64") or sys.maxsize < 2**32:
    ISAS = {"portable": []}  # csrc/core asks the compiler the same question: __x86_64__

# Named floating-point flags only: -ffast-math would break NaN and infinities. No contraction: a fused multiply-add is written as
# one, so that every register tile rounds alike. -g0: Python's own flags ask for debug information, ten times the code's size.
CFLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fvisibility=hidden", "-g0"]

SOURCES = sorted(glob("csrc/**/*.[ch]", recursive=True))  # kernels and ops include each other, so any edit rebuilds


def library(name, sources, flags=()):
    """One static library, as setuptools describes it."""
    return f"fastseq_{name}", {"sources": sources, "cflags": [*CFLAGS, *flags], "include_dirs": ["csrc"], "obj_deps": {"": SOURCES}}


CORE = library("core", sorted(glob("csrc/core/*.c")), ["-pthread"])
OPS = library("ops", [f"csrc/ops/ops_{real}.c" for real in ("f32", "f64")])
KERNELS = [library(isa, [f"csrc/kernels/isa_{isa}_{real}.c" for real in ("f32", "f64")], ISAS[isa]) for isa in ISAS]

EXTENSION = Extension(
    "fastseq._core",
    ["fastseq/_core.pyx"],
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION")],
    extra_compile_args=[*CFLAGS, "-O2"],  # last wins: the binding is glue
    extra_link_args=["-pthread", "-lm"],
    depends=["fastseq/_csrc.pxd", *SOURCES],
)
EXTENSION.cython_c_in_temp = True  # generated C beside the objects, not in the tree

OPENMP_PROGRAM = """
#include <omp.h>
int main(void) {
    int workers = 0;
    #pragma omp parallel num_threads(2) reduction(+ : workers)
    workers += omp_get_thread_num() + 1;
    return workers == 3 || workers == 1 ? 0 : 1;
}
"""


def probe(compiler, program, flags):
    """None where the program compiles, links and runs; else what went wrong, in a few words."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(program)
        command = [*compiler.linker_exe, str(source), *flags, "-o", str(source.with_suffix(""))]
        try:
            for step in (command, [str(source.with_suffix(""))]):
                done = subprocess.run(step, capture_output=True, text=True, errors="replace", timeout=60)
                if done.returncode:
                    lines = [line.strip() for line in done.stderr.splitlines() if "error" in line.lower()]
                    return f"`{shlex.join(step)}` said: {lines[0] if lines else f'exit code {done.returncode}'}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return None


def check_compiler(compiler):
    """Ends the build with one sentence where it could not succeed."""
    if compiler.compiler_type == "msvc":
        sys.exit("fastseq: MSVC cannot compile these kernels, which use GNU C vector extensions: build with clang-cl or gcc.")
    failure = probe(compiler, "int main(void) { return 0; }", [])
    if failure:
        sys.exit(f"fastseq: building from source needs a working C compiler (on Debian: apt install gcc libc6-dev): {failure}")
    headers = sysconfig.get_path("include")
    if not Path(headers, "Python.h").exists():
        sys.exit(f"fastseq: building from source needs Python's headers (on Debian: apt install python3-dev): no Python.h in {headers}")


def openmp_flags(compiler):
    """The flags for OpenMP, or none, with one sentence that says why."""
    if os.environ.get("FASTSEQ_NO_OPENMP", "0") not in ("", "0"):
        print("fastseq: building for one thread, as FASTSEQ_NO_OPENMP asks.")
        return []
    failure = probe(compiler, OPENMP_PROGRAM, ["-fopenmp"])
    if failure:
        print(f"fastseq: building for one thread, because the compiler has no working OpenMP: {failure}")
        return []
    return ["-fopenmp"]


class BuildLibraries(build_clib):
    """The static libraries, with OpenMP for the one file that uses it."""

    def build_libraries(self, libraries):
        check_compiler(self.compiler)
        self.openmp = openmp_flags(self.compiler)
        CORE[1]["cflags"] += self.openmp
        stamp = self.stamp(libraries)
        for _, info in libraries:
            info["obj_deps"] = {"": [*SOURCES, stamp]}
        EXTENSION.depends = [*EXTENSION.depends, stamp]
        build_one = super().build_libraries  # an instruction set takes a minute of compiling: one compiler for each core
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(build_one, [[library] for library in reversed(libraries)]))

    def stamp(self, libraries):
        """A file that changes when the compiler or a flag does, for the file times to see it."""
        text = repr((self.compiler.compiler_so, libraries, EXTENSION.extra_compile_args, EXTENSION.extra_link_args, self.openmp))
        path = Path(self.build_temp, "fastseq-flags.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return str(path)


class BuildExtension(build_ext):
    """The extension, linked with the libraries whichever command asked for it."""

    def run(self):
        libraries = self.get_finalized_command("build_clib")
        if not self.distribution.have_run.get("build_clib"):  # `build_ext` alone does not run it
            libraries.build_temp = libraries.build_clib = self.build_temp
            self.run_command("build_clib")
        EXTENSION.extra_link_args = [*libraries.openmp, *EXTENSION.extra_link_args]
        super().run()


if __name__ == "__main__":
    setup(
        ext_modules=[EXTENSION],
        libraries=[OPS, CORE, *KERNELS],  # in the order of the linker: each needs only those after it
        cmdclass={"build_clib": BuildLibraries, "build_ext": BuildExtension},
    )
