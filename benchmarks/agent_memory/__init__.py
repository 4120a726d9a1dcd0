"""The idle agent's memory: resident set of each local agent, under 45 MB; private memory beside it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measurement import ROOT, Figure, Measurement

GOAL_MB = 45.0


def agents() -> list[int]:
    """The pids of this clone's agents, found by their command line."""
    state = str(ROOT / ".weft")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "agent" in words and any(w.startswith(state) for w in words) and "init" not in words:
            found.append(int(entry.name))
    return found


def kilobytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def measure() -> Measurement:
    pids = agents()
    if not pids:
        raise SystemExit("no agent of this clone runs: make up first")
    figures = []
    for pid in pids:
        resident = kilobytes(pid, "Rss") / 1024
        private = (kilobytes(pid, "Private_Clean") + kilobytes(pid, "Private_Dirty")) / 1024
        name = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        node = name[name.index("agent") + 1]
        figures.append(
            Figure(
                f"agent {node}",
                f"{resident:.1f} MB resident, {private:.1f} MB private",
                goal=f"< {GOAL_MB:.0f} MB",
                kept=resident < GOAL_MB,
            )
        )
    return Measurement(
        "agent_memory", "Agents of the local cluster as `make up` leaves it (one guest on one of them).", figures
    )
