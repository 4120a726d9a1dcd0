"""The rules of security groups, as people write them."""

from __future__ import annotations

import pytest

from weft.kinds.securitygroup import MOST_RULES, Rule, SecurityGroupSpec, check_security_group, read_rule
from weft.objects.errors import InvalidInput


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ("any", Rule("any")),
        ("icmp", Rule("icmp")),
        ("tcp", Rule("tcp")),
        ("tcp:80", Rule("tcp", 80, 80)),
        ("udp:8000-8100 from 10.0.0.0/8", Rule("udp", 8000, 8100, cidr="10.0.0.0/8")),
        ("tcp:22 from 203.0.113.7", Rule("tcp", 22, 22, cidr="203.0.113.7/32")),
        ("  tcp:5432   from group:web ", Rule("tcp", 5432, 5432, group="web")),
        ("any from group:self", Rule("any", group="self")),
    ],
)
def test_a_rule_says_protocol_ports_and_from_whom(written: str, rule: Rule) -> None:
    assert read_rule(written, "ingress", "spec.ingress[0]") == rule
    assert read_rule(written.replace(" from ", " to "), "egress", "spec.egress[0]") == rule


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "is not a rule"),
        ("80", "is not a rule"),
        ("sctp:80", "sctp is none of tcp, udp, icmp, any"),
        ("tcp:", "'' is not a port"),
        ("tcp:http", "'http' is not a port"),
        ("tcp:0", "ports go from 1 to 65535"),
        ("tcp:90-80", "the lower one first"),
        ("tcp:65536", "ports go from 1 to 65535"),
        ("icmp:8", "icmp has no ports"),
        ("tcp:80 to 10.0.0.0/8", "ingress rules say from, not to"),
        ("tcp:80 from 10.0.0.1/8", "host bits set"),
        ("tcp:80 from fd00::/8", "10.0"),
        ("tcp:80 from group:Web!", "Web!"),
        ("tcp:80 from web", "web"),
        ("tcp:80 from 10.0.0.0/8 and more", "is not a rule"),
    ],
)
def test_what_is_no_rule_is_refused_at_its_field_with_how_to_write_one(written: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_security_group(SecurityGroupSpec(ingress=["icmp", written]))
    assert caught.value.field == "spec.ingress[1]" and caught.value.hint
    assert said in caught.value.message + caught.value.hint


def test_too_many_rules_are_refused() -> None:
    check_security_group(SecurityGroupSpec(ingress=["tcp:1"] * (MOST_RULES - 1)))
    with pytest.raises(InvalidInput, match="65 rules are too many"):
        check_security_group(SecurityGroupSpec(ingress=["tcp:1"] * MOST_RULES))
