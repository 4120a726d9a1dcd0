"""What the local cluster would do to the host: decided from values, before anything is touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from weft.launch.local.fabric import comes_up, describe_nodes, find_shown, plan_daemons
from weft.launch.local.processes import Process, is_weft
from weft.launch.local.topology import Taken, plan_topology, server_state_dir, server_url
from weft.launch.local.underlay import plan_bridge, plan_firewall, plan_node_links, plan_wire
from weft.launch.server.membership.removal import note_removal
from weft.objects.errors import Unavailable

TOPOLOGY = plan_topology("/clone", Taken())
STATE = "/clone/.weft"
ROOT = Path(__file__).resolve().parents[3]


def process(*argv: str) -> Process:
    return Process(7, 1, argv)


def test_a_bridge_that_is_there_is_not_made_again() -> None:
    assert any("link add" in line for line in plan_bridge(TOPOLOGY, frozenset()))
    assert not any("link add" in line for line in plan_bridge(TOPOLOGY, frozenset({TOPOLOGY.bridge})))


def test_the_default_route_is_the_last_thing_a_node_gets() -> None:
    assert plan_node_links(TOPOLOGY, TOPOLOGY.nodes[0])[-1] == f"route replace default via {TOPOLOGY.gateway_address}"


def test_a_wire_ends_in_the_namespace_of_the_nodes_init() -> None:
    assert any("peer name under0 netns 4711" in line for line in plan_wire(TOPOLOGY, TOPOLOGY.nodes[1], 4711))


def test_the_firewall_script_replaces_the_table_in_one_transaction() -> None:
    script = plan_firewall(TOPOLOGY)
    declare, delete = f"table inet {TOPOLOGY.nft_table}\n", f"delete table inet {TOPOLOGY.nft_table}\n"
    assert script.startswith(declare + delete)
    assert f"ip saddr {TOPOLOGY.underlay}" in script


def test_weft_recognises_its_own_daemons_by_role_and_state_folder() -> None:
    assert is_weft(process("/clone/.venv/bin/python", "/clone/.venv/bin/weft", "server", "--state", STATE), [STATE])
    assert is_weft(process("python", "init.py", "weft", "init", "n1", f"--state={STATE}"), [STATE])
    assert is_weft(process("/usr/bin/qemu-system-x86_64", "-drive", f"file={STATE}/nodes/n1/a,if=none"), [STATE])


def test_a_persons_own_commands_on_the_state_folder_are_not_wefts() -> None:
    assert not is_weft(process("tail", "-f", f"{STATE}/log/server.log"), [STATE])
    assert not is_weft(process("vim", "weft", f"{STATE}/config"), [STATE])
    assert not is_weft(process("weft", "vm", "list", "--state", STATE), [STATE])


def test_another_clones_daemons_are_not_this_ones() -> None:
    for other in ("/clone/.weft2", "/clone/.weft-old/x", "/other/clone/.weft", "/clone"):
        assert not is_weft(process("weft", "server", "--state", other), [STATE]), other


@pytest.mark.parametrize(
    ("status", "waits"),
    [
        ({"phase": "Boot"}, True),
        ({"phase": "Unknown", "lease": {"state": "Active"}}, True),
        ({"phase": "Prolog", "lease": {"state": "Scheduled"}}, False),  # for tomorrow
        ({"phase": "Boot", "lease": {"state": "Preparing"}}, False),
        ({"phase": "Running"}, False),
    ],
)
def test_make_up_waits_for_guests_that_should_run_and_for_no_lease_s_start(status: dict[str, Any], waits: bool) -> None:
    assert comes_up(status) is waits


def test_a_server_that_was_removed_is_not_started_again(tmp_path: Path) -> None:
    topology = plan_topology(str(tmp_path), Taken(), store="members", servers=3)
    for server in topology.servers[:2]:
        home = Path(server_state_dir(topology, server))
        home.mkdir(parents=True)
        (home / "store.url").write_text("members\n")
    assert [daemon.name for daemon in plan_daemons(topology)] == ["server-s1", "server-s2"]
    note_removal(Path(server_state_dir(topology, topology.servers[0])))
    assert [daemon.inside for daemon in plan_daemons(topology)] == ["s2"]
    assert find_shown(topology) == server_url(topology, topology.servers[1])


def test_a_node_that_was_deleted_is_not_waited_for_and_is_named() -> None:
    nodes = [{"name": "n1", "status": {"phase": "Ready"}}, {"name": "n2", "status": {}}]
    with pytest.raises(Unavailable, match="n2 is NotReady"):
        describe_nodes(["n1", "n2", "n3"], nodes)
    said = describe_nodes(["n1", "n3"], nodes)
    assert said.startswith("n1 online; n3 deleted, as you left it") and describe_nodes(["n1"], nodes) == "n1 online"
    with pytest.raises(Unavailable, match="the store doesn't have n3 yet"):  # it was lost, or replaced by an empty one
        describe_nodes(["n1", "n3"], nodes, lost=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("NODES=1", "error: make up has no variable NODES; it has STORE CONTAINERD"),
        ("SERVER=3", "error: make up has no variable SERVER; it has STORE CONTAINERD"),
        ("SERVERS=99", "error: SERVERS=99 is not possible"),
    ],
)
def test_make_up_refuses_what_it_does_not_have_before_it_installs_anything(given: str, said: str) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    words = ["make", "inspect", given, "SERVER_OPTIONS=--audit-keep 7d"]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr
