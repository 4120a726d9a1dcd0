"""When a receiver is notified again, when that is abandoned, and how its status shows it. Pure.

A receiver is notified in order, one thing at a time. While it fails, everything waits, and each is abandoned an hour after it
happened, or after the receiver began to fail if that was later."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.controllers.receiver.message import Message
from weft.controllers.receiver.outbox import Waiting
from weft.controllers.receiver.outcome import DeliveryOutcome
from weft.kinds.receiver import Delivery, JournalPosition, ReceiverStatus

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 600.0
GIVE_UP_SECONDS = 3600.0


def plan_pause(attempts: int) -> float:
    """Seconds until the next attempt, after so many that failed."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(attempts - 1, 20), LONGEST_PAUSE_SECONDS)


def find_wait(status: ReceiverStatus, now: float) -> float:
    """Seconds until it may be notified again, however the clock was set since."""
    return 0.0 if status.next_attempt_at is None else min(status.next_attempt_at - now, LONGEST_PAUSE_SECONDS)


def is_over(status: ReceiverStatus, at: float, now: float) -> bool:
    """Whether what happened ``at`` is abandoned once an attempt has failed."""
    began = min(now, status.failing_since if status.failing_since is not None else now)
    return now - max(min(at, now), began) >= GIVE_UP_SECONDS


def list_lost(
    waiting: Sequence[Waiting], status: ReceiverStatus, outcome: DeliveryOutcome, now: float
) -> list[Waiting]:
    """The abandoned ones of all that wait, whose first one was just not taken. Of events only the first ones: the position in the
    journal shows which are over.
    """
    lost: list[Waiting] = []
    events_wait = False
    for place, one in enumerate(waiting):
        gone = (place == 0 and not outcome.again) or is_over(status, one.message.at, now)
        if one.position is not None:
            gone = gone and not events_wait
            events_wait = not gone
        lost += [one] if gone else []
    return lost


def note_attempt(status: ReceiverStatus, message: Message, outcome: DeliveryOutcome, now: float) -> ReceiverStatus:
    """The status after it. ``next_attempt_at`` is set if it failed, and another one may succeed."""
    last = Delivery(id=message.id, type=message.type, at=now, ok=outcome.ok, code=outcome.code, answer=outcome.answer)
    new = msgspec.structs.replace(status, last=last)
    if outcome.ok:
        new.phase, new.reason, new.message = "Ready", "", ""
        new.sent += 1
        new.failing_since, new.attempts, new.next_attempt_at = None, 0, None
        return new
    new.phase, new.reason, new.message = "Failing", "notDelivered", outcome.answer
    new.failing_since = now if status.failing_since is None else min(status.failing_since, now)
    new.attempts += 1
    new.next_attempt_at = now + plan_pause(new.attempts) if outcome.again else None
    return new


def note_position(status: ReceiverStatus, position: JournalPosition) -> ReceiverStatus:
    return msgspec.structs.replace(status, position=position)


def note_test(
    status: ReceiverStatus, generation: int, message: Message, outcome: DeliveryOutcome, now: float
) -> ReceiverStatus:
    """Note a test. After one that was taken, everything that waits is sent immediately."""
    delivery = Delivery(
        id=message.id, type=message.type, at=now, ok=outcome.ok, code=outcome.code, answer=outcome.answer
    )
    test = msgspec.structs.replace(status.test, generation=generation, delivery=delivery)
    new = msgspec.structs.replace(status, test=test, last=delivery)
    if outcome.ok:
        new.phase, new.reason, new.message, new.next_attempt_at = "Ready", "", "", None
    elif status.phase == "Pending":
        new.phase, new.reason, new.message = "Failing", "notDelivered", outcome.answer
    return new
