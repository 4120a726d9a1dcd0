"""Positions in a store's history, as the opaque strings that callers hold.

A cursor is ``epoch:revision``; a list's continuation is ``epoch:revision:last key``. The epoch is random and new after a
restore, so a position in a history that no longer exists is recognised. Pure.
"""

from __future__ import annotations

import secrets

from weft.contracts.store import Compacted
from weft.objects.errors import InvalidInput

_FROM_THE_START = "give the continue of a page of the same list, or none"
_AGAIN = "list again, and watch from the cursor of that list"


def make_epoch() -> str:
    """A new random epoch, never given out before."""
    return secrets.token_hex(6)


def gone(fact: str) -> Compacted:
    """The error for a position that can't be served any more; ``fact`` says why."""
    return Compacted(f"the position is gone: {fact}", hint=_AGAIN)


def format_cursor(epoch: str, revision: int) -> str:
    return f"{epoch}:{revision}"


def parse_cursor(cursor: str, epoch: str) -> int:
    """The revision a cursor of this ``epoch`` stands at; raises Compacted for any other string."""
    found, _, revision = cursor.partition(":")
    if found != epoch:
        raise gone(f"cursor {cursor!r} belongs to another history (epoch {epoch} now)")
    return _parse_revision(revision, cursor)


def format_continuation(epoch: str, revision: int, last_key: str) -> str:
    return f"{epoch}:{revision}:{last_key}"


def parse_continuation(after: str, epoch: str, prefix: str) -> tuple[int, str]:
    """The pinned revision and the last key already listed.

    Raises Compacted if it isn't of this ``epoch``, InvalidInput if it continues the list of another prefix."""
    found, _, rest = after.partition(":")
    if found != epoch:
        raise gone(f"continuation {after!r} belongs to another history (epoch {epoch} now)")
    revision, _, last_key = rest.partition(":")
    if not last_key.startswith(prefix):
        raise InvalidInput(
            f"continuation {after!r} is not of the list {prefix!r}", field="continue", hint=_FROM_THE_START
        )
    return _parse_revision(revision, after), last_key


def _parse_revision(text: str, whole: str) -> int:
    # isdecimal alone lets other scripts' digits through; int() alone lets signs, blanks and underscores through
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise gone(f"{whole!r} is not a position")
    return int(text)


def check_reach(position: int, compacted: int, revision: int) -> None:
    """Raises Compacted unless ``position`` lies between the oldest kept and the newest revision."""
    if position < compacted:
        raise gone(f"revision {position} is forgotten (kept from {compacted})")
    if position > revision:
        raise gone(f"revision {position} is ahead of this store ({revision}): an older file was put back")
