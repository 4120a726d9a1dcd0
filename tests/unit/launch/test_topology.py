"""The local cluster's names and numbers: derived from the clone's path, never someone else's."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from weft.launch.local.__main__ import main
from weft.launch.local.choice import choose_topology
from weft.launch.local.fabric import plan_daemons
from weft.launch.local.topology import (
    Taken,
    Topology,
    find_conflicts,
    link_prefix_of,
    plan_ids,
    plan_topology,
    run_dir_of,
)
from weft.objects.errors import Unavailable

CLONE = "/home/ada/weft"


def test_the_same_clone_gets_the_same_names_every_time() -> None:
    assert plan_topology(CLONE, Taken()) == plan_topology(CLONE, Taken())


def test_two_clones_share_no_name_network_or_port() -> None:
    one, other = plan_topology(CLONE, Taken()), plan_topology(f"{CLONE}2", Taken())
    assert one.link_prefix != other.link_prefix
    assert one.run_dir != other.run_dir
    assert one.nft_table != other.nft_table
    assert one.cgroup != other.cgroup
    assert not ipaddress.ip_network(one.underlay).overlaps(ipaddress.ip_network(other.underlay))
    assert {one.api_port, one.gateway_port}.isdisjoint({other.api_port, other.gateway_port})


def test_link_names_leave_room_for_a_short_id_within_the_kernels_15_characters() -> None:
    topology = plan_topology(CLONE, Taken())
    assert len(topology.link_prefix) == 4
    assert all(len(name) <= 15 for name in [topology.bridge, *map(topology.veth_of, topology.nodes)])


def test_every_node_has_an_address_of_its_own_in_the_underlay() -> None:
    topology = plan_topology(CLONE, Taken(), node_count=5)
    underlay = ipaddress.ip_network(topology.underlay)
    addresses = [topology.gateway_address, *(node.address for node in topology.nodes)]
    assert len(set(addresses)) == 6
    assert all(ipaddress.ip_address(address) in underlay for address in addresses)
    assert [node.name for node in topology.nodes] == ["n1", "n2", "n3", "n4", "n5"]


def test_a_prefix_that_another_link_carries_is_left_alone() -> None:
    first, second = plan_ids(CLONE)[:2]
    assert plan_topology(CLONE, Taken(links=frozenset({f"{link_prefix_of(first)}p3s0"}))).id == second


def test_an_id_that_another_clone_holds_is_left_alone() -> None:
    first, second = plan_ids(CLONE)[:2]
    assert plan_topology(CLONE, Taken(owners={first: "/elsewhere"})).id == second


def test_a_cluster_that_is_up_is_recognised_as_the_clones_own() -> None:
    second = plan_ids(CLONE)[1]
    links = frozenset(f"{link_prefix_of(i)}br" for i in plan_ids(CLONE))
    assert plan_topology(CLONE, Taken(links=links, owners={second: CLONE})).id == second


def test_a_routed_network_is_not_used_again() -> None:
    wanted = plan_topology(CLONE, Taken()).underlay
    got = plan_topology(CLONE, Taken(routes=((wanted, "eth1"),))).underlay
    assert not ipaddress.ip_network(got).overlaps(ipaddress.ip_network(wanted))


def test_a_broad_route_over_all_candidates_does_not_stop_the_choice() -> None:
    got = plan_topology(CLONE, Taken(routes=(("10.0.0.0/8", "vpn0"), ("10.64.0.0/17", "vpn1")))).underlay
    assert not ipaddress.ip_network(got).overlaps(ipaddress.ip_network("10.64.0.0/17"))


def test_a_listening_port_is_not_used_again() -> None:
    wanted = plan_topology(CLONE, Taken())
    got = plan_topology(CLONE, Taken(ports=frozenset({wanted.gateway_port})))
    assert {wanted.api_port, wanted.gateway_port}.isdisjoint({got.api_port, got.gateway_port})


def test_when_nothing_is_free_the_error_says_what_to_do() -> None:
    owners = dict.fromkeys(plan_ids(CLONE), "/elsewhere")
    with pytest.raises(Unavailable) as caught:
        plan_topology(CLONE, Taken(owners=owners))
    assert caught.value.hint is not None and "make down" in caught.value.hint


def test_a_kept_choice_conflicts_with_what_came_in_its_way_later() -> None:
    topology = plan_topology(CLONE, Taken())
    assert conflicts_with(topology, Taken(routes=((topology.underlay, "eth1"),))) == ["eth1"]
    assert conflicts_with(topology, Taken(owners={topology.id: "/elsewhere"})) == ["/elsewhere"]


def test_a_kept_choice_does_not_conflict_with_its_own_bridge_or_a_broader_route() -> None:
    topology = plan_topology(CLONE, Taken())
    routes = ((topology.underlay, topology.bridge), ("10.0.0.0/8", "vpn0"))
    assert find_conflicts(topology, Taken(routes=routes, owners={topology.id: CLONE})) == []


def test_the_folder_for_sockets_is_short() -> None:
    assert len(run_dir_of(plan_ids("/" + "long/" * 60)[0])) < 20


def conflicts_with(topology: Topology, taken: Taken) -> list[str]:
    """The names of what is in the way, out of the sentences about it."""
    sentences = find_conflicts(topology, taken)
    return [name for name in ("eth1", "/elsewhere") if any(name in sentence for sentence in sentences)]


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("inspect", {"STORE": "foo"}, "STORE=foo is not a store"),
        ("up", {"STORE": "foo"}, "STORE=foo is not a store"),
        ("up", {"SERVER_OPTIONS": "--bogus"}, "no such option: --bogus"),
    ],
)
def test_a_word_that_nothing_takes_is_refused_beside_a_cluster_that_runs(
    verb: str,
    words: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = msgspec.structs.replace(plan_topology(str(tmp_path), Taken()), state="s")
    (tmp_path / ".weft").mkdir()
    (tmp_path / ".weft" / "cluster.json").write_bytes(msgspec.json.encode(kept))
    for name, word in words.items():
        monkeypatch.setenv(name, word)
    with suppress(SystemExit):  # argparse's way
        assert main([verb]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"SERVER_OPTIONS": "--alert-interval 2s --audit-keep 7d"}, ""),
        ({"SERVER_OPTIONS": ""}, ""),
        (
            {"SERVER_OPTIONS": "--audit-keep 30d"},
            "error: this cluster's servers run with other options: --alert-interval, --audit-keep\n"
            "  they have SERVER_OPTIONS='--audit-keep 7d --alert-interval 2s'; make down, then make up with others\n",
        ),
        ({"CEPH": "0"}, "error: this cluster has a Ceph cluster\n  make down, then make up CEPH=0\n"),
    ],
)
def test_a_cluster_that_runs_is_never_taken_for_one_with_other_options(
    words: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--audit-keep", "7d", "--alert-interval", "2s")
    kept = choose_topology(str(tmp_path), ceph=True, server_options=options)
    for name, word in words.items():
        monkeypatch.setenv(name, word)
    words_of_a_server = ("weft", "server", "--state", f"{kept.state_dir}/server")
    with subprocess.Popen([sys.executable, "-c", "input()", *words_of_a_server], stdin=subprocess.PIPE) as server:
        try:
            assert (main(["inspect"]), capsys.readouterr().err) == (bool(said), said)
        finally:
            server.kill()


def test_servers_that_do_not_run_get_other_options_and_keep_theirs_without_a_word(tmp_path: Path) -> None:
    choose_topology(str(tmp_path), server_options=("--audit-keep", "7d"))
    assert choose_topology(str(tmp_path)).server_options == ("--audit-keep", "7d")
    choose_topology(str(tmp_path), server_options=("--audit-keep", "30d"))
    kept = choose_topology(str(tmp_path))
    [server] = plan_daemons(kept)
    assert kept.server_options == server.argv[-2:] == ("--audit-keep", "30d")
