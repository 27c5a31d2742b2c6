"""The house: who may import and include whom, and what each room must not do. A forbidden edge fails here, by name."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, CSRC = ROOT / "fastseq", ROOT / "csrc"
if not (CSRC / "fastseq.h").exists():
    pytest.skip("the sources are not beside the tests", allow_module_level=True)

# What each room of the package may import from the others. `runtime` is what the process decides: seeds come from there.
MAY_IMPORT = {
    "_core": {"_csrc"},
    "runtime": {"_core", "backends"},
    "autograd": {"backends"},  # what kind an array is, as everywhere above it
    "backends": {"_core"},
    "sparse": {"backends"},
    "functional": {"autograd", "backends", "runtime", "sparse"},
    "nn": {"functional", "autograd", "runtime", "backends"},  # backends: packed weights, which a layer keeps, and streams
    "optim": {"functional", "autograd", "backends", "sparse"},
    "plot": {"autograd", "backends"},
    "diagnostics": {"nn", "functional", "autograd", "backends", "plot"},
    "models": {"nn", "functional", "autograd", "backends", "runtime"},
    "text": set(),
    "training": {"models", "optim", "nn", "functional", "autograd", "backends", "runtime", "text"},
    "generation": {"backends", "runtime"},
    "sklearn": {"models", "training", "optim", "nn", "functional", "runtime"},
    "demo": {"models", "training", "generation", "optim", "nn", "functional", "autograd", "runtime", "text"},
    "cli": {"demo", "models", "training", "generation", "optim", "nn", "functional", "autograd", "runtime", "text"},
    "__main__": {"cli"},
    "__init__": {"autograd", "diagnostics", "functional", "generation", "models", "nn", "optim", "plot", "runtime", "sparse", "training"},
}

# What each room of csrc may include from the others, folder or file; fastseq.h belongs to all.
MAY_INCLUDE = {
    "core": set(),
    "simd": {"core/real.h"},
    "kernels": {"simd", "core/real.h", "core/cpu.h"},
    "ops": {"kernels", "core"},
}

# Longer than 500 lines, each with its reason.
LONG_FILES = {
    "fastseq/_core.pyx": "one extension module, so one file: a wrapper of a few lines for every entry point of fastseq.h",
}

HEADERS = sorted(CSRC.rglob("*.h"))
C_FILES = sorted(CSRC.rglob("*.[ch]"))
PYTHON_FILES = sorted(PACKAGE.rglob("*.py"))
TEST_FILES = sorted((ROOT / "tests").glob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def room_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree):
    """Every dotted name that a module imports, with whether that happens at its top level."""
    top = {id(node) for statement in tree.body for node in ([statement] if not isinstance(statement, ast.If) else ast.walk(statement))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide the room they come from"
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


def code_of(path):
    """C without its comments and strings."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(\\.|[^"\\\n])*"', lambda m: m.group() if "#include" in text[max(0, m.start() - 12) : m.start()] else '""', text)


# ---------------------------------------------------------------- Python


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_imports_go_down_the_house(path):
    room = room_of(path)
    for name, _ in imports(ast.parse(path.read_text())):
        if not name.startswith("fastseq"):
            continue
        parts = name.split(".")
        assert len(parts) > 1, f"{name_of(path)} imports the whole package"
        target = parts[1]
        if target != room and not (target == "__version__" and room in ("runtime", "cli")):
            assert target in MAY_IMPORT[room], f"{name_of(path)} ({room}) imports {name}; it may import from {sorted(MAY_IMPORT[room])}"


@pytest.mark.parametrize("path", PYTHON_FILES, ids=name_of)
def test_numpy_is_the_only_package_imported_at_the_top(path):
    for name, at_top in imports(ast.parse(path.read_text())):
        package = name.partition(".")[0]
        own = {"sklearn": ("sklearn",), "backends": ("cupy", "cupy_backends")}.get(room_of(path), ())  # imported by those who have it
        allowed = ("numpy", "fastseq", *own)
        if package not in allowed and package not in sys.stdlib_module_names:
            assert not at_top, f"{name_of(path)} imports {package} at import time; import it in the function that needs it"


def test_cupy_is_imported_by_its_backend_only():
    users = {p for p in PYTHON_FILES for name, _ in imports(ast.parse(p.read_text())) if name.startswith("cupy")}
    assert all(p.parent == PACKAGE / "backends" and p.stem.partition("_")[0] == "cuda" for p in users), users


def test_the_binding_reaches_c_and_numpy_only():
    found = re.findall(r"^\s*(?:from|cimport|import)\s+([\w.]+)", (PACKAGE / "_core.pyx").read_text(), re.M)
    assert {name for name in found if not name.startswith("libc.")} == {"numpy", "fastseq._csrc"}


def test_the_tape_knows_no_operation():
    tree = ast.parse((PACKAGE / "autograd.py").read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not names & {"__add__", "__mul__", "__matmul__", "__getitem__", "matmul", "tanh", "sum", "mean", "reshape", "exp"}


@pytest.mark.parametrize("path", TEST_FILES, ids=name_of)
def test_no_test_prints(path):
    calls = [n.lineno for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"]
    assert not calls, f"{name_of(path)}: print in line {calls}; assert instead"


# ---------------------------------------------------------------- C


def included(path):
    """Files of csrc that this one includes, as paths below csrc, and system headers in angle brackets."""
    for opening, name in re.findall(r'^\s*#\s*include\s*(["<])([^">]+)[">]', code_of(path), re.M):
        if opening == "<":
            yield f"<{name}>"
            continue
        target = (path.parent / name).resolve()
        assert target.is_file(), f"{name_of(path)} includes {name}, which is not there"
        yield target.relative_to(CSRC).as_posix()


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_includes_go_down_the_house(path):
    relative = path.relative_to(CSRC)
    room = relative.parts[0] if len(relative.parts) > 1 else None
    for name in included(path):
        if name.startswith("<") or name == "fastseq.h":
            continue
        assert room is not None, f"{name_of(path)}, the contract, includes {name}"
        if name.partition("/")[0] != room:
            allowed = MAY_INCLUDE[room]
            assert name in allowed or name.partition("/")[0] in allowed, f"{name_of(path)} includes {name}; it may include {sorted(allowed)}"


@pytest.mark.parametrize("path", C_FILES, ids=name_of)
def test_openmp_is_behind_the_gateway_and_python_is_not_in_c(path):
    code = code_of(path)
    assert "Python.h" not in code
    if name_of(path) not in ("csrc/core/threads.c", "csrc/core/threads.h"):
        assert not re.search(r"<omp\.h>|#\s*pragma\s+omp|\bomp_\w+\s*\(|\bpthread_\w+\s*\(", code), name_of(path)


@pytest.mark.parametrize("path", [p for p in C_FILES if p.parent.name in ("kernels", "ops", "simd")], ids=name_of)
def test_kernels_and_ops_never_allocate_print_or_exit(path):
    calls = r"\b(malloc|calloc|realloc|aligned_alloc|posix_memalign|alloca|free|f?printf|puts|exit|abort|assert|f(open|read|write))\s*\("
    found = re.search(calls, code_of(path))
    assert not found, f"{name_of(path)} calls {found.group(1)}"


@pytest.mark.parametrize("path", HEADERS, ids=name_of)
def test_headers_define_only_static_functions(path):
    """Headers are compiled for several instruction sets: a function with external linkage would run on the wrong one."""
    definitions = re.findall(r"^(?!\s|#|typedef|struct|enum|union|extern)([^;{}=#]*\([^;{}]*\))\s*\{", code_of(path), re.M)
    for head in definitions:
        assert re.match(r"(static|FSQ_INLINE)\b", head.strip()), f"{name_of(path)} defines `{head.strip()}`"


def test_the_check_of_headers_sees_a_function_that_is_not_static(tmp_path, monkeypatch):
    header = tmp_path / "wrong.h"
    header.write_text("static int fine(void) { return 1; }\nint wrong(int a,\n          int b) {\n    return a + b;\n}\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    with pytest.raises(AssertionError, match="wrong"):
        test_headers_define_only_static_functions(header)


def test_the_mirror_of_the_contract_is_complete():
    contract, mirror = (CSRC / "fastseq.h").read_text(), (PACKAGE / "_csrc.pxd").read_text()
    typed = set(re.findall(r"\bFSQ_OP\((fsq_\w+)\)", contract))
    assert typed
    assert typed == set(re.findall(r"FSQ_EITHER\((fsq_\w+),", mirror))
    plain = set(re.findall(r"^[\w *]*\b(fsq_\w+)\(", code_of(CSRC / "fastseq.h"), re.M))
    assert plain
    assert plain <= set(re.findall(r"\bfsq_\w+", mirror))


# ---------------------------------------------------------------- all sources


def test_long_files_have_a_reason():
    files = [p for p in (*C_FILES, *PYTHON_FILES, *TEST_FILES, PACKAGE / "_core.pyx", PACKAGE / "_csrc.pxd", ROOT / "setup.py") if p.exists()]
    long = {name_of(p) for p in files if len(p.read_text().splitlines()) > 500}
    assert long == set(LONG_FILES)


def test_sources_are_ascii():
    files = [*C_FILES, *PYTHON_FILES, *TEST_FILES, *PACKAGE.glob("*.p[yx][xd]"), ROOT / "setup.py", ROOT / "pyproject.toml"]
    assert [name_of(p) for p in files if not p.read_bytes().isascii()] == []
