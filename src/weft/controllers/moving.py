"""What a Migration needs next: its wish, its status and what both sides report in; edits of the two places and the status
that follows out. Pure, and remembers nothing: whoever is asked after a crash answers as the one before would have.

The order: the target waits, so the source is told where · the source sends · the target has taken over, so the places swap
their roles, in one commit · the source's place is gone. Until the target's word that it has taken over a move can be broken
off: the target is wished to stop, and only its word that the guest never ran there lets the source go on for good.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.course import compare, end_move, measure, tell_progress, time_left
from weft.kinds.allocation import (
    AllocatedMove,
    AllocationReport,
    AllocationSpec,
    MoveReport,
    account,
    come_back,
)
from weft.kinds.migration import (
    ENDED,
    MOST_TRIES,
    MOVED_ON,
    MigrationSpec,
    MigrationStatus,
)
from weft.kinds.vm import VmSpec
from weft.objects.envelope import Condition

HAND_OVER_PATIENCE_SECONDS = 15.0  # for the target's word, once the source stands still for good
READY_PATIENCE_SECONDS = 10.0  # for a target that can't get ready: its node tries on meanwhile
_FOR_GOOD = (
    "invalidInput",
    "unsupported",
)  # what another try would meet again; a guest that restarts is another one then
_READY = ("Ready", "Joining")


class Side(msgspec.Struct, frozen=True):
    """One of the two places; ``node_phase`` None: its node isn't in the fabric any more; ``node_limit``: how many bytes a
    second all moves from and to it may carry, 0 is as many as they can."""

    spec: AllocationSpec
    report: AllocationReport
    node_phase: str | None = "Ready"
    deleting: bool = False
    node_limit: int = 0
    node_closed: str = ""  # why it takes nothing new, as people have said

    @property
    def heard(self) -> MoveReport | None:
        """What its node says of this very move."""
        move, told = self.spec.move, self.report.move
        return told if move is not None and told is not None and told.key == move.key else None

    def says(self, *phases: str) -> bool:
        return self.heard is not None and self.heard.phase in phases


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """``vm`` None: there is no such VM, or it goes; ``place`` is where it stands while it isn't a side yet; ``rival`` an
    older Migration of it that is under way; ``room`` what is held for it at its target until it begins."""

    spec: MigrationSpec
    status: MigrationStatus
    deleting: bool = False
    placed: Condition | None = None
    vm: VmSpec | None = None
    place: Side | None = None
    rival: str = ""
    source: Side | None = None
    target: Side | None = None
    room: Side | None = None
    now: float = 0.0


class Outcome(msgspec.Struct, kw_only=True):
    """``source`` and ``target``: specs to write; those that ``go`` are deleted. ``look_after`` seconds it is to be looked at
    again whatever happens."""

    status: MigrationStatus
    source: AllocationSpec | None = None
    target: AllocationSpec | None = None
    source_goes: bool = False
    target_goes: bool = False
    room_goes: bool = False
    look_after: float | None = None


Ending = Literal["Failed", "Cancelled", "Retry"]


class Trouble(msgspec.Struct, frozen=True):
    """Why a move is to be broken off, and what it comes to then."""

    ending: Ending
    reason: str
    message: str


def plan_move(facts: Facts) -> Outcome:
    """What to write now; the status alone where there is nothing else. Room is held while it is planned, and until the
    scheduler has made its target of it."""
    outcome = _plan(facts)
    waits = facts.source is None and facts.target is None and outcome.status.phase in ("Planned", "Pending")
    outcome.room_goes = facts.room is not None and (outcome.room_goes or not waits)
    return outcome


def _plan(facts: Facts) -> Outcome:
    facts = replace(facts, status=_mend_times(facts.status, facts.now))
    status, source, target = facts.status, facts.source, facts.target
    if status.phase in ENDED:
        return Outcome(status=status)
    if status.phase == "Finishing":
        return _finish(facts)
    if source is None and target is None:
        return begin_move(facts)
    if target is not None and target.says("taken over"):
        return _swap(facts, target)
    if target is not None and _has_moved_on(target):
        return _leave_both(facts, target)
    if status.ending:
        return _break_off(facts)
    trouble = _find_trouble(facts)
    if trouble is not None:
        ending, reason, message = trouble.ending, trouble.reason, trouble.message
        return _break_off(replace(facts, status=replace(status, ending=ending, reason=reason, message=message)))
    return _lead(facts)


def _mend_times(status: MigrationStatus, now: float) -> MigrationStatus:
    """What began later than now did so by a clock that was set back since: patience begins anew, or it would never end."""
    begun = {name: getattr(status, name) for name in ("started_at", "handed_over_at", "troubled_at")}
    return replace(status, **{name: min(at, now) for name, at in begun.items() if at is not None})


def begin_move(facts: Facts) -> Outcome:
    """Nothing of it is anywhere yet: it waits for its time and for a target."""
    spec, status, now = facts.spec, facts.status, facts.now
    if facts.place is not None:
        status = replace(status, source=facts.place.spec.node)
    if facts.deleting or spec.cancel:
        return Outcome(status=end_move(status, "Cancelled", "cancelled", "cancelled before it began", now))
    if facts.vm is None:
        return Outcome(status=end_move(status, "Cancelled", "vmDeleted", "its VM is gone", now))
    if facts.rival and status.started_at is None and (spec.not_before is None or spec.not_before <= now):
        message = f"its VM is moved by migration/{facts.rival} already"
        return Outcome(status=end_move(status, "Failed", "alreadyMoving", message, now))
    if status.started_at is None and spec.not_before is not None and spec.not_before > now:
        return _hold(facts, replace(status, phase="Planned"))
    if status.tries <= 1 and spec.not_after is not None and spec.not_after <= now:
        why = facts.placed.message if facts.placed is not None and facts.placed.status == "False" else ""
        message = "it could not begin within its time" + (f": {why}" if why else "")
        return Outcome(status=end_move(status, "Failed", "tooLate", message, now))
    if spec.mode == "live" and facts.vm.run != "run":
        message = f"its VM is to {facts.vm.run}: only a guest that runs moves live"
        return Outcome(status=end_move(status, "Failed", "notRunning", message, now))
    if status.started_at is None:
        status = replace(status, phase="Pending", started_at=now, tries=1, reason="", message="")
    placed = facts.placed if facts.placed is not None and facts.placed.status == "False" else None
    left = time_left(spec, status, now)
    if left <= 0:
        reason = placed.reason if placed else "timedOut"
        message = f"no target within {spec.timeout_seconds:g} s" + (f": {placed.message}" if placed else "")
        return Outcome(status=end_move(status, "Failed", reason, message, now))
    if placed is not None:
        status = replace(status, reason=placed.reason, message=placed.message)
    if status.tries == 1 and spec.not_after is not None:
        left = min(left, spec.not_after - now)
    return Outcome(status=status, look_after=left)


def _hold(facts: Facts, status: MigrationStatus) -> Outcome:
    """It waits for its time: at its target room is held, as long as that can take it."""
    assert facts.spec.not_before is not None
    room, placed = facts.room, facts.placed
    outcome = Outcome(status=status, look_after=facts.spec.not_before - facts.now)
    fault = _find_fault(room, facts.place) if room is not None else ""
    if room is not None and not fault:
        lost = f" ({status.room_lost})" if status.room_lost else ""
        status.target, status.reason = room.spec.node, "roomHeld"
        status.message = f"room is held on {room.spec.node}{lost}"
        return outcome
    outcome.room_goes = room is not None
    status.target = ""
    if room is not None:
        status.room_lost = f"not on {room.spec.node} any more: {fault}"
        status.reason, status.message = "roomLost", f"room is sought anew, {status.room_lost}"
    elif placed is not None and placed.status == "False":
        status.reason, status.message = placed.reason, f"no room is held yet: {placed.message}"
    return outcome


def _find_fault(room: Side, place: Side | None) -> str:
    """Why room that is held is of no use any more, if so."""
    if room.node_phase is None:
        return "that node has left the fabric"
    if room.node_phase not in _READY:
        return "it has not been heard of"
    if room.node_closed:
        return room.node_closed
    if place is None:
        return ""  # that may be for a moment; without its VM it ends
    if place.spec.node_uid == room.spec.node_uid:
        return "its VM is there by now"
    if _room_for(place) != _room_for(room):
        return "its VM asks for other room now"
    return ""


def _room_for(side: Side) -> object:
    spec = side.spec
    return account(spec, side.report), spec.memberships, spec.extras, [gpu.share for gpu in spec.gpus]


def _lead(facts: Facts) -> Outcome:
    """Both sides are there: tell the source where the target waits, and tell people how it goes."""
    source, target = facts.source, facts.target
    status = _tell(facts)
    outcome = Outcome(status=status, look_after=max(0.1, time_left(facts.spec, status, facts.now)))
    if source is None or target is None:
        return outcome
    address = target.heard.address if target.heard is not None else ""
    to_source, to_target = _keep_to_limits(source, target), _keep_to_limits(target, source)
    if address and address != to_source.address and not source.says("handed over"):
        to_source = replace(to_source, address=address)
    outcome.source = replace(source.spec, move=to_source) if to_source != source.spec.move else None
    outcome.target = replace(target.spec, move=to_target) if to_target != target.spec.move else None
    for since, patience in (
        (status.handed_over_at, HAND_OVER_PATIENCE_SECONDS),
        (status.troubled_at, READY_PATIENCE_SECONDS),
    ):
        if since is not None:
            outcome.look_after = max(0.1, min(outcome.look_after or patience, since + patience - facts.now))
    return outcome


def _keep_to_limits(side: Side, peer: Side) -> AllocatedMove:
    """The side's move with what both nodes may carry by now."""
    assert side.spec.move is not None
    return replace(side.spec.move, node_bytes_per_second=side.node_limit, peer_bytes_per_second=peer.node_limit)


def _find_trouble(facts: Facts) -> Trouble | None:
    """Why it can't go on, if it can't."""
    spec, status, source, target = facts.spec, facts.status, facts.source, facts.target
    if facts.deleting or spec.cancel:
        return Trouble("Cancelled", "cancelled", "broken off as asked")
    if facts.vm is None:
        return Trouble("Cancelled", "vmDeleted", "its VM is being deleted")
    if source is None:
        return Trouble("Failed", "sourceLost", "the place that it moves from is gone")
    if _has_moved_on(source):
        return Trouble("Failed", MOVED_ON, f"source {source.spec.node}: {source.report.message}")
    if facts.vm.run != source.spec.wish:
        return Trouble("Cancelled", "vmChanged", f"its VM is to {facts.vm.run} now")
    if facts.vm.boots > source.spec.boots:
        return Trouble("Cancelled", "vmChanged", "its VM is to be restarted")
    for side, name in ((source, "source"), (target, "target")):
        if side is not None and side.says("failed", "given up"):
            assert side.heard is not None
            message = f"{name} {side.spec.node}: {side.heard.message or side.heard.reason or 'it failed'}"
            return _try_again(facts, side.heard.reason or "failed", message)
    if target is None:
        return _try_again(facts, "targetLost", "the place that it moves to is gone")
    if _is_stuck(target) and (_is_over_for(target.report.reason) or facts.now >= _read_since(facts)):
        return _try_again(facts, target.report.reason, _tell_stuck(target))
    for side, name in ((source, "source"), (target, "target")):
        if side.node_phase not in _READY:
            return _try_again(facts, "nodeLost", f"{name} {side.spec.node} has not been heard of")
    if status.handed_over_at is not None and facts.now >= status.handed_over_at + HAND_OVER_PATIENCE_SECONDS:
        return _try_again(facts, "notTakenOver", f"target {target.spec.node} has not said that it took over")
    if time_left(spec, status, facts.now) <= 0:
        why = f": {_tell_stuck(target)}" if _is_stuck(target) else ""
        return Trouble("Failed", "timedOut", f"not done within {spec.timeout_seconds:g} s{why}")
    return None


def _is_stuck(target: Side) -> bool:
    """Whether its node says that it can't make ready what the guest needs there."""
    return target.report.state == "failed" and bool(target.report.reason) and target.says("preparing")


def _is_over_for(reason: str) -> bool:
    """Whether the node would only meet it again, for as long as anybody would wait."""
    return reason in (*_FOR_GOOD, "noSpace")


def _read_since(facts: Facts) -> float:
    """When patience with a target that can't get ready ends."""
    troubled_at = facts.status.troubled_at
    return (troubled_at if troubled_at is not None else facts.now) + READY_PATIENCE_SECONDS


def _tell_stuck(target: Side) -> str:
    return f"target {target.spec.node}: {target.report.message or target.report.reason}"


def _try_again(facts: Facts, reason: str, message: str) -> Trouble:
    status = facts.status
    again = status.tries < MOST_TRIES and reason not in _FOR_GOOD and time_left(facts.spec, status, facts.now) > 0
    again = again and not (reason == "noSpace" and facts.spec.to)
    return Trouble("Retry" if again else "Failed", reason, message)


def _break_off(facts: Facts) -> Outcome:
    """Get the target's word that the guest never ran there, take it away, and let the source be all there is."""
    source, target = facts.source, facts.target
    outcome = Outcome(status=_tell(facts))
    if target is None:
        return _return(facts, outcome)
    if target.says("given up"):
        outcome.target_goes = not target.deleting
        if source is not None and source.spec.move is not None and not source.spec.move.never_ran:
            outcome.source = replace(source.spec, move=replace(source.spec.move, never_ran=True))
    elif target.spec.wish != "stop":
        outcome.target = replace(target.spec, wish="stop")
    elif target.node_phase not in _READY:
        lost = f"target {target.spec.node} has not been heard of"
        if source is not None and _has_it(source):
            outcome.target_goes = not target.deleting  # it gives up when it is back
            return _return(facts, outcome)
        # It may have taken over; nothing is safe but to wait.
        outcome.status.message = (
            f"{lost}, and the guest may run there: waiting for its word. If that node is off for good: "
            f"weft node delete {target.spec.node} --force, and the guest goes on at the source as it was handed over"
        )
    return outcome


def _return(facts: Facts, outcome: Outcome) -> Outcome:
    """Nothing is at the target any more: the source is the guest's place again, and this try has come to its end."""
    source, status, now = facts.source, outcome.status, facts.now
    if source is not None and source.spec.role == "source":
        move = source.spec.move
        goes_on = source.says("handed over") and not _has_moved_on(source)
        if goes_on and source.node_phase in _READY and move is not None and move.never_ran:
            return outcome  # it goes on there first
        outcome.source = _make_active(source)
    if status.ending == "Retry":
        why = f"try {status.tries} failed: {status.message}"
        outcome.status = MigrationStatus(
            phase="Pending",
            source=status.source,
            plan=status.plan,
            reason=status.reason,
            message=why,
            tries=status.tries + 1,
            avoid=tuple(dict.fromkeys((*status.avoid, *filter(None, [status.target])))),
            started_at=status.started_at,
        )
    else:
        phase: Literal["Failed", "Cancelled"] = "Cancelled" if status.ending == "Cancelled" else "Failed"
        outcome.status = end_move(status, phase, status.reason, status.message, now)
    return outcome


def _make_active(source: Side) -> AllocationSpec:
    return come_back(source.spec, source.spec.move.key) if source.spec.move is not None else source.spec


def _has_moved_on(side: Side | None) -> bool:
    """Whether its node says, for good, that another one took its guest over: of one that an older store knows as a side still."""
    return side is not None and side.report.reason == "moved" and side.report.state == "stopped"


def _has_it(source: Side) -> bool:
    """Whether the guest runs at the source, and the machine there can't hand it over any more."""
    return source.says("failed") and source.report.state == "running" and source.node_phase in _READY


def _swap(facts: Facts, target: Side) -> Outcome:
    """The guest runs at the target: its place is the one that counts from now on."""
    status = _tell(facts)
    status.phase, status.ending, status.reason, status.message = "Finishing", "", "", ""
    status.actual = measure(status, *_hear(facts))
    run = facts.vm.run if facts.vm is not None else target.spec.wish
    outcome = Outcome(status=status, target=replace(target.spec, role="active", move=None, wish=run))
    if facts.source is not None:
        move = facts.source.spec.move
        move = replace(move, taken_over=True) if move is not None else None
        outcome.source = replace(facts.source.spec, wish="stop", move=move)
        outcome.source_goes = True
    return outcome


def _leave_both(facts: Facts, target: Side) -> Outcome:
    """The guest came to the target and has gone on since: neither side has it."""
    message = f"target {target.spec.node}: {target.report.message}"
    outcome = Outcome(status=end_move(facts.status, "Failed", MOVED_ON, message, facts.now), target_goes=True)
    if facts.source is not None:
        move = facts.source.spec.move
        move = replace(move, taken_over=True) if move is not None else None
        outcome.source, outcome.source_goes = replace(facts.source.spec, wish="stop", move=move), True
    return outcome


def _finish(facts: Facts) -> Outcome:
    """Over once nothing is left at the source."""
    status = replace(facts.status)
    if facts.source is not None:
        status.actual = measure(status, *_hear(facts))
        return Outcome(status=status)
    status.error = compare(status)
    return Outcome(status=end_move(status, "Succeeded", "", "", facts.now))


def _hear(facts: Facts) -> list[MoveReport | None]:
    return [side.heard for side in (facts.source, facts.target) if side is not None]


def _tell(facts: Facts) -> MigrationStatus:
    """The status with what the two sides say by now."""
    status = replace(facts.status)
    source, target = facts.source, facts.target
    said = source.heard if source is not None else None
    status.source = source.spec.node if source is not None else status.source
    status.target = target.spec.node if target is not None else status.target
    if not status.ending:
        status.reason = status.message = ""
        stuck = target is not None and _is_stuck(target)
        status.troubled_at = (status.troubled_at or facts.now) if stuck else None
        if target is not None and stuck:
            status.reason, status.message = target.report.reason, _tell_stuck(target)
    if said is None:
        status.phase = "Preparing" if status.phase in ("Planned", "Pending") else status.phase
        return status
    return tell_progress(status, said, facts.now)
