"""One record for each request that belongs in the audit log: the one place where they are made, called for every request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from weft.api.audit.changes import describe_objects
from weft.api.context import ApiContext
from weft.api.request.call import Call, Change
from weft.api.route import Topic
from weft.objects.errors import Unavailable, shorten
from weft.trust.audit_chain import AuditActor, AuditObject, AuditOutcome, AuditRecord
from weft.trust.redaction import hide_in_text

_INTERRUPTED = 0  # in place of the answer's status: there was no answer
REFUSED = (401, 403)
_MOST_MESSAGE = 500
_NOBODY = AuditActor(kind="nobody")


def record(context: ApiContext, call: Call, topic: Topic, status: int) -> asyncio.Future[None] | None:
    """Record the request, if it belongs in the log: its answer is sent when that is done, and immediately for None. The future
    raises Unavailable if it can't be written."""
    records = _list_records(context, call, topic, status)
    return context.audit.gather(records) if records else None


def record_interrupted(context: ApiContext, call: Call, topic: Topic) -> None:
    """Record a request that gets no answer, if it belongs in the log."""
    with contextlib.suppress(Unavailable):  # the log says so
        for one in _list_records(context, call, topic, _INTERRUPTED):
            context.audit.append(one)


def _list_records(context: ApiContext, call: Call, topic: Topic, status: int) -> list[AuditRecord]:
    actor = call.known_actor
    if call.is_forwarded and actor is not None and actor.kind == "person":
        return []  # it is in the log of the server that the person asked
    if status in REFUSED:
        outcome: AuditOutcome = "refused"
    elif topic.when == "refused" or (topic.when == "by people" and (actor is None or actor.kind != "person")):
        return []
    elif 200 <= status < 400:
        if call.is_dry_run:
            return []
        outcome = "allowed"
    elif topic.when == "always" and not call.is_dry_run:
        outcome = "failed"
    else:
        return []
    if outcome != "allowed" and not context.audit.takes(call.request.address):
        return []
    by = _NOBODY if actor is None else actor.audited
    changed = call.changed
    if len(changed) == 1:  # as most have
        records = [_make(call, by, topic, changed[0].envelope.project or "", changed, outcome, status)]
    else:
        records = [
            _make(call, by, topic, project, part, outcome, status) for project, part in _by_project(topic, changed)
        ]
    if outcome != "allowed":
        _add_reason(call, records)
    return records


def _make(
    call: Call,
    by: AuditActor,
    topic: Topic,
    project: str,
    changed: Sequence[Change],
    outcome: AuditOutcome,
    status: int,
) -> AuditRecord:
    if changed:
        objects, left_out = describe_objects(changed)
    else:
        objects, left_out = [AuditObject(kind=topic.kind, name=topic.name)] if topic.kind else [], 0
    return AuditRecord(
        actor=by,
        address=call.request.address,
        request=call.request_id,
        method=call.method,
        path=call.shown_path,
        verb=topic.verb,
        project=project,
        objects=objects,
        left_out=left_out,
        outcome=outcome,
        status=status,
    )


def _add_reason(call: Call, records: Sequence[AuditRecord]) -> None:
    problem = call.problem
    for one in records:
        if problem is None:
            one.reason = "interrupted"
            one.message = "the request ended without an answer: it may have been carried out"
        else:
            one.reason, one.message = problem.token, shorten(hide_in_text(problem.message), _MOST_MESSAGE)


def _by_project(topic: Topic, changed: Sequence[Change]) -> list[tuple[str, Sequence[Change]]]:
    """Changes by project: who may see one project's records sees nothing of another's."""
    if not changed:
        return [(topic.project, ())]
    first = changed[0].envelope.project
    if all(change.envelope.project == first for change in changed):
        return [(first or "", changed)]
    found: dict[str, list[Change]] = {}
    for change in changed:
        found.setdefault(change.envelope.project or "", []).append(change)
    return list(found.items())
