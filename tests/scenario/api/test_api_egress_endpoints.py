"""A node asks for its address in a network that a function names: one, the same each time; only then it sees the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, JoinedNode

from weft.client.answer import raise_problem
from weft.kinds.endpoint import EndpointSpec, Served
from weft.kinds.function import FunctionSpec
from weft.kinds.network import NetworkSpec, NetworkStatus
from weft.objects.envelope import Envelope
from weft.objects.errors import Forbidden, NotFound, Unavailable
from weft.objects.identity import Ref


def encode(value: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def make_network(name: str, cidr: str, vni: int = 4711, project: str = "default") -> Envelope:
    status = NetworkStatus(phase="Ready", vni=vni, gateway=cidr.replace("0/", "1/").partition("/")[0], size=5)
    return Envelope(
        kind="network", name=name, uid=f"{name}-uid", project=project, spec=encode(NetworkSpec(cidr=cidr)),
        status=encode(status),
    )  # fmt: skip


def make_function(network: str | None, project: str = "default") -> Envelope:
    spec = FunctionSpec(code="a" * 64, handler="app.handler", runtime="python3.11", network=network)
    return Envelope(kind="function", name="f", uid="f-uid", project=project, spec=encode(spec))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.put(make_network("blue", "10.20.0.0/29"), make_network("red", "10.30.0.0/24", 4712), make_function("blue"))
    yield lab
    lab.close()


def ask(node: JoinedNode, network: str = "blue-uid", project: str = "default", name: str = "") -> dict[str, Any]:
    body = {"project": project, "network": network}
    answer = node.client.http.request("POST", f"/v1/nodes/{name or node.name}:egress", body)
    raise_problem(answer)
    return dict(answer.json())


def test_a_node_gets_the_highest_free_address_and_the_same_one_again(lab: ApiLab) -> None:
    first, second = lab.join("n1"), lab.join("n2")
    first.report(node={"address": "10.99.0.1"})
    nic = ask(first)
    assert (nic["address"], nic["vni"], nic["gateway"], nic["mtu"]) == ("10.20.0.6", 4711, "10.20.0.1", 1450)
    assert ask(first) == nic
    assert ask(second)["address"] == "10.20.0.5"
    stored = lab.stored(f"/endpoint/-/blue-uid.{nic['address']}")
    assert stored is not None and stored.owner == Ref("node", "n1", first.uid) and stored.uid == nic["uid"]
    assert b'"node_address":"10.99.0.1"' in bytes(stored.status)


def test_it_sees_the_network_only_from_then_on(lab: ApiLab) -> None:
    node = lab.join("n1")
    with pytest.raises(Forbidden):
        node.client.list("endpoint", query={"network": "blue-uid"})
    ask(node)
    assert [
        found["spec"]["address"] for found in node.client.list("endpoint", query={"network": "blue-uid"}).items
    ] == ["10.20.0.6"]
    with pytest.raises(Forbidden):
        node.client.list("endpoint", query={"network": "red-uid"})


def test_it_gets_none_where_no_function_wants_it_and_for_nobody_else(lab: ApiLab) -> None:
    node, other = lab.join("n1"), lab.join("n2")
    with pytest.raises(Forbidden, match="no function and no service uses network red"):
        ask(node, "red-uid")
    lab.put(make_network("blue2", "10.40.0.0/24", 4713, project="shop"))
    with pytest.raises(NotFound):
        ask(node, "blue2-uid")  # of another project
    with pytest.raises(NotFound):
        ask(node, "blue-uid", "shop")
    with pytest.raises(Forbidden, match="is node n1's"):
        ask(node, name="n2")
    with pytest.raises(Forbidden):
        raise_problem(lab.client.http.request("POST", "/v1/nodes/n1:egress", {"project": "default", "network": "x"}))
    assert lab.stored("/endpoint/-/blue-uid.10.20.0.6") is None
    assert ask(other)["address"] == "10.20.0.6"


def test_an_http_service_in_the_network_is_a_reason_too(lab: ApiLab) -> None:
    node = lab.join("n1")
    spec = EndpointSpec(
        workload=Ref("service", "shop", "s", "other"), network="default/red", network_uid="red-uid", index=0,
        mac="52:57:0a:1e:00:02", address="10.30.0.2", served=Served(ports=[], targets=[]),
    )  # fmt: skip
    lab.put(Envelope(kind="endpoint", name="red-uid.10.30.0.2", uid="e", spec=encode(spec)))
    with pytest.raises(Forbidden):
        ask(node, "red-uid")
    spec.served = Served(ports=[], targets=[], http=True)
    lab.put(Envelope(kind="endpoint", name="red-uid.10.30.0.3", uid="e3", spec=encode(spec)))
    assert ask(node, "red-uid")["address"] == "10.30.0.254"


def test_a_full_network_is_told(lab: ApiLab) -> None:
    node = lab.join("n1")
    for last in range(2, 7):
        address = f"10.20.0.{last}"
        spec = EndpointSpec(
            workload=Ref("vm", "web", "w", "default"), network="blue", network_uid="blue-uid", index=0,
            mac=f"52:54:00:00:00:0{last}", address=address,
        )  # fmt: skip
        lab.put(Envelope(kind="endpoint", name=f"blue-uid.{address}", uid=f"e{last}", spec=encode(spec)))
    with pytest.raises(Unavailable, match="has no address left") as told:
        ask(node)
    assert told.value.token == "networkFull"
