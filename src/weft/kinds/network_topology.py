"""NetworkTopology: what people say of the network between the nodes, which nodes can't measure: its switches and routers, and links
between them; and how often nodes measure bandwidth. There is one in the fabric; the topology controller makes it, and sums up in
its status where the nodes are. What nodes measure is in no object: ``GET /v1/topology`` puts it together
(``protocol/topology.py``)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.record import Access, Admission, Column, Display, Kind
from weft.objects.errors import InvalidInput
from weft.objects.identity import check_name
from weft.objects.schema import field

FABRIC = "fabric"
MOST_DEVICES, MOST_DECLARED_LINKS = 256, 2048
MOST_NAMED = 16  # in the status
MOST_PROBES = 10  # of a node in a minute
DEFAULT_PROBES = 2
FASTEST_MBPS = 1_000_000.0
FARTHEST_MS = 60_000.0

Word = Annotated[str, field("", max_length=63)]
Milliseconds = Annotated[float, field("", ge=0, le=FARTHEST_MS)]
Rate = Annotated[float, field("", ge=0.001, le=FASTEST_MBPS)]


class NetworkDevice(msgspec.Struct, kw_only=True):
    """A switch or router."""

    name: Annotated[str, field("Name, which links refer to", name=True)]
    type: Annotated[Literal["switch", "router"], field("switch or router")] = "switch"
    zone: Annotated[Word, field("Zone that it is in")] = ""
    rack: Annotated[Word, field("Rack that it is in")] = ""


class NetworkLink(msgspec.Struct, kw_only=True):
    source: Annotated[str, field("Node or device at one end", name=True)]
    target: Annotated[str, field("Node or device at the other end", name=True)]
    latency_ms: Annotated[Milliseconds | None, field("Round trip in milliseconds, if known")] = None
    bandwidth_mbps: Annotated[Rate | None, field("Bandwidth in Mbit/s, if known")] = None


class NetworkTopologySpec(msgspec.Struct, kw_only=True):
    devices: Annotated[list[NetworkDevice], field("Switches and routers")] = []
    links: Annotated[list[NetworkLink], field("Links of nodes and devices, which nobody measures")] = []
    bandwidth_probes: Annotated[
        int, field("Bandwidth probes that each node makes in a minute; 0: none", ge=0, le=MOST_PROBES)
    ] = DEFAULT_PROBES


class NetworkTopologyStatus(msgspec.Struct, kw_only=True):
    phase: Literal["Ready", "Incomplete"] = "Ready"
    message: str = ""
    nodes: int = 0
    zones: int = 0
    racks: int = 0
    unlabelled: int = 0  # nodes with neither zone nor rack
    unknown: list[str] = []  # ends of links that are neither a node nor a device; the first of them


def check_topology(spec: NetworkTopologySpec) -> None:
    """Check what types can't say. Raises InvalidInput."""
    for name, items, most in (("devices", spec.devices, MOST_DEVICES), ("links", spec.links, MOST_DECLARED_LINKS)):
        if len(items) > most:
            raise InvalidInput(f"spec.{name}: at most {most}, not {len(items)}", field=f"spec.{name}")
    names = set[str]()
    for index, device in enumerate(spec.devices):
        at = f"spec.devices[{index}].name"
        if check_name(device.name, at) in names:
            raise InvalidInput(f"{at}: {device.name} is declared twice", field=at, hint="give each device its own name")
        names.add(device.name)
    pairs = set[frozenset[str]]()
    for index, link in enumerate(spec.links):
        at = f"spec.links[{index}]"
        ends = frozenset((check_name(link.source, f"{at}.source"), check_name(link.target, f"{at}.target")))
        if len(ends) == 1:
            raise InvalidInput(f"{at}: both ends are {link.source}", field=at, hint="name two nodes or devices")
        if ends in pairs:
            what = f"{link.source} and {link.target}"
            raise InvalidInput(
                f"{at}: {what} are linked twice", field=at, hint="declare a link once; it leads both ways"
            )
        pairs.add(ends)


NETWORK_TOPOLOGY = Kind(
    name="networktopology",
    plural="networktopologies",
    title="network topology",
    summary="What people say of the network between the nodes",
    scope="fabric",
    spec=NetworkTopologySpec,
    status=NetworkTopologyStatus,
    access=Access(readers="fabric", status_writer="topology"),
    admission=Admission(check=check_topology, only_name=FABRIC),
    display=Display(
        topic="Storage and networks",
        columns=(
            NAME,
            Column("STATUS", text("status.phase", "Ready"), keep=True),
            Column("NODES", text("status.nodes", "0"), align="right"),
            Column("ZONES", text("status.zones", "0"), align="right"),
            Column("RACKS", text("status.racks", "0"), align="right"),
            Column("DEVICES", lambda obj: str(len(dig(obj, "spec.devices") or [])), align="right"),
            Column("LINKS", lambda obj: str(len(dig(obj, "spec.links") or [])), align="right"),
            Column("PROBES", text("spec.bandwidth_probes", str(DEFAULT_PROBES)), align="right"),
            Column("MESSAGE", text("status.message", ""), flexible=True),
            AGE,
        ),
    ),
)
