"""Times fastseq on CuPy arrays beside PyTorch on the same GPU, and prints one table.

    python -m benchmarks.cuda                                # everything, about six minutes
    python -m benchmarks.cuda --quick                        # some of each
    python -m benchmarks.cuda --only "LSTM training" --only attention
    python -m benchmarks.cuda --peers-only                   # PyTorch alone: what there is to reach; needs no fastseq for most

Every answer is compared with PyTorch's in float64 first, and a wrong one is not timed. Times are medians of at least twenty turns of
calls in a row between two events on the stream; the two take turns. A case that fails is a line that says why, and the others go on.
Needs CuPy, PyTorch and a GPU.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cuda import report
from benchmarks.cuda.case import Case
from benchmarks.cuda.worker import StartError, Watched


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description="Time fastseq on CuPy arrays beside PyTorch on the same GPU.")
    parser.add_argument("--quick", action="store_true", help="some cases of each family, about a minute and a half")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases with this in their name or family; may be given again")
    parser.add_argument("--peers-only", action="store_true", help="time PyTorch alone")
    parser.add_argument("--minutes", type=float, default=6.0, help="after which the cases that are left are not run (default: 6)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything that was measured as JSON")
    parser.add_argument("--commit", help="of the sources, where they are no repository")
    parser.add_argument("--list", action="store_true", help="print the cases' names and end")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: NumPy arrays and PyTorch's CPU, to try the cases")
    return parser.parse_args(words)


def chosen(args: argparse.Namespace) -> list[tuple[int, Case]]:
    """The cases with their places in the table, in the order in which they run: the quick ones, then family after family in turn."""
    from benchmarks.cuda import cases_attention, cases_kernels, cases_models, cases_recurrent

    every = [case for module in (cases_recurrent, cases_attention, cases_models, cases_kernels) for case in module.cases()]
    wanted = [(n, case) for n, case in enumerate(every)
              if (case.quick or not args.quick) and (not args.only or any(text in f"{case.family}: {case}" for text in args.only))]
    place: dict[str, int] = {}

    def turn(numbered: tuple[int, Case]) -> tuple[bool, int, int]:
        n, case = numbered
        place[case.family] = place.get(case.family, 0) + 1
        return not case.quick, place[case.family], n
    return sorted(wanted, key=turn)


def main(words: list[str] | None = None) -> int:
    """Time and print; the exit status says whether every case has its time."""
    args = arguments(words)
    cases = chosen(args)
    if args.list:
        print(*(f"{case.family}: {case}" for _, case in cases), sep="\n")
        return 0
    if not cases:
        print("no case has that in its name; --list prints them", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    commit, rows, begin = args.commit or machine.commit(), list[dict[str, Any]](), time.monotonic()
    watched = Watched(args.device, args.peers_only)
    try:
        for (order, _), row in zip(cases, watched.rows([case for _, case in cases], 60 * args.minutes), strict=True):
            rows.append(row | {"order": order})
            print(f"[{time.monotonic() - begin:.0f} s, {len(rows)}/{len(cases)}] {report.progress(row)}", file=sys.stderr, flush=True)
            if args.output:
                args.output.write_text(json.dumps({"commit": commit, **(watched.about or {}), "rows": rows}, indent=1))
    except StartError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        watched.close()
        if watched.about and rows:
            print(report.heading(watched.about, commit), "", *report.table(rows), sep="\n")
            if not args.peers_only:
                print("", *report.summary(rows), sep="\n")
    return 0 if all("error" not in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
