"""What the bridge driver decides, without a kernel: uplinks, lines of batches, files, refusals."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.contracts.driver.host import Capacity, Host
from weft.contracts.driver.network import (
    Alias,
    Endpoint,
    Forward,
    Inside,
    Port,
    Segment,
    Service,
    ServicePort,
    ServiceTarget,
)
from weft.drivers.network.bridge import plan
from weft.drivers.network.bridge.dnsmasq import render_hosts, render_names, render_own
from weft.drivers.network.bridge.kernel import FdbEntry, Link, LinkAddress, Router
from weft.drivers.network.bridge.names import GATEWAY_MAC, INSIDE, OUTSIDE, Names, port_alias, port_from_alias
from weft.drivers.network.bridge.nftables import rules
from weft.drivers.network.bridge.nftables.published_ports import render_forwards
from weft.drivers.network.bridge.probe import find_dropping_chains, find_small_mtu
from weft.drivers.network.bridge.validation import check_forwards, check_port, check_segment
from weft.objects.errors import InUse, InvalidInput, Unavailable

NAMES = Names("wabc")
HOST = Host(
    node="n1",
    node_uid="uid1",
    state_dir="/nowhere",
    run_dir="/nowhere",
    link_prefix="wabc",
    underlay_address="10.99.0.1",
    underlay_link="up0",
    cgroup="weft/n1",
    capacity=Capacity(cpu=1, memory_bytes=1 << 30, disk_bytes=1 << 30),
)
A = Endpoint(mac="52:54:00:00:00:0b", address="10.20.0.11", name="a", node_address="10.99.0.1")
B = Endpoint(mac="52:54:00:00:00:0c", address="10.20.0.12", name="b", node_address="10.99.0.2")
C = Endpoint(mac="52:54:00:00:00:0d", address="10.20.0.13", name="c", node_address="10.99.0.3")
SEGMENT = Segment("segment001", "blue", 100, "10.20.0.0/24", "10.20.0.1", 1450, "blue.weft", True, [A, B, C])
PORT = Port("port000001", SEGMENT.id, A.mac, A.address, "a")


def uplink_of(segment_id: str, address: str) -> Link:
    return Link(ifname=NAMES.uplink(segment_id), addr_info=[LinkAddress(local=address, prefixlen=31)])


def fdb_after(lines: list[str], before: set[FdbEntry]) -> set[FdbEntry]:
    """What `bridge -batch` makes of the lines, refusing what the kernel would refuse."""
    now = set(before)
    for line in lines:
        _, verb, mac, _, link, *rest = line.split(" ")
        if rest[0] == "dst":
            entry = FdbEntry(mac=mac, ifname=link, dst=rest[1], state="permanent")
        else:
            entry = FdbEntry(mac=mac, ifname=link, master=NAMES.bridge(SEGMENT.id), state="static")
        if verb == "del":
            now.remove(entry)
        else:
            now = {e for e in now if verb == "append" or not (e.mac == mac and e.master)} | {entry}
    return now


def test_a_first_plan_makes_all_in_an_order_the_kernel_takes() -> None:
    steps = plan.plan_segment(NAMES, HOST, SEGMENT, [], {}, [], None, plan.Uplink("169.254.64.0", "169.254.64.1"))
    made: set[str] = set()
    for line in steps.links:
        words = line.split(" ")
        if words[:2] == ["link", "add"]:
            made.add(words[3])
        elif words[:2] == ["netns", "add"]:
            made.add(words[2])
        else:
            assert words[words.index("dev") + 1] in made, line
        for reference in ("master", "netns"):
            if reference in words[2:]:
                assert words[words.index(reference, 2) + 1] in made, line
    assert steps.mended == ["bridge", "overlay", "router"]
    assert all(len(name) <= 15 for name in made)


@pytest.mark.parametrize(("mtu", "set_again"), [(1450, False), (1400, True)])
def test_neighbours_are_set_again_where_the_router_s_link_forgets_them(mtu: int, set_again: bool) -> None:
    target = Service("10.20.0.100", ("shop",), (ServicePort("tcp", 80, 8080),), (ServiceTarget(B.address, 1),))
    segment = msgspec.structs.replace(SEGMENT, services=(target,))
    near = {"gateway": NAMES.gateway(segment.id), "uplink": NAMES.uplink(segment.id)}
    links = {name: Link(ifname=name, link_index=number) for number, name in enumerate(near.values(), 1)}
    inside = Link(ifname=INSIDE, ifindex=1, mtu=mtu, address=GATEWAY_MAC)
    router = Router({INSIDE: inside, OUTSIDE: Link(ifname=OUTSIDE, ifindex=2)}, [], True, False, {B.address: B.mac})
    steps = plan.plan_segment(NAMES, HOST, segment, [], links, [], router, plan.Uplink("169.254.64.0", "169.254.64.1"))
    assert (f"neigh replace {B.address} lladdr {B.mac} dev {INSIDE} nud permanent" in steps.router) is set_again


def test_uplinks_are_lowest_free_and_kept() -> None:
    first = plan.plan_uplink(NAMES, "one", {})
    assert first == plan.Uplink("169.254.64.0", "169.254.64.1")
    links = {NAMES.uplink("one"): uplink_of("one", first.node)}
    assert plan.plan_uplink(NAMES, "one", links) == first
    assert plan.plan_uplink(NAMES, "two", links) == plan.Uplink("169.254.64.2", "169.254.64.3")


@given(st.lists(st.integers(0, 40), max_size=30))
def test_no_two_segments_ever_share_an_uplink(held: list[int]) -> None:
    """Whatever addresses the links hold already, doubled ones too, settling one after the other ends all sharing."""
    links = {NAMES.uplink(f"s{n}"): uplink_of(f"s{n}", f"169.254.64.{2 * pair}") for n, pair in enumerate(held)}
    for n in range(len(held)):
        links[NAMES.uplink(f"s{n}")] = uplink_of(f"s{n}", plan.plan_uplink(NAMES, f"s{n}", links).node)
    addresses = [link.addresses[0] for link in links.values()]
    assert len(set(addresses)) == len(addresses)


def test_a_node_out_of_uplinks_says_so() -> None:
    every = [LinkAddress(local=str(plan.UPLINKS[n]), prefixlen=31) for n in range(0, plan.UPLINKS.num_addresses, 2)]
    with pytest.raises(Unavailable, match="8192 uplinks"):
        plan.plan_uplink(NAMES, "one", {"full": Link(ifname="full", addr_info=every)})


@given(
    st.lists(st.sampled_from([A, B, C]), unique=True),
    st.lists(st.sampled_from(["10.99.0.1", "10.99.0.2", "10.99.0.3"]), min_size=3, max_size=3),
    st.lists(st.sampled_from([A, B, C]), unique=True),
    st.lists(st.sampled_from(["10.99.0.1", "10.99.0.2", "10.99.0.3"]), min_size=3, max_size=3),
)
def test_forwarding_entries_follow_endpoints_whatever_they_were(
    before: list[Endpoint], at_first: list[str], after: list[Endpoint], at_last: list[str]
) -> None:
    def wish(endpoints: list[Endpoint], nodes: list[str]) -> Segment:
        moved = [msgspec.structs.replace(e, node_address=n) for e, n in zip(endpoints, nodes, strict=False)]
        return msgspec.structs.replace(SEGMENT, endpoints=moved)

    def settle(segment: Segment, known: set[FdbEntry]) -> set[FdbEntry]:
        return fdb_after(plan.plan_fdb(NAMES, HOST, segment, [PORT], known), known)

    old = settle(wish(before, at_first), set())
    direct = settle(wish(after, at_last), set())
    assert settle(wish(after, at_last), old) == direct
    assert plan.plan_fdb(NAMES, HOST, wish(after, at_last), [PORT], direct) == []


def test_a_guest_here_is_behind_its_tap_until_the_network_says_otherwise() -> None:
    lines = plan.plan_fdb(NAMES, HOST, SEGMENT, [PORT], [])
    assert f"fdb replace {A.mac} dev wabctport000001 master static" in lines
    assert f"fdb replace {GATEWAY_MAC} dev wabcrsegment001 master static" in lines
    away = msgspec.structs.replace(SEGMENT, endpoints=[msgspec.structs.replace(A, node_address="10.99.0.2")])
    lines = plan.plan_fdb(NAMES, HOST, away, [PORT], [])
    assert f"fdb replace {A.mac} dev wabcxsegment001 master static" in lines


def test_an_overlay_with_other_settings_is_made_anew() -> None:
    name = NAMES.overlay(SEGMENT.id)
    link = Link(ifname=name, mtu=1450, flags=["UP"])
    link = msgspec.structs.replace(link, linkinfo=msgspec.convert({"info_data": {"id": 99}}, type(link.linkinfo)))
    uplink = plan.Uplink("169.254.64.0", "169.254.64.1")
    stale = [FdbEntry(mac=B.mac, ifname=name, dst="10.99.0.9")]
    steps = plan.plan_segment(NAMES, HOST, SEGMENT, [], {name: link}, stale, None, uplink)
    assert steps.links.index(f"link del dev {name}") < next(
        at for at, line in enumerate(steps.links) if line.startswith(f"link add name {name}")
    )
    assert not any("10.99.0.9" in line for line in steps.fdb)  # gone with the device


def test_a_vni_of_another_link_is_named() -> None:
    info = msgspec.convert({"info_kind": "vxlan", "info_data": {"id": 100, "port": 4789}}, type(Link().linkinfo))
    with pytest.raises(InUse, match="VNI 100 is taken on this node by link vx100"):
        plan.plan_segment(
            NAMES, HOST, SEGMENT, [], {"vx100": Link(ifname="vx100", linkinfo=info)}, [], None, plan.Uplink("", "")
        )


def test_a_port_can_be_read_back_from_its_tap() -> None:
    side = msgspec.structs.replace(PORT, main=False)
    inside = msgspec.structs.replace(side, inside=Inside("box0000001", "eth1"))
    for port in (PORT, side, inside):
        assert port_from_alias(PORT.id, port_alias(port)) == port
    assert port_from_alias(PORT.id, "somebody's uplink") is None


def test_a_table_changes_its_digest_with_its_content_only() -> None:
    one = rules.render_taps(NAMES, [PORT])
    assert one.digest == rules.render_taps(NAMES, [PORT]).digest
    assert one.digest != rules.render_taps(NAMES, []).digest
    assert f'comment "{one.digest}"' in one.text


def test_a_forward_waits_for_its_segment() -> None:
    forward = Forward(8080, "tcp", SEGMENT.id, A.address, 80, HOST.underlay_address)
    assert render_forwards(NAMES, HOST, [forward], {}, {}).empty
    uplink = plan.Uplink("169.254.64.0", "169.254.64.1")
    body = render_forwards(NAMES, HOST, [forward], {SEGMENT.id: uplink}, {SEGMENT.id: SEGMENT.cidr}).body
    assert "tcp . 8080 : 169.254.64.1" in body


def test_every_endpoint_has_a_name_and_only_guests_here_a_lease() -> None:
    assert render_names(SEGMENT).splitlines()[1] == "10.20.0.12 b.blue.weft b b.blue.blue.weft b.blue"
    assert len(render_names(SEGMENT).splitlines()) == 3
    named = msgspec.structs.replace(SEGMENT, endpoints=[msgspec.structs.replace(A, name="localhost")], aliases=[])
    assert render_names(named) == "10.20.0.11 localhost.blue.weft localhost.blue.blue.weft localhost.blue\n"
    assert render_hosts([PORT], SEGMENT) == "52:54:00:00:00:0b,10.20.0.11,a,12h\n"


def test_a_lease_gives_a_guest_no_name_that_its_network_calls_another_by() -> None:
    renamed = msgspec.structs.replace(SEGMENT, endpoints=[msgspec.structs.replace(A, name="a-1-0"), B, C])
    assert render_hosts([PORT], renamed) == "52:54:00:00:00:0b,10.20.0.11,12h\n"


def test_a_guest_of_another_project_takes_no_name_that_a_guest_of_the_network_s_own_may_have() -> None:
    """Whatever the projects are called: four parts with the domain, which no own name has; its lease gives none either."""
    endpoints = [msgspec.structs.replace(A, name=name) for name in ("www.com", "b.blue", "b.weft")]
    aliases = [Alias("b.other.red", "10.60.0.11")]
    segment = msgspec.structs.replace(SEGMENT, domain="weft", endpoints=endpoints, aliases=aliases)
    check_segment(segment, NAMES.prefix)
    names = [line.split()[1:] for line in render_names(segment).splitlines()]
    assert names == [["b.blue.blue.weft"], ["b.weft.blue.weft"], ["www.com.blue.weft"], ["b.other.red.weft"]]
    assert render_own(segment) == ""
    port = msgspec.structs.replace(PORT, hostname="a.biology")
    check_port(port, NAMES.prefix)
    assert render_hosts([port], SEGMENT) == "52:54:00:00:00:0b,10.20.0.11,12h\n"
    assert port_from_alias(port.id, port_alias(port)) == port


def test_names_outside_the_domain_are_asked_of_nobody_else() -> None:
    segment = msgspec.structs.replace(SEGMENT, endpoints=[A, B], aliases=[Alias("w.red", "10.60.0.11")])
    assert render_own(segment) == "server=/a.blue/\nserver=/b.blue/\nserver=/w.red/\n"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "has space"),
        ("id", "elevenchars"),
        ("cidr", "10.20.0.7/24"),
        ("cidr", "169.254.0.0/20"),
        ("cidr", "fd00::/64"),
        ("gateway", "10.21.0.1"),
        ("vni", 0),
        ("mtu", 100),
        ("domain", "blue\nweft"),
    ],
)
def test_a_segment_that_cannot_be_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_segment(msgspec.structs.replace(SEGMENT, **{field: value}), "wabc")
    assert refused.value.field == field
    assert repr(value) in refused.value.message or "weft" in refused.value.message


def test_what_would_break_a_batch_or_a_file_is_refused() -> None:
    check_segment(SEGMENT, "wabc")
    check_port(PORT, "wabc")
    for part in ({"mac": "52:54:00:00:00:0b\nlink del dev lo"}, {"hostname": "a,b"}, {"mac": "ff:ff:ff:ff:ff:ff"}):
        with pytest.raises(InvalidInput):
            check_port(msgspec.structs.replace(PORT, **part), "wabc")
    with pytest.raises(InvalidInput) as refused:
        endpoints = [A, msgspec.structs.replace(B, address="10.99.0.7")]
        check_segment(msgspec.structs.replace(SEGMENT, endpoints=endpoints), "wabc")
    assert refused.value.field == "endpoints[1].address"


def test_a_port_number_published_twice_is_refused() -> None:
    one = Forward(8080, "tcp", SEGMENT.id, A.address, 80, HOST.underlay_address)
    check_forwards([one, msgspec.structs.replace(one, protocol="udp")], "wabc")
    with pytest.raises(InvalidInput, match="published twice"):
        check_forwards([one, msgspec.structs.replace(one, target_port=81)], "wabc")


def test_another_firewalls_dropping_chain_is_found() -> None:
    listing = """{"nftables": [{"metainfo": {}},
      {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
      {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}},
      {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}}]}"""
    assert find_dropping_chains(listing) == ["ip filter FORWARD"]
    assert find_dropping_chains("") == []


@pytest.mark.parametrize(("mtu", "told"), [(1500, 0), (9000, 0), (1499, 1), (1400, 1)])
def test_a_link_between_nodes_that_carries_less_than_networks_need_is_told_with_what_would_do(
    mtu: int, told: int
) -> None:
    shown = f"3: eth9: <BROADCAST,UP> mtu {mtu} qdisc noqueue state UP mode DEFAULT group default"
    said = find_small_mtu(shown, "eth9")
    assert len(said) == told
    assert all(f"--mtu above {mtu - 50} lose packets" in line and "ip link set eth9 mtu 1500" in line for line in said)
