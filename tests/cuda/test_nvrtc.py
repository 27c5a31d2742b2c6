"""Every kernel compiles for the GPUs that it is written for, without a GPU; and keeps its registers where that is promised."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.cuda.nvrtc import KERNELS, compiled, compiled_file, library_path

if library_path() is None:
    pytest.skip("needs the package nvidia-cuda-nvrtc", allow_module_level=True)

# What cuda_layout.py gives rows and columns: of a warp and of more, with accesses of 16 bytes and of one element, and too long for registers.
ROWS = (
    "REAL=float W=4 PACKS=8 ROW=32",
    "REAL=float W=4 PACKS=6 ROW=512",
    "REAL=float W=1 PACKS=0 ROW=512",
    "REAL=double W=2 PACKS=4 ROW=32",
)
COLUMNS = tuple(f"{w} COLUMN_ROWS=8" for w in ("REAL=float W=4", "REAL=float W=1", "REAL=double W=2"))
# (file, macros, whether registers may spill). A new kernel gets a line for each kind of macros that its code depends on.
TABLE = [
    ("additive_attention.cu", "REAL=float QUERIES_OF_THREAD=1", False),
    ("additive_attention.cu", "REAL=float QUERIES_OF_THREAD=2", False),
    ("additive_attention.cu", "REAL=float QUERIES_OF_THREAD=4", False),
    ("additive_attention.cu", "REAL=double QUERIES_OF_THREAD=2", True),
    ("additive_attention_backward.cu", "REAL=float QUERIES_OF_WARP=8", False),
    ("additive_attention_backward.cu", "REAL=float QUERIES_OF_WARP=16", False),
    ("additive_attention_backward.cu", "REAL=double QUERIES_OF_WARP=16", True),
    ("attention_decode.cu", "REAL=float PIECES=4 ROWS=1 WIDE=1", False),
    ("attention_decode.cu", "REAL=float PIECES=2 ROWS=8 WIDE=0", True),
    ("persistent_forward.cu", "CELL=0 SPLIT=1 TRAINING=1 ROWS=16 SHARES=8 SIDES=1 STEPS=8 TILES=8 BATCH=4 LOOK_FIRST=1 ALONE=0", False),
    ("persistent_forward.cu", "CELL=0 SPLIT=2 TRAINING=0 ROWS=8 SHARES=4 SIDES=2 STEPS=4 TILES=4 BATCH=2 LOOK_FIRST=1 ALONE=0", False),
    ("persistent_forward.cu", "CELL=1 SPLIT=1 TRAINING=1 ROWS=16 SHARES=8 SIDES=1 STEPS=8 TILES=6 BATCH=4 LOOK_FIRST=1 ALONE=0", False),
    ("persistent_forward.cu", "CELL=1 SPLIT=1 TRAINING=0 ROWS=1 SHARES=1 SIDES=8 STEPS=8 TILES=6 BATCH=4 LOOK_FIRST=0 ALONE=1", False),
    ("persistent_backward.cu", "CELL=1 SPLIT=1 ROWS=1 UNITS=128 WARPS=8 TILES=2 AT_ONCE=1 ALONE=1", False),
    ("persistent_backward.cu", "CELL=0 SPLIT=1 ROWS=8 UNITS=32 WARPS=4 TILES=4 AT_ONCE=8 ALONE=0", False),
    ("persistent_backward.cu", "CELL=0 SPLIT=2 ROWS=16 UNITS=32 WARPS=4 TILES=4 AT_ONCE=8 ALONE=0", False),
    ("persistent_backward.cu", "CELL=1 SPLIT=1 ROWS=16 UNITS=64 WARPS=8 TILES=4 AT_ONCE=8 ALONE=0", False),
    ("attention_prepare.cu", "REAL=float FORMAT=16 DIM=64", False),
    *(("attention_forward_mma.cu", f"REAL=float EXTRAS={macros}", False) for macros in (
        "0 FORMAT=16 DIM=64 ROW_TILES=2 WARPS=4 COLUMNS=64 BLOCKS=2",
        "0 FORMAT=32 DIM=64 ROW_TILES=2 WARPS=4 COLUMNS=64 BLOCKS=2",
        "0 FORMAT=96 DIM=128 ROW_TILES=1 WARPS=4 COLUMNS=32 BLOCKS=2",
        "1 FORMAT=16 DIM=128 ROW_TILES=2 WARPS=4 COLUMNS=32 BLOCKS=2",
    )),
    *(("attention_forward_mma.cu", f"REAL=float EXTRAS=0 FORMAT=16 {macros}", True) for macros in (
        "DIM=64 ROW_TILES=2 WARPS=4 COLUMNS=128 BLOCKS=2",
        "DIM=128 ROW_TILES=2 WARPS=4 COLUMNS=64 BLOCKS=2",
    )),
    *(("attention_backward_mma.cu", f"REAL=float EXTRAS=0 {macros}", False) for macros in (
        "SIDE=0 FORMAT=16 DIM=64 ROW_TILES=2 WARPS=4 COLUMNS=64 BLOCKS=2",
        "SIDE=1 FORMAT=16 DIM=64 ROW_TILES=2 WARPS=4 COLUMNS=32 BLOCKS=2",
        "SIDE=0 FORMAT=16 DIM=128 ROW_TILES=2 WARPS=4 COLUMNS=32 BLOCKS=2",
        "SIDE=1 FORMAT=16 DIM=128 ROW_TILES=1 WARPS=4 COLUMNS=64 BLOCKS=2",
        "SIDE=3 FORMAT=16 DIM=256 ROW_TILES=1 WARPS=8 COLUMNS=32 BLOCKS=1",
    )),
    ("attention_backward.cu", "REAL=float", False),
    ("attention_forward.cu", "REAL=float", True),
    ("attention_forward.cu", "REAL=double", True),
    ("attention_decoder_backward.cu", "REAL=float GATES=4 ROWS=4 UNITS=1", False),
    ("attention_decoder_backward.cu", "REAL=float GATES=3 ROWS=4 UNITS=2", False),
    ("attention_decoder_backward.cu", "REAL=double GATES=4 ROWS=4 UNITS=1", True),
    ("attention_decoder_forward.cu", "REAL=float GATES=4 ROWS=4 UNITS=1", False),
    ("attention_decoder_forward.cu", "REAL=float GATES=3 ROWS=2 UNITS=1", False),
    ("attention_decoder_forward.cu", "REAL=float GATES=4 ROWS=4 UNITS=2", True),
    ("attention_decoder_forward.cu", "REAL=double GATES=4 ROWS=4 UNITS=1", True),
    ("dropout.cu", "REAL=float", False),
    ("dropout.cu", "REAL=double", False),
    *(("batch_norm.cu", f"REAL={real} PLANES={planes}", False) for real in ("float", "double") for planes in (0, 1)),
    *((file, f"REAL={real}", False) for file in ("conv.cu", "max_pool.cu", "mean_loss.cu") for real in ("float", "double")),
    ("pointwise.cu", "REAL=float", False),
    ("pointwise.cu", "REAL=double", False),
    *((file, macros, "double" in macros) for file in ("softmax.cu", "cross_entropy.cu", "layer_norm.cu") for macros in ROWS),
    *((file, macros, False) for file in ("bias.cu", "cross_entropy_backward.cu", "layer_norm_sums.cu", "embedding.cu", "optim.cu") for macros in COLUMNS),
    *(("recurrent_cells.cu", f"REAL={real} CELL={cell}", real == "double") for real in ("float", "double") for cell in (0, 2, 3)),
    *(("recurrent_gated.cu", f"REAL={real} CELL={cell}", False) for real, cell in (("float", 4), ("double", 5), ("float", 6), ("float", 7))),
    *(("recurrent_norm.cu", f"REAL={real} CELL={cell}", real == "double") for real in ("float", "double") for cell in (2, 3)),
    *((file, f"REAL={real} CELL={cell}", False) for file in ("recurrent_ends.cu", "recurrent_sums.cu") for real, cell in (("float", 7), ("double", 2))),
]


# On sm_80 the first line of each file alone: the compiler is the slowest of these tests.
WORK = [(line, "sm_90") for line in TABLE] + [(line, "sm_80") for line in {line[0]: line for line in reversed(TABLE)}.values()]


answers = {}


def start():
    """Begins to compile: in two processes, for in one NVRTC compiles one source at a time, and beside the other tests, which take one core."""
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    answers.update({(line, arch): pool.submit(compiled_file, line[0], tuple(line[1].split()), arch) for line, arch in WORK})
    return pool


@pytest.mark.parametrize(("line", "arch"), WORK, ids=lambda x: x if isinstance(x, str) else f"{x[0]} {x[1]}")
def test_a_kernel_compiles_and_keeps_its_registers(line, arch):
    found = answers[line, arch].result()
    if isinstance(found, SyntaxError):
        raise found
    assert found
    assert all(kernel.shared == 0 for kernel in found), "shared memory is dynamic: FSQ_SHARED"
    if not line[2]:
        assert [kernel for kernel in found if kernel.spilled] == []


def test_every_source_is_in_the_table():
    assert {line[0] for line in TABLE} == {path.name for path in KERNELS.glob("*.cu")}


def test_what_does_not_compile_is_said():
    with pytest.raises(SyntaxError, match="identifier"):
        compiled("extern \"C\" __global__ void f() { missing(); }")
