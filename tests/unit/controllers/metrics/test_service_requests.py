"""Requests to services: whose they are, and that a hostile node counts for no service that isn't in one of its networks."""

from __future__ import annotations

from typing import Any

import msgspec

from weft.contracts.store import MAX_DIGEST_BYTES, Lease
from weft.controllers.metrics.samples import list_samples
from weft.informer.view import View, make_view
from weft.kinds.endpoint import EndpointSpec
from weft.kinds.service import ServiceEndpoint, ServiceStatus
from weft.objects.envelope import Envelope, encode_envelope
from weft.objects.identity import Ref
from weft.protocol.heartbeat import ANSWERS, MOST_REQUESTED, Digest, RequestCounts, add_requests, write_digest
from weft.telemetry.metrics.sample import Sample

NOW = 1_795_471_245.0
COUNTS = RequestCounts([0, 90, 1, 2, 3, 4], 0.25)


def put(view: View, kind: str, name: str, uid: str, project: str | None = None, **parts: Any) -> None:
    raw: Any = {part: msgspec.Raw(msgspec.json.encode(value)) for part, value in parts.items()}
    envelope = Envelope(kind=kind, name=name, uid=uid, project=project, **raw)
    assert view.put(envelope.key, encode_envelope(envelope), 1) is not None


def read(requests: dict[str, dict[str, RequestCounts]], *, joined: bool = True) -> list[Sample]:
    view = make_view()
    put(view, "node", "n1", "node1", report={}, status={"phase": "Ready"})
    if joined:
        node = Ref(kind="node", name="n1", uid="node1")
        spec = EndpointSpec(workload=node, network="blue", network_uid="net", index=0, mac="m", address="10.0.0.200")
        put(view, "endpoint", "net.10.0.0.200", "e1", spec=spec)
    web = Ref(kind="container", project="shop", name="web-2-0", uid="c1")
    endpoints = [ServiceEndpoint(workload=web, revision="2", address="10.0.0.2"), ServiceEndpoint(workload=web)]
    status = ServiceStatus(network_uid="net", address="10.0.0.9", endpoints=endpoints)
    put(view, "service", "web", "svc", "shop", spec={"selector": {"a": "b"}, "ports": ["80"]}, status=status)
    lease = Lease("node/node1", "node1", 1, 30.0, write_digest(Digest(requests=requests)))
    return [one for one in list_samples(view, [lease], {}, NOW) if one.name.startswith("weft_service")]


def test_each_class_of_an_endpoints_answers_is_a_counter_and_the_time_a_gauge() -> None:
    found = read({"svc": {"10.0.0.2": COUNTS}})
    requests = {dict(one.labels)["code_class"]: one for one in found if one.name == "weft_service_requests_total"}
    assert {name: one.value for name, one in requests.items()} == dict(zip(ANSWERS, COUNTS.answers, strict=True))
    whose = {"project": "shop", "service": "web", "workload": "container/web-2-0", "revision": "2", "node": "n1"}
    assert dict(requests["2xx"].labels) == {**whose, "code_class": "2xx"}
    (seconds,) = [one for one in found if one.name == "weft_service_response_seconds"]
    assert (dict(seconds.labels), seconds.value) == (whose, 0.25)


def test_a_node_counts_only_where_it_has_an_address_and_what_is_an_endpoint() -> None:
    assert read({"svc": {"10.0.0.2": COUNTS}}, joined=False) == []
    assert read({"svc": {"10.0.0.77": COUNTS, "": COUNTS}, "other": {"10.0.0.2": COUNTS}}) == []
    strange = RequestCounts([5] * 50, float("nan"))
    found = read({"svc": {"10.0.0.2": strange}})
    assert len(found) == len(ANSWERS) and not any(one.name.endswith("seconds") for one in found)


def test_a_heartbeat_has_as_many_as_fit() -> None:
    many = {f"svc{n}": {f"10.0.{n}.{at}": COUNTS for at in range(100)} for n in range(50)}
    digest = add_requests(Digest(), many)
    assert sum(len(of) for of in digest.requests.values()) <= MOST_REQUESTED
    assert len(write_digest(digest)) <= MAX_DIGEST_BYTES
    assert add_requests(Digest(), {"svc": {"10.0.0.2": COUNTS}}).requests == {"svc": {"10.0.0.2": COUNTS}}
