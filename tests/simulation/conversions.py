"""Conversions: people who turn a container into a VM and back, the containers of each machine, and what must be true of both sides.

Never do both run, never is a volume's file open on two sides, one of the two is in the store at any time; in the end one of them
runs, with all that was the first one's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec

from tests.scenario.container_agent_lab import Containers, World
from tests.simulation.connections import Line
from tests.simulation.people import MIB, TOKEN, insist
from weft.contracts.driver.container import ContainerPlan
from weft.contracts.driver.runtime import GuestFacts
from weft.drivers.runtime.fake.driver import FakeGuest
from weft.kinds.conversion import ENDED, ConversionStatus
from weft.kinds.parts.workload import WorkloadStatus
from weft.objects.envelope import Envelope, decode_part

if TYPE_CHECKING:
    from tests.simulation.fabric import Fabric

IMAGE, DIGEST = "registry.example.org/web:1", "sha256:" + "c" * 64
REGISTRY = {IMAGE: DIGEST, f"registry.example.org/web@{DIGEST}": DIGEST}
PROJECT = "/v1/projects/default"
OTHER = {"vm": "container", "container": "vm"}


class Sides:
    """Sees each side begin, and go from the store. ``names`` are those that are converted."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self.names: set[str] = set()
        self._vms: dict[str, str] = {}  # allocation uid → name

    def see_machine(self, node: str, guest: FakeGuest) -> None:
        plan = guest.plan
        self._vms[plan.uid] = plan.name
        disks = {PurePath(disk.path).name for disk in plan.disks if not disk.read_only}
        for where, other in self._list_containers():
            if other.name == plan.name:
                self._fabric.witness.fail(f"vm {plan.name} was started on {node}; its container runs on {where}")
            if disks & set(_files(other)):
                self._fabric.witness.fail(f"vm {plan.name} was started on {node} on a volume of a container on {where}")

    def see_container(self, node: str, plan: ContainerPlan) -> None:
        witness = self._fabric.witness
        for (where, _), uid in witness.alive.items():
            if self._vms.get(uid) == plan.name:
                witness.fail(f"container {plan.name} was started on {node}; its VM runs on {where}")
        for where, other in self._list_containers():
            if (where, other.id) != (node, plan.id) and (
                other.name == plan.name or set(_files(other)) & set(_files(plan))
            ):
                witness.fail(f"container {plan.name} was started on {node}; {other.name} runs on {where}")
        for file in _files(plan):
            if file in witness.disks:
                witness.fail(f"container {plan.name} was started on {node} on {file}, which a VM has")

    def see_commit(self, was: Envelope | None, now: Envelope | None) -> None:
        if now is not None and now.kind == "conversion" and was is not None:
            before, after = (decode_part(one.status, ConversionStatus) for one in (was, now))
            if before.phase != after.phase:
                self._fabric.witness.came_to[f"{after.phase} {after.reason}".strip()] += 1
        if now is None and was is not None and was.kind in OTHER and was.name in self.names:
            if f"/{OTHER[was.kind]}/default/{was.name}" not in self._fabric.ledger.notes.values:
                self._fabric.witness.fail(f"{was.kind} {was.name} went, and there is no {OTHER[was.kind]} {was.name}")

    def _list_containers(self) -> Iterator[tuple[str, ContainerPlan]]:
        for node in self._fabric.nodes:
            for id_, facts in node.world.facts.items():
                if facts.state == "running":
                    yield node.name, node.world.plans[id_]


def _files(plan: ContainerPlan) -> list[str]:
    return [PurePath(mount.source).name for mount in plan.mounts if mount.source]


class SeenContainers(Containers):
    """The containers of one machine, each told of when it begins."""

    name = "fake-seen"

    def __init__(self, world: World, fabric: Fabric, node: str) -> None:
        super().__init__(world)
        self._fabric, self._node = fabric, node

    async def _meet(self, verb: str, *more: str) -> None: ...

    async def start(self, plan: ContainerPlan) -> GuestFacts:
        await self._meet("start")
        if plan.id not in self.world.facts or self.world.facts[plan.id].state != "running":
            self._fabric.sides.see_container(self._node, plan)
        return await super().start(plan)

    async def stop(self, guest_id: str, *, grace_seconds: float) -> None:
        await self._meet("stop")
        await super().stop(guest_id, grace_seconds=grace_seconds)

    async def remove(self, guest_id: str) -> None:
        await self._meet("remove")
        await super().remove(guest_id)

    def lose_power(self) -> None:
        for id_, facts in list(self.world.facts.items()):
            if facts.state == "running":
                self.world.end(id_, "failed", "nodeRestarted", None)  # type: ignore[arg-type]


class Converter:
    """Someone with one container who converts it, and what it has become, again and again. Every second one has no ``volume``:
    nothing but the Conversion keeps both sides from running then."""

    def __init__(self, fabric: Fabric, name: str, number: int) -> None:
        self.name, self.port = name, 8000 + number
        self.volume = "" if number % 2 else f"{name}-data"
        self._fabric = fabric
        self._draw = random.Random(f"conversions {fabric.fate.seed} {name}")
        self._line = Line(fabric.doorways, fabric.fate, f"converter of {name}", token=TOKEN)
        fabric.sides.names.add(name)

    async def live(self) -> None:
        if self.volume:
            await self._make("volumes", {"kind": "volume", "name": self.volume, "spec": {"size": 64 * MIB}})
        spec = {
            "image": IMAGE, "cpu": 0.5, "memory": 64 * MIB, "grace": 1.0, "restart": "always",
            "mounts": [f"{self.volume}:/data"] if self.volume else [], "publish": [f"{self.port}:80"],
        }  # fmt: skip
        await self._make("containers", {"kind": "container", "name": self.name, "spec": spec})
        while not self._fabric.fate.spent:
            await asyncio.sleep(self._draw.random() * 8.0)
            await self._convert()

    async def _make(self, plural: str, body: Any) -> None:
        while (await self._ask("POST", f"{PROJECT}/{plural}", body)).status not in (200, 201, 409):
            await asyncio.sleep(1.0)

    async def _convert(self) -> None:
        draw = self._draw
        here = [one for one in find_sides(self._fabric, self.name) if one.deleting_since is None]
        if len(here) != 1:
            return
        kind = here[0].kind
        wish = {"to": OTHER[kind], "timeout_seconds": draw.choice((20.0, 90.0)), "confirm": draw.random() < 0.3}
        answer = await self._ask("POST", f"{PROJECT}/{kind}s/{self.name}:convert", wish)
        self._fabric.wishes["convert"] += answer.status < 300
        await asyncio.sleep(draw.choice((0.0, 1.0, 5.0, 20.0)))
        verb = draw.choice(("confirm", "confirm", "undo", ""))
        while going := find_unended(self._fabric, self.name):  # one whose answer was lost, too
            path = f"{PROJECT}/conversions/{going[0].name}"
            answer = await (self._ask("POST", f"{path}:{verb}", {}) if verb else self._ask("DELETE", path, None))
            self._fabric.wishes[verb or "delete conversion"] += answer.status < 300
            await asyncio.sleep(3.0)

    async def _ask(self, method: str, path: str, body: Any) -> Any:
        return await insist(self._line, method, path, body, lambda: self._fabric.restores)


def find_sides(fabric: Fabric, name: str) -> list[Envelope]:
    return [one for kind in OTHER for one in fabric.ledger.notes.objects(kind) if one.name == name]


def find_unended(fabric: Fabric, name: str) -> list[Envelope]:
    return [
        item
        for item in fabric.ledger.notes.objects("conversion")
        if msgspec.json.decode(item.spec)["workload"].endswith(f"/{name}")
        and decode_part(item.status, ConversionStatus).phase not in ENDED
    ]


def check_sides(fabric: Fabric, converter: Converter) -> list[str]:
    """What is otherwise than it was in the beginning, but for which of both it is."""
    name = converter.name
    found = [f"conversion {item.name} has not ended: {bytes(item.status)!r}" for item in find_unended(fabric, name)]
    sides = find_sides(fabric, name)
    if len(sides) != 1:
        return [*found, f"{name} is {[one.kind for one in sides]}"]
    (side,) = sides
    spec, status = msgspec.json.decode(side.spec), decode_part(side.status, WorkloadStatus)
    has = (spec["run"], spec.get("mounts"), spec.get("volumes"), spec["publish"], spec["networks"])
    volumes = [converter.volume] if converter.volume else []
    mounts = [f"{volume}:/data" for volume in volumes]
    held = (mounts, None) if side.kind == "container" else (None, volumes)
    if has != ("run", *held, [f"{converter.port}:80"], ["default"]):
        found.append(f"{side.kind} {name} has {has}")
    if status.phase != "Running":
        found.append(f"{side.kind} {name} is {status.phase}: {status.reason} {status.message}")
    for kind in ("endpoint", "publishedport"):
        owners = [one.owner.uid for one in fabric.ledger.notes.objects(kind) if one.owner and one.owner.name == name]
        if owners != [side.uid]:
            found.append(f"{kind}s of {name} are {owners}'s, not {side.uid}'s")
    if left := [one.name for one in fabric.ledger.notes.objects("recommendation") if one.name.startswith(f"{name}-")]:
        found.append(f"questions are left: {left}")
    return found
