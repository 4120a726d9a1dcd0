"""The store in which a server keeps its objects: ``sqlite`` or an ``etcd`` of its own in its state folder, ``members``, an etcd of
which each server of the fabric keeps a member, or an etcd cluster named by a URL.

``etcds://`` is etcd over TLS: `etcd/ca.crt`, and for a client's certificate `etcd/client.crt` and `etcd/client.key`, are
read from the state folder; the first endpoint's host is the name that all members' certificates must carry.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from weft.contracts.clock import Clock
from weft.contracts.durable_file import write_durably
from weft.contracts.store import Refill, Store
from weft.launch.process.supervisor import Command, Supervisor, supervising
from weft.launch.store.etcd import NO_QUOTA, find_socket, plan_etcd
from weft.launch.store.etcd_log import EtcdLog
from weft.launch.store.member import Member, plan_member, read_member, renew_certificate
from weft.objects.errors import InUse, InvalidInput, Unavailable
from weft.objects.identity import MEMBER_NAME
from weft.protocol.server.presence import LEASE_PREFIX as SERVER_LEASES
from weft.store.copy import fill

SQLITE, ETCD, MEMBERS = "sqlite", "etcd", "members"
WORDS = (SQLITE, ETCD, MEMBERS)
OWN_ETCDS = (ETCD, MEMBERS)  # in the state folder, kept by the server itself
FILE = "store.db"
LEADER_LEASE = "controllers"  # the name of their leader lease, on whatever store
MEMBER_KEEPALIVE_SECONDS = 2.0  # the members that servers keep let themselves be pinged so often
_MEMORY = "store.url"
_ETCD, _ETCD_TLS = "etcd://", "etcds://"


def find_endpoints(url: str) -> list[str]:
    """The endpoints that ``etcd://host:port[,host:port…]`` or ``etcd:///path/of/a/socket`` names. Raises InvalidInput."""
    scheme = _ETCD_TLS if url.startswith(_ETCD_TLS) else _ETCD
    places = url.removeprefix(scheme)
    endpoints = [places] if places.startswith("/") else places.rstrip("/").split(",")
    if not url.startswith(scheme) or not all(endpoints):
        raise InvalidInput(
            f"{url!r} is not a store",
            field="store",
            hint=f"{SQLITE}, {ETCD}, {MEMBERS}, or etcd://HOST:PORT[,HOST:PORT…]",
        )
    return endpoints


def make_store(url: str, state: Path, clock: Clock) -> Store:
    """The store that ``url`` names, not yet open. Raises InvalidInput, and Unavailable when what it needs is missing."""
    # Either engine is loaded only when wanted: the server's other processes need neither, and etcd's brings gRPC.
    store: Store
    if url == SQLITE:
        store = importlib.import_module("weft.store.sqlite").SqliteStore(state / FILE, clock)
    else:
        engine, endpoints, options = _find_etcd(url, state, clock)
        store = engine.EtcdStore(endpoints, clock, **options)
    return store


def make_refill(url: str, state: Path, clock: Clock) -> Refill:
    """Make the refill of the store that ``url`` names, which nobody has open. Raises as ``make_store``."""
    refill: Refill
    if url == SQLITE:
        refill = importlib.import_module("weft.store.sqlite").SqliteRefill(state / FILE)
    else:
        engine, endpoints, options = _find_etcd(url, state, clock)
        rivals, is_own = (LEADER_LEASE, SERVER_LEASES), url in OWN_ETCDS
        refill = engine.EtcdRefill(endpoints, clock, rivals=rivals, is_own=is_own, **options)
    return refill


def _find_etcd(url: str, state: Path, clock: Clock) -> tuple[Any, list[str], dict[str, Any]]:
    """The engine for etcd, the endpoints that ``url`` names, and how to connect to them."""
    member = read_member(state) if url == MEMBERS else None
    endpoints = [find_socket(state)] if url == ETCD else member.endpoints if member else find_endpoints(url)
    try:
        engine = importlib.import_module("weft.store.etcd")
    except ModuleNotFoundError as missing:
        raise Unavailable(
            f"store {url} needs {missing.name}", hint="pip install '.[etcd]' in weft's clone"
        ) from missing
    if member is not None:
        tls = read_member_tls(state, member, clock)
        return engine, endpoints, {"tls": tls, "keepalive_seconds": MEMBER_KEEPALIVE_SECONDS}
    if not url.startswith(_ETCD_TLS):
        return engine, endpoints, {}
    folder = state / "etcd"
    ca, certificate, key = (_read(folder / name) for name in ("ca.crt", "client.crt", "client.key"))
    if ca is None:
        raise Unavailable(f"store {url} needs {folder}/ca.crt", hint="put the CA certificate of the etcd members there")
    name = endpoints[0].rpartition(":")[0].strip("[]")
    return engine, endpoints, {"tls": engine.EtcdTls(ca, name, certificate, key)}


def read_member_tls(state: Path, member: Member, clock: Clock) -> Any:
    """The EtcdTls of the member's server, with a certificate that is good for a month at least."""
    certificate, key = renew_certificate(state, member, clock)
    ca = certificate.with_name("ca.crt")
    return importlib.import_module("weft.store.etcd").EtcdTls(
        ca.read_bytes(), MEMBER_NAME, certificate.read_bytes(), key.read_bytes()
    )


async def refill_store(
    url: str, state: Path, clock: Clock, entries: Iterable[tuple[str, bytes]], revision: int
) -> None:
    """Put ``entries``, of a history that reached ``revision``, in the place of all that the store holds. Raises
    StoreUnavailable or InUse when somebody uses it."""
    target = make_refill(url, state, clock)
    async with running(url, state, clock):
        await fill(target, entries, revision)


@asynccontextmanager
async def running(url: str, state: Path, clock: Clock) -> AsyncIterator[None]:
    """Run the etcd that ``url`` names if it is the server's own and the server doesn't run: without a quota, since the server's
    is in flags that nobody has given here. Raises Unavailable, with the reason where the etcd ended."""
    plan, log = plan_own(url, state, clock, NO_QUOTA), EtcdLog(clock)
    try:
        async with supervising([Supervisor("etcd", plan, clock, output=log.take)] if plan else []):
            yield
    except Unavailable as problem:
        if log.fatal:
            raise type(problem)(f"the store can't be started: {log.fatal}", hint="mend that, then try again") from None
        raise


def plan_own(url: str, state: Path, clock: Clock, quota_bytes: int) -> Sequence[str] | Callable[[], Command] | None:
    """The command of the etcd that the server itself keeps; of a member it changes with the others. Raises Unavailable when there
    is no etcd on this machine."""
    if url == MEMBERS:
        read_member(state)
        return lambda: Command(plan_member(state, clock, quota_bytes))
    return plan_etcd(state, quota_bytes) if url == ETCD else None


async def try_store(url: str, state: Path, clock: Clock) -> None:
    """Raises StoreUnavailable, and what ``make_store`` raises, when the store that ``url`` names can't be opened."""
    store = make_store(url, state, clock)
    await store.open()
    await store.close()


def recall_store(state: Path) -> str:
    """Recall in which store this server kept its objects in the last time; SQLITE for a new one."""
    path = state / _MEMORY
    return path.read_text().strip() if path.exists() else SQLITE


def is_remembered(state: Path) -> bool:
    """Whether a server has kept its objects somewhere."""
    return (state / _MEMORY).exists()


def check_store(state: Path, url: str) -> None:
    """Raises InUse when the objects of the server in ``state`` lie in a store of another engine: it would seem empty; and
    Unavailable for members of which this server has none."""
    known = recall_store(state)
    if is_remembered(state) and known != url and {known, url} & {*WORDS}:
        words = f"{url} --member ADDRESS" if url == MEMBERS else url
        raise InUse(
            f"the server in {state} keeps its objects in {known}",
            hint=f"start it without --store; to take the objects to {url} while it runs: weft server move-store {words}",
        )
    if url == MEMBERS:
        read_member(state)


def remember_store(state: Path, url: str) -> None:
    """Keep ``url`` for ``recall_store``."""
    if recall_store(state) != url or not is_remembered(state):
        write_durably(state / _MEMORY, f"{url}\n".encode())


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
