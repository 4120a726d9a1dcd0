"""Which leases a segment's server must forget, and how a file of them is read."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.scenario.controllers_lab import VirtualClock

from weft.contracts.driver.network import Segment
from weft.drivers.network.bridge import dnsmasq
from weft.drivers.network.bridge.dnsmasq import Files
from weft.drivers.network.bridge.leases import DhcpLease, list_stale, read_leases, render_first_lease, render_release

GATEWAY = "10.20.0.1"
FIRST = render_first_lease(GATEWAY)
A = DhcpLease("52:54:00:00:00:0a", "10.20.0.11", "a")
HOSTS = f"{A.mac},{A.address},a,12h\n52:54:00:00:00:0b,10.20.0.12,12h\n"
NAMES = "10.20.0.11 a.blue.weft a a.blue.blue.weft a.blue\n"
SEGMENT = Segment(
    id="s",
    name="blue",
    vni=1,
    cidr="10.20.0.0/24",
    gateway=GATEWAY,
    mtu=1450,
    domain="blue.weft",
    nat=True,
    endpoints=[],
)


def test_the_routers_own_lease_says_that_a_file_is_whole() -> None:
    line = f"1764230000 {A.mac} {A.address} a *\n"
    assert read_leases(line + FIRST, GATEWAY) == frozenset({A})
    assert read_leases(FIRST, GATEWAY) == frozenset()
    for cut in range(len(line + FIRST)):
        assert read_leases((line + FIRST)[:cut], GATEWAY) is None


async def test_a_damaged_file_is_given_up_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest can take the router's lease out of it, and the node's other networks wait meanwhile."""
    files, pauses = Files(tmp_path), list[float]()
    files.hosts.write_text(HOSTS)
    files.names.write_text(NAMES)
    files.leases.write_text(f"1764230000 {A.mac} {A.address} a *\n")
    clock = VirtualClock()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(clock, "sleep", sleep)
    monkeypatch.setattr(dnsmasq, "_CLOCK", clock)
    assert not await dnsmasq.free_leases(SEGMENT, files, "none", True)
    assert 0 < sum(pauses) < 0.5
    assert await dnsmasq.free_leases(SEGMENT, files, "none", False)


@pytest.mark.parametrize(("each_second", "freed"), [(40.0, True), (0.4, False)])
async def test_leases_are_freed_for_as_long_as_some_go_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, each_second: float, freed: bool
) -> None:
    """The server syncs its file for each, which takes a busy disk long; one that doesn't go on is given up."""
    files, waiting, lost = Files(tmp_path), list[bytes](), [True, False, True]
    left = [DhcpLease(f"52:54:00:00:00:{n:02x}", f"10.20.0.{n}", "") for n in range(2, 111)]
    files.hosts.write_text("")
    files.names.write_text("")
    now, read = 0.0, 0.0

    def write() -> None:
        lines = [f"1764230000 {lease.mac} {lease.address} * *\n" for lease in left]
        files.leases.write_text("".join(lines) + FIRST)

    async def sleep(seconds: float) -> None:
        nonlocal now, read
        now += seconds
        while waiting and now - read >= 1 / each_second:
            read += 1 / each_second
            gone = str(IPv4Address(waiting.pop(0)[12:16]))
            left[:] = [lease for lease in left if lease.address != gone]
        write()

    async def send(_namespace: str, _link: str, _to: tuple[str, int], packets: Sequence[bytes]) -> None:
        if not (lost and lost.pop()):
            waiting.extend(packets[: 270 - len(waiting)])  # what its socket doesn't hold is lost

    clock = VirtualClock()
    monkeypatch.setattr(clock, "sleep", sleep)
    monkeypatch.setattr(clock, "elapsed", lambda: now)
    monkeypatch.setattr(dnsmasq, "_CLOCK", clock)
    monkeypatch.setattr(dnsmasq, "send_inside", send)
    write()
    assert await dnsmasq.free_leases(SEGMENT, files, "none", False) == freed
    assert (left == []) == freed
    assert now < 10.5


def test_the_lease_of_a_client_with_other_hardware_is_released_as_such() -> None:
    other = DhcpLease(f"06-{A.mac}", A.address, "a")
    assert list_stale([other], HOSTS, NAMES, "blue.weft") == [other]
    packet = render_release(other, GATEWAY)
    assert (packet[:4], packet[28:44]) == (b"\1\6\6\0", bytes.fromhex("52540000000a") + bytes(10))


def test_a_lease_without_a_name_has_none() -> None:
    assert read_leases(f"0 {A.mac} {A.address} * 01:52\n{FIRST}", GATEWAY) == frozenset({A._replace(name="")})


@pytest.mark.parametrize(
    ("lease", "stale"),
    [
        (A, False),
        (A._replace(name=""), False),
        (A._replace(name="b"), True),  # a name that it no longer has
        (A._replace(address="10.20.0.12"), True),  # another's address
        (A._replace(mac="52:54:00:00:00:0c"), True),  # a guest that is gone
        (DhcpLease("52:54:00:00:00:0b", "10.20.0.12", ""), False),
        (DhcpLease("52:54:00:00:00:0b", "10.20.0.12", "a"), True),  # a's name at another address
    ],
)
def test_what_the_files_do_not_allow_is_stale(lease: DhcpLease, stale: bool) -> None:
    assert list_stale([lease], HOSTS, NAMES, "blue.weft") == ([lease] if stale else [])


def test_a_name_that_the_server_took_from_the_file_of_names_is_right() -> None:
    unnamed = f"{A.mac},{A.address},12h\n"
    assert list_stale([A], unnamed, NAMES, "blue.weft") == []
    assert list_stale([A], unnamed, "", "blue.weft") == [A]


def test_a_release_has_the_clients_address_and_mac_and_the_servers_address() -> None:
    packet = render_release(A, GATEWAY)
    assert (packet[:4], packet[12:16], packet[28:34]) == (
        b"\1\1\6\0",
        bytes([10, 20, 0, 11]),
        bytes.fromhex("52540000000a"),
    )
    assert packet[236:] == b"\x63\x82\x53\x63" + bytes([53, 1, 7, 54, 4, 10, 20, 0, 1, 255])
