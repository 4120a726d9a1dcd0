"""Which notifications are due: each once for each receiver, whatever dies meanwhile, and none that is silenced."""

from __future__ import annotations

from collections.abc import Sequence

from tests.unit.controllers.alert.alert_lab import NOW, Played, found, rule

from weft.controllers.alert.due import Addressee, list_due, note_sent
from weft.kinds.fields.alert.notification import Notification, to_document
from weft.kinds.silence import SilenceSpec


def types(notices: Sequence[Notification]) -> list[str]:
    return [notice.type.removeprefix("alert.") for notice in notices]


def test_a_firing_alert_is_due_until_it_was_sent_and_is_the_same_each_time() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    ((name, first),) = one.due(NOW)
    ((_, again),) = one.due(NOW + 500)
    assert (name, first) == ("ops", again)
    assert (first.summary, first.labels, first.rule, first.project) == ("web has 1", {"vm": "web"}, "full", "a")
    assert types(one.send(NOW + 500)) == ["firing"]
    assert one.due(NOW + 501) == []


def test_what_began_and_was_over_while_nobody_could_send_is_sent_once_in_order() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    one.see(NOW + 10)
    assert types(one.send(NOW + 900)) == ["firing", "resolved"]
    assert one.send(NOW + 901) == []


def test_who_was_not_notified_that_it_fires_hears_nothing_of_its_end() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    one.see(NOW + 10)
    assert one.due(NOW + 20, "new", since=NOW + 15) == []


def test_a_new_receiver_hears_of_what_fires_now_and_not_of_what_is_over() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    one.see(NOW + 10)
    one.see(NOW + 20, found("web"))
    ((_, notice),) = one.due(NOW + 100, "new", since=NOW + 50)
    assert notice.id.endswith(".2.1")


def test_alerts_that_join_are_one_notification_after_half_a_minute() -> None:
    one = Played(rule())
    one.see(NOW, found("a"))
    assert [notice.count for notice in one.send(NOW)] == [1]
    one.see(NOW + 5, found("a"), found("b", begun=NOW + 5))
    one.see(NOW + 10, found("a"), found("b", begun=NOW + 5), found("c", begun=NOW + 10))
    assert one.due(NOW + 10) == []
    one.see(NOW + 30, found("a"), found("b", begun=NOW + 5), found("c", begun=NOW + 10))
    (notice,) = one.send(NOW + 30)
    assert (notice.count, notice.labels) == (3, {"vm": "c"})
    one.see(NOW + 90, found("a"), found("c", begun=NOW + 10))
    assert one.due(NOW + 90) == [], "one of several that is over says nothing"
    one.see(NOW + 100)
    assert types(one.send(NOW + 100)) == ["resolved"]


def test_of_several_notifications_that_it_fires_only_the_newest_is_sent() -> None:
    one = Played(rule())
    one.see(NOW, found("a"))
    one.see(NOW + 40, found("a"), found("b", begun=NOW + 40))
    assert [notice.count for notice in one.send(NOW + 50)] == [2]


def test_a_silenced_alert_is_due_once_the_silence_is_over_if_it_still_fires() -> None:
    one = Played(rule())
    one.silences = [SilenceSpec(rule="full", until=NOW + 100)]
    one.see(NOW, found("web"))
    assert one.due(NOW + 99) == []
    assert types([notice for _, notice in one.due(NOW + 100)]) == ["firing"]


def test_what_was_silenced_and_is_over_says_nothing_ever() -> None:
    one = Played(rule())
    one.silences = [SilenceSpec(labels={"vm": "web"}, until=NOW + 100)]
    one.see(NOW, found("web"))
    one.see(NOW + 50)
    assert one.due(NOW + 60) == []
    assert one.due(NOW + 500) == []


def test_who_heard_that_it_fires_hears_its_end_in_a_silence_too() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    one.send(NOW)
    one.silences = [SilenceSpec(rule="full", until=NOW + 1000)]
    one.see(NOW + 50)
    assert types(one.send(NOW + 51)) == ["resolved"]


def test_a_silence_of_one_label_leaves_the_others_loud() -> None:
    one = Played(rule())
    one.silences = [SilenceSpec(rule="full", labels={"vm": "a"}, until=NOW + 100)]
    one.see(NOW, found("a"), found("b"))
    ((_, notice),) = one.due(NOW)
    assert (notice.count, notice.labels, [alert.labels["vm"] for alert in notice.alerts]) == (1, {"vm": "b"}, ["b"])
    assert one.due(NOW)[0][1].id == one.status.notices[0].id


def test_a_rule_that_names_receivers_notifies_these_and_those_of_the_whole_fabric() -> None:
    one = Played(rule(receivers=["ops"]))
    one.see(NOW, found("web"))
    assert [name for name, _ in one.due(NOW, "ops", "others", "fabric/noc")] == ["ops", "fabric/noc"]


def test_an_older_outcome_does_not_undo_a_newer_one() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    first = one.status.notices[0].id
    one.see(NOW + 10)
    one.send(NOW + 20)
    assert note_sent(one.item, {"ops": first}) is None
    assert note_sent(one.item, {"ops": "nonsense"}) is None


def test_outcomes_are_remembered_of_so_many_receivers() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    one.write(note_sent(one.item, {f"r{number}": one.status.notices[0].id for number in range(1000)}))
    assert len(one.status.sent) == 100


def test_a_notification_as_a_document_has_times_that_programs_read() -> None:
    one = Played(rule())
    one.see(NOW, found("web"))
    ((_, notice),) = list_due(one.item, [Addressee("ops", 0.0)], [], NOW)
    document = to_document(notice)
    assert (document["time"], document["since"]) == ("2027-01-15T08:00:00Z",) * 2
    assert document["alerts"] == [
        {"labels": {"vm": "web"}, "value": 1.0, "since": "2027-01-15T08:00:00Z", "state": "firing"}
    ]
