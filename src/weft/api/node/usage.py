"""The usage of nodes and their guests, as each node reported with its newest heartbeat. It is stored nowhere.

Reads the nodes' leases. The answer leaves out a node that can't measure, or that doesn't report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer, read_flag
from weft.api.route import Route
from weft.kinds.registry import KINDS
from weft.objects.envelope import decode_envelope
from weft.objects.identity import kind_prefix
from weft.protocol.heartbeat import LEASE_PREFIX, LEASE_SECONDS, Digest, Use, read_digest, total
from weft.serving.answer import Answer
from weft.trust.credentials import Actor


class Usage(msgspec.Struct):
    cpu: float  # cores, smoothed over half a minute
    memory: int  # bytes
    disk: int  # bytes
    settled: bool  # measured for long enough to rely on


class InstancesUsage(msgspec.Struct):
    """Instances of functions."""

    busy: int  # at work
    idle: int
    ready: int  # ahead of demand
    memory: int  # bytes that the node counts for them


class NodeUsage(msgspec.Struct):
    node: str  # its uid
    age_seconds: float  # since the measurement
    use: Usage  # all guests together; instances of functions are no guests
    guests: dict[str, Usage] = {}  # by the workload's uid
    instances: InstancesUsage | None = None


class UsageAnswer(msgspec.Struct):
    items: list[NodeUsage]


async def usage(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/usage``; with ``guests=1`` each guest's too. That those get, too, who have rights in some projects only: the guests
    there are all that they see."""
    sees_all = call.actor.permits("usage:get", None)
    metered = [] if sees_all else _list_metered(call.actor)
    if not metered:
        require_permission(call.actor, "usage:get", None, "see the usage of nodes")
    with_guests = read_flag(call.query("guests"), "guests")
    if not with_guests:
        require_permission(call.actor, "usage:get", None, "see the usage of nodes")
    own = None if sees_all else await _find_guests(context, metered)
    items = []
    for lease in await context.store.leases(LEASE_PREFIX, digests=True):
        digest = read_digest(lease.digest)
        if digest is not None and digest.measured:
            if own is not None:
                shown = {uid: use for uid, use in digest.guests.items() if uid in own}
                digest = Digest(shown)
            guests = {uid: _make_usage(use) for uid, use in digest.guests.items()} if with_guests else {}
            age = round(max(0.0, LEASE_SECONDS - lease.remaining_seconds), 1)
            there = InstancesUsage(**msgspec.structs.asdict(digest.instances))
            items.append(
                NodeUsage(lease.name.removeprefix(LEASE_PREFIX), age, _make_usage(total(digest)), guests, there)
            )
    return json_answer(UsageAnswer(items))


def _list_metered(actor: Actor) -> list[tuple[str, str]]:
    """Kind and project of the workloads whose metrics ``actor`` may see in some projects."""
    if actor.kind != "person" or actor.is_cluster:
        return []
    kinds = [kind.name for kind in KINDS if kind.workload is not None]
    return [(kind, project) for kind in kinds for project in sorted(actor.find_projects(f"{kind}:metrics") or ())]


async def _find_guests(context: ApiContext, metered: Sequence[tuple[str, str]]) -> set[str]:
    """The uids of these workloads."""
    found: set[str] = set()
    for kind, project in metered:
        page = await context.store.list(kind_prefix(kind, project))
        found |= await asyncio.to_thread(
            lambda entries: {decode_envelope(one.value).uid for one in entries}, page.entries
        )
    return found


def _make_usage(use: Use) -> Usage:
    return Usage(use.cpu / 1000, use.memory, use.disk, use.settled)


ROUTES = (
    Route(
        "GET",
        "/v1/usage",
        usage,
        "What nodes and workloads use now",
        permission="usage:get",
        where="all",
        query=("guests",),
        answers=UsageAnswer,
    ),
)
