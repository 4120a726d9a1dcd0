"""A node's report: one batch, one commit of only what changed. It is the node's heartbeat too.

Reads and writes the ``report`` parts of the node and of its own allocations; reads volumes and snapshots that are being deleted.
A report on an older incarnation, or on another node's allocation, is refused by name; the rest of the batch is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec

from weft.api.admission.commit import read_again, retry
from weft.api.auth.authorise import given_up_key
from weft.api.context import ApiContext
from weft.api.node.join import make_node, require_own
from weft.api.node.orphans import find_superseded, keep_disks
from weft.api.request.call import Call, json_answer
from weft.api.request.trace import name_owner
from weft.api.route import Route, Topic
from weft.api.state.report_sequence import NONE, find_version, is_late, is_numbered
from weft.contracts.journal import Event
from weft.contracts.store import (
    MAX_DIGEST_BYTES,
    Absent,
    AtRevision,
    Delete,
    Precondition,
    Put,
    Write,
    epoch_of,
    revision_of,
)
from weft.contracts.trace.context import read_ended, read_mark
from weft.failover.timing import count_pause
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_restoring, list_snapshots_to_take
from weft.kinds.function import FUNCTION, FunctionSpec, FunctionStatus
from weft.kinds.node import MOST_DEPARTED, MOST_DEPARTED_CHARACTERS, NodeActions, NodeReport
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope
from weft.objects.errors import AlreadyExists, Forbidden, InvalidInput, Unavailable
from weft.objects.identity import Ref, object_key
from weft.protocol.failover.confirmed import CONFIRMED_PREFIX, read_confirmed
from weft.protocol.heartbeat import LEASE_PREFIX, LEASE_SECONDS, Digest, write_digest
from weft.protocol.report import MOST_EVENTS, NodeEvent, ReportAnswer, ReportBody, ReportFields
from weft.serving.answer import Answer
from weft.trust.credentials import Actor
from weft.trust.enrolment import Enrolment, adopt, enrolment_key, read_enrolment

_ONE_BY_ONE = 4  # up to so many allocations are read one by one, more by one list
_CHUNK = 90
_OLDEST_SECONDS = 31 * 86400.0
_NO_KEY = "/-/"  # a prefix without keys: a list of it gives the newest revision
_SET_AGAIN = "its labels, taints, autonomy, cordon and other settings are gone: set again what it needs"
_NOTHING = msgspec.Raw(b"null")


class ReportInput(ReportFields, frozen=True):
    """A ``ReportBody`` with raw parts: no field of a newer agent is lost."""

    node: msgspec.Raw = _NOTHING
    allocations: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)
    digest: msgspec.Raw = _NOTHING


async def report(context: ApiContext, call: Call, name: str) -> Answer:
    """``POST /v1/nodes/{name}:report``, by the node itself."""
    uid = call.actor.id
    known = await require_own(context, call, name)
    call.query()
    given = _read(await call.read_body())
    await context.store.grant(f"{LEASE_PREFIX}{uid}", uid, LEASE_SECONDS, _write_digest(given.digest))
    node = await _read_node(context, name, uid)
    if node is None or known is None:
        node = await retry(context, lambda: _take_back(context, call.actor, name, given.heard))
    answer = ReportAnswer()
    answer.version = await _write_node(context, node, given)
    owned = await _write_allocations(context, uid, given, answer)
    if given.events:
        own = _name_own(node, owned)
        if any(event.object.uid not in own for event in given.events[:MOST_EVENTS]):
            own = _name_own(node, await _own(context, uid))
        own |= await _find_local_functions(context, node, own, given.events)
        answer.through = await _keep_events(context, uid, given, _find_own_events(context, node, own, given.events))
    newer = context.ranges.newer_than(given.ranges_version)
    if newer is not None:
        answer.ranges_version, answer.ranges, answer.node_ranges, answer.server = newer
    answer.networks = context.ranges.find_rules(given.networks)
    answer.peers = context.peers.newer_than(given.peers_version, uid)
    answer.gone_networks = context.ranges.find_gone(given.idle_networks)
    if not decode_part(node.report, NodeReport).orphan_allocations:  # as it was before this report
        node = await read_again(context, node.key) or node
    answer.superseded, answer.stale_volumes = await find_superseded(context, node)
    await keep_disks(context, node, answer.superseded)
    answer.orders = context.orders.find(uid)
    answer.guard_pause = count_pause(decode_part(node.actions, NodeActions).guard_paused_until - context.clock.now())
    answer.gateways = context.servers.gateways
    if (digest := _read_digest(given.digest)) is not None and digest.stamp:
        answer.stamps = await _find_confirmed(context, uid)
    answer.remove_volumes = await _find_removable(context, uid, set(given.removed_volumes))
    answer.remove_snapshots = await _find_removable_snapshots(context, node)
    return json_answer(answer)


def _read(body: bytes) -> ReportInput:
    try:
        given = msgspec.json.decode(body or b"{}", type=ReportInput)
        msgspec.json.decode(given.node, type=NodeReport | None)
        for part in given.allocations.values():
            decode_part(part, AllocationReport)
        if given.heard:
            revision_of(given.heard)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise InvalidInput(f"the report can't be read: {problem}") from None
    return given


def _read_digest(given: msgspec.Raw) -> Digest | None:
    try:
        return msgspec.json.decode(given, type=Digest | None)
    except msgspec.MsgspecError:
        return None


async def _find_confirmed(context: ApiContext, uid: str) -> dict[str, str]:
    """The node's stamps that were confirmed, by the workload's uid."""
    name = f"{CONFIRMED_PREFIX}{uid}"
    leases = await context.store.leases(name, digests=True)
    return next((read_confirmed(lease.digest) for lease in leases if lease.name == name), {})


def _write_digest(given: msgspec.Raw) -> bytes:
    """The digest in the form that the lease has; empty if it can't be read: the heartbeat counts nevertheless."""
    digest = _read_digest(given)
    written = b"" if digest is None else write_digest(digest)
    return written if len(written) <= MAX_DIGEST_BYTES else b""


async def _read_node(context: ApiContext, name: str, uid: str) -> Envelope | None:
    node = await read_again(context, object_key("node", None, name))
    if node is not None and node.uid != uid:
        raise AlreadyExists(f'node "{name}" exists with another identity', field="name", hint="join under another name")
    return node


async def _take_back(context: ApiContext, actor: Actor, name: str, followed: str | None) -> Envelope:
    """The Node object for a valid certificate of a node that the store doesn't have: the store is older or was emptied, or the
    node was given up. Its guests come back with it. Raises Unavailable while its agent may not have followed the deletion of its
    allocations: its report would explain their guests, and others would be started beside them."""
    uid, peer = actor.id, actor.peer
    node = await _read_node(context, name, uid)
    key = enrolment_key(uid)
    entry = await context.store.get(key)
    writes: list[Write] = []
    preconditions: list[Precondition] = []
    if entry is None:
        fresh = Enrolment(name=name) if peer is None else adopt(Enrolment(name=name), peer)
        writes.append(Put(key, msgspec.json.encode(fresh)))
        preconditions.append(Absent(key))
    made = node is None
    if node is None:
        if entry is not None and read_enrolment(entry.value).removed_at is not None:
            raise Forbidden(f"node {name} was removed from the fabric")
        given_up = await context.store.get(given_up_key(uid))
        if given_up is not None:
            await _check_followed(context, name, followed, given_up.revision)
            preconditions.append(AtRevision(given_up.key, given_up.revision))
        node = make_node(context, name, uid)
        writes.append(Put(node.key, encode_envelope(node)))
        preconditions.append(Absent(node.key))
    if writes:
        revision = await context.store.commit(writes, preconditions)
        node.revision = revision if made else node.revision
    if made:
        why = "the store did not have the node" if entry is None else "people had given the node up"
        message = f"{why}, and its certificate is valid; {_SET_AGAIN}"
        context.add_event(node.ref, "TakenBack", message, "Warning")
    return node


async def _check_followed(context: ApiContext, name: str, followed: str | None, revision: int) -> None:
    """Raise Unavailable unless the agent has followed its allocations (up to the cursor ``followed``) to ``revision``. An agent
    that doesn't report a cursor counts as if it had."""
    if followed is None or await _has_followed(context, followed, revision):
        return
    raise Unavailable(
        f"node {name} was given up, and hasn't followed the deletion of its allocations yet",
        hint="the node is taken back as soon as it has",
        retry_after_seconds=1,
    )


async def _has_followed(context: ApiContext, followed: str, revision: int) -> bool:
    """Whether an agent that followed its allocations up to the cursor ``followed`` has seen what was done at ``revision``."""
    now = (await context.store.list(_NO_KEY, limit=1)).cursor
    return epoch_of(followed) == epoch_of(now) and revision_of(followed) >= revision


async def _forget_places(context: ApiContext, uid: str, followed: str | None) -> list[Write]:
    """The delete of the node's ``GivenUp``, once the node has followed the deletion that it records."""
    given_up = await context.store.get(given_up_key(uid))
    if given_up is None or not followed or not await _has_followed(context, followed, given_up.revision):
        return []
    return [Delete(given_up.key)]


async def _write_node(context: ApiContext, node: Envelope, given: ReportInput) -> str:
    """Commit the node's own facts if they changed and no newer ones are there; the version of those that are."""
    part = _number(bound_departed(given.node), given.version)

    async def attempt() -> str:
        current = await read_again(context, node.key)
        if current is None or current.uid != node.uid:
            return NONE
        if not is_late(find_version(current), given.version) and _merge(current, part):
            writes: list[Write] = [Put(current.key, encode_envelope(current))]
            if not decode_part(current.report, NodeReport).orphans:
                writes += await _forget_places(context, node.uid, given.heard)
            await context.store.commit(writes, [AtRevision(current.key, current.revision)])
        return find_version(current)

    stored = find_version(node)
    if part == _NOTHING or is_late(stored, given.version) or not _merge(node, part):
        return stored
    return await retry(context, attempt)


def _number(part: msgspec.Raw, version: str) -> msgspec.Raw:
    """The facts with their version, which they are stored with."""
    facts = msgspec.json.decode(part)
    if facts is None:
        return _NOTHING
    return msgspec.Raw(msgspec.json.encode({**facts, "sequence": version if is_numbered(version) else ""}))


def bound_departed(part: msgspec.Raw) -> msgspec.Raw:
    """A node's report without the endpoints beyond MOST_DEPARTED, which an older agent names: a node whose report is too large to
    be stored is a silent one."""
    report = msgspec.json.decode(part)
    departed = (report or {}).get("departed", [])
    kept = [name for name in departed if len(name) <= MOST_DEPARTED_CHARACTERS][:MOST_DEPARTED]
    return part if kept == departed else msgspec.Raw(msgspec.json.encode({**report, "departed": kept}))


async def _write_allocations(context: ApiContext, uid: str, given: ReportInput, answer: ReportAnswer) -> list[Envelope]:
    """Commit the reports that changed; their allocations."""
    parts = await _leave_out_former(context, given, answer)
    names = sorted(parts)
    owned: list[Envelope] = []
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        owned += await retry(context, partial(_write_chunk, context, uid, chunk, parts, answer))
    return owned


async def _leave_out_former(context: ApiContext, given: ReportInput, answer: ReportAnswer) -> dict[str, msgspec.Raw]:
    """The reports on allocations, without ``released`` ones of an agent that hasn't followed the present history: after a restore
    those may be desired again, and the agent reports on them again once it has."""
    released = [
        name for name, part in given.allocations.items() if decode_part(part, AllocationReport).state == "released"
    ]
    if not released or given.heard is None or (given.heard and await _has_followed(context, given.heard, 0)):
        return given.allocations
    answer.refused.update(dict.fromkeys(released, "notHeard"))
    return {name: part for name, part in given.allocations.items() if name not in answer.refused}


async def _write_chunk(
    context: ApiContext, uid: str, names: Sequence[str], parts: dict[str, msgspec.Raw], answer: ReportAnswer
) -> list[Envelope]:
    found = await _read_allocations(context, uid, names)
    writes: list[Write] = []
    preconditions: list[Precondition] = []
    news: list[tuple[Envelope, str]] = []  # of which a trace may tell
    for name in names:
        envelope = found.get(name)
        if not name.startswith(f"{uid}."):
            answer.refused[name] = "notYours"
        elif envelope is None:
            answer.refused[name] = "unknown"
        elif (report := decode_part(parts[name], AllocationReport)).incarnation < _incarnation(envelope):
            answer.refused[name] = "staleIncarnation"
        elif (before := envelope.report) and _merge(envelope, parts[name]):
            if envelope.trace is not msgspec.UNSET and decode_part(before, AllocationReport).state != report.state:
                news.append((envelope, report.state))
            writes.append(Put(envelope.key, encode_envelope(envelope)))
            preconditions.append(AtRevision(envelope.key, envelope.revision))
    if writes:
        began = context.clock.now()
        await context.store.commit(writes, preconditions)
        if context.traces is not None:
            for envelope, state in news:
                if not await _is_done(context, envelope):
                    context.traces.note_report(envelope, state, began)
                context.node_spans.known(uid).add(name_owner(envelope))
    return list(found.values())


async def _is_done(context: ApiContext, allocation: Envelope) -> bool:
    """Whether the workload has become what the write wanted that the allocation's mark is of: this report has another cause."""
    of = allocation.owner
    workload = await read_again(context, object_key(of.kind, of.project, of.name)) if of is not None else None
    done = read_ended(workload.trace) if workload is not None else None
    return done is not None and done == read_mark(allocation.trace, context.clock.now())


async def _read_allocations(context: ApiContext, uid: str, names: Sequence[str]) -> dict[str, Envelope]:
    if len(names) > _ONE_BY_ONE:
        return {envelope.name: envelope for envelope in await _own(context, uid)}
    found = {}
    for name in names:
        if name.startswith(f"{uid}.") and "/" not in name:
            envelope = await read_again(context, object_key("allocation", None, name))
            if envelope is not None:
                found[name] = envelope
    return found


async def _own(context: ApiContext, uid: str) -> list[Envelope]:
    page = await context.store.list(object_key("allocation", None, f"{uid}."))
    return [decode_envelope(entry.value, entry.revision) for entry in page.entries]


def _incarnation(envelope: Envelope) -> int:
    return decode_part(envelope.spec, AllocationSpec).incarnation


def _merge(envelope: Envelope, part: msgspec.Raw) -> bool:
    """Set ``part`` as the object's report; False if that changes nothing."""
    old, new = msgspec.json.decode(envelope.report), msgspec.json.decode(part)
    if old == new:
        return False
    envelope.report = msgspec.Raw(msgspec.json.encode(new))
    return True


async def _keep_events(
    context: ApiContext, uid: str, given: ReportInput, events: Sequence[tuple[int, Event]]
) -> int | None:
    """The greatest number of the node's outbox whose event needn't come again; None for an older agent, whose events have no
    numbers. Those that aren't the node's own are left out, and needn't come either."""
    if not given.outbox:
        for _, event in events:
            context.journal.append(event)
        return None
    through = max((event.n for event in given.events[:MOST_EVENTS]), default=0)
    kept = await context.journal.take_soon(uid, given.outbox, events)
    newest = max((number for number, _ in events), default=0)
    return max(through, kept) if kept >= newest else kept


def _name_own(node: Envelope, owned: Sequence[Envelope]) -> dict[str, Ref]:
    """The node itself, its allocations ``owned``, and their workloads, by uid."""
    own = {node.uid: node.ref}
    for envelope in owned:
        workload = decode_part(envelope.spec, AllocationSpec).workload
        own |= {envelope.uid: envelope.ref, workload.uid: workload}
    return own


async def _find_local_functions(
    context: ApiContext, node: Envelope, own: Mapping[str, Ref], events: Sequence[NodeEvent]
) -> dict[str, Ref]:
    """The functions among the events' objects that the node serves at its own address, or has served there before they ceased to
    name it, by uid."""
    found: dict[str, Ref] = {}
    for ref in {event.object for event in events[:MOST_EVENTS] if event.object.uid not in own}:
        if not ref.project:
            continue
        entry = await context.store.get(object_key(FUNCTION.name, ref.project, ref.name))
        envelope = decode_envelope(entry.value) if entry is not None else None
        if envelope is None or envelope.uid != ref.uid:
            continue
        spec, status = decode_part(envelope.spec, FunctionSpec), decode_part(envelope.status, FunctionStatus)
        if node.name in spec.local_nodes or node.name in status.named_nodes:
            found[envelope.uid] = envelope.ref
    return found


def _find_own_events(
    context: ApiContext, node: Envelope, own: Mapping[str, Ref], events: Sequence[NodeEvent]
) -> list[tuple[int, Event]]:
    """The events about the node itself and about its own workloads, under the names that these have here, with their numbers: a
    hostile node would otherwise write events about any workload."""
    now, source = context.clock.now(), f"node/{node.name}"
    return [
        (
            event.n,
            Event(
                type=event.type,
                reason=event.reason[:64],
                message=event.message[:2000],
                object=own[event.object.uid],
                source=source,
                at=now - min(event.age_seconds, _OLDEST_SECONDS) if event.age_seconds else None,
            ),
        )
        for event in events[:MOST_EVENTS]
        if event.object.uid in own
    ]


async def _find_removable(context: ApiContext, uid: str, removed: set[str]) -> list[str]:
    """Volumes whose data this node must remove: each is being deleted, detached, and in none of its allocations."""
    doomed = {volume for volume, node_uid in context.orders.doomed_volumes.found.values() if node_uid == uid} - removed
    if not doomed:
        return []
    for envelope in await _own(context, uid):
        doomed -= {volume.uid for volume in decode_part(envelope.spec, AllocationSpec).volumes}
    return sorted(doomed)


async def _find_removable_snapshots(context: ApiContext, node: Envelope) -> list[str]:
    """Snapshots that this node keeps and must remove: each is being deleted, and none of its allocations needs it to begin, or to
    go back to it, or is on the way with a copy of it, which would stay."""
    every = {one.uid: one for one in context.orders.doomed_snapshots.found.values()}
    if not every:
        return []
    doomed = every.keys() & {one.uid for one in decode_part(node.report, NodeReport).snapshots}
    for envelope in await _own(context, node.uid) if doomed else ():
        spec, report = decode_part(envelope.spec, AllocationSpec), decode_part(envelope.report, AllocationReport)
        doomed -= {one.uid for one in list_snapshots_to_take(spec, report)}
        begins = report.to_begin or report.state in ("pending", "preparing")
        if spec.origin is not None and (is_restoring(spec, report) or begins):
            doomed.discard(spec.origin.snapshot)
        if spec.migration is not None or spec.storage is not None:
            on_the_way = {spec.workload.uid, *(volume.uid for volume in spec.volumes)}
            doomed = {uid for uid in doomed if every[uid].goes_with.isdisjoint(on_the_way)}
    return sorted(doomed)


ROUTES = (
    Route(
        "POST",
        "/v1/nodes/{name}:report",
        report,
        "Take a node's report about itself",
        where="nodes",
        topic=Topic("refused", "report", "node", name="{name}"),
        takes=ReportBody,
        answers=ReportAnswer,
    ),
)
