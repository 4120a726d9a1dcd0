"""The messages between a store's server and its client over a unix socket: calls and answers. Types only.

Every call carries a number of the caller's choice and its answer carries the same one, so many calls share a connection and
answers may overtake each other; commits are begun in the order in which they were sent.

A watch is answered by any number of Watched. The client reports how many bytes of their bodies it has consumed, and the server
sends no more while WINDOW_BYTES are under way, so a slow reader never holds up other answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.store import Batch, Entry, Lease, Page, Precondition, Write

MAX_CALL_BYTES = 16_000_000
MAX_ANSWER_BYTES = 1_000_000_000
WINDOW_BYTES = 4_000_000
PAGE_ENTRIES = 1_000  # a list without a limit is asked for in pages of this size


class CommitCall(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    id: int
    writes: list[Write]
    preconditions: list[Precondition]
    idempotency_key: str | None


class GetCall(msgspec.Struct, frozen=True, array_like=True, tag="get"):
    id: int
    key: str


class ListCall(msgspec.Struct, frozen=True, array_like=True, tag="list"):
    id: int
    prefix: str
    limit: int
    after: str | None


class WatchCall(msgspec.Struct, frozen=True, array_like=True, tag="watch"):
    id: int
    prefix: str
    cursor: str


class Consumed(msgspec.Struct, frozen=True, array_like=True, tag="consumed"):
    """The watch ``id`` has read this many bytes of bodies of Watched; has no answer."""

    id: int
    bytes: int


class EndWatch(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """The watch ``id`` is no longer wanted; has no answer."""

    id: int


class GrantCall(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    id: int
    name: str
    holder: str
    ttl_seconds: float
    digest: bytes = b""


class ReleaseCall(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    id: int
    name: str
    holder: str


class LeasesCall(msgspec.Struct, frozen=True, array_like=True, tag="leases"):
    id: int
    prefix: str
    digests: bool = False


class CompactCall(msgspec.Struct, frozen=True, array_like=True, tag="compact"):
    id: int
    keep_revisions: int


class KeysCall(msgspec.Struct, frozen=True, array_like=True, tag="keys"):
    id: int


class HoldCall(msgspec.Struct, frozen=True, array_like=True, tag="hold"):
    """Hold commits, until ``seconds`` are over or this connection is lost."""

    id: int
    seconds: float


class SwitchCall(msgspec.Struct, frozen=True, array_like=True, tag="switch"):
    """Put the store ``url`` in force, while this connection holds commits."""

    id: int
    url: str


Call = (
    CommitCall
    | GetCall
    | ListCall
    | WatchCall
    | Consumed
    | EndWatch
    | GrantCall
    | ReleaseCall
    | LeasesCall
    | CompactCall
    | KeysCall
    | HoldCall
    | SwitchCall
)


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """Answers release, compact, hold and switch."""

    id: int


class Committed(msgspec.Struct, frozen=True, array_like=True, tag="committed"):
    id: int
    revision: int


class Got(msgspec.Struct, frozen=True, array_like=True, tag="got"):
    id: int
    entry: Entry | None


class Listed(msgspec.Struct, frozen=True, array_like=True, tag="listed"):
    id: int
    page: Page


class Watched(msgspec.Struct, frozen=True, array_like=True, tag="watched"):
    id: int
    batch: Batch


class Granted(msgspec.Struct, frozen=True, array_like=True, tag="granted"):
    id: int
    lease: Lease | None


class LeasesFound(msgspec.Struct, frozen=True, array_like=True, tag="leases"):
    id: int
    leases: list[Lease]


class KeysKept(msgspec.Struct, frozen=True, array_like=True, tag="keys"):
    id: int
    keys: list[str]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """An error as class name and fields; ``failed`` and ``current_revision`` are PreconditionFailed's."""

    id: int
    error: str
    fields: dict[str, Any]
    failed: Precondition | None = None
    current_revision: int | None = None


StoreAnswer = Done | Committed | Got | Listed | Watched | Granted | LeasesFound | KeysKept | Failed
