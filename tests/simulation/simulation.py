"""The whole control plane in one process: the real doors, deciders and agents over drivers that only pretend, in virtual
time, with every misfortune drawn from a seed. ``run_simulation(seed, faults)`` ends when all is as people wished.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec

from tests.scenario.agent_lab import BUNDLE, DIGEST
from tests.simulation.lines import Doorway, Line, NodeHttp, Socket
from tests.simulation.truth import Ledger, WatchedDriver, Witness, find_vm
from tests.simulation.virtual_loop import Clock, Event, Part, Thread, VirtualLoop
from weft.agent import facts, feed
from weft.agent.agent import Agent
from weft.agent.server import RemoteServer
from weft.api.app import build_app
from weft.api.authorise import Enrolment, enrolment_key
from weft.api.bootstrap import _make_default
from weft.api.doors import Doors, Settings
from weft.api.join import make_node
from weft.client.api import Client
from weft.contracts.host import Capacity, Host
from weft.contracts.journal import Event as JournalEvent
from weft.contracts.store import Put
from weft.drivers.network.fake.driver import FakeNetwork, FakeWire
from weft.drivers.runtime.fake.driver import FakeOrders
from weft.drivers.volume.fake.driver import FakeShelf, FakeVolumes
from weft.kinds.allocation import AllocationReport, AllocationSpec
from weft.kinds.image import ImageStatus
from weft.kinds.token import TokenSpec
from weft.kinds.vm import VmSpec, VmStatus
from weft.launch import deciders
from weft.objects.envelope import Envelope, decode_part, encode_envelope
from weft.objects.errors import DriverFailed, Unavailable
from weft.objects.identity import new_uid
from weft.trust.tokens import hash_secret

GIB, MIB = 1024**3, 1024**2
NODES = ("n1", "n2", "n3")
NAMES = tuple(f"v{n}" for n in range(7))
TOKEN_SECRET = "ab" * 32
TOKEN = f"weft_sim_{TOKEN_SECRET}"
SETTLE_SECONDS = 900.0
# The chance that a message, a commit or a driver's step meets a fault while faults happen.
CHANCES = {
    "request lost": 0.03,
    "answer lost": 0.03,
    "request repeated": 0.05,
    "stream broken": 0.01,
    "watch broken": 0.004,
    "commit late": 0.01,
    "commit's answer lost": 0.01,
    "driver fails": 0.04,
    "driver is slow": 0.05,
}
# What befalls the fabric as a whole, and how often compared to the others.
MISFORTUNES = {
    "doors killed": 3,
    "deciders killed": 4,
    "agent killed": 8,
    "node cut off": 4,
    "guest dies": 4,
    "clock jumps": 2,
    "disk full begins": 1,
    "node cordoned": 2,
}
_writer: contextvars.ContextVar[str] = contextvars.ContextVar("writer", default="doors")


class Trace(msgspec.Struct):
    """What a run did. ``violations`` is empty when the fabric kept its promises; ``digest`` is the same for the same run."""

    seed: int
    digest: str
    faults: dict[str, int]
    wishes: dict[str, int]
    commits: int
    seconds: float  # of the fabric's time
    violations: list[str]

    @property
    def fault_count(self) -> int:
        return sum(self.faults.values())


class Fate:
    """Draws all that goes wrong."""

    def __init__(self, seed: int, most: int) -> None:
        self.draw = random.Random(f"fate {seed}")
        self.most = most
        self.count: Counter[str] = Counter()
        self.on = False
        self.disk_full = False
        self.cut_off: set[str] = set()

    @property
    def spent(self) -> bool:
        return self.count.total() >= self.most

    def hit(self, name: str) -> bool:
        if name == "disk full":
            if self.disk_full:
                self.count["write refused by a full disk"] += 1
            return self.disk_full
        if not self.on or self.spent or self.draw.random() >= CHANCES[name]:
            return False
        self.count[name] += 1
        return True

    def delay(self, seconds: float) -> float:
        """Some time around ``seconds``, seldom much more: so messages overtake each other."""
        much = self.on and self.draw.random() < 0.02
        return seconds * self.draw.random() * (20.0 if much else 2.0)

    def is_cut_off(self, who: str) -> bool:
        return who in self.cut_off


class Journal:
    def append(self, event: JournalEvent) -> None: ...


class Node:
    """One machine: what outlives its agent, and the agent that runs now."""

    def __init__(self, fabric: Fabric, name: str, number: int) -> None:
        self.fabric, self.name = fabric, name
        self.uid = new_uid()
        self.clock = Clock(fabric.loop)
        folder = fabric.folder / name
        folder.mkdir()
        capacity = Capacity(6.0, 3 * GIB, 100 * GIB)
        address = f"10.99.0.{number}"
        self.host = Host(name, self.uid, str(folder), str(folder), "wsim", address, "lo", "weft/s", capacity)
        self.wire, self.shelf, self.orders = FakeWire(), FakeShelf(), FakeOrders(boot_seconds=0.5, shutdown_seconds=0.3)
        self.part: Part | None = None
        self.runtime: WatchedDriver | None = None

    async def live(self) -> None:
        """Be the agent's process, and whatever starts it again when it ends."""
        fabric = self.fabric
        line = Line(fabric.doorway, fabric.fate, self.name, node_uid=self.uid)
        fabric.lines[self.name] = line
        client = Client.__new__(Client)
        client.project, client._clock = "default", self.clock
        client.http = NodeHttp(line)  # type: ignore[assignment]
        server = ImageServer(client)
        self.runtime = WatchedDriver(self.host, self.clock, self.orders, fabric.witness)
        network = FakeNetwork(self.host, self.clock, self.wire)
        volumes = FakeVolumes(self.host, self.clock, self.shelf)
        for driver in (self.runtime, network, volumes):
            self.trouble(driver)
        agent = Agent(self.host, server, self.runtime, network, volumes, self.clock)
        await agent.start()
        await agent.run()

    def trouble(self, driver: Any) -> None:
        """Let the driver's steps be slow and fail now and then."""
        fate, name = self.fabric.fate, "_obey" if isinstance(driver, WatchedDriver) else "_meet"
        meet = getattr(driver, name)

        async def met(verb: str, *more: str) -> None:
            await asyncio.sleep(fate.delay(0.01))
            if fate.hit("driver is slow"):
                await asyncio.sleep(fate.delay(5.0))
            await meet(verb, *more)
            if verb not in ("inspect", "recover", "probe", "list", "close") and fate.hit("driver fails"):
                raise DriverFailed(f"{verb} did not work", details={"step": verb})

        setattr(driver, name, met)

    def start(self) -> None:
        if self.part is not None and self.part.alive:
            return  # its lock lets no second agent run
        self.part = Part(self.fabric.loop, self.name)
        self.part.spawn(self.live()).add_done_callback(self.fabric.note_end)

    def kill(self) -> None:
        if self.part is not None:
            for stream in self.fabric.lines[self.name].streams if self.name in self.fabric.lines else ():
                stream.close()
            self.part.kill()

    def guests(self) -> dict[str, str]:
        """Allocation uid → state of each guest that the machine has."""
        assert self.runtime is not None
        found = {}
        for path in sorted(Path(self.host.state_dir, "fake-guests").glob("*.json")):
            guest = self.runtime._read(path.stem)
            if guest is not None:
                found[guest.plan.uid] = guest.state
        return found


class ImageServer(RemoteServer):
    def fetch_blob(self, sha256: str, out: Any, on_progress: Callable[[int], None]) -> None:
        out.write(BUNDLE)


class Fabric:
    """All parts, and the hand that starts and kills them."""

    def __init__(self, loop: VirtualLoop, folder: Path, seed: int, faults: int) -> None:
        self.loop, self.folder = loop, folder
        self.fate = Fate(seed, faults)
        self.witness = Witness()
        self.clock = Clock(loop)
        self.ledger = Ledger(self.clock, self.witness)
        self.doorway = Doorway()
        self.lines: dict[str, Line] = {}
        self.deciders: Part | None = None
        self.nodes: list[Node] = []
        self.wishes: Counter[str] = Counter()
        self.wanted: dict[str, dict[str, Any] | None] = dict.fromkeys(NAMES)  # name → the wish; None: absent
        self.cordoned: set[str] = set()
        self.terms = 0
        self.reviving: list[asyncio.Task[None]] = []
        self.failures: list[str] = []

    # The server.

    def start_doors(self) -> None:
        if self.doorway.up:
            return
        part = Part(self.loop, "doors")
        store = Socket(self.ledger, self.fate, self.doorway, local=True, writer=lambda: "doors")
        settings = Settings(self.folder / "images", b"k" * 32, ("127.0.0.1:9",), "weft")
        doors = part.context.run(
            lambda: Doors(store, Journal(), self.clock, None, settings)  # type: ignore[arg-type]
        )
        self.doorway.part, self.doorway.app = part, build_app(doors)

        async def start() -> None:
            doors.start()

        part.spawn(start())
        self.doors = doors

    def kill_doors(self) -> None:
        part = self.doorway.part
        assert part is not None
        part.kill()
        self.ledger.forget(part)
        self.ledger.end_process()

    def start_deciders(self) -> None:
        if self.deciders is not None and self.deciders.alive:
            return
        self.terms += 1
        self.deciders = part = Part(self.loop, "deciders")
        store = Socket(self.ledger, self.fate, self.doorway, local=False, writer=_writer.get)
        work = deciders.decide(
            store, Journal(), self.clock,
            images=self.folder / "images", holder=f"deciders {self.terms}", strategy="least_loaded",
        )  # fmt: skip
        part.spawn(work).add_done_callback(self.note_end)

    def kill_deciders(self) -> None:
        assert self.deciders is not None
        self.deciders.kill()
        self.ledger.forget(self.deciders)

    def note_end(self, task: asyncio.Task[Any]) -> None:
        """A part that ends by itself has failed."""
        if not task.cancelled() and task.exception() is not None:
            self.failures.append(f"a part died: {task.exception()!r}")

    async def set_up(self) -> None:
        (self.folder / "images").mkdir()
        (self.folder / "images" / DIGEST).write_bytes(BUNDLE)
        self.start_doors()
        await _make_default(self.doors)
        for number, name in enumerate(NODES, 1):
            node = Node(self, name, number)
            self.nodes.append(node)
            await self._put(make_node(self.doors, name, node.uid))
            enrolment = msgspec.json.encode(Enrolment(name=name))
            await self.ledger.commit_as("setup", [Put(enrolment_key(node.uid), enrolment)])
        token = TokenSpec(use="access", role="admin", subject="someone", sha256=hash_secret(TOKEN_SECRET))
        await self._put(_envelope("token", "sim", None, token))
        status = ImageStatus(phase="Available", sha256=DIGEST, size=len(BUNDLE), virtual_size=64 * MIB)
        await self._put(_envelope("image", "tiny", "default", {"url": "file:///none"}, status))
        self.start_deciders()
        for node in self.nodes:
            node.start()

    async def _put(self, envelope: Envelope) -> None:
        await self.ledger.commit_as("setup", [Put(envelope.key, encode_envelope(envelope))])

    # Misfortunes.

    async def befall(self) -> None:
        """One misfortune after the other, until all faults are spent or something is wrong."""
        fate = self.fate
        names = list(MISFORTUNES)
        while not fate.spent and not self.witness.violations and not self.failures:
            await asyncio.sleep(fate.draw.random() * 1.4)
            await self.loop.pass_steps(fate.draw.randrange(12))
            name = fate.draw.choices(names, list(MISFORTUNES.values()))[0]
            if self._befall(name):
                fate.count[name] += 1
            if fate.draw.random() < 1 / 30:
                await self._lose_a_node()

    async def _lose_a_node(self) -> None:
        """One node is cut off for so long that it counts as lost, while all else is well."""
        name = self.fate.draw.choice(self.nodes).name
        self.fate.count["node lost"] += 1
        self.fate.on = False
        self.fate.cut_off.add(name)
        await asyncio.sleep(self.fate.draw.uniform(40.0, 80.0))
        self.fate.cut_off.discard(name)
        self.fate.on = True

    def _befall(self, name: str) -> bool:
        draw = self.fate.draw
        node = draw.choice(self.nodes)
        pause = draw.random() * draw.choice((0.2, 2.0, 5.0))
        if name == "doors killed" and self.doorway.up:
            self.kill_doors()
            self._later(pause, self.start_doors)
        elif name == "deciders killed" and self.deciders is not None and self.deciders.alive:
            self.kill_deciders()
            self._later(pause, self.start_deciders)
        elif name == "agent killed" and node.part is not None and node.part.alive:
            node.kill()
            self._later(pause, node.start)
        elif name == "node cut off" and node.name not in self.fate.cut_off:
            self.fate.cut_off.add(node.name)
            self._later(draw.choice((3.0, 15.0, 60.0)), lambda: self.fate.cut_off.discard(node.name))
        elif name == "guest dies" and node.runtime is not None and (alive := self._alive_on(node)):
            node.runtime.kill(draw.choice(alive))
        elif name == "clock jumps":
            draw.choice([self.clock, *(n.clock for n in self.nodes)]).jump_seconds = draw.uniform(-1e5, 1e5)
        elif name == "disk full begins" and not self.fate.disk_full:
            self.fate.disk_full = True
            self._later(pause, self._make_room)
        elif name == "node cordoned" and not self.cordoned:
            self.cordoned.add(node.name)
            self.reviving.append(self.loop.create_task(self._cordon(node.name)))
        else:
            return False
        return True

    def _alive_on(self, node: Node) -> list[str]:
        return [guest for name, guest in sorted(self.witness.alive) if name == node.name]

    def _make_room(self) -> None:
        self.fate.disk_full = False

    def _later(self, seconds: float, act: Callable[[], Any]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            act()

        self.reviving.append(self.loop.create_task(wait()))

    async def _cordon(self, node: str) -> None:
        line = Line(self.doorway, self.fate, "operator", token=TOKEN)
        await _insist(line, "POST", f"/v1/nodes/{node}:cordon", {})
        await asyncio.sleep(10.0)
        await _insist(line, "POST", f"/v1/nodes/{node}:uncordon", {})
        self.cordoned.discard(node)

    # People.

    async def wish(self, name: str, draw: random.Random) -> None:
        """Someone who has one VM, and many wishes about it; asks until there is an answer."""
        line = Line(self.doorway, self.fate, f"person of {name}", token=TOKEN)
        while not self.fate.spent and not self.witness.violations and not self.failures:
            await asyncio.sleep(draw.random() * 8.0)
            wanted = self.wanted[name]
            if wanted is None:
                await self._create(line, name, draw)
            elif draw.random() < 0.15:
                await self._ask(line, name, "delete")
            else:
                verb = draw.choice(("stop", "start", "suspend", "resume", "restart", "hold", "release"))
                await self._ask(line, name, verb)

    async def _create(self, line: Line, name: str, draw: random.Random) -> None:
        spec = {
            "image": "tiny", "cpu": draw.choice((0.5, 1, 2)), "memory": draw.choice((256, 512, 768)) * MIB,
            "hold": draw.random() < 0.2, "grace": 1.0, "restart": "always",
        }  # fmt: skip
        body = {"kind": "vm", "name": name, "spec": spec}
        answer = await _insist(line, "POST", "/v1/projects/default/vms", body)
        if answer.status < 300:
            self.wishes["create"] += 1
            self.wanted[name] = answer.json()

    async def _ask(self, line: Line, name: str, verb: str) -> None:
        path = f"/v1/projects/default/vms/{name}"
        if verb == "delete":
            answer = await _insist(line, "DELETE", path, None)
            if answer.status < 300 or answer.status == 404:
                self.wishes[verb] += 1
                self.wanted[name] = None
            return
        answer = await _insist(line, "POST", f"{path}:{verb}", {})
        if answer.status == 404:
            self.witness.violations.append(f"vm {name} was lost: {verb} finds it no more")
        elif answer.status < 300:
            self.wishes[verb] += 1
            self.wanted[name] = answer.json()

    # The end.

    def heal(self) -> None:
        """No more faults, and everything is up."""
        self.fate.on = False
        self.fate.disk_full = False
        self.fate.cut_off.clear()
        self.start_doors()
        self.start_deciders()
        for node in self.nodes:
            node.start()

    def unmet(self) -> list[str]:
        """What is not as people wished."""
        found = []
        guests = {uid: state for node in self.nodes for uid, state in node.guests().items()}
        for name in NAMES:
            found += self._unmet(name, guests)
        known = {allocation.uid for allocation in self.ledger.objects("allocation")}
        found += [
            f"guest of allocation {uid} is an orphan ({state})" for uid, state in guests.items() if uid not in known
        ]
        for node in self.nodes:
            kept = {f"{uid}" for uid in known}
            copies = len(list(Path(node.host.state_dir, "allocations").glob("*.json")))
            here = sum(uid in kept for uid in self._placed_on(node))
            if copies > here:
                found.append(f"node {node.name} keeps {copies} allocations, it has {here}")
            if len(node.shelf.volumes) > here:
                found.append(f"node {node.name} keeps {len(node.shelf.volumes)} disks for {here} allocations")
        return found

    def _placed_on(self, node: Node) -> list[str]:
        specs = ((a.uid, decode_part(a.spec, AllocationSpec)) for a in self.ledger.objects("allocation"))
        return [uid for uid, spec in specs if spec.node_uid == node.uid]

    def _unmet(self, name: str, guests: dict[str, str]) -> list[str]:
        vm, wanted = find_vm(self.ledger, name), self.wanted[name]
        if wanted is None:
            return [] if vm is None else [f"vm {name} is still there"]
        if vm is None or vm.uid != wanted["uid"]:
            return [f"vm {name} is lost"]
        if vm.deleting_since is not None:
            return [f"vm {name} is being deleted; nobody asked for it"]
        spec, status = decode_part(vm.spec, VmSpec), decode_part(vm.status, VmStatus)
        asked = {key: wanted["spec"].get(key) for key in ("run", "hold", "boots")}
        if asked != {"run": spec.run, "hold": spec.hold, "boots": spec.boots}:
            return [f"vm {name}: {asked} was asked for, the store has {spec.run} {spec.hold} {spec.boots}"]
        places = [a for a in self.ledger.objects("allocation") if self.witness.workload_of[a.uid] == vm.uid]
        if not places:
            fine = spec.hold or spec.run != "run"
            return [] if fine and status.phase in ("Hold", "Pending") else [f"vm {name} has no place ({status.phase})"]
        report = decode_part(places[0].report, AllocationReport)
        guest = guests.get(places[0].uid, "absent")
        ok = {
            "run": status.phase == "Running" and guest == "running" and report.boots >= spec.boots,
            "stop": status.phase == "Stopped" and guest in ("stopped", "absent", "failed"),
            "suspend": status.phase in ("Suspended", "Stopped")
            and guest in ("suspended", "stopped", "absent", "failed"),
        }[spec.run]
        return [] if ok else [f"vm {name}: {spec.run} wished, {status.phase}, guest {guest}, {report.reason}"]


async def _insist(line: Line, method: str, path: str, body: Any) -> Any:
    """Ask until there is an answer that is one."""
    headers = {"idempotency-key": new_uid()} if method == "POST" else {}
    while True:
        try:
            answer = await line.exchange(method, path, b"" if body is None else msgspec.json.encode(body), headers)
            if answer.status < 500:
                return answer
        except Unavailable:
            pass
        await asyncio.sleep(0.5)


def _envelope(kind: str, name: str, project: str | None, spec: Any, status: msgspec.Struct | None = None) -> Envelope:
    envelope = Envelope(
        kind=kind, name=name, uid=new_uid(), project=project, spec=msgspec.Raw(msgspec.json.encode(spec))
    )
    if status is not None:
        envelope.status = msgspec.Raw(msgspec.json.encode(status))
    return envelope


async def _run(fabric: Fabric, seed: int) -> None:
    await fabric.set_up()
    people = [asyncio.ensure_future(fabric.wish(name, random.Random(f"wishes {seed} {name}"))) for name in NAMES]
    await asyncio.sleep(3.0)
    fabric.fate.on = True
    await fabric.befall()
    fabric.heal()
    await asyncio.gather(*people)
    await asyncio.gather(*fabric.reviving)
    fabric.heal()
    ends_at = fabric.clock.elapsed() + SETTLE_SECONDS
    while (unmet := fabric.unmet()) and fabric.clock.elapsed() < ends_at:
        if fabric.witness.violations or fabric.failures:
            break
        await asyncio.sleep(5.0)
    fabric.witness.violations += fabric.failures
    if not fabric.witness.violations:
        fabric.witness.violations += unmet


def run_simulation(seed: int, faults: int) -> Trace:
    """One run with about ``faults`` faults. The same seed gives the same run, wherever PYTHONHASHSEED is the same."""
    shelf = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shelf) as folder, _one_source_of_chance(seed):
        loop = VirtualLoop(seed)
        asyncio.set_event_loop(None)
        fabric: Fabric | None = None
        try:
            fabric = Fabric(loop, Path(folder), seed, faults)
            loop.run_until_complete(_run(fabric, seed))
        finally:
            loop.end()
        digest = hashlib.sha256(fabric.ledger.trace.digest())
        digest.update(repr((sorted(fabric.fate.count.items()), loop.time())).encode())
        return Trace(
            seed=seed,
            digest=digest.hexdigest(),
            faults=dict(fabric.fate.count),
            wishes=dict(fabric.wishes),
            commits=fabric.ledger._revision,
            seconds=loop.time() - 1000.0,
            violations=fabric.witness.violations,
        )


@contextlib.contextmanager
def _one_source_of_chance(seed: int) -> Iterator[None]:
    """Make uids, secrets and threads those of the simulation; and let controllers sign what they commit."""
    chance = random.Random(f"bytes {seed}")

    async def run_controller(controller: Any, term: Any) -> None:
        _writer.set(controller.name)
        await real_run_controller(controller, term)

    def signed(cls: Any, name: str) -> Any:
        real = cls.run

        async def run(self: Any) -> None:
            _writer.set(name)
            await real(self)

        return mock.patch.object(cls, "run", run)

    real_run_controller = deciders.run_controller
    threads = mock.Mock(Thread=Thread, Event=Event)
    with (
        mock.patch("os.urandom", chance.randbytes),
        mock.patch("random._urandom", chance.randbytes),
        mock.patch.object(feed, "threading", threads),
        mock.patch.object(facts, "inspect_machine", lambda: facts.Machine("simulated", "0")),
        mock.patch.object(deciders, "run_controller", run_controller),
        signed(deciders.Scheduler, "scheduler"),
        signed(deciders.Images, "images"),
    ):
        yield
