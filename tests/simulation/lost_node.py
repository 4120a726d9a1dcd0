"""A container that may start elsewhere if its node is lost, on one node to which bad things happen: never do two of it run.

The real API server, controllers, agents and guard's decisions; machines whose boot clocks have rates of their own, whose processes
are stopped and killed, and which sleep. In a mixed story machines have BMCs that answer late or not, and nodes have an autonomy
that people change.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar
from unittest import mock

from tests.simulation.conversions import IMAGE
from tests.simulation.etcd import Cluster
from tests.simulation.fabric import Fabric, _envelope
from tests.simulation.fate import Fate
from tests.simulation.node import Node
from tests.simulation.people import MIB
from tests.simulation.simulation import simulate
from tests.simulation.test_returning_node import ask, until
from tests.simulation.virtual_loop import Part
from weft.contracts.guard import Held
from weft.contracts.machine.power import PowerState
from weft.drivers.guard.driver import ANSWER_SECONDS
from weft.drivers.guard.holds import Hold, HoldRequest, Holds, apply_request, find_next, list_due, note_ended
from weft.failover.timing import NODES, RATE_ERROR, stretch
from weft.kinds.allocation import AllocationReport, AllocationSpec, AllocationStatus, is_held
from weft.kinds.parts.node.power import BmcAddress
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import decode_part
from weft.objects.errors import DriverFailed, Unavailable

T = TypeVar("T")
CONTAINERS = "/v1/projects/default/containers"
NAME = "web"
# Around the ends of a lease, of a promise, and of what follows them.
LENGTHS = (12.0, 30.0, NODES.lease - 1, NODES.lease + 1, NODES.promise - 1, NODES.promise + 1, 95.0)
FAULTS = (
    *(
        ("cut",),
        ("cut",),
        ("answers",),
        ("late", "cut"),
        ("agent stops",),
        ("agent stops", "cut"),
        ("guard stops", "cut"),
    ),
    *(
        ("agent dies", "cut"),
        ("agent dies",),
        ("sleep",),
        ("cut", "sleep"),
        ("power", "cut"),
        ("answers", "agent dies"),
    ),
)


AUTONOMY_SECONDS = (0.0, 0.0, 60.0)


class Machine:
    """What a node has beside its agent: a boot clock, and a guard that outlives the agent. See ``GuardDriver``."""

    def __init__(self, fabric: Fabric, node: Node, chance: random.Random) -> None:
        self.node, self._loop = node, fabric.loop
        self._rate = 1 + chance.uniform(-2, 2) * RATE_ERROR  # against the servers' clock
        self._booted, self._boots = self._loop.now, 1
        self.holds: Holds = {}
        self.sleeps = False
        self._fell: Part | None = None  # the agent that was there when its power was lost
        self.guard: Part
        self._begin_guard()

    @property
    def boot_id(self) -> str:
        return f"boot{self._boots}"

    def read_time(self) -> float:
        return (self._loop.now - self._booted) * self._rate

    async def check(self) -> str:
        return ""

    async def renew(self, until: Mapping[str, float]) -> dict[str, Held]:
        return await self._ask(HoldRequest({name: Hold(at, ("/g",)) for name, at in until.items()}, ()))

    async def drop(self, ids: Iterable[str]) -> None:
        await self._ask(HoldRequest({}, tuple(ids)))

    async def read(self) -> dict[str, Held]:
        return await self._ask(HoldRequest({}, ()))

    def end(self, guest_id: str) -> None:
        world = self.node.world
        if guest_id in world.facts and world.facts[guest_id].state == "running":
            world.end(guest_id, "failed", "exited", 137)

    def end_due(self) -> None:
        for name in list_due(self.holds, now := self.read_time()):
            if name in self.node.world.facts and self.node.world.facts[name].state == "running":
                self.end(name)
                self.holds = note_ended(self.holds, name, now)

    @property
    def is_off(self) -> bool:
        return self._fell is not None and self._fell is self.node.part

    def lose_power(self) -> None:
        self._fell = self.node.part
        self.holds, self._booted, self._boots = {}, self._loop.now, self._boots + 1

    def sleep(self) -> None:
        """Nothing runs; the boot clock goes on, the agent's other one doesn't."""
        self.sleeps, self._slept_at = True, self._loop.now
        for part in self._list_parts():
            part.freeze()

    def wake(self) -> None:
        self.sleeps = False
        self.node.clock.slept += self._loop.now - self._slept_at  # type: ignore[attr-defined]
        self.end_due()  # the guard is the first to run
        for part in self._list_parts():
            part.thaw()

    def _list_parts(self) -> list[Part]:
        return [part for part in (self.guard, self.node.part) if part is not None and part.alive]

    async def _ask(self, request: HoldRequest) -> dict[str, Held]:
        await asyncio.sleep(0.002)
        if self.guard.frozen:
            await asyncio.sleep(ANSWER_SECONDS)
            raise DriverFailed("the guard doesn't answer")
        self.holds = apply_request(self.holds, request)
        return {name: Held(one.until, one.ended_at) for name, one in self.holds.items()}

    def _begin_guard(self) -> None:
        async def serve() -> None:
            while True:
                self.end_due()
                at = find_next(self.holds, self.read_time())
                await asyncio.sleep(0.1 if at is None else min(0.1, max(0.001, (at - self.read_time()) / self._rate)))

        self.guard = Part(self._loop, f"guard of {self.node.name}")
        self.guard.spawn(serve())


class SleepyClock:
    """The node's, which doesn't count what its machine sleeps."""

    def __init__(self, fabric: Fabric) -> None:
        self._loop, self.slept, self.jump_seconds = fabric.loop, 0.0, 0.0

    def now(self) -> float:
        return 1_700_000_000.0 + self._loop.now + self.jump_seconds

    def elapsed(self) -> float:
        return self._loop.now - self.slept

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 1e-6) if seconds else 0.0)  # two clocks of one loop are never quite equal


class NodeFaults:
    """A node's line to the servers: what it sends, or what it is answered, may get lost or be late."""

    def __init__(self, fate: Fate) -> None:
        self._fate, self.answers_lost, self.late = fate, False, 0.0

    def hit(self, name: str) -> bool:
        return (name == "answer lost" and self.answers_lost) or self._fate.hit(name)

    def note(self, name: str) -> None:
        self._fate.note(name)

    def delay(self, seconds: float) -> float:
        return self._fate.delay(seconds) + (self._fate.draw.uniform(0.0, self.late) if self.late else 0.0)

    def is_cut_off(self, who: str) -> bool:
        return self._fate.is_cut_off(who)

    def is_deaf(self, who: str) -> bool:
        return self._fate.is_deaf(who)


class Bmc:
    """Of a machine. It is dead at times; its answers come when they come (``_answer_late``)."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self._machine, self._chance = machine, chance

    def read(self) -> PowerState:
        if self._chance.random() < 0.2:
            raise Unavailable("no BMC answers")
        return "off" if self._machine.is_off else "on"

    def switch(self, to: PowerState) -> None:
        raise AssertionError("nobody orders it")


class Story:
    """One container, and what happens to the node that it is on. ``losses``: how often it was freed, by which evidence."""

    def __init__(self, fabric: Fabric, seed: int, *, mixed: bool) -> None:
        self.fabric, self.losses = fabric, Counter[str]()
        self._mix = random.Random(f"mix {seed}") if mixed else None
        self._chance = random.Random(f"lost node {seed}")
        self._people, self._weather = random.Random(f"people {seed}"), random.Random(f"weather {seed}")
        self._machines: dict[str, Machine] = {}
        self._autonomy: dict[str, float] = {}
        fabric.sides.see_container = lambda node, plan: self._check(node)  # type: ignore[method-assign]
        see = fabric.witness.on_commit

        def see_commit(was: Any, now: Any) -> None:
            see(was, now)
            if now is not None and was is not None and now.kind == "allocation":
                roles = [decode_part(one.spec, AllocationSpec).role for one in (was, now)]
                if roles == ["active", "lost"] and (ended := decode_part(now.status, AllocationStatus).ended_by):
                    self.losses[ended.by] += 1
                self._check("")

        fabric.witness.on_commit = see_commit

    async def run(self, rounds: int) -> None:
        fabric, chance = self.fabric, self._chance
        begin = fabric._enrol

        async def enrol(name: str) -> Node:
            node = await begin(name)
            node.clock = SleepyClock(fabric)  # type: ignore[assignment]
            node.faults = NodeFaults(fabric.fate)
            self._machines[name] = node.guard = Machine(fabric, node, chance)
            return node

        fabric._enrol = enrol  # type: ignore[method-assign]
        fabric.needs = {"unseal": lambda sealed, _: sealed.encode(), "open_bmc": self._open_bmc}
        await fabric.set_up()
        if self._mix is not None:
            await fabric._put(_envelope("secret", "bmc", "default", {"sealed": {"user": "u", "password": "p"}}))
            for node in fabric.nodes:
                power = {"power": f"redfish://{node.name}", "power_secret": "default/bmc"}
                await self._change(node, self._mix.choice(AUTONOMY_SECONDS), **power)
        fabric.clock.jump_seconds = chance.uniform(-3600, 3600)
        if fabric.cluster is not None:  # a pause ends at a time of day, of which the servers know within seconds
            for server in fabric.servers:
                server.clock.jump_seconds = fabric.clock.jump_seconds + self._weather.uniform(-2.0, 2.0)
        spec = {"image": IMAGE, "cpu": 0.5, "memory": 64 * MIB, "grace": 1.0, "restart": "always"}
        body = {"kind": "container", "name": NAME, "spec": {**spec, "on_node_loss": "restart"}}
        await ask(fabric, "POST", CONTAINERS, body)
        for _ in range(rounds):
            await self._until_held()
            if fabric.broken:
                return
            await self._befall(next(node for node in fabric.nodes if node.name == self._find_node()))
            fabric.heal()
        await self._until_held()

    async def _until_held(self) -> None:
        """It runs, in one place, whose guard has it."""

        def is_held_there() -> bool:
            if self.fabric.broken:
                return True
            places = list(self.fabric.ledger.notes.objects("allocation"))
            if len(places) != 1 or self._find_phase() != "Running" or len(self._list_running()) != 1:
                return False
            return is_held(decode_part(places[0].spec, AllocationSpec), decode_part(places[0].report, AllocationReport))

        for _ in range(3):
            try:
                return await until(is_held_there, "it runs in one place")
            except AssertionError:
                pass
        reports = [
            (decode_part(one.spec, AllocationSpec).role, decode_part(one.report, AllocationReport).reason)
            for one in self.fabric.ledger.notes.objects("allocation")
        ]
        self.fabric.witness.note(f"it never came back: {self._find_phase()}, {self._list_running()}, {reports}")

    async def _befall(self, node: Node) -> None:
        """One or two things happen to its node at about the same time, and perhaps one to a server."""
        chance, fabric, machine = self._chance, self.fabric, self._machines[node.name]
        node.clock.jump_seconds = chance.uniform(-3600, 3600)
        ends = list[Callable[[], None]]()
        kinds = chance.choice(FAULTS)
        length = chance.choice(LENGTHS) + chance.uniform(-0.5, 0.5)
        if self._mix is not None:
            kinds = self._mix.choice((kinds, kinds, ("power",), ("power", "cut"), ("blink", "cut")))
            length += stretch(self._autonomy.get(node.name, 0.0)) * self._mix.choice((0, 1))
            length += self._mix.choice((0.0, 0.0, NODES.promise))  # and a new leader has counted that
        if self._people.random() < 0.2:
            with contextlib.suppress(AssertionError):  # a pause that ends before the former one is refused
                await ask(fabric, "POST", f"/v1/nodes/{node.name}:guard", {"pause": self._people.uniform(60.0, 150.0)})
            await asyncio.sleep(self._people.uniform(0.0, 20.0))
        if self._people.random() < 0.4:  # people who are wrong about it, if they are heard
            fabric._revive(self._confirm_off(node, self._people.uniform(25.0, length + 20.0)), "a wrong word")
        ends_at = fabric.loop.now + length + 3.0
        if fabric.cluster is not None and self._weather.random() < 0.7:
            self._darken(fabric.cluster, self._weather.choice(LENGTHS))
            kinds = kinds if self._weather.random() < 0.6 else ()
        for kind in kinds:
            await asyncio.sleep(chance.uniform(0.0, 1.5) if "blink" not in kinds else chance.uniform(3.0, 12.0))
            ends += self._begin(kind, node, machine)
        if self._mix is not None and self._mix.random() < 0.3:
            later = self._change(node, self._mix.choice(AUTONOMY_SECONDS), after=self._mix.uniform(0.0, length))
            fabric._revive(later, "another autonomy")
        if chance.random() < 0.4:
            at, server = chance.uniform(0.0, length), fabric.server
            several = fabric.cluster is not None  # whose processes share more there than real ones do
            fabric.later(at, server.kill if several else server.kill_controllers)
            fabric.later(at + chance.uniform(0.5, 5.0), server.start if several else server.start_controllers)
        if chance.random() < 0.2 and "guard stops" not in kinds and "sleep" not in kinds:
            fabric.later(chance.uniform(0.0, length), lambda: self._restart(node))
        await asyncio.sleep(max(0.0, ends_at - fabric.loop.now))
        chance.shuffle(ends)
        for end in ends:
            end()
            await asyncio.sleep(chance.choice((0.0, 0.5, 6.0)))

    async def _change(self, node: Node, autonomy: float, after: float = 0.0, **spec: Any) -> None:
        await asyncio.sleep(after)
        self._autonomy[node.name] = autonomy
        with contextlib.suppress(AssertionError):  # somebody else changed it
            await ask(self.fabric, "PATCH", f"/v1/nodes/{node.name}", {"spec": {"autonomy_seconds": autonomy, **spec}})

    def _open_bmc(self, address: BmcAddress, values: Mapping[str, str]) -> Bmc:
        assert self._mix is not None
        return Bmc(self._machines[address.host], self._mix)

    def _begin(self, kind: str, node: Node, machine: Machine) -> list[Callable[[], None]]:
        """Let it begin; what ends it."""
        fabric, faults, part = self.fabric, node.faults, node.part
        assert isinstance(faults, NodeFaults) and part is not None
        match kind:
            case "cut":
                fabric._cut_off(node.name)
                return [lambda: fabric.fate.cut_off.discard(node.name)]
            case "answers":
                faults.answers_lost = True
                return [lambda: setattr(faults, "answers_lost", False)]
            case "late":
                faults.late = self._chance.uniform(5.0, 40.0)
                return [lambda: setattr(faults, "late", 0.0)]
            case "agent stops":
                part.freeze()
                return [part.thaw]
            case "guard stops":
                machine.guard.freeze()
                return [machine.guard.thaw]
            case "agent dies":
                node.kill()
                fabric.later(self._chance.uniform(0.5, 60.0), node.start)
            case "sleep":
                machine.sleep()
                return [machine.wake]
            case "power" | "blink":  # off for so short that a late word of its BMC finds it running again
                node.lose_power()
                machine.lose_power()
                fabric.later(self._chance.uniform(0.5, 60.0) if kind == "power" else 0.5, node.start)
        return []

    def _darken(self, cluster: Cluster, length: float) -> None:
        """The store is away for a server or for all, which reach it again one after the other, or a server's machine freezes."""
        fabric, weather = self.fabric, self._weather
        match weather.choice(("leaderless", "all", "one", "deaf", "frozen")):
            case "leaderless":
                cluster.leaderless = True
                fabric.later(length, lambda: setattr(cluster, "leaderless", False))
            case "frozen":
                server = weather.choice(fabric.servers)
                for part in (server.doorway.part, server.controllers):
                    if part is not None and part.alive:
                        part.freeze()
                        fabric.later(length, part.thaw)
            case kind:
                cut, some = cluster.deaf if kind == "deaf" else cluster.cut_off, fabric.servers
                for server in some if kind == "all" else [weather.choice(some)]:
                    cut.add(server.name)
                    fabric.later(length + weather.uniform(0.0, 10.0), partial(cut.discard, server.name))

    async def _confirm_off(self, node: Node, after: float) -> None:
        await asyncio.sleep(after)
        with contextlib.suppress(AssertionError):  # refused while the node is heard
            await ask(self.fabric, "POST", f"/v1/nodes/{node.name}:confirm-off", {})

    def _restart(self, node: Node) -> None:
        if node.part is not None and not node.part.frozen:
            node.kill()
            node.start()

    def _check(self, begins: str) -> None:
        """One that begins on a node, or was freed, runs nowhere else."""
        places = self._list_running() + ([begins] if begins else [])
        if len(places) > 1:
            self.fabric.witness.fail(f"{NAME} runs twice: on {' and '.join(places)}")
        freed = {
            place.spec.node
            for one in self.fabric.ledger.notes.objects("allocation")
            if (place := _Place(one)).spec.role == "lost" and place.is_named(NAME)
        }
        if lost := freed & {*self._list_running()}:
            self.fabric.witness.fail(f"{NAME} was freed while it runs on {lost}")

    def _list_running(self) -> list[str]:
        """The nodes where one runs. On a machine that sleeps nothing does."""
        return [
            node.name
            for node in self.fabric.nodes
            for facts in node.world.facts.values()
            if facts.state == "running" and not self._machines[node.name].sleeps
        ]

    def _find_phase(self) -> str:
        found = [one for one in self.fabric.ledger.notes.objects("container") if one.name == NAME]
        return decode_part(found[0].status, WorkloadStatus).phase if found else "absent"

    def _find_node(self) -> str:
        return self._list_running()[0]


class _Place:
    def __init__(self, envelope: Any) -> None:
        self.spec = decode_part(envelope.spec, AllocationSpec)

    def is_named(self, name: str) -> bool:
        return self.spec.workload.name == name


def tell_story(seed: int, rounds: int = 2, servers: int = 1, *, mixed: bool = False) -> tuple[list[str], Counter[str]]:
    """What broke, and how often the container was freed, by evidence. Several ``servers`` share an etcd, to which bad things
    happen, too. ``mixed``: machines have BMCs, and nodes an autonomy."""
    late = random.Random(f"late {seed}")

    async def answer_late(work: Callable[[], T]) -> T:
        answer = work()
        await asyncio.sleep(late.choice((0.1, 1.0, 40.0)) * late.random())
        return answer

    with (
        mock.patch("weft.controllers.power.controller.in_thread", answer_late),
        simulate(
            seed, Fate(seed, 0, {}), "etcd" if servers > 1 else "memory", converts=True, servers=servers
        ) as fabric,
    ):
        story = Story(fabric, seed, mixed=mixed)
        fabric.loop.run_until_complete(story.run(rounds))
        return fabric.witness.violations, story.losses
