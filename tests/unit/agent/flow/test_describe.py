"""Which flows are a workload's, which security group decided, and what nobody is shown of others."""

from __future__ import annotations

import msgspec

from weft.agent.flow.describe import judge, match
from weft.contracts.driver.network import SeenFlow
from weft.kinds.parts.stream_verbs import FlowsInput, PortRange

FLOW = SeenFlow("seg", 7, "tcp", "10.0.0.2", "10.0.0.3", 40000, 443, 3, 300, 2, 200)


def test_protocol_and_ports_of_either_end_choose_flows() -> None:
    assert match(FLOW, FlowsInput()) and match(FLOW, FlowsInput("tcp", [PortRange(443, 443)]))
    assert match(FLOW, FlowsInput(ports=[PortRange(1, 2), PortRange(39999, 40001)]))
    assert not match(FLOW, FlowsInput("udp")) and not match(FLOW, FlowsInput(ports=[PortRange(80, 442)]))


def test_what_the_workload_sent_without_an_answer_is_not_called_allowed() -> None:
    alone = msgspec.structs.replace(FLOW, received_packets=0, received_bytes=0)
    assert judge(alone, out=True) == "unanswered" and judge(FLOW, out=True) == "allowed"
    assert judge(alone, out=False) == "allowed"  # it arrived
    assert judge(msgspec.structs.replace(alone, refused_by="p"), out=True) == "refused"
