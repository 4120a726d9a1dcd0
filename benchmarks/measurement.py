"""What a benchmark brings home, and the page it is written to."""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "measured.md"
ARCHIVE = ROOT / "docs" / "measured-archive.md"
# The commit from which on src has had half of the lines that it had on 2026-11-30; figures taken before it are old.
HALF_COMMIT, HALF_SINCE = "28db163d8", "2026-11-23 21:22"
HEAD = f"""# Measured

Written by `make bench` and `make soak`; each section is the newest run of one benchmark, on the machine its line names. Figures
are medians with the range; compare ratios, not absolute times: they were taken in one run, in turn, against the peer named.
Two runs of other days compare by `make bench AGAINST=COMMIT` only, which writes the [archive]({ARCHIVE.name}); the line of the
machine says how fast it was just then: the time of a fixed loop in Python, and of a hash over 32 MiB.
"""
ARCHIVE_HEAD = f"""# Measured against older commits

Written by `make bench AGAINST=COMMIT`: two trees, in turn, on the machine that each section's line names. What holds today is in
[measured]({PAGE.name}).
"""
CONTENTS = f"""*Old* sections were taken before {HALF_COMMIT}, when src had less than half of its lines of 2026-11-30.
Measure again before you rely on them.

| section | taken | commit | missed or worse |
|---|---|---|---|
"""
MOST_MISSED = 3  # names of rows in a line of the table


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


def compile_tree(tree: Path = ROOT) -> None:
    """Have Python keep what it makes of the tree's source, as an installed weft's is kept. Where it may not by itself
    (PYTHONDONTWRITEBYTECODE), each process of a tree that has changed compiles it all again: 0.3 s of an agent's start."""
    python = tree / ".venv" / "bin" / "python"
    folders = [name for name in ("src", "benchmarks") if (tree / name).is_dir()]
    subprocess.run([python, "-m", "compileall", "-q", *folders], cwd=tree, check=False, stdout=sys.stderr)


def machine_speed() -> str:
    """How fast this machine is just now: the best of five turns of a fixed loop in Python, and of a hash over 32 MiB.

    Load says how much else runs; this says what is left, and what machine it is: figures of other days compare by it."""
    data, loops, hashes = bytes(1 << 20), [], []
    for _ in range(5):
        begun, total = time.perf_counter(), 0
        for number in range(1_000_000):
            total += number & 7
        looped = time.perf_counter()
        digest = hashlib.sha256()
        for _ in range(32):
            digest.update(data)
        loops.append(looped - begun)
        hashes.append(time.perf_counter() - looped)
    return f"loop {min(loops) * 1000:.0f} ms, hash {min(hashes) * 1000:.0f} ms"


def where() -> str:
    """Commit ("+": and changes that aren't committed), machine and day of a run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "--", "src"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    day = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    changed = "+" if dirty.strip() else ""
    return f"commit {commit or 'none'}{changed}, {os.cpu_count()} cores, load {load}, {machine_speed()}, {day} UTC"


def describe_section(measurement: Measurement) -> str:
    """The measurement's section of the page."""
    rows = ["| what | weft | peer | ratio | goal | kept |", "|---|---|---|---|---|---|"]
    for f in measurement.figures:
        kept = {True: "yes", False: "**missed**", None: "–"}[f.kept]
        rows.append(f"| {f.what} | {f.value} | {f.peer} | {f.ratio} | {f.goal} | {kept} |")
    return f"## {measurement.name}\n\n{measurement.summary}\n\n_{where()}_\n\n" + "\n".join(rows) + "\n"


def write_section(measurement: Measurement) -> str:
    """Put the measurement's section into the page in place of its older one, and return the section's text."""
    section = describe_section(measurement)
    write_text(section, replaces=re.escape(measurement.name))
    return section


def write_text(section: str, replaces: str, page: Path = PAGE) -> None:
    """Put ``section`` into the page, in place of the one whose heading ``replaces`` matches (a regular expression), and write
    the page's table again."""
    text = page.read_text() if page.exists() else ""
    pattern = re.compile(rf"^## {replaces}\n.*?(?=^## |\Z)", re.M | re.S)
    text = (
        pattern.sub(lambda _: section + "\n", text, count=1)
        if pattern.search(text)
        else f"{text.rstrip()}\n\n{section}"
    )
    page.write_text(render_page(text, ARCHIVE_HEAD if page.name == ARCHIVE.name else HEAD))


def render_page(text: str, head: str = HEAD) -> str:
    """The page with ``text``'s sections below ``head`` and their table."""
    sections = re.findall(r"^## .*?(?=^## |\Z)", text, re.M | re.S)
    lines = "".join(map(describe_line, sections))
    return f"{head}\n{CONTENTS}{lines}\n" + "\n".join(section.rstrip() + "\n" for section in sections)


def describe_line(section: str) -> str:
    """The line of a section in its page's table."""
    name = section.partition("\n")[0].removeprefix("## ")
    anchor = re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-")
    found = re.search(r"^_commit ([0-9a-f]+)\+?[^,]*,.* (\d{4}-\d\d-\d\d \d\d:\d\d) UTC_$", section, re.M)
    commit, taken = found.groups() if found is not None else ("–", "–")
    old = ", *old*" if taken < HALF_SINCE else ""
    missed = re.findall(r"^\| (.*?) \|.*\*\*(?:missed|worse)\*\* \|$", section, re.M)
    more = f" and {len(missed) - MOST_MISSED} more" if len(missed) > MOST_MISSED else ""
    names = "; ".join(missed[:MOST_MISSED]) + more if missed else "–"
    return f"| [{name}](#{anchor}) | {taken}{old} | {commit} | {names} |\n"
