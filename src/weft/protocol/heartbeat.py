"""Contents of a node's heartbeat: the usage of its guests, and the ports that its own programs hold. It is attached to the node's
lease and never stored. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from weft.contracts.store import MAX_DIGEST_BYTES

LEASE_PREFIX = "node/"  # before the node's uid
LEASE_SECONDS = 30.0
MOST_GUESTS = 800  # listed one by one in a digest
MOST_COUNTED = 250  # workloads whose disks and NICs are in a digest
MOST_DISKS, MOST_NICS = 18, 8  # of a workload
MOST_PATHS = 16
DEAD_LOSS = 0.9  # share of packets on a path that get lost: with more, the peer doesn't answer
MOST_TALKERS = 16  # peers of a workload
MOST_TALKERS_BYTES = 16_000
MOST_REQUESTED = 400  # endpoints of services whose requests are counted
ANSWERS = ("1xx", "2xx", "3xx", "4xx", "5xx", "none")  # classes of answers; none: no answer came
_SPARE_BYTES = 1000  # of a digest
# In ``Digest.node``, in unix seconds: the node's clock when it was sent, and the end of its certificate.
CLOCK, CERTIFICATE_END = "clock", "certificate.end"
MOST_PORTS = 500  # of each protocol, the lowest: well-known ports are low, a busy machine's short-lived ones are high


class Use(msgspec.Struct, frozen=True, array_like=True):
    cpu: int = 0  # thousandths of a core, smoothed
    memory: int = 0  # bytes in the node's RAM
    disk: int = 0  # bytes that the files of its disks take up
    settled: bool = True  # measured for long enough to rely on


class Instances(msgspec.Struct, frozen=True, array_like=True):
    """Counts of functions' instances. They use what allocations leave free, so placement ignores them."""

    busy: int = 0
    idle: int = 0
    ready: int = 0  # ahead of demand
    memory: int = 0  # bytes that the node counts for them all


class HeldPorts(msgspec.Struct, frozen=True, array_like=True):
    """Ports that the node's own programs listen on, sorted, without published ports."""

    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()


class DeviceCounts(msgspec.Struct, frozen=True, array_like=True):
    """Counts of a workload's run here so far. ``disks`` by name ("": all of them together): bytes read, bytes written, reads,
    writes, seconds of all reads, of all writes. ``nics`` in the order of its networks, as ``NicCounts``. -1: unknown."""

    disks: dict[str, list[float]] = {}
    nics: list[list[Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]]] = []


class RequestCounts(msgspec.Struct, frozen=True, array_like=True):
    """Answers of an endpoint of a service to the node's proxy."""

    answers: list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]] = []  # as in ANSWERS
    seconds: float = -1.0  # mean time until an answer, of a moment ago; -1: there were none


class PathFigures(msgspec.Struct, frozen=True, array_like=True):
    """Measurements by a node of its path to a peer. Ages in seconds, of when the heartbeat was made; -1: unknown."""

    latency_ms: float = -1.0  # round trip
    latency_age: float = -1.0
    bandwidth_mbps: float = -1.0  # to the peer
    bandwidth_age: float = -1.0
    at_least: bool = False  # the bandwidth may be greater: the node couldn't send faster
    loss: float = -1.0  # share of packets that got no answer, 0 to 1


class LinkLoad(msgspec.Struct, frozen=True, array_like=True):
    """Load of the node's own link to the others, in Mbit/s; -1: unknown."""

    received_mbps: float = -1.0
    sent_mbps: float = -1.0
    speed_mbps: float = -1.0  # as the driver says


class Digest(msgspec.Struct, frozen=True, omit_defaults=True):
    guests: dict[str, Use] = {}  # of the node's allocations, by the workload's uid
    other: Use = Use()  # the rest that weft keeps there: cached images, guests that no allocation explains
    instances: Instances = Instances()  # in neither of the two
    held: HeldPorts = HeldPorts()
    measured: bool = True  # False: the usage is unknown
    devices: dict[str, DeviceCounts] = {}  # by the workload's uid, of MOST_COUNTED at most
    node: dict[str, float] = {}  # what the kernel counts of the whole node, by name
    paths: dict[str, PathFigures] = {}  # by the peer's uid, of MOST_PATHS at most
    link: LinkLoad = LinkLoad()
    # By the workload's uid: names of its peers' Endpoints, and what it exchanges with each, in bytes a second, the greatest first.
    talkers: dict[str, list[tuple[str, float]]] = {}
    # By the service's uid, and by address, of MOST_REQUESTED at most: what the node's proxies have counted so far.
    requests: dict[str, dict[str, RequestCounts]] = {}
    stamp: Annotated[str, msgspec.Meta(max_length=100)] = (
        ""  # when it was made, by the node: ``write_stamp``; "": it guards nothing
    )


def add_up(uses: Iterable[Use]) -> Use:
    """The sum, settled if all of them are."""
    cpu = memory = disk = 0
    settled = True
    for use in uses:
        cpu, memory, disk = cpu + use.cpu, memory + use.memory, disk + use.disk
        settled = settled and use.settled
    return Use(cpu, memory, disk, settled)


def total(digest: Digest) -> Use:
    """The usage of all of a node's guests and of the rest."""
    return add_up((*digest.guests.values(), digest.other))


def make_digest(guests: Mapping[str, Use], other: Use) -> Digest:
    """Lists the MOST_GUESTS guests that use most, and adds the rest to ``other``."""
    if len(guests) <= MOST_GUESTS:
        return Digest(dict(guests), other)
    ranked = sorted(guests, key=lambda uid: (-guests[uid].cpu, -guests[uid].memory, uid))
    listed, rest = ranked[:MOST_GUESTS], ranked[MOST_GUESTS:]
    return Digest({uid: guests[uid] for uid in listed}, add_up((other, *(guests[uid] for uid in rest))))


def add_talkers(digest: Digest, rates: Mapping[str, Mapping[tuple[str, str], float]]) -> Digest:
    """``digest`` with as many of ``rates`` (by workload uid, and by network uid and address) as fit, the greatest first."""
    left = min(MOST_TALKERS_BYTES, (MAX_DIGEST_BYTES - _SPARE_BYTES - len(write_digest(digest))) // 2)
    every = [(rate, uid, f"{peer[0]}.{peer[1]}") for uid, peers in rates.items() for peer, rate in peers.items()]
    talkers: dict[str, list[tuple[str, float]]] = {}
    for rate, uid, endpoint in sorted(every, reverse=True):
        left -= len(endpoint) + 12 + (0 if uid in talkers else len(uid) + 6)
        if left < 0:
            break
        talkers.setdefault(uid, []).append((endpoint, float(f"{rate:.3g}")))
    return msgspec.structs.replace(digest, talkers=talkers)


def add_devices(digest: Digest, devices: Mapping[str, DeviceCounts]) -> Digest:
    """``digest`` with as many of ``devices`` as fit beside what placement needs."""
    left = MAX_DIGEST_BYTES - _SPARE_BYTES - len(write_digest(digest))
    fitting: dict[str, DeviceCounts] = {}
    for uid, counts in devices.items():
        left -= len(msgspec.msgpack.encode((uid, counts)))
        if left < 0:
            break
        fitting[uid] = counts
    return msgspec.structs.replace(digest, devices=fitting)


def add_requests(digest: Digest, requests: Mapping[str, Mapping[str, RequestCounts]]) -> Digest:
    """``digest`` with as many of ``requests`` as fit, the services in order."""
    left = MAX_DIGEST_BYTES - _SPARE_BYTES - len(write_digest(digest))
    fitting: dict[str, dict[str, RequestCounts]] = {}
    every = [(uid, address, counts) for uid in sorted(requests) for address, counts in requests[uid].items()]
    for uid, address, counts in every[:MOST_REQUESTED]:
        left -= len(msgspec.msgpack.encode((uid, address, counts)))
        if left < 0:
            break
        fitting.setdefault(uid, {})[address] = counts
    return msgspec.structs.replace(digest, requests=fitting)


def make_held(ports: Iterable[tuple[str, int]]) -> HeldPorts:
    """The lowest MOST_PORTS of each protocol, from pairs of protocol and port."""
    known = set(ports)
    tcp, udp = (sorted(port for of, port in known if of == protocol)[:MOST_PORTS] for protocol in ("tcp", "udp"))
    return HeldPorts(tuple(tcp), tuple(udp))


def write_digest(digest: Digest) -> bytes:
    return msgspec.msgpack.encode(digest)


def read_digest(written: bytes) -> Digest | None:
    """None if the digest is empty (the agent can't measure, or is older) or can't be decoded."""
    if not written:
        return None
    try:
        return msgspec.msgpack.decode(written, type=Digest)
    except msgspec.MsgspecError:
        return None
