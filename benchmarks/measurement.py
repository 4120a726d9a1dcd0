"""What a benchmark brings home, and the page it is written to."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "measured.md"
HEAD = """# Measured

Written by `make bench` and `make soak`; each section is the newest run of one benchmark, on the machine its line names. Figures
are medians with the range; compare ratios, not absolute times: they were taken in one run, in turn, against the peer named.
"""


class Figure(msgspec.Struct, frozen=True):
    """One row: ``value`` and ``peer`` are texts with units, ``ratio`` what the goal speaks of, ``kept`` whether it holds."""

    what: str
    value: str
    peer: str = "–"
    ratio: str = "–"
    goal: str = "–"
    kept: bool | None = None


class Measurement(msgspec.Struct, frozen=True):
    name: str
    summary: str
    figures: list[Figure]


def spread(values: list[float], unit: str = "ms", scale: float = 1000.0, digits: int = 0) -> str:
    """``median (min–max)`` of ``values`` (seconds by default, shown in milliseconds)."""
    low, mid, high = (v * scale for v in (min(values), statistics.median(values), max(values)))
    return f"{mid:.{digits}f} {unit} ({low:.{digits}f}–{high:.{digits}f}, n={len(values)})"


def where() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--", "src"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    day = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return f"commit {commit or 'none'}{'+' if dirty.strip() else ''}, {os.cpu_count()} cores, load {load}, {day} UTC"


def write_section(measurement: Measurement) -> str:
    """Put the measurement's section into the page in place of its older one, and return the section's text."""
    rows = ["| what | weft | peer | ratio | goal | kept |", "|---|---|---|---|---|---|"]
    for f in measurement.figures:
        kept = {True: "yes", False: "**missed**", None: "–"}[f.kept]
        rows.append(f"| {f.what} | {f.value} | {f.peer} | {f.ratio} | {f.goal} | {kept} |")
    section = f"## {measurement.name}\n\n{measurement.summary}\n\n_{where()}_\n\n" + "\n".join(rows) + "\n"
    text = PAGE.read_text() if PAGE.exists() else HEAD
    pattern = re.compile(rf"^## {re.escape(measurement.name)}\n.*?(?=^## |\Z)", re.M | re.S)
    text = pattern.sub(lambda _: section + "\n", text) if pattern.search(text) else text.rstrip() + "\n\n" + section
    PAGE.write_text(text.rstrip() + "\n")
    return section
