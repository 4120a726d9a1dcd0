"""Notifies receivers of alerts and events: a turn for each, so that one which hangs delays no other.

Reads receivers, their Secrets, rules, silences, nodes, and this server's journal; writes receiver.status and, of a rule, which
notifications were sent. Woken by receivers, Secrets, rules and silences, and by the journal, which is read twice a second.
What was sent is noted afterwards: a process that is killed in between sends it again, with the same id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from weft.contracts.journal import Event
from weft.controllers.alert.due import note_sent
from weft.controllers.asking import Asking, Later
from weft.controllers.image.credentials import Unseal
from weft.controllers.node.addresses import list_addresses
from weft.controllers.receiver.alerts import (
    REPEAT_SECONDS,
    address,
    find_silence_end,
    is_addressed,
    list_notices,
    make_repeat,
)
from weft.controllers.receiver.credentials import open_secret
from weft.controllers.receiver.message import Message, render_test
from weft.controllers.receiver.outbox import EventReader, Waiting, read_events
from weft.controllers.receiver.outcome import DeliveryOutcome
from weft.controllers.receiver.plan import find_wait, list_lost, note_attempt, note_position, note_test
from weft.controllers.receiver.sender import Send
from weft.informer.commit import Commit, Draft
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Changed, Item, View
from weft.kinds.alert_rule import ALERT_RULE
from weft.kinds.receiver import RECEIVER, JournalPosition, ReceiverActions, ReceiverSpec, ReceiverStatus
from weft.kinds.silence import SILENCE
from weft.objects.errors import WeftError

POLL_SECONDS = 0.5
NOTE_SECONDS = 1.0  # so often it is noted what was sent
KEEP_SECONDS = 600.0
TRY_AGAIN_SECONDS = 10.0  # after a defect
JOURNAL = "journal"
_MOST_TRIES = 5
_SOURCE = "receivers"
_log = logging.getLogger(__name__)


class Receivers(Asking):
    """Keys are those of receivers, and ``JOURNAL``, at whose turn it is looked for events."""

    name = "receivers"
    kinds = (RECEIVER.name, "secret", ALERT_RULE.name, SILENCE.name)
    always = (JOURNAL,)

    def __init__(self, leadership: LeaderLease, journal: EventReader, send: Send, unseal: Unseal | None = None) -> None:
        self._leadership, self._journal, self._send, self._unseal = leadership, journal, send, unseal
        self._clock = leadership.clock
        self._newest = -1
        self._reached: dict[str, JournalPosition] = {}  # by uid: nothing that it gets is before this
        self._kept_at: dict[str, float] = {}  # by uid, when that was last noted without anything to send
        self._repeated_at: dict[str, float] = {}

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == RECEIVER.name:
            if change.old is not None and (change.new is None or change.new.uid != change.old.uid):
                for kept in (self._reached, self._kept_at, self._repeated_at):
                    kept.pop(change.old.uid, None)
            return [change.key]
        receivers = view.of_kind(RECEIVER.name)
        if change.kind == ALERT_RULE.name:
            return [key for key, receiver in receivers.items() if is_addressed(receiver, change.item)]
        project = change.item.envelope.project
        return [
            key
            for key, receiver in receivers.items()
            if receiver.spec(ReceiverSpec).all_projects or receiver.envelope.project == project
        ]

    async def take_turn(self, key: str) -> Later:
        if key == JOURNAL:
            return await self._watch_journal()
        receiver = self._leadership.cache.view.get(key)
        if receiver is None or receiver.deleting:
            return {}
        wait = await self._inspect(receiver)
        return {key: wait} if wait is not None else {}

    async def _watch_journal(self) -> Later:
        receivers = self._leadership.cache.view.of_kind(RECEIVER.name)
        try:
            found = await asyncio.to_thread(self._journal.find_newest) if receivers else self._newest
        except Exception:  # a full or damaged disk: what is due is sent once it can be read
            _log.exception("the journal can't be read")
            return {JOURNAL: TRY_AGAIN_SECONDS}
        if found == self._newest:
            return {JOURNAL: POLL_SECONDS}
        self._newest = found
        return {**dict.fromkeys(receivers, 0.0), JOURNAL: POLL_SECONDS}

    def _find(self, key: str, uid: str) -> Item | None:
        item = self._leadership.cache.view.get(key)
        return item if item is not None and item.uid == uid and not item.deleting else None

    async def _inspect(self, receiver: Item) -> float | None:
        """Do what is due; returns the seconds until it must be looked at again, None: when it is woken."""
        spec, status = receiver.spec(ReceiverSpec), receiver.status(ReceiverStatus)
        if receiver.actions(ReceiverActions).test_generation > status.test.generation:
            await self._test(receiver)
            return 0.0
        now = self._clock.now()
        if spec.paused:
            return None
        if (left := find_wait(status, now)) > 0:
            return left
        read = await read_events(self._journal, receiver, self._reached.get(receiver.uid) or status.position)
        if not read.waiting:
            await self._skip(receiver, read.reached)
        # Events in the journal's order, whatever the clock was: the position in it shows what was sent.
        if waiting := [*list_notices(self._leadership.cache.view, receiver, now), *read.waiting]:
            await self._deliver(receiver, waiting)
            return 0.0
        if read.more:
            return 0.0
        waits = [find_silence_end(self._leadership.cache.view, receiver, now)]
        if spec.type == "alertmanager":
            waits.append(await self._repeat(receiver, now))
        return min((wait for wait in waits if wait is not None), default=None)

    async def _skip(self, receiver: Item, reached: JournalPosition) -> None:
        """Nothing up to ``reached`` concerns it: that is noted seldom, since nothing is lost by reading it again."""
        self._reached[receiver.uid] = reached
        position, elapsed = receiver.status(ReceiverStatus).position, self._clock.elapsed()
        kept_at = self._kept_at.setdefault(receiver.uid, elapsed)
        if position.journal != reached.journal or (position != reached and elapsed - kept_at >= KEEP_SECONDS):
            self._kept_at[receiver.uid] = elapsed
            await self._note(receiver, [], note_position(receiver.status(ReceiverStatus), reached))

    async def _deliver(self, receiver: Item, waiting: Sequence[Waiting]) -> None:
        """Deliver in order, until one fails or a second is over; then note how it went."""
        began, status = self._clock.elapsed(), receiver.status(ReceiverStatus)
        over: list[Waiting] = []
        for place, one in enumerate(waiting):
            outcome = await self._attempt(receiver, one.message)
            now = self._clock.now()
            status = note_attempt(status, one.message, outcome, now)
            if not outcome.ok:
                lost = list_lost(waiting[place:], status, outcome, now)
                over += lost
                status.abandoned += len(lost)
                break
            over.append(one)
            if self._clock.elapsed() - began >= NOTE_SECONDS:
                break
        await self._note(receiver, over, status)

    async def _attempt(self, receiver: Item, message: Message) -> DeliveryOutcome:
        spec = receiver.spec(ReceiverSpec)
        view = self._leadership.cache.view
        try:
            secrets = open_secret(view, receiver, self._unseal)
        except WeftError as problem:
            return DeliveryOutcome(False, 0, str(problem))
        return await self._send(receiver.envelope.project or "", spec, secrets, message, list_addresses(view))

    async def _test(self, receiver: Item) -> None:
        asked, now = receiver.actions(ReceiverActions).test_generation, self._clock.now()
        message = render_test(receiver.envelope.ref, asked, now)
        outcome = await self._attempt(receiver, message)
        current = self._find(receiver.key, receiver.uid)
        if current is not None:
            status = note_test(current.status(ReceiverStatus), asked, message, outcome, self._clock.now())
            await self._note(receiver, [], status)

    async def _repeat(self, receiver: Item, now: float) -> float | None:
        """Send an Alertmanager again what fires."""
        message = make_repeat(self._leadership.cache.view, receiver, now)
        if message is None:
            return None
        left = self._repeated_at.get(receiver.uid, -REPEAT_SECONDS) + REPEAT_SECONDS - self._clock.elapsed()
        if left > 0:
            return left
        outcome = await self._attempt(receiver, message)
        self._repeated_at[receiver.uid] = self._clock.elapsed()
        if not outcome.ok:
            status = note_attempt(receiver.status(ReceiverStatus), message, outcome, self._clock.now())
            await self._note(receiver, [], status)
        return REPEAT_SECONDS

    async def _note(self, receiver: Item, over: Sequence[Waiting], status: ReceiverStatus) -> None:
        """Write what was sent or abandoned, and ``status``, which nobody else writes. Raises LeadershipLost."""
        positions = [one.position for one in over if one.position is not None]
        if positions:
            status = note_position(status, max(positions, key=lambda one: one.id))
            self._reached[receiver.uid] = status.position
        events = _list_events(receiver, status)
        sent: dict[str, str] = {one.rule: one.message.id for one in over if one.rule}
        for _ in range(_MOST_TRIES):
            commits: list[Commit] = []
            for key, id_ in sent.items():
                rule = self._leadership.cache.view.get(key)
                if rule is not None and (commit := note_sent(rule, {address(receiver).name: id_})) is not None:
                    commits.append(commit)
            current = self._find(receiver.key, receiver.uid)
            if current is not None and current.status(ReceiverStatus) != status:
                draft = Draft()
                draft.change(current, status=status)
                commits += filter(None, [draft.commit(receiver.key, events)])
            if not commits or not await self._leadership.perform(commits):
                return


def _list_events(receiver: Item, status: ReceiverStatus) -> list[Event]:
    before, ref = receiver.status(ReceiverStatus), receiver.envelope.ref
    events = []
    if status.phase == "Failing" and before.phase != "Failing":
        events.append(Event("Warning", "Failing", f"notifications can't be delivered: {status.message}", ref, _SOURCE))
    if status.phase == "Ready" and before.phase == "Failing":
        events.append(Event("Normal", "Recovered", "notifications are delivered again", ref, _SOURCE))
    if lost := status.abandoned - before.abandoned:
        what = "a notification was" if lost == 1 else f"{lost} notifications were"
        events.append(Event("Warning", "Abandoned", f"{what} abandoned: {status.message}", ref, _SOURCE))
    return events
