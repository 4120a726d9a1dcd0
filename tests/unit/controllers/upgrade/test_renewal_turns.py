"""Whose turn it is to be emptied and rebooted once all machines have the release, and what ends that."""

from __future__ import annotations

from weft.controllers.upgrade.plan import plan_upgrade
from weft.controllers.upgrade.renewal import REBOOT_SECONDS, SETTLE_SECONDS, STUCK_SECONDS
from weft.kinds.upgrade import MOST_LEFT, Machine, UpgradeActions, UpgradeStatus

RELEASE = "0.2.0"
KERNEL = "kernel 6.1.0-28-amd64 is installed, and 6.1.0-25-amd64 runs"


def node(name: str, *, ready: bool = True, reboot: str = "", outdated: int = 0, **more: object) -> Machine:
    return Machine("node", name, f"uid-{name}", RELEASE, ready, reboot=reboot, outdated=outdated)._replace(**more)


class Nodes:
    def __init__(self, *nodes: Machine) -> None:
        self.machines = {one.name: one for one in nodes}
        self.machines["s1"] = Machine("server", "s1", "uid-s1", RELEASE, True)
        self.status, self.asked, self.now = UpgradeStatus(), UpgradeActions(), 1000.0

    def change(self, name: str, **more: object) -> None:
        self.machines[name] = self.machines[name]._replace(**more)

    def look(self, seconds: float = 1.0) -> UpgradeStatus:
        machines = list(self.machines.values())
        self.status = plan_upgrade(RELEASE, self.asked, self.status, machines, "", self.now, renew=True)
        self.now += seconds
        return self.status

    def renew(self, name: str) -> None:
        """The node is emptied, reboots, and comes back."""
        assert self.look().turn is not None
        self.change(name, emptied="Drained", outdated=0)
        if self.machines[name].reboot:
            assert self.look().turn.rebooting_at is not None  # type: ignore[union-attr]
            self.change(name, ready=False, lost_at=self.now)
            assert self.look().message == f"node {name} reboots"
            self.change(name, ready=True, reboot="", lost_at=None)
        self.look(SETTLE_SECONDS)
        self.look()


def test_nodes_that_need_it_have_their_turn_one_after_the_other_and_the_others_none() -> None:
    nodes = Nodes(node("n2", reboot=KERNEL), node("n1", outdated=2), node("n3"))
    status = nodes.look()
    assert (status.phase, status.left) == ("Running", ["node/n1", "node/n2"])
    assert status.message == "node n1 is being emptied: 2 guests run in an earlier QEMU"
    assert status.turn is not None and (status.turn.name, status.turn.work) == ("n1", "renewal")
    nodes.renew("n1")
    status = nodes.status
    assert status.turn is not None and status.turn.name == "n2" and status.renewed == 1
    assert status.message == f"node n2 is being emptied: {KERNEL}"
    nodes.renew("n2")
    assert nodes.status.phase == "Done"
    assert nodes.status.message == "4 of 4 machines have weft 0.2.0; 2 nodes were renewed"


def test_a_node_that_is_only_outdated_is_not_rebooted() -> None:
    nodes = Nodes(node("n1", outdated=1))
    nodes.look()
    nodes.change("n1", emptied="Drained")
    status = nodes.look()
    assert status.turn is not None and status.turn.rebooting_at is None


def test_without_renew_nothing_is_emptied() -> None:
    machines = [Machine("server", "s1", "uid-s1", RELEASE, True), node("n1", reboot=KERNEL)]
    status = plan_upgrade(RELEASE, UpgradeActions(), UpgradeStatus(), machines, "", 1000.0)
    assert (status.phase, status.turn, status.message) == ("Done", None, "2 of 2 machines have weft 0.2.0")


def test_one_whose_guests_cannot_leave_stays_as_it_is_and_the_next_has_its_turn() -> None:
    nodes = Nodes(node("n1", reboot=KERNEL), node("n2", outdated=1))
    nodes.look()
    nodes.change("n1", emptied="Draining", emptying="2 left; migrating: vm/web")
    assert nodes.look(600.0).message == "node n1 is being emptied: 2 left; migrating: vm/web"
    nodes.change("n1", emptied="Blocked", emptying="1 left; vm/db can't leave: it has a GPU")
    nodes.look(STUCK_SECONDS)
    status = nodes.look()
    assert status.kept == ["node/n1: 1 left; vm/db can't leave: it has a GPU"]
    assert status.turn is not None and status.turn.name == "n2"
    nodes.renew("n2")
    assert nodes.status.message == (
        "3 of 3 machines have weft 0.2.0; 1 node was renewed; left as they are: node/n1: 1 left; vm/db can't leave: it has a GPU"
    )


def test_one_that_people_have_cordoned_is_left_to_them() -> None:
    nodes = Nodes(node("n1", reboot=KERNEL, closed=True))
    status = nodes.look()
    assert (status.phase, status.kept) == ("Done", ["node/n1: people have cordoned it"])


def test_one_that_does_not_come_back_stops_it() -> None:
    nodes = Nodes(node("n1", reboot=KERNEL), node("n2", reboot=KERNEL))
    nodes.look()
    nodes.change("n1", emptied="Drained")
    nodes.look()
    nodes.change("n1", ready=False, lost_at=nodes.now)
    nodes.look(REBOOT_SECONDS + 1)
    status = nodes.look()
    assert (status.phase, status.turn) == ("Stopped", None)
    assert status.message == "node n1 isn't ready, 15 min after its reboot began"
    nodes.asked = UpgradeActions(attempt=2)
    assert nodes.look().message == "node n1 isn't ready: no other node is emptied before it is"


def test_one_whose_machine_still_needs_it_after_the_reboot_is_left_with_that_reason() -> None:
    nodes = Nodes(node("n1", reboot=KERNEL))
    nodes.look()
    nodes.change("n1", emptied="Drained")
    nodes.look()
    nodes.change("n1", rebooted=f"the machine was rebooted, and still needs it: {KERNEL}")
    status = nodes.look()
    assert status.phase == "Done" and status.kept == [
        f"node/n1: the machine was rebooted, and still needs it: {KERNEL}"
    ]


def test_people_stop_it_in_the_middle_and_it_begins_with_all_that_is_left() -> None:
    nodes = Nodes(node("n1", outdated=1))
    nodes.look()
    nodes.asked = UpgradeActions(stop=True)
    status = nodes.look()
    assert (status.phase, status.turn, status.message) == ("Stopped", None, "people stopped it")
    nodes.asked = UpgradeActions(attempt=2)
    assert nodes.look().turn is not None


def test_a_node_that_is_lost_while_another_is_emptied_keeps_the_next_from_its_turn() -> None:
    nodes = Nodes(node("n1", outdated=1), node("n2", outdated=1), node("n3"))
    nodes.look()
    nodes.change("n3", ready=False, lost_at=nodes.now)
    nodes.change("n1", emptied="Drained", outdated=0)
    nodes.look(SETTLE_SECONDS)
    status = nodes.look()
    assert status.turn is None and status.message == "node n3 isn't ready: no other node is emptied before it is"


def test_it_stops_when_too_many_nodes_stay_as_they_are() -> None:
    nodes = Nodes(*(node(f"n{number:03}", reboot=KERNEL, closed=True) for number in range(MOST_LEFT + 5)))
    status = nodes.look()
    assert status.phase == "Stopped" and len(status.kept) == MOST_LEFT
