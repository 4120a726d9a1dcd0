"""Whether a project's quota has amounts left for what a request adds, for the project and for the user who created the object.

Reads the quota first and the project's objects after that. A change that adds something of what is limited has as its precondition
that nobody wrote the quota since, and writes it again unchanged (a guard): of two requests that counted on the same free amounts,
the second one's commit fails, and it is admitted again on what the first one left. The objects themselves are the account, and no
decision relies on a stored sum: a process that is killed at any moment, before or after a commit, leaves nothing to correct.

Requests that add something in one project take turns, since only one of them can pass at a time; without that all but one would be
planned in vain. A sum of what the objects count is remembered (``CountedObjects``); before a refusal it is made again.

A quota that is created or changed while a request is under way counts for the requests after it, as if that one had come before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weft.api.admission.view import QuotaUsage, View
from weft.api.context import ApiContext
from weft.contracts.store import AtRevision, Precondition, Put
from weft.kinds.image import IMAGE, ImageStatus
from weft.kinds.quota import AccountLimits, Excess, QuotaSpec, exceeded, find_excess, find_growth, quota_key, resolve
from weft.kinds.record import Counted, Kind
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.identity import named_key


async def plan_quota(
    context: ApiContext,
    view: View,
    kind: Kind,
    envelope: Envelope,
    old: Any,
    new: Any,
    former: Envelope | None = None,
) -> tuple[list[Put], list[Precondition]]:
    """The guard of the project's quota, and its preconditions, for an object that gets the spec ``new`` in place of ``old`` (None:
    it is a new one); ``former``: the object before that, where other parts differ too. The last step of a plan, since from here on
    the object counts. Raises Forbidden."""
    project, user = envelope.project, envelope.creator
    if kind.admission.counts is None or project is None:
        return [], []
    key = quota_key(project)
    quota = await view.get_key(key)
    if quota is None:
        return [], []
    before = {} if old is None else await _resolve(view, project, kind.count_envelope(old, former or envelope))
    after = await _resolve(view, project, kind.count_envelope(new, envelope))
    usage = view.usages.setdefault(key, QuotaUsage())
    growth = find_growth(_list_limits(quota, user), before, after)
    if growth and usage.sum is None:
        await view.take_turn(context.counted.turn(key))
        quota = await view.read_again(key)
        if quota is None:
            return [], []
        usage.sum = context.counted.find(key, quota.revision)
        growth = find_growth(_list_limits(quota, user), before, after)
    if growth:
        await _refuse_excess(context, view, quota, usage, growth, envelope, new, is_new=old is None)
    usage.add(user, before, after)
    if old is None:
        usage.new[envelope.key] = (user, after)
    if not growth:
        return [], []
    # A quota that this request makes has no revision yet, and nobody else can have counted on it.
    unchanged: list[Precondition] = [AtRevision(key, quota.revision)] if quota.revision else []
    return [Put(key, encode_envelope(quota))], unchanged


def note_commit(context: ApiContext, view: View, guards: Iterable[Put], revision: int) -> None:
    """Remember what the objects count at most, now that a commit has written these guards."""
    for guard in guards:
        if (usage := view.usages.get(guard.key)) is not None:
            context.counted.note(guard.key, revision, usage.bound)


async def _refuse_excess(
    context: ApiContext,
    view: View,
    quota: Envelope,
    usage: QuotaUsage,
    growth: Mapping[str, float],
    envelope: Envelope,
    spec: Any,
    *,
    is_new: bool,
) -> None:
    """Raise Forbidden if the quota hasn't ``growth`` left: certainly not, by objects that were read after it asked for its turn."""
    counted, project = context.counted, envelope.project or ""
    accounts = decode_part(quota.spec, QuotaSpec).accounts_of(envelope.creator)
    excess = _find_excess(accounts, usage, growth)
    if usage.sum is None or (excess and usage.sum.began_at < view.began_at):
        usage.sum = await counted.read(view.store, context.clock, project, quota.revision)
        # One that is there already isn't made twice: its commit fails, or is a repeat.
        for key in [key for key in usage.new if counted.has(project, key)]:
            usage.add(*usage.new.pop(key), {})
        excess = _find_excess(accounts, usage, growth)
    if excess and not (is_new and counted.has(project, envelope.key)):
        raise exceeded(project, excess, spec)


def _find_excess(
    accounts: Iterable[tuple[str, AccountLimits]], usage: QuotaUsage, growth: Mapping[str, float]
) -> list[Excess]:
    """The excess of ``growth`` in the first account that hasn't so much left."""
    every = (find_excess(limits, usage.find_total(account), growth, account) for account, limits in accounts)
    return next(filter(None, every), [])


def _list_limits(quota: Envelope, user: str) -> list[AccountLimits]:
    return [limits for _, limits in decode_part(quota.spec, QuotaSpec).accounts_of(user)]


async def _resolve(view: View, project: str, counted: Counted) -> Mapping[str, float]:
    image = await view.get_key(named_key(IMAGE.name, project, counted.image)) if counted.image else None
    sizes = {} if image is None else {counted.image: decode_part(image.status, ImageStatus).virtual_size}
    return resolve(counted, sizes)
