"""HTTP services with the real HAProxy: requests are split, and none is lost whatever changes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.host.http_lab import CLIENT, CLIENTS, EGRESS, ID, SHOP, WebShop, count_names, finish
from tests.host.network_lab import Lab

from weft.contracts.clock import SystemClock
from weft.contracts.driver.network import ServiceTarget
from weft.trust.ca import Authority

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces"),
]


@pytest.fixture(scope="module")
def shop() -> Iterator[WebShop]:
    lab = Lab(2)
    try:
        built = WebShop(lab)
        asyncio.run(built.build())
        yield built
    finally:
        lab.close()


def read_pid(shop: WebShop) -> str:
    return shop.n1.shell(f"cat {shop.n1.host.run_dir}/proxies/{ID}/haproxy.pid").strip()


def test_requests_of_one_connection_are_split_and_the_client_is_named_whatever_it_says(shop: WebShop) -> None:
    shop.serve(a=500, b=400, c=100)
    found = shop.ask(1000)
    names = count_names(found)
    assert found["statuses"] == {"200": 1000}
    assert abs(names["a"] - 500) < 100 and abs(names["b"] - 400) < 100 and 50 < names["c"] < 160
    assert {tuple(said.split()[1:]) for said in found["answers"]} == {(CLIENT, EGRESS, "1")}


def test_no_request_is_lost_while_shares_endpoints_and_ports_change(shop: WebShop) -> None:
    shop.serve(a=1000)
    held, fresh = shop.start("d", "load", f"{SHOP}:80", "2"), shop.start("d", "load", f"{SHOP}:80", "2", "fresh")
    for options in (
        {"a": 500, "b": 500},
        {"b": 1},
        {"b": 1, "c": 999},
        {"a": 1, "c": 1, "ports": (80, 81)},  # a reload
        {"c": 1, "ports": (80, 81)},
        {"a": 1, "b": 1, "c": 1, "sticky": True},  # another
        {"b": 1000},
    ):
        shop.serve(**options)
        shop.ask(50)
    for load in (held, fresh):
        found = finish(load)
        assert set(found["statuses"]) == {"200"} and found["statuses"]["200"] > 100
    assert count_names(shop.ask(20)) == {"b": 20}


def test_a_sticky_client_stays_and_a_share_of_zero_gets_nothing(shop: WebShop) -> None:
    shop.serve(a=500, b=500, sticky=True)
    (name,) = count_names(shop.ask(50))
    shop.serve(a=0 if name == "a" else 1, b=0 if name == "b" else 1)
    (other,) = count_names(shop.ask(50))
    assert {name, other} == {"a", "b"}


def test_without_an_endpoint_it_says_so(shop: WebShop) -> None:
    shop.serve(a=0)
    found = shop.ask(3)
    assert found["statuses"] == {"503": 3}
    assert set(found["answers"]) == {"service default/shop has no endpoint that answers now"}


def test_one_that_does_not_answer_gets_its_requests_taken_by_another_and_that_is_counted(shop: WebShop) -> None:
    dead = "10.20.0.77"
    proxy = shop.proxy(a=500)
    (listener,) = proxy.listeners
    (target,) = listener.backends
    both = msgspec.structs.replace(listener, backends=(target, ServiceTarget(dead, 500)))
    shop.n1.ensure_proxy(msgspec.structs.replace(proxy, listeners=(both,)))

    def count() -> dict[str, dict[str, int]]:
        return {one.address: one.answers for one in shop.n1.read_proxy(ID)}

    before = count()[target.address]["2xx"]
    assert shop.ask(6)["statuses"] == {"200": 6}
    assert count()[target.address]["2xx"] - before == 6
    shop.serve(a=1)


def test_it_is_found_again_by_an_agent_that_starts_and_started_again_where_it_was_killed(shop: WebShop) -> None:
    shop.serve(a=1)
    pid = read_pid(shop)
    shop.n1.restart()
    shop.serve(a=1, b=1)
    assert read_pid(shop) == pid
    assert set(count_names(shop.ask(50))) == {"a", "b"}
    shop.n1.shell(f"kill -9 {pid}")
    until = time.monotonic() + 5
    while not shop.n1.find_ended_proxies():
        assert time.monotonic() < until
    shop.serve(a=1, b=1)
    assert shop.ask(20)["statuses"] == {"200": 20}


def test_an_agent_that_died_between_files_and_reload_is_made_up_for(shop: WebShop) -> None:
    shop.serve(a=1)
    pid, folder = read_pid(shop), f"{shop.n1.host.run_dir}/proxies/{ID}"
    shop.n1.shell(f"cp {folder}/shape {folder}/kept")
    shop.serve(a=1, ports=(80, 81))
    shop.n1.shell(f"mv {folder}/kept {folder}/shape")
    shop.n1.restart()
    shop.serve(a=1)  # its files say that this runs
    assert shop.ask(20)["statuses"] == {"200": 20} and read_pid(shop) == pid
    assert shop.ask(1, place=f"{SHOP}:81")["statuses"] == {"ConnectionRefusedError": 1}


async def test_a_published_port_reaches_it_and_the_client_outside_is_named(shop: WebShop) -> None:
    shop.serve(a=1)
    await shop.n1.ensure_forwards([shop.publish()])
    try:
        said = shop.lab.fetch(shop.lab.outside, shop.n1.address, 8088)
        assert said.split() == ["a", "203.0.113.2", EGRESS, "1"]
    finally:
        await shop.n1.ensure_forwards([])


def test_it_speaks_tls_with_its_certificate_whose_key_only_root_reads(shop: WebShop, tmp_path: Path) -> None:
    authority = Authority(tmp_path, SystemClock())
    ca = tmp_path / "services" / "ca.crt"

    def fetch(*more: str) -> str:
        asked = ["curl", "-s", "--cacert", str(ca), "--resolve", f"shop:80:{SHOP}", *more, "https://shop:80/"]
        return subprocess.run([*shop.enter("d"), *asked], capture_output=True, text=True, timeout=20).stdout

    first, second = (authority.make_service(["shop"], "uid")[0] for _ in range(2))
    shop.serve(a=1, certificate=first)
    assert fetch().split() == ["a", CLIENT, EGRESS, "1"]
    shop.serve(a=1, certificate=second)
    assert fetch().split()[:1] == ["a"]
    folder = f"{shop.n1.host.run_dir}/proxies/{ID}"
    assert shop.n1.shell(f"stat -c %a {folder} {folder}/*.pem").split() == ["700", "600"]
    assert "PRIVATE" not in shop.n1.shell(f"cat {folder}/haproxy.cfg {folder}/shape")
    shop.serve(a=1)
    assert shop.n1.shell(f"ls {folder}/*.pem 2>/dev/null", check=False) == ""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n", "400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n", "400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", "400"),
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\nA: and nothing more", "408", marks=pytest.mark.long
        ),  # after ten seconds
    ],
)
def test_what_is_not_http_is_refused(shop: WebShop, sent: bytes, status: str) -> None:
    shop.serve(a=1)
    done = subprocess.run(
        [*shop.enter("d"), *CLIENTS, "raw", f"{SHOP}:80"], input=sent, capture_output=True, timeout=30
    )
    assert done.stdout.split()[1:2] == [status.encode()], done


@pytest.mark.parametrize(
    "said",
    [
        "Connection: close, X-Forwarded-For",
        "Connection: X-Forwarded-For, X-Forwarded-Proto",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        "Connection: upgrade\r\nUpgrade: h2c, foo",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: TLS/1.0",
    ],
)
def test_a_client_takes_no_header_of_the_proxy_away_and_gets_no_tunnel(shop: WebShop, said: str) -> None:
    shop.serve(a=1)
    odd = "X-Forwarded-For: 6.6.6.6\r\nx_forwarded_for: 6.6.6.6\r\nTrailer: X-Forwarded-For"
    sent = f"GET /head HTTP/1.1\r\nHost: x\r\n{odd}\r\n{said}\r\n\r\n".encode()
    done = subprocess.run(
        [*shop.enter("d"), *CLIENTS, "raw", f"{SHOP}:80"], input=sent, capture_output=True, timeout=30, check=True
    )
    lines = done.stdout.decode().splitlines()
    assert lines[0].split()[1] == "200" and f"x-forwarded-for: {CLIENT}" in lines
    gone = ("upgrade:", "http2-settings:", "trailer:", "x_forwarded_for:")
    assert not [line for line in lines if line.startswith(gone)]
    assert {line for line in lines if line.startswith("connection:")} <= {"connection: close"}  # the proxy's own


def test_a_web_socket_is_let_through_with_nothing_else_called_hop_by_hop(shop: WebShop) -> None:
    shop.serve(a=1)
    said = "Connection: X-Forwarded-For, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    for path, status in (("/head", "200"), ("/", "101")):
        sent = f"GET {path} HTTP/1.1\r\nHost: x\r\n{said}\r\n\r\n".encode()
        done = subprocess.run(
            [*shop.enter("d"), *CLIENTS, "raw", f"{SHOP}:80"], input=sent, capture_output=True, timeout=30, check=True
        )
        assert done.stdout.split()[1] == status.encode()
        if path == "/head":
            assert {"connection: upgrade", "upgrade: websocket", f"x-forwarded-for: {CLIENT}"} <= {
                *done.stdout.decode().splitlines()
            }


def test_it_goes_with_its_files(shop: WebShop) -> None:
    shop.serve(a=1)
    folder = f"{shop.n1.host.run_dir}/proxies/{ID}"
    assert shop.n1.shell(f"ls {folder}").strip()
    shop.n1.remove_proxy(ID)
    assert shop.n1.shell(f"ls -d {folder} 2>/dev/null; pgrep -f {folder}", check=False).split()[1:] == []
    assert shop.ask(1)["statuses"] == {"ConnectionRefusedError": 1}


def test_a_service_whose_address_is_not_there_yet_takes_no_other_one_s_connections(shop: WebShop) -> None:
    shop.serve(a=1)
    proxy = shop.proxy(a=1)
    (listener,) = proxy.listeners
    early = msgspec.structs.replace(listener, service="earlyuid", name="default/early", address="10.20.0.101")
    both = msgspec.structs.replace(proxy, listeners=(listener, early))
    with pytest.raises(Exception, match=r"no address 10\.20\.0\.101 here yet"):
        shop.n1.ensure_proxy(both)
    assert shop.ask(20)["statuses"] == {"200": 20}
    router = shop.n1.name_router(shop.segment.id)
    change = f"nsenter --net=/run/netns/{router} ip addr {{}} 10.20.0.101/32 dev lo"
    shop.n1.shell(change.format("add"))
    shop.n1.ensure_proxy(both)
    shop.n1.shell(change.format("del"))
    assert shop.ask(20)["statuses"] == {"200": 20}
    shop.serve(a=1)
