"""Which flows are a workload's, which security group decided, and what nobody is shown of others."""

from __future__ import annotations

import msgspec

from weft.agent.flow.describe import find_group, judge, match
from weft.contracts.driver.network import Endpoint, SeenFlow
from weft.kinds.allocation import AllocatedGroup, AllocatedRule
from weft.kinds.parts.stream_verbs import FlowsInput, PortRange

FLOW = SeenFlow("seg", 7, "tcp", "10.0.0.2", "10.0.0.3", 40000, 443, 3, 300, 2, 200)
CLIENT = Endpoint("02:00:00:00:00:02", "10.0.0.2", "client", "192.0.2.1", groups=("front",))


def group(name: str, *rules: AllocatedRule) -> AllocatedGroup:
    return AllocatedGroup(name=name, uid=name, ingress=list(rules))


def test_protocol_and_ports_of_either_end_choose_flows() -> None:
    assert match(FLOW, FlowsInput()) and match(FLOW, FlowsInput("tcp", [PortRange(443, 443)]))
    assert match(FLOW, FlowsInput(ports=[PortRange(1, 2), PortRange(39999, 40001)]))
    assert not match(FLOW, FlowsInput("udp")) and not match(FLOW, FlowsInput(ports=[PortRange(80, 442)]))


def test_what_the_workload_sent_without_an_answer_is_not_called_allowed() -> None:
    alone = msgspec.structs.replace(FLOW, received_packets=0, received_bytes=0)
    assert judge(alone, out=True) == "unanswered" and judge(FLOW, out=True) == "allowed"
    assert judge(alone, out=False) == "allowed"  # it arrived
    assert judge(msgspec.structs.replace(alone, refused_by="p"), out=True) == "refused"


def test_the_first_group_with_a_rule_for_a_flow_is_named() -> None:
    other = group("other", AllocatedRule(protocol="tcp", first_port=80, last_port=80))
    members = group("members", AllocatedRule(protocol="any", group_uid="front"))
    ranges = group("ranges", AllocatedRule(protocol="tcp", first_port=443, last_port=443, cidr="10.0.0.0/24"))
    assert find_group([other, members, ranges], FLOW, FLOW.source, CLIENT, out=False) == "members"
    assert find_group([other, members, ranges], FLOW, FLOW.source, None, out=False) == "ranges"
    assert find_group([other], FLOW, FLOW.source, CLIENT, out=False) == ""
    elsewhere = msgspec.structs.replace(FLOW, source="192.0.2.9")
    assert find_group([ranges], elsewhere, elsewhere.source, None, out=False) == ""
    assert find_group([members], FLOW, FLOW.destination, CLIENT, out=True) == ""  # it has no rules for what goes out
