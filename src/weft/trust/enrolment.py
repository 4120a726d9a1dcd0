"""Which certificate of a node counts: the fabric's authority signed several, and one that was stolen must be worth nothing
once the node is enrolled anew. Pure.

A key counts that the node was enrolled with, or has renewed for and used. One that isn't known counts too if its certificate
is younger than any that the store knows of: then the store is older than it, for each is remembered before it is handed out.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from weft.objects.errors import Forbidden, NotAuthenticated, WeftError
from weft.objects.identity import FABRIC
from weft.trust.peer import Peer


class Enrolment(msgspec.Struct):
    """What is remembered of a node's certificate, apart from the Node object: it outlives that, so that a node that was
    removed stays out, while one that an older store never knew may come back.

    ``key_sha256`` is of the key that counts, "" until it is seen. ``next_sha256`` is of one that it has renewed for and hasn't
    used yet: until then both count, for who is killed before it has written the new certificate down has the old one.
    ``latest`` is when the youngest of its certificates begins (unix seconds)."""

    name: str
    key_sha256: str = ""
    removed_at: float | None = None
    next_sha256: str = ""
    latest: float = 0.0


class Standing(Enum):
    KNOWN = "known"
    NEWER = "newer"  # counts, and is to be remembered in the place of the known one
    REPLACED = "replaced"


ENROLMENTS = f"/enrolment/{FABRIC}/"  # the store's prefix


def enrolment_key(uid: str) -> str:
    return f"{ENROLMENTS}{uid}"


def read_enrolment(value: bytes) -> Enrolment:
    return msgspec.json.decode(value, type=Enrolment)


def judge(enrolment: Enrolment, peer: Peer) -> Standing:
    """How ``peer`` stands, a node's certificate of that enrolment. Whether the node was removed is asked elsewhere."""
    if peer.key_sha256 == enrolment.key_sha256:
        return Standing.KNOWN
    if not enrolment.key_sha256 or peer.key_sha256 == enrolment.next_sha256 or peer.begins > enrolment.latest:
        return Standing.NEWER
    return Standing.REPLACED


def adopt(enrolment: Enrolment, peer: Peer) -> Enrolment:
    """What is remembered from now on: ``peer`` has used its key, and the one before it is worth nothing."""
    latest = max(enrolment.latest, peer.begins)
    return msgspec.structs.replace(enrolment, key_sha256=peer.key_sha256, next_sha256="", latest=latest)


def refuse_removed(enrolment: Enrolment) -> WeftError:
    return Forbidden(
        f"node {enrolment.name} was removed from the fabric: its certificate is no longer accepted",
        hint="weft token create --join, then weft agent join again",
    )


def refuse_replaced(enrolment: Enrolment) -> WeftError:
    return NotAuthenticated(
        f"node {enrolment.name} was enrolled anew, with another key: this certificate is no longer accepted",
        reason="certificateReplaced",
        hint=f"if this is the right machine: weft token create --join --node {enrolment.name}, and join again",
    )
