"""The real API servers on a loopback port, over TLS, in a thread of their own; people and nodes with real clients."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvloop
from tests.node_key import make_node_key

from weft.api.app import build_app
from weft.api.bootstrap import bootstrap
from weft.api.context import ApiContext, Settings
from weft.api.server import make_api_server
from weft.api.state.history import History
from weft.api.state.oidc_provider import Provider, ProviderSettings
from weft.client import Client, Context
from weft.client.answer import raise_problem
from weft.client.context import read_context
from weft.client.http import Http
from weft.contracts.clock import SystemClock
from weft.contracts.store import Put, Store
from weft.kinds.allocation import (
    AllocatedImage,
    AllocatedNic,
    AllocatedVolume,
    AllocationSpec,
    Resources,
    allocation_name,
)
from weft.objects.envelope import Envelope, decode_envelope, encode_envelope
from weft.objects.errors import WeftError
from weft.objects.identity import SERVER_NAME, Ref, ServerIdentity, new_uid
from weft.protocol.server.join import ServerKeys
from weft.serving.server import listen, make_server_tls
from weft.store.memory import MemoryStore
from weft.telemetry.audit.log import AuditLog
from weft.telemetry.journal import SqliteJournal
from weft.telemetry.metrics.database import Database
from weft.trust.ca import Authority
from weft.trust.seal import SealKeys

T = TypeVar("T")
GATEWAY = "127.0.0.1:9"


class ApiLab:
    """ApiContext over ``store`` with their state in ``folder``; ``client`` is an admin's. ``beside``: one more API server of the
    same fabric, with a folder, an audit log and a journal of its own."""

    def __init__(
        self,
        folder: Path,
        store: Store | None = None,
        publish_address: str | None = None,
        provider: ProviderSettings | None = None,
        find_metrics: Callable[[], Database] | None = None,
        beside: ApiLab | None = None,
        keep_metrics: float = 0.0,
    ) -> None:
        self.folder, self.provider, self.beside = folder, provider, beside
        self.clock = SystemClock()
        self.history = History(find_metrics, self.clock, keep_metrics) if find_metrics is not None else None
        self.store = store or MemoryStore(self.clock)
        self.journal = SqliteJournal(folder / "journal.db", self.clock)
        if beside is not None:
            for name in ("ca.key", "ca.crt"):
                shutil.copy(beside.folder / name, folder / name)
        self.authority, self.name = Authority(folder, self.clock), "s1" if beside is None else "s2"
        (folder / "images").mkdir(exist_ok=True)
        self.settings = Settings(
            folder / "images", b"k" * 32, (GATEWAY,), SERVER_NAME, publish_address, seal_keys=SealKeys.of(b"s" * 32)
        )
        if beside is None:
            self.loop = uvloop.new_event_loop()  # as the API servers themselves
            self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
            self.thread.start()
        else:
            self.loop, self.thread = beside.loop, beside.thread
        self.context_path = folder / "context.json"
        self.clients: list[Client] = []
        self.run(self.open())
        self.context = read_context(self.context_path)
        self.client = self.connect()

    async def open(self, port: int = 0) -> None:
        await self.store.open()
        self.audit = AuditLog(self.folder / "audit", self.clock)
        self.audit.open()
        chain, key = self.authority.renew_server([])
        provider = Provider(self.provider, self.clock) if self.provider is not None else None
        self.api = ApiContext(
            self.store,
            self.journal,
            self.clock,
            self.authority,
            self.settings,
            self.audit,
            provider=provider,
            history=self.history,
            read_keys=lambda: ServerKeys("etcd://127.0.0.1:2379", {}),
            own=ServerIdentity(self.name, f"uid-{self.name}"),
        )
        sock = listen("127.0.0.1", port)
        self.port: int = sock.getsockname()[1]
        tls = make_server_tls(chain, key, self.authority.ca_path)
        self.server = make_api_server(build_app(self.api), [sock], tls, self.clock)
        self.url = f"https://127.0.0.1:{self.port}"
        await bootstrap(self.api, self.context_path, self.url, name=self.name)
        self.api.start()
        self.server.start()

    async def shut(self) -> None:
        await self.api.stop()
        await self.server.close()
        self.audit.close()

    def restart(self) -> None:
        """The API servers end and come back at the same port, over the same store."""
        self.run(self.shut())
        self.run(self.open(self.port))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def connect(self, context: Context | None = None, **settings: Any) -> Client:
        client = Client(context or self.context, **{"timeout_seconds": 15.0, **settings})
        self.clients.append(client)
        return client

    def with_token(self, name: str = "", **spec: Any) -> Client:
        """The client of someone with a new token of this spec."""
        made = self.client.create({"kind": "token", "name": name or f"t{new_uid()[:8]}", "spec": spec})
        return self.connect(msgspec.structs.replace(self.context, token=made["secret"]))

    def join(self, name: str, **token: Any) -> JoinedNode:
        made = self.client.create({"kind": "token", "name": f"j{new_uid()[:8]}", "spec": {"use": "join", **token}})
        return self.join_with(made["secret"], name)

    def join_with(self, secret: str, name: str, key: Path | None = None) -> JoinedNode:
        key = key or self.folder / f"{name}-{new_uid()[:4]}.key"
        http = Http(Context(server=self.context.server, ca=self.context.ca, token=secret))
        try:
            answer = http.request("POST", "/v1/join", {"node": name, "csr": make_node_key(key)})
            raise_problem(answer)
        finally:
            http.close()
        given = answer.json()
        certificate = key.with_suffix(".crt")
        certificate.write_text(given["certificate"])
        context = Context(server=self.context.server, ca=given["ca"], certificate=str(certificate), key=str(key))
        return JoinedNode(name, given["node_uid"], self.connect(context), key, context)

    def put(self, *envelopes: Envelope) -> None:
        """Write objects as a controller would: straight into the store."""
        self.run(self.store.commit([Put(e.key, encode_envelope(e)) for e in envelopes]))

    def stored(self, key: str) -> Envelope | None:
        entry = self.run(self.store.get(key))
        return None if entry is None else decode_envelope(entry.value, entry.revision)

    def revision(self) -> int:
        """The store's revision: grows by one with each commit that changes something."""
        return self.run(self.store.commit([]))

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.run(self.shut())
        self.journal.close()
        if self.beside is not None:
            return
        self.run(self.store.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class JoinedNode:
    def __init__(self, name: str, uid: str, client: Client, key: Path, context: Context) -> None:
        self.name, self.uid, self.client, self.key, self.context = name, uid, client, key, context

    def report(self, **body: Any) -> dict[str, Any]:
        answer = self.client.http.request("POST", f"/v1/nodes/{self.name}:report", body)
        raise_problem(answer)
        return dict(answer.json())


def make_image(name: str = "tiny") -> dict[str, Any]:
    return {"kind": "image", "name": name, "spec": {"url": f"file:///srv/{name}.tar"}}


def make_vm(name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": "vm", "name": name, "spec": {"image": "tiny", **spec}}


def make_allocation(
    node: JoinedNode, vm: dict[str, Any], incarnation: int = 1, network_uid: str = "", volume_uid: str = ""
) -> Envelope:
    uid = new_uid()
    nic = AllocatedNic(
        uid=new_uid(), network="default", network_uid=network_uid, vni=1, cidr="10.1.0.0/24", gateway="10.1.0.1",
        mtu=1450, domain="weft", nat=True, mac="52:54:00:00:00:02", address="10.1.0.2",
    )  # fmt: skip
    spec = AllocationSpec(
        node=node.name,
        node_uid=node.uid,
        workload=Ref(kind="vm", name=vm["name"], uid=vm["uid"], project="default"),
        workload_generation=1,
        incarnation=incarnation,
        resources=Resources(cpu=1, memory=1 << 28),
        image=AllocatedImage(name="tiny", uid="i", sha256="ab" * 32, size=1, url="file:///x"),
        volumes=[AllocatedVolume(name="data", uid=volume_uid, size=1)] if volume_uid else [],
        nics=[nic] if network_uid else [],
    )
    return Envelope(
        kind="allocation",
        name=allocation_name(node.uid, uid),
        uid=uid,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        finalizers=["node"],
    )


def take_port() -> socket.socket:
    """A listening socket on a port of 127.0.0.1 that was free."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def run_together(*attempts: Callable[[], Any]) -> list[Any]:
    """What each of these gave, or its error, begun at once."""
    barrier, results = threading.Barrier(len(attempts)), list[Any]([None] * len(attempts))

    def run(place: int) -> None:
        barrier.wait()
        try:
            results[place] = attempts[place]()
        except WeftError as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(attempts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results
