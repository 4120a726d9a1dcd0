"""Find what holds a node that is deleted, and what has ended there: that doesn't hold it, and doesn't run a second time elsewhere.
Each workload keeps its record; what its node kept of it, such as the log, goes with the node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from weft.api.admission.commit import read_again
from weft.api.context import ApiContext
from weft.contracts.store import AtRevision, Delete, Entry, Precondition, Put, Store, Write
from weft.kinds.allocation import AllocationReport, AllocationSpec, has_nothing_to_migrate, is_lost
from weft.kinds.parts.workload import WorkloadActions
from weft.objects.envelope import Envelope, decode_envelope, decode_part, encode_envelope, merge_part
from weft.objects.errors import InUse
from weft.objects.identity import object_key

AT_ONCE = 45  # with its workload each, in one commit
_SHOWN = 5
_RESTING = ("stopped", "suspended", "failed", "released")


async def find_holders(store: Store, node_uid: str) -> list[str]:
    """The workloads that hold a node, those that run first; what has ended there doesn't hold it."""
    found: list[tuple[bool, str]] = []
    after: str | None = None
    while True:
        page = await store.list(object_key("allocation", None, f"{node_uid}."), limit=500, after=after)
        found += await asyncio.to_thread(_read_held, page.entries)
        if page.next is None:
            break
        after = page.next
    return [name for _, name in sorted(found)]


def _read_held(entries: Sequence[Entry]) -> list[tuple[bool, str]]:
    """State of each allocation that holds its node: whether it rests, and its workload."""
    found = []
    for entry in entries:
        envelope = decode_envelope(entry.value)
        if not _has_ended(envelope):
            workload = decode_part(envelope.spec, AllocationSpec).workload
            rests = decode_part(envelope.report, AllocationReport).state in _RESTING
            where = f" -p {workload.project}" if workload.project not in (None, "default") else ""
            found.append((rests, f"{workload.kind}/{workload.name}{where}"))
    return found


def still_has(node: Envelope, users: list[str], *, silent: bool) -> InUse:
    """The error for deleting a node that workloads still need."""
    users = list(dict.fromkeys(users))
    shown = ", ".join(users[:_SHOWN]) + (f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else "")
    hint = f"weft node drain {node.name} migrates what is there; weft describe {users[0]} shows why one stays"
    if silent:
        hint = f"it sends no heartbeat; if it doesn't come back: weft node delete {node.name} --force"
    return InUse(f'node "{node.name}" is in use by {shown}', hint=hint, details={"by": users[:_SHOWN]})


async def release_ended(context: ApiContext, node: Envelope) -> None:
    """Delete the node's allocations of what has ended there. If the server is killed meanwhile, the next request continues."""
    after: str | None = None
    while True:
        page = await context.store.list(object_key("allocation", None, f"{node.uid}."), limit=AT_ONCE, after=after)
        doomed = await asyncio.to_thread(_find_doomed, page.entries)
        writes: list[Write] = [Delete(place.key) for place in doomed]
        preconditions: list[Precondition] = [AtRevision(place.key, place.revision) for place in doomed]
        stopped = await plan_stopped(context, doomed, writes, preconditions)
        if writes:
            await context.store.commit(writes, preconditions)
        report_stopped(context, stopped, node.name)
        if page.next is None:
            return
        after = page.next


def _find_doomed(entries: Sequence[Entry]) -> list[Envelope]:
    return [place for entry in entries if _has_ended(place := decode_envelope(entry.value, entry.revision))]


def _has_ended(place: Envelope) -> bool:
    return has_nothing_to_migrate(decode_part(place.spec, AllocationSpec), decode_part(place.report, AllocationReport))


async def plan_stopped(
    context: ApiContext, places: Sequence[Envelope], writes: list[Write], preconditions: list[Precondition]
) -> list[Envelope]:
    """Add what keeps workloads stopped that had ended at ``places``; those workloads."""
    stopped = list[Envelope]()
    for place in places:
        if (rests := await _find_resting(context, place)) is not None:
            stopped.append(rests)
            preconditions.append(AtRevision(rests.key, rests.revision))
            rests.spec, rests.generation = merge_part(rests.spec, {"run": "stop"}), rests.generation + 1
            writes.append(Put(rests.key, encode_envelope(rests)))
    return stopped


def report_stopped(context: ApiContext, stopped: Sequence[Envelope], node: str, *, given_up: bool = False) -> None:
    """Say of each of the workloads why it stays stopped; its node was deleted, or ``given_up``."""
    for rests in stopped:
        gone = "which was given up" if given_up else "which was deleted"
        said = f"it had ended on node {node}, {gone}: it stays stopped until somebody starts it"
        context.add_event(rests.ref, "StaysStopped", said)


async def _find_resting(context: ApiContext, place: Envelope) -> Envelope | None:
    """The workload of a place, if it had ended there and nobody has started it since: it must stay stopped instead of running a
    second time elsewhere. Those that run once, and a deployment's instances, have their own controllers."""
    spec, report = decode_part(place.spec, AllocationSpec), decode_part(place.report, AllocationReport)
    if not report.ended or is_lost(spec) or spec.once or spec.desired != "run":
        return None
    workload = await read_again(context, object_key(spec.workload.kind, spec.workload.project, spec.workload.name))
    if workload is None or workload.uid != spec.workload.uid or workload.deleting_since is not None:
        return None
    wanted = msgspec.json.decode(workload.spec)
    started = decode_part(workload.actions, WorkloadActions).restart_generation != report.restart_generation
    return None if workload.owner is not None or wanted.get("run", "run") != "run" or started else workload
