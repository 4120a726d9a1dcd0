"""Refuses values that can't become kernel state, before a byte of them reaches a batch or a file. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

from weft.contracts.driver.network import Allowed, Filter, Forward, Port, Segment, Service
from weft.drivers.network.bridge.names import LONGEST_LINK_NAME
from weft.objects.errors import InvalidInput

_ID = re.compile(r"[a-z0-9]{1,32}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_DEVICE = re.compile(r"[a-z][a-z0-9]{0,14}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_segment(segment: Segment, link_prefix: str) -> None:
    """Refuse a segment with a part the kernel or dnsmasq couldn't take; raises InvalidInput naming the field."""
    where = f"network {segment.name!r}"
    _check_id(where, "id", segment.id, link_prefix)
    cidr = _network(where, segment.cidr)
    if _address(where, "gateway", segment.gateway) not in cidr:
        raise _refuse(where, "gateway", segment.gateway, f"isn't inside {segment.cidr}")
    if not 1 <= segment.vni < 1 << 24:
        raise _refuse(where, "vni", segment.vni, "isn't between 1 and 16777215")
    if not 576 <= segment.mtu <= 65535:
        raise _refuse(where, "mtu", segment.mtu, "isn't between 576 and 65535 bytes")
    _check_label(where, "name", segment.name)
    for label in segment.domain.split("."):
        _check_label(where, "domain", label)
    for at, endpoint in enumerate(segment.endpoints):
        field = f"endpoints[{at}]"
        _check_mac(where, f"{field}.mac", endpoint.mac)
        for label in endpoint.name.split(".") if endpoint.name else ():
            _check_label(where, f"{field}.name", label)
        _address(where, f"{field}.node_address", endpoint.node_address)
        if _address(where, f"{field}.address", endpoint.address) not in cidr:
            raise _refuse(where, f"{field}.address", endpoint.address, f"isn't inside {segment.cidr}")
    _check_rules(where, segment.open)
    for at, service in enumerate(segment.services):
        _check_service(where, f"services[{at}]", service, cidr)
    for at, alias in enumerate(segment.aliases):
        _address(where, f"aliases[{at}].address", alias.address)
        for label in alias.name.split("."):
            _check_label(where, f"aliases[{at}].name", label)


def check_port(port: Port, link_prefix: str) -> None:
    """Refuse a port with a part the kernel or dnsmasq couldn't take; raises InvalidInput naming the field."""
    where = f"port {port.id!r}"
    _check_id(where, "id", port.id, link_prefix)
    _check_id(where, "segment_id", port.segment_id, link_prefix)
    _check_mac(where, "mac", port.mac)
    _address(where, "address", port.address)
    for label in port.hostname.split("."):
        _check_label(where, "hostname", label)
    if port.inside is not None:
        _check_id(where, "inside.guest", port.inside.guest, link_prefix)
        if not _DEVICE.fullmatch(port.inside.device) or port.inside.device == "lo":
            raise _refuse(where, "inside.device", port.inside.device, "isn't a name for an interface, like eth0")


def check_forwards(forwards: list[Forward], link_prefix: str) -> None:
    """Refuse a list of published ports that contradicts itself; raises InvalidInput naming the field."""
    taken: set[tuple[str, int]] = set()
    for forward in forwards:
        where = f"published port {forward.port}/{forward.protocol}"
        _check_id(where, "segment_id", forward.segment_id, link_prefix)
        _address(where, "target_address", forward.target_address)
        for address in [share.address for share in forward.nodes] or [forward.node_address]:
            if address or not forward.is_service:
                _address(where, "node_address", address)
        if forward.protocol not in ("tcp", "udp"):
            raise _refuse(where, "protocol", forward.protocol, "must be tcp or udp")
        for field, number in (("port", forward.port), ("target_port", forward.target_port)):
            if not 1 <= number <= 65535:
                raise _refuse(where, field, number, "isn't between 1 and 65535")
        if (forward.protocol, forward.port) in taken:
            raise _refuse(where, "port", forward.port, "is published twice")
        taken.add((forward.protocol, forward.port))


def _check_service(where: str, field: str, service: Service, cidr: IPv4Network) -> None:
    for name, address in [("address", service.address), *(("targets.address", one.address) for one in service.targets)]:
        if _address(where, f"{field}.{name}", address) not in cidr:
            raise _refuse(where, f"{field}.{name}", address, f"isn't inside {cidr}")
    for name in service.names:
        for label in name.split("."):
            _check_label(where, f"{field}.names", label)
    for port in service.ports:
        if port.protocol not in ("tcp", "udp"):
            raise _refuse(where, f"{field}.ports.protocol", port.protocol, "must be tcp or udp")
        for number in (port.port, port.target_port):
            if not 1 <= number <= 65535:
                raise _refuse(where, f"{field}.ports", number, "isn't between 1 and 65535")
    if any(target.weight < 0 for target in service.targets):
        raise _refuse(where, f"{field}.targets.weight", -1, "is less than 0")


def check_filters(filters: list[Filter], link_prefix: str) -> None:
    """Refuse filters with a part that nft couldn't take; raises InvalidInput naming the field."""
    for filter_ in filters:
        where = f"filter of port {filter_.port_id!r}"
        _check_id(where, "port_id", filter_.port_id, link_prefix)
        _check_id(where, "segment_id", filter_.segment_id, link_prefix)
        _address(where, "address", filter_.address)
        _address(where, "gateway", filter_.gateway)
        for address in filter_.services:
            _address(where, "services", address)
        _check_rules(where, (*filter_.ingress, *filter_.egress))


def check_ranges(cidrs: list[str]) -> None:
    """Refuse values that aren't IPv4 address ranges; raises InvalidInput."""
    for cidr in cidrs:
        try:
            IPv4Network(cidr)
        except ValueError as problem:
            raise _refuse("ranges", "cidr", cidr, f"isn't an IPv4 network: {problem}") from None


def _check_rules(where: str, rules: Iterable[Allowed]) -> None:
    for rule in rules:
        if not 0 <= rule.first_port <= rule.last_port <= 65535:
            raise _refuse(where, "ports", f"{rule.first_port}-{rule.last_port}", "is not a range of ports")
        if rule.protocol not in ("tcp", "udp", "icmp", "any"):
            raise _refuse(where, "protocol", rule.protocol, "must be tcp, udp, icmp or any")
        check_ranges(list(rule.ranges or ()))


def _check_id(where: str, field: str, value: str, link_prefix: str) -> None:
    if not _ID.fullmatch(value):
        raise _refuse(where, field, value, "isn't a short id of lower-case letters and digits")
    longest = LONGEST_LINK_NAME - len(link_prefix) - 1
    if len(value) > longest:
        raise _refuse(where, field, value, f"is longer than the {longest} characters that fit in a link's name")


def _check_mac(where: str, field: str, value: str) -> None:
    if not _MAC.fullmatch(value):
        raise _refuse(where, field, value, "isn't a lower-case unicast MAC like 52:54:00:12:34:56")


def _check_label(where: str, field: str, value: str) -> None:
    if not _LABEL.fullmatch(value):
        raise _refuse(where, field, value, "isn't a DNS label")


def _address(where: str, field: str, value: str) -> IPv4Address:
    try:
        address = ip_address(value)
    except ValueError:
        raise _refuse(where, field, value, "isn't an address") from None
    if not isinstance(address, IPv4Address):
        raise _refuse(where, field, value, "isn't an IPv4 address")
    return address


def _network(where: str, value: str) -> IPv4Network:
    try:
        network = ip_network(value)
    except ValueError as problem:
        raise _refuse(where, "cidr", value, f"isn't a network: {problem}") from None
    if not isinstance(network, IPv4Network) or not 1 <= network.prefixlen <= 30:
        raise _refuse(where, "cidr", value, "isn't an IPv4 network of /30 or larger")
    if network.overlaps(IPv4Network("169.254.0.0/16")) or network.overlaps(IPv4Network("127.0.0.0/8")):
        raise _refuse(where, "cidr", value, "overlaps 127.0.0.0/8 or 169.254.0.0/16, which nodes use themselves")
    return network


def _refuse(where: str, field: str, value: object, fact: str) -> InvalidInput:
    return InvalidInput(f"{where}: {field} {value!r} {fact}", field=field)
