"""The network between the nodes, of what they report, what their newest heartbeats measured, and what people declared. It is
stored nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from weft.api.auth.authorise import require_permission
from weft.api.context import ApiContext
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.contracts.store import Entry
from weft.informer.view import Item
from weft.kinds.network_topology import FABRIC, NETWORK_TOPOLOGY, NetworkTopologySpec
from weft.kinds.node import NodeReport, NodeStatus
from weft.objects.envelope import Envelope, decode_envelope, decode_part
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.identity import check_name, kind_prefix, object_key
from weft.protocol.heartbeat import LEASE_PREFIX, LEASE_SECONDS, Digest, read_digest
from weft.protocol.topology import NOTHING_CARRIED, By, Carried, NodeFacts, Topology, make_topology
from weft.serving.answer import Answer
from weft.transfer.forecast import PastMigration, find_path_rate
from weft.transfer.history import read_past

_PAGE = 500
_BY: dict[str, By | None] = {"": None, "node": "node", "place": "place"}
_NO_DIGEST = Digest()


async def topology(context: ApiContext, call: Call) -> Answer:
    """``GET /v1/topology``; ``by`` is node or place, ``node`` the name of one whose links alone are wanted."""
    require_permission(call.actor, f"{NETWORK_TOPOLOGY.name}:get", None, "see the network between the nodes")
    query = call.query("by", "node")
    by, node = query.get("by", ""), query.get("node", "")
    if by not in _BY:
        raise InvalidInput(f"query parameter by: {by[:20]!r} is unknown", field="by", hint="give node or place")
    if node:
        check_name(node, "node")
        if by == "place":
            raise InvalidInput(
                "query parameter node: places have no node's links", field="node", hint="leave by=place out"
            )
    async with context.lists.take(call.actor):
        return context.lists.hold(call.actor, await _answer(context, _BY[by], node))


async def _answer(context: ApiContext, by: By | None, node: str) -> Answer:
    hosts, spec = await _read(context)
    unsure = any(path.at_least for host in hosts for path in host.paths.values())
    carried = await _read_carried(context) if unsure else NOTHING_CARRIED
    if node and node not in {host.name for host in hosts}:
        raise NotFound(f'node "{node}" does not exist', field="node", hint="weft node list shows those that do")
    return await asyncio.to_thread(lambda: json_answer(make_topology(hosts, spec, by=by, of=node, carried=carried)))


async def _read(context: ApiContext) -> tuple[list[NodeFacts], NetworkTopologySpec]:
    digests: dict[str, tuple[float, Digest]] = {}
    for lease in await context.store.leases(LEASE_PREFIX, digests=True):
        digest = read_digest(lease.digest)
        if digest is not None:
            age = max(0.0, LEASE_SECONDS - lease.remaining_seconds)
            digests[lease.name.removeprefix(LEASE_PREFIX)] = age, digest
    hosts, after = list[NodeFacts](), None
    while True:
        page = await context.store.list(kind_prefix("node"), limit=_PAGE, after=after)
        hosts += await asyncio.to_thread(_read_page, page.entries, digests)
        if (after := page.next) is None:
            break
    entry_ = await context.store.get(object_key(NETWORK_TOPOLOGY.name, None, FABRIC))
    if entry_ is None:
        return hosts, NetworkTopologySpec()
    return hosts, decode_part(decode_envelope(entry_.value).spec, NetworkTopologySpec)


async def _read_carried(context: ApiContext) -> Carried:
    """Bandwidths that the newest migrations had, in Mbit/s, by the names of their two nodes."""
    past, after = list[PastMigration](), None
    while True:
        page = await context.store.list(kind_prefix("migration"), limit=_PAGE, after=after)
        found = (read_past(Item(decode_envelope(entry.value))) for entry in page.entries)
        past += [migration for migration in found if migration is not None]
        if (after := page.next) is None:
            break
    past.sort(key=lambda migration: -migration.ended_at)
    pairs = {frozenset((migration.source, migration.target)) for migration in past}
    rates = {pair: find_path_rate(past, pair) for pair in pairs}
    return {pair: rate * 8e-6 for pair, rate in rates.items() if rate}


def _read_page(entries: Sequence[Entry], digests: Mapping[str, tuple[float, Digest]]) -> list[NodeFacts]:
    return [read_host(decode_envelope(entry.value), digests) for entry in entries]


def read_host(node: Envelope, digests: Mapping[str, tuple[float, Digest]]) -> NodeFacts:
    """Facts in a Node object and its newest heartbeat (with its age)."""
    report, labels = decode_part(node.report, NodeReport), node.labels
    age, digest = digests.get(node.uid, (0.0, _NO_DIGEST))
    return NodeFacts(
        uid=node.uid,
        name=node.name,
        zone=labels.get("zone", ""),
        rack=labels.get("rack", ""),
        online=decode_part(node.status, NodeStatus).phase == "Ready",
        coordinate=report.coordinate,
        round_trips=report.round_trips,
        paths=digest.paths,
        paths_age=age,
        link=digest.link,
    )


ROUTES = (
    Route(
        "GET",
        "/v1/topology",
        topology,
        "The network between the nodes: nodes, devices, links",
        permission=f"{NETWORK_TOPOLOGY.name}:get",
        where="all",
        query=("by", "node"),
        answers=Topology,
    ),
)
