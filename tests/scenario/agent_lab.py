"""A node's agent in the test's own process, over fake drivers and a server made of values, for its scenarios."""

from __future__ import annotations

import asyncio
import hashlib
import io
import queue
import tarfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from weft.agent.agent import Agent
from weft.agent.server.line import ServerLine
from weft.agent.workload.runtimes import Runtimes
from weft.client.watch import WatchEvent
from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.contracts.guard import GuardDriver
from weft.drivers.network.fake.driver import FakeNetwork, FakeWire
from weft.drivers.runtime.fake.driver import FakeDriver, FakeGuest, FakeOrders
from weft.drivers.volume.fake.driver import FakeShelf, FakeVolumes
from weft.kinds.allocation import (
    AllocatedImage,
    AllocatedNic,
    AllocationReport,
    AllocationSpec,
    Resources,
    allocation_name,
)
from weft.kinds.endpoint import EndpointSpec, EndpointStatus, endpoint_name
from weft.kinds.node import NodeReport
from weft.kinds.orders import Orders
from weft.kinds.parts.snapshot.volume_work import VolumeOrder
from weft.kinds.published_port import PublishedPortSpec, PublishedPortStatus
from weft.launch.agent.parts import AgentParts
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import NotFound, Unavailable, WeftError
from weft.objects.identity import Ref, short_id
from weft.objects.image.bundle import BundleManifest
from weft.protocol.report import NetworkRules, NodeEvent, OpenedSecrets, ReportAnswer, ReportBody, ServerPlace
from weft.protocol.traces import SpansAnswer, SpansInput

NODE, NODE_UID, ADDRESS = "n1", "node-uid-1", "10.99.0.1"


def make_bundle(**members: bytes) -> bytes:
    """An image bundle with a kernel; ``members`` replace or add files."""
    manifest = BundleManifest("disk.raw", "raw", "kernel", "initrd", "console=ttyS0", agent=True)
    files = {"image.json": msgspec.json.encode(manifest), "disk.raw": bytes(4096), "kernel": b"k", "initrd": b"i"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in {**files, **members}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


BUNDLE = make_bundle()
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


def raw(part: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(part))


def make_nic(address: str = "10.20.0.11", network: str = "blue") -> AllocatedNic:
    return AllocatedNic(
        uid=f"nic-{address}",
        network=network,
        network_uid=f"uid-of-{network}",
        vni=4001,
        cidr="10.20.0.0/24",
        gateway="10.20.0.1",
        mtu=1450,
        domain="blue.weft",
        nat=True,
        mac="52:54:00:00:00:" + address.rpartition(".")[2].zfill(2)[-2:],
        address=address,
    )


def make_allocation(name: str = "web", uid: str = "", **fields: Any) -> Envelope:
    uid = uid or f"alloc-{name}"
    spec = AllocationSpec(
        **{
            "node": NODE,
            "node_uid": NODE_UID,
            "workload": Ref("vm", name, f"uid-of-{name}", "default"),
            "workload_generation": 1,
            "incarnation": 1,
            "resources": Resources(cpu=1, memory=1 << 28),
            "image": AllocatedImage(name="tiny", uid="img", sha256=DIGEST, size=len(BUNDLE), url="file:///tiny"),
            "nics": [make_nic()],
            "grace_seconds": 0.2,
            **fields,
        }
    )
    return Envelope(
        kind="allocation", name=allocation_name(NODE_UID, uid), uid=uid, spec=raw(spec), finalizers=["node"]
    )


def change(envelope: Envelope, **fields: Any) -> Envelope:
    """The allocation with other spec fields."""
    spec = msgspec.structs.replace(decode_part(envelope.spec, AllocationSpec), **fields)
    return msgspec.structs.replace(envelope, spec=raw(spec))


def make_endpoint(
    address: str, name: str, node_address: str | None, network: str = "blue", groups: Sequence[str] = ()
) -> Envelope:
    spec = EndpointSpec(
        workload=Ref("vm", name, f"uid-of-{name}", "default"),
        network=network,
        network_uid=f"uid-of-{network}",
        index=0,
        mac="52:54:00:00:01:01",
        address=address,
    )
    full = endpoint_name(spec.network_uid, address)
    return Envelope(
        kind="endpoint",
        name=full,
        uid=full,
        spec=raw(spec),
        status=raw(EndpointStatus(node_address=node_address, groups=list(groups))),
    )


def make_published_port(port: int, address: str, node_address: str | None, network: str = "blue") -> Envelope:
    spec = PublishedPortSpec(port=port, protocol="tcp", target_port=80, workload=Ref("vm", "web", "u", "default"))
    status = PublishedPortStatus(node_address=node_address, network_uid=f"uid-of-{network}", address=address)
    return Envelope(kind="publishedport", name=f"tcp-{port}", uid=f"p{port}", spec=raw(spec), status=raw(status))


class StubServer:
    """A server made of values. ``down`` makes it unreachable, ``lists`` = False mute;
    ``restore`` is what an operator does with a backup."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.line = ServerLine(SystemClock(), "")
        self.down = False
        self.lists = True
        self.epoch = "e1"
        self.blobs = {DIGEST: BUNDLE}
        self.fetches = 0
        self.fetch_gate: threading.Event | None = None
        self.reports: dict[str, AllocationReport] = {}
        self.history: list[tuple[str, AllocationReport]] = []
        self.node_report: NodeReport | None = None
        self.events: list[NodeEvent] = []
        self.removed_volumes: list[str] = []
        self.remove_volumes: list[str] = []
        self.remove_snapshots: list[str] = []
        self.volume_work: list[VolumeOrder] = []
        self.orders = Orders()  # all others
        self.ranges: tuple[str, list[str], list[str]] = ("", [], [])
        self.place = ServerPlace()
        self.rules: dict[str, NetworkRules] = {}
        self.idle_networks: list[str] = []
        self.gone_networks: list[str] = []
        self.superseded: list[str] = []
        self.stale_volumes: list[str] = []
        self.confirmed: set[str] = set()  # uids of workloads for which this cluster is confirmed as primary
        self.stamp = ""  # the node's newest
        self.guard_pause = 0.0
        self.refusal: WeftError | None = None
        self.secrets: OpenedSecrets | WeftError = OpenedSecrets()
        self.secrets_read: list[str] = []
        self._objects: dict[tuple[str, str], Envelope] = {}
        self._watches: list[tuple[str, dict[str, str], queue.Queue[WatchEvent | None]]] = []
        self._lock = threading.Lock()

    def put(self, *envelopes: Envelope) -> None:
        for envelope in envelopes:
            with self._lock:
                self._objects[envelope.kind, envelope.name] = envelope
                self._tell(envelope, WatchEvent("put", f"{self.epoch}:1", raw(envelope)))

    def delete(self, envelope: Envelope) -> None:
        with self._lock:
            last = self._objects.pop((envelope.kind, envelope.name))
            self._tell(last, WatchEvent("delete", f"{self.epoch}:1", raw(last)))

    def restore(self, epoch: str, *envelopes: Envelope) -> None:
        """Begin a new history that holds exactly these."""
        with self._lock:
            gone = [e for key, e in self._objects.items() if key not in {(e.kind, e.name) for e in envelopes}]
            self.epoch = epoch
            self._objects = {(e.kind, e.name): e for e in envelopes}
            for envelope in envelopes:
                self._tell(envelope, WatchEvent("put", f"{epoch}:1", raw(envelope)))
            for envelope in gone:
                identity = {"kind": envelope.kind, "name": envelope.name, "uid": envelope.uid, "project": None}
                told = msgspec.Raw(msgspec.json.encode(identity))
                self._tell(envelope, WatchEvent("delete", f"{epoch}:1", told))
            for _, _, lines in self._watches:
                lines.put(WatchEvent("synced", f"{epoch}:1"))

    def await_report(self) -> None:
        """Say in the watches of allocations that the node has other orders than before."""
        with self._lock:
            for kind, _, lines in self._watches:
                if kind == "allocation":
                    lines.put(WatchEvent("bookmark", f"{self.epoch}:1", report=True))

    def get(self, envelope: Envelope) -> Envelope:
        return self._objects[envelope.kind, envelope.name]

    def _tell(self, envelope: Envelope, event: WatchEvent) -> None:
        for kind, query, lines in self._watches:
            if kind == envelope.kind and _matches(envelope, query):
                lines.put(event)

    def watch(self, kind: str, query: dict[str, str], on_trouble: Callable[[WeftError], None]) -> Iterator[WatchEvent]:
        while self.down or not self.lists:
            on_trouble(Unavailable("no weft server answers"))
            if self.closed.wait(0.02):
                return
        if self.refusal is not None:
            raise self.refusal
        lines: queue.Queue[WatchEvent | None] = queue.Queue()
        with self._lock:
            present = [e for e in self._objects.values() if e.kind == kind and _matches(e, query)]
            self._watches.append((kind, query, lines))
        for envelope in present:
            yield WatchEvent("put", f"{self.epoch}:1", raw(envelope))
        yield WatchEvent("synced", f"{self.epoch}:1")
        while (event := lines.get()) is not None:
            while self.down and not self.closed.wait(0.02):
                pass
            yield event

    def report(self, node: str, body: ReportBody) -> ReportAnswer:
        if self.down:
            raise Unavailable("no weft server answers")
        if self.refusal is not None:
            raise self.refusal
        assert node == NODE
        if body.node is not None:
            self.node_report = body.node
        self.reports.update(body.allocations)
        self.history += body.allocations.items()
        self.events += body.events
        self.removed_volumes += body.removed_volumes
        self.idle_networks = body.idle_networks
        self.stamp = body.digest.stamp if body.digest is not None else self.stamp
        version, ranges, node_ranges = self.ranges
        return ReportAnswer(
            remove_volumes=[v for v in self.remove_volumes if v not in self.removed_volumes],
            remove_snapshots=self.remove_snapshots,
            orders=msgspec.structs.replace(self.orders, volume=self.volume_work),
            ranges_version=version,
            ranges=ranges if version != body.ranges_version else None,
            node_ranges=node_ranges if version != body.ranges_version else [],
            server=self.place,
            networks={uid: rules for uid, rules in self.rules.items() if uid in body.networks},
            gone_networks=[n for n in body.idle_networks if n in self.gone_networks],
            superseded=self.superseded,
            stale_volumes=self.stale_volumes,
            stamps={uid: self.stamp for uid in self.confirmed if self.stamp},
            guard_pause=self.guard_pause,
        )

    def send_image(self, node: str, uid: str, sha256: str, path: Path, stop: threading.Event) -> None:
        raise NotFound(f"node {node} has no image to make")

    def put_spans(self, node: str, given: SpansInput) -> SpansAnswer:
        raise Unavailable("this server keeps no traces", reason="noTraces")

    def read_registry_secret(self, node: str, ticket: str) -> OpenedSecrets:
        return self.read_secrets(node, ticket)

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        self.secrets_read.append(allocation)
        if isinstance(self.secrets, WeftError):
            raise self.secrets
        return self.secrets

    def fetch_blob(self, sha256: str, out: BinaryIO, on_progress: Callable[[int], None]) -> None:
        self.fetches += 1
        if self.fetch_gate is not None:
            self.fetch_gate.wait(10)
        if self.down:
            raise Unavailable("no weft server answers")
        if sha256 not in self.blobs:
            raise NotFound(f"no blob {sha256[:12]}")
        out.write(self.blobs[sha256])
        on_progress(len(self.blobs[sha256]))

    def close(self) -> None:
        self.closed.set()
        with self._lock:
            for _, _, lines in self._watches:
                lines.put(None)

    def reopen(self) -> None:
        """Serve the next agent."""
        self._watches.clear()
        self.closed = threading.Event()


def _matches(envelope: Envelope, query: dict[str, str]) -> bool:
    prefix = query.get("node") or query.get("network")
    return prefix is None or envelope.name.startswith(f"{prefix}.")


class Lab:
    """One node: what outlives its agent, and the agent that runs now."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        capacity = Capacity(4, 1 << 32, 1 << 34)
        run_dir = str(folder / "run")
        self.host = Host(NODE, NODE_UID, str(folder), run_dir, "wtst", ADDRESS, "lo", "weft/t", capacity)
        self.server = StubServer()
        self.guard: GuardDriver | None = None
        self.wire, self.shelf, self.orders = FakeWire(), FakeShelf(), FakeOrders()
        self.san = FakeVolumes(self.host, self.clock)  # a second pool
        self.make_drivers()

    def make_drivers(self) -> None:
        """Drivers as a new process has them: on the same world, remembering nothing."""
        self.runtime = FakeDriver(self.host, self.clock, self.orders)
        self.network = FakeNetwork(self.host, self.clock, self.wire)
        self.volumes = FakeVolumes(self.host, self.clock, self.shelf)

    @asynccontextmanager
    async def agent(self, *server_places: str) -> AsyncIterator[Agent]:
        """An agent that runs inside ``with``; afterwards it is gone as if killed, and its guests go on."""
        self.make_drivers()
        self.server.reopen()
        runtimes, pools = Runtimes({"vm": self.runtime}), {"san": self.san}
        agent = Agent(
            AgentParts(
                self.host,
                self.server,
                runtimes,
                self.network,
                self.volumes,
                self.clock,
                pools=pools,
                server_places=server_places,
                guard=self.guard,
            )
        )
        running = asyncio.ensure_future(agent.run())
        try:
            await agent.start()
            yield agent
            if running.done():
                running.result()
        finally:
            running.cancel()
            await agent.close()

    async def until(self, holds: Callable[[], object], what: str = "") -> None:
        """Wait until ``holds``; fails after ten seconds with what was reported."""
        for _ in range(6000):
            if holds():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"never: {what or holds}; reported: {self.server.reports}")

    async def until_state(self, envelope: Envelope, state: str) -> AllocationReport:
        """The allocation's report once it is in ``state``."""
        name = envelope.name
        await self.until(lambda: name in self.server.reports and self.server.reports[name].state == state, state)
        return self.server.reports[name]

    async def settle(self) -> None:
        """Give the agent time to do what it might wrongly do."""
        await asyncio.sleep(0.4)

    def guest(self, envelope: Envelope) -> FakeGuest | None:
        """What the runtime's world has of the allocation's guest."""
        path = Path(self.host.state_dir) / "fake-guests" / f"{short_id(envelope.uid)}.json"
        return msgspec.json.decode(path.read_bytes(), type=FakeGuest) if path.exists() else None

    def copies(self) -> list[str]:
        return [path.name for path in (Path(self.host.state_dir) / "allocations").glob("*.json")]
