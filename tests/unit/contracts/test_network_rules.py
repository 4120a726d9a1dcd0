"""What security groups, services and a gateway let through, as every driver has to do it."""

from __future__ import annotations

import msgspec

from weft.contracts.driver.network import Allowed, Endpoint, Filter
from weft.contracts.network.rules import NewFlow, find_group, is_allowed, may_open
from weft.kinds.allocation import AllocatedGroup, AllocatedRule

FLOW = NewFlow("tcp", "10.20.0.11", "10.20.0.12", 40000, 443)
CLIENT = Endpoint("02:00:00:00:00:02", FLOW.source, "client", "192.0.2.1", groups=("front",))
NOTHING = Filter("p", "seg", "10.20.0.11", "10.20.0.1", (), (), services=("10.20.0.100",))


def group(name: str, *rules: AllocatedRule) -> AllocatedGroup:
    return AllocatedGroup(name=name, uid=name, ingress=list(rules))


def test_an_open_connection_to_a_service_is_not_revoked_by_rules_about_its_targets() -> None:
    flows = [NewFlow("tcp", "10.20.0.11", target, 4000, 80) for target in ("10.20.0.100", "10.20.0.12")]
    filters = {NOTHING.address: NOTHING}
    assert [may_open(flow, filters) for flow in flows] == [True, False]
    closed = {NOTHING.address: msgspec.structs.replace(NOTHING, closed=True)}
    assert not any(may_open(flow, closed) for flow in flows)


def test_the_gateway_opens_to_a_port_without_rules_but_not_to_one_whose_lease_has_not_begun() -> None:
    flow = NewFlow("tcp", NOTHING.gateway, NOTHING.address, 4000, 22)
    assert may_open(flow, {NOTHING.address: NOTHING})
    assert not may_open(flow, {NOTHING.address: msgspec.structs.replace(NOTHING, closed=True)})


def test_names_are_looked_up_at_the_gateway_whatever_the_rules_say_and_nowhere_else() -> None:
    for target, expected in (("10.20.0.1", True), ("1.1.1.1", False)):
        assert may_open(NewFlow("udp", NOTHING.address, target, 4000, 53), {NOTHING.address: NOTHING}) is expected


def test_a_range_is_allowed_as_a_whole_or_not() -> None:
    rules = [Allowed("any", 0, 65535, ("10.20.0.0/24",))]
    assert is_allowed(rules, FLOW, "10.20.0.128/25") and not is_allowed(rules, FLOW, "10.20.0.0/23")


def test_the_first_group_with_a_rule_for_a_flow_is_named() -> None:
    other = group("other", AllocatedRule(protocol="tcp", first_port=80, last_port=80))
    members = group("members", AllocatedRule(protocol="any", group_uid="front"))
    ranges = group("ranges", AllocatedRule(protocol="tcp", first_port=443, last_port=443, cidr="10.20.0.0/24"))
    groups = [other, members, ranges]
    assert find_group(groups, FLOW, FLOW.source, [CLIENT], out=False) == "members"
    assert find_group(groups, FLOW, FLOW.source, [], out=False) == "ranges"
    assert find_group([other], FLOW, FLOW.source, [CLIENT], out=False) == ""
    assert find_group([ranges], FLOW, "192.0.2.9", [], out=False) == ""
    assert find_group([members], FLOW, FLOW.target, [CLIENT], out=True) == ""  # it has no rules for what goes out
