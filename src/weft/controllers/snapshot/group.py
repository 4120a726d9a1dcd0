"""Plan the next step of a group's snapshots: they are of one instant, and ready or failed together. Pure.

Each member's node first says that nothing keeps it from taking its own. Then all are told to hold: each guest stands still, with
its disks switched, for a few seconds at most. Once all have said that they hold, all are told to go; a member counts only if it
still held as it heard that. So there was an instant at which all held: that at which they were told to go.

No turn lasts for ever, since its members neither migrate nor are taken otherwise meanwhile: the group fails, and says whom it
waited for. Only memory may be saved for as long as that takes, on a node that reports.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from weft.controllers.snapshot.facts import SnapshotFacts
from weft.controllers.snapshot.plan import SnapshotPlan, end_turn
from weft.kinds.fields.allocated_snapshot import GroupTurn
from weft.kinds.snapshot import SnapshotStatus
from weft.objects.quantity import format_duration

GROUP_FAILED, GROUP_WAITS = "groupFailed", "groupWaits"
JOIN_SECONDS = 60.0  # for members that are created one after the other
BEGIN_SECONDS = 900.0  # until nothing keeps any member from being ordered, such as a migration
TURN_SECONDS: dict[str, float] = {"prepare": 120.0, "hold": 30.0, "go": 60.0}
_NEXT: dict[str, GroupTurn] = {"prepare": "hold", "hold": "go"}

# A member, and what it would need if it were alone.
GroupMember = tuple[SnapshotFacts, SnapshotPlan]


def plan_group(members: Sequence[GroupMember], missing: Sequence[str], now: float) -> list[SnapshotPlan]:
    """A plan for each member, in their order. ``missing``: names of members that don't exist, yet or any more. ``now``: unix
    seconds."""
    begins = all(facts.status.phase == "Pending" for facts, _ in members)
    failure = _find_failure(members, () if begins else missing) or _find_delay(members, missing, now)
    if failure:
        return [_fail(facts, alone, failure) for facts, alone in members]
    if all(alone.status.phase == "Ready" for _, alone in members):
        return [alone for _, alone in members]
    if begins:
        return _plan_beginning(members, missing)
    turn = _find_turn(members)
    return [_go_on(facts, alone, turn) for facts, alone in members]


def _find_failure(members: Sequence[GroupMember], missing: Sequence[str]) -> str:
    gone = [*missing, *(facts.name for facts, _ in members if facts.deleting)]
    if gone:
        return f"snapshot/{gone[0]} of its group was deleted before all were taken"
    for facts, alone in members:
        if alone.status.phase == "Failed" and alone.status.reason != GROUP_FAILED:
            return f"snapshot/{facts.name} of its group failed: {alone.status.message}"
    failed = next((alone.status.message for _, alone in members if alone.status.phase == "Failed"), "")
    return failed


def _find_delay(members: Sequence[GroupMember], missing: Sequence[str], now: float) -> str:
    """Whom the group has waited for too long, as a sentence, or ""."""
    if all(facts.status.phase == "Pending" for facts, _ in members):
        waited = now - min(facts.created_at for facts, _ in members)
        if missing and waited >= JOIN_SECONDS:
            return f"snapshot/{missing[0]} of its group was not created within {format_duration(JOIN_SECONDS)}"
        late = [(facts, alone) for facts, alone in members if alone.order != "give"]
        if not late or waited < BEGIN_SECONDS:
            return ""
        facts, alone = late[0]
        why = f": {alone.status.message}" if alone.status.message else ""
        return f"snapshot/{facts.name} of its group could not begin within {format_duration(BEGIN_SECONDS)}{why}"
    for facts, _ in members:
        limit = TURN_SECONDS.get(facts.turn)
        if limit is None or now - facts.turn_at < limit or _is_done(facts):
            continue
        report = facts.report
        if facts.turn == "go" and report is not None and facts.home_reports:
            continue  # its memory is being saved
        why = "its node does not report"
        if facts.home_reports:
            why = (report.message if report is not None else "") or "its node did not say why"
        act = {"prepare": "could not begin", "hold": "did not stand still"}.get(facts.turn, "was not taken")
        return f"snapshot/{facts.name} of its group {act} within {format_duration(limit)}: {why}"
    return ""


def _is_done(facts: SnapshotFacts) -> bool:
    """Whether its node is done with the turn that it is told."""
    report = facts.report
    return report is not None and (report.phase != "taking" or report.turn == facts.turn)


def _fail(facts: SnapshotFacts, alone: SnapshotPlan, failure: str) -> SnapshotPlan:
    if facts.deleting or alone.status.phase == "Failed":
        return alone
    failed = replace(facts.status, phase="Failed", size=0, memory=0, reason=GROUP_FAILED, message=failure)
    return end_turn(facts, failed)


def _plan_beginning(members: Sequence[GroupMember], missing: Sequence[str]) -> list[SnapshotPlan]:
    """All get their order, or none does."""
    waits = next(((facts, alone) for facts, alone in members if alone.order != "give"), None)
    if missing:
        message = f"waits until snapshot/{missing[0]} of its group is created"
    elif waits is not None:
        message = f"waits for snapshot/{waits[0].name} of its group: {waits[1].status.message}"
    else:
        return [replace(alone, turn="prepare") for _, alone in members]
    return [
        SnapshotPlan(replace(facts.status, reason=GROUP_WAITS, message=message)) if alone.order == "give" else alone
        for facts, alone in members
    ]


def _find_turn(members: Sequence[GroupMember]) -> GroupTurn:
    """The turn that all come to now; "" if some have yet to say that they are done with theirs."""
    turns = {facts.turn for facts, _ in members}
    done = {facts.report.turn if facts.report is not None else "" for facts, _ in members}
    return _NEXT.get(next(iter(turns)), "") if len(turns) == 1 and turns == done else ""


def _go_on(facts: SnapshotFacts, alone: SnapshotPlan, turn: GroupTurn) -> SnapshotPlan:
    status: SnapshotStatus = alone.status
    if status.phase == "Ready":
        status = replace(facts.status, reason=GROUP_WAITS, message="it is taken; the others of its group are not yet")
    return SnapshotPlan(status, "give" if turn else "", turn=turn)
