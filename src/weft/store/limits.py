"""Limits of a commit, and whether it may go through: the contract's rules, the same on every engine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weft.contracts.store import (
    MAX_COMMIT_BYTES,
    MAX_DIGEST_BYTES,
    MAX_PRECONDITIONS,
    MAX_VALUE_BYTES,
    MAX_WRITES,
    Absent,
    AtRevision,
    LeaseHeld,
    LimitExceeded,
    Precondition,
    PreconditionFailed,
    Present,
    Put,
    Write,
)
from weft.objects.errors import InvalidInput

KEEP_SECONDS = 3_600.0  # how long a repeated idempotency key is recognised


def check_key(key: str) -> int:
    """The key's size in bytes; raises InvalidInput unless it starts with "/" and can be stored."""
    if not key.startswith("/"):
        raise InvalidInput(f"store key {key!r} does not start with '/'", field="key")
    if "\0" in key:
        raise InvalidInput(f"store key {key!r} holds a NUL", field="key")
    try:
        return len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"store key {key!r} is not valid Unicode", field="key") from None


def check_commit(
    writes: Sequence[Write], preconditions: Sequence[Precondition], idempotency_key: str | None = None
) -> int:
    """The commit's size in bytes; raises LimitExceeded or InvalidInput before anything is touched."""
    if len(writes) > MAX_WRITES:
        raise LimitExceeded(f"commit of {len(writes)} writes: at most {MAX_WRITES}", hint="split it")
    if len(preconditions) > MAX_PRECONDITIONS:
        raise LimitExceeded(f"commit with {len(preconditions)} preconditions: at most {MAX_PRECONDITIONS}")
    total = 0
    seen: set[str] = set()
    for write in writes:
        total += check_key(write.key)
        if write.key in seen:
            raise InvalidInput(f"store key {write.key} is written twice in one commit", field="key")
        seen.add(write.key)
        if isinstance(write, Put):
            size = len(write.value)
            if size > MAX_VALUE_BYTES:
                raise LimitExceeded(f"value of {write.key} is {size} bytes: at most {MAX_VALUE_BYTES}")
            total += size
    if idempotency_key is not None and not (len(idempotency_key) <= 256 and idempotency_key.isprintable()):
        raise InvalidInput("idempotency keys are up to 256 printable characters", field="idempotency_key")
    if total > MAX_COMMIT_BYTES:
        raise LimitExceeded(f"commit of {total} bytes: at most {MAX_COMMIT_BYTES}", hint="split it")
    for precondition in preconditions:
        if not isinstance(precondition, LeaseHeld):
            check_key(precondition.key)
    return total


def check_limit(limit: int) -> None:
    if not 0 <= limit < 2**31:
        raise InvalidInput(f"list limit {limit} is not a number of entries", field="limit")


def check_prefix(prefix: str) -> None:
    """Raises InvalidInput for a prefix no key can have; the empty prefix means every key."""
    if prefix:
        check_key(prefix)


def check_ttl(name: str, ttl_seconds: float) -> None:
    # written so that a NaN is refused too
    if not 0 < ttl_seconds < 1e9:
        raise InvalidInput(f"lease {name}: {ttl_seconds} seconds is not a time to live", field="ttl_seconds")


def check_digest(name: str, digest: bytes) -> None:
    if len(digest) > MAX_DIGEST_BYTES:
        raise LimitExceeded(f"lease {name}: a digest of {len(digest)} bytes; at most {MAX_DIGEST_BYTES}")


def end_of_prefix(prefix: str) -> str | None:
    """The smallest key greater than every key that starts with ``prefix``; None when there is no such key."""
    for last in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[last])
        if point < 0x10FFFF:
            # U+D800–U+DFFF are not characters: nothing can be stored between U+D7FF and U+E000
            following = 0xE000 if point == 0xD7FF else point + 1
            return prefix[:last] + chr(following)
    return None


def find_failed(
    preconditions: Sequence[Precondition],
    revision_of: Callable[[str], int | None],
    holds: Callable[[str, int], bool],
) -> PreconditionFailed | None:
    """The first precondition that does not hold, or None. ``revision_of`` gives None for a key that is absent."""
    for precondition in preconditions:
        if isinstance(precondition, LeaseHeld):
            if not holds(precondition.name, precondition.fence):
                return PreconditionFailed(precondition)
            continue
        revision = revision_of(precondition.key)
        match precondition:
            case AtRevision():
                held = revision == precondition.revision
            case Absent():
                held = revision is None
            case Present():
                held = revision is not None
        if not held:
            return PreconditionFailed(precondition, revision)
    return None
