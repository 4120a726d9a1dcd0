"""Which proxies a node runs: those of HTTP services in networks that its guests are in, and no others."""

from __future__ import annotations

from weft.agent.service.plan import plan_proxies
from weft.agent.state.service import ServedAddress
from weft.contracts.driver.network import Service, ServicePort, ServiceTarget
from weft.kinds.fields.service.readiness import Readiness


def make(name: str, project: str = "default", *, address: str = "10.0.0.9", http: bool = True) -> ServedAddress:
    ports = (ServicePort("tcp", 80, 8080), ServicePort("tcp", 81, 8081))
    service = Service(address, (name,), ports, (ServiceTarget("10.0.0.2", 1000),), proxied=http)
    return ServedAddress(f"uid-{name}", service, Readiness(), name, project, "default")


def test_there_is_one_for_each_network_and_project_with_http_services() -> None:
    services = {
        "blue": {"1": make("shop"), "2": make("api"), "3": make("db", http=False), "4": make("theirs", "other")},
        "red": {"5": make("elsewhere")},
        "green": {"6": make("plain", http=False)},
    }
    found = plan_proxies(services, {"blue", "green"}, {})
    names = [sorted({one.name for one in proxy.listeners}) for proxy in found]
    assert names == [["default/api", "default/shop"], ["other/theirs"]]
    assert [(one.port, one.target_port) for one in found[0].listeners] == [(80, 8080), (81, 8081)] * 2
    assert len({one.id for one in found}) == 2 and all(len(one.id) == 10 for one in found)
    assert plan_proxies(services, set(), {}) == []


def test_an_address_is_taken_by_one_listener_for_each_port_and_names_the_endpoints() -> None:
    (proxy,) = plan_proxies({"blue": {"1": make("shop")}}, {"blue"}, {})
    assert {one.service for one in proxy.listeners} == {"uid-shop"}
    assert all(one.backends == (ServiceTarget("10.0.0.2", 1000),) for one in proxy.listeners)
