"""Which store a server keeps its objects in: ``sqlite`` in its state folder, or an etcd cluster named by a URL.

``etcds://`` is etcd over TLS: `etcd/ca.crt`, and for a client's certificate `etcd/client.crt` and `etcd/client.key`, are
read from the state folder; the first endpoint's host is the name that all members' certificates must carry.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from weft.contracts.clock import Clock
from weft.contracts.store import Store
from weft.objects.errors import InvalidInput, Unavailable

SQLITE = "sqlite"
_ETCD, _ETCD_TLS = "etcd://", "etcds://"


def find_endpoints(url: str) -> list[str]:
    """The endpoints that ``etcd://host:port[,host:port…]`` or ``etcd:///path/of/a/socket`` names. Raises InvalidInput."""
    scheme = _ETCD_TLS if url.startswith(_ETCD_TLS) else _ETCD
    places = url.removeprefix(scheme)
    endpoints = [places] if places.startswith("/") else places.rstrip("/").split(",")
    if not url.startswith(scheme) or not all(endpoints):
        raise InvalidInput(f"{url!r} names no store", field="store", hint=f"{SQLITE}, or etcd://HOST:PORT[,HOST:PORT…]")
    return endpoints


def make_store(url: str, state: Path, clock: Clock) -> Store:
    """The store that ``url`` names, not yet open. Raises InvalidInput, and Unavailable when what it needs is missing."""
    # Either engine is loaded only when wanted: the server's other processes need neither, and etcd's brings gRPC.
    store: Store
    if url == SQLITE:
        store = importlib.import_module("weft.store.sqlite").SqliteStore(state / "store.db", clock)
        return store
    endpoints = find_endpoints(url)
    try:
        engine = importlib.import_module("weft.store.etcd")
    except ModuleNotFoundError as missing:
        raise Unavailable(f"store {url} needs {missing.name}", hint="pip install 'weft[etcd]'") from missing
    if not url.startswith(_ETCD_TLS):
        store = engine.EtcdStore(endpoints, clock)
        return store
    folder = state / "etcd"
    ca, certificate, key = (_read(folder / name) for name in ("ca.crt", "client.crt", "client.key"))
    if ca is None:
        raise Unavailable(f"store {url} needs {folder}/ca.crt", hint="put the etcd members' authority there")
    name = endpoints[0].rpartition(":")[0].strip("[]")
    store = engine.EtcdStore(endpoints, clock, tls=engine.EtcdTls(ca, name, certificate, key))
    return store


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
