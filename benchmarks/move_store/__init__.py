"""A running server's objects to another store and back, of 10,000 VMs, while people write: how long it takes, and how long a write
waits for it.

Each VM has an allocation and an endpoint. The API server runs alone, with a real etcd on the same machine and the same disk;
writers create volumes over HTTPS all the while.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator

import msgspec

from benchmarks.fabric_server import WEFT, FabricServer, running_server
from benchmarks.measurement import ROOT, Figure, Measurement
from benchmarks.store_api.load import make_vm
from weft.client import Client
from weft.kinds.allocation import AllocationSpec, Resources
from weft.kinds.endpoint import EndpointSpec
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref

VMS, WRITERS, ROUNDS = 10_000, 4, 3
MOST_SECONDS, MOST_WAIT_SECONDS = 60.0, 5.0


def make_objects(number: int) -> list[Envelope]:
    """A VM, its place on a node, and its address."""
    vm = make_vm(number)
    workload = Ref(kind="vm", project="default", name=vm.name, uid=f"{number:036}")
    mac, address = f"52:54:00:00:{number >> 8 & 255:02x}:{number & 255:02x}", f"10.{number >> 8}.{number & 255}.2"
    allocation = AllocationSpec(
        node=f"n{number % 100}",
        node_uid="0" * 36,
        workload=workload,
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1.0, memory=1 << 30),
    )
    endpoint = EndpointSpec(
        workload=workload, network="default", network_uid="0" * 36, index=0, mac=mac, address=address
    )
    return [
        vm,
        _make("allocation", f"{number:036}", f"n{number % 100}", allocation),
        _make("endpoint", f"e-{number}", "default", endpoint),
    ]


def _make(kind: str, name: str, project: str, spec: msgspec.Struct) -> Envelope:
    return Envelope(
        kind=kind,
        name=name,
        uid="0" * 36,
        project=project,
        created_at=1.0,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        status=msgspec.Raw(b"{}"),
    )


@contextlib.contextmanager
def running_etcd() -> Iterator[str]:
    """The URL of an etcd that runs until the end of ``with``, on the clone's own file system."""
    with tempfile.TemporaryDirectory(prefix="bench-etcd-", dir=ROOT / ".weft") as folder:
        client, peer = (f"http://127.0.0.1:{port}" for port in _free_ports())
        argv = ["etcd", "--data-dir", folder, "--listen-client-urls", client, "--advertise-client-urls", client]
        argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*argv, f"default={peer}"], **quiet)
        try:
            yield f"etcd://{client.removeprefix('http://')}"
        finally:
            process.terminate()
            process.wait(20)


def _free_ports() -> list[int]:
    held = [socket.socket() for _ in range(2)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Writers:
    """Threads that create volumes, one after the other; ``longest`` is the longest of the writes since the last ``begin``."""

    def __init__(self, server: FabricServer) -> None:
        self.written, self.longest = 0, 0.0
        self._stop = threading.Event()
        self._server = server
        self._threads = [threading.Thread(target=self._write, args=(n,), daemon=True) for n in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def begin(self) -> None:
        self.longest = 0.0

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _write(self, writer: int) -> None:
        client, number = Client(self._server.context), 0
        while not self._stop.is_set():
            began = time.perf_counter()
            client.create({"kind": "volume", "name": f"v{writer}-{number}", "spec": {"size": "1G"}})
            self.longest = max(self.longest, time.perf_counter() - began)
            self.written, number = self.written + 1, number + 1
            time.sleep(0.02)
        client.close()


def go(server: FabricServer, writers: Writers, *words: str) -> tuple[float, float]:
    """Seconds of the command, and of the longest write meanwhile."""
    writers.begin()
    began = time.perf_counter()
    argv = [WEFT, "server", "move-store", *words, "--state", str(server.folder)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.perf_counter() - began, writers.longest


def measure() -> Measurement:
    if shutil.which("etcd") is None:
        raise SystemExit("etcd is not installed")
    objects = [one for number in range(VMS) for one in make_objects(number)]
    there, back = list[tuple[float, float]](), list[tuple[float, float]]()
    with running_server("api", objects) as server, running_etcd() as url:
        writers = Writers(server)
        for _ in range(ROUNDS):
            there.append(go(server, writers, url))
            back.append(go(server, writers, "--back"))
            go(server, writers, "--confirm")
        writers.end()
        found = Client(server.context)
        kept = len(found.list("volume").items)
        found.close()
    figures = [_figure("SQLite → etcd", there), _figure("etcd → SQLite", back)]
    figures += [_waited("a write waited at most, SQLite → etcd", there), _waited("the same, etcd → SQLite", back)]
    lost = writers.written - kept
    figures.append(Figure("acknowledged writes lost", f"{lost} of {writers.written}", goal="0", kept=lost == 0))
    return Measurement(
        "move_store",
        f"`weft server move-store` {ROUNDS} times there and back, {VMS:,} VMs ({len(objects):,} objects) and {WRITERS} writers.",
        figures,
    )


def _figure(what: str, taken: list[tuple[float, float]]) -> Figure:
    seconds = [each[0] for each in taken]
    return Figure(
        what, f"{statistics.median(seconds):.1f} s (longest {max(seconds):.1f} s, n={len(seconds)})",
        goal=f"≤ {MOST_SECONDS:g} s", kept=max(seconds) <= MOST_SECONDS,
    )  # fmt: skip


def _waited(what: str, taken: list[tuple[float, float]]) -> Figure:
    seconds = [each[1] for each in taken]
    return Figure(
        what, f"{statistics.median(seconds):.2f} s (longest {max(seconds):.2f} s, n={len(seconds)})",
        goal=f"≤ {MOST_WAIT_SECONDS:g} s", kept=max(seconds) <= MOST_WAIT_SECONDS,
    )  # fmt: skip
