"""A weft server of a benchmark's own, in a temporary folder: the API server alone, or all of its processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conformance.store.etcd_server import free_ports

from benchmarks.measurement import ROOT
from weft.client.context import Context, read_context
from weft.contracts.store import MAX_WRITES, Put
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import Limits
from weft.objects.envelope import Envelope, encode_envelope
from weft.store.sqlite import SqliteStore

WEFT = str(Path(sys.executable).parent / "weft")
_PATIENCE_SECONDS = 20.0
_GROUP = "server"
_TICKS = os.sysconf("SC_CLK_TCK")


class FabricServer:
    """``pids`` are of its processes, the supervisor first; ``context`` is its administrator's."""

    def __init__(self, folder: Path, context: Context, process: subprocess.Popen[bytes]) -> None:
        self.folder, self.context, self._process = folder, context, process
        self._groups: ControlGroups | None = None

    @property
    def pids(self) -> list[int]:
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def memory_bytes(self) -> int:
        """Resident, of all processes together."""
        return sum(resident_bytes(pid) for pid in self.pids)

    def cpu_seconds(self) -> float:
        """Used since the start, of all processes together."""
        return sum(cpu_seconds(pid) for pid in self.pids)

    def limit(self, cores: float) -> None:
        """From now on all processes together get no more. Raises DriverFailed, OSError where there is no such control group."""
        self._groups = ControlGroups(f"weft-bench-{os.getpid()}", controllers=("cpu",))
        for procs in self._groups.create(_GROUP, Limits(cpu=cores)):
            for pid in self.pids:
                procs.write_text(str(pid))

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        if self._groups is not None:
            self._groups.remove(_GROUP)
            self._groups.remove_parents()


@contextlib.contextmanager
def running_server(
    process: str = "", objects: Sequence[Envelope] = (), *, command: Sequence[str] = ()
) -> Iterator[FabricServer]:
    """A server until the end of ``with``; ``process`` names the only one of its processes that is wanted. ``objects``
    are in its store from the start. Another ``command`` gets the state folder, and writes context.json there.

    Its folder is on the clone's own file system, so that an fsync costs what it costs there."""
    base = ROOT / ".weft"
    base.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as name:
        folder = Path(name)
        asyncio.run(_fill(folder / "store.db", objects))
        file, log = folder / "context.json", (folder / "log").open("wb")
        words = [WEFT, "server", *([process] if process else []), "--state", name, "--context", str(file)]
        for flag, port in zip(("--listen", "--gateway", "--functions"), free_ports(3), strict=True):
            words += [flag, f"127.0.0.1:{port}"]
        words += ["--allow-fetch", name, "--most-objects", "1000000"]
        if command:
            words = [*command, name]
        server: FabricServer | None = None
        running = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            begun = time.monotonic()
            while not (file.exists() and (command or _answers(file))):
                if running.poll() is not None or time.monotonic() - begun > _PATIENCE_SECONDS:
                    raise SystemExit((folder / "log").read_text()[-2000:])
                time.sleep(0.05)
            server = FabricServer(folder, read_context(file), running)
            yield server
        finally:
            if server is not None:
                server.end()
            else:
                running.kill()
                running.wait(20)


async def _fill(file: Path, objects: Sequence[Envelope]) -> None:
    store = SqliteStore(file)
    await store.open()
    for start in range(0, len(objects), MAX_WRITES):
        part = objects[start : start + MAX_WRITES]
        await store.commit([Put(one.key, encode_envelope(one)) for one in part])
    await store.close()


def _answers(file: Path) -> bool:
    done = subprocess.run([WEFT, "--context", str(file), "api", "get", "/v1/healthz"], capture_output=True)
    return done.returncode == 0


def resident_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS
