"""Work out a linked cluster's status from its reply. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import msgspec

from weft.client.server.endpoints import MOST
from weft.client.server.version_skew import MOST_MINORS, describe_skew
from weft.controllers.cluster.facts import Reply
from weft.kinds.cluster import ClusterActions, ClusterMarks, ClusterStatus
from weft.kinds.fields.cluster.link import check_url
from weft.objects.errors import InvalidInput
from weft.objects.quantity import format_duration
from weft.protocol.link import NEWEST, OLDEST, HelloAnswer, choose_protocol

SILENCE_SECONDS = 10.0  # without an answer, after which it counts as unreachable
SEEN_EVERY_SECONDS = 15.0  # so often it is written down that it answers
ONE_WAY_SECONDS = 45.0  # since the other side was last answered, after which the link is called one-way
CLOCK_SECONDS = 5.0  # by which clocks may differ without a word
MOST_OFFSET_SECONDS = 1e9
FINAL = (
    "linkRefused",
    "wrongCa",
    "linkProtocol",
    "keyLost",
    "sealedByAnother",
)  # a later answer is the only thing that ends them
_PHASES = {"linkRefused": "Refused"}
_MOST_WORD = 64


def plan_status(
    name: str,
    marks: ClusterMarks,
    asked: ClusterActions,
    former: ClusterStatus,
    reply: Reply,
    now: float,
    lag: tuple[float, float] | None = None,
) -> ClusterStatus:
    """The new status; equal to ``former`` if nothing is worth a write. ``now``: unix seconds. ``lag``: see ``find_lag``."""
    lag_seconds, rpo_seconds = lag or (None, None)
    if (lag_seconds, rpo_seconds) != (former.lag_seconds, former.rpo_seconds):
        former = msgspec.structs.replace(former, lag_seconds=lag_seconds, rpo_seconds=rpo_seconds)
    if reply.hello is None:
        return _plan_silence(name, former, reply)
    hello = reply.hello
    status = msgspec.structs.replace(former, phase="Linked", reason="", message="", release=read_word(hello.release))
    if former.seen_at is None or not 0 <= now - former.seen_at < SEEN_EVERY_SECONDS:
        status.seen_at = now
    status.protocol = choose_protocol(hello.oldest, hello.newest)
    offset = max(-MOST_OFFSET_SECONDS, min(MOST_OFFSET_SECONDS, reply.clock_offset_seconds))
    known = former.clock_offset_seconds
    if known is None or abs(offset - known) > 1.0:
        status.clock_offset_seconds = round(offset, 1)
    if hello.uid != marks.peer_uid:
        return _fail(status, "wrongCa", f"{name} says that it is another cluster than the link's")
    if not status.protocol:
        return _fail(
            status,
            "linkProtocol",
            f"{name} speaks protocols {hello.oldest} to {hello.newest} of links, this cluster {OLDEST} to {NEWEST}:"
            " update the older one",
        )
    status.servers = read_servers(hello.servers) or status.servers
    epoch = read_word(hello.epoch)
    if asked.trusted > former.trusted or not former.epoch:
        status.epoch, status.trusted = epoch, asked.trusted
    if epoch != status.epoch:
        status.phase, status.reason = "Suspect", "restored"
        status.message = (
            f"{name} has another history than the one that was linked: its store was restored. It may do nothing here until"
            f" people have looked: weft cluster trust {name}"
        )
        return status
    status.phase, status.reason, status.message = _judge(name, hello, status)
    return status


def _judge(name: str, hello: HelloAnswer, status: ClusterStatus) -> tuple[str, str, str]:
    """Phase, reason and message of a link that works, with what people should know of it."""
    if hello.phase == "Suspect":
        return (
            "Refused",
            "suspectedThere",
            f"{name} lets this cluster do nothing since this one's store was restored: weft cluster trust, there",
        )
    if describe_skew(status.release) is not None:
        return (
            "Linked",
            "releaseSkew",
            f"{name} has release {status.release}: more than {MOST_MINORS} minor version apart, which is untested",
        )
    has_tried = hello.phase != "Pending"  # which a new link is there until it has asked back, or has given up
    if has_tried and (hello.seen_seconds is None or hello.seen_seconds > ONE_WAY_SECONDS):
        return "Linked", "oneWay", f"{name} answers, but can't reach this cluster: see weft cluster describe, there"
    offset = status.clock_offset_seconds or 0.0
    if abs(offset) > CLOCK_SECONDS:
        apart = format_duration(abs(offset))
        return "Linked", "clocksApart", f"the clock of {name} is {apart} {'ahead' if offset > 0 else 'behind'}"
    return "Linked", "", ""


def _plan_silence(name: str, former: ClusterStatus, reply: Reply) -> ClusterStatus:
    is_new = former.clock_offset_seconds is None  # the other side may not have written its half yet
    if reply.reason in FINAL and not (is_new and reply.silent_seconds < SILENCE_SECONDS):
        status = msgspec.structs.replace(former)
        return _fail(status, reply.reason, reply.message, _PHASES.get(reply.reason, "Failed"))
    if reply.silent_seconds < SILENCE_SECONDS:
        return former
    return msgspec.structs.replace(
        former, phase="Unreachable", reason="unreachable", message=f"{name} doesn't answer: {reply.message}"
    )


def _fail(status: ClusterStatus, reason: str, message: str, phase: str = "Failed") -> ClusterStatus:
    status.phase, status.reason, status.message = phase, reason, message
    return status


def read_servers(urls: Sequence[str]) -> list[str]:
    """The URLs of servers as the other cluster names them, without what can't be one."""
    found = []
    for url in urls[:MOST]:
        with contextlib.suppress(InvalidInput):
            found.append(check_url(url, "servers"))
    return found


def read_word(text: str) -> str:
    """A release or an epoch as the other cluster says it; another word where that isn't one."""
    return text if 0 < len(text) <= _MOST_WORD and text.isascii() and text.isprintable() else "unreadable"


def find_offset(there: float, asked: float, took: float) -> float:
    """Offset of the clock that showed ``there`` in an answer to a question of ``asked`` (both unix seconds), which took so many
    seconds: positive if it is ahead, 0 if it showed no time.
    """
    return there - (asked + took / 2) if math.isfinite(there) else 0.0
