"""Turns the JSON of a benchmark run into Markdown tables.

    pytest benchmarks/ --benchmark-only --benchmark-json=times.json
    python benchmarks/table.py times.json

One table for each kind of problem, one line for each problem: the shortest time of each implementation over all turns, in
microseconds, fastseq's rate and share of the machine's measured peak, and the ratio that counts: the best peer's time over
fastseq's, above 1 where fastseq is faster.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Best(NamedTuple):
    """The shortest time of an implementation at a problem, and what stood beside it."""

    seconds: float
    info: dict[str, Any]


Times = dict[str, dict[str, Best]]  # problem -> implementation -> best


def read(benchmarks: list[dict[str, Any]]) -> dict[str, Times]:
    """Kind of problem -> its times, in the order of the file."""
    kinds: dict[str, Times] = {}
    for one in benchmarks:
        info, seconds = one["extra_info"], one["stats"]["min"]
        if "problem" not in info:
            continue
        best = kinds.setdefault(split(info["problem"])[0], {}).setdefault(info["problem"], {})
        if info["implementation"] not in best or seconds < best[info["implementation"]].seconds:
            best[info["implementation"]] = Best(seconds, info)
    return kinds


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


def heading(kinds: dict[str, Times]) -> str:
    """The machine, the sources and the versions, from what was written beside the times."""
    infos = [b.info for times in kinds.values() for best in times.values() for b in best.values()]
    first, versions = infos[0], {i["implementation"]: i["version"] for i in infos}
    loads = [i["load"] for i in infos]
    return (f"{first['processor']}, {first['threads']} threads, {first['isa']}, measured peak {first['peak_gflops_per_core']:.0f} GFLOP/s per core and "
            f"{first['peak_gflops']:.0f} together; commit {first['commit']}; load {min(loads)} to {max(loads)}; "
            + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")


def main() -> None:
    """Read the file named on the command line and print."""
    parser = argparse.ArgumentParser(description="Print the tables of a benchmark run as Markdown.")
    parser.add_argument("file", type=Path, help="what --benchmark-json wrote")
    kinds = read(json.loads(parser.parse_args().file.read_text())["benchmarks"])
    if not kinds:
        parser.error("the file holds no times of these benchmarks")
    print(heading(kinds))
    for name, times in kinds.items():
        print(f"\n### {name}\n", *table(times), "", summary(times), sep="\n")


if __name__ == "__main__":
    main()
