"""The driver's names for its links, tables and namespaces in the kernel, and how it finds them again. Pure.

A link is ``<prefix><kind letter><short id>``: nothing is remembered but what the name and the alias hold.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from weft.contracts.driver.network import Inside, Port

LONGEST_LINK_NAME = 15

# One MAC for every router of every segment on every node: segments never meet, and a guest that migrates keeps its
# gateway. Locally administered, outside the range guests get.
GATEWAY_MAC = "02:77:65:66:74:01"

# The two legs of a router, inside its own namespace.
INSIDE = "lan0"
OUTSIDE = "wan0"


class Names:
    """The names of one node's things; ``prefix`` is the host's ``link_prefix``."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def bridge(self, segment_id: str) -> str:
        return f"{self.prefix}b{segment_id}"

    def overlay(self, segment_id: str) -> str:
        """The VXLAN device."""
        return f"{self.prefix}x{segment_id}"

    def gateway(self, segment_id: str) -> str:
        """The bridge's end of the router's inner leg."""
        return f"{self.prefix}r{segment_id}"

    def uplink(self, segment_id: str) -> str:
        """The node's end of the router's outer leg."""
        return f"{self.prefix}u{segment_id}"

    def router(self, segment_id: str) -> str:
        """The router's network namespace."""
        return f"{self.prefix}n{segment_id}"

    def tap(self, port_id: str) -> str:
        return f"{self.prefix}t{port_id}"

    def guest(self, guest_id: str) -> str:
        """The network namespace of a guest that is a container."""
        return f"{self.prefix}g{guest_id}"

    def any_of(self, letter: str) -> str:
        """The nft pattern for every link of a kind."""
        return f'"{self.prefix}{letter}*"'

    def id_in(self, link: str, letter: str) -> str | None:
        """The short id in a link's name if it is one of ours and of that kind."""
        start = self.prefix + letter
        return link[len(start) :] if link.startswith(start) and len(link) > len(start) else None

    def migrated_table(self, segment_id: str) -> str:
        return f"weft_{self.prefix}_moved_{segment_id}"

    @property
    def node_table(self) -> str:
        return f"weft_{self.prefix}_node"

    @property
    def forwards_table(self) -> str:
        return f"weft_{self.prefix}_ports"

    @property
    def refused_table(self) -> str:
        return f"weft_{self.prefix}_refused"

    @property
    def filters_table(self) -> str:
        return f"weft_{self.prefix}_filters"

    @property
    def bridge_table(self) -> str:
        return f"weft_{self.prefix}_taps"


def router_mac(node_address: str) -> str:
    """The MAC under which another node's routers are reached through the overlay: for guests that have migrated."""
    return "02:77:" + ":".join(f"{byte:02x}" for byte in IPv4Address(node_address).packed)


def segment_alias(segment_id: str) -> str:
    return f"weft segment {segment_id}"


def port_alias(port: Port) -> str:
    """All of a port, kept on its tap, so that a driver that finds the tap knows the port."""
    words = ["weft", "port", port.segment_id, port.mac, port.address, port.hostname]
    if not port.main:
        words.append("side")
    if port.inside is not None:
        words.append(f"inside:{port.inside.guest}:{port.inside.device}")
        words += [word for word, holds in (("shared", port.inside.shared), ("users", port.inside.own_users)) if holds]
    return " ".join(words)


def port_from_alias(port_id: str, alias: str) -> Port | None:
    """The port of a tap's alias; None if it isn't one of ours."""
    words = alias.split(" ")
    if len(words) < 6 or words[:2] != ["weft", "port"]:
        return None
    inside = None
    for word in words[6:]:
        if word.startswith("inside:"):
            _, guest, device = word.split(":")
            inside = Inside(guest, device, shared="shared" in words[6:], own_users="users" in words[6:])
    return Port(port_id, words[2], words[3], words[4], words[5], main="side" not in words[6:], inside=inside)
