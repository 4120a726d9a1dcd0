"""Decides over all recipes of a node which instance serves an invocation, which starts and which ends. Pure.

Instances use only the capacity that allocations leave free. Memory is never overcommitted: an instance starts only with enough of
it, idle ones end to free it, the longest unused first, and when an allocation needs it busy ones end too, the youngest first. CPU
is overcommitted, and only busy instances count.
"""

from __future__ import annotations

from typing import Literal

import msgspec

CPU_OVERCOMMIT = 4.0
IDLE_SECONDS = 600.0  # until the gateway sets another limit
PAUSE_SECONDS = 0.1  # after this an idle instance gets no CPU

State = Literal["starting", "idle", "busy"]


class FreeCapacity(msgspec.Struct, frozen=True):
    """The node's capacity without its allocations."""

    cpu: float  # cores, overcommitted
    memory: int  # bytes


class Need(msgspec.Struct, frozen=True):
    cpu: float
    memory: int


class Lack(msgspec.Struct, frozen=True):
    """Why no instance can start."""

    message: str  # for people


class PoolMember(msgspec.Struct):
    """An instance."""

    id: str
    digest: str
    need: Need
    state: State = "starting"
    spoken_for: bool = False  # it serves an invocation, or will as soon as it is up
    since: float = 0.0  # when it entered its state
    paused: bool = False


class _Retention(msgspec.Struct):
    idle_seconds: float = IDLE_SECONDS
    ready: int = 0


class Pool:
    """Times are those of one monotonic clock. The caller acts on the ids that methods return."""

    def __init__(self, capacity: FreeCapacity) -> None:
        self.capacity = capacity
        self.members: dict[str, PoolMember] = {}
        self._retention: dict[str, _Retention] = {}

    # --- requests ---------------------------------------------------------------------------------------------------

    def take(self, digest: str, now: float) -> PoolMember | None:
        """An instance for an invocation: an idle one, the last used first, or one that is starting for no invocation."""
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
        """Count a new instance; the ids of idle ones that must end for it, or why it can't start."""
        lacking = self._lacking(need)
        if lacking.message:
            return lacking
        gone: list[str] = []
        while self._memory_used() + need.memory > self.capacity.memory:
            gone.append(self._drop_idle())
        self.members[id] = PoolMember(id, digest, need, spoken_for=spoken_for, since=now)
        return gone

    def keep(self, digest: str, idle_seconds: float, ready: int) -> None:
        self._retention[digest] = _Retention(max(0.0, idle_seconds), max(0, ready))

    def drop(self, digest: str) -> list[str]:
        """Keep no more of this recipe; the ids of those that serve no invocation, which must end."""
        self._retention[digest] = _Retention(0.0, 0)
        return self._remove([one.id for one in self.members.values() if one.digest == digest and not one.spoken_for])

    # --- events -----------------------------------------------------------------------------------------------------

    def free(self, id: str, now: float) -> None:
        """It is up without an invocation, or has answered."""
        member = self.members.get(id)
        if member is not None:
            member.state, member.spoken_for, member.since, member.paused = "idle", False, now, False

    def serve(self, id: str, now: float) -> None:
        """It is up, and serves the invocation that it was started for."""
        member = self.members.get(id)
        if member is not None:
            member.state, member.spoken_for, member.since = "busy", True, now

    def forget(self, id: str) -> None:
        self.members.pop(id, None)

    def shrink(self, capacity: FreeCapacity) -> list[str]:
        """Set the capacity; the ids of those that must end."""
        self.capacity, gone = capacity, []
        while self._memory_used() > capacity.memory and self.members:
            if any(not one.spoken_for for one in self.members.values()):
                gone.append(self._drop_idle())
            else:
                youngest = max(self.members.values(), key=lambda one: one.since)
                gone += self._remove([youngest.id])
        return gone

    # --- time -------------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[str]:
        """Idle ones whose time is over, except those that should stand ready; the caller ends them."""
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
        """Idle ones that the caller pauses now."""
        tired = [
            one
            for one in self.members.values()
            if one.state == "idle" and not one.paused and now - one.since >= PAUSE_SECONDS
        ]
        for member in tired:
            member.paused = True
        return [member.id for member in tired]

    def lacking_ready(self, digest: str) -> int:
        """How many instances must start so that enough stand ready."""
        spare = sum(one.digest == digest and not one.spoken_for for one in self.members.values())
        return max(0, self._retention.get(digest, _Retention()).ready - spare)

    def next_review(self, now: float) -> float | None:
        """Seconds until ``expire`` or ``pause``, called just now, may return more; None: not before an event."""
        moments = []
        for one in self.members.values():
            if one.state == "idle":
                if not one.paused:
                    moments.append(one.since + PAUSE_SECONDS)
                moments.append(one.since + self._retention.get(one.digest, _Retention()).idle_seconds)
        later = [moment - now for moment in moments if moment > now]  # past ones were kept on purpose
        return min(later) if later else None

    # --- figures ----------------------------------------------------------------------------------------------------

    def free_memory(self) -> int:
        """Bytes for new instances, if all that serve no invocation ended."""
        return max(0, self.capacity.memory - sum(one.need.memory for one in self.members.values() if one.spoken_for))

    def free_cpu(self) -> float:
        return max(0.0, self.capacity.cpu - self._cpu_used())

    def counts(self) -> dict[str, tuple[int, int, int]]:
        """Counts by recipe: those busy or starting for an invocation, idle, starting for none."""
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
        """Drop the instance without an invocation that is unused for longest."""
        oldest = min((one for one in self.members.values() if not one.spoken_for), key=lambda one: one.since)
        self._remove([oldest.id])
        return oldest.id

    def _remove(self, ids: list[str]) -> list[str]:
        for id in ids:
            del self.members[id]
        return ids


def measure_capacity(cpu: float, memory: int, taken_cpu: float, taken_memory: int) -> FreeCapacity:
    """The capacity that a node's allocations leave to instances."""
    return FreeCapacity(max(0.0, cpu * CPU_OVERCOMMIT - taken_cpu), max(0, memory - taken_memory))


def measure_left(pool: Pool) -> int:
    """Bytes that instances which are up leave: paused clones may have them until others need them."""
    return max(
        0, pool.capacity.memory - sum(one.need.memory for one in pool.members.values() if one.state != "starting")
    )
