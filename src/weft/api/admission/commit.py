"""Commits what was admitted. When others wrote in between, the whole is admitted anew: people never see that.

Writes to the store; tells the journal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from weft.api.admission.admit import Draft
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.contracts.store import Absent, PreconditionFailed, Present
from weft.objects.envelope import Envelope, decode_envelope
from weft.objects.errors import InvalidInput, Unavailable
from weft.trust.credentials import Actor

T = TypeVar("T")
TRIES = 24
_PATIENT_TRIES = 4
_PAUSE_SECONDS = 0.01
_NOWHERE = "/-"


async def retry(context: ApiContext, attempt: Callable[[], Awaitable[T]]) -> T:
    """What ``attempt`` gives, begun anew as long as a precondition of its commit fails. Raises Unavailable if it never
    stops failing."""
    for count in range(TRIES):
        try:
            return await attempt()
        except PreconditionFailed:
            await _pause(context, count)
    raise _too_fast()


async def _pause(context: ApiContext, count: int) -> None:
    if count >= _PATIENT_TRIES:
        await context.clock.sleep(_PAUSE_SECONDS * count)


def _too_fast() -> Unavailable:
    return Unavailable(
        "the objects that this request needs change too fast just now", hint="try again", retry_after_seconds=1
    )


async def settle(
    context: ApiContext, plan: Callable[[View], Awaitable[Draft]], *, key: str | None = None, dry_run: bool = False
) -> Draft:
    """Plan against the newest state and commit, until both agree; the draft as stored. ``key`` makes a repeat of the
    same request harmless: it gets the object as it is now."""

    for count in range(TRIES):  # as ``retry`` does; through that every write would cost more
        try:
            draft = await plan(View(context.store))
            if draft.writes and not dry_run:
                revision = await context.store.commit(draft.writes, draft.preconditions, idempotency_key=key)
                draft.envelope.revision = revision
                if key is not None:
                    await _find_first(context, draft)
            return draft
        except PreconditionFailed:
            await _pause(context, count)
    raise _too_fast()


async def was_done(context: ApiContext, key: str) -> bool:
    """Whether a commit with this idempotency key has been made: asked by one that could never succeed otherwise."""
    try:
        await context.store.commit([], [Absent(_NOWHERE), Present(_NOWHERE)], idempotency_key=key)
    except PreconditionFailed:
        return False
    return True


async def read_again(context: ApiContext, store_key: str) -> Envelope | None:
    """The object as it is stored now."""
    entry = await context.store.get(store_key)
    return None if entry is None else decode_envelope(entry.value, entry.revision)


def tell(context: ApiContext, actor: Actor, draft: Draft) -> None:
    """The journal's line for a change that someone made."""
    if draft.action == "created":
        context.tell(draft.envelope.ref, "Created", f"created by {actor.name}")
    elif draft.action == "updated":
        paths = ", ".join([change.path for change in draft.changes[:5]]) or "labels"
        context.tell(draft.envelope.ref, "Changed", f"{paths} changed by {actor.name}")


async def _find_first(context: ApiContext, draft: Draft) -> None:
    """If the commit had been made before, put what that one made into the draft."""
    stored = await read_again(context, draft.envelope.key)
    if stored is None:
        raise InvalidInput(
            "this Idempotency-Key was used before, and the object that it made is gone",
            field="Idempotency-Key",
            hint="use a new key for a new request",
        )
    draft.envelope = stored
