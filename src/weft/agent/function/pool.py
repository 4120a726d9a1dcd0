"""Which instance serves an invocation, which is started, which must go: decided over all recipes of a node at once. Pure.

Instances are opportunistic: they live in what allocations leave. Memory is hard: nothing is begun without it, idle instances go
for it, the longest unused first, and when an allocation needs the capacity those at work go too, the youngest first. CPU is given
away several times over, and only to instances at work.
"""

from __future__ import annotations

from typing import Literal

import msgspec

CPU_OVERCOMMIT = 4.0
IDLE_SECONDS = 600.0  # until the gateway says otherwise
PAUSE_SECONDS = 0.1  # idle for so long, an instance gets no CPU any more

State = Literal["starting", "idle", "busy"]


class FreeCapacity(msgspec.Struct, frozen=True):
    """What there is for instances: the node's capacity without its allocations. ``cpu`` in cores, given away several times."""

    cpu: float
    memory: int


class Need(msgspec.Struct, frozen=True):
    cpu: float
    memory: int


class Lack(msgspec.Struct, frozen=True):
    """Why nothing can be begun, for people."""

    message: str


class Member(msgspec.Struct):
    """An instance. ``spoken_for``: it serves an invocation, or will as soon as it is up."""

    id: str
    digest: str
    need: Need
    state: State = "starting"
    spoken_for: bool = False
    since: float = 0.0  # when it came into its state
    paused: bool = False


class _Retention(msgspec.Struct):
    idle_seconds: float = IDLE_SECONDS
    ready: int = 0


class Pool:
    """Times are those of one clock that never jumps; every method that gives ids leaves acting on them to its caller."""

    def __init__(self, capacity: FreeCapacity) -> None:
        self.capacity = capacity
        self.members: dict[str, Member] = {}
        self._retention: dict[str, _Retention] = {}

    # --- what is asked ---------------------------------------------------------------------------------------------

    def take(self, digest: str, now: float) -> Member | None:
        """An instance for an invocation: idle, the last one used first, or one that is coming up for nobody yet."""
        mine = [member for member in self.members.values() if member.digest == digest and not member.spoken_for]
        idle = [member for member in mine if member.state == "idle"]
        if idle:
            member = max(idle, key=lambda one: (not one.paused, one.since))
            member.state, member.spoken_for, member.since = "busy", True, now
            return member
        for member in mine:
            member.spoken_for = True
            return member
        return None

    def begin(self, id: str, digest: str, need: Need, now: float, *, spoken_for: bool) -> list[str] | Lack:
        """Count a new instance; the ids of idle ones that must go for it, or why none can begin."""
        lacking = self._lacking(need)
        if lacking.message:
            return lacking
        gone: list[str] = []
        while self._memory_used() + need.memory > self.capacity.memory:
            gone.append(self._drop_idle())
        self.members[id] = Member(id, digest, need, spoken_for=spoken_for, since=now)
        return gone

    def keep(self, digest: str, idle_seconds: float, ready: int) -> None:
        self._retention[digest] = _Retention(max(0.0, idle_seconds), max(0, ready))

    def drop(self, digest: str) -> list[str]:
        """No more of this recipe: those that serve nobody, to be ended."""
        self._retention[digest] = _Retention(0.0, 0)
        return self._remove([one.id for one in self.members.values() if one.digest == digest and not one.spoken_for])

    # --- what happens ----------------------------------------------------------------------------------------------

    def free(self, id: str, now: float) -> None:
        """It has come up with nothing to do, or has answered."""
        member = self.members.get(id)
        if member is not None:
            member.state, member.spoken_for, member.since, member.paused = "idle", False, now, False

    def serve(self, id: str, now: float) -> None:
        """It has come up for the invocation that it was started for."""
        member = self.members.get(id)
        if member is not None:
            member.state, member.spoken_for, member.since = "busy", True, now

    def forget(self, id: str) -> None:
        self.members.pop(id, None)

    def shrink(self, capacity: FreeCapacity) -> list[str]:
        """Allocations take that much now: the ids of those that must go."""
        self.capacity, gone = capacity, []
        while self._memory_used() > capacity.memory and self.members:
            if any(not one.spoken_for for one in self.members.values()):
                gone.append(self._drop_idle())
            else:
                youngest = max(self.members.values(), key=lambda one: one.since)
                gone += self._remove([youngest.id])
        return gone

    # --- what time brings ------------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[str]:
        """Idle ones whose time is over, but for those that should stand ready; the caller ends them."""
        gone: list[str] = []
        for digest in {one.digest for one in self.members.values()}:
            retention = self._retention.get(digest, _Retention())
            idle = sorted(
                (one for one in self.members.values() if one.digest == digest and one.state == "idle"),
                key=lambda one: one.since,
            )
            spare = len(idle) - retention.ready
            gone += [one.id for one in idle[: max(0, spare)] if now - one.since >= retention.idle_seconds]
        return self._remove(gone)

    def pause(self, now: float) -> list[str]:
        """Idle ones that get no CPU from now on."""
        tired = [
            one
            for one in self.members.values()
            if one.state == "idle" and not one.paused and now - one.since >= PAUSE_SECONDS
        ]
        for member in tired:
            member.paused = True
        return [member.id for member in tired]

    def lacking_ready(self, digest: str) -> int:
        """How many instances should be started so that as many stand ready as was asked for."""
        spare = sum(one.digest == digest and not one.spoken_for for one in self.members.values())
        return max(0, self._retention.get(digest, _Retention()).ready - spare)

    def next_review(self, now: float) -> float | None:
        """Seconds until ``expire`` or ``pause``, asked just now, may have something more to say; None: not before something
        happens."""
        moments = []
        for one in self.members.values():
            if one.state == "idle":
                if not one.paused:
                    moments.append(one.since + PAUSE_SECONDS)
                moments.append(one.since + self._retention.get(one.digest, _Retention()).idle_seconds)
        later = [moment - now for moment in moments if moment > now]  # what is past was kept on purpose
        return min(later) if later else None

    # --- figures ---------------------------------------------------------------------------------------------------

    def free_memory(self) -> int:
        """What new instances could have if all that serve nobody went."""
        return max(0, self.capacity.memory - sum(one.need.memory for one in self.members.values() if one.spoken_for))

    def free_cpu(self) -> float:
        return max(0.0, self.capacity.cpu - self._cpu_used())

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """By recipe: at work or coming up for someone, idle, coming up for nobody."""
        found: dict[str, tuple[int, int, int]] = {}
        for one in self.members.values():
            busy, idle, ready = found.get(one.digest, (0, 0, 0))
            if one.spoken_for:
                busy += 1
            elif one.state == "idle":
                idle += 1
            else:
                ready += 1
            found[one.digest] = busy, idle, ready
        return found

    def _lacking(self, need: Need) -> Lack:
        if need.memory > self.free_memory():
            free, total = self.free_memory() >> 20, self.capacity.memory >> 20
            return Lack(
                f"{need.memory >> 20} MiB of memory are needed, {free} of {max(0, total)} for functions are free"
            )
        if need.cpu > self.free_cpu() + 1e-9:
            return Lack(
                f"{need.cpu:g} CPUs are needed, {self.free_cpu():g} of {self.capacity.cpu:g} for functions are free"
            )
        return Lack("")

    def _memory_used(self) -> int:
        return sum(one.need.memory for one in self.members.values())

    def _cpu_used(self) -> float:
        return sum(one.need.cpu for one in self.members.values() if one.spoken_for or one.state == "starting")

    def _drop_idle(self) -> str:
        """The one that serves nobody and is unused for longest."""
        oldest = min((one for one in self.members.values() if not one.spoken_for), key=lambda one: one.since)
        self._remove([oldest.id])
        return oldest.id

    def _remove(self, ids: list[str]) -> list[str]:
        for id in ids:
            del self.members[id]
        return ids


def measure_capacity(cpu: float, memory: int, taken_cpu: float, taken_memory: int) -> FreeCapacity:
    """What a node of that capacity leaves to instances, beside allocations that take so much."""
    return FreeCapacity(max(0.0, cpu * CPU_OVERCOMMIT - taken_cpu), max(0, memory - taken_memory))


def measure_left(pool: Pool) -> int:
    """Bytes that instances which have come up leave: copies that stand still may have them until others need them."""
    return max(
        0, pool.capacity.memory - sum(one.need.memory for one in pool.members.values() if one.state != "starting")
    )
