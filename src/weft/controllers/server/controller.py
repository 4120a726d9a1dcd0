"""Says which servers of the fabric serve, and which of them leads.

Reads the servers' leases, and who holds the leader leases; writes servers: makes each at the first sight of its lease, then its
status. Woken once a second. A server whose lease has lapsed is NotReady. One that people have deleted keeps its lease for some
seconds, until it sees that its object is gone: it gets no other."""

from __future__ import annotations

from collections.abc import Iterable

from weft.contracts.journal import Event
from weft.controllers.asking import Asking, Later
from weft.informer.commit import Commit, Draft
from weft.informer.leader_lease import LeaderLease
from weft.informer.view import Item
from weft.kinds.server import SERVER, ServerMarks, ServerSpec, ServerStatus
from weft.objects.envelope import Condition
from weft.objects.identity import object_key
from weft.protocol.function_counts import read_gateway
from weft.protocol.server.presence import LEASE_PREFIX, LEASE_SECONDS, SCHEDULES, Presence, read_presence, read_server

LOOK_SECONDS = 1.0
SOURCE = "servers"
# What a server says of itself; of one without a lease it stays as it was.
_SAID = (
    "address",
    "gateway",
    "functions",
    "addresses",
    "api_ports",
    "function_ports",
    "store",
    "release",
    "installed",
    "by_hand",
    "started_at",
)
AGREE_SECONDS = 5  # of two clocks: a lease's age is known to a second or two


class Servers(Asking):
    name = "servers"
    always = ("servers",)

    def __init__(self, leadership: LeaderLease) -> None:
        self._leadership = leadership

    async def take_turn(self, key: str) -> Later:
        store, view, now = self._leadership.store, self._leadership.cache.view, self._leadership.clock.now()
        present, ahead = dict[str, Presence](), dict[str, float]()
        for lease in await store.leases(LEASE_PREFIX, digests=True):
            if (found := read_presence(lease.digest)) is not None:
                name = lease.name.removeprefix(LEASE_PREFIX)
                present[name] = found
                age = max(0.0, LEASE_SECONDS - lease.remaining_seconds)
                ahead[name] = found.sent_at + age - now if found.sent_at else 0.0
        leads: dict[str, list[str]] = {}
        for name, read in ((self._leadership.name, read_server), (SCHEDULES, read_gateway)):
            for lease in await store.leases(name):
                leads.setdefault(read(lease.holder), []).append(lease.name)
        known = {item.envelope.name: item for item in view.of_kind(SERVER.name).values()}
        new = [
            plan_new(name, found, now) for name, found in present.items() if name not in known and not found.is_known
        ]
        commits = new + [
            commit
            for name, server in known.items()
            if (
                commit := plan_server(server, present.get(name), sorted(leads.get(name, ())), now, ahead.get(name, 0.0))
            )
            is not None
        ]
        if commits:
            await self._leadership.perform(commits)
        return {key: 0.0 if new else LOOK_SECONDS}


def plan_new(name: str, presence: Presence, now: float) -> Commit:
    """Make the object of a server; its status follows."""
    draft, key = Draft(), object_key(SERVER.name, None, name)
    draft.make(SERVER.make(name, ServerSpec(), now, marks=ServerMarks(member=presence.member)))
    return Commit(key, draft.writes, draft.preconditions)


def plan_server(
    server: Item, presence: Presence | None, leads: list[str], now: float, ahead: float = 0.0
) -> Commit | None:
    """Write a server's status and its condition if they change; ``presence``: None of one without a lease; ``ahead``: seconds that
    its clock is ahead of this one."""
    former = server.status(ServerStatus)
    phase = "NotReady" if presence is None or presence.trouble else "Ready"
    silent = f"server {server.envelope.name} sends no heartbeat" if former.started_at else former.message
    status = ServerStatus(
        phase=phase,
        message=silent if presence is None else presence.trouble,
        leads=leads,
        since=former.since if former.phase == phase and former.since else now,
        clock_ahead=former.clock_ahead,
    )
    if abs(ahead) < AGREE_SECONDS / 2 or abs(ahead - former.clock_ahead) > AGREE_SECONDS:
        status.clock_ahead = round(ahead) if abs(ahead) > AGREE_SECONDS else 0
    said = former if presence is None else presence
    for name in _SAID:
        setattr(status, name, getattr(said, name))
    marks = server.marks(ServerMarks) if presence is None else ServerMarks(member=presence.member)
    if status == former and marks == server.marks(ServerMarks):
        return None
    ready = Condition("Ready", "True" if phase == "Ready" else "False", phase, status.message, now)
    draft = Draft()
    conditions = [ready]
    if status.store is not None:
        problem = status.store.problem
        conditions.append(Condition("StoreHasSpace", "False" if problem else "True", "", problem, now))
    draft.change(server, status=status, conditions=conditions, marks=marks)
    return draft.commit(server.key, list(list_events(server, former, status)))


def list_events(server: Item, former: ServerStatus, status: ServerStatus) -> Iterable[Event]:
    """The events of a new phase, of a store that fills up, and of a new leader."""
    ref, name = server.envelope.ref, server.envelope.name
    if status.phase != former.phase or not former.since:
        good = status.phase == "Ready"
        yield Event(
            "Normal" if good else "Warning",
            f"Server{status.phase}",
            status.message or f"server {name} is ready",
            ref,
            SOURCE,
        )
    was, problem = (one.store.problem if one.store else "" for one in (former, status))
    if problem and not was:
        yield Event("Warning", "StoreNearlyFull", problem, ref, SOURCE)
    if former.since and status.leads and not former.leads:
        yield Event("Normal", "ServerLeads", f"server {name} leads: {', '.join(status.leads)}", ref, SOURCE)
