"""The store in which a server's objects were before, in ``STATE/store.former``: from before a copy begins until it is confirmed.

Which store is in force, ``store.url`` alone says. So a record whose target isn't in force is of a copy that came to nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec

from weft.contracts.durable_file import sync_folder, write_durably
from weft.launch.store.engine import OWN_ETCDS, recall_store

FILE = "store.former"


class Exchange(msgspec.Struct, frozen=True):
    """The objects go from the store ``source`` to ``target``, from ``began_at`` (unix seconds) on. ``takes_back``: when the one
    before began, if they return; 0: they don't."""

    source: str
    target: str
    began_at: float
    takes_back: float = 0.0


def read_exchange(state: Path) -> Exchange | None:
    """The newest one that is neither confirmed nor given up; one that can't be read is none."""
    try:
        return msgspec.json.decode((state / FILE).read_bytes(), type=Exchange)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def find_done(state: Path) -> Exchange | None:
    """The one by which the store in force came to be it, if it isn't confirmed. One that hasn't finished takes nothing back."""
    exchange, in_force = read_exchange(state), recall_store(state)
    if exchange is None or exchange.target == in_force:
        return exchange
    if exchange.takes_back and exchange.source == in_force:
        return Exchange(exchange.target, exchange.source, exchange.takes_back)
    return None


def write_exchange(state: Path, exchange: Exchange) -> None:
    write_durably(state / FILE, msgspec.json.encode(exchange))


def drop_exchange(state: Path) -> None:
    (state / FILE).unlink(missing_ok=True)
    sync_folder(state)


def find_own_etcd(state: Path) -> str | None:
    """The store in the state folder for which the server must run an etcd: the one in force, or one that is copied from or to."""
    exchange = read_exchange(state)
    urls = [recall_store(state), *((exchange.target, exchange.source) if exchange else ())]
    return next((url for url in urls if url in OWN_ETCDS), None)
