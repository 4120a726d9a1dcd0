"""Has each backup repository checked by a node: made when it is new, its space counted, and what no backup needs removed.

Reads repositories, backups, nodes; writes backuprepository.status with the order. Woken by any of those, and by the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from weft.contracts.journal import Event
from weft.controllers.backup.facts import find_asked, list_nodes, read_repository
from weft.controllers.backup.model import Node, Repository
from weft.controllers.loop import Plan
from weft.informer.commit import Draft
from weft.informer.view import Changed, View, has_changed
from weft.kinds.backup_repository import REPOSITORIES_BY_UID, BackupRepositoryStatus
from weft.kinds.fields.backup_work import BackupOrder, BackupReport
from weft.kinds.node import NodeReport, NodeStatus
from weft.objects.errors import BackupAltered

SOURCE = "backup repositories"
CHECK_SECONDS, RETRY_SECONDS = 3600.0, 30.0
# Reasons that say: a repository is there. A share with it may be away at the next try, and its mount point is an empty place.
_LIES_THERE = ("repositoryKey", "repositoryTooNew", "repositoryHeaderLost", BackupAltered.reason)


class BackupRepositories:
    name = "backup repositories"
    kinds = ("backuprepository", "node")

    def route(self, view: View, change: Changed) -> Iterable[str]:
        if change.kind == "backuprepository":
            return (change.key,)
        if has_changed(change, lambda node: node.status(NodeStatus).phase == "Ready"):
            return list(view.of_kind("backuprepository"))
        if not has_changed(change, lambda node: node.report(NodeReport).orders.backup):
            return ()
        items = [item for item in (change.old, change.new) if item is not None]
        reports = [one for item in items for one in item.report(NodeReport).orders.backup]
        uids = {one.uid for one in reports if one.act == "check"}
        checked = [item.key for uid in sorted(uids) for item in view.find(REPOSITORIES_BY_UID, uid)]
        ids = {one.repository_id for one in reports if _has_totals(one)}
        all_ = view.of_kind("backuprepository").values() if ids else ()
        return [*checked, *(item.key for item in all_ if item.status(BackupRepositoryStatus).id in ids)]

    def plan(self, view: View, keys: Sequence[str], now: float) -> Plan:
        plan = Plan()
        for key in keys:
            item = view.get(key)
            repository = read_repository(view, item.envelope.name) if item is not None else None
            if item is None or repository is None or item.deleting:
                continue
            nodes = list_nodes(view, repository.status.order, first=repository.status.node)
            status, wait = plan_repository(repository, nodes, now)
            status = count(status, _list_reports(view))
            plan.later[key] = wait
            if status == repository.status:
                continue
            draft, events = Draft(), []
            draft.change(item, status=status)
            if status.phase == "Failed" and status.message != repository.status.message:
                events = [Event("Warning", "Failed", status.message, item.envelope.ref, SOURCE)]
            commit = draft.commit(key, events)
            if commit is not None:
                plan.commits.append(commit)
        return plan


def _list_reports(view: View) -> Iterable[BackupReport]:
    return (one for node in view.of_kind("node").values() for one in node.report(NodeReport).orders.backup)


def _has_totals(report: BackupReport) -> bool:
    """Whether it says how many backups there were after it."""
    return report.act in ("copy", "forget") and report.phase == "done" and report.kept_bytes >= 0


def count(status: BackupRepositoryStatus, reports: Iterable[BackupReport]) -> BackupRepositoryStatus:
    """``status`` with what the last copy or removal has left in it, so that nobody waits for the next check to see it. Pure."""
    own = [one for one in reports if status.id and one.repository_id == status.id and _has_totals(one)]
    newest = max(own, key=lambda one: one.finished_at, default=None)
    if newest is None or newest.finished_at <= status.counted_at:
        return status
    return msgspec.structs.replace(
        status,
        bytes=newest.kept_bytes,
        backups=newest.backups,
        free=newest.free if newest.free >= 0 else status.free,
        counted_at=newest.finished_at,
    )


def plan_repository(repository: Repository, nodes: list[Node], now: float) -> tuple[BackupRepositoryStatus, float]:
    """Its status, and in how many seconds to look again. Pure."""
    status, asked = repository.status, find_asked(nodes, repository.status.order)
    report = asked.report if asked is not None else None
    if status.order is not None and asked is not None:
        if report is None or report.phase in ("waiting", "working"):
            return status, RETRY_SECONDS
        return _note(status, report, asked, now), CHECK_SECONDS if report.phase == "done" else RETRY_SECONDS
    since = now - (status.checked_at or 0.0)
    pause = CHECK_SECONDS if status.phase == "Ready" else RETRY_SECONDS
    is_of_now = status.observed_generation >= repository.generation
    if status.checked_at is not None and 0 <= since < pause and is_of_now:
        return msgspec.structs.replace(status, order=None), pause - since
    if not nodes:
        message = "waits for a node that is ready"
        return msgspec.structs.replace(status, order=None, reason="nodeNotReady", message=message), RETRY_SECONDS
    # A node that could not reach it is asked again only after the others.
    names = [node.name for node in nodes]
    turn = (names.index(status.node) + 1) % len(nodes) if status.phase == "Failed" and status.node in names else 0
    order = BackupOrder(
        uid=repository.uid,
        act="check",
        node_uid=nodes[turn].uid,
        generation=int(now),
        repository=repository.name,
        repository_uid=repository.uid,
        repository_id=status.id,
        url=repository.spec.url,
        opens_only=status.lies_there,
        immutable=repository.spec.immutable,
    )
    return msgspec.structs.replace(status, order=order, ordered_generation=repository.generation), RETRY_SECONDS


def _note(status: BackupRepositoryStatus, report: BackupReport, node: Node, now: float) -> BackupRepositoryStatus:
    if report.phase == "failed":
        return msgspec.structs.replace(
            status,
            phase="Failed",
            lies_there=status.lies_there or report.reason in _LIES_THERE,
            order=None,
            node=node.name,
            checked_at=now,
            observed_generation=status.ordered_generation,
            reason=report.reason,
            message=report.message,
        )
    return msgspec.structs.replace(
        status,
        phase="Ready",
        id=report.repository_id,
        bytes=report.bytes,
        free=report.free,
        backups=report.backups,
        counted_at=max(status.counted_at, report.finished_at),
        node=node.name,
        checked_at=now,
        observed_generation=status.ordered_generation,
        order=None,
        reason="",
        message=report.message,
    )
