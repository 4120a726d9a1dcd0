"""What an IP address is by itself: which IPv4 address an IPv6 one leads to, and whether it is anybody's on the internet. Pure."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Ranges whose last 32 bits are the IPv4 address: NAT64 (RFC 6052), IPv4-translated (RFC 2765), IPv4-compatible (RFC 4291).
_EMBEDDING = [ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")]
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # of a site's own (RFC 8215): who knows where it leads


def find_embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _EMBEDDING) and int(address) > 1:  # :: and ::1 are addresses of their own
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def is_link_local(address: Address) -> bool:
    """Whether it is on the machine's own links, also in the range for sites that RFC 3879 ended."""
    return address.is_link_local or (isinstance(address, ipaddress.IPv6Address) and address.is_site_local)


def is_public(address: Address) -> bool:
    """Whether it is anybody's on the internet, as far as the address says."""
    return address.is_global and address not in _LOCAL_NAT64
