"""Addresses that are anybody's, beside IANA's registries of special-purpose addresses for IPv4 and IPv6."""

import ipaddress

from weft.contracts.confinement.public_address import is_public

SPECIAL = (
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/29 192.0.0.8 192.0.0.170 192.0.2.0/24 "
    "192.88.99.2 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3 ::/96 ::ffff:0:0/96 64:ff9b:1::/48 "
    "100::/64 100:0:0:1::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 4000::/3"
)
PUBLIC = (
    "1.1.1.1 192.0.0.9 192.0.0.10 192.0.1.1 192.31.196.1 192.175.48.1 2001:200::1 2606:4700::1 2620:4f:8000::1 3ffe::1"
)


def test_no_special_address_is_public_and_the_others_are() -> None:
    ends = [end for text in SPECIAL.split() for net in [ipaddress.ip_network(text)] for end in (net[0], net[-1])]
    assert [str(one) for one in ends if is_public(one)] == []
    assert [text for text in PUBLIC.split() if not is_public(ipaddress.ip_address(text))] == []
