"""What a store's server and its client say to each other over a unix socket: calls, answers, frames. Pure.

A frame is a length (4 bytes, big-endian) and a msgpack value. Every call carries a number of the caller's choice and
its answer carries the same one, so many calls share a connection and answers may overtake each other; commits are begun
in the order in which they were sent. A watch is answered by any number of Watched. The client says how many bytes of
their bodies it has consumed, and the server sends no more while WINDOW_BYTES are under way, so a slow reader never
holds up other answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from weft.contracts.store import (
    Batch,
    Compacted,
    Entry,
    Lease,
    LimitExceeded,
    Page,
    Precondition,
    PreconditionFailed,
    StoreFull,
    Write,
)
from weft.objects.errors import InvalidInput, StoreUnavailable, WeftError, error_from_dict

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


class ReleaseCall(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    id: int
    name: str
    holder: str


class LeasesCall(msgspec.Struct, frozen=True, array_like=True, tag="leases"):
    id: int
    prefix: str


class CompactCall(msgspec.Struct, frozen=True, array_like=True, tag="compact"):
    id: int
    keep_revisions: int


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
)


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """Answers release and compact."""

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


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """An error as class name and fields; ``failed`` and ``current_revision`` are PreconditionFailed's."""

    id: int
    error: str
    fields: dict[str, Any]
    failed: Precondition | None = None
    current_revision: int | None = None


Answer = Done | Committed | Got | Listed | Watched | Granted | LeasesFound | Failed

_ERRORS: dict[str, type[WeftError]] = {
    cls.__name__: cls for cls in (Compacted, LimitExceeded, StoreFull, StoreUnavailable, InvalidInput)
}


def error_to_answer(id: int, error: WeftError) -> Failed:
    """The answer that carries ``error`` to the caller."""
    if isinstance(error, PreconditionFailed):
        return Failed(id, type(error).__name__, error.to_dict(), error.failed, error.current_revision)
    return Failed(id, type(error).__name__, error.to_dict())


def answer_to_error(answer: Failed) -> WeftError:
    """The error the server raised, of the same class where the contract names it."""
    if answer.failed is not None:
        return PreconditionFailed(answer.failed, answer.current_revision)
    cls = _ERRORS.get(answer.error)
    if cls is None:
        return error_from_dict(answer.fields)
    fields = {name: value for name, value in answer.fields.items() if name != "family"}  # the class says it
    return cls(fields.pop("message"), **fields)


HEAD_BYTES = 4

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: Call | Answer) -> bytes:
    """One message as a frame; raises OverflowError above 4 GiB."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


class BadFrame(Exception):
    """The other side does not speak this protocol; the connection must be closed."""


class FrameReader:
    """Puts a byte stream together into frames. Feed it what arrives; it gives each frame once it is complete."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The bodies of the frames that ``data`` completes. Raises BadFrame for one over the limit."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEAD_BYTES:
                size = int.from_bytes(buffer[start : start + HEAD_BYTES], "big")
                if size > self._max_bytes:
                    raise BadFrame(f"a frame of {size} bytes: at most {self._max_bytes}")
                end = start + HEAD_BYTES + size
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[start + HEAD_BYTES : end])
                start = end
                yield body
        finally:
            del buffer[:start]
