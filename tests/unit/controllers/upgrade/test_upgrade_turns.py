"""Whose turn is next in an upgrade, and when it stops."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from weft.controllers.upgrade.plan import SETTLE_SECONDS, TURN_SECONDS, plan_upgrade
from weft.kinds.upgrade import Machine, UpgradeActions, UpgradeStatus

OLD, NEW = "0.1.0", "0.2.0"


def server(name: str, release: str = OLD, *, ready: bool = True, leads: bool = False, **more: str) -> Machine:
    return Machine("server", name, f"uid-{name}", release, ready, leads, **more)


def node(name: str, release: str = OLD, *, ready: bool = True, **more: float) -> Machine:
    return Machine("node", name, f"uid-{name}", release, ready, **more)


class Fleet:
    """Machines that do what they are told: the one whose turn it is restarts with the release."""

    def __init__(self, machines: list[Machine], to: str = NEW) -> None:
        self.machines, self.to, self.now = {one.what: one for one in machines}, to, 1000.0
        self.status, self.asked, self.turns = UpgradeStatus(), UpgradeActions(), list[str]()

    def put(self, machine: Machine) -> None:
        self.machines[machine.what] = machine

    def look(self, other: str = "") -> UpgradeStatus:
        former = self.status.turn
        self.status = plan_upgrade(self.to, self.asked, self.status, list(self.machines.values()), other, self.now)
        if self.status.turn is not None and (former is None or former.uid != self.status.turn.uid):
            self.turns.append(f"{self.status.turn.kind} {self.status.turn.name}")
        self.now += 1.0
        return self.status

    def upgrade(self) -> None:
        turn = self.status.turn
        assert turn is not None
        self.put(self.machines[f"{turn.kind} {turn.name}"]._replace(release=self.to, ready=True))

    def finish(self) -> None:
        for _ in range(500):
            self.look()
            if self.status.phase in ("Done", "Stopped"):
                return
            if self.status.turn is not None:
                self.upgrade()
        raise AssertionError(self.status)


def make_fleet(to: str = NEW, release: str = OLD) -> Fleet:
    return Fleet(
        [
            *(node(f"n{number}", release) for number in (2, 1, 3)),
            server("s1", release, leads=True),
            server("s3", release),
            server("s2", release),
        ],
        to,
    )


def test_servers_come_first_and_the_leading_one_last_of_them() -> None:
    fleet = make_fleet()
    fleet.finish()
    assert fleet.turns == ["server s2", "server s3", "server s1", "node n1", "node n2", "node n3"]
    assert (fleet.status.phase, fleet.status.upgraded, fleet.status.machines) == ("Done", 6, 6)
    assert fleet.status.message == "6 of 6 machines have weft 0.2.0"


def test_towards_an_older_release_nodes_come_first_since_no_agent_may_be_newer_than_the_servers() -> None:
    fleet = make_fleet(OLD, NEW)
    fleet.finish()
    assert fleet.turns == ["node n1", "node n2", "node n3", "server s2", "server s3", "server s1"]


def test_the_way_back_waits_with_the_servers_for_a_node_that_is_away() -> None:
    fleet = make_fleet(OLD, NEW)
    fleet.put(node("n3", NEW, ready=False))
    for _ in range(60):
        fleet.look()
        if fleet.status.turn is not None:
            fleet.upgrade()
    assert fleet.turns == ["node n1", "node n2"]
    assert fleet.status.message == "node n3 is away: it is upgraded when it is back, and 3 more"


@pytest.mark.parametrize("seed", range(20))
def test_at_no_moment_is_an_agent_newer_than_a_server_nor_two_machines_at_work(seed: int) -> None:
    """Whatever is killed: a plan knows nothing but the status and the machines."""
    draw = random.Random(seed)
    to, release = draw.choice([(NEW, OLD), (OLD, NEW)])
    fleet = make_fleet(to, release)
    for one in list(fleet.machines.values()):
        if draw.random() < 0.3:
            fleet.put(one._replace(release=to))
    oldest = min(one.release for one in fleet.machines.values() if one.kind == "server")
    for one in list(fleet.machines.values()):
        if one.kind == "node" and one.release > oldest:
            fleet.put(one._replace(release=oldest))
    for _ in range(400):
        fleet.look()
        turn = fleet.status.turn
        if turn is not None and draw.random() < 0.5:
            what = f"{turn.kind} {turn.name}"
            if fleet.machines[what].release != to and draw.random() < 0.3:
                fleet.put(fleet.machines[what]._replace(ready=False))
            else:
                fleet.upgrade()
        releases = {
            kind: [one.release for one in fleet.machines.values() if one.kind == kind] for kind in ("server", "node")
        }
        assert max(releases["node"]) <= min(releases["server"])
        if fleet.status.phase == "Done":
            break
    assert {one.release for one in fleet.machines.values()} == {to}


def test_a_machine_has_to_stay_ready_before_the_next_one_has_its_turn() -> None:
    fleet = make_fleet()
    fleet.look()
    fleet.upgrade()
    for _ in range(int(SETTLE_SECONDS)):
        assert fleet.look().turn is not None
        assert fleet.turns == ["server s2"]
    fleet.put(server("s2", NEW, ready=False))
    fleet.look()
    assert (fleet.status.phase, fleet.status.turn) == ("Stopped", None)
    assert fleet.status.message == "server s2 has weft 0.2.0, and isn't ready any more"


def test_it_stops_at_the_first_bad_sign_and_goes_on_when_people_resume_it() -> None:
    fleet = make_fleet()
    fleet.look()
    fleet.put(server("s2", outcome="dpkg: no space left on device"))
    fleet.look()
    assert (fleet.status.phase, fleet.status.message) == ("Stopped", "server s2: dpkg: no space left on device")
    for _ in range(10):
        assert fleet.look().phase == "Stopped"
    fleet.put(server("s2"))
    fleet.asked = replace(fleet.asked, attempt=2)
    fleet.finish()
    assert (fleet.status.phase, fleet.status.attempt) == ("Done", 2)


def test_a_machine_that_does_not_come_back_stops_it_in_time() -> None:
    fleet = make_fleet()
    fleet.look()
    fleet.put(server("s2", ready=False))
    for _ in range(int(TURN_SECONDS) + 5):
        fleet.look()
    assert fleet.status.message == "server s2 isn't ready, 15 min after its turn began"
    assert (fleet.status.phase, fleet.status.left[0]) == ("Stopped", "server/s2")


def test_none_has_its_turn_while_a_server_is_away() -> None:
    fleet = make_fleet()
    fleet.put(server("s3", ready=False))
    fleet.look()
    assert (fleet.status.phase, fleet.status.turn) == ("Running", None)
    assert fleet.status.message == "server s3 isn't ready: start it, or delete it"


def test_a_node_that_is_away_is_left_for_its_return() -> None:
    fleet = make_fleet()
    fleet.put(node("n1", ready=False, lost_at=1.0))
    for _ in range(200):
        fleet.look()
        if fleet.status.turn is not None:
            fleet.upgrade()
    assert (fleet.status.phase, fleet.status.left) == ("Running", ["node/n1"])
    assert fleet.status.message == "node n1 is away: it is upgraded when it is back"
    fleet.put(node("n1"))
    fleet.finish()
    assert fleet.status.phase == "Done"


def test_no_other_machine_is_touched_while_one_that_was_upgraded_is_lost() -> None:
    fleet = make_fleet()
    while "node n2" not in fleet.turns:
        fleet.look()
        if fleet.status.turn is not None and fleet.status.turn.name != "n2":
            fleet.upgrade()
    fleet.put(node("n1", NEW, ready=False, lost_at=fleet.now))
    fleet.upgrade()
    for _ in range(20):
        fleet.look()
    assert "node n3" not in fleet.turns
    assert "node n1 has weft 0.2.0, and isn't ready since" in fleet.status.message


def test_a_server_that_people_have_to_upgrade_stops_it_with_the_reason() -> None:
    fleet = make_fleet()
    fleet.put(server("s2", by_hand="this server doesn't run from the package weft-server: upgrade it by hand"))
    fleet.look()
    assert fleet.status.message.startswith("server s2: this server doesn't run from the package")
    fleet.put(server("s2", NEW, by_hand="this server doesn't run from the package weft-server: upgrade it by hand"))
    fleet.asked = replace(fleet.asked, attempt=2)
    fleet.finish()
    assert "server s2" not in fleet.turns


def test_people_stop_it_between_two_machines() -> None:
    fleet = make_fleet()
    fleet.look()
    fleet.asked = replace(fleet.asked, stop=True)
    assert fleet.look().phase == "Running"
    fleet.upgrade()
    fleet.finish()
    assert (fleet.status.phase, fleet.status.message, fleet.turns) == ("Stopped", "people stopped it", ["server s2"])


def test_the_second_of_two_waits_and_says_for_which() -> None:
    fleet = make_fleet()
    fleet.look("upgrade one is under way: it begins after that, or once that is stopped")
    assert (fleet.status.phase, fleet.status.turn) == ("Waiting", None)
    assert "upgrade one is under way" in fleet.status.message
    fleet.finish()
    assert fleet.status.phase == "Done"


def test_a_machine_that_is_deleted_in_its_turn_ends_that() -> None:
    fleet = make_fleet()
    fleet.look()
    del fleet.machines["server s2"]
    fleet.finish()
    assert (fleet.status.phase, fleet.status.machines) == ("Done", 5)
