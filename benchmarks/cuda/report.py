"""The table, and what its end sums up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]


def heading(about: dict[str, Any], commit: str) -> str:
    """The device, the versions, and the floors' rates."""
    rates = about["rates"]
    return (", ".join(f"{name} {value}" if name != "device" else value for name, value in about["about"].items()) + f"; commit {commit}. Measured: products "
            f"{rates['highest'] / 1e12:.1f} TFLOP/s in float32, {rates['high'] / 1e12:.1f} in tf32, {rates['medium'] / 1e12:.1f} in bf16; "
            f"a copy {rates['bytes'] / 1e9:,.0f} GB/s.")


def table(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each case, families together. Queueing: until Python goes on, in fastseq and in PyTorch."""
    yield "| case | fastseq us | PyTorch us | queueing us | PyTorch / fastseq | share of the floor | at least | |"
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    for row in _sorted(rows):
        if "error" in row:
            yield f"| {row['case']} | - | - | - | - | - | {_target(row)} | {_short(row['error'])} |"
        elif "ours" not in row:
            ways = "; ".join(f"{name} {1e6 * s:,.1f}" for name, s in row["ways"].items()) if len(row["ways"]) > 1 else row["way"]
            yield f"| {row['case']} | - | {_us(row['theirs'])} | {_us(row['their_queue'])} | - | {_share(row, 'theirs')} | {_target(row)} | {ways} |"
        else:
            words = [f"beside {row['way']}" if row.get("chosen") else "", "not reached" if row["target"] is not None and ratio(row) < row["target"] else ""]
            yield (f"| {row['case']} | {_us(row['ours'])} | {_us(row['theirs'])} | {_us(row['our_queue'])}, {_us(row['their_queue'])} | {ratio(row):.2f} | {_share(row, 'ours')} | {_target(row)} | "
                   f"{', '.join(filter(None, words))} |")


def summary(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each family: how far its cases came."""
    yield "| family | cases | least | geometric mean | every case at least | |"
    yield "|---|---:|---:|---:|---:|---|"
    families: dict[str, list[Row]] = {}
    for row in _sorted(rows):
        families.setdefault(row["family"], []).append(row)
    for family, members in families.items():
        timed = [ratio(row) for row in members if "ours" in row]
        if not timed:
            continue
        target, failed = members[0]["target"], len(members) - len(timed)
        below = sum(r < target for r in timed) if target is not None else 0
        words = [f"{below} not reached" if below else "reached" if target is not None else "", f"{failed} without a time" if failed else ""]
        yield (f"| {family} | {len(timed)} | {min(timed):.2f} | {math.exp(sum(map(math.log, timed)) / len(timed)):.2f} | {_target(members[0])} | "
               f"{', '.join(filter(None, words))} |")


def progress(row: Row) -> str:
    """One line while the others are still to come."""
    if "error" in row:
        return f"{row['case']}: {_short(row['error'])}"
    if "ours" not in row:
        return f"{row['case']}: " + ", ".join(f"{name} {1e6 * s:,.1f} us" for name, s in row["ways"].items())
    return f"{row['case']}: {_us(row['ours'])} us, PyTorch {_us(row['theirs'])}, ratio {ratio(row):.2f} ({row['seconds']:.1f} s)"


def ratio(row: Row) -> float:
    """PyTorch's time over fastseq's."""
    return row["theirs"] / row["ours"]


def _sorted(rows: Iterable[Row]) -> list[Row]:
    found = list(rows)
    order = {family: n for n, family in enumerate(dict.fromkeys(row["family"] for row in sorted(found, key=lambda row: row["order"])))}
    return sorted(found, key=lambda row: (order[row["family"]], row["order"]))


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:,.1f}"


def _share(row: Row, who: str) -> str:
    return f"{row['floor'] / row[who]:.0%}" if row["floor"] else "-"


def _target(row: Row) -> str:
    return "-" if row["target"] is None else f"{row['target']:g}"


def _short(error: str) -> str:
    line = error.strip().split("\n")[0].replace("|", "/")
    return line if len(line) <= 160 else line[:157] + "..."
