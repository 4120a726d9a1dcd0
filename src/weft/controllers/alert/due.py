"""Find the notifications of a rule that are due, with their receivers, and note that one was sent. Pure.

A rule's status is the outbox: its newest notifications, and by receiver the id of the last one that it got. So a server that is
killed between the two sends it again, and never forgets it. What is silenced isn't due; once the silence is over it is, if the
alert goes on till then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from weft.informer.commit import Commit, Draft
from weft.informer.view import Item
from weft.kinds.alert_rule import AlertRuleSpec, AlertRuleStatus
from weft.kinds.fields.alert.notification import FIRING, Notification
from weft.kinds.silence import SilenceSpec, is_silenced

MOST_SENT = 100  # receivers that are remembered


class Addressee(NamedTuple):
    """A receiver, by NAME, or as PROJECT/NAME if it is another project's, which gets those of all rules. Of what is over it gets
    a notification only if that began after ``since`` (seconds since 1970), its creation."""

    name: str
    since: float


def list_due(
    rule: Item, addressees: Iterable[Addressee], silences: Sequence[SilenceSpec], now: float
) -> Iterator[tuple[str, Notification]]:
    """Each notification that is due, with the name of who gets it, oldest first. ``silences`` are those of the rule's project. A
    rule that is being deleted owes nothing."""
    status, wanted = rule.status(AlertRuleStatus), rule.spec(AlertRuleSpec).receivers
    if rule.deleting or not status.notices:
        return
    for addressee in addressees:
        if not wanted or addressee.name in wanted or "/" in addressee.name:
            for notice in _list_of(status, addressee, silences, now):
                yield addressee.name, notice


def note_sent(rule: Item, sent: Mapping[str, str]) -> Commit | None:
    """The commit that these notifications were sent: their ids by receiver; None if that is known. A later one isn't undone."""
    status = rule.status(AlertRuleStatus)
    noted = dict(status.sent)
    for receiver, id_ in sent.items():
        if read_position(id_) > read_position(noted.get(receiver, "")):
            noted[receiver] = id_
    if noted == status.sent:
        return None
    newest = sorted(noted, key=lambda name: read_position(noted[name]), reverse=True)[:MOST_SENT]
    draft = Draft()
    draft.change(rule, status=msgspec.structs.replace(status, sent={name: noted[name] for name in sorted(newest)}))
    return draft.commit(rule.key)


def read_position(id_: str) -> tuple[int, int]:
    """Episode and step of a notification's id, which order a rule's; (0, 0): none."""
    _, _, position = id_.partition(".")
    episode, _, step = position.partition(".")
    return (int(episode), int(step)) if episode.isdecimal() and step.isdecimal() else (0, 0)


def _list_of(
    status: AlertRuleStatus, addressee: Addressee, silences: Sequence[SilenceSpec], now: float
) -> Iterator[Notification]:
    last = read_position(status.sent.get(addressee.name, ""))
    knows = last[0]  # the episode of whose firing it knows
    newest = status.notices[-1]
    for place, notice in enumerate(status.notices):
        episode, step = read_position(notice.id)
        is_new = notice.time >= addressee.since or last != (0, 0)
        if (episode, step) <= last or not (is_new or (notice is newest and notice.type == FIRING)):
            continue
        if notice.type != FIRING:
            if knows == episode:
                yield notice
            continue
        later = status.notices[place + 1 :]
        if any(one.type == FIRING and read_position(one.id)[0] == episode for one in later):
            continue  # that one says it all
        loud = _without_silenced(notice, silences, now)
        if loud is not None:
            knows = episode
            yield loud


def _without_silenced(notice: Notification, silences: Sequence[SilenceSpec], now: float) -> Notification | None:
    """It without alerts that are silenced; None if all are that it shows."""
    loud = [
        alert
        for alert in notice.alerts
        if not any(is_silenced(silence, notice.rule, alert.labels, now) for silence in silences)
    ]
    if not loud:
        return None
    first = loud[0]
    return msgspec.structs.replace(
        notice,
        alerts=loud,
        count=notice.count - (len(notice.alerts) - len(loud)),
        labels=first.labels,
        value=first.value,
        since=first.since,
    )
