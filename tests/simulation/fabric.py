"""All parts of the fabric, and the hand that starts them, strikes them, and looks at the end whether all is as wished."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from tests.scenario.agent_lab import BUNDLE, DIGEST
from tests.simulation import virtual_loop
from tests.simulation.clerks import GIB, LIMITS, TALLIES, Clerk, Register
from tests.simulation.clerks import PROJECT as SHOP
from tests.simulation.connections import Line
from tests.simulation.conversions import DIGEST as WEB_DIGEST
from tests.simulation.conversions import IMAGE as WEB_IMAGE
from tests.simulation.conversions import Converter, Sides
from tests.simulation.etcd import Cluster, EtcdLedger
from tests.simulation.fate import BACKUP_EVERY, LOST_EVERY, LOST_OFTEN, SKEW_SECONDS, Fate
from tests.simulation.jobs import Runner, TaskBook
from tests.simulation.leases import Holder, Promises
from tests.simulation.ledger import Notes, make_ledger
from tests.simulation.machines import Processes
from tests.simulation.node import Node
from tests.simulation.outages import Outages
from tests.simulation.people import MIB, TOKEN, TOKEN_SECRET, Person, insist
from tests.simulation.promises import find_unmet
from tests.simulation.server import Server
from tests.simulation.snapshots import Album, SnapshotUser
from tests.simulation.tenants import BUDGET, Capacity, Tenant, move_in
from tests.simulation.truth import Witness
from tests.simulation.underlay import Underlay
from tests.simulation.virtual_loop import Clock, VirtualLoop
from weft.api.auth.authorise import Enrolment, enrolment_key
from weft.api.bootstrap import DEFAULT_CIDR, _make_default
from weft.api.node.join import make_node
from weft.contracts.store import Put
from weft.kinds.image import ImageStatus
from weft.kinds.node import NodeActions
from weft.kinds.token import TOKEN as TOKENS
from weft.kinds.token import TokenMarks, TokenSpec
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.identity import new_uid
from weft.trust.tokens import hash_secret

NODES = ("n1", "n2", "n3")
NAMES = tuple(f"v{n}" for n in range(7))
SETTLE_SECONDS = 900.0
MOST_SECONDS, MOST_SECONDS_PER_FAULT = (
    3600.0,
    20.0,
)  # of the fabric's time, for a whole run: several times what one takes


class Fabric:
    def __init__(
        self,
        loop: VirtualLoop,
        folder: Path,
        fate: Fate,
        store: str,
        processes: Processes,
        *,
        moves: bool,
        jobs: bool,
        converts: bool,
        leases: bool,
        tenants: bool = False,
        snapshots: bool = False,
        servers: int = 1,
    ) -> None:
        self.loop, self.folder, self.fate = loop, folder, fate
        self.broke: asyncio.Future[None] = loop.create_future()
        self.witness = Witness(self._note_break)
        self.processes = processes
        self.migrations = moves  # whether people move their VMs
        self.jobs = jobs  # whether people run jobs
        self.converts = converts  # whether people convert containers, and have nothing else
        self.book, self.sides = TaskBook(self), Sides(self)
        if converts:
            self.witness.on_begin, self.witness.on_commit = self.sides.see_machine, self.sides.see_commit
        self.leases, promises = leases, Promises(self)  # whether people have VMs with leases, and nothing else
        if leases:
            self.witness.on_begin, self.witness.on_commit = promises.see_begin, promises.see_commit
        self.shares, self.capacity = tenants, Capacity(self)  # whether there are tenants, and nobody else
        if tenants:
            self.witness.on_begin, self.witness.on_commit = self.capacity.see_begin, self.capacity.see_commit
        self.snapshots, self.album = snapshots, Album(self)  # whether people keep snapshots, and do nothing else
        if snapshots:
            self.witness.on_begin, self.witness.on_commit = self.album.see_begin, self.album.see_commit
        self.snapshot_users: list[SnapshotUser] = []
        self.tenants: list[Tenant] = []
        self.holders: list[Holder] = []
        self.converters: list[Converter] = []
        self.runners: list[Runner] = []
        self.underlay = Underlay(fate)
        self.clock = Clock(loop)
        self.witness.wall = self.clock.now
        self.needs: dict[str, Any] = {}  # of the controllers, beside what all have
        notes = Notes(self.clock, self.witness)
        self.cluster = Cluster(loop, fate, notes) if store == "etcd" else None  # of etcd, which several servers share
        self.servers = self._make_servers(servers, store, notes)
        self.server, self.ledger = self.servers[0], self.servers[0].ledger
        self.doorways = [server.doorway for server in self.servers]
        self.register, self.clerks = Register(self), list[Clerk]()
        if self.cluster is not None:
            self.outages, see = Outages(self, self.cluster), self.witness.on_commit

            def see_commit(was: Envelope | None, now: Envelope | None) -> None:
                see(was, now)
                self.register.see_commit(was, now)

            self.witness.on_commit = see_commit
        self.lines: dict[str, Line] = {}
        self.nodes: list[Node] = []
        self.people: list[Person] = []
        self.wishes: Counter[str] = Counter()
        self.cordoned: set[str] = set()
        self.restores = 0
        self.removals, self.removing = 0, False
        self.dark: set[str] = set()  # machines that are off until their node was removed
        self.forgotten_volumes: set[str] = set()  # uids of volumes that an older store didn't know
        self.lives: list[asyncio.Task[None]] = []
        self.reviving: list[asyncio.Task[None]] = []

    def _make_servers(self, count: int, store: str, notes: Notes) -> list[Server]:
        if self.cluster is None:
            assert count == 1
            return [Server(self, "s1", make_ledger(store, self.folder, self.clock, notes), self.clock)]
        servers = []
        for name in (f"s{number}" for number in range(1, count + 1)):
            clock = Clock(self.loop)
            clock.jump_seconds = self.fate.draw.uniform(-SKEW_SECONDS, SKEW_SECONDS)
            servers.append(Server(self, name, EtcdLedger(self.cluster, name, clock), clock))
        return servers

    @property
    def broken(self) -> bool:
        return bool(self.witness.violations)

    async def run(self) -> None:
        """Live through all misfortunes, and then become what people wished. It ends at the first broken promise: what runs
        on after it means nothing. It ends in any case: one that goes on for too long, or does too much, has not settled."""
        most = MOST_SECONDS + MOST_SECONDS_PER_FAULT * self.fate.most
        life = self.loop.create_task(self._live(), name="the misfortunes")
        ends = (life, self.broke, self.loop.worn_out)
        await asyncio.wait(ends, timeout=most, return_when=asyncio.FIRST_COMPLETED)
        if life.done():
            life.result()
        elif not self.broken:
            spent = f"{virtual_loop.MOST_STEPS} steps" if self.loop.worn_out.done() else f"{most:g} s"
            names = [task.get_name() for task in (*self.lives, *self.reviving, life) if not task.done()]
            met = f"{self.fate.met} of {self.fate.most} faults met"
            self.witness.note(
                f"not settled after {spent}, {met}: it waits for {names[0]}; {'; '.join(find_unmet(self))}"
            )

    async def _live(self) -> None:
        await self.set_up()
        self.lives = [
            self.loop.create_task(p.live(), name=f"the wishes of {p.name}")
            for p in (
                *(*self.people, *self.runners, *self.converters, *self.holders, *self.tenants),
                *(*self.snapshot_users, *self.clerks),
            )
        ]
        await asyncio.sleep(3.0)
        self.fate.on = True
        await self.befall()
        self.heal()
        await asyncio.gather(*self.lives)
        await asyncio.gather(*self.reviving)
        self.heal()
        ends_at = self.clock.elapsed() + SETTLE_SECONDS
        while (unmet := find_unmet(self)) and self.clock.elapsed() < ends_at:
            await asyncio.sleep(5.0)
        self.witness.violations += unmet

    def _note_break(self) -> None:
        if not self.broke.done():
            self.broke.set_result(None)

    def note_end(self, task: asyncio.Task[Any]) -> None:
        """A part that ends by itself has failed."""
        if not task.cancelled() and task.exception() is not None:
            self.witness.note(f"a part died: {task.exception()!r}")

    async def set_up(self) -> None:
        (self.folder / "images").mkdir()
        (self.folder / "images" / DIGEST).write_bytes(BUNDLE)
        self.server.start_api()
        while self.server.doorway.app is None:
            await asyncio.sleep(0.1)
        part = self.server.doorway.part
        assert part is not None
        await part.spawn(self._fill())
        for server in self.servers:
            server.start()
        for node in self.nodes:
            node.start()

    async def _fill(self) -> None:
        await _make_default(self.server.api, DEFAULT_CIDR)
        for name in NODES:
            await self._enrol(name)
        role = "fabric-admin" if self.shares else "admin"
        marks = TokenMarks(sha256=hash_secret(TOKEN_SECRET))
        await self._put(TOKENS.make("sim", TokenSpec(use="access", role=role, subject="someone"), 0.0, marks=marks))
        status = ImageStatus(phase="Available", sha256=DIGEST, size=len(BUNDLE), virtual_size=64 * MIB)
        await self._put(_envelope("image", "tiny", "default", {"url": "file:///none"}, status))
        await self._put(_envelope("network", "back", "default", {"cidr": "10.77.0.0/28"}))
        if self.converts:
            made_of = ImageStatus(
                phase="Available", sha256=DIGEST, size=len(BUNDLE), virtual_size=64 * MIB, digest=WEB_DIGEST
            )
            await self._put(_envelope("image", "web", "default", {"url": f"oci://{WEB_IMAGE}"}, made_of))
            self.converters = [Converter(self, name, n) for n, name in enumerate(("sea", "sky", "sun"))]
        self.holders = [Holder(self, name, self.fate.seed) for name in NAMES] if self.leases else []
        if self.shares:
            await self._put(_envelope("project", "lab", None, {}))
            await self._put(_envelope("quota", "project", "default", {"per_user": {"instances": 14}}))
            await self._put(_envelope("disruptionbudget", "guarded", "default", BUDGET))
            self.tenants = move_in(self, self.fate.seed)
        self.people = (
            []
            if self.converts or self.leases or self.shares or self.snapshots
            else [Person(self, name, self.fate.seed) for name in NAMES]
        )
        self.snapshot_users = (
            [SnapshotUser(self, name, self.fate.seed) for name in ("ada", "bob", "cyd")] if self.snapshots else []
        )
        self.runners = [Runner(self, name, self.fate.seed) for name in ("sums", "thumbs")] if self.jobs else []
        if self.cluster is not None:
            await self._put(_envelope("project", SHOP, None, {}))
            await self._put(_envelope("quota", "project", SHOP, {"disk": LIMITS[0] * GIB}))
            for name in TALLIES:
                tally = _envelope("disruptionbudget", name, SHOP, BUDGET)
                tally.labels = {"n": "0", "by": name}
                await self._put(tally)
            self.register.made.clear()
            self.clerks = [Clerk(self, name, self.fate.seed) for name in ("kim", "lee", "max")]
        await self.ledger.back_up()

    async def _enrol(self, name: str) -> Node:
        node = Node(self, name, len(self.nodes) + 1)
        self.nodes.append(node)
        self.witness.node_uids[name] = node.uid
        await self._put(make_node(self.server.api, name, node.uid))
        enrolment = msgspec.json.encode(Enrolment(name=name))
        await self.ledger.commit_as("setup", [Put(enrolment_key(node.uid), enrolment)])
        return node

    async def _put(self, envelope: Envelope) -> None:
        await self.ledger.commit_as("setup", [Put(envelope.key, encode_envelope(envelope))])

    # Misfortunes.

    async def befall(self) -> None:
        """One misfortune after the other, until all faults are spent."""
        fate = self.fate
        while not fate.spent:
            await asyncio.sleep(fate.draw.random() * 1.4)
            await self.loop.pass_steps(fate.draw.randrange(12))
            name = fate.draw.choices(list(fate.weather), list(fate.weather.values()))[0]
            if self._befall(name):
                fate.note(name)
            if fate.draw.random() < (LOST_OFTEN if self.leases or self.shares else 1 / LOST_EVERY):
                await self._lose_a_node()
            backs_up = fate.draw.random() < 1 / BACKUP_EVERY
            if backs_up and self.server.doorway.up and self.server.doorway.part is not None:
                self.server.doorway.part.spawn(self.ledger.back_up())

    async def _lose_a_node(self) -> None:
        """One node is cut off for so long that it counts as lost, while all else is well."""
        name = self.fate.draw.choice(self.nodes).name
        self.fate.note("node lost")
        self.fate.on = False
        self._cut_off(name)
        await asyncio.sleep(self.fate.draw.uniform(40.0, 80.0))
        self.fate.cut_off.discard(name)
        self.fate.on = True

    def _cut_off(self, name: str) -> None:
        self.fate.cut_off.add(name)
        self.underlay.cut(name)

    def _befall(self, name: str) -> bool:
        draw = self.fate.draw
        node = draw.choice(self.nodes)
        pause = draw.random() * draw.choice((0.2, 2.0, 5.0))
        server = self.server if self.cluster is None else draw.choice(self.servers)
        if name == "API server killed" and server.doorway.up:
            server.kill_api()
            self.later(pause, server.start_api)
        elif name == "controllers killed" and server.controllers is not None and server.controllers.alive:
            server.kill_controllers()
            self.later(pause, server.start_controllers)
        elif name == "agent killed" and node.up:
            node.kill()
            self.later(pause, node.start)
        elif name == "node cut off" and node.name not in self.fate.cut_off:
            self._cut_off(node.name)
            self.later(draw.choice((3.0, 15.0, 60.0)), lambda: self.fate.cut_off.discard(node.name))
        elif name == "node loses power":
            node.lose_power()
            self.later(pause, node.start)
        elif name == "guest dies" and (alive := self._alive_on(node)):
            node.kill_guest(draw.choice(alive))
        elif name == "clock jumps":
            clocks = [] if self.cluster is not None else [self.clock]  # which is nobody's of several
            draw.choice([*clocks, *(n.clock for n in self.nodes)]).jump_seconds = draw.uniform(-1e5, 1e5)
        elif name == "disk full begins" and not self.fate.disk_full:
            self.fate.disk_full = not self.ledger.fill_disk(True)
            self.later(pause, self._make_room)
        elif name == "node cordoned" and not self.cordoned:
            self.cordoned.add(node.name)
            self._revive(self._cordon(node.name), f"the cordon of {node.name}")
        elif name == "node removed" and not self.removing:
            self.removals, self.removing = self.removals + 1, True
            self.dark.add(node.name)
            self.witness.dark.add(node.uid)
            node.lose_power()
            self._revive(self._remove(node), f"the removal of {node.name}")
        elif name == "older store restored" and self.server.doorway.up and not self.removing:
            return self._restore(pause)
        else:
            return self.cluster is not None and self.outages.befall(name)
        return True

    def _restore(self, pause: float) -> bool:
        """The server is stopped, an older store put in place, the server started; people find what they had then."""
        self.server.kill_api()
        if self.server.controllers is not None and self.server.controllers.alive:
            self.server.kill_controllers()
        volumes = {volume.uid for volume in self.ledger.notes.objects("volume")}
        restored = self.ledger.restore()
        self.later(pause, self.server.start_api)
        self.later(pause, self.server.start_controllers)
        if restored:
            self.restores += 1
            self._remember(volumes)
        return restored

    def _remember(self, volumes: set[str]) -> None:
        """The wishes are those that the restored store knows; nobody is left to undo a cordon in it."""
        notes = self.ledger.notes
        vms = {vm.name: vm for vm in notes.objects("vm") if vm.deleting_since is None}
        kept = {volume.name: volume for volume in notes.objects("volume")}
        self.forgotten_volumes |= volumes - {volume.uid for volume in kept.values()}
        for person in self.people:
            vm, volume = vms.get(person.name), kept.get(person.volume)
            parts = msgspec.json.decode(msgspec.json.encode(vm)) if vm is not None else {}
            person.wanted = {part: parts.get(part) for part in ("uid", "spec", "actions")} if parts else None
            person.has_volume = volume is not None and volume.deleting_since is None
        for node in notes.objects("node"):
            if decode_part(node.actions, NodeActions).cordoned and node.name not in self.cordoned:
                self._revive(self._uncordon(node.name), f"the end of {node.name}'s cordon")

    def _alive_on(self, node: Node) -> list[str]:
        return [guest for name, guest in sorted(self.witness.alive) if name == node.name]

    def _make_room(self) -> None:
        self.fate.disk_full = False
        self.ledger.fill_disk(False)

    def later(self, seconds: float, act: Callable[[], Any]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            act()

        self._revive(wait(), "a revival")

    def _revive(self, work: Coroutine[Any, Any, None], name: str) -> None:
        # Whoever dies of it, as a process does at its own commit, must not take its revival along.
        self.reviving.append(self.loop.create_task(work, name=name, context=contextvars.Context()))

    async def _cordon(self, node: str) -> None:
        await self._operate(f"/v1/nodes/{node}:cordon")
        await asyncio.sleep(10.0)
        await self._uncordon(node)

    async def _uncordon(self, node: str) -> None:
        await self._operate(f"/v1/nodes/{node}:uncordon")
        self.cordoned.discard(node)

    async def _remove(self, node: Node) -> None:
        """A machine is off for good, an operator says so; but then it comes back."""
        while (answer := await self._ask("DELETE", f"/v1/nodes/{node.name}?force=1")).status == 409:
            await asyncio.sleep(5.0)  # it isn't lost yet
        if answer.status >= 300 and answer.status != 404:  # the first answer may have been lost
            self.witness.note(f"node {node.name} could not be removed: {answer.json()}")
        self._see_stopped()
        await asyncio.sleep(self.fate.draw.uniform(0.0, 20.0))
        self.dark.discard(node.name)
        self.witness.dark.discard(node.uid)
        self.fate.cut_off.discard(node.name)
        node.start()
        # An older store would know nothing of this machine, or of what was placed elsewhere since.
        while not any(item.uid == node.uid for item in self.ledger.notes.objects("node")):
            await asyncio.sleep(0.5)
        while not self.server.doorway.up or self.server.doorway.app is None or self.server.doorway.part is None:
            await asyncio.sleep(0.5)
        self.server.doorway.part.spawn(self.ledger.back_up())
        await asyncio.sleep(2.0)
        self.removing = False

    def _see_stopped(self) -> None:
        """What had ended on a node that was given up runs no second time elsewhere: people see that, and start it or don't."""
        stopped = {vm.uid for vm in self.ledger.notes.objects("vm") if msgspec.json.decode(vm.spec)["run"] == "stop"}
        for person in self.people:
            if person.wanted is not None and person.wanted["uid"] in stopped:
                person.wanted["spec"]["run"] = "stop"

    async def _operate(self, path: str) -> None:
        await self._ask("POST", path)

    async def _ask(self, method: str, path: str) -> Any:
        line = Line(self.doorways, self.fate, "operator", token=TOKEN)
        return await insist(line, method, path, {} if method == "POST" else None, lambda: self.restores)

    def heal(self) -> None:
        """No more faults, and everything is up."""
        self.fate.on = False
        self._make_room()
        self.fate.cut_off.clear()
        if self.cluster is not None:
            self.outages.end()
        self.server.start()
        for node in self.nodes:
            node.start()


def _envelope(kind: str, name: str, project: str | None, spec: Any, status: msgspec.Struct | None = None) -> Envelope:
    envelope = Envelope(
        kind=kind, name=name, uid=new_uid(), project=project, spec=msgspec.Raw(msgspec.json.encode(spec))
    )
    if status is not None:
        envelope.status = msgspec.Raw(msgspec.json.encode(status))
    return envelope
