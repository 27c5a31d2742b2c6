"""What the process decides: threads, instruction set, environment, fork, random numbers, configuration."""

import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

import fastseq as fs
from fastseq import runtime

CONFIG = runtime.config()
needs_openmp = pytest.mark.skipif(not CONFIG["openmp"], reason="this build has one thread")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

SETTINGS = ("FASTSEQ_NUM_THREADS", "FASTSEQ_ISA", "OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def run_python(script, *arguments, **environment):
    """Runs a script in a process of its own, with this package and only these settings."""
    clean = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    clean["PYTHONPATH"] = str(Path(fs.__file__).parents[1])
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=120)


def output_of(script, *arguments, **environment):
    done = run_python(script, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def import_error(**environment):
    """The last line that a failing `import fastseq` prints."""
    done = run_python("import fastseq", **environment)
    assert done.returncode == 1
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = fs.get_num_threads()
    yield
    fs.set_num_threads(before)


# ---------------------------------------------------------------- numbers of threads


@needs_openmp
@pytest.mark.parametrize("n", [1, 2, 5, np.int64(3), 1024])
def test_set_num_threads_is_honoured_exactly(n):
    fs.set_num_threads(n)
    assert fs.get_num_threads() == n


@pytest.mark.parametrize("call", [fs.set_num_threads, fs.threads])
@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n: expected a number of threads from 1 to 1024, got 0"),
        (-2, ValueError, "n: expected a number of threads from 1 to 1024, got -2"),
        (1025, ValueError, "n: expected a number of threads from 1 to 1024, got 1025"),
        (2**70, ValueError, f"n: expected a number of threads from 1 to 1024, got {2**70}"),
        (2.0, TypeError, "n: expected an integer number of threads, got float"),
        ("2", TypeError, "n: expected an integer number of threads, got str"),
        (True, TypeError, "n: expected an integer number of threads, got bool"),
        (None, TypeError, "n: expected an integer number of threads, got NoneType"),
    ],
)
def test_bad_number_of_threads_changes_nothing(call, n, error, message):
    before = fs.get_num_threads()
    with pytest.raises(error) as caught:
        call(n)
    assert str(caught.value) == message
    assert fs.get_num_threads() == before


@needs_openmp
def test_threads_nest_and_end_with_the_block():
    fs.set_num_threads(2)
    with fs.threads(3):
        assert fs.get_num_threads() == 3
        with fs.threads(1):
            assert fs.get_num_threads() == 1
        assert fs.get_num_threads() == 3
        fs.set_num_threads(4)
        assert fs.get_num_threads() == 3
    assert fs.get_num_threads() == 4
    with pytest.raises(KeyError), fs.threads(3):
        raise KeyError
    assert fs.get_num_threads() == 4


@needs_openmp
def test_threads_serves_as_a_decorator():
    @fs.threads(3)
    def inside():
        return fs.get_num_threads()

    fs.set_num_threads(2)
    assert [inside(), inside(), fs.get_num_threads()] == [3, 3, 2]


@needs_openmp
def test_threads_counts_for_this_python_thread_only():
    fs.set_num_threads(2)
    seen = {}

    def other():
        seen["new"] = fs.get_num_threads()
        with fs.threads(5):
            seen["own"] = fs.get_num_threads()
            entered.set()
            assert leave.wait(60)

    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=other)
    with fs.threads(3):
        thread.start()
        assert entered.wait(60)
        assert fs.get_num_threads() == 3
        leave.set()
        thread.join()
    assert seen == {"new": 2, "own": 5}
    assert fs.get_num_threads() == 2


# ---------------------------------------------------------------- environment

THREADS = "import fastseq as fs; print(fs.get_num_threads())"
RUNTIME = "import os, fastseq; print(os.path.exists('/proc/self/maps') and open('/proc/self/maps').read())"


@needs_openmp
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTSEQ_NUM_THREADS": "3"}, 3),
        ({"FASTSEQ_NUM_THREADS": " 3 "}, 3),
        ({"FASTSEQ_NUM_THREADS": "9", "OMP_NUM_THREADS": "1"}, 9),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,4"}, 1),
        ({"FASTSEQ_NUM_THREADS": "", "OMP_NUM_THREADS": "1"}, 1),
    ],
)
def test_number_of_threads_from_the_environment(environment, expected):
    assert output_of(THREADS, **environment) == str(expected)


def test_openmp_variable_only_lowers_the_number():
    alone = output_of(THREADS)
    assert output_of(THREADS, OMP_NUM_THREADS="1000") == alone
    if "libomp" not in output_of(RUNTIME):  # LLVM's runtime ends the process over a number that is none
        assert output_of(THREADS, OMP_NUM_THREADS="many") == alone


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_number_of_threads_follows_the_affinity():
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert output_of(one + THREADS) == "1"
    if CONFIG["openmp"]:
        assert output_of(one + THREADS, FASTSEQ_NUM_THREADS="2") == "2"


@pytest.mark.parametrize("text", ["many", "0", "-1", "2.5", "3,2", "1025", "99999999999999999999", "\u0663"])
def test_bad_thread_variable_raises_one_sentence(text):
    expected = f"ImportError: FASTSEQ_NUM_THREADS: expected a number from 1 to 1024, got {text!r}"
    assert import_error(FASTSEQ_NUM_THREADS=text, PYTHONIOENCODING="utf-8", PYTHONUTF8="1") == expected


@pytest.mark.parametrize("name", CONFIG["isas_available"])
def test_instruction_set_is_forced_by_name(name):
    assert output_of("import fastseq as fs; print(fs.runtime.config()['isa'])", FASTSEQ_ISA=name) == name


def test_best_instruction_set_without_a_name():
    script = "import fastseq as fs; print(fs.runtime.config()['isa'])"
    assert output_of(script) == output_of(script, FASTSEQ_ISA="") == CONFIG["isas_available"][-1]


@pytest.mark.parametrize("name", ["bogus", "AVX2", "avx2 ", " "])
def test_unknown_instruction_set_raises_one_sentence(name):
    available = ", ".join(CONFIG["isas_available"])
    expected = f"ImportError: FASTSEQ_ISA: expected an instruction set of this build and machine ({available}), got {name!r}"
    assert import_error(FASTSEQ_ISA=name) == expected


def test_unavailable_instruction_set_raises():
    absent = {"portable", "avx2", "avx512", "neon"} - set(CONFIG["isas_available"])
    assert absent  # no processor has all four
    for name in absent:
        assert import_error(FASTSEQ_ISA=name).endswith(f"got {name!r}")


def test_import_leaves_the_environment_alone():
    script = """
import ctypes, os
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
names = {names}
before = dict(os.environ)
import numpy as np, fastseq as fs
fs.set_num_threads(2)
with fs.runtime.force_threads():
    fs.functional.matmul(np.ones((64, 64)), np.ones((64, 64)))
assert dict(os.environ) == before
print([name for name in names if getenv(name.encode())])
"""
    assert output_of(script.replace("{names}", repr(SETTINGS))) == "[]"


def test_import_needs_only_numpy():
    script = """
import sys
before = set(sys.modules)
import fastseq
from_files = {name.partition(".")[0] for name in set(sys.modules) - before if getattr(sys.modules[name], "__spec__", None)}
print(sorted(from_files - set(sys.stdlib_module_names)))
"""
    assert output_of(script) == "['fastseq', 'numpy']"


# ---------------------------------------------------------------- callers at the same time, fork, idle

SMALL_WORK = """
import numpy as np, fastseq as fs
random = np.random.default_rng(0)
a, b = random.standard_normal((2, 200, 200)).astype(np.float32)
lstm = fs.nn.LSTM(24, 40, rng=0)
x = random.standard_normal((9, 7, 24)).astype(np.float32)
def work():
    return fs.functional.matmul(a, b).tobytes() + fs.functional.softmax(a).tobytes() + lstm(x)[0].tobytes()
with fs.threads(1):
    expected = work()
fs.set_num_threads(3)
"""


def test_concurrent_python_threads_get_the_same_bits():
    script = SMALL_WORK + """
from concurrent.futures import ThreadPoolExecutor
with fs.runtime.force_threads(), ThreadPoolExecutor(6) as pool:
    print({done.result() == expected for done in [pool.submit(work) for _ in range(120)]})
"""
    assert output_of(script) == "{True}"


@needs_fork
@pytest.mark.parametrize("parent", ["idle", "after", "during"])
def test_forked_child_works_and_runs_on_one_thread(parent):
    script = SMALL_WORK + """
import multiprocessing, sys, threading
parent = sys.argv[1]
def child(_):
    return fs.get_num_threads(), work() == expected
context, done = multiprocessing.get_context("fork"), threading.Event()
def keep_working():
    while not done.is_set():
        work()
with fs.runtime.force_threads():
    if parent == "after":
        work()
    user = threading.Thread(target=keep_working)
    if parent == "during":
        user.start()
    with context.Pool(3) as pool:
        print(set(pool.map_async(child, range(12)).get(60)))
    done.set()
    assert work() == expected
"""
    assert output_of(script, parent) == "{(1, True)}"


@needs_openmp
def test_no_worker_is_busy_after_a_call():
    """Processor time: what other programs do does not count, but what the host of a virtual machine takes does, hence the median. A
    worker that went on spinning would use all of every pause."""
    script = SMALL_WORK + """
import time
fs.set_num_threads(2)
busy = []
with fs.runtime.force_threads():
    for _ in range(5):
        work()
        before = time.process_time()
        time.sleep(0.2)
        busy.append((time.process_time() - before) * 1000)
print(sorted(busy)[2])
"""
    assert float(output_of(script)) < 10


# ---------------------------------------------------------------- random numbers


@pytest.fixture
def own_generator(monkeypatch):
    """The process's generator as it was, once the test is over."""
    monkeypatch.setattr(runtime._Process, "generator", None)


@pytest.mark.usefixtures("own_generator")
def test_manual_seed_repeats_the_draws():
    fs.manual_seed(7)
    first = [runtime.next_seed(), runtime.generator().random(), runtime.next_seed()]
    fs.manual_seed(7)
    assert [runtime.next_seed(), runtime.generator().random(), runtime.next_seed()] == first
    fs.manual_seed(8)
    assert runtime.next_seed() != first[0]


@pytest.mark.usefixtures("own_generator")
def test_generator_without_a_seed_goes_on():
    source = runtime.generator()
    assert runtime.generator() is source
    assert len({runtime.next_seed() for _ in range(100)}) == 100


def test_processes_start_from_different_seeds():
    script = "import fastseq as fs; print(fs.runtime.next_seed())"
    assert output_of(script) != output_of(script)


def test_generator_from_a_seed_or_a_generator():
    source = np.random.default_rng(3)
    assert runtime.generator(source) is source
    assert runtime.generator(3).random() == runtime.generator(np.int64(3)).random() == np.random.default_rng(3).random()
    assert runtime.next_seed(3) == runtime.next_seed(3) != runtime.next_seed(4)


def test_next_seed_covers_64_bits():
    seeds = np.array([runtime.next_seed(seed) for seed in range(200)], dtype=np.uint64)
    assert np.bitwise_or.reduce(seeds) == np.uint64(2**64 - 1)
    assert np.bitwise_and.reduce(seeds) == 0


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, None, [1]])
def test_bad_seed_changes_nothing(seed):
    before = runtime.generator()
    error = ValueError if seed == -1 else TypeError
    with pytest.raises(error, match=r"^seed: expected a seed.*, got "):
        fs.manual_seed(seed)
    assert runtime.generator() is before


@pytest.mark.parametrize(
    ("rng", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError), (np.random.RandomState(0), TypeError)]
)
def test_bad_rng_raises(rng, error):
    with pytest.raises(error, match=r"^rng: expected .*, got "):
        runtime.generator(rng)


# ---------------------------------------------------------------- configuration


def test_config_tells_what_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(__version__="13.4"))  # without a GPU
    with fs.threads(2):
        found = runtime.config()
    assert found == CONFIG | {"threads": 2 if CONFIG["openmp"] else 1, "cupy": "13.4"}
    assert found["version"] == fs.__version__
    assert found["isa"] in found["isas_available"]
    assert found["numpy"] == np.__version__


def test_config_never_imports_cupy():
    use = "fs.nn.LSTM(3, 4)(fs.Tensor(np.ones((2, 1, 3), np.float32)), lengths=[2])[0].sum().backward(); fs.nn.Linear(3, 4).to('cpu')"
    script = f"import sys, numpy as np, fastseq as fs; {use}; fs.show_config(); print(fs.runtime.config()['gpu'], 'cupy' in sys.modules)"
    assert output_of(script).splitlines()[-1] == "None False"


@pytest.mark.parametrize("precision", ["high", "medium", "highest"])
def test_the_precision_of_products_is_one_of_three_words(precision):
    fs.set_float32_matmul_precision(precision)
    assert fs.get_float32_matmul_precision() == precision
    with pytest.raises(ValueError, match="precision: expected 'highest', 'high' or 'medium', got 'tf32'"):
        fs.set_float32_matmul_precision("tf32")
    assert fs.get_float32_matmul_precision() == precision  # the last of the three is the default


def test_show_config_prints_the_configuration(capsys):
    fs.show_config()
    printed = capsys.readouterr().out
    found = runtime.config()
    for text in ("fastseq " + found["version"], found["isa"], f"threads          {found['threads']} ", found["numpy"]):
        assert text in printed


@needs_openmp
def test_force_threads_ends_with_the_block():
    with runtime.force_threads():
        assert runtime._core.threads_force(True) is True
    with pytest.raises(KeyError), runtime.force_threads():
        raise KeyError
    assert runtime._core.threads_force(False) is False
