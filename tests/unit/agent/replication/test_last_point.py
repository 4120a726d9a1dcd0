"""A last point counts as sent once the replica shows it: a promotion right after it loses nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from weft.agent.replication import peer as module
from weft.agent.replication.peer import Peer
from weft.objects.errors import Unavailable


class Answers:
    """What the other cluster says of its replica, question after question; the last again and again."""

    def __init__(self, *points: list[dict[str, Any]]) -> None:
        self.left, self.asked = list(points), 0

    def get(self, kind: str, name: str) -> dict[str, Any]:
        assert (kind, name) == ("replica", "till")
        self.asked += 1
        return {"status": {"points": self.left.pop(0) if len(self.left) > 1 else self.left[0]}}


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
