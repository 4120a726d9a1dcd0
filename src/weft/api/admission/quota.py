"""Whether a project's quota has amounts left for what a request adds.

Reads the quota first and the project's objects after that. A change that adds something of what is limited has as its precondition
that nobody wrote the quota since, and writes it again unchanged (a guard): of two requests that counted on the same free amounts,
the second one's commit fails, and it is admitted again on what the first one left. The objects themselves are the account, and no
decision relies on a stored sum: a process that is killed at any moment, before or after a commit, leaves nothing to correct.

A quota that is created or changed while a request is under way counts for the requests after it, as if that one had come before.
"""

from __future__ import annotations

from typing import Any

from weft.api.admission.usage import Usage
from weft.api.admission.view import View
from weft.api.context import ApiContext
from weft.api.state.counted_objects import count, read_image_sizes
from weft.contracts.store import AtRevision, Precondition, Put
from weft.kinds.quota import QUOTA, QuotaSpec, exceeded, find_excess, find_growth, quota_key, resolve
from weft.kinds.record import Counted, Kind
from weft.kinds.registry import BY_NAME
from weft.objects.envelope import Envelope, decode_part, encode_envelope


async def plan_quota(
    context: ApiContext, view: View, kind: Kind, envelope: Envelope, old: Any, new: Any
) -> tuple[list[Put], list[Precondition]]:
    """The guard of the project's quota, and its preconditions, for an object that gets the spec ``new`` in place of ``old`` (None:
    it is a new one). The last step of a plan, since from here on the object counts. Raises Forbidden."""
    project = envelope.project
    if kind.counts is None or project is None:
        return [], []
    quota = await view.get(QUOTA, project, QUOTA.only_name)
    if quota is None:
        return [], []
    limits = decode_part(quota.spec, QuotaSpec)
    status = decode_part(envelope.status, kind.status)
    counted = kind.counts(new, status)
    usage = view.usages.get(project)
    if usage is None:
        before = Counted({}) if old is None else kind.counts(old, status)
        has_other_image = counted.image != before.image and limits.disk is not None
        if not has_other_image and not find_growth(limits, before.amounts, counted.amounts):
            return [], []
        usage = view.usages[project] = await _read_usage(context, view, project)
    amounts = resolve(counted, usage.image_sizes)
    # An object that is there already isn't made twice: that commit fails.
    growth = find_growth(limits, usage.of(envelope.key), amounts)
    if excess := find_excess(limits, usage.total, growth):
        raise exceeded(project, excess, new)
    usage.put(envelope.key, amounts)
    if not growth:
        return [], []
    key = quota_key(project)
    # A quota that this request makes has no revision yet, and nobody else can have counted on it.
    unchanged: list[Precondition] = [AtRevision(key, quota.revision)] if quota.revision else []
    return [Put(key, encode_envelope(quota))], unchanged


async def _read_usage(context: ApiContext, view: View, project: str) -> Usage:
    known = await context.counted.read(view.store, project)
    sizes = await read_image_sizes(view.store, project)
    amounts = {key: resolve(counted, sizes) for key, (_, counted) in known.items()}
    for key, envelope in view.list_planned():
        kind = BY_NAME[envelope.kind]
        if kind.counts is not None and envelope.project == project:
            amounts[key] = resolve(count(kind, envelope), sizes)
    return Usage(amounts, sizes)
