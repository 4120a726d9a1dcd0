"""A node's address in a network, for functions, is said where it is while it may be needed, and taken away after that only."""

from __future__ import annotations

import msgspec
import pytest

from weft.contracts.store import Delete, Put, Write
from weft.controllers.network.addresses import Addresses
from weft.informer.view import View, make_view
from weft.kinds.endpoint import EndpointSpec, EndpointStatus
from weft.kinds.function import FunctionSpec
from weft.kinds.function_version import FunctionVersionSpec
from weft.kinds.network import NetworkSpec
from weft.kinds.node import NodeReport, NodeSpec
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope
from weft.objects.identity import Ref


def encode(value: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


NODE = Envelope(
    kind="node", name="n1", uid="n-uid", spec=encode(NodeSpec()),
    report=encode(NodeReport(address="10.99.0.1", egress_endpoints=["blue-uid"])),
)  # fmt: skip
BLUE = Envelope(kind="network", name="blue", uid="blue-uid", project="p", spec=encode(NetworkSpec(cidr="10.20.0.0/24")))
FUNCTION = Envelope(
    kind="function", name="f", uid="f-uid", project="p", spec=encode(FunctionSpec(code="a" * 64, network="blue"))
)
VERSION = Envelope(
    kind="functionversion", name="f-1", uid="f1-uid", project="p",
    spec=encode(FunctionVersionSpec(function="f", number=1, code="a" * 64, network="blue")),
)  # fmt: skip
EGRESS_ENDPOINT = Envelope(
    kind="endpoint", name="blue-uid.10.20.0.254", uid="e-uid", owner=NODE.ref,
    spec=encode(EndpointSpec(
        workload=Ref("node", "n1", "n-uid"), network="blue", network_uid="blue-uid", index=0, mac="52:57:0a:14:00:fe",
        address="10.20.0.254",
    )),
    status=encode(EndpointStatus(node="n1", node_address="10.99.0.1")),
)  # fmt: skip


def fill(*envelopes: Envelope) -> View:
    view = make_view()
    for envelope in envelopes:
        view.put(envelope.key, encode_envelope(envelope), 1)
    return view


def plan(*envelopes: Envelope) -> list[Write]:
    commits = Addresses().plan(fill(*envelopes), [EGRESS_ENDPOINT.key], 0.0).commits
    return [write for commit in commits for write in commit.writes]


def told(*networks: str, address: str = "10.99.0.1") -> Envelope:
    report = NodeReport(address=address, egress_endpoints=list(networks))
    return msgspec.structs.replace(NODE, report=encode(report))


def test_it_stays_while_a_function_or_a_version_names_its_network_or_the_node_stands_there() -> None:
    assert plan(NODE, BLUE, FUNCTION, EGRESS_ENDPOINT) == []
    assert plan(told(), BLUE, FUNCTION, EGRESS_ENDPOINT) == []
    assert plan(told(), BLUE, VERSION, EGRESS_ENDPOINT) == []
    assert plan(told("blue-uid"), BLUE, EGRESS_ENDPOINT) == []


@pytest.mark.parametrize(
    "left",
    [
        (told(), BLUE),
        (BLUE, FUNCTION),
        (NODE, FUNCTION),
        (msgspec.structs.replace(NODE, uid="another"), BLUE, FUNCTION),
    ],
    ids=["nobody needs it", "no node", "no network", "another node of that name"],
)
def test_it_goes_when_nothing_can_need_it(left: tuple[Envelope, ...]) -> None:
    assert [(type(write), write.key) for write in plan(*left, EGRESS_ENDPOINT)] == [(Delete, EGRESS_ENDPOINT.key)]


def test_it_says_where_its_node_is_now() -> None:
    (write,) = plan(told("blue-uid", address="10.99.0.9"), BLUE, FUNCTION, EGRESS_ENDPOINT)
    assert isinstance(write, Put)
    assert decode_part(decode_envelope(write.value).status, EndpointStatus).node_address == "10.99.0.9"


def test_guests_endpoints_are_left_alone() -> None:
    spec = EndpointSpec(
        workload=Ref("vm", "n1", "n-uid", "p"), network="blue", network_uid="blue-uid", index=0,
        mac="52:57:0a:14:00:fe", address="10.20.0.254",
    )  # fmt: skip
    assert plan(msgspec.structs.replace(EGRESS_ENDPOINT, spec=encode(spec))) == []


@pytest.mark.parametrize("gone", [NODE, BLUE, FUNCTION, VERSION], ids=lambda envelope: envelope.kind)
def test_whatever_goes_has_it_looked_at(gone: Envelope) -> None:
    view = fill(NODE, BLUE, FUNCTION, VERSION, EGRESS_ENDPOINT)
    change = view.drop(gone.key)
    assert change is not None
    assert list(Addresses().route(view, change)) == [EGRESS_ENDPOINT.key]
