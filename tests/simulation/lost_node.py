"""A container that may start elsewhere if its node is lost, on one node to which bad things happen: never do two of it run.

The real API server, controllers, agents and guard's decisions; machines whose boot clocks have rates of their own, whose processes
are stopped and killed, and which sleep.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.simulation.conversions import IMAGE
from tests.simulation.fabric import Fabric
from tests.simulation.fate import Fate
from tests.simulation.node import Node
from tests.simulation.people import MIB
from tests.simulation.simulation import simulate
from tests.simulation.test_returning_node import ask, until
from tests.simulation.virtual_loop import Part
from weft.contracts.guard import Held
from weft.drivers.guard.driver import ANSWER_SECONDS
from weft.drivers.guard.holds import Hold, HoldRequest, Holds, apply_request, find_next, list_due, note_ended
from weft.failover.timing import NODES, RATE_ERROR
from weft.kinds.allocation import AllocationReport, AllocationSpec, is_held
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import decode_part
from weft.objects.errors import DriverFailed

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


class Machine:
    """What a node has beside its agent: a boot clock, and a guard that outlives the agent. See ``GuardDriver``."""

    def __init__(self, fabric: Fabric, node: Node, chance: random.Random) -> None:
        self.node, self._loop = node, fabric.loop
        self._rate = 1 + chance.uniform(-2, 2) * RATE_ERROR  # against the servers' clock
        self._booted, self._boots = self._loop.now, 1
        self.holds: Holds = {}
        self.sleeps = False
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

    def lose_power(self) -> None:
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


class Story:
    """One container, and what happens to the node that it is on. ``losses``: how often it was freed."""

    def __init__(self, fabric: Fabric, seed: int) -> None:
        self.fabric, self.losses = fabric, 0
        self._chance = random.Random(f"lost node {seed}")
        self._people = random.Random(f"people {seed}")
        self._machines: dict[str, Machine] = {}
        fabric.sides.see_container = lambda node, plan: self._check(node)  # type: ignore[method-assign]
        see = fabric.witness.on_commit

        def see_commit(was: Any, now: Any) -> None:
            see(was, now)
            if now is not None and was is not None and now.kind == "allocation":
                roles = [decode_part(one.spec, AllocationSpec).role for one in (was, now)]
                self.losses += roles == ["active", "lost"]
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
        await fabric.set_up()
        fabric.clock.jump_seconds = chance.uniform(-3600, 3600)
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
        if self._people.random() < 0.2:
            with contextlib.suppress(AssertionError):  # a pause that ends before the former one is refused
                await ask(fabric, "POST", f"/v1/nodes/{node.name}:guard", {"pause": self._people.uniform(60.0, 150.0)})
            await asyncio.sleep(self._people.uniform(0.0, 20.0))
        if self._people.random() < 0.4:  # people who are wrong about it, if they are heard
            fabric._revive(self._confirm_off(node, self._people.uniform(25.0, length + 20.0)), "a wrong word")
        ends_at = fabric.loop.now + length + 3.0
        for kind in kinds:
            await asyncio.sleep(chance.uniform(0.0, 1.5))
            ends += self._begin(kind, node, machine)
        if chance.random() < 0.4:
            at, server = chance.uniform(0.0, length), fabric.server
            fabric.later(at, server.kill_controllers)
            fabric.later(at + chance.uniform(0.5, 5.0), server.start_controllers)
        if chance.random() < 0.2 and "guard stops" not in kinds and "sleep" not in kinds:
            fabric.later(chance.uniform(0.0, length), lambda: self._restart(node))
        await asyncio.sleep(max(0.0, ends_at - fabric.loop.now))
        chance.shuffle(ends)
        for end in ends:
            end()
            await asyncio.sleep(chance.choice((0.0, 0.5, 6.0)))

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
            case "power":
                node.lose_power()
                machine.lose_power()
                fabric.later(self._chance.uniform(0.5, 60.0), node.start)
        return []

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


def tell_story(seed: int, rounds: int = 2) -> tuple[list[str], int]:
    """What broke, and how often the container was freed."""
    with simulate(seed, Fate(seed, 0, {}), converts=True) as fabric:
        story = Story(fabric, seed)
        fabric.loop.run_until_complete(story.run(rounds))
        return fabric.witness.violations, story.losses
