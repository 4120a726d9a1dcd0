"""An agent's memory: resident set of each local agent, idle and with 20 guests; private memory beside it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measurement import ROOT, Figure, Measurement
from weft.client import Client
from weft.client.context import read_context
from weft.objects.errors import NotFound

IDLE_MB = 40.0
BUSY_MB = 50.0
GUESTS = 20
PATIENCE_SECONDS = 120.0


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


def node_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return words[words.index("agent") + 1]


def weigh(pid: int, what: str, goal_mb: float) -> Figure:
    resident = kilobytes(pid, "Rss") / 1024
    private = (kilobytes(pid, "Private_Clean") + kilobytes(pid, "Private_Dirty")) / 1024
    return Figure(
        f"agent {node_of(pid)}, {what}",
        f"{resident:.1f} MB resident, {private:.1f} MB private",
        goal=f"< {goal_mb:.0f} MB",
        kept=resident < goal_mb,
    )


@contextlib.contextmanager
def guests_on(node: str) -> Iterator[None]:
    """GUESTS small guests on ``node`` that have all answered; gone at the end."""
    client = Client(read_context(ROOT / ".weft" / "context.json"))
    names = [f"weight-{n}" for n in range(GUESTS)]
    spec = {"image": "tiny", "cpu": 0.1, "memory": "128M", "machine": "microvm", "node": node, "networks": ["default"]}
    try:
        for name in names:
            client.create({"kind": "vm", "name": name, "spec": spec})
        for name in names:
            client.wait("vm", name, _answers, timeout_seconds=PATIENCE_SECONDS)
        yield
    finally:
        for name in names:
            with contextlib.suppress(NotFound):
                client.delete("vm", name)
        for name in names:
            client.wait("vm", name, lambda vm: vm is None, timeout_seconds=PATIENCE_SECONDS)
        client.close()


def _answers(vm: dict[str, Any] | None) -> bool:
    status = {} if vm is None else vm["status"]
    if status.get("phase") == "Failed":
        raise SystemExit(f"a guest failed: {status.get('message')}")
    return status.get("phase") == "Running" and bool(status.get("ready"))


def measure() -> Measurement:
    pids = sorted(agents(), key=node_of)
    if not pids:
        raise SystemExit("no agent of this clone runs: make up first")
    figures = [weigh(pid, "idle", IDLE_MB) for pid in pids]
    with guests_on(node_of(pids[0])):
        figures.append(weigh(pids[0], f"with {GUESTS} guests more", BUSY_MB))
    return Measurement(
        "agent_memory",
        f"Agents of the local cluster as `make up` leaves it (one guest on one of them); then {GUESTS} guests on one of them.",
        figures,
    )
