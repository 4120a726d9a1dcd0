"""The workloads that wait for a place: new ones, and refused ones in classes of equal requests. Those of the highest level come
first; of one level those of the project with the least share; of these the one that has waited longest.

A class shares one verdict. It sleeps until a node appears or gains capacity that it would fit, so ten thousand workloads that fit
nowhere cost one check of the nodes that changed. Shares are asked for only where several projects wait at one level. Pure.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from weft.contracts.policy import Request
from weft.scheduler.engine.explain import Explanation
from weft.scheduler.queue.turn import FIRST, PATIENT, QueuePosition

WINDOW = 100  # so many at the beginning of a lane may be out of order


class ProjectShares(Protocol):
    """How much each project has, by its weight."""

    def weighted(self, project: str) -> float: ...

    def suppose(self, key: str) -> None:
        """Count a workload as if it had its place."""


class Lane:
    """Waiting workloads of one level and project, the longest waiting first: new ones, or those ``of`` a class."""

    __slots__ = ("at", "keys", "level", "of", "project")

    def __init__(self, turn: QueuePosition, of: RefusedClass | None) -> None:
        self.level = turn.level
        self.project = turn.project
        self.of = of
        self.keys: OrderedDict[str, float] = OrderedDict()  # since when each waits
        self.at = math.inf  # its place in the heap; infinite: it isn't there

    def head(self, most: int) -> list[tuple[float, str]]:
        return sorted((since, key) for key, since in islice(self.keys.items(), max(most, WINDOW)))[:most]


class RefusedClass:
    """The class of the workloads that were refused for the same ``request``, with the ``explanation``."""

    __slots__ = ("awake", "explanation", "lanes", "request")

    def __init__(self, request: Request, explanation: Explanation) -> None:
        self.request = request
        self.explanation = explanation
        self.lanes: dict[tuple[float, str], Lane] = {}
        self.awake = False


Heap = list[tuple[float, int, Lane]]  # lanes by who has waited longest


class Queue:
    def __init__(self) -> None:
        self._fresh: dict[tuple[float, str], Lane] = {}
        self._refused: dict[Request, RefusedClass] = {}  # asleep
        self._awake: dict[Request, RefusedClass] = {}
        self._lane_of: dict[str, Lane] = {}
        self._taken: dict[str, QueuePosition] = {}  # the last ones
        self.contended = False  # whether these were of several projects at one level
        self._size = 1  # how many of several projects are taken at once
        self._heaps: dict[float, dict[str, Heap]] = {}  # by level and project
        self._count = itertools.count()
        self._ready = 0  # how many ``take`` would return in the end

    def __len__(self) -> int:
        return len(self._lane_of)

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return any."""
        return self._ready > 0

    def offer(self, key: str, turn: QueuePosition = FIRST) -> None:
        """Queue a new or changed workload."""
        self.forget(key)
        level, project, since = turn
        lane = self._fresh.get((level, project))
        if lane is None:
            lane = self._fresh[level, project] = Lane(turn, None)
        lane.keys[key] = since
        self._lane_of[key] = lane
        self._ready += 1
        self._push(lane, since)

    def forget(self, key: str) -> None:
        """Remove a workload that needs no place, or not now."""
        lane = self._lane_of.pop(key, None)
        if lane is None:
            return
        del lane.keys[key]
        if lane.of is None or lane.of.awake:
            self._ready -= 1
        self._tidy(lane)

    def take(self, most: int, shares: Callable[[], ProjectShares] | None = None) -> list[str]:
        """The next workloads to decide on. ``contended`` tells whether shares counted: then the order holds as long as each of them
        gets its place; ``give_back`` the rest if one doesn't."""
        self._taken.clear()
        self.contended = False
        while self._heaps and (left := most - len(self._taken)) > 0:
            level = max(self._heaps)
            heaps = self._heaps[level]
            if len(heaps) == 1 or shares is None:
                self._draw(next(iter(heaps.values())), left)
            else:
                self._draw_fairly(heaps, min(left, self._size), shares())
                self.contended, self._size = True, min(2 * self._size, most)
            for project in [project for project, heap in heaps.items() if not heap]:
                del heaps[project]
            if not heaps:
                del self._heaps[level]
            if self.contended:
                break
        return list(self._taken)

    def give_back(self, keys: Sequence[str]) -> None:
        """Queue some of those that were taken again, in their turn. Fewer are taken next: one more may be refused."""
        self._size = 1
        for key in keys:
            if key not in self._lane_of:  # it wasn't refused together with others of its gang
                self.offer(key, self._taken[key])

    def verdict(self, request: Request) -> Explanation | None:
        """The verdict on equal requests, if it still holds."""
        refused = self._refused.get(request)
        return None if refused is None else refused.explanation

    def refuse(self, key: str, request: Request, explanation: Explanation) -> None:
        """Put a workload into its class, which sleeps until ``wake``."""
        lane = self._lane_of.get(key)
        turn = self._taken.get(key, FIRST) if lane is None else QueuePosition(lane.level, lane.project, lane.keys[key])
        self.forget(key)
        refused = self._refused.get(request)
        if refused is None:
            # The rest of a class that was awake goes back to sleep with the new verdict.
            refused = self._awake.pop(request, None) or RefusedClass(request, explanation)
            refused.explanation = explanation
            if refused.awake:
                refused.awake = False
                self._ready -= sum(len(lane.keys) for lane in refused.lanes.values())
            self._refused[request] = refused
        self._put(refused, key, turn)

    def asleep(self) -> Iterable[Request]:
        """The classes that wait for capacity."""
        return list(self._refused)

    def wake(self, request: Request, patient: float = -math.inf) -> None:
        """Queue a class: there may be capacity for it. Those that wait since ``patient`` or longer come first from now on."""
        refused = self._refused.pop(request, None)
        if refused is None:
            return
        for lane in [lane for lane in refused.lanes.values() if lane.level < PATIENT]:
            while found := [(since, key) for since, key in lane.head(WINDOW) if since <= patient]:
                for since, key in found:
                    del lane.keys[key]
                    self._put(refused, key, QueuePosition(PATIENT, "", since))
            self._tidy(lane)
        refused.awake = True
        self._awake[request] = refused
        for lane in refused.lanes.values():
            self._ready += len(lane.keys)
            self._push(lane, lane.head(1)[0][0])

    def _draw(self, heap: Heap, most: int) -> None:
        """Take the ``most`` that have waited longest."""
        end = len(self._taken) + most
        while heap and len(self._taken) < end:
            lane = heapq.heappop(heap)[2]
            lane.at = math.inf
            if lane.of is not None and not lane.of.awake:
                continue
            for since, key in lane.head(end - len(self._taken)):
                if heap and since > heap[0][0]:
                    break
                self.forget(key)
                self._taken[key] = QueuePosition(lane.level, lane.project, since)
            if lane.keys:
                self._push(lane, lane.head(1)[0][0])

    def _draw_fairly(self, heaps: dict[str, Heap], most: int, shares: ProjectShares) -> None:
        """Take up to ``most``; each comes from the project whose share is then lowest, counting those already taken."""
        lines = [(shares.weighted(project), heap[0][:2], project) for project, heap in heaps.items()]
        heapq.heapify(lines)
        end = len(self._taken) + most
        while lines and len(self._taken) < end:
            project, before = lines[0][2], len(self._taken)
            self._draw(heaps[project], 1)
            if len(self._taken) > before:
                shares.suppose(next(reversed(self._taken)))
            if heaps[project]:
                heapq.heapreplace(lines, (shares.weighted(project), heaps[project][0][:2], project))
            else:
                heapq.heappop(lines)

    def _put(self, refused: RefusedClass, key: str, turn: QueuePosition) -> None:
        level, project, since = turn
        lane = refused.lanes.get((level, project))
        if lane is None:
            lane = refused.lanes[level, project] = Lane(turn, refused)
        last = lane.keys[next(reversed(lane.keys))] if lane.keys else since
        lane.keys[key] = since
        if since < last:  # one of those that were taken comes back
            lane.keys.move_to_end(key, last=False)
        self._lane_of[key] = lane

    def _push(self, lane: Lane, since: float) -> None:
        if since < lane.at:
            lane.at = since
            heap = self._heaps.setdefault(lane.level, {}).setdefault(lane.project, [])
            heapq.heappush(heap, (since, next(self._count), lane))

    def _tidy(self, lane: Lane) -> None:
        """Forget a class without workloads."""
        refused, of = lane.of, (lane.level, lane.project)
        if refused is None or lane.keys or refused.lanes.get(of) is not lane:
            return
        del refused.lanes[of]
        if not refused.lanes:
            self._refused.pop(refused.request, None)
            self._awake.pop(refused.request, None)
