"""Gives the machines of an upgrade their turns, one after the other.

Reads upgrades, servers, nodes and their reports; writes the upgrades' status. A server whose turn it is installs the packages by
itself (``own.py``), a node by an order in the status. Woken by upgrades, by servers and nodes while one is under way, and by time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.node_reports import find_node_report
from weft.controllers.upgrade.plan import plan_upgrade
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.node import NodeReport, NodeStatus
from weft.kinds.orders import UPGRADE
from weft.kinds.parts.packages import UpgradeOrder
from weft.kinds.server import ServerStatus
from weft.kinds.upgrade import OVER, Machine, UpgradeActions, UpgradeSpec, UpgradeStatus, name_attempt

SOURCE = "upgrades"
LOOK_SECONDS = 1.0


class Upgrades:
    name = "upgrades"
    kinds = ("upgrade", "server", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "upgrade":
            return [one.key for one in view.of_kind("upgrade").values()]
        if not has_changed(change, _READ[change.kind]):
            return ()
        return [one.key for one in view.of_kind("upgrade").values() if one.status(UpgradeStatus).phase == "Running"]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.get(key)
            if item is None or item.deleting or item.status(UpgradeStatus).phase in OVER:
                continue
            if commit := plan_commit(view, item, now):
                plan.commits.append(commit)
            if item.status(UpgradeStatus).phase in ("Waiting", "Running"):
                plan.later[key] = LOOK_SECONDS
        return plan


def plan_commit(view: View, item: Item, now: float) -> Commit | None:
    """The next status of an upgrade, with the order to the node whose turn it is; None if nothing changes."""
    spec, former = item.spec(UpgradeSpec), item.status(UpgradeStatus)
    before, after = find_others(view, item)
    if former.phase == "Stopped" and after:
        status = msgspec.structs.replace(
            former, phase="Replaced", message=f"upgrade {after} took its place", ended_at=now
        )
    else:
        waits = f"upgrade {before} is under way: it begins after that, or once that is stopped" if before else ""
        status = plan_upgrade(spec.to, item.actions(UpgradeActions), former, list_machines(view, item), waits, now)
    turn = status.turn
    status.order = None
    if turn is not None and not turn.is_server:
        attempt = name_attempt(item.uid, status.attempt)
        status.order = UpgradeOrder(attempt=attempt, node_uid=turn.uid, release=spec.to, packages=spec.packages)
    if status == former:
        return None
    draft, events = Draft(), list[Event]()
    draft.change(item, status=status)
    if turn is not None and (former.turn is None or former.turn.uid != turn.uid):
        events.append(Event("Normal", "UpgradeTurn", status.message, item.envelope.ref, SOURCE))
    elif status.phase != former.phase:
        kind: Literal["Warning", "Normal"] = "Warning" if status.phase == "Stopped" else "Normal"
        events.append(Event(kind, f"Upgrade{status.phase}", status.message, item.envelope.ref, SOURCE))
    return draft.commit(item.key, events)


def list_machines(view: View, upgrade: Item) -> list[Machine]:
    """All servers and nodes."""
    former = upgrade.status(UpgradeStatus)
    attempt, report = name_attempt(upgrade.uid, former.attempt), find_node_report(view, UPGRADE, former.order)
    failed = (
        report.message or "the packages can't be installed" if report is not None and report.phase == "failed" else None
    )
    of = former.order.node_uid if former.order is not None else ""
    nodes = [item for item in view.of_kind("node").values() if not item.deleting]
    return [
        *(_read_machine(item, attempt) for item in view.of_kind("server").values()),
        *(_read_node_machine(item, failed if item.uid == of else None) for item in nodes),
    ]


def _read_machine(server: Item, attempt: str) -> Machine:
    status = server.status(ServerStatus)
    outcome = status.installed
    said = outcome.problem if outcome is not None and outcome.key == attempt else None
    ready, leads, by_hand = status.phase == "Ready", bool(status.leads), status.by_hand
    return Machine("server", server.envelope.name, server.uid, status.release, ready, leads, said, by_hand)


def _read_node_machine(node: Item, outcome: str | None) -> Machine:
    status, release = node.status(NodeStatus), node.report(NodeReport).version
    ready = status.phase == "Ready"
    return Machine("node", node.envelope.name, node.uid, release, ready, outcome=outcome, lost_at=status.lost_at)


def find_others(view: View, upgrade: Item) -> tuple[str, str]:
    """Names of an upgrade that this one waits for, and of one that was created later; "" is none."""
    before = after = ""
    here = upgrade.envelope.created_at, upgrade.envelope.name
    for item in view.of_kind("upgrade").values():
        phase = item.status(UpgradeStatus).phase
        if item.uid == upgrade.uid or item.deleting or phase in OVER:
            continue
        there = item.envelope.created_at, item.envelope.name
        if phase == "Running" or (phase == "Waiting" and there < here):
            before = item.envelope.name
        if there > here:
            after = item.envelope.name
    return before, after


def _read_server(item: Item) -> object:
    status = item.status(ServerStatus)
    return status.phase, status.release, status.leads, status.installed, status.by_hand


def _read_node(item: Item) -> object:
    report = item.report(NodeReport)
    return item.status(NodeStatus).phase, report.version, report.orders.upgrade, item.deleting


_READ = {"server": _read_server, "node": _read_node}
