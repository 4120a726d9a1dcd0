"""What a node says with each sign of life: how much its guests really use, and which ports its own programs hold. It rides the
node's lease and is never stored.

Keys are uids of workloads. ``cpu`` is in thousandths of a core, smoothed; ``memory`` is what lies in the node's RAM and
``disk`` what the files of its disks take up, both in bytes. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

LEASE_PREFIX = "node/"  # and the node's uid
LEASE_SECONDS = 30.0
MOST_GUESTS = 800  # told of one by one: so many fit into a digest
MOST_PORTS = (
    500  # of either protocol, the lowest: well-known ones are there, and a busy machine's short-lived ones are high
)


class Use(msgspec.Struct, frozen=True, array_like=True):
    """``settled``: measured for long enough to go by."""

    cpu: int = 0
    memory: int = 0
    disk: int = 0
    settled: bool = True


class Instances(msgspec.Struct, frozen=True, array_like=True):
    """How many instances of functions there are: at work, idle, ready ahead of demand; and the bytes of memory that the node
    counts for them. They live in what allocations leave, so placement doesn't go by them."""

    busy: int = 0
    idle: int = 0
    ready: int = 0
    memory: int = 0


class HeldPorts(msgspec.Struct, frozen=True, array_like=True):
    """Those that programs of the node itself listen on, in order, but for what is published there."""

    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()


class Digest(msgspec.Struct, frozen=True, omit_defaults=True):
    """``guests`` of this node's allocations, by workload; ``other`` is what else weft keeps there: cached images, guests that
    nothing explains. ``instances`` of functions are in neither. Not ``measured``: the usage there is unknown."""

    guests: dict[str, Use] = {}
    other: Use = Use()
    instances: Instances = Instances()
    held: HeldPorts = HeldPorts()
    measured: bool = True


def add_up(uses: Iterable[Use]) -> Use:
    """The sum; settled if all are."""
    cpu = memory = disk = 0
    settled = True
    for use in uses:
        cpu, memory, disk = cpu + use.cpu, memory + use.memory, disk + use.disk
        settled = settled and use.settled
    return Use(cpu, memory, disk, settled)


def total(digest: Digest) -> Use:
    """What all of a node's guests use, and what else there is."""
    return add_up((*digest.guests.values(), digest.other))


def make_digest(guests: Mapping[str, Use], other: Use) -> Digest:
    """Of more than MOST_GUESTS those that use most are told one by one, and the rest with ``other``."""
    if len(guests) <= MOST_GUESTS:
        return Digest(dict(guests), other)
    ranked = sorted(guests, key=lambda uid: (-guests[uid].cpu, -guests[uid].memory, uid))
    told, rest = ranked[:MOST_GUESTS], ranked[MOST_GUESTS:]
    return Digest({uid: guests[uid] for uid in told}, add_up((other, *(guests[uid] for uid in rest))))


def make_held(ports: Iterable[tuple[str, int]]) -> HeldPorts:
    """Of (protocol, port) as many as are told."""
    known = set(ports)
    tcp, udp = (sorted(port for of, port in known if of == protocol)[:MOST_PORTS] for protocol in ("tcp", "udp"))
    return HeldPorts(tuple(tcp), tuple(udp))


def write_digest(digest: Digest) -> bytes:
    return msgspec.msgpack.encode(digest)


def read_digest(written: bytes) -> Digest | None:
    """None where nothing was said: by an agent that can't measure, or is older; or what isn't understood."""
    if not written:
        return None
    try:
        return msgspec.msgpack.decode(written, type=Digest)
    except msgspec.MsgspecError:
        return None
