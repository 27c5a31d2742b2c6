"""How the benchmarks run: what is timed against what, in which order, and what is written beside each time.

Nothing here, nor in what it imports at the top, imports NumPy: the number of threads is settled before the first library starts its own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks import machine

collect_ignore_glob = ["cuda/tune_*.py"]  # these import CuPy


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastseq benchmarks")
    group.addoption("--threads", type=int, help="threads of every library (default: the processors of this process)")
    group.addoption("--implementations", help="the ones to time, separated by commas (default: all that are installed)")
    group.addoption("--turns", type=int, help="how often all implementations take their turn at a problem (default: 2)")
    group.addoption("--seconds", type=float, help="how long a turn lasts, about (default: 0.2)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "contest(problems): time every implementation at each of these problems")
    available = sorted(os.sched_getaffinity(0))
    threads = config.getoption("threads", None) or len(available)
    if not 1 <= threads <= len(available):
        raise pytest.UsageError(f"--threads: expected 1 to {len(available)}, the processors of this process, got {threads}")
    if threads < len(available):  # NumPy and JAX heed no other limit, and this one only before their first import
        os.sched_setaffinity(0, available[:threads])
    config.stash[THREADS] = threads


THREADS = pytest.StashKey[int]()


def pytest_collect_file(file_path: Any, parent: pytest.Collector) -> pytest.Module | None:
    """bench_<op>.py holds what tests/test_<op>.py would hold; a file named on the command line is collected by pytest itself."""
    if file_path.suffix == ".py" and file_path.name.startswith("bench_") and not parent.session.isinitpath(file_path):
        module: pytest.Module = pytest.Module.from_parent(parent, path=file_path)
        return module
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Turn by turn, not implementation by implementation: what disturbs the machine meets all of them."""
    marker = metafunc.definition.get_closest_marker("contest")
    if marker is None:
        return
    from benchmarks import peers

    names = (metafunc.config.getoption("implementations", None) or ",".join(peers.installed())).split(",")
    if unknown := set(names) - set(peers.installed()):
        raise pytest.UsageError(f"--implementations: expected some of {', '.join(peers.installed())}, got {', '.join(sorted(unknown))}")
    turns = metafunc.config.getoption("turns", None) or 2
    rows = [(problem, turn, name) for problem in marker.args[0] for turn in range(1, turns + 1) for name in names if peers.can(name, problem)]
    metafunc.parametrize(("problem", "turn", "implementation"), rows, ids=[f"{problem}-{turn}-{name}" for problem, turn, name in rows])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("default"))  # what other libraries deprecate is not ours to mend


@pytest.fixture(scope="session")
def facts(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What is the same for all times of a session: sources, instruction set, threads, the measured peak."""
    import fastseq

    threads, isa = request.config.stash[THREADS], fastseq.runtime.config()["isa"]
    peak = machine.peak_gflops(isa, threads)
    return {"threads": threads, "isa": isa, "commit": machine.commit(), "processor": machine.processor(),
            "peak_gflops_per_core": round(peak[1], 1), "peak_gflops": round(peak[threads], 1)}


@pytest.fixture(scope="session")
def ready(request: pytest.FixtureRequest) -> Iterator[Callable[[Any, str], Any]]:
    """Gives the verified call of an implementation for a problem; keeps those of the last problem for the next turn."""
    from benchmarks import peers, problems

    libraries: dict[str, Any] = {}
    kept: dict[tuple[Any, str], Any] = {}

    def call(problem: Any, name: str) -> Any:
        if name not in libraries:
            libraries[name] = peers.IMPLEMENTATIONS[name](request.config.stash[THREADS])
        if (problem, name) not in kept:
            for old in [key for key in kept if key[0] != problem]:
                del kept[old]
            made = getattr(libraries[name], problem.task)(problem)
            problems.verify(problem, name, made.answer())
            kept[problem, name] = made
        return kept[problem, name]
    yield call
    kept.clear()


@pytest.fixture
def timed(benchmark: Any, ready: Any, facts: dict[str, Any], request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Times an implementation at a problem, once its answer has been found right."""
    from benchmarks import peers

    def time_it(problem: Any, name: str) -> None:
        run = ready(problem, name).run
        benchmark.group = str(problem)
        benchmark.extra_info.update(facts, implementation=name, version=peers.version(name), problem=str(problem), load=machine.load())
        rounds, iterations = (1, 1) if benchmark.disabled else _plan(run, request.config.getoption("seconds", None) or 0.2)
        benchmark.pedantic(run, rounds=rounds, iterations=iterations, warmup_rounds=0 if benchmark.disabled else 1)
        if benchmark.stats and problem.gflop:
            rate = problem.gflop / benchmark.stats.stats.min
            benchmark.extra_info.update(gflops=round(rate, 2), share_of_peak=round(rate / facts["peak_gflops"], 4))
    return time_it


@pytest.fixture
def compared(benchmark: Any, facts: dict[str, Any], request: pytest.FixtureRequest) -> Callable[..., None]:
    """Times a call in turn with a plain one, round by round, and writes down the ratio of their shortest times."""
    import fastseq

    fastseq.set_num_threads(facts["threads"])

    def time_both(run: Callable[[], Any], plain: Callable[[], Any], **info: Any) -> None:
        plain_times: list[float] = []

        def time_plain() -> None:
            begin = time.perf_counter()
            plain()
            plain_times.append(time.perf_counter() - begin)

        def both() -> None:
            time_plain()
            run()
        seconds = 2 * (request.config.getoption("seconds", None) or 0.2)
        rounds = 1 if benchmark.disabled else _plan(both, seconds)[0]
        benchmark.extra_info.update(facts, load=machine.load(), **info)
        benchmark.pedantic(run, setup=time_plain, rounds=rounds, warmup_rounds=0 if benchmark.disabled else 1)
        if benchmark.stats:
            shortest = min(plain_times)
            benchmark.extra_info.update(plain_seconds=shortest, ratio=round(benchmark.stats.stats.min / shortest, 3))
    return time_both


def _plan(run: Callable[[], Any], seconds: float) -> tuple[int, int]:
    """Rounds, and calls in each: a round lasts long enough for the clock, all of them about `seconds`, and there are three at least."""
    best = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - begin)
    iterations = max(1, math.ceil(1e-4 / best))
    return max(3, min(2000, round(seconds / (best * iterations)))), iterations
