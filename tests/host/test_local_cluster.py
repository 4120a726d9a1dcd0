"""The local cluster on this machine: three nodes in namespaces, their inits, what a death does, what down leaves.

Each test has a "machine" of its own, a network namespace that plays the host, so nothing here meets a running cluster
or another test; a second namespace behind it is the outside.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from weft.launch.local.cgroups import find_groups
from weft.launch.local.daemon import find_daemon
from weft.launch.local.down import find_mounts, find_processes
from weft.launch.local.node import plan_init
from weft.launch.local.processes import Process, inspect_processes
from weft.launch.local.topology import Node, Topology

pytestmark = pytest.mark.host

COMMAND = Path(__file__).with_name("local_command.py")
AGENT_PORT = 7001
OUTSIDE, MACHINE = "198.51.100.2", "198.51.100.1"
ANSWER_ONCE = (
    "import socket; s = socket.create_server(('0.0.0.0', 80)); print('up', flush=True);"
    "c, peer = s.accept(); c.sendall(peer[0].encode())"
)
ASK = "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); print(s.recv(99).decode())"


class Machine:
    """A network namespace that plays the host of local clusters."""

    def __init__(self, name: str) -> None:
        self.name = name

    def argv(self, *words: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", *words]

    def run(self, *words: str) -> str:
        return subprocess.run(self.argv(*words), check=True, capture_output=True, text=True, timeout=60).stdout

    def local(self, verb: str, clone: Path) -> subprocess.CompletedProcess[str]:
        words = self.argv(sys.executable, str(COMMAND), verb, str(clone))
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)

    def up(self, clone: Path) -> Topology:
        done = self.local("up", clone)
        assert done.returncode == 0, done.stderr + done.stdout
        return read_topology(clone)

    def down(self, clone: Path) -> None:
        done = self.local("down", clone)
        assert done.returncode == 0, done.stderr + done.stdout

    def forwarding(self) -> str:
        return self.run("cat", "/proc/sys/net/ipv4/ip_forward").strip()

    def snapshot(self) -> tuple[list[str], str]:
        """Everything of the network that a command could leave behind."""
        links = sorted(line.split()[0] for line in self.run("ip", "-br", "link").splitlines())
        return links, self.run("ip", "route") + self.run("nft", "list", "ruleset") + self.forwarding()


@pytest.fixture
def machine() -> Iterator[Machine]:
    name = f"wt{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    yield Machine(name)
    subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def clone(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    yield from make_clone(machine, tmp_path / "clone")


@pytest.fixture
def other_clone(machine: Machine, tmp_path: Path) -> Iterator[Path]:
    yield from make_clone(machine, tmp_path / "other")


def make_clone(machine: Machine, path: Path) -> Iterator[Path]:
    path.mkdir()
    yield path
    machine.down(path)


def test_nodes_reach_each_other_and_the_outside_by_the_machines_address(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    n1, n2, _ = topology.nodes
    assert inside(topology, n1, sys.executable, "-c", ASK, n2.address, str(AGENT_PORT)) == n1.address
    with outside_of(machine) as server:
        assert inside(topology, n1, sys.executable, "-c", ASK, OUTSIDE, "80") == MACHINE
        server.wait(10)


def test_a_node_sees_its_own_processes_links_and_namespaces_only(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    node = topology.nodes[0]
    assert inside(topology, node, "cat", "/proc/1/cmdline").startswith(sys.executable)
    assert inside(topology, node, "ls", "/sys/class/net").split() == ["lo", "under0"]
    assert inside(topology, node, "ip", "netns", "list") == ""
    inside(topology, node, "ip", "netns", "add", "inner")
    assert "inner" not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert "n1" in inside(topology, node, "ls", *(str(g.parent) for g in find_groups(topology.node_cgroup(node))[:1]))


def test_a_killed_agent_is_started_again_and_its_guest_lives_on(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    node = topology.nodes[1]
    guest, agent = find_guest(topology, node), find_agent(topology, node)
    os.kill(agent.pid, signal.SIGKILL)
    eventually(lambda: read_starts(topology, node) == 2)
    assert find_guest(topology, node) == guest
    assert find_agent(topology, node) != agent


@pytest.mark.long
def test_killing_a_nodes_init_is_its_power_cut_and_up_brings_it_back(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    cut, *others = topology.nodes
    others_before = [find_agent(topology, node) for node in others]
    os.kill(find_init(topology, cut).pid, signal.SIGKILL)
    eventually(lambda: not find_node_processes(topology, cut))
    assert [find_agent(topology, node) for node in others] == others_before
    assert machine.up(clone) == topology
    eventually(lambda: read_starts(topology, cut) == 2)
    assert inside(topology, cut, sys.executable, "-c", ASK, others[0].address, str(AGENT_PORT)) == cut.address
    assert [find_agent(topology, node) for node in others] == others_before


def test_an_init_that_is_told_to_stop_ends_its_agent_in_order(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    node = topology.nodes[0]
    os.kill(find_init(topology, node).pid, signal.SIGTERM)
    eventually(lambda: not find_node_processes(topology, node))
    assert Path(topology.node_state_dir(node), "ended").exists()


def test_up_again_on_a_healthy_cluster_changes_nothing(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    before = find_processes(Path(topology.state_dir), topology)
    network = machine.snapshot()
    assert machine.up(clone) == topology
    assert find_processes(Path(topology.state_dir), topology) == before
    assert machine.snapshot() == network


def test_up_heals_a_cluster_of_which_everything_was_killed(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    for process in find_processes(Path(topology.state_dir), topology):
        if process.argv[-2:] == ("--state", topology.state_dir):
            kill(process)
    eventually(lambda: not find_processes(Path(topology.state_dir), topology))
    assert machine.up(clone) == topology
    eventually(lambda: [read_starts(topology, node) for node in topology.nodes] == [2, 2, 2])


def test_up_finds_what_a_killed_up_started_and_did_not_note(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    before = find_processes(Path(topology.state_dir), topology)
    for note in Path(topology.state_dir, "run").glob("*.pid"):
        note.unlink()
    assert machine.up(clone) == topology
    assert find_processes(Path(topology.state_dir), topology) == before


@pytest.mark.long
def test_a_second_up_at_the_same_time_is_refused_and_names_the_first(machine: Machine, clone: Path) -> None:
    (clone / "hold").touch()
    first = subprocess.Popen(machine.argv(sys.executable, str(COMMAND), "up", str(clone)), stdout=subprocess.DEVNULL)
    eventually(lambda: (clone / ".weft" / "server.up").exists())
    second = machine.local("up", clone)
    down = machine.local("down", clone)
    (clone / "hold").unlink()
    assert first.wait(20) == 0
    assert second.returncode == 1 and f"another make up (pid {first.pid}) is running" in second.stderr
    assert down.returncode == 1 and f"another make up (pid {first.pid}) is running" in down.stderr


def test_a_server_that_ends_at_once_is_named_with_its_last_words(machine: Machine, clone: Path) -> None:
    (clone / "broken").touch()
    done = machine.local("up", clone)
    assert done.returncode == 1
    assert "server" in done.stderr and "the store is from another world" in done.stderr
    (clone / "broken").unlink()
    machine.up(clone)


def test_down_leaves_nothing_behind(machine: Machine, clone: Path) -> None:
    before = machine.snapshot()
    topology = machine.up(clone)
    assert machine.forwarding() == "1"
    cached = clone / ".weft" / "cache" / "tiny.img"
    cached.parent.mkdir()
    cached.write_text("expensive")
    machine.down(clone)
    assert machine.snapshot() == before
    assert find_leftovers(topology) == []
    assert (clone / "server.closed").exists()
    assert [str(p.relative_to(clone)) for p in (clone / ".weft").rglob("*")] == [".weft/cache", ".weft/cache/tiny.img"]


def test_down_finds_what_a_lost_state_folder_and_a_killed_server_left(machine: Machine, clone: Path) -> None:
    before = machine.snapshot()
    topology = machine.up(clone)
    machine.run("ip", "link", "add", f"{topology.link_prefix}stray", "type", "bridge")
    for group in find_groups(topology.node_cgroup(topology.nodes[0])):
        (group / "guest").mkdir()
    subprocess.run(["ip", "netns", "add", f"{topology.link_prefix}stray"], check=True)
    kill(next(p for p in find_processes(Path(topology.state_dir), topology) if "server" in p.argv))
    for name in ("cluster.json", "run/init-n1.pid", "run/server.pid"):
        Path(topology.state_dir, name).unlink()
    machine.down(clone)
    assert machine.snapshot() == before
    assert find_leftovers(topology) == []


def test_up_ends_all_that_runs_of_a_state_folder_that_is_not_this_one(machine: Machine, clone: Path) -> None:
    state, elsewhere = clone / ".weft", clone / "elsewhere"

    def all_of(topology: Topology) -> list[Process]:
        """A server, three inits, three agents, as soon as all have begun, and what one of them has just forked is itself; their
        guests end with the inits."""
        deadline = time.monotonic() + 60
        while len(found := find_processes(state, topology)) != 7 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(found) == 7
        return found

    def up() -> list[Process]:
        """Those that run after another up."""
        told = machine.local("up", clone)
        assert told.returncode == 0, told.stdout + told.stderr
        assert re.search(r"stopped [67] processes", told.stdout)  # one that misses its folder may have ended by itself
        return all_of(read_topology(clone))

    first = machine.up(clone)
    kill(find_init(first, first.nodes[0]))
    machine.up(clone)
    before = all_of(first)
    state.rename(elsewhere)  # as gone as if removed
    second = up()
    assert not set(inspect_processes()) & set(before)
    assert [read_starts(first, node) for node in first.nodes] == [1, 1, 1]
    state.rename(clone / "second")
    elsewhere.rename(state)  # another one in its place, say from a copy
    up()
    assert not set(inspect_processes()) & set(second)
    assert read_topology(clone) == first


def test_two_clones_side_by_side_do_not_touch_each_other(machine: Machine, clone: Path, other_clone: Path) -> None:
    before = machine.snapshot()
    one, other = machine.up(clone), machine.up(other_clone)
    others = find_processes(Path(other.state_dir), other)
    machine.down(clone)
    assert find_leftovers(one) == []
    assert find_processes(Path(other.state_dir), other) == others
    assert machine.forwarding() == "1"
    n1, n2, _ = other.nodes
    assert inside(other, n1, sys.executable, "-c", ASK, n2.address, str(AGENT_PORT)) == n1.address
    machine.down(other_clone)
    assert machine.snapshot() == before


def test_a_copied_clone_does_not_lay_hands_on_the_originals_cluster(machine: Machine, clone: Path) -> None:
    topology = machine.up(clone)
    copy = clone.with_name("copy")
    (copy / ".weft").mkdir(parents=True)
    (copy / ".weft" / "cluster.json").write_bytes((clone / ".weft" / "cluster.json").read_bytes())
    for verb in ("up", "down"):
        done = machine.local(verb, copy)
        assert done.returncode == 1 and str(clone) in done.stderr
    assert find_processes(Path(topology.state_dir), topology) != []


# --- words the tests use ------------------------------------------------------------------------------------------


def read_topology(clone: Path) -> Topology:
    return msgspec.json.decode((clone / ".weft" / "cluster.json").read_bytes(), type=Topology)


def find_init(topology: Topology, node: Node) -> Process:
    process = find_daemon(plan_init(topology, node))
    assert process is not None
    return process


def find_node_processes(topology: Topology, node: Node) -> list[Process]:
    """The node's init, agent and guest."""
    role = f"{node.name} --state {topology.state_dir}", f"guest {topology.node_state_dir(node)}"
    return [p for p in inspect_processes() if " ".join(p.argv).endswith(role)]


def find_agent(topology: Topology, node: Node) -> Process:
    return next(p for p in find_node_processes(topology, node) if "agent" in p.argv)


def find_guest(topology: Topology, node: Node) -> Process:
    return next(p for p in find_node_processes(topology, node) if "guest" in p.argv)


def read_starts(topology: Topology, node: Node) -> int:
    """How often the node's agent has been started."""
    return int(Path(topology.node_state_dir(node), "starts").read_text() or 0)


def inside(topology: Topology, node: Node, *words: str) -> str:
    """The output of a command in the node's namespaces."""
    enter = ["nsenter", "-t", str(find_init(topology, node).pid), "--net", "--mount", "--pid"]
    return subprocess.run([*enter, *words], check=True, capture_output=True, text=True, timeout=20).stdout.strip()


def find_leftovers(topology: Topology) -> list[str]:
    """What is left of a cluster outside its network."""
    namespaces = [name for name in os.listdir("/run/netns") if name.startswith(topology.link_prefix)]
    processes = [" ".join(p.argv) for p in inspect_processes() if any(topology.clone in word for word in p.argv)]
    folders = [topology.run_dir] if Path(topology.run_dir).exists() else []
    mounts = find_mounts(topology.clone, topology.run_dir)
    return [*namespaces, *processes, *folders, *mounts, *map(str, find_groups(topology.cgroup))]


def kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it died with its node's init
        os.kill(process.pid, signal.SIGKILL)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "did not come true within a minute"
        time.sleep(0.02)


class outside_of:
    """A server in a namespace behind the machine, which answers its one caller with the address it sees."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._name = f"{machine.name}o"

    def __enter__(self) -> subprocess.Popen[str]:
        name = self._name
        for words in (
            ["netns", "add", name],
            ["-n", self._machine.name, "link", "add", "wan", "type", "veth", "peer", "name", "wan", "netns", name],
            ["-n", self._machine.name, "addr", "add", f"{MACHINE}/24", "dev", "wan"],
            ["-n", name, "addr", "add", f"{OUTSIDE}/24", "dev", "wan"],
            ["-n", self._machine.name, "link", "set", "wan", "up"],
            ["-n", name, "link", "set", "wan", "up"],
        ):
            subprocess.run(["ip", *words], check=True)
        words = ["nsenter", f"--net=/run/netns/{name}", sys.executable, "-c", ANSWER_ONCE]
        self._server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._server.stdout is not None and self._server.stdout.readline() == "up\n"
        return self._server

    def __exit__(self, *_: object) -> None:
        self._server.kill()
        self._server.communicate()
        subprocess.run(["ip", "netns", "del", self._name], check=True)
