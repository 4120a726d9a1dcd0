"""One record for each request that belongs in the audit log: the one place where they are made, called for every request."""

from __future__ import annotations

from collections.abc import Sequence

from weft.api.audit.changes import describe_objects
from weft.api.audit.topic import LONGEST_KEPT, Topic, find_topic
from weft.api.context import ApiContext
from weft.api.request.call import Call, Change
from weft.trust.audit_chain import AuditActor, AuditObject, AuditRecord, Outcome
from weft.trust.credentials import Actor
from weft.trust.redaction import hide_in_text

INTERRUPTED = 0  # in place of the answer's status: there was no answer
_MOST_MESSAGE = 500
_NOBODY = AuditActor(kind="nobody")


def require_record(context: ApiContext, call: Call) -> None:
    """Raise StoreFull or Unavailable if the request must be recorded and can't be."""
    if call.method != "GET" and _topic_of(call).when == "always":
        context.audit.require_space()


def record(context: ApiContext, call: Call, status: int) -> None:
    """Record the request, if it belongs in the log, before its answer is sent. Raises Unavailable if it can't be written."""
    topic, actor = _topic_of(call), call.known_actor
    if status in (401, 403):
        outcome: Outcome = "refused"
    elif topic.when == "refused" or (topic.when == "by people" and (actor is None or actor.kind != "person")):
        return
    elif 200 <= status < 400:
        if call.is_dry_run:
            return
        outcome = "allowed"
    elif topic.when == "always" and not call.is_dry_run:
        outcome = "failed"
    else:
        return
    if outcome != "allowed" and not context.audit.takes(call.request.address):
        return
    described = call.changed or ()
    for project, changed in _by_project(topic, described):
        context.audit.append(_make(call, topic, project, changed, outcome, status))


def _make(
    call: Call, topic: Topic, project: str, changed: Sequence[Change], outcome: Outcome, status: int
) -> AuditRecord:
    actor, problem = call.known_actor, call.problem
    if changed:
        objects, left_out = describe_objects(changed)
    else:
        objects, left_out = [AuditObject(kind=topic.kind, name=topic.name)] if topic.kind else [], 0
    if outcome == "allowed":
        reason = message = ""
    elif problem is None:
        reason, message = "interrupted", "the request ended without an answer: it may have been carried out"
    else:
        reason, message = problem.token, hide_in_text(problem.message)[:_MOST_MESSAGE]
    return AuditRecord(
        actor=_NOBODY if actor is None else _describe(actor),
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
        reason=reason,
        message=message,
    )


def _by_project(topic: Topic, changed: Sequence[Change]) -> list[tuple[str, Sequence[Change]]]:
    """What changed, by project: who may see one project's records sees nothing of another's."""
    if not changed:
        return [(topic.project, ())]
    first = changed[0].envelope.project
    if len(changed) == 1 or all(change.envelope.project == first for change in changed):
        return [(first or "", changed)]
    found: dict[str, list[Change]] = {}
    for change in changed:
        found.setdefault(change.envelope.project or "", []).append(change)
    return list(found.items())


def _describe(actor: Actor) -> AuditActor:
    if actor.kind == "stranger":
        return _NOBODY
    return AuditActor(kind=actor.kind, name=actor.name, role=actor.role, project=actor.project or "", id=actor.id)


def _topic_of(call: Call) -> Topic:
    find = find_topic if len(call.path) <= LONGEST_KEPT else find_topic.__wrapped__
    found: Topic = find(call.method, call.path)
    return found
