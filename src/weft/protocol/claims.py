"""Claims of a ticket: one verb for one client, on one guest or on the gateway itself. The API server signs the claims, the gateway
checks and forwards them, the agent acts on them."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.driver.runtime import SessionMark


class ClaimedRepository(msgspec.Struct, frozen=True):
    """Location of the backup that a stream is about."""

    name: str
    url: str
    id: str  # its own
    ticket: str  # with which the node reads its key


class ClaimedLog(msgspec.Struct, frozen=True):
    """Log of a workload that was deleted. ``what``: KIND/PROJECT/NAME."""

    uid: str
    what: str


class Claims(msgspec.Struct, frozen=True):
    node_uid: str  # "" where the gateway itself answers
    verb: str
    expires: float = 0.0  # unix seconds; a ticket always has it
    subject: str = ""  # of the client, for the log
    token: str = ""  # name of the client's token …
    right: str = ""  # … which must keep this permission for as long as the stream is open
    allocation: str = ""
    guest_id: str = ""
    input: dict[str, Any] = {}  # of the verb
    repository: ClaimedRepository | None = None  # files: where the backup ``guest_id`` is
    log: ClaimedLog | None = None  # logs: of what isn't there any more
    session: SessionMark | None = None  # exec: of a gateway that can continue it elsewhere
    printed: int | None = None  # logs, console: bytes that a gateway has, which can continue elsewhere; -1: it begins
