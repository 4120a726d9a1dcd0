"""What is written for an HAProxy, and which commands bring one that runs there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from weft.contracts.driver.network import ServiceTarget
from weft.contracts.proxy import Listener, Proxy
from weft.drivers.network.slots import SLOTS
from weft.drivers.proxy.haproxy.config import list_slots, render
from weft.drivers.proxy.haproxy.control import Server, plan_removals, plan_servers, read_statistics
from weft.drivers.proxy.haproxy.times import read_time

FOLDER = Path("/run/weft/n1/proxies/p")
A, B, C = "10.0.0.2", "10.0.0.3", "10.0.0.4"


def make(*targets: tuple[str, int], **options: str | int) -> Listener:
    made = Listener("uid", "default/shop", "10.0.0.9", 80, 8080, tuple(ServiceTarget(*one) for one in targets))
    return msgspec.structs.replace(made, **options)


def write(*listeners: Listener) -> str:
    return render(Proxy("p", "/run/netns/e", "wn1", listeners), FOLDER).config


def test_a_listener_is_at_the_services_address_and_bounds_every_client() -> None:
    config = write(make((A, 1000)))
    assert "bind 10.0.0.9:80 namespace wn1\n" in config
    assert f"server e{A} {A}:8080 weight 1\n" in config
    for bound in ("timeout http-request", "timeout client", "maxconn", "sc0_conn_cur gt", "tune.http.maxhdr"):
        assert bound in config
    assert "set-header X-Forwarded-For %[src]" in config and "del-header Forwarded" in config
    assert "disable-l7-retry if !{ method GET HEAD OPTIONS }" in config  # a POST is never sent twice
    assert "uid 65534" in config and "chroot /run/weft/n1/proxies/p/root" in config


@pytest.mark.parametrize("sticky", [False, True])
def test_shares_are_exact_to_one_per_mille(sticky: bool) -> None:
    lines = list_slots(make((A, 1), (B, 0), (C, 999), sticky=sticky))
    counts = {A: 0, B: 0, C: 0}
    for line in lines:
        slots, name = line.split()
        first, last = map(int, slots.split(":"))
        counts[name.removeprefix("e")] += last - first + 1
    assert sum(counts.values()) == SLOTS and counts[B] == 0
    assert counts[A] == 1 if not sticky else 0 <= counts[A] < 10
    assert list_slots(make((A, 0))) == []


def test_only_other_than_endpoints_and_shares_takes_a_reload() -> None:
    def shape(*listeners: Listener) -> str:
        return render(Proxy("p", "/run/netns/e", "wn1", listeners), FOLDER).shape

    before = shape(make((A, 1)))
    assert shape(make((A, 2), (B, 5))) == before
    assert shape(make()) == before
    assert shape(make((A, 1)), make((A, 1), port=81)) != before
    assert shape(make((A, 1), sticky=True)) != before


def test_a_key_is_in_a_file_of_its_own_and_nowhere_else() -> None:
    rendered = render(Proxy("p", "/run/netns/e", "wn1", (make((A, 1), certificate="SECRET KEY"),)), FOLDER)
    assert "SECRET" not in rendered.config and "SECRET" not in rendered.shape
    assert rendered.files["uid.80.pem"] == "SECRET KEY"
    assert "ssl crt /run/weft/n1/proxies/p/uid.80.pem" in rendered.config


def test_endpoints_come_first_and_go_last() -> None:
    known = {f"e{A}": Server(A, 8080, 1, False), f"e{B}": Server(B, 8080, 0, False)}
    listener = make((B, 500), (C, 500))
    assert plan_servers(listener, known) == [
        f"set server uid.80/e{B} weight 1",
        f"add server uid.80/e{C} {C}:8080 weight 1",
        f"enable server uid.80/e{C}",
    ]
    assert plan_removals(listener, known) == [f"set server uid.80/e{A} state maint", f"del server uid.80/e{A}"]
    stopped = {f"e{B}": Server(B, 8080, 1, True)}  # one that comes back before its last connection has ended
    assert plan_servers(make((B, 1)), stopped) == [f"enable server uid.80/e{B}"]


def test_what_it_counts_and_sends_is_read_and_rubbish_is_left_out() -> None:
    text = "# pxname,svname,hrsp_2xx,\nuid.80,FRONTEND,5,\nuid.80,e10.0.0.2,4,\nuid.80,BACKEND,5,\n\n"
    assert [row["svname"] for row in read_statistics(text)] == ["e10.0.0.2"]
    assert read_time(b"uid.80 e10.0.0.2 17 200\n") == ("uid.80", "e10.0.0.2", 0.017)
    for line in (b"uid.80 <NOSRV> -1 503", b"", b"\xff\xfe", b"a b c"):
        assert read_time(line) is None
