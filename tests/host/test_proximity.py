"""Round trips between namespaces, with delays that are real, decide where a workload goes that wants to be near."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.unit.scheduler.node_items import REPORT, make_node

from weft.agent.node.proximity import Nearness
from weft.contracts.policy import Request
from weft.protocol.report import Peer, Peers
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.node.facts import read_node
from weft.scheduler.table.snapshot import Snapshot
from weft.trust.probe.echo import node_key, pair_key

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
HERE = Path(__file__).parent
SECRET = b"s" * 32
NAMES = ("n1", "n2", "n3")
NEAR_MS, FAR_MS = 1, 40
PATIENCE_SECONDS = 60.0


class NearLab:
    """Three nodes in namespaces, between which packets take as long as ``delay`` says."""

    def __init__(self) -> None:
        self.tag = f"wp{secrets.token_hex(3)}"
        self.uids = {name: str(uuid.uuid4()) for name in NAMES}
        self.addresses = {name: f"10.98.0.{number}" for number, name in enumerate(NAMES, 1)}
        self.told = {name: Nearness() for name in NAMES}
        self.changed = threading.Condition()
        self.processes: list[subprocess.Popen[str]] = []
        self.readers: list[threading.Thread] = []
        for name in NAMES:
            subprocess.run(["ip", "netns", "add", self.tag + name], check=True)
        ends = [f"{self.tag}{name}={self.addresses[name]}" for name in NAMES]
        self.switch = self.start([sys.executable, str(HERE / "delay_switch.py"), *ends])
        assert self.switch.stdout is not None and self.switch.stdout.readline() == "ready\n"
        self.nodes = {name: self.start_node(name) for name in NAMES}

    def start(self, argv: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def start_node(self, name: str) -> subprocess.Popen[str]:
        enter = ["ip", "netns", "exec", self.tag + name, sys.executable, str(HERE / "near_node.py")]
        process = self.start([*enter, self.uids[name], self.addresses[name]])
        self.readers.append(threading.Thread(target=self.read, args=(name, process), daemon=True))
        self.readers[-1].start()
        return process

    def read(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self.changed:
                self.told[name] = msgspec.json.decode(line, type=Nearness)
                self.changed.notify_all()

    def delay(self, one: str, other: str, milliseconds: float) -> None:
        assert self.switch.stdin is not None
        self.switch.stdin.write(f"{self.tag}{one} {self.tag}{other} {milliseconds}\n")
        self.switch.stdin.flush()

    def introduce(self) -> None:
        for name, process in self.nodes.items():
            peers = [
                Peer(uid, self.addresses[other], 8445, pair_key(node_key(SECRET, uid), self.uids[name]).hex())
                for other, uid in self.uids.items()
                if other != name
            ]
            told = Peers("v1", node_key(SECRET, self.uids[name]).hex(), peers)
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(told).decode() + "\n")
            process.stdin.flush()

    def snapshot(self, *, direct: bool = True) -> Snapshot:
        """What the scheduler makes of what the nodes tell; without ``direct`` of their coordinates alone."""
        table = Snapshot()
        for name, told in self.told.items():
            report = msgspec.structs.replace(
                REPORT, coordinate=told.coordinate, round_trips=told.round_trips if direct else {}
            )
            table.put_node(read_node(make_node(name, report, uid=self.uids[name])))
        return table

    def until_chosen(self, name: str, near: str, *, direct: bool = True) -> None:
        """Wait until a workload that wants to be near one node goes to another: it is that or the next nearest, for the
        node itself has no room."""
        chosen = None

        def is_so() -> bool:
            nonlocal chosen
            chosen = choose(self.snapshot(direct=direct), self.uids[near], near)
            return chosen == name

        with self.changed:
            assert self.changed.wait_for(is_so, PATIENCE_SECONDS), (chosen, self.told)

    def until_told(self, name: str, holds: Callable[[Nearness], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: holds(self.told[name]), PATIENCE_SECONDS), self.told

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for reader in self.readers:
            reader.join()
        for process in self.processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", self.tag + name], check=True)


def choose(table: Snapshot, uid: str, full: str) -> str | None:
    index = table.index_of(uid)
    assert index is not None
    table.put_allocation("all of it", uid, (4000, 0, 0))
    request = Request(amounts=(1000, 1 << 28, 0), machine="q35", strategy="network_proximity", caller=uid)
    row = Engine(table, seed=0).choose(request, "w")
    return None if row is None else table.names[row]


@pytest.fixture
def lab() -> Iterator[NearLab]:
    made = NearLab()
    try:
        yield made
    finally:
        made.close()


def test_a_delay_between_nodes_moves_the_choice_of_network_proximity(lab: NearLab) -> None:
    lab.delay("n1", "n2", FAR_MS)
    lab.delay("n1", "n3", NEAR_MS)
    lab.delay("n2", "n3", FAR_MS)
    lab.introduce()
    lab.until_chosen("n3", near="n1")  # without a word from the nodes it would be the first by name, n2
    lab.until_chosen("n3", near="n1", direct=False)
    lab.until_told("n1", lambda told: told.round_trips.get(lab.uids["n2"], 0.0) >= 2 * FAR_MS)
    lab.delay("n1", "n2", NEAR_MS)
    lab.delay("n1", "n3", FAR_MS)
    lab.until_chosen("n2", near="n1")
