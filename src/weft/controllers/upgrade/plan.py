"""Plans an upgrade: whose turn is next, and when it stops. Pure.

Servers come before nodes, since an agent is never newer than the servers; towards an older release it is the other way round. Of
the servers the leading one is the last. A machine's turn is over once it has been ready with the release for a while; whatever
goes wrong before that ends the attempt. The second turns, of nodes that are renewed, are in ``renewal.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from weft.controllers.upgrade.renewal import check_renewal, describe_renewal, give_renewal
from weft.kinds.upgrade import MOST_LEFT, Machine, Turn, UpgradeActions, UpgradeStatus, is_downgrade, order_machines

SETTLE_SECONDS = 5.0  # for which a machine is ready with the release before the next one's turn
TURN_SECONDS = 900.0  # within which a machine fetches the packages, installs them, and is ready again


def plan_upgrade(
    to: str,
    asked: UpgradeActions,
    former: UpgradeStatus,
    machines: Sequence[Machine],
    other: str,
    now: float,
    *,
    renew: bool = False,
) -> UpgradeStatus:
    """The next status, without the orders. ``other``: what takes this one's place ("replaced by …", of one that isn't under way),
    or is under way before it; "" is nothing."""
    status = msgspec.structs.replace(former)
    left = [one for one in order_machines(to, machines) if one.release != to]
    status.machines, status.upgraded = len(machines), len(machines) - len(left)
    status.left = [one.path for one in left[:MOST_LEFT]]
    if former.phase in ("Waiting", "Stopped") and other:
        status.phase = "Waiting" if former.phase == "Waiting" else "Stopped"
        status.message = other if former.phase == "Waiting" else former.message
        return status
    if former.phase in ("Stopped", "Waiting"):
        if asked.stop:
            return _stop(status, "people stopped it")
        if former.phase == "Stopped" and asked.attempt <= former.attempt:
            return status
        status.phase, status.attempt, status.turn, status.kept = "Running", asked.attempt, None, []
        status.begun_at = status.begun_at or now
    if status.turn is not None and status.turn.work == "renewal":
        if not asked.stop:
            check_renewal(status, machines, now)
            if status.phase == "Stopped" or status.turn is not None:
                return status
    elif status.turn is not None:
        _check_turn(to, status, machines, now)
        if status.phase == "Stopped" or (status.turn is not None):
            return status
    if asked.stop:
        return _stop(status, "people stopped it")
    if not left and renew and give_renewal(status, machines, now):
        return status
    return _give_turn(to, status, left, machines, now)


def _check_turn(to: str, status: UpgradeStatus, machines: Sequence[Machine], now: float) -> None:
    """End the turn if its machine is done, or gone, and the attempt if it failed."""
    turn = status.turn
    assert turn is not None
    machine = next((one for one in machines if (one.kind, one.name, one.uid) == (turn.kind, turn.name, turn.uid)), None)
    what = f"{turn.kind} {turn.name}"
    if machine is None:  # people have deleted it
        status.turn = None
        return
    if machine.outcome:
        _stop(status, f"{what}: {machine.outcome}")
        return
    if machine.release == to and machine.ready:
        seen_at = turn.seen_at if turn.seen_at is not None else now
        if now - seen_at >= SETTLE_SECONDS:
            status.turn = None
            return
        status.turn = msgspec.structs.replace(turn, seen_at=seen_at)
    elif turn.seen_at is not None:
        _stop(status, f"{what} has weft {machine.release}, and isn't ready any more")
        return
    if now - turn.since > TURN_SECONDS:
        seems = f"is still weft {machine.release}" if machine.ready else "isn't ready"
        _stop(status, f"{what} {seems}, {TURN_SECONDS / 60:.0f} min after its turn began")
        return
    status.message = f"{what} is being upgraded to {to}"


def _give_turn(
    to: str, status: UpgradeStatus, left: Sequence[Machine], machines: Sequence[Machine], now: float
) -> UpgradeStatus:
    """The next machine gets its turn, if nothing speaks against it."""
    if not left:
        status.phase, status.ended_at = "Done", now
        status.message = f"{len(machines)} of {len(machines)} machines have weft {to}{describe_renewal(status)}"
        return status
    status.phase = "Running"
    if (away := next((one for one in machines if one.is_server and not one.ready), None)) is not None:
        status.message = f"{away.what} isn't ready: start it, or delete it"
        return status
    begun = status.begun_at or now
    hurt = [one for one in machines if not one.is_server and one.release == to and (one.lost_at or 0.0) > begun]
    if hurt:
        status.message = (
            f"{hurt[0].what} has weft {to}, and isn't ready since: no other machine is upgraded before it is"
        )
        return status
    following = next((one for one in left if one.ready), None)
    if following is None or (following.is_server and is_downgrade(to, machines) and not left[0].is_server):
        status.message = f"{left[0].what} is away: it is upgraded when it is back" + (
            f", and {len(left) - 1} more" if len(left) > 1 else ""
        )
        return status
    if following.by_hand:
        return _stop(status, f"{following.what}: {following.by_hand}")
    status.turn = Turn(kind=following.kind, name=following.name, uid=following.uid, since=now)
    status.message = f"{following.what} is being upgraded to {to}"
    return status


def _stop(status: UpgradeStatus, why: str) -> UpgradeStatus:
    status.phase, status.turn, status.message = "Stopped", None, why
    return status
