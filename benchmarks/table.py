"""Turns the JSON of a benchmark run into Markdown tables.

    pytest benchmarks/ --benchmark-only --benchmark-json=times.json
    python benchmarks/table.py times.json

One table for each kind of problem, one line for each problem: the shortest time of each implementation over all turns, in
microseconds, fastseq's rate and share of the machine's measured peak, and the ratio that counts: the best peer's time over
fastseq's, above 1 where fastseq is faster. Then what options cost, what checkpoints save, and how memory and time grow with a size.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The shortest time of an implementation at a problem, and what stood beside it."""

    seconds: float
    info: dict[str, Any]


Times = dict[str, dict[str, Best]]  # problem -> implementation -> best
Rows = list[dict[str, Any]]  # of the JSON file


def gather(benchmarks: Rows, group: Callable[[dict[str, Any]], str | None]) -> dict[str, Times]:
    """Group -> its times, in the order of the file; without those of no group."""
    groups: dict[str, Times] = {}
    for one in benchmarks:
        info, seconds = one["extra_info"], one["stats"]["min"]
        if (name := group(info)) is None:
            continue
        best = groups.setdefault(name, {}).setdefault(info["problem"], {})
        if info["implementation"] not in best or seconds < best[info["implementation"]].seconds:
            best[info["implementation"]] = Best(seconds, info)
    return groups


def read(benchmarks: Rows) -> dict[str, Times]:
    """Kind of problem -> its times."""
    return gather(benchmarks, lambda info: split(info["problem"])[0] if "problem" in info and not {"line", "grows"} & info.keys() else None)


def split(problem: str) -> tuple[str, str]:
    """What kind of problem it is, and its sizes: the words with digits in them."""
    words = problem.split()
    sizes = [word for word in words if any(letter.isdigit() for letter in word)]
    return " ".join(word for word in words if word not in sizes), " ".join(sizes)


def ratio(best: dict[str, Best]) -> float | None:
    """The best peer's time over fastseq's, or None where one of them is missing."""
    peers = [b.seconds for name, b in best.items() if name != "fastseq"]
    return min(peers) / best["fastseq"].seconds if peers and "fastseq" in best else None


def table(times: Times) -> Iterator[str]:
    """The lines of one table."""
    names = list(dict.fromkeys(name for best in times.values() for name in best))
    yield "| sizes | " + " | ".join(f"{name} us" for name in names) + " | GFLOP/s | of peak | best peer / fastseq |"
    yield "|---|" + "---:|" * (len(names) + 3)
    for problem, best in times.items():
        info, figure = best["fastseq"].info if "fastseq" in best else {}, ratio(best)
        cells = [f"{1e6 * best[name].seconds:,.1f}" if name in best else "-" for name in names]
        cells += [f"{info['gflops']:.1f}", f"{info['share_of_peak']:.0%}"] if "gflops" in info else ["-", "-"]
        yield f"| {split(problem)[1]} | " + " | ".join(cells) + f" | {'-' if figure is None else f'{figure:.2f}'} |"


def summary(times: Times) -> str:
    """Geometric mean and least of the ratios."""
    ratios = [figure for best in times.values() if (figure := ratio(best)) is not None]
    if not ratios:
        return "No ratio: fastseq or its peers were not timed."
    return f"Geometric mean of the ratios {math.exp(sum(map(math.log, ratios)) / len(ratios)):.2f}, least {min(ratios):.2f}."


def options(benchmarks: Rows) -> Iterator[str]:
    """The lines of the table of options: a layer with one beside the plain layer, fastseq both."""
    rows = [one for one in benchmarks if "option" in one["extra_info"]]
    if rows:
        yield "| option | mode | us | plain us | times the plain layer | at most |"
        yield "|---|---|---:|---:|---:|---:|"
    for one in rows:
        info = one["extra_info"]
        yield (f"| {info['option']} | {info['mode']} | {1e6 * one['stats']['min']:,.1f} | {1e6 * info['plain_seconds']:,.1f} | "
               f"{info['ratio']:.2f} | {info['target']}{'' if info['ratio'] <= info['target'] else ', not reached'} |")


def memory(benchmarks: Rows) -> Iterator[str]:
    """The lines of the table of checkpoints. What is kept is the peak without y and the gradients, as floats for each step, row and unit."""
    rows = [one for one in benchmarks if "memory" in one["extra_info"]]
    if rows:
        yield "| layer | sizes | checkpoint_every | peak MB | of which y and gradients | kept, floats per T B H | times the time |"
        yield "|---|---|---:|---:|---:|---:|---:|"
    seen = set[str]()
    for one in rows:
        info = one["extra_info"]
        ways = [(info["checkpoint_every"], info["bytes"], info["ratio"])]
        if info["memory"] not in seen:
            ways.insert(0, ("-", info["plain_bytes"], 1.0))
        seen.add(info["memory"])
        for every, peak, slower in ways:
            kept = (peak - info["results_bytes"]) / info["unit_bytes"]
            yield f"| {info['memory']} | {info['sizes']} | {every} | {peak / 1e6:.0f} | {info['results_bytes'] / 1e6:.0f} | {kept:.2f} | {slower:.2f} |"


def growth(benchmarks: Rows) -> Iterator[str]:
    """The lines of the table of peaks: by how much memory grows from one size to the next, and what is left without the results."""
    found = gather(benchmarks, lambda info: info.get("grows"))
    if found:
        yield "| problem | implementation | from | to | peak MB | of which results | times the memory |"
        yield "|---|---|---|---|---:|---:|---:|"
    for name, times in found.items():
        sizes = [split(problem)[1] for problem in times]
        for implementation in next(iter(times.values())):
            infos = [best[implementation].info for best in times.values()]
            peaks, results = (", ".join(f"{info[key] / 1e6:.1f}" for info in infos) for key in ("bytes", "results_bytes"))
            more = ", ".join(f"{b['bytes'] / a['bytes']:.2f}" for a, b in pairwise(infos))
            yield f"| {name} | {implementation} | {sizes[0]} | {sizes[-1]} | {peaks} | {results} | {more} |"


def scaling(benchmarks: Rows) -> Iterator[str]:
    """The lines of the table of doublings: by how much the work grows from one size to the next, and by how much the time."""
    found = gather(benchmarks, lambda info: info.get("line"))
    if found:
        yield "| line | from | to | us | times the work | times the time |"
        yield "|---|---|---|---:|---:|---:|"
    for line, times in found.items():
        bests, sizes = [best["fastseq"] for best in times.values()], [split(problem)[1] for problem in times]
        work = [f"{b.info['gflop'] / a.info['gflop']:.2f}" for a, b in pairwise(bests)]
        time = [f"{b.seconds / a.seconds:.2f}" for a, b in pairwise(bests)]
        each = ", ".join(f"{1e6 * best.seconds:.0f}" for best in bests)
        yield f"| {line} | {sizes[0]} | {sizes[-1]} | {each} | {', '.join(work)} | {', '.join(time)} |"


def heading(benchmarks: Rows) -> str:
    """The machine, the sources and the versions, from what was written beside the times."""
    infos = [one["extra_info"] for one in benchmarks if "peak_gflops" in one["extra_info"]]
    first, versions = infos[0], {i["implementation"]: i["version"] for i in infos if "implementation" in i}
    loads = [i["load"] for i in infos]
    return (f"{first['processor']}, {first['threads']} threads, {first['isa']}, measured peak {first['peak_gflops_per_core']:.0f} GFLOP/s per core and "
            f"{first['peak_gflops']:.0f} together; commit {first['commit']}; load {min(loads)} to {max(loads)}; "
            + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")


def main() -> None:
    """Read the file named on the command line and print."""
    parser = argparse.ArgumentParser(description="Print the tables of a benchmark run as Markdown.")
    parser.add_argument("file", type=Path, help="what --benchmark-json wrote")
    benchmarks = json.loads(parser.parse_args().file.read_text())["benchmarks"]
    if not any("peak_gflops" in one["extra_info"] for one in benchmarks):
        parser.error("the file holds no times of these benchmarks")
    print(heading(benchmarks))
    for name, times in read(benchmarks).items():
        print(f"\n### {name}\n", *table(times), "", summary(times), sep="\n")
    for title, lines in (("Options", options), ("Checkpoints", memory), ("Memory as a size doubles", growth), ("Doubling a size", scaling)):
        if found := list(lines(benchmarks)):
            print(f"\n### {title}\n", *found, sep="\n")


if __name__ == "__main__":
    main()
