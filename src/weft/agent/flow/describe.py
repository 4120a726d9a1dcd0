"""A workload's flows in the form that people and programs get. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from weft.agent.state.allocation import LocalAllocation, port_id
from weft.contracts.driver.network import Endpoint, SeenFlow
from weft.contracts.network.rules import NewFlow, find_group
from weft.kinds.allocation import AllocatedNic
from weft.kinds.parts.stream_verbs import FlowsInput
from weft.objects.identity import short_id

MOST_FLOWS = 10_000  # in one answer, those with most bytes first
Neighbours = Mapping[str, Mapping[str, Endpoint]]  # by network uid and address


class Flow(msgspec.Struct, frozen=True):
    """One flow of a workload. Bytes and packets are counted at its NIC: both ways, and sent and received by the workload."""

    network: str
    direction: Literal["out", "in"]  # opened by the workload, or to it
    source: str  # who opened it
    source_name: str  # of a workload of the network; "": another machine
    destination: str
    destination_name: str
    protocol: str  # tcp, udp, icmp, or a number
    source_port: int  # 0 where there is none
    destination_port: int
    bytes: int
    packets: int
    sent_bytes: int
    received_bytes: int
    bytes_per_second: float | None  # since the measurement before; None: there was none
    began_at: float | None  # unix seconds; None: unknown
    # Unanswered: the workload sent, and nothing came back, as where the other end's security group refused it.
    verdict: Literal["allowed", "refused", "unanswered"]
    security_group: (
        str  # the one that decided; of a refused flow all that didn't allow it, with commas; "": none has a say
    )
    # Folded ones only: these have no ``bytes_per_second``, ``source_port`` and ``security_group``.
    last_at: float | None = None
    sent_packets: int | None = None
    flows: int | None = None  # that began in the time; one that began before it and went on counts as 1


class FlowsAnswer(msgspec.Struct, frozen=True):
    at: float  # unix seconds
    flows: list[Flow]
    left_out: int = 0  # flows beyond MOST_FLOWS
    lacking: bool = False  # the kernel forgot some before they could be counted


def match(flow: SeenFlow, asked: FlowsInput) -> bool:
    """Whether a flow is one of those that were asked for."""
    if asked.protocol and flow.protocol != asked.protocol:
        return False
    ports = (flow.source_port, flow.destination_port)
    return not asked.ports or any(r.first <= port <= r.last for r in asked.ports for port in ports)


def describe(
    local: LocalAllocation,
    seen: Iterable[SeenFlow],
    neighbours: Neighbours,
    rates: Mapping[int, float],
) -> list[Flow]:
    """The flows among ``seen`` that have an end at one of the workload's NICs, with most bytes first; ``rates`` by flow id."""
    nics = {(short_id(nic.network_uid), nic.address): nic for nic in local.spec.nics}
    found = []
    for flow in seen:
        out, into = nics.get((flow.segment_id, flow.source)), nics.get((flow.segment_id, flow.destination))
        nic = out or into
        if nic is not None:
            found.append(_describe(local, nic, flow, neighbours.get(nic.network_uid, {}), rates, out=out is not None))
    return sorted(found, key=lambda flow: -flow.bytes)


def _describe(
    local: LocalAllocation,
    nic: AllocatedNic,
    flow: SeenFlow,
    neighbours: Mapping[str, Endpoint],
    rates: Mapping[int, float],
    *,
    out: bool,
) -> Flow:
    sent, received = flow.sent_bytes, flow.received_bytes
    names = {nic.address: local.spec.workload.name}
    return Flow(
        network=nic.network,
        direction="out" if out else "in",
        source=flow.source,
        source_name=names.get(flow.source) or _name(neighbours, flow.source),
        destination=flow.destination,
        destination_name=names.get(flow.destination) or _name(neighbours, flow.destination),
        protocol=flow.protocol,
        source_port=flow.source_port,
        destination_port=flow.destination_port,
        bytes=sent + received,
        packets=flow.sent_packets + flow.received_packets,
        sent_bytes=sent if out else received,
        received_bytes=received if out else sent,
        bytes_per_second=rates.get(flow.id) if flow.id else None,
        began_at=flow.began or None,
        verdict=judge(flow, out=out),
        security_group=_name_groups(local, nic, flow, neighbours, out=out),
    )


def judge(flow: SeenFlow, *, out: bool) -> Literal["allowed", "refused", "unanswered"]:
    """The verdict on a flow that the workload opened, or with ``out`` False got."""
    if flow.refused_by:
        return "refused"
    return "unanswered" if out and flow.sent_packets and not flow.received_packets else "allowed"


def _name(neighbours: Mapping[str, Endpoint], address: str) -> str:
    known = neighbours.get(address)
    return known.name if known is not None else ""


def _name_groups(
    local: LocalAllocation, nic: AllocatedNic, flow: SeenFlow, neighbours: Mapping[str, Endpoint], *, out: bool
) -> str:
    groups = local.spec.groups
    if flow.refused_by:
        own = flow.refused_by == port_id(local.uid, nic.uid)
        return ",".join(group.name for group in groups) if own else ""  # another workload's groups are its own affair
    far = flow.destination if out else flow.source
    there = neighbours.get(far)
    opened = NewFlow(flow.protocol, flow.source, flow.destination, flow.source_port, flow.destination_port)
    return find_group(groups, opened, far, [there] if there is not None else [], out=out)
