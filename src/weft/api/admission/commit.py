"""Commits what was admitted. When others wrote in between, the request is admitted again: people never see that.

Writes to the store and the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from weft.api.admission.admit import Draft
from weft.api.admission.quota import note_commit
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.request.call import Call, Change
from weft.api.request.trace import note_phase
from weft.contracts.store import Absent, PreconditionFailed, Present
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import InvalidInput, Unavailable

T = TypeVar("T")
TRIES = 24
_PATIENT_TRIES = 4
_PAUSE_SECONDS = 0.01
_NOWHERE = "/-"


async def retry(context: ApiContext, attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of ``attempt``, repeated while a precondition of its commit fails. Raises Unavailable after the last try."""
    for count in range(TRIES):
        try:
            return await attempt()
        except PreconditionFailed as problem:
            note_failure(context, problem)
            await _pause(context, count)
    raise _too_fast()


def note_failure(context: ApiContext, problem: PreconditionFailed) -> None:
    """A commit has failed: what is there, unlike this process's copy of the store has it, is read by the next try."""
    context.rates.expect(problem.failed)


async def _pause(context: ApiContext, count: int) -> None:
    if count >= _PATIENT_TRIES:
        await context.clock.sleep(_PAUSE_SECONDS * count)


def _too_fast() -> Unavailable:
    return Unavailable(
        "the objects that this request needs are changing too fast", hint="try again", retry_after_seconds=1
    )


async def settle(
    context: ApiContext, plan: Callable[[View], Awaitable[Draft]], *, key: str | None = None, dry_run: bool = False
) -> Draft:
    """Plan against the newest state and commit, until the commit succeeds; the draft as stored. With ``key``, a repeat of
    the same request changes nothing: it gets the object as it is now."""

    for count in range(TRIES):  # as ``retry`` does, which would make every write cost more
        view = View(context.store, context.clock)
        try:
            draft = await plan(view)
            if draft.writes and not dry_run:
                writes = [*draft.writes, *draft.guards]
                admitted = note_phase("admission", 0.0, context.clock)
                revision = await context.store.commit(writes, draft.preconditions, idempotency_key=key)
                note_phase("commit", admitted, context.clock)
                if draft.guards:
                    note_commit(context, view, draft.guards, revision)
                draft.envelope.revision = revision
                if key is not None:
                    await _find_first(context, draft)
            return draft
        except PreconditionFailed as problem:
            note_failure(context, problem)
        finally:
            view.end()
        await _pause(context, count)
    raise _too_fast()


async def was_done(context: ApiContext, key: str) -> bool:
    """Whether a commit with this idempotency key was made: for a repeat that admission would refuse by now."""
    try:
        await context.store.commit([], [Absent(_NOWHERE), Present(_NOWHERE)], idempotency_key=key)
    except PreconditionFailed:
        return False
    return True


def describe_deleted() -> InvalidInput:
    """The error for the repeat of a request whose object was deleted since."""
    return InvalidInput(
        "this Idempotency-Key was used before, and the object that it made was deleted",
        field="Idempotency-Key",
        hint="use a new key for a new request",
    )


async def read_again(context: ApiContext, store_key: str) -> Envelope | None:
    """The object as it is stored now."""
    entry = await context.store.get(store_key)
    return None if entry is None else decode_envelope(entry.value, entry.revision)


def record_change(context: ApiContext, call: Call, draft: Draft) -> None:
    """Write the event of a change that a request made, which counts from now on for what its actor may do, and note it for the
    audit log."""
    actor = call.actor
    if (note := context.notes.get(draft.kind.name)) is not None:
        note(draft.envelope)
    call.changed.append(Change(draft.envelope, draft.action, draft.changes, draft.labels))
    if draft.action == "created":
        if draft.counted:
            context.objects.add(draft.counted)
        context.add_event(draft.envelope.ref, "Created", f"created by {actor.name}")
    elif draft.action == "updated":
        paths = ", ".join([change.path for change in draft.changes[:5]]) or "labels"
        context.add_event(draft.envelope.ref, "Changed", f"{paths} changed by {actor.name}")


async def _find_first(context: ApiContext, draft: Draft) -> None:
    """If the commit was made before, put the object that it made into the draft."""
    stored = await read_again(context, draft.envelope.key)
    if stored is None:
        raise describe_deleted()
    draft.envelope = stored
