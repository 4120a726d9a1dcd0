"""Plans the second turns of an upgrade: nodes whose guests run in an earlier QEMU, or whose machine needs a reboot. Pure.

One node at a time is emptied by an ordinary drain, within the disruption budgets: a guest that migrates goes on in the QEMU that is
installed where it comes to. The node is rebooted if it needs that, and returned. One whose guests can't all leave is returned as it
is, and named; nothing is ended for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from weft.kinds.upgrade import MOST_LEFT, Machine, Turn, UpgradeStatus

SETTLE_SECONDS = 5.0  # for which a node is ready and needs nothing more before the next one's turn
STUCK_SECONDS = 10.0  # for which nothing that is left on a node can leave
REBOOT_SECONDS = 900.0  # within which a machine reboots, and its node is ready again


def give_renewal(status: UpgradeStatus, machines: Sequence[Machine], now: float) -> bool:
    """Give the next node its turn, or say what that waits for; False if no node needs one."""
    kept = {one.partition(":")[0] for one in status.kept}
    due = sorted((one for one in machines if not one.is_server and one.need and one.path not in kept), key=_by_name)
    status.left = [one.path for one in due[:MOST_LEFT]]
    if not due:
        return False
    status.phase = "Running"
    if (away := next((one for one in machines if one.is_server and not one.ready), None)) is not None:
        status.message = f"{away.what} isn't ready: start it, or delete it"
        return True
    hurt = [one for one in machines if not one.is_server and (one.lost_at or 0.0) > (status.begun_at or now)]
    if hurt:
        status.message = f"{hurt[0].what} isn't ready: no other node is emptied before it is"
        return True
    following = next((one for one in due if one.ready), None)
    if following is None:
        more = f", and {len(due) - 1} more" if len(due) > 1 else ""
        status.message = f"{due[0].what} is away: it is renewed when it is back{more}"
        return True
    if following.closed:
        _keep(status, following, "people have cordoned it")
        return len(status.kept) >= MOST_LEFT or give_renewal(status, machines, now)
    status.turn = Turn(kind="node", name=following.name, uid=following.uid, since=now, work="renewal")
    status.message = f"{following.what} is being emptied: {following.need}"
    return True


def check_renewal(status: UpgradeStatus, machines: Sequence[Machine], now: float) -> None:
    """End the turn if its node is done, can't be emptied, or is gone; the attempt if it doesn't come back."""
    turn = status.turn
    assert turn is not None
    node = next((one for one in machines if one.uid == turn.uid and not one.is_server), None)
    if node is None:  # people have deleted it
        status.turn = None
    elif node.rebooted:
        _keep(status, node, node.rebooted)
    elif not node.ready:
        status.turn = replace(turn, seen_at=None)
        if turn.rebooting_at is not None and now - turn.rebooting_at > REBOOT_SECONDS:
            status.phase, status.turn = "Stopped", None
            status.message = f"{node.what} isn't ready, {REBOOT_SECONDS / 60:.0f} min after its reboot began"
        elif turn.rebooting_at is not None:
            status.message = f"{node.what} reboots"
        else:
            status.message = f"{node.what} isn't ready: it is emptied when it is"
    elif not node.need:
        status.turn = replace(turn, seen_at=turn.seen_at if turn.seen_at is not None else now)
        if turn.seen_at is not None and now - turn.seen_at >= SETTLE_SECONDS:
            status.turn, status.renewed = None, status.renewed + 1
    elif node.emptied == "Drained":
        rebooting_at = (turn.rebooting_at or now) if node.reboot else None
        status.turn = replace(turn, seen_at=None, stuck_at=None, rebooting_at=rebooting_at)
        status.message = f"{node.what} reboots: {node.reboot}" if node.reboot else f"{node.what} is empty"
    elif node.emptied == "Blocked":
        status.turn = replace(turn, seen_at=None, stuck_at=turn.stuck_at if turn.stuck_at is not None else now)
        if turn.stuck_at is not None and now - turn.stuck_at >= STUCK_SECONDS:
            _keep(status, node, node.emptying)
    else:
        status.turn = replace(turn, seen_at=None, stuck_at=None)
        status.message = f"{node.what} is being emptied: {node.emptying or node.need}"


def describe_renewal(status: UpgradeStatus) -> str:
    """Describe what became of the nodes, as the end of a sentence; "" if none had a second turn."""
    nodes = f"; {status.renewed} node{'s were' if status.renewed > 1 else ' was'} renewed" if status.renewed else ""
    return f"{nodes}; left as they are: {'; '.join(status.kept)}" if status.kept else nodes


def _keep(status: UpgradeStatus, node: Machine, why: str) -> None:
    """End the turn of a node that stays as it is; with too many of them, the attempt."""
    status.turn, status.kept = None, [*status.kept, f"{node.path}: {why[:300]}"]
    if len(status.kept) >= MOST_LEFT:
        status.phase, status.message = "Stopped", f"{MOST_LEFT} nodes are left as they are: {status.kept[-1]}"


def _by_name(machine: Machine) -> str:
    return machine.name
