"""A last point counts as sent once the replica shows it: a promotion right after it loses nothing. What was promoted, or is gone
after it had points, is never taken for a standby."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from weft.agent.replication import peer as module
from weft.agent.replication.peer import Peer
from weft.agent.replication.sender import put_replica
from weft.cli.command.grammar import load, verbs_of
from weft.kinds.fields.replication.work import SendOrder
from weft.kinds.registry import BY_NAME
from weft.objects.errors import AlreadyExists, IllegalTransition, InvalidInput, NotFound, Unavailable


class Answers:
    """What the other cluster says of its replica, question after question; the last again and again."""

    project = "lab"

    def __init__(self, *points: list[dict[str, Any]], role: str = "standby") -> None:
        self.left, self.asked, self.role, self.made = list(points), 0, role, list[dict[str, Any]]()

    def get(self, kind: str, name: str) -> dict[str, Any]:
        assert (kind, name) == ("replica", "till")
        self.asked += 1
        if not self.left:
            raise NotFound("there is no replica till")
        spec = {"origin": "r", "of": "vm/till", "role": self.role}
        return {"spec": spec, "status": {"points": self.left.pop(0) if len(self.left) > 1 else self.left[0]}}

    def create(self, manifest: dict[str, Any]) -> None:
        self.made.append(manifest)


def make_peer(answers: Answers) -> Peer:
    peer = Peer.__new__(Peer)
    peer.stopped = threading.Event()
    vars(peer)["_client"] = answers
    return peer


def test_it_waits_until_the_replica_shows_the_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_AGAIN_SECONDS", 0.001)
    first = {"number": 1, "source": "a"}
    answers = Answers([], [first], [first, {"number": 2, "source": "b"}])
    make_peer(answers).await_point("till", "b")
    assert answers.asked == 3


def test_a_point_that_never_shows_is_sent_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHOWN_AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(module, "SHOWN_TRIES", 5)
    with pytest.raises(Unavailable) as told:
        make_peer(Answers([{"number": 1, "source": "a"}])).await_point("till", "b")
    assert told.value.token == "replicaNotReady"


def test_a_point_after_which_the_vm_may_start_again_counts_only_at_a_standby() -> None:
    point = [{"number": 1, "source": "a"}]
    make_peer(Answers(point)).await_point("till", "a", as_standby=True)
    make_peer(Answers(point, role="primary")).await_point("till", "a")  # a last one may be promoted at once
    with pytest.raises(IllegalTransition) as told:
        make_peer(Answers(point, role="primary")).await_point("till", "a", as_standby=True)
    assert told.value.token == "staleGeneration"


def test_a_replica_that_had_points_and_is_gone_is_not_made_again() -> None:
    answers = Answers()
    with pytest.raises(IllegalTransition) as told:
        make_peer(answers).put_replica("till", {"origin": "r"}, has_points=True)
    assert (told.value.token, answers.made) == ("replicaGone", []) and "delete this replication" in str(told.value.hint)
    make_peer(answers).put_replica("till", {"origin": "r"}, has_points=False)
    assert [one["name"] for one in answers.made] == ["till"]


@pytest.mark.parametrize(
    ("of", "whose"), [("vm/till", "an earlier replication of this VM"), ("vm/shop", "another replication")]
)
def test_a_name_that_another_replica_has_is_said_with_how_to_free_it(of: str, whose: str) -> None:
    with pytest.raises(AlreadyExists, match=f"replica/till of {whose} already") as told:
        make_peer(Answers([])).put_replica("till", {"origin": "new", "of": of}, has_points=False)
    assert told.value.token == "nameTaken"
    hint = str(told.value.hint)
    assert hint.startswith(
        "if nobody needs those points: weft replica delete till -p lab, at the other cluster, frees the name"
    )
    command = load("delete", verbs_of("replica")["delete"], BY_NAME["replica"])
    assert command.name == "delete", "the remedy exists"


def test_what_is_not_there_for_a_replica_is_said_with_the_cluster_that_lacks_it() -> None:
    class Lacking(Answers):
        def create(self, manifest: dict[str, Any]) -> None:
            raise NotFound('pool "nope" not found', hint="weft pool list")

    order = SendOrder(
        uid="r", node_uid="n", attempt=1, cluster="west", project="lab", replica="till", manifest={}, snapshot="s"
    )
    with pytest.raises(NotFound) as told:
        put_replica(make_peer(Lacking()), order)
    assert (told.value.message, told.value.hint) == ('pool "nope" not found at west', "there: weft pool list")
    assert told.value.token == "notFound", "people must act, so it is tried again late"


@pytest.mark.parametrize(
    ("answers", "origin", "reason"),
    [
        (Answers([]), "r", ""),
        (Answers([], role="primary"), "r", "staleGeneration"),
        (Answers(), "r", "replicaGone"),
        (Answers([]), "another", "replicaGone"),
    ],
)
def test_a_question_finds_out_whether_the_replica_is_still_a_standby(
    answers: Answers, origin: str, reason: str
) -> None:
    peer = make_peer(answers)
    if not reason:
        return peer.check_standby("till", origin)
    with pytest.raises(IllegalTransition) as told:
        peer.check_standby("till", origin)
    assert told.value.token == reason


@pytest.mark.parametrize(
    "answer", [{}, {"spec": [], "status": {}}, {"spec": {}, "status": {"points": [{"source": 7}]}}]
)
def test_an_answer_that_is_no_replica_is_told_as_such(answer: dict[str, Any]) -> None:
    peer = Peer.__new__(Peer)
    peer.stopped = threading.Event()

    class Odd:
        def get(self, kind: str, name: str) -> dict[str, Any]:
            return answer

    vars(peer)["_client"] = Odd()
    with pytest.raises(InvalidInput, match="can't be read"):
        peer.check_standby("till", "r")
    with pytest.raises(InvalidInput, match="can't be read"):
        peer.put_replica("till", {"origin": "r"}, has_points=True)
    with pytest.raises(InvalidInput, match="can't be read"):
        peer.await_point("till", "a")
