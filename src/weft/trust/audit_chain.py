"""The audit log's records and the chain that they form: each has the hash of the one before, and its own. Pure.

A record is one line of JSON, and its last field is its hash: SHA-256 over the line's bytes without that field, as hexadecimal
digits. So a record that is changed, removed, inserted or put elsewhere breaks the chain there. What the chain alone can't show
is that its newest records were cut off: compare its last hash with one that was noted elsewhere (syslog, an export).
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

AuditOutcome = Literal["allowed", "refused", "failed"]
_HASH = b',"hash":"'
_TAIL = len(_HASH) + 64 + len(b'"}')
_SHA256 = hashlib.sha256()
_encode = msgspec.json.Encoder().encode


class AuditActor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sender of a request. Never a secret: a token by its name."""

    kind: Literal["person", "node", "joiner", "linker", "nobody", "server"]  # nobody: without valid credentials
    name: str = ""  # a user's; of a token without a user token:ID, of a node node:UID, of another server server:NAME
    role: str = ""  # of a person
    project: str = ""  # the only one in which it has that role
    id: str = ""  # the token's name, or the uid of the node or the server


class AuditChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One field of an object before and after; of a new object, what differs from the defaults. Secrets are ``(hidden)``."""

    field: str
    old: Any = None
    new: Any = None


class AuditObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object that a request was about."""

    kind: str
    name: str = ""  # "": the collection
    uid: str = ""  # "": unknown
    action: Literal["", "created", "updated", "unchanged", "deleting", "deleted"] = ""
    changes: list[AuditChange] = []


class AuditRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Record of one request's effect or refusal. Fields that are empty are left out of the line."""

    sequence: int = 0  # 1 is the chain's first record
    at: str = ""  # UTC, like 2026-12-24T22:00:00.123456Z
    chain: str = ""  # of the server's audit log, drawn when that began
    actor: AuditActor
    address: str = ""  # of the client
    request: str = ""  # its id, as in the answer and the server's log
    method: str = ""
    path: str = ""
    verb: str = ""  # create, change, delete, read, apply, join, …, or the kind's verb; of the server's own records: see the page
    project: str = ""  # of the objects; "": they belong to none
    objects: list[AuditObject] = []
    left_out: int = 0  # changes that didn't fit into the record
    outcome: AuditOutcome
    status: int = 0  # of the HTTP answer
    reason: str = ""  # why it was refused or failed: the error's
    message: str = ""
    count: int = 1  # of requests that the record stands for
    previous: str = ""  # the hash of the record before; "": there is none
    hash: str = ""


class Link(msgspec.Struct, frozen=True):
    """The part of a record that makes the chain."""

    sequence: int
    chain: str
    previous: str = ""
    hash: str = ""


class Break(msgspec.Struct, frozen=True, kw_only=True):
    """Break of a chain: ``sequence`` is that of the first record that isn't as it was written, or isn't there."""

    sequence: int
    problem: str


class AuditVerdict(msgspec.Struct, kw_only=True):
    """Findings of a check of a chain. ``first`` and ``last`` are the sequence numbers of what is there."""

    records: int = 0
    chain: str = ""
    first: int = 0
    last: int = 0
    hash: str = ""  # the last record's
    broken: Break | None = None


_links = msgspec.json.Decoder(Link)
_records = msgspec.json.Decoder(AuditRecord)


def seal_record(record: AuditRecord) -> tuple[bytes, str]:
    """The record's line, without a line break, and its hash. ``record`` has none yet."""
    body = _encode(record)
    hashing = _SHA256.copy()  # in less time than a new one
    hashing.update(body)
    digest = hashing.hexdigest()
    return b'%b,"hash":"%b"}' % (body[:-1], digest.encode()), digest


def read_record(line: bytes) -> AuditRecord:
    """The record in a line that ``read_link`` accepts."""
    return _records.decode(line)


def read_link(line: bytes) -> Link | None:
    """The link of a line; None if it isn't a record as it was written."""
    if line[-_TAIL : -_TAIL + len(_HASH)] != _HASH:
        return None
    try:
        link = _links.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    digest = hashlib.sha256(line[:-_TAIL] + b"}").hexdigest()
    return link if link.hash == digest and line[-66:-2] == digest.encode() else None


class ChainCheck:
    """Follows a chain, line after line, up to its first break."""

    def __init__(self) -> None:
        self.verdict = AuditVerdict()

    def take(self, line: bytes) -> bool:
        """Add a line. False if the chain is broken by it, or was before."""
        verdict = self.verdict
        if verdict.broken is not None:
            return False
        link = read_link(line)
        problem = "is not as it was written" if link is None else self._find_problem(link)
        if link is None or problem:
            number = verdict.last + 1 if verdict.records else (link.sequence if link is not None else 1)
            verdict.broken = Break(sequence=number, problem=f"record {number} {problem}")
            return False
        if not verdict.records:
            verdict.first, verdict.chain = link.sequence, link.chain
        verdict.records += 1
        verdict.last, verdict.hash = link.sequence, link.hash
        return True

    def _find_problem(self, link: Link) -> str:
        last = self.verdict
        if not last.records:
            return "" if link.sequence > 1 or (link.sequence == 1 and not link.previous) else "is not a chain's first"
        if link.chain != last.chain:
            return f"is missing: record {link.sequence} of another chain stands there"
        if link.sequence != last.last + 1:
            return f"is missing: record {link.sequence} stands there"
        return "" if link.previous == last.hash else "doesn't follow the one before it"
