"""The engine under any interleaving of placements, departures, losses of nodes, resizes, new facts and new policies.

One engine lives through all of it. After each step its snapshot is what one built anew from the same objects would be; each of
its decisions is what ``World`` says on paper, what a fresh engine over a fresh snapshot says, and what its explanation says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Any
from unittest import mock

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.placement.world import FACTS, GIB, NOW, World
from weft.contracts.policy import Amounts, Datum, DiskAsk, GpuAsk, Request, SoftTerm, Spread
from weft.kinds.fields.strategy import STRATEGIES, read_strategy
from weft.scheduler.constraint.filters import FreeCapacity
from weft.scheduler.engine.cycle import Engine
from weft.scheduler.engine.demand import make_outlook
from weft.scheduler.engine.explain import Explanation, explain
from weft.scheduler.table.devices import Devices
from weft.scheduler.table.facts import Gpu, Load, NodeFacts
from weft.scheduler.table.filter_masks import Masks
from weft.scheduler.table.pools import UNBOUND, Bound, Pools
from weft.scheduler.table.snapshot import Snapshot, state_of
from weft.scheduler.table.usage import Measured, UsageTable

UIDS = [f"u{n}" for n in range(7)]
NAMES = dict(zip(UIDS, ["n4", "n1", "n6", "n2", "n0", "n5", "n3"], strict=True))
COMBINED = ("best-fit,data-locality", "least_loaded:0.7,cost:0.3", "topology_spread,best_fit")
STRATEGIES_DRAWN = ("best_fit", "least_loaded", *STRATEGIES, *map(read_strategy, COMBINED))
GROUPS = ("p/web", "p/db")
ATTRIBUTES = ("zone", "name", "gpu.model", "maintenance")
NUMBERS = ("cpu", "memory", "gpu", "gpu.memory", "cost", "cpu.free", "disk.free", "gpu.free", "sriov")
POOLS = ("fast", "san")
STORAGES = ("s1", "s2", "s3")
SCORE_STEP = 2.0**-19  # scores are rounded to a whole multiple of about this

seeds = st.integers(0, 2**64)  # values are drawn from these: even and mostly harmless, as hypothesis' own are not


def draw_amounts(draw: Random) -> Amounts:
    return draw.choice((0, 500, 1000, 2000)), draw.choice((0, 1, 2, 4)) * GIB, draw.choice((0, 1, 2)) * 10 * GIB


def draw_load(draw: Random) -> Load:
    return Load(
        extras=draw.choice(((), (("sriov", 1),), (("sriov", 2),))),
        gpus=draw.choice(((), ((0, 1000),), ((0, 300),), ((0, 1000), (1, 1000)))),
        groups=draw.choice(((), GROUPS[:1], GROUPS)),
        workload="vm/adopted",
        claims=seldom(draw, *[(claim,) for claim in (("s1", "", GIB), ("s2", "root old", 7 * GIB))]),
    )


def draw_pools(draw: Random) -> dict[str, str]:
    """The storages that a node has as pools, and which of them are beyond their alarm."""
    pools = {f"pool {pool}": draw.choice(STORAGES) for pool in POOLS if draw.random() < 0.8}
    return pools | {f"alarm {pool}": "nearly full" for pool in POOLS if draw.random() < 0.2}


def seldom(draw: Random, *values: Any, otherwise: Any = (), one_in: int = 8) -> Any:
    return draw.choice(values) if draw.randrange(one_in) == 0 else otherwise


def draw_facts(draw: Random, uid: str) -> NodeFacts:
    gpus = [Gpu(draw.choice(("A100", "T4")), draw.choice((8, 16)) * GIB) for _ in range(draw.randrange(4))]
    texts = {"zone": draw.choice("abc"), **seldom(draw, {"rack": "1"}, {"maintenance": "on"}, otherwise={})}
    return NodeFacts(
        uid=uid,
        name=NAMES[uid],
        capacity=(draw.choice((2000, 4000, 8000)), draw.choice((4, 8, 16)) * GIB, draw.choice((20, 40)) * GIB),
        online=draw.random() < 0.9,
        cordoned=draw.random() < 0.1,
        machines=frozenset(draw.choice((("q35",), ("q35", "microvm")))),
        overcommit=draw.choice(({}, {}, {"cpu": 2.0, "sriov": 1.5}, {"memory": 0.5})),
        texts=seldom(draw, {}, otherwise=texts | draw_pools(draw)),
        numbers=draw.choice(({}, {"cost": 0.5}, {"cost": 2.0})),
        extras=draw.choice(({}, {"sriov": 2}, {"sriov": 4, "fpga": 1})),
        gpus=tuple(gpus),
        taints=seldom(draw, frozenset({"edge"}), frozenset({"tenant=blue"}), otherwise=frozenset()),
        data=frozenset(draw.choice(((), ("image:1",), ("image:1", "pool:p")))),
        coordinate=draw.choice(((), (0.0, 0.0, 1.0), (30.0, 40.0, 0.0))),
    )


def draw_ask(draw: Random) -> GpuAsk | None:
    if draw.random() < 0.4:
        return None
    if draw.random() < 0.5:
        return GpuAsk(1, draw.choice((300, 500, 700)))
    return GpuAsk(
        draw.randint(1, 2),
        memory=seldom(draw, 16 * GIB, otherwise=0, one_in=3),
        models=seldom(draw, ("T4",), ("A100", "T4"), one_in=3),
    )


def draw_request(draw: Random) -> Request:
    pools = seldom(draw, POOLS[:1], POOLS, one_in=5)
    return Request(
        pools=pools,
        asks=tuple(ask for pool in pools for ask in draw_asks(draw, pool)),
        alarmed_pools=seldom(draw, pools, one_in=2),
        amounts=draw_amounts(draw),
        machine=seldom(draw, "microvm", otherwise="q35"),
        strategy=draw.choice(STRATEGIES_DRAWN),
        node=seldom(draw, *NAMES.values(), otherwise=None, one_in=16),
        home=seldom(draw, *UIDS, otherwise=None, one_in=16),
        extras=seldom(draw, (("sriov", 1),), (("fpga", 1), ("sriov", 2)), one_in=4),
        gpus=draw_ask(draw),
        constraint=seldom(draw, *FACTS, *NOW, otherwise=None, one_in=3),
        tolerations=seldom(draw, ("edge",), ("tenant=blue",), ("tenant",)),
        near=seldom(draw, GROUPS[:1]),
        apart=seldom(draw, GROUPS[:1], GROUPS[1:]),
        groups=draw.choice(((), GROUPS[:1], GROUPS[1:], GROUPS)),
        spread=seldom(
            draw, (Spread("zone", draw.randint(1, 2), GROUPS[0]),), (Spread("host", 1, GROUPS[0]),), one_in=6
        ),
        data=seldom(draw, (Datum("image:1", GIB),), (Datum("pool:p", 0, True),)),
        leans=seldom(draw, (SoftTerm("near", GROUPS[0]),), (SoftTerm("spread", GROUPS[0], "zone"),)),
        caller=seldom(draw, *UIDS, otherwise=None),
        mode=draw.choice(("long-lived", "serverless")),
        basis=draw.choice(("allocation", "used")),
    )


def draw_asks(draw: Random, pool: str) -> list[DiskAsk]:
    used = DiskAsk(pool, 12 * GIB, "volume v1", draw.choice(STORAGES), 10 * GIB)
    return [DiskAsk(pool, draw.choice((5, 20)) * GIB), *seldom(draw, [used], otherwise=[])]


class Placement(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.snapshot = Snapshot()
        self.engine = Engine(self.snapshot, seed=7)
        self.classes: list[Request] = []
        self.count = 0

    @initialize(seed=seeds, count=st.integers(2, 5))
    def begin(self, seed: int, count: int) -> None:
        for storage in STORAGES:
            self._bound(storage, 60 * GIB)
        for uid in UIDS[:count]:
            self.hear(draw_facts(Random(f"{seed} {uid}"), uid))

    @rule(seed=seeds, uid=st.sampled_from(UIDS))
    def change_node(self, seed: int, uid: str) -> None:
        """It joins, comes back, grows or shrinks, is cordoned, tainted, relabelled …"""
        self.hear(draw_facts(Random(seed), uid))

    def hear(self, facts: NodeFacts) -> None:
        self.world.nodes[facts.uid] = facts
        self.snapshot.put_node(facts)

    @rule(uid=st.sampled_from(UIDS), online=st.booleans())
    def change_health(self, uid: str, online: bool) -> None:
        if uid in self.world.nodes:
            self.hear(msgspec.structs.replace(self.world.nodes[uid], online=online))

    @rule(uid=st.sampled_from(UIDS))
    def remove_node(self, uid: str) -> None:
        self.world.nodes.pop(uid, None)
        self.snapshot.drop_node(uid)

    @rule(seed=seeds, uid=st.sampled_from(UIDS))
    def measure(self, seed: int, uid: str) -> None:
        """It says what it uses, which may be anything; or nothing any more."""
        draw = Random(seed)
        here = sorted(name for name, (where, _, _) in self.world.placed.items() if where == uid)
        covers = frozenset(name for name in (*here, "gone") if draw.random() < 0.9)
        amounts = draw.choice((0, 0, 100, 3000, 40_000)), draw.choice((0, 0, 1, 64)) * GIB, draw.choice((0, 0, 7)) * GIB
        if draw.random() < 0.2:
            self.world.measured.pop(uid, None)
            self.snapshot.put_use(uid, None)
        else:
            self.world.measured[uid] = (amounts, covers)
            self.snapshot.put_use(uid, Measured(amounts, covers))

    def _bound(self, storage: str, most: int) -> None:
        self.world.bounds[storage] = most
        self.snapshot.put_bound(storage, Bound(storage, most))

    @rule(seed=seeds, name=st.sampled_from(("v1", "v2", "v3")))
    def change_volume(self, seed: int, name: str) -> None:
        """It gets its place, grows, or goes; or its pool grows, or may promise less than it has."""
        draw, old = Random(seed), self.world.volumes.pop(name, None)
        self._bound(draw.choice(STORAGES), draw.choice((0, 20, 60, 200)) * GIB)
        if draw.random() < 0.7:
            where = draw.choice((*STORAGES, *UIDS)) if old is None else old[0]
            new = (where, f"volume {name}", draw.choice((1, 10, 15)) * GIB)
            self.world.volumes[name] = new
            self.snapshot.hold([new])
        self.snapshot.release([] if old is None else [old])

    @rule(seed=seeds)
    def look_ahead(self, seed: int) -> None:
        draw = Random(seed)
        self.snapshot.settle()
        self.engine.expect(
            make_outlook(self.snapshot, [(draw_amounts(draw), draw_ask(draw)) for _ in range(draw.randrange(9))])
        )

    @rule()
    def settle(self) -> None:
        self.snapshot.settle()

    @rule(seed=seeds)
    def place(self, seed: int) -> None:
        """New ones and equal ones in turn: the engine keeps what it knows of a class."""
        draw = Random(seed)
        self.classes += [draw_request(draw) for _ in range(2)]
        for request in draw.choices(self.classes[-8:], k=8):
            self._place(request)

    @precondition(lambda self: self.world.placed)
    @rule(seed=seeds)
    def depart(self, seed: int) -> None:
        name = Random(seed).choice(sorted(self.world.placed))
        del self.world.placed[name]
        self.snapshot.drop_allocation(name)

    @precondition(lambda self: self.world.placed)
    @rule(seed=seeds)
    def resize(self, seed: int) -> None:
        draw = Random(seed)
        name, amounts = draw.choice(sorted(self.world.placed)), draw_amounts(draw)
        uid, former, load = self.world.placed[name]
        if uid in self.world.nodes:
            free = self.world.free(uid)
            if any(new - old > have for new, old, have in zip(amounts, former, free, strict=True)):
                return  # refused: it would not fit there
        self._count(name, uid, amounts, load)

    @rule(seed=seeds, uid=st.sampled_from(UIDS))
    def adopt(self, seed: int, uid: str) -> None:
        """It was there before anybody asked whether it fits."""
        draw = Random(seed)
        self._count(self._name(), uid, draw_amounts(draw), draw_load(draw))

    @invariant()
    def increments_equal_a_rebuild(self) -> None:
        fresh = self._rebuild()
        assert state_of(self.snapshot) == state_of(fresh)
        for ours, theirs in zip(_columns(self.snapshot), _columns(fresh), strict=True):
            assert ours == theirs, (ours, theirs)
        for uid, used in zip(self.snapshot.uids, self.snapshot.used.T.tolist(), strict=True):
            assert used == self.world.used(uid)

    def _place(self, request: Request) -> None:
        name, world = self._name(), self.world
        fresh = Engine(self._rebuild(), seed=7)
        fresh.last = self.engine.last
        fresh.expect(self.engine.outlook)
        row = self.engine.choose(request, name)
        explanation = explain(self.engine, request, name, row)
        chosen = None if row is None else self.snapshot.names[row]
        other = fresh.choose(request, name)
        assert chosen == (None if other is None else fresh.snapshot.names[other]), "the same snapshot, another answer"
        assert explanation == explain(fresh, request, name, other), "the same snapshot, another explanation"
        self._check(request, chosen, explanation)
        load = None if row is None else self.engine.load(request, row)
        assert self.engine.place(request, name, name) == row
        if row is None or load is None:
            return
        uid = self.snapshot.uids[row]
        if request.gpus is not None:
            devices = [device for device, _ in load.gpus]
            assert len(set(devices)) == request.gpus.count and set(devices) <= {*world.find_devices(request, uid)}
            assert {share for _, share in load.gpus} == {request.gpus.share}
        world.placed[name] = (uid, request.amounts, load)
        assert self.snapshot._allocations[name] == world.placed[name]
        beyond = world.find_overcommitment(uid, load)
        assert not beyond, f"{beyond} of {chosen} is given away twice"

    def _check(self, request: Request, chosen: str | None, explanation: Explanation) -> None:
        """Every node's verdict is that of the page with pencil and paper, and the best of those that fit was chosen."""
        world, told = self.world, {verdict.node: verdict for verdict in explanation.verdicts}
        refused_by: dict[str, int] = {}
        assert len(told) == len(world.nodes) == explanation.nodes
        for uid, facts in world.nodes.items():
            verdict, refusal = told[facts.name], world.find_refusal(request, uid)
            if refusal is None:
                assert verdict.outcome in ("chosen", "fits"), (verdict, "fits")
                terms = sum(term.weight * term.value for term in verdict.terms)
                assert verdict.score is not None and abs(verdict.score - terms) < 0.002, verdict
                score = None if request.leans or request.alarmed_pools else world.score(request, uid)
                assert score is None or abs(verdict.score - score) < 4 * SCORE_STEP, (verdict, score)
                continue
            refused_by[refusal.filter] = refused_by.get(refusal.filter, 0) + 1
            scale = {"cpu": 1000.0, "gpu": 1000.0}
            lacks = [
                (what, wanted / scale.get(what, 1.0), free / scale.get(what, 1.0))
                for what, wanted, free in refusal.lacks
            ]
            shortfalls = [(s.resource, s.wanted, s.free) for s in verdict.shortfalls]
            assert (verdict.outcome, verdict.filter) == ("refused", refusal.filter), (verdict, refusal)
            assert refusal.filter != "resources" or shortfalls == lacks, (verdict, refusal)
            assert verdict.reason, verdict
        assert explanation.refused_by == refused_by
        fitting = [verdict for verdict in told.values() if verdict.outcome != "refused"]
        beyond = {v.node for v in fitting if self._is_beyond_alarm(request, v.node)}
        if chosen in beyond and not request.leans:
            assert len(beyond) == len(fitting), "a pool beyond its alarm was chosen before others"
        best = min(fitting, key=lambda verdict: (-(verdict.score or 0.0), verdict.node), default=None)
        assert chosen == (None if best is None else best.node), (chosen, best)
        assert [v.node for v in told.values() if v.outcome == "chosen"] == ([] if chosen is None else [chosen])
        assert bool(explanation.error) == (chosen is None)

    def _is_beyond_alarm(self, request: Request, node: str) -> bool:
        facts = next(facts for facts in self.world.nodes.values() if facts.name == node)
        return any(f"alarm {pool}" in facts.texts for pool in request.alarmed_pools)

    def _count(self, name: str, uid: str, amounts: Amounts, load: Load) -> None:
        self.world.placed[name] = (uid, amounts, load)
        self.snapshot.put_allocation(name, uid, amounts, load)

    def _name(self) -> str:
        self.count += 1
        return f"a{self.count}"

    def _rebuild(self) -> Snapshot:
        """Allocations first, nodes in another order."""
        fresh = Snapshot()
        for name, (uid, taken, load) in self.world.placed.items():
            fresh.put_allocation(name, uid, taken, load)
        for uid in sorted(self.world.nodes, reverse=True):
            fresh.put_node(self.world.nodes[uid])
        fresh.hold(self.world.volumes.values())
        for storage, most in self.world.bounds.items():
            fresh.put_bound(storage, Bound(storage, most))
        for uid, measured in self.world.measured.items():
            fresh.put_use(uid, Measured(*measured))
        return fresh


def _columns(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Everything a filter or a policy may read, by node."""

    def told(values: Any) -> dict[str, Any]:
        return {name: repr(value) for name, value in zip(snapshot.names, values, strict=True)}

    columns = [told(snapshot.capacity.T.tolist()), told(snapshot.free.T.tolist()), told(snapshot.online.tolist())]
    columns += [told(snapshot.used.T.tolist()), told(snapshot.measured.tolist())]
    columns += [told(snapshot.cordoned.tolist()), told(snapshot.machine("microvm").tolist())]
    columns += [told(snapshot.holds(datum).tolist()) for datum in ("image:1", "pool:p")]
    columns += [told(snapshot.members(group).tolist()) for group in GROUPS]
    columns += [told(snapshot.pool(pool).left.tolist()) for pool in POOLS]
    for attribute in ATTRIBUTES:
        texts = snapshot.text(attribute)
        words = (
            [None] * len(snapshot)
            if texts is None or texts.codes.ndim > 1
            else [texts.words[c] if c >= 0 else None for c in texts.codes]
        )
        columns.append(told(words))
    for attribute in NUMBERS:
        numbers = snapshot.number(attribute)
        columns.append(told([float("nan")] * len(snapshot) if numbers is None else numbers.tolist()))
    taints = {taint: told(flags.tolist()) for taint, flags in snapshot.taints() if flags.any()}
    return [*columns, taints]


# Wrong versions of the engine, each of which looks right on a good day.


def forget_to_free_a_device() -> AbstractContextManager[Any]:
    real = Devices.take
    return mock.patch.object(Devices, "take", lambda self, row, device, share: real(self, row, device, max(0, share)))


def count_a_share_twice() -> AbstractContextManager[Any]:
    real = Devices.take
    return mock.patch.object(
        Devices, "take", lambda self, row, device, share: real(self, row, device, share * (1 + (abs(share) < 1000)))
    )


def keep_stale_scores() -> AbstractContextManager[Any]:
    """A class isn't told that rows have changed, but for those that gained."""
    real = Snapshot._note
    return mock.patch.object(
        Snapshot, "_note", lambda self, index, gained: real(self, index, gained) if gained else None
    )


def keep_stale_masks() -> AbstractContextManager[Any]:
    """What filters said of facts is kept when the facts change."""

    def forget(self: Masks) -> None:
        if self._all.size != len(self._snapshot):
            real(self)

    real = Masks._forget
    return mock.patch.object(Masks, "_forget", forget)


def ignore_the_ratio() -> AbstractContextManager[Any]:
    return mock.patch.object(NodeFacts, "given", lambda self: self.capacity)


def forget_that_the_measured_was_asked_for_too() -> AbstractContextManager[Any]:
    """What is measured counts on top of what was asked for by the same guests."""
    real = UsageTable._find_beyond
    return mock.patch.object(
        UsageTable,
        "_find_beyond",
        lambda self, index, measured: real(self, index, Measured(measured.amounts)),
    )


def let_the_used_decide_what_fits() -> AbstractContextManager[Any]:
    """A node is taken to be idle, and given away beyond its ratio."""
    real = FreeCapacity.fits

    def fits(self: FreeCapacity, table: Any, request: Request) -> Any:
        enough = real(self, table, request)
        if request.basis == "allocation" or request.gpus is not None or request.extras:
            return enough
        wanted = [[amount] for amount in request.amounts]
        return enough | (table.capacity >= wanted).all(axis=0)

    return mock.patch.object(FreeCapacity, "fits", fits)


def tell_less_than_was_asked() -> AbstractContextManager[Any]:
    """An explanation names the first lack only."""
    real = FreeCapacity.explain

    def explain(self: FreeCapacity, table: Any, request: Request, index: int) -> Any:
        reason, lacks = real(self, table, request, index)
        return reason, lacks[:1]

    return mock.patch.object(FreeCapacity, "explain", explain)


def forget_what_volumes_were_promised() -> AbstractContextManager[Any]:
    """Only what allocations ask for counts in a pool."""
    return mock.patch.object(Snapshot, "hold", lambda self, claims: None)


def let_a_pool_promise_what_it_has_promised_before() -> AbstractContextManager[Any]:
    """What is left of a pool is kept from when it was first asked for."""
    real = Pools._renew

    def renew(self: Pools, storage: str) -> None:
        if self._free[self._places.get(storage, 0)] >= UNBOUND:
            real(self, storage)

    return mock.patch.object(Pools, "_renew", renew)


Mutation = Callable[[], AbstractContextManager[Any]]
MUTATIONS: Sequence[Mutation] = (
    forget_to_free_a_device,
    count_a_share_twice,
    keep_stale_scores,
    keep_stale_masks,
    ignore_the_ratio,
    forget_that_the_measured_was_asked_for_too,
    let_the_used_decide_what_fits,
    tell_less_than_was_asked,
    forget_what_volumes_were_promised,
    let_a_pool_promise_what_it_has_promised_before,
)
