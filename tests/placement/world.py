"""Placement as a person with paper and patience would decide it: plain Python over plain values, nothing kept, nothing shared with
the engine but the values that go into it. What the engine is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from weft.contracts.policy import RESOURCES, Amounts, Request
from weft.informer.pool.claims import Claim
from weft.language.parse import read_expression
from weft.scheduler.table.facts import Load, NodeFacts

GIB = 1024**3
WEIGHTS = (0.4, 0.4, 0.2)  # of RESOURCES


class Refusal(NamedTuple):
    """The first condition that a node fails, and by how much: (resource, wanted, free) in the engine's units."""

    filter: str
    lacks: tuple[tuple[str, int, int], ...] = ()


class World:
    """``nodes`` by uid; ``placed``: allocation → where it lies and what it takes there; ``measured``: what a node says that
    it uses, and which allocations are in that."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeFacts] = {}
        self.placed: dict[str, tuple[str, Amounts, Load]] = {}
        self.measured: dict[str, tuple[Amounts, frozenset[str]]] = {}
        self.volumes: dict[str, Claim] = {}  # that have their place, attached or not
        self.bounds: dict[str, int] = {}  # by storage: what it may promise

    def here(self, uid: str) -> list[tuple[Amounts, Load]]:
        return [(amounts, load) for where, amounts, load in self.placed.values() if where == uid]

    def given(self, uid: str) -> list[int]:
        facts = self.nodes[uid]
        return [
            int(amount * facts.overcommit.get(name, 1.0))
            for name, amount in zip(RESOURCES, facts.capacity, strict=True)
        ]

    def free(self, uid: str) -> list[int]:
        here = self.here(uid)
        cpu, memory, disk = (
            given - sum(amounts[row] for amounts, _ in here) for row, given in enumerate(self.given(uid))
        )
        return [cpu, memory, disk - self.promised(uid)]

    def promised(self, pool: str) -> int:
        """Of a storage, or a node's own pool (its uid): each disk once, in the largest size that somebody has of it."""
        sizes: dict[str, int] = {}
        claims = [
            (where, disk or name, size)
            for name, (_, _, load) in self.placed.items()
            for where, disk, size in load.claims
        ]
        for where, disk, size in (*claims, *self.volumes.values()):
            if where == pool:
                sizes[disk] = max(size, sizes.get(disk, 0))
        return sum(sizes.values())

    def used(self, uid: str) -> list[int]:
        """What was measured, at the node's ratio, and what was asked for by those that aren't in it; if nothing was measured,
        what was asked for by all."""
        amounts, covers = self.measured.get(uid, ((0, 0, 0), frozenset()))
        rest = [asked for name, (where, asked, _) in self.placed.items() if where == uid and name not in covers]
        ratios = self.nodes[uid].overcommit
        own = 0 if uid in self.measured else self.promised(uid)  # else it is in what was measured
        return [
            round(amounts[row] * ratios.get(name, 1.0)) + sum(asked[row] for asked in rest) + own * (name == "disk")
            for row, name in enumerate(RESOURCES)
        ]

    def free_extra(self, uid: str, name: str) -> int:
        facts = self.nodes[uid]
        given = int(facts.extras.get(name, 0) * facts.overcommit.get(name, 1.0))
        return given - sum(dict(load.extras).get(name, 0) for _, load in self.here(uid))

    def free_gpus(self, uid: str) -> list[int]:
        taken = [pair for _, load in self.here(uid) for pair in load.gpus]
        return [
            1000 - sum(share for index, share in taken if index == device)
            for device in range(len(self.nodes[uid].gpus))
        ]

    def members(self, group: str) -> dict[str, int]:
        """Of nodes that are there."""
        return {uid: sum(load.groups.count(group) for _, load in self.here(uid)) for uid in self.nodes}

    def find_refusal(self, request: Request, uid: str) -> Refusal | None:
        """None if the node can take it."""
        refusal = self._find_in_facts(request, uid)
        if refusal is not None:
            return refusal
        if request.constraint in NOW and not NOW[request.constraint](self, uid):
            return Refusal("available")
        for group in request.near:
            members = self.members(group)
            if any(members.values()) and not members[uid]:
                return Refusal("affinity")
        if any(self.members(group)[uid] for group in request.apart):
            return Refusal("anti-affinity")
        if any(not self._is_even(request, uid, spread.key, spread.group, spread.skew) for spread in request.spread):
            return Refusal("spread")
        if any(not self._has_left(request, uid, pool) for pool in {ask.pool for ask in request.asks}):
            return Refusal("pool given")
        lacks = tuple(self._find_lacks(request, uid))
        return Refusal("resources", lacks) if lacks else None

    def _find_in_facts(self, request: Request, uid: str) -> Refusal | None:
        facts = self.nodes[uid]
        untolerated = [
            taint
            for taint in facts.taints
            if taint not in request.tolerations and taint.split("=")[0] not in request.tolerations
        ]
        missing = [datum.name for datum in request.data if datum.required and datum.name not in facts.data]
        checks = (
            ("online", facts.online),
            ("cordon", not facts.cordoned),
            ("maintenance", "maintenance" not in facts.texts),
            ("node", request.node in (None, facts.name)),
            ("volume", request.home in (None, uid)),
            ("pool", all(f"pool {name}" in facts.texts for name in request.pools)),
            ("machine", request.machine in facts.machines),
            ("taint", not untolerated),
            ("constraint", request.constraint not in FACTS or FACTS[request.constraint](facts)),
            ("data", not missing),
        )
        return next((Refusal(name) for name, holds in checks if not holds), None)

    def _is_even(self, request: Request, uid: str, key: str, group: str, skew: int) -> bool:
        def label(facts: NodeFacts) -> str | None:
            return facts.name if key == "host" else facts.texts.get(key)

        mine, members = label(self.nodes[uid]), self.members(group)
        if mine is None:
            return False
        counts: dict[str, int] = {}
        for other, facts in self.nodes.items():
            if (word := label(facts)) is not None:
                counts[word] = counts.get(word, 0) + members[other]
        open_ = [
            counts[word]
            for other, facts in self.nodes.items()
            if (word := label(facts)) is not None and self._find_in_facts(request, other) is None
        ]
        return counts[mine] + 1 - min(open_, default=0) <= skew

    def _has_left(self, request: Request, uid: str, pool: str) -> bool:
        storage = self.nodes[uid].texts[f"pool {pool}"]
        wanted = sum(ask.size - (ask.held if ask.at == storage else 0) for ask in request.asks if ask.pool == pool)
        return wanted <= 0 or wanted <= self.bounds[storage] - self.promised(storage)

    def _find_lacks(self, request: Request, uid: str) -> Iterable[tuple[str, int, int]]:
        for resource, wanted, free in zip(RESOURCES, request.amounts, self.free(uid), strict=True):
            if wanted > free:
                yield resource, wanted, free
        for name, amount in request.extras:
            if amount > (free := self.free_extra(uid, name)):
                yield name, amount, free
        ask = request.gpus
        if ask is not None:
            fitting = len(self.find_devices(request, uid))
            if fitting < ask.count:
                yield "gpu", ask.count * ask.share, fitting * ask.share

    def find_devices(self, request: Request, uid: str) -> list[int]:
        """The devices of a node, each of which would do for one of those that are asked for."""
        ask = request.gpus
        assert ask is not None
        devices = enumerate(zip(self.nodes[uid].gpus, self.free_gpus(uid), strict=True))
        return [
            index
            for index, (gpu, free) in devices
            if free >= ask.share and gpu.memory >= ask.memory and (not ask.models or gpu.model in ask.models)
        ]

    def score(self, request: Request, uid: str) -> float | None:
        """How good the node is, 0–100; None for strategies that this page doesn't know."""
        used = 0.0
        given = self.given(uid)
        asked = [all_ - free for all_, free in zip(given, self.free(uid), strict=True)]
        load = self.used(uid) if request.basis == "used" else asked
        for weight, all_, there, wanted in zip(WEIGHTS, given, load, request.amounts, strict=True):
            used += weight * min(100.0, (there + wanted) * 100.0 / max(all_, 1))
        if request.gpus is not None:  # half of it is how full the devices are
            devices = [free for free in self.free_gpus(uid) if free >= 0]
            whole = 1000 * len(devices)
            used = used / 2 + (whole - sum(devices) + request.gpus.count * request.gpus.share) * 50.0 / whole
        return {"best_fit": used, "least_loaded": 100.0 - used}.get(request.strategy)

    def find_overcommitment(self, uid: str, load: Load) -> list[str]:
        """What of that which this allocation takes is given away beyond its ratio."""
        found = [name for name, free in zip(RESOURCES, self.free(uid), strict=True) if free < 0]
        found += [where for where, _, _ in load.claims if self.promised(where) > self.bounds[where]]
        found += [name for name, _ in load.extras if self.free_extra(uid, name) < 0]
        free_gpus = self.free_gpus(uid)
        return found + [f"gpu {device}" for device, _ in load.gpus if free_gpus[device] < 0]


_FACTS: dict[str, Callable[[NodeFacts], bool]] = {
    "zone=a": lambda facts: facts.texts.get("zone") == "a",
    "memory>=8GiB": lambda facts: facts.capacity[1] >= 8 * GIB,
    "zone in (a,b) AND cpu>=4": lambda facts: facts.texts.get("zone") in ("a", "b") and facts.capacity[0] >= 4000,
    "NOT zone=b": lambda facts: facts.texts.get("zone") != "b",
    "exists(gpu) OR zone=a": lambda facts: bool(facts.gpus) or facts.texts.get("zone") == "a",
    "gpu.memory>=16GiB": lambda facts: bool(facts.gpus) and facts.gpus[0].memory >= 16 * GIB,
}
_NOW: dict[str, Callable[[World, str], bool]] = {
    "cpu.free>=2": lambda world, uid: world.free(uid)[0] >= 2000,
    "gpu=available": lambda world, uid: sum(max(0, free) for free in world.free_gpus(uid)) > 0,
    "sriov.free>1": lambda world, uid: world.free_extra(uid, "sriov") > 1,
}
FACTS = {read_expression(text): holds for text, holds in _FACTS.items()}
NOW = {read_expression(text): holds for text, holds in _NOW.items()}
