"""What the controllers ask of witness and other cluster for replicas that take over, and how long an answer counts."""

from __future__ import annotations

from typing import cast

import pytest

from weft.client.cluster.hold import ArmingAnswer, Hold
from weft.client.cluster.peer import PeerLink
from weft.contracts.clock import SystemClock
from weft.controllers.failover import automatic, controller
from weft.controllers.failover.automatic import Automatics
from weft.controllers.failover.controller import Witnesses
from weft.controllers.failover.facts import list_groups
from weft.controllers.failover.take_over import plan_disarming
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item, make_view
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.fields.cluster.link import Word
from weft.kinds.replica import REPLICA, ReplicaMarks, ReplicaSpec
from weft.kinds.replication import REPLICATION, ReplicationMarks, ReplicationSpec, ReplicationStatus, SentPoint
from weft.objects.envelope import Envelope, decode_envelope, decode_part


class Leadership:
    """A view, and what is made of commits."""

    def __init__(self, *made: Envelope) -> None:
        self.clock, self.cache, self.view = SystemClock(), self, make_view()
        for envelope in made:
            self.view.put_item(envelope.key, Item(envelope))


def make_cluster(name: str, phase: str, grant: Word = "take-over", project: str = "default") -> Item:
    spec = ClusterSpec(url="https://x", ca="", grants=["replicate", grant], projects={project: project})
    return Item(CLUSTER.make(name, spec, 1.0, uid=name, status=ClusterStatus(phase=phase)))


def make_replica(*, automatic: bool = True) -> Envelope:
    spec = ReplicaSpec(of="vm/web", origin="o", disks={"root": 1 << 30})
    return REPLICA.make(
        "web", spec, 1.0, uid="r", project="default", creator="cluster:east", marks=ReplicaMarks(automatic=automatic)
    )


@pytest.mark.parametrize("phase", ["Linked", "Suspect", "Refused", "Failed", "Pending"])
def test_the_witness_is_asked_for_a_grant_only_while_the_source_does_not_answer(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(controller, "read_boot_time", lambda: now[0])
    leadership = Leadership(make_replica())
    witnesses = Witnesses(cast(LeaderLease, leadership), None)
    groups = list_groups(leadership.view, "east", "west", "east")
    assert not witnesses._list_questions(make_cluster("east", "Unreachable"), groups, "west")
    now[0] = 39.0
    assert not witnesses._list_questions(make_cluster("east", phase), groups, "west")
    assert list(witnesses._list_questions(make_cluster("east", "Unreachable"), groups, "west")) == ["o"]
    assert not witnesses._list_questions(make_cluster("east", "Unreachable", "run"), groups, "west")


def test_what_people_grant_no_more_is_disarmed() -> None:
    view = Leadership(make_replica()).view
    groups = list_groups(view, "east", "west", "east")
    assert not plan_disarming(view, make_cluster("east", "Linked"), groups, "w")
    for link in (make_cluster("east", "Linked", "run"), make_cluster("east", "Linked", project="other")):
        (commit,) = plan_disarming(view, link, groups, "w")
        assert [event.reason for event in commit.events] == ["Disarmed"]
        (write,) = commit.writes
        assert not decode_part(decode_envelope(write.value, 1).marks, ReplicaMarks).automatic  # type: ignore[union-attr]


async def test_a_word_that_is_refused_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier one of the same turn may have counted."""
    said = list[tuple[bool, int]]()
    monkeypatch.setattr(automatic, "read_link", lambda *_: PeerLink("west", "https://x", "", ""))

    async def arm(link: PeerLink, hold: Hold, automatic: bool, arming: int) -> ArmingAnswer:
        said.append((automatic, arming))
        return ArmingAnswer("refused", "vm/web is here")

    spec, marks = ReplicationSpec(of="vm/web", cluster="west", automatic=True), ReplicationMarks(guard="hold", arming=4)
    item = Item(REPLICATION.make("web", spec, 1.0, uid="o", project="default", marks=marks))
    automatics = Automatics(cast(LeaderLease, Leadership()), None, "w", arm=arm)
    answer = await automatics._send(make_cluster("west", "Linked"), item, ("o", "hold", 4), automatic=True)
    assert (answer.outcome, said) == ("refused", [(True, 4), (False, 4)])


async def test_a_replica_that_was_restored_is_found_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows of a turn that was taken back since, so it is told again that nothing takes over."""
    now, there = [0.0], [ArmingAnswer("done")]
    monkeypatch.setattr(automatic, "read_boot_time", lambda: now[0])
    monkeypatch.setattr(automatic, "read_link", lambda *_: PeerLink("west", "https://x", "", ""))
    spec, marks = ReplicationSpec(of="vm/web", cluster="west"), ReplicationMarks(arming=4)
    status = ReplicationStatus(phase="Replicating", point=SentPoint(snapshot="s", snapshot_uid="u", begun_at=1.0))
    leadership = Leadership(REPLICATION.make("web", spec, 1.0, uid="o", project="default", marks=marks, status=status))

    async def read(link: PeerLink, hold: Hold) -> ArmingAnswer:
        return there[0]

    automatics = Automatics(cast(LeaderLease, leadership), None, "w", read=read)
    (replication,) = leadership.view.of_kind("replication").values()
    turn = ("o", "", 4)
    assert await automatics._inspect(make_cluster("west", "Linked"), replication, turn) == ArmingAnswer("done")
    there[0] = ArmingAnswer("done", "", True, 3)
    now[0] = 59.0
    assert automatics._recall(turn) is not None
    now[0] = 61.0
    assert automatics._recall(turn) is None
    assert await automatics._inspect(make_cluster("west", "Linked"), replication, turn) == there[0]
