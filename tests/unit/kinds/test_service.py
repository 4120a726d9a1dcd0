"""What a service may say, and how its fields are read."""

from __future__ import annotations

from typing import Any

import pytest

from weft.api.admission.admit import read_spec
from weft.kinds.fields.service.readiness import Readiness, resolve_readiness
from weft.kinds.record import Claim
from weft.kinds.service import SERVICE, ServicePort, ServiceSpec, Weight, read_port, read_weight
from weft.objects.errors import WeftError

WEB: dict[str, Any] = {"selector": {"app": "web"}, "ports": ["80:8080"]}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"selector": {}}, "spec.selector"),
        ({"selector": {f"k{n}": "v" for n in range(9)}}, "spec.selector"),
        ({"selector": {"a b": "c"}}, "spec.selector.a b"),
        ({"ports": []}, "spec.ports"),
        ({"ports": [str(n) for n in range(1, 18)]}, "spec.ports"),
        ({"ports": ["http"]}, "spec.ports[0]"),
        ({"ports": ["80", "0:80"]}, "spec.ports[1]"),
        ({"ports": ["80:65536"]}, "spec.ports[0]"),
        ({"ports": ["80/sctp"]}, "spec.ports[0]"),
        ({"ports": ["80:1", "80:2"]}, "spec.ports"),
        ({"publish": ["8088:81"]}, "spec.publish[0]"),
        ({"publish": ["8088:80/udp"]}, "spec.publish[0]"),
        ({"publish": ["8088:80", "8088:80"]}, "spec.publish"),
        ({"publish": ["70000:80"]}, "spec.publish[0]"),
        ({"weights": ["version=2"]}, "spec.weights[0]"),
        ({"weights": ["version=2:1001"]}, "spec.weights[0]"),
        ({"weights": ["version=2:0"]}, "spec.weights"),
        ({"weights": ["version=1:600", "version=2:401"]}, "spec.weights"),
        ({"weights": ["version=2:1", "version=2:2"]}, "spec.weights"),
        ({"weights": ["a b=2:1"]}, "spec.weights[0].a b"),
        ({"weights": [f"v={n}:1" for n in range(17)]}, "spec.weights"),
        ({"ports": ["53/udp"], "readiness": {"type": "tcp"}}, "spec.readiness.port"),
        ({"readiness": {"type": "command"}}, "spec.readiness.command"),
        ({"readiness": {"command": ["true"]}}, "spec.readiness.command"),
        ({"readiness": {"type": "http", "path": "healthz"}}, "spec.readiness.path"),
        ({"readiness": {"type": "http", "path": "/a\r\nHost: b"}}, "spec.readiness.path"),
        ({"readiness": {"path": "/healthz"}}, "spec.readiness.path"),
        ({"readiness": {"interval": "100ms"}}, "spec.readiness.interval"),
        ({"readiness": {"timeout": "11s"}}, "spec.readiness.timeout"),
        ({"readiness": {"fall": 0}}, "spec.readiness.fall"),
        ({"readiness": {"port": 70000}}, "spec.readiness.port"),
        ({"drain": "2h"}, "spec.drain"),
        ({"sticky": "cookie"}, "spec.sticky"),
        ({"address": "10.0.0.9"}, "spec.address"),
    ],
)
def test_strange_values_name_their_field(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(WeftError) as caught:
        read_spec(SERVICE, {**WEB, **spec})
    problem = caught.value
    named = (problem.field, *(part["field"] for part in problem.details.get("problems", [])))
    assert field in (*named, problem.message.split(":")[0])


def test_fields_are_read_as_they_are_written() -> None:
    assert read_port("80:8080") == ServicePort(80, 8080, "tcp")
    assert read_port("53/udp") == ServicePort(53, 53, "udp")
    assert read_weight("version=2:0") == Weight("version", "2", 0)
    assert read_weight("canary=:5") == Weight("canary", "", 5)


def test_a_command_takes_the_permission_to_run_it_where_the_selector_may_lead() -> None:
    def rights(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
        assert SERVICE.access.further_rights_in_project is not None
        before = None if old is None else read_spec(SERVICE, {**WEB, **old})
        return [
            name for name, _ in SERVICE.access.further_rights_in_project(before, read_spec(SERVICE, {**WEB, **new}))
        ]

    command = {"readiness": {"type": "command", "command": ["true"]}}
    other = {"readiness": {"type": "command", "command": ["id"]}}
    assert rights(None, command) == rights({}, command) == rights(other, command) == ["vm:exec", "container:exec"]
    assert rights(command, {**command, "selector": {"app": "bank"}}) == ["vm:exec", "container:exec"]
    assert rights(None, {}) == rights(command, {**command, "drain": "1s"}) == rights(command, {}) == []


def test_a_published_port_is_claimed_so_that_no_other_has_it() -> None:
    spec: ServiceSpec = read_spec(SERVICE, {**WEB, "publish": ["8088:80", "8089:80"]})
    assert SERVICE.admission.claims is not None
    made = SERVICE.admission.claims(SERVICE.make("web", spec, 1.0, project="default"), spec)
    assert [one.name for one in made if isinstance(one, Claim)] == ["tcp-8088", "tcp-8089"]


def test_readiness_is_a_connection_to_the_first_tcp_port_unless_it_says_otherwise() -> None:
    assert resolve_readiness(Readiness(), 8080) == Readiness(type="tcp", port=8080)
    assert resolve_readiness(Readiness(), 0).type == "none"
    assert resolve_readiness(Readiness(port=9), 0) == Readiness(type="tcp", port=9)
    assert resolve_readiness(Readiness(type="http"), 8080) == Readiness(type="http", port=8080)
