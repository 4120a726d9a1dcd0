"""``GET /v1/projects/PROJECT/networktrace``: whether connections get from one end to the other, and what decides."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from typing import NamedTuple

from weft.api.auth.authorise import require_own_person, require_permission
from weft.api.context import ApiContext
from weft.api.network.answer import NetworkTrace
from weft.api.network.facts import (
    Balanced,
    Caller,
    NetworkAddress,
    Protocol,
    Published,
    ReachabilityFacts,
    TraceTarget,
    Workload,
)
from weft.api.network.reader import TraceReader
from weft.api.network.trace import trace
from weft.api.request.call import Call, json_answer
from weft.api.route import Route
from weft.kinds.registry import is_workload
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name
from weft.serving.answer import Answer

INTERNET = "internet"
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "icmp": "icmp"}
_FROM = "give a workload, like vm/web, or for a published port internet or an address outside"
_TO = "give vm/NAME, container/NAME, service/NAME, publishedport/tcp-PORT, an address, or internet"


class End(NamedTuple):
    """One end as it is written: KIND/NAME[@NETWORK or @ADDRESS], KIND/PROJECT/NAME, an address, or internet."""

    kind: str  # "" of an address and of internet
    project: str
    name: str  # an address, "" of internet
    nic: str = ""


async def network_trace(context: ApiContext, call: Call, project: str) -> Answer:
    """Trace a connection: ``from`` and ``to`` as ``End`` has them; ``port`` is N, N/tcp or N/udp; ``protocol`` tcp, udp or icmp."""
    require_own_person(call.actor, "trace connections")
    require_permission(call.actor, "network:get", project, "trace connections")
    query = call.query("from", "to", "port", "protocol")
    check_name(project, "project")
    source, target = _read_end(query, "from", project, _FROM), _read_end(query, "to", project, _TO)
    async with context.lists.take(call.actor):
        return context.lists.hold(
            call.actor, await _answer(TraceReader(context, call.actor, project), source, target, query)
        )


async def _answer(reader: TraceReader, source: End, target: End, query: dict[str, str]) -> Answer:
    near = await _find_source(reader, source)
    far = await _find_target(reader, target, near)
    protocol, port = read_what(query.get("port", ""), query.get("protocol", ""), far)
    refused, opened = await reader.hosts()
    facts = ReachabilityFacts(near, far, reader.networks, refused, opened, protocol, port, source.nic, target.nic)
    return await asyncio.to_thread(lambda: json_answer(trace(facts)))


async def _find_source(reader: TraceReader, end: End) -> Workload | Caller:
    if is_workload(end.kind):
        return await reader.workload(end.kind, end.project, end.name)
    if end.kind:
        raise InvalidInput(
            f"query parameter from: {end.kind}/{end.name} opens no connections", field="from", hint=_FROM
        )
    return Caller(end.name) if end.name else Caller()


async def _find_target(reader: TraceReader, end: End, source: Workload | Caller) -> TraceTarget:
    if end.kind:
        found = await reader.target(end.kind, end.project, end.name)
        if found is not None:
            return found
        raise InvalidInput(f"query parameter to: {end.kind}/{end.name} takes no connections", field="to", hint=_TO)
    if isinstance(source, Caller):
        raise InvalidInput("query parameter to: neither end is in the fabric", field="to", hint=_TO)
    return await reader.address(end.name, source) if end.name else NetworkAddress("", is_all=True)


def _read_end(query: dict[str, str], name: str, project: str, hint: str) -> End:
    written = query.get(name, "")
    if written == INTERNET:
        return End("", project, "")
    what, _, nic = written.partition("@")
    words = what.split("/")
    if len(words) in (2, 3) and all(words):
        kind, of = words[0], words[1] if len(words) == 3 else project
        check_name(words[-1], name)
        check_name(of, name)
        return End(kind, of, words[-1], nic)
    try:
        address = IPv4Address(written)
    except ValueError:
        raise InvalidInput(f"query parameter {name}: {written[:80]!r} is not an end", field=name, hint=hint) from None
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved:
        raise InvalidInput(f"query parameter {name}: no machine is reached by {address}", field=name, hint=hint)
    return End("", project, str(address))


def read_what(port: str, protocol: str, target: TraceTarget) -> tuple[Protocol, int]:
    """Protocol and port: of a service its first port, of a published port that one, else a ping, where nothing is given."""
    number, _, transport = port.partition("/")
    if port and not (number.isdecimal() and 1 <= int(number) <= 65535 and transport in ("", "tcp", "udp")):
        raise InvalidInput(
            f"query parameter port: {port[:20]!r} is not a port", field="port", hint="give 443 or 53/udp"
        )
    if protocol and (protocol not in _PROTOCOLS or (transport and transport != protocol)):
        hint = "give tcp, udp or icmp"
        raise InvalidInput(f"query parameter protocol: {protocol[:20]!r} doesn't fit", field="protocol", hint=hint)
    chosen = protocol or transport
    if port and chosen == "icmp":
        raise InvalidInput("query parameter port: icmp has no ports", field="port", hint="leave one of them out")
    if port:
        return _PROTOCOLS[chosen or "tcp"], int(number)
    if isinstance(target, Published) and chosen in ("", target.protocol):
        return target.protocol, target.port
    if isinstance(target, Balanced) and (fitting := [one for one in target.ports if chosen in ("", one[0])]):
        return _PROTOCOLS[fitting[0][0]], fitting[0][1]
    if chosen in ("tcp", "udp"):
        raise InvalidInput(f"query parameter port: {chosen} needs a port", field="port", hint="give one, like 443")
    return "icmp", 0


ROUTES = (
    Route(
        "GET",
        "/v1/projects/{project}/networktrace",
        network_trace,
        "Whether connections get from one end to the other, and what decides",
        permission="network:get",
        where="project",
        query=("from", "to", "port", "protocol"),
        answers=NetworkTrace,
    ),
)
