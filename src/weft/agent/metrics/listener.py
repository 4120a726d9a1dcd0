"""The agent's own metrics and its health over plain HTTP: at a socket in the node's run folder, and where ``weft agent --metrics
ADDRESS:PORT`` says.

``/metrics`` for a Prometheus that scrapes it, ``/healthz`` for whatever keeps the agent alive, ``/readyz`` for who wants to know
whether the server is heard. They ask for no credentials: only root may open the socket, and the place should be loopback or a
network of administrators."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence

import msgspec

from weft import __version__
from weft.agent.server.readiness import ReadinessSource
from weft.agent.state.table import AllocationTable
from weft.contracts.clock import Clock
from weft.contracts.driver.host import Host
from weft.protocol.heartbeat import Digest, Use, total
from weft.serving.answer import Answer
from weft.serving.request import Request
from weft.serving.server import HttpServer
from weft.serving.shares import Bounds
from weft.telemetry.metrics.devices import HELP, list_devices, list_node
from weft.telemetry.metrics.exposition import MEDIA_TYPE, Family, list_process, one, render_metrics

_BOUNDS = Bounds(most_connections=64, most_unwanted_bytes=65_536, most_body_bytes=0, parts=4)


def make_listener(
    sockets: Sequence[socket.socket],
    host: Host,
    table: AllocationTable,
    read: Callable[[], Digest],
    readiness: ReadinessSource,
    clock: Clock,
) -> HttpServer:
    """A server at ``sockets`` that isn't started yet; ``read`` gives what was measured last."""

    async def answer(request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _make_text(405, "only GET\n")
        if request.path == "/metrics":
            families = [*_list_node(host, table, read()), *list_process()]
            return Answer(200, render_metrics(families), (("content-type", MEDIA_TYPE),))
        if request.path == "/healthz":
            return _make_text(200, "ok\n")
        if request.path == "/readyz":
            found = readiness.read()
            body = msgspec.json.encode(found) + b"\n"
            return Answer(200 if found.ready else 503, body, (("content-type", "application/json"),))
        return _make_text(404, "here are /metrics, /healthz and /readyz\n")

    return HttpServer(answer, sockets, None, clock, _BOUNDS, lambda status, why: _make_text(status, why))


def _make_text(status: int, text: str) -> Answer:
    return Answer(status, text.encode(), (("content-type", "text/plain; charset=utf-8"),))


def _list_node(host: Host, table: AllocationTable, digest: Digest) -> Iterator[Family]:
    capacity = host.capacity
    yield Family("weft_build_info", "Version of weft", {(("version", __version__), ("node", host.node)): 1})
    yield one("weft_node_cpu_cores", "Cores for guests", capacity.cpu)
    yield one("weft_node_memory_bytes", "Memory for guests", capacity.memory_bytes)
    yield one("weft_node_disk_bytes", "Disk space for guests", capacity.disk_bytes)
    yield one("weft_node_allocations", "Allocations", len(table.states))
    yield from _list_devices(host, table, digest)
    if not digest.measured:
        return
    use = total(digest)
    yield one("weft_node_cpu_used_cores", "Cores that guests use, smoothed", use.cpu / 1000)
    yield one("weft_node_memory_used_bytes", "Memory that guests use", use.memory)
    yield one("weft_node_disk_used_bytes", "Disk space that guests use", use.disk)
    guests = list(_list_guests(table, digest))
    for name, help_, pick in _OF_GUESTS:
        yield Family(name, help_, {labels: pick(use) for labels, use in guests})


def _list_devices(host: Host, table: AllocationTable, digest: Digest) -> Iterator[Family]:
    values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    found = [*list_node((("node", host.node),), digest.node)]
    for state in table:
        workload = state.local.spec.workload
        if (counts := digest.devices.get(workload.uid)) is not None:
            labels = (("project", workload.project or ""), ("kind", workload.kind), ("name", workload.name))
            found += list_devices(labels, counts)
    for name, labels_, value in found:
        values.setdefault(name, {})[labels_] = value
    for name, of in values.items():
        yield Family(name, HELP[name], of)


_OF_GUESTS: tuple[tuple[str, str, Callable[[Use], float]], ...] = (
    ("weft_guest_cpu_cores", "Cores that a guest uses, smoothed", lambda use: use.cpu / 1000),
    ("weft_guest_memory_bytes", "Memory that a guest uses", lambda use: use.memory),
    ("weft_guest_disk_bytes", "Disk space that a guest uses", lambda use: use.disk),
)


def _list_guests(table: AllocationTable, digest: Digest) -> Iterator[tuple[tuple[tuple[str, str], ...], Use]]:
    for state in table:
        workload = state.local.spec.workload
        use = digest.guests.get(workload.uid)
        if use is not None:
            yield (("project", workload.project or ""), ("kind", workload.kind), ("name", workload.name)), use
