"""Deletion: refused while others need the object; at once if it has no finalizers, else it is marked for its controllers.

An object that others may refer to is marked first, and its references are searched after that: see ``references``. What has ended
in a project is removed once the project is marked and nothing else is in it.
"""

from __future__ import annotations

import msgspec

from weft.api.admission import references
from weft.api.admission.commit import read_again, retry, was_done
from weft.api.admission.content import read_content
from weft.api.admission.departing import refuse_unlinking
from weft.api.admission.refusals import guard, not_found, refuse_another
from weft.api.auth.ownership import owns
from weft.api.cluster.link_names import plan_leaving
from weft.api.context import ApiContext
from weft.api.node.ended import find_holders, release_ended, still_has
from weft.api.node.force_delete import give_up, refuse_autonomous
from weft.api.request.call import Call, Change, object_answer, read_flag
from weft.api.request.if_match import Match
from weft.api.request.target import Target
from weft.api.servers.members import remove_of
from weft.contracts.store import MAX_WRITES, AtRevision, Delete, Put, Write
from weft.contracts.trace.context import mark
from weft.kinds.cluster import CLUSTER
from weft.kinds.deployment import DEPLOYMENT, DeploymentSpec
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.node import SILENT_PHASES, NodeSpec, NodeStatus
from weft.kinds.record import Kind
from weft.kinds.server import SERVER
from weft.kinds.vm import VM, VmSpec
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.errors import IllegalTransition, Unavailable
from weft.objects.identity import object_key
from weft.serving.answer import Answer
from weft.trust.credentials import Actor
from weft.trust.enrolment import Enrolment, enrolment_key


async def delete(context: ApiContext, call: Call, target: Target) -> Answer:
    """``DELETE`` on an object: 200 with its last state if it is deleted, 202 if the deletion has begun. ``uid`` in the query:
    only the object with that uid. A repeat of the request deletes no later object of the name."""
    query = call.query("uid", "force")
    uid = query.get("uid")
    kind, key = target.kind, call.idempotency_key
    if key is not None and await was_done(context, key):
        return await _answer_repeat(context, call.actor, target)
    expected = Match(call)
    envelope = await _read(context, call.actor, target)
    if kind.access.readers == "administered" and not owns(call.actor, envelope, "delete"):
        if owns(call.actor, envelope, "get"):
            raise call.actor.refuse(f"{kind.name}:delete", None, f"delete {kind.name} {envelope.name}")
        raise not_found(kind, envelope.name, None)
    expected.check(kind, envelope.name, envelope)
    if uid is not None:
        refuse_another(kind, envelope, uid)
    if read_flag(query, "force"):
        gone = await give_up(context, call, kind, envelope)
        call.changed.append(Change(gone, "deleted"))
        return object_answer(gone)
    if envelope.deleting_since is not None and envelope.finalizers:
        return object_answer(envelope, 202)
    guard(kind, envelope)
    if kind.admission.delete_guard is not None:
        kind.admission.delete_guard(envelope, context.clock.now())
    if kind is CLUSTER:
        await refuse_unlinking(context, envelope)
    if kind is SERVER:
        await remove_of(context, envelope)
    if kind is VM and envelope.deleting_since is None:
        await _refuse_serving(context, envelope)
    if references.is_referred_to(kind):
        if envelope.deleting_since is None:  # a mark that a killed request left is taken back, if it is in use
            await _refuse_used(context, kind, envelope)
        envelope = await _mark(context, call.actor, target, envelope.uid, expected)
        expected = Match()  # it matched; our own mark changes the revision
        try:
            await _refuse_used(context, kind, envelope)
        except BaseException:
            await _unmark(context, call.actor, target, envelope.uid)
            raise
        if kind.lifetime.holds_objects:
            await retry(context, lambda: _remove_past(context, target, envelope))
        if kind.lifetime.runs_workloads:
            await retry(context, lambda: release_ended(context, envelope))
    gone = await retry(context, lambda: _finish(context, target, envelope, key, expected))
    call.changed.append(Change(gone, "deleting" if gone.finalizers else "deleted"))
    if gone.finalizers:
        context.add_event(gone.ref, "Deleting", f"requested by {call.actor.name}")
    else:
        context.add_event(gone.ref, "Deleted", f"deleted by {call.actor.name}")
    return object_answer(gone, 202 if gone.finalizers else 200)


async def _answer_repeat(context: ApiContext, actor: Actor, target: Target) -> Answer:
    current, kind = await read_again(context, target.key), target.kind
    if current is not None and actor.is_kept_from(current.creator):
        raise not_found(kind, target.require_name(), target.project)
    if current is not None and current.deleting_since is not None:
        return object_answer(current, 202)
    gone = Envelope(kind=kind.name, name=target.require_name(), uid="", project=target.project)
    return object_answer(gone)


async def _read(context: ApiContext, actor: Actor, target: Target, uid: str | None = None) -> Envelope:
    """Raises NotFound, also for what a linked cluster hasn't made itself."""
    envelope = await read_again(context, target.key)
    is_there = envelope is not None and (uid is None or envelope.uid == uid)
    if envelope is None or not is_there or actor.is_kept_from(envelope.creator):
        raise not_found(target.kind, target.require_name(), target.project)
    return envelope


async def _refuse_serving(context: ApiContext, vm: Envelope) -> None:
    """Raise IllegalTransition for the VM that has what only one of its deployment can have: the published ports would go with it,
    and no version before it would get them back."""
    owner, spec = vm.owner, decode_part(vm.spec, VmSpec)
    if owner is None or not (spec.publish or spec.volumes):
        return
    deployment = await read_again(context, object_key(DEPLOYMENT.name, vm.project, owner.name))
    if deployment is None or deployment.uid != owner.uid or deployment.deleting_since is not None:
        return
    adopt = decode_part(deployment.spec, DeploymentSpec).adopt
    if adopt and (decode_part(deployment.status, DeploymentStatus).holder or adopt) == vm.name:
        raise IllegalTransition(
            f"{vm.kind}/{vm.name} serves for deployment/{owner.name}: its published ports and volumes would have no VM any more",
            reason="isServing",
            hint=f"weft rollout undo {owner.name} goes back to the version before; weft delete deployment/{owner.name} leaves the "
            "VM that serves, which can be deleted then",
        )


async def _refuse_used(context: ApiContext, kind: Kind, envelope: Envelope) -> None:
    if kind.lifetime.runs_workloads:
        if users := await find_holders(context.store, envelope.uid):
            spec, status = decode_part(envelope.spec, NodeSpec), decode_part(envelope.status, NodeStatus)
            if status.phase == "Autonomous":
                raise refuse_autonomous(envelope.name, spec, status)
            raise still_has(envelope, users, silent=status.phase in SILENT_PHASES)
    elif users := await references.find_users(context.store, kind, envelope):
        raise references.in_use(kind, envelope, users)


async def _mark(context: ApiContext, actor: Actor, target: Target, uid: str, expected: Match) -> Envelope:
    async def attempt() -> Envelope:
        envelope = await _read(context, actor, target, uid)
        expected.check(target.kind, envelope.name, envelope)
        if envelope.deleting_since is None:
            await _write(context, envelope, context.clock.now())
        return envelope

    return await retry(context, attempt)


async def _unmark(context: ApiContext, actor: Actor, target: Target, uid: str) -> None:
    async def attempt() -> None:
        await _write(context, await _read(context, actor, target, uid), None)

    await retry(context, attempt)


async def _write(context: ApiContext, envelope: Envelope, deleting_since: float | None, key: str | None = None) -> None:
    envelope.deleting_since = deleting_since
    mark(envelope)
    envelope.revision = await context.store.commit(
        [Put(envelope.key, encode_envelope(envelope))],
        [AtRevision(envelope.key, envelope.revision)],
        idempotency_key=key,
    )


async def _remove_past(context: ApiContext, target: Target, marked: Envelope) -> None:
    """Remove what has ended in a project, with its finalizers. If the server is killed before all is removed, the mark stays, and
    the next request continues."""
    project = await read_again(context, target.key)
    if project is None or project.uid != marked.uid:
        return  # another request has deleted it
    _refuse_unmarked(target.kind, marked, project)
    past = (await read_content(context.store, project.name, MAX_WRITES)).past
    for end in range(len(past), 0, -MAX_WRITES):  # from the end: nothing outlives what it goes with
        some = past[max(0, end - MAX_WRITES) : end]
        await context.store.commit(
            [Delete(one.key) for one in some], [AtRevision(project.key, project.revision), *some]
        )


def _refuse_unmarked(kind: Kind, marked: Envelope, current: Envelope) -> None:
    """Raise Unavailable if another request has taken the mark back: something may refer to the object again."""
    if marked.deleting_since is not None and current.deleting_since is None:
        raise Unavailable(
            f'another deletion of {kind.title} "{current.name}" was refused: it may be in use again',
            hint="try again",
            retry_after_seconds=1,
        )


async def _finish(context: ApiContext, target: Target, last: Envelope, key: str | None, expected: Match) -> Envelope:
    """One commit with the request's ``key``: the mark, if finalizers hold the object; else the object's and its claims' end."""
    kind = target.kind
    envelope = await read_again(context, target.key)
    if envelope is None or envelope.uid != last.uid:
        return (
            last  # its controllers have removed the last finalizer meanwhile; a later one of the name may be another's
        )
    expected.check(kind, envelope.name, envelope)
    _refuse_unmarked(kind, last, envelope)
    if envelope.finalizers:
        if envelope.deleting_since is None:
            await _write(context, envelope, context.clock.now(), key)
        elif key is not None:
            await context.store.commit([], idempotency_key=key)
        return envelope
    writes: list[Write] = [Delete(envelope.key)]
    writes += references.plan_release(kind, envelope, decode_part(envelope.spec, kind.spec))
    removed = msgspec.json.encode(Enrolment(name=envelope.name, removed_at=context.clock.now()))
    if kind.lifetime.runs_workloads:
        writes.append(Put(enrolment_key(envelope.uid), removed))
    if kind is CLUSTER:
        writes.append(plan_leaving(envelope))
    revision = await context.store.commit(writes, [AtRevision(envelope.key, envelope.revision)], idempotency_key=key)
    if kind.lifetime.runs_workloads:
        context.enrolments.note(envelope.uid, removed, revision)
    context.tokens.forget(envelope.key, revision)
    context.accounts.forget(envelope.key, revision)
    return envelope
