"""An agent's memory: resident set of each local agent, idle, with 20 guests and with 50 containers, private memory beside it; and
of all that an edge node runs beside its workloads: agent, device gateway and broker."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measurement import ROOT, Figure, Measurement
from weft.client import Client
from weft.client.context import read_context
from weft.objects.errors import NotFound

IDLE_MB = 45.0
BUSY_MB = 50.0
GUESTS = 20
CROWDED_MB = 60.0
CONTAINERS = 50
EDGE_MB = 90.0
PATIENCE_SECONDS = 120.0
CALM_SECONDS = 5.0  # after which a gateway has what it needs


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
    spec = {"image": "tiny", "cpu": 0.1, "memory": "128M", "machine": "microvm", "node": node, "networks": ["default"]}
    with _made("vm", GUESTS, spec, _answers):
        yield


@contextlib.contextmanager
def containers_on(node: str) -> Iterator[None]:
    """CONTAINERS small containers on ``node`` that all run, without a network; gone at the end."""
    weft = str(ROOT / ".venv" / "bin" / "weft")
    subprocess.run([weft, "image", "build", "busybox"], cwd=ROOT, check=True, capture_output=True)
    command = ["sleep", "1000000"]
    size = {"cpu": 0.02, "memory": "16M", "disk": "16M"}  # all of them fit on a small node
    spec = {"image": "busybox", **size, "node": node, "networks": [], "command": command}
    with _made("container", CONTAINERS, spec, _runs):
        time.sleep(CALM_SECONDS)
        yield


@contextlib.contextmanager
def _made(
    kind: str, count: int, spec: Mapping[str, Any], is_there: Callable[[dict[str, Any] | None], bool]
) -> Iterator[None]:
    client = Client(read_context(ROOT / ".weft" / "context.json"))
    names = [f"weight-{n}" for n in range(count)]
    try:
        for name in names:
            client.create({"kind": kind, "name": name, "spec": dict(spec)})
        for name in names:
            client.wait(kind, name, is_there, timeout_seconds=PATIENCE_SECONDS)
        yield
    finally:
        for name in names:
            with contextlib.suppress(NotFound):
                client.delete(kind, name)
        for name in names:
            client.wait(kind, name, lambda one: one is None, timeout_seconds=PATIENCE_SECONDS)
        client.close()


@contextlib.contextmanager
def gateway_of(node: str) -> Iterator[tuple[int, int]]:
    """The pids of a device gateway of the node, without devices and models, and of its broker."""
    folder = Path(tempfile.mkdtemp(prefix="weft-edge-"))
    folder.chmod(0o711)  # Mosquitto's user goes through it
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = [str(ROOT / ".venv" / "bin" / "weft"), "edge", "gateway", "--listen", f"127.0.0.1:{port}"]
    argv += ["--node-state", str(ROOT / ".weft" / "nodes" / node), "--state", str(folder / "state")]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stderr=out, stdout=out)
    try:
        ends = time.monotonic() + PATIENCE_SECONDS
        while b"devices can be reached" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit(f"the gateway doesn't start: {log.read_text()[-1000:]}")
            time.sleep(0.1)
        time.sleep(CALM_SECONDS)
        yield process.pid, int((folder / "state" / "broker" / "broker.pid").read_text())
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def weigh_edge(agent: int) -> Figure:
    node = node_of(agent)
    with gateway_of(node) as (gateway, broker):
        parts = {"agent": agent, "gateway": gateway, "broker": broker}
        resident = {name: kilobytes(pid, "Rss") / 1024 for name, pid in parts.items()}
        shared = sum(kilobytes(pid, "Pss") for pid in parts.values()) / 1024
    of = ", ".join(f"{name} {size:.1f}" for name, size in resident.items())
    total = sum(resident.values())
    return Figure(
        f"edge node {node}: agent, gateway and broker, without models",
        f"{total:.1f} MB resident ({of}), {shared:.1f} MB without what processes share",
        goal=f"≤ {EDGE_MB:.0f} MB",
        kept=total <= EDGE_MB,
    )


def _runs(container: dict[str, Any] | None) -> bool:
    status = {} if container is None else container["status"]
    if status.get("phase") == "Failed":
        raise SystemExit(f"a container failed: {status.get('message')}")
    return status.get("phase") == "Running"


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
    figures.append(weigh_edge(pids[-1]))  # a node without a guest
    with guests_on(node_of(pids[0])):
        figures.append(weigh(pids[0], f"with {GUESTS} guests more", BUSY_MB))
    with containers_on(node_of(pids[-1])):
        figures.append(weigh(pids[-1], f"with {CONTAINERS} containers", CROWDED_MB))
    return Measurement(
        "agent_memory",
        f"Agents of the local cluster as `make up` leaves it (one guest on one of them); then {GUESTS} guests on one of them,"
        f" {CONTAINERS} containers on another. Agents were once to keep below 40 MB, without functions, devices and replicas."
        " The edge node's gateway has no devices.",
        figures,
    )
