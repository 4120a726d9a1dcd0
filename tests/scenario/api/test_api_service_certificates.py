"""A service's certificate: refused where it is no good, and given only to nodes with an address in the service's network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api.test_api_egress_endpoints import encode, make_network
from tests.scenario.api_lab import ApiLab, JoinedNode

from weft.client.answer import raise_problem
from weft.contracts.clock import Clock, SystemClock
from weft.kinds.endpoint import EndpointSpec, Served
from weft.kinds.service import ServiceStatus
from weft.objects.envelope import Envelope
from weft.objects.errors import Forbidden, InUse, InvalidInput, NotFound
from weft.trust.ca import Authority


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.put(make_network("default", "10.20.0.0/24"), make_network("red", "10.30.0.0/24", 4712))
    yield lab
    lab.close()


class Long(SystemClock):
    """Two years ago."""

    def now(self) -> float:
        return super().now() - 2 * 366 * 86_400.0


def make_pair(tmp_path: Path, clock: Clock | None = None) -> dict[str, str]:
    pem, _ = Authority(tmp_path / "other", clock or SystemClock()).make_service(["shop.example"], "x")
    at = pem.index("-----BEGIN CERTIFICATE")
    return {"tls.crt": pem[at:], "tls.key": pem[:at]}


def create(lab: ApiLab, kind: str, name: str, spec: dict[str, Any]) -> None:
    raise_problem(lab.client.http.request("POST", f"/v1/projects/default/{kind}", {"name": name, "spec": spec}))


def put_service(lab: ApiLab, **spec: Any) -> None:
    create(lab, "services", "shop", {"selector": {"app": "web"}, "ports": ["443:8080"], "protocol": "http", **spec})


def settle(lab: ApiLab) -> str:
    """As the controller does; the uid."""
    stored = lab.stored("/service/default/shop")
    assert stored is not None
    stored.status = encode(ServiceStatus(network_uid="default-uid", address="10.20.0.9"))
    spec = EndpointSpec(
        workload=stored.ref, network="default", network_uid="default-uid", index=0, mac="52:57:0a:14:00:09",
        address="10.20.0.9", served=Served(ports=[], targets=[], http=True),
    )  # fmt: skip
    lab.put(stored, Envelope(kind="endpoint", name="default-uid.10.20.0.9", uid="e", spec=encode(spec)))
    return stored.uid


def ask(node: JoinedNode, uid: str) -> dict[str, Any]:
    body = {"project": "default", "service": "shop", "uid": uid}
    answer = node.client.http.request("POST", f"/v1/nodes/{node.name}:certificate", body)
    raise_problem(answer)
    return dict(answer.json())


def join(lab: ApiLab) -> JoinedNode:
    node = lab.join("n1")
    body = {"project": "default", "network": "default-uid"}
    raise_problem(node.client.http.request("POST", "/v1/nodes/n1:egress", body))
    return node


def test_a_secret_without_a_good_pair_is_refused_with_its_field(lab: ApiLab, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    create(lab, "secrets", "half", {"values": {"tls.crt": pair["tls.crt"]}})
    create(lab, "secrets", "mixed", {"values": {**pair, "tls.key": make_pair(tmp_path)["tls.key"]}})
    create(lab, "secrets", "good", {"values": pair})
    for secret, why in (("half", "it has no tls.key"), ("mixed", "does not belong to the first certificate")):
        with pytest.raises(InvalidInput, match=why) as refused:
            put_service(lab, tls_secret=secret)
        assert refused.value.field == "spec.tls_secret" and "--from-file tls.key=FILE" in (refused.value.hint or "")
    with pytest.raises(NotFound):
        put_service(lab, tls_secret="nowhere")
    with pytest.raises(InvalidInput, match="protocol http only"):
        put_service(lab, tls_secret="good", protocol="l4")
    with pytest.raises(InvalidInput, match="generated"):
        put_service(lab, tls_secret="good", tls="generated")
    create(lab, "secrets", "old", {"values": make_pair(tmp_path, Long())})
    with pytest.raises(InvalidInput, match="ended on"):
        put_service(lab, tls_secret="old")
    assert lab.stored("/service/default/shop") is None


def test_a_secret_that_a_service_names_stays_good_and_stays(lab: ApiLab, tmp_path: Path) -> None:
    create(lab, "secrets", "tls", {"values": make_pair(tmp_path)})
    put_service(lab, tls_secret="tls")
    with pytest.raises(InvalidInput, match="does not belong") as refused:
        body = {"spec": {"values": {"tls.key": make_pair(tmp_path)["tls.key"]}}}
        raise_problem(lab.client.http.request("PATCH", "/v1/projects/default/secrets/tls", body))
    assert refused.value.field == "spec.values" and "PRIVATE" not in str(refused.value.to_dict())
    with pytest.raises(InUse):
        raise_problem(lab.client.http.request("DELETE", "/v1/projects/default/secrets/tls"))


def test_a_node_gets_it_only_with_an_address_in_the_network(lab: ApiLab, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    create(lab, "secrets", "tls", {"values": pair})
    put_service(lab, tls_secret="tls")
    uid = settle(lab)
    other = lab.join("n2")
    with pytest.raises(Forbidden):
        ask(other, uid)
    node = join(lab)
    assert ask(node, uid) == {"pem": pair["tls.key"] + pair["tls.crt"], "ends": 0.0}
    with pytest.raises(NotFound):
        ask(node, "another-uid")


def test_a_generated_one_names_the_service_and_says_when_it_ends(lab: ApiLab) -> None:
    put_service(lab, tls="generated")
    answer = ask(join_after(lab), decode_uid(lab))
    assert answer["pem"].count("BEGIN CERTIFICATE") == 2 and "PRIVATE KEY" in answer["pem"]
    assert answer["ends"] > lab.clock.now() + 300 * 86_400.0


def join_after(lab: ApiLab) -> JoinedNode:
    settle(lab)
    return join(lab)


def decode_uid(lab: ApiLab) -> str:
    stored = lab.stored("/service/default/shop")
    assert stored is not None
    return stored.uid
