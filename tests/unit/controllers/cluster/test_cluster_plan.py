"""What becomes of a linked cluster's status with a reply, whatever that says."""

from __future__ import annotations

import math

import msgspec
import pytest

from weft.client.server.endpoints import MOST
from weft.controllers.cluster.facts import Reply, find_lag
from weft.controllers.cluster.plan import find_offset, plan_status
from weft.informer.view import make_view
from weft.kinds.cluster import ClusterActions, ClusterMarks, ClusterStatus
from weft.kinds.replication import REPLICATION, ReplicationSpec, ReplicationStatus
from weft.objects.envelope import encode_envelope
from weft.protocol.link import HelloAnswer

MARKS, NOTHING = ClusterMarks(peer_uid="u"), ClusterActions()
HELLO = HelloAnswer(
    uid="u", release="0.1.0", epoch="e", oldest=1, newest=1, now=100.0, seen_seconds=1.0, phase="Linked"
)
LINKED = ClusterStatus(
    phase="Linked", peer_uid="u", release="0.1.0", protocol=1, epoch="e", seen_at=99.0, clock_offset_seconds=0.0
)


def plan(
    hello: HelloAnswer | None = HELLO, former: ClusterStatus = LINKED, now: float = 100.0, **reply: object
) -> ClusterStatus:
    return plan_status("west", MARKS, NOTHING, former, Reply(hello, **reply), now)  # type: ignore[arg-type]


def changed(**fields: object) -> HelloAnswer:
    return msgspec.structs.replace(HELLO, **fields)


def test_nothing_new_is_nothing_to_write_for_a_while() -> None:
    assert plan() == LINKED
    assert plan(now=113.0) == LINKED
    assert plan(now=114.5).seen_at == 114.5
    assert plan(now=90.0).seen_at == 90.0  # the clock was set back


def test_its_servers_are_kept_as_it_names_them_and_nothing_that_is_none() -> None:
    first, second = "https://10.0.0.1:8443", "https://10.0.0.2:8443"
    named = [first, "ftp://x", "https://user:secret@x", f"{second}/", "https://x/path", "x" * 5000]
    known = plan(changed(servers=named))
    assert known.servers == [first, second]
    assert plan(changed(servers=[]), known) == known  # only one serves at the moment
    assert plan(changed(servers=[second, first]), known).servers == [second, first]
    assert len(plan(changed(servers=[f"https://10.0.1.{n}:1" for n in range(99)])).servers) == MOST
    assert plan(changed(uid="v", servers=named)).servers == []


@pytest.mark.parametrize(
    ("hello", "phase", "reason"),
    [
        (changed(uid="v"), "Failed", "wrongCa"),
        (changed(oldest=2, newest=3), "Failed", "linkProtocol"),
        (changed(oldest=0, newest=0), "Failed", "linkProtocol"),
        (changed(epoch="f"), "Suspect", "restored"),
        (changed(phase="Suspect"), "Refused", "suspectedThere"),
        (changed(release="0.9.0"), "Linked", "releaseSkew"),
        (changed(release="0.1.0\nx" * 99), "Linked", "releaseSkew"),
        (changed(seen_seconds=None, phase="Unreachable"), "Linked", "oneWay"),
        (changed(seen_seconds=None, phase="Pending"), "Linked", ""),
        (changed(seen_seconds=1e300), "Linked", "oneWay"),
        (changed(newest=7), "Linked", ""),
    ],
)
def test_what_it_says_decides_its_phase(hello: HelloAnswer, phase: str, reason: str) -> None:
    status = plan(hello)
    assert (status.phase, status.reason) == (phase, reason)
    assert len(status.release) <= 64 and "\n" not in status.message
    assert bool(status.message) == bool(reason)


def test_another_history_is_taken_only_when_people_trust_it() -> None:
    suspect = plan(changed(epoch="f"))
    assert suspect.epoch == "e"
    trusted = ClusterActions(trusted=1)
    status = plan_status("west", MARKS, trusted, suspect, Reply(changed(epoch="f")), 100.0)
    assert (status.phase, status.epoch, status.trusted) == ("Linked", "f", 1)
    # A second restore is not covered by the first word.
    assert plan_status("west", MARKS, trusted, status, Reply(changed(epoch="g")), 100.0).phase == "Suspect"


def test_a_short_silence_is_no_matter_and_a_refusal_is_at_once() -> None:
    assert plan(None, reason="unavailable", message="m", silent_seconds=9.0) == LINKED
    status = plan(None, reason="unavailable", message="m", silent_seconds=11.0)
    assert (status.phase, status.epoch, status.seen_at) == ("Unreachable", "e", 99.0)
    assert plan(None, reason="linkRefused", message="m").phase == "Refused"
    assert plan(None, reason="wrongCa", message="m").phase == "Failed"


def test_clocks_that_are_apart_are_named_and_do_no_harm() -> None:
    status = plan(clock_offset_seconds=-3600.0)
    assert (status.phase, status.reason, status.message) == ("Linked", "clocksApart", "the clock of west is 1h behind")
    assert plan(clock_offset_seconds=1e300).clock_offset_seconds == 1e9
    assert find_offset(105.0, 100.0, 2.0) == 4.0
    assert find_offset(math.inf, 100.0, 2.0) == 0.0


def test_the_lag_of_what_is_replicated_there_is_shown_also_while_it_is_silent() -> None:
    status = plan_status("west", MARKS, NOTHING, LINKED, Reply(HELLO), 100.0, (12.0, 60.0))
    assert (status.phase, status.lag_seconds, status.rpo_seconds) == ("Linked", 12.0, 60.0)
    silent = Reply(None, "unavailable", "m", silent_seconds=2.0)
    grown = plan_status("west", MARKS, NOTHING, status, silent, 103.0, (15.0, 60.0))
    assert (grown.phase, grown.lag_seconds) == ("Linked", 15.0)
    assert plan_status("west", MARKS, NOTHING, grown, silent, 104.0) == LINKED


def test_the_replica_that_is_oldest_for_its_rpo_counts() -> None:
    view = make_view()
    for name, cluster, lag, rpo in (
        *(("slow", "west", 90.0, 300.0), ("fast", "west", 30.0, 60.0), ("new", "west", None, 10.0)),
        ("elsewhere", "north", 500.0, 10.0),
    ):
        made = REPLICATION.make(
            *(name, ReplicationSpec(of=f"vm/{name}", cluster=cluster, rpo=rpo), 1.0),
            project="default",
            status=ReplicationStatus(lag_seconds=lag),
        )
        assert view.put(made.key, encode_envelope(made), 1) is not None
    assert find_lag(view, "west") == (30.0, 60.0)
    assert find_lag(view, "south") is None
