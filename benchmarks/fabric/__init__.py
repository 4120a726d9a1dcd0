"""1,000 agents and 10,000 VMs on this machine: the whole server with its real API, the real agents over fake drivers.

Many agents share a process; each has its own certificate, got by enrolling, and its own connections. Nothing boots: what
is measured is the fabric itself. The agents' state is in memory, so that their disk, shared here by all, is not measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.connection import Connection
from benchmarks.fabric.enrolment import enrol
from benchmarks.fabric_server import FabricServer, cpu_seconds, resident_bytes, running_server
from benchmarks.measurement import ROOT, Figure, Measurement
from weft.objects.image.bundle import BundleManifest

AGENTS = 1_000
VMS = 10_000
PER_PROCESS = 100
BATCH = 500
PATIENCE_SECONDS = 150.0
SETTLE_SECONDS = 15.0
STEADY_SECONDS = 24.0  # three heartbeats
POLL_SECONDS = 1.0
CONVERGED_SECONDS = 120.0
STEADY_SHARE = 0.20
MEMORY_BYTES = 1_000_000_000
VMS_PATH = "/v1/projects/default/vms"


class Outcome(msgspec.Struct):
    online_seconds: float
    converged_seconds: float
    server_seconds: float  # CPU used by the server until all ran
    agents_seconds: float
    steady_share: float
    agents_share: float
    memory_bytes: int
    memory_by_process: list[int]


def make_image(folder: Path) -> Path:
    """A bundle as small as it can be: no guest will boot it."""
    manifest = BundleManifest("disk.raw", "raw", "kernel", "initrd", "console=ttyS0", agent=True)
    files = {"image.json": msgspec.json.encode(manifest), "disk.raw": bytes(4096), "kernel": b"k", "initrd": b"i"}
    path = folder / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@contextlib.contextmanager
def running_agents(folders: list[Path], *options: str) -> Iterator[list[int]]:
    """The agents of these state folders; the processes' pids."""
    processes = []
    try:
        for start in range(0, len(folders), PER_PROCESS):
            words = [
                sys.executable,
                "-m",
                "benchmarks.fabric.agents",
                *options,
                *map(str, folders[start : start + PER_PROCESS]),
            ]
            processes.append(subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=sys.stderr))
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)  # their guests are files that go with the folder
        for process in processes:
            process.wait()


async def until(
    what: str, admin: Connection, path: str, count: int, patience_seconds: float = PATIENCE_SECONDS
) -> None:
    """Wait until the list at ``path`` has ``count`` objects."""
    begun = time.monotonic()
    while True:
        status, body = await admin.request("GET", path)
        found = len(msgspec.json.decode(body, type=_Names).items) if status == 200 else 0
        if found >= count:
            return
        if time.monotonic() - begun > patience_seconds:
            raise SystemExit(f"{what}: {found} of {count} after {patience_seconds:.0f} s")
        await asyncio.sleep(POLL_SECONDS)


class _Names(msgspec.Struct):
    items: list[msgspec.Raw]
    next: str | None = msgspec.field(name="continue", default=None)


async def post(admin: Connection, path: str, body: object, expected: int) -> None:
    status, answer = await admin.request("POST", path, body)
    if status != expected or b'"error":{' in answer:
        raise SystemExit(f"POST {path}: {status} {answer[:400]!r}")


async def run(server: FabricServer, folder: Path) -> Outcome:
    names = [f"n{n:04}" for n in range(AGENTS)]
    folders = await enrol(server.context, names, folder)
    admin = await Connection.open(server.context)
    await post(
        admin,
        "/v1/projects/default/images",
        {"name": "none", "spec": {"url": f"file://{make_image(server.folder)}"}},
        201,
    )
    begun = time.monotonic()
    with running_agents(folders) as pids:
        await until("nodes online", admin, "/v1/nodes?fields=status.phase=Ready", AGENTS)
        await until("image", admin, "/v1/projects/default/images?fields=status.phase=Available", 1)
        online = time.monotonic() - begun
        server_cpu, agents_cpu, begun = server.cpu_seconds(), sum(map(cpu_seconds, pids)), time.monotonic()
        for start in range(0, VMS, BATCH):
            spec = {"image": "none", "cpu": 1, "memory": "256M", "networks": []}
            objects = [{"name": f"vm-{n:05}", "spec": spec} for n in range(start, min(start + BATCH, VMS))]
            await post(admin, f"{VMS_PATH}:batch", {"objects": objects}, 200)
        await until("VMs running", admin, f"{VMS_PATH}?fields=status.phase=Running", VMS)
        converged = time.monotonic() - begun
        server_used, agents_used = server.cpu_seconds() - server_cpu, sum(map(cpu_seconds, pids)) - agents_cpu
        await asyncio.sleep(SETTLE_SECONDS)
        server_cpu, agents_cpu = server.cpu_seconds(), sum(map(cpu_seconds, pids))
        await asyncio.sleep(STEADY_SECONDS)
        return Outcome(
            online,
            converged,
            server_used,
            agents_used,
            (server.cpu_seconds() - server_cpu) / STEADY_SECONDS,
            (sum(map(cpu_seconds, pids)) - agents_cpu) / STEADY_SECONDS,
            server.memory_bytes(),
            [resident_bytes(pid) for pid in server.pids],
        )


def measure() -> Measurement:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="weft-fabric-", dir="/dev/shm") as name, running_server() as server:
        outcome = asyncio.run(run(server, Path(name)))
    by_process = " + ".join(f"{size / 1e6:.0f}" for size in outcome.memory_by_process)
    return Measurement(
        "fabric",
        f"{AGENTS:,} enrolled agents with fake drivers, {PER_PROCESS} to a process, {VMS:,} VMs without networks; real API "
        "over TLS on loopback, SQLite. Server means supervisor, API server, gateway and controllers together.",
        [
            Figure("all agents online after their start", f"{outcome.online_seconds:.0f} s"),
            Figure(
                f"{VMS:,} VMs created → all Running",
                f"{outcome.converged_seconds:.0f} s (CPU: server {outcome.server_seconds:.0f} s, agents "
                f"{outcome.agents_seconds:.0f} s)",
                goal=f"< {CONVERGED_SECONDS:.0f} s",
                kept=outcome.converged_seconds < CONVERGED_SECONDS,
            ),
            Figure(
                "server at rest",
                f"{outcome.steady_share:.1%} of a core (all agents together {outcome.agents_share:.0%})",
                goal=f"< {STEADY_SHARE:.0%} of a core",
                kept=outcome.steady_share < STEADY_SHARE,
            ),
            Figure(
                "memory of the server",
                f"{outcome.memory_bytes / 1e6:.0f} MB ({by_process})",
                goal="< 1 GB",
                kept=outcome.memory_bytes < MEMORY_BYTES,
            ),
        ],
    )
