"""The usage of nodes and their guests, as each node reported with its newest heartbeat. It is stored nowhere.

Reads the nodes' leases. The answer leaves out a node that can't measure, or that doesn't report."""

from __future__ import annotations

import msgspec

from weft.api.auth.authorise import require_person
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer, read_flag
from weft.protocol.heartbeat import LEASE_PREFIX, LEASE_SECONDS, Use, read_digest, total
from weft.serving.answer import Answer


class Usage(msgspec.Struct):
    """``cpu`` in cores, smoothed over half a minute; the rest in bytes. ``settled``: measured for long enough to go by."""

    cpu: float
    memory: int
    disk: int
    settled: bool


class InstancesUsage(msgspec.Struct):
    """Instances of functions at work, idle, and ready ahead of demand; ``memory`` in bytes is what the node counts for them."""

    busy: int
    idle: int
    ready: int
    memory: int


class NodeUsage(msgspec.Struct):
    """All that the guests of the node with uid ``node`` use, as of ``age_seconds`` ago; each by its workload's uid. Instances of
    functions are no guests: what they use is in nothing but ``instances``."""

    node: str
    age_seconds: float
    use: Usage
    guests: dict[str, Usage] = {}
    instances: InstancesUsage | None = None


class UsageAnswer(msgspec.Struct):
    items: list[NodeUsage]


async def usage(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/usage``; with ``guests=1`` each guest's too."""
    require_person(call.actor, "see usage")
    query = call.query("guests")
    with_guests = read_flag(query, "guests")
    items = []
    for lease in await context.store.leases(LEASE_PREFIX, digests=True):
        digest = read_digest(lease.digest)
        if digest is not None and digest.measured:
            guests = {uid: _make_usage(use) for uid, use in digest.guests.items()} if with_guests else {}
            age = round(max(0.0, LEASE_SECONDS - lease.remaining_seconds), 1)
            there = InstancesUsage(**msgspec.structs.asdict(digest.instances))
            items.append(
                NodeUsage(lease.name.removeprefix(LEASE_PREFIX), age, _make_usage(total(digest)), guests, there)
            )
    return json_answer(UsageAnswer(items))


def _make_usage(use: Use) -> Usage:
    return Usage(use.cpu / 1000, use.memory, use.disk, use.settled)
