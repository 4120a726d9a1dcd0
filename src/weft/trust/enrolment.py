"""Find the certificate of a node that counts. The fabric's CA signed several, and a stolen one must be worth nothing once the node
is enrolled again. Pure.

A key counts if the node was enrolled with it, or renewed for it and used it. An unknown key counts too if its certificate is
newer than all that the store knows: each is stored before it is issued, so the store was restored from before that.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from weft.objects.errors import Forbidden, NotAuthenticated, WeftError
from weft.objects.identity import FABRIC
from weft.trust.peer import Peer


class Enrolment(msgspec.Struct):
    """The record of a node's certificates. It outlives the Node object: a node that was removed stays out, while one that an
    older store never knew may come back."""

    name: str
    key_sha256: str = ""  # of the key that counts; "" until it is seen
    removed_at: float | None = None
    # Of a key that the node has renewed for and not used yet. Until then both count: a node that is killed before it has
    # written the new certificate still has the old one.
    next_sha256: str = ""
    latest: float = 0.0  # when the newest certificate begins, in unix seconds


class Standing(Enum):
    KNOWN = "known"
    NEWER = "newer"  # counts, and replaces the known one
    REPLACED = "replaced"


ENROLMENTS = f"/enrolment/{FABRIC}/"  # the store's prefix


def enrolment_key(uid: str) -> str:
    return f"{ENROLMENTS}{uid}"


def read_enrolment(value: bytes) -> Enrolment:
    return msgspec.json.decode(value, type=Enrolment)


def judge(enrolment: Enrolment, peer: Peer) -> Standing:
    """How ``peer``, a certificate of the enrolled node, stands. The caller checks whether the node was removed."""
    if peer.key_sha256 == enrolment.key_sha256:
        return Standing.KNOWN
    if not enrolment.key_sha256 or peer.key_sha256 == enrolment.next_sha256 or peer.begins > enrolment.latest:
        return Standing.NEWER
    return Standing.REPLACED


def adopt(enrolment: Enrolment, peer: Peer) -> Enrolment:
    """The enrolment from now on: ``peer`` has used its key, and the key before it is worth nothing."""
    latest = max(enrolment.latest, peer.begins)
    return msgspec.structs.replace(enrolment, key_sha256=peer.key_sha256, next_sha256="", latest=latest)


def refuse_removed(enrolment: Enrolment) -> WeftError:
    return Forbidden(
        f"node {enrolment.name} was removed from the fabric: its certificate is no longer accepted",
        hint="weft token create --join, then weft agent join again",
    )


def refuse_replaced(enrolment: Enrolment) -> WeftError:
    return NotAuthenticated(
        f"node {enrolment.name} was enrolled again with another key: this certificate is no longer accepted",
        reason="certificateReplaced",
        hint=f"if this is the right machine: weft token create --join --node {enrolment.name}, and join again",
    )
