"""Gives the machines of an upgrade their turns, one after the other.

Reads upgrades, servers, nodes and their reports; writes the upgrades' status, and the drain of the node that is renewed. A server
installs the packages itself when its turn comes (``own.py``); a node gets an order in the status. Woken by upgrades, by servers
and nodes while one is under way, and by time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.contracts.journal import Event
from weft.controllers.loop import Plan
from weft.controllers.node_reports import find_node_report
from weft.controllers.upgrade.plan import plan_upgrade
from weft.informer.commit import Commit, Draft
from weft.informer.view import Changed, Item, View, has_changed
from weft.kinds.node import NodeActions, NodeReport, NodeStatus
from weft.kinds.orders import REBOOT, UPGRADE
from weft.kinds.parts.node.reboot import RebootOrder, RebootReport
from weft.kinds.parts.packages import UpgradeOrder, UpgradeReport
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
        machines, asked = list_machines(view, item), item.actions(UpgradeActions)
        status = plan_upgrade(spec.to, asked, former, machines, waits, now, renew=spec.renew)
    turn = status.turn
    status.order = status.reboot = None
    if turn is not None and not turn.is_server:
        attempt = name_attempt(item.uid, status.attempt)
        if turn.work == "packages":
            status.order = UpgradeOrder(attempt=attempt, node_uid=turn.uid, release=spec.to, packages=spec.packages)
        elif turn.rebooting_at is not None:
            status.reboot = RebootOrder(attempt=f"{attempt}/{turn.uid}", node_uid=turn.uid)
    draft, events = Draft(), list[Event]()
    _open_and_close(view, item, status, draft)
    if status == former and not draft.writes:
        return None
    draft.change(item, status=status)
    if turn is not None and (former.turn is None or former.turn.uid != turn.uid):
        events.append(Event("Normal", "UpgradeTurn", status.message, item.envelope.ref, SOURCE))
    elif status.phase != former.phase:
        kind: Literal["Warning", "Normal"] = "Warning" if status.phase == "Stopped" else "Normal"
        events.append(Event(kind, f"Upgrade{status.phase}", status.message, item.envelope.ref, SOURCE))
    return draft.commit(item.key, events)


def _open_and_close(view: View, item: Item, status: UpgradeStatus, draft: Draft) -> None:
    """Drain the node that is renewed, and return those that were."""
    turn, why = status.turn, name_drain(item)
    renewed = turn.uid if turn is not None and turn.work == "renewal" else ""
    for node in view.of_kind("node").values():
        asked = node.actions(NodeActions)
        if node.uid == renewed and not asked.drain and not asked.cordoned:
            closed = replace(asked, drain=True, drain_reason=why, cordoned=True, cordon_reason=f"drained: {why}")
            draft.change(node, actions=closed)
        elif node.uid != renewed and asked.drain and asked.drain_reason == why:
            draft.change(node, actions=replace(asked, drain=False, drain_reason="", cordoned=False, cordon_reason=""))


def name_drain(upgrade: Item) -> str:
    """The reason of its drains, by which it knows them."""
    return f"upgrade {upgrade.envelope.name}"


def list_machines(view: View, upgrade: Item) -> list[Machine]:
    """All servers and nodes."""
    former, why = upgrade.status(UpgradeStatus), name_drain(upgrade)
    attempt, of = name_attempt(upgrade.uid, former.attempt), (former.order or former.reboot)
    failures = {
        UPGRADE.name: _find_failure(find_node_report(view, UPGRADE, former.order), "the packages can't be installed"),
        REBOOT.name: _find_failure(find_node_report(view, REBOOT, former.reboot), "it can't be rebooted"),
    }
    return [
        *(_read_machine(item, attempt) for item in view.of_kind("server").values()),
        *(
            _read_node_machine(item, why, failures if of is not None and of.node_uid == item.uid else {})
            for item in view.of_kind("node").values()
            if not item.deleting
        ),
    ]


def _find_failure(report: UpgradeReport | RebootReport | None, otherwise: str) -> str | None:
    return (report.message or otherwise) if report is not None and report.phase == "failed" else None


def _read_machine(server: Item, attempt: str) -> Machine:
    status = server.status(ServerStatus)
    outcome = status.installed
    said = outcome.problem if outcome is not None and outcome.key == attempt else None
    ready, leads, by_hand = status.phase == "Ready", bool(status.leads), status.by_hand
    return Machine("server", server.envelope.name, server.uid, status.release, ready, leads, said, by_hand)


def _read_node_machine(node: Item, drained_for: str, failures: Mapping[str, str | None]) -> Machine:
    status, report, asked = node.status(NodeStatus), node.report(NodeReport), node.actions(NodeActions)
    is_ours = asked.drain and asked.drain_reason == drained_for
    drain = node.envelope.condition("Drained") if is_ours else None
    return Machine(
        "node",
        node.envelope.name,
        node.uid,
        report.version,
        status.phase == "Ready",
        outcome=failures.get(UPGRADE.name),
        lost_at=status.lost_at,
        reboot=report.reboot,
        outdated=report.outdated,
        emptied=drain.reason if drain is not None else "",
        emptying=drain.message if drain is not None else "",
        closed=asked.cordoned and not is_ours,
        rebooted=failures.get(REBOOT.name),
    )


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
    orders, drain = (report.orders.upgrade, report.orders.reboot), item.envelope.condition("Drained")
    return item.status(NodeStatus).phase, report.version, orders, item.deleting, report.reboot, report.outdated, drain


_READ = {"server": _read_server, "node": _read_node}
