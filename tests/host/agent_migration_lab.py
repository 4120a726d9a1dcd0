"""Two nodes whose agents are processes of their own, for tests of guests that move between them: the test is the server."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
from guest_lab import MIB, ROOT, GuestLab
from tests.node_key import make_node_key

from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Host
from weft.images.tiny.recipe import digest_recipe
from weft.kinds.allocation import (
    AllocatedImage,
    AllocatedVolume,
    AllocationReport,
    AllocationSpec,
    Resources,
    allocation_name,
    come_back,
)
from weft.kinds.fields.allocated_migration import AllocatedMigration, MigrationReport
from weft.objects.envelope import Envelope, decode_part
from weft.objects.identity import Ref, short_id
from weft.trust.ca import Authority, read_csr

WAIT_SECONDS = 90.0
KEY = "the-move"
VICTIMS = ("source agent", "target agent", "target machine", "source machine")


class Node:
    """One node; ``start`` and ``kill`` are its agent's, the lab's guests stay."""

    def __init__(self, lab: GuestLab, name: str, address: str, authority: Authority) -> None:
        self.lab, self.name = lab, name
        self.host: Host = msgspec.structs.replace(lab.host, node=name, underlay_address=address)
        self.uid = self.host.node_uid
        self.folder, state = lab.folder / "server", Path(self.host.state_dir)
        for folder in (self.folder / "wishes", self.folder / "reports", state):
            folder.mkdir(parents=True, exist_ok=True)
        certificate = authority.sign_node(read_csr(make_node_key(state / "node.key")), self.uid)
        (state / "node.crt").write_text(certificate)
        (state / "ca.crt").write_text(authority.ca)
        self.ca = authority.ca
        self._process: asyncio.subprocess.Process | None = None
        self.all = [self]
        self.space: list[str] = []  # words that run a command in the node's network namespace
        self.pool: Path | None = None  # what it offers as storage pool san

    async def start(self, death: str = "") -> None:
        """``death``: see migration_node."""
        words = (msgspec.json.encode(self.host).decode(), str(self.folder), str(find_bundle()), *filter(None, [death]))
        log = (self.folder / "log").open("ab")
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self.space,
            sys.executable,
            str(Path(__file__).with_name("migration_node.py")),
            *words,
            stdin=pipe,
            stdout=pipe,
            stderr=log,
            env={**os.environ, "POOL": str(self.pool or "")},
        )

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def await_death(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        async with asyncio.timeout(WAIT_SECONDS):
            assert await process.wait() == -signal.SIGKILL

    async def run(self, allocation: Envelope, *argv: str, stdin: bytes = b"") -> str:
        """What a command in the allocation's guest prints; tried until its agent answers."""
        return await self._ask({"guest": short_id(allocation.uid), "argv": argv, "stdin": stdin.hex()})

    async def watch(self, allocation: Envelope) -> None:
        """From now on somebody watches its workload's metrics, five times a second."""
        await self._ask({"watch": decode_part(allocation.spec, AllocationSpec).workload.uid})

    def read_asked(self) -> list[tuple[float, str]]:
        """What QEMUs here were asked, and when."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]

    async def _ask(self, asked: dict[str, Any]) -> str:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                assert self._process is not None and self._process.stdin and self._process.stdout
                self._process.stdin.write(msgspec.json.encode(asked) + b"\n")
                answer = msgspec.json.decode(await self._process.stdout.readline())
                if "error" not in answer:
                    assert answer["code"] == 0, answer
                    return str(answer["said"])
                await asyncio.sleep(0.1)

    def put(self, envelope: Envelope) -> None:
        path = self.folder / "wishes" / f"{envelope.uid}.json"
        path.with_suffix(".new").write_bytes(msgspec.json.encode(envelope))
        path.with_suffix(".new").rename(path)

    def delete(self, envelope: Envelope) -> None:
        (self.folder / "wishes" / f"{envelope.uid}.json").unlink()

    def report(self, allocation: Envelope) -> AllocationReport:
        path = self.folder / "reports" / f"{allocation.name}.json"
        return msgspec.json.decode(path.read_bytes(), type=AllocationReport) if path.exists() else AllocationReport()

    async def until(
        self, allocation: Envelope, holds: Callable[[AllocationReport], object], *, failing: bool = False
    ) -> AllocationReport:
        """Its report once that ``holds``; a move that failed ends the waiting unless that is waited for."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not holds(report := self.report(allocation)):
                    failed = report.migration is not None and report.migration.phase == "failed"
                    assert failing or not failed, report
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError("never; reported: " + "\n".join(node.log() for node in self.all)) from None
        return report

    async def until_phase(self, allocation: Envelope, *phases: str) -> MigrationReport:
        report = await self.until(
            allocation, lambda r: r.migration is not None and r.migration.phase in phases, failing="failed" in phases
        )
        assert report.migration is not None
        return report.migration

    def guests(self) -> list[int]:
        """The QEMU processes that run here."""
        return self.lab.processes()

    def kill_guest(self, allocation: Envelope) -> None:
        pids = self.lab.processes(f"/{short_id(allocation.uid)}/")
        assert pids, "it has no machine here"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """What this node has said, for who looks why a test failed."""
        reports = [path.read_text() for path in (self.folder / "reports").glob("*.json")]
        return "\n".join([self.name, *reports, (self.folder / "log").read_text()[-6000:]])


def find_bundle() -> Path:
    cache = Path(os.environ.get("WEFT_CACHE", ROOT / ".weft" / "cache"))
    return cache / "tests" / f"tiny-{digest_recipe()[:16]}.tar"


class Pair:
    """Two nodes of one cluster, or each of one of its own (``apart``)."""

    def __init__(self, here: GuestLab, there: GuestLab, *, apart: bool = False) -> None:
        self.apart = apart
        own = Authority(here.folder / "ca", SystemClock())
        other = Authority(there.folder / "ca", SystemClock()) if apart else own
        self.here, self.there = Node(here, "n1", "10.99.7.1", own), Node(there, "n2", "10.99.7.2", other)
        self.here.all = self.there.all = [self.here, self.there]
        self._incarnation = 0
        self._spaces: list[str] = []
        self._part()

    def allocate(self, node: Node, name: str = "web", **fields: Any) -> Envelope:
        """An allocation of VM ``name`` on ``node``, in the next incarnation."""
        self._incarnation += 1
        bundle = find_bundle()
        uid = str(uuid.uuid4())
        spec = AllocationSpec(
            **{
                "node": node.name,
                "node_uid": node.uid,
                "workload": Ref("vm", name, f"uid-of-{name}", "default"),
                "workload_generation": 1,
                "incarnation": self._incarnation,
                "resources": Resources(cpu=1, memory=128 * MIB, disk=1 << 30),
                "image": AllocatedImage(
                    name="tiny", uid="img", sha256=_digest(bundle), size=bundle.stat().st_size, url="file:///tiny"
                ),
                "volumes": [AllocatedVolume(name="data", uid=f"volume-of-{name}", size=64 * MIB)],
                "grace_seconds": 5.0,
                **fields,
            }
        )
        raw = msgspec.Raw(msgspec.json.encode(spec))
        name = allocation_name(node.uid, uid)
        return Envelope(kind="allocation", name=name, uid=uid, spec=raw, finalizers=["node"], generation=1)

    def plan(self, allocation: Envelope, here: Node, there: Node, **fields: Any) -> tuple[Envelope, Envelope]:
        """The two sides of a move of ``allocation``'s guest, as the scheduler writes them."""
        spec = decode_part(allocation.spec, AllocationSpec)
        same = {"restart_generation": spec.restart_generation, "volumes": spec.volumes, "pool": spec.pool}
        if self.apart:  # the other cluster has uids of its own
            name = spec.workload.name
            same["volumes"] = [msgspec.structs.replace(one, uid=f"{one.uid}-there") for one in spec.volumes]
            same["workload"] = Ref("vm", name, f"uid-of-{name}-there", "default")
        target = self.allocate(there, spec.workload.name, role="target", **same)
        migration = AllocatedMigration(
            key=KEY,
            peer=here.name,
            peer_uid=here.uid,
            peer_ca=here.ca if self.apart else "",
            peer_allocation=allocation.uid,
            **fields,
        )
        target = change(target, migration=migration)
        back = msgspec.structs.replace(
            migration,
            peer=there.name,
            peer_uid=there.uid,
            peer_ca=there.ca if self.apart else "",
            peer_allocation=target.uid,
        )
        return change(allocation, role="source", migration=back), target

    async def begin(self, allocation: Envelope, here: Node, there: Node, **fields: Any) -> tuple[Envelope, Envelope]:
        """A migration that is under way: source and target, with the listener's address known."""
        source, target = self.plan(allocation, here, there, **fields)
        here.put(source)
        there.put(target)
        return await self.introduce(source, target, here, there), target

    async def introduce(self, source: Envelope, target: Envelope, here: Node, there: Node) -> Envelope:
        """The source, told where the target waits."""
        waiting = await there.until_phase(target, "waiting", "takenOver")
        migration = decode_part(source.spec, AllocationSpec).migration
        assert migration is not None
        source = change(source, migration=msgspec.structs.replace(migration, address=waiting.address))
        here.put(source)
        return source

    async def finish(self, source: Envelope, target: Envelope, here: Node, there: Node) -> Envelope:
        """What the controller does once the target has taken over; the target's allocation, active."""
        await there.until_phase(target, "takenOver")
        target = change(target, role="active", migration=None)
        there.put(target)
        migration = decode_part(source.spec, AllocationSpec).migration
        assert migration is not None
        await self.remove(change(source, migration=msgspec.structs.replace(migration, taken_over=True)), here)
        await there.until(target, lambda r: r.state == "running" and r.migration is None)
        return target

    async def break_off(self, source: Envelope, target: Envelope, here: Node, there: Node) -> Envelope:
        """What it does with a move that has failed; the source's allocation, active."""
        there.put(change(target, desired="stop"))
        await there.until(target, lambda r: r.migration is not None and r.migration.phase == "abandoned", failing=True)
        await self.remove(target, there)
        spec = decode_part(source.spec, AllocationSpec)
        assert spec.migration is not None
        source = change(source, role="active", migration=None, back_from=come_back(spec, spec.migration.key).back_from)
        here.put(source)
        await here.until(source, lambda r: r.state == "running" and r.migration is None, failing=True)
        return source

    async def remove(self, allocation: Envelope, node: Node) -> None:
        """Delete it, and see that nothing of it is left."""
        node.put(msgspec.structs.replace(change(allocation, desired="stop"), deleting_since=1.0))
        await node.until(allocation, lambda r: r.state == "released", failing=True)
        assert node.lab.leftovers(short_id(allocation.uid)) == []
        node.delete(allocation)

    def _part(self) -> None:
        """Each agent is in a network namespace of its own, with one link between the two."""
        self._spaces = [f"wm{os.getpid() % 100_000}{side}" for side in "ab"]
        for node, space in zip((self.here, self.there), self._spaces, strict=True):
            run_ip("netns", "add", space)
            run_ip("-n", space, "link", "set", "lo", "up")
            node.space = ["ip", "netns", "exec", space]
        first, second = self._spaces
        run_ip("-n", first, "link", "add", "to-peer", "type", "veth", "peer", "name", "to-peer", "netns", second)
        for node, space in zip((self.here, self.there), self._spaces, strict=True):
            run_ip("-n", space, "address", "add", f"{node.host.underlay_address}/24", "dev", "to-peer")
        self.link("up")

    def link(self, state: str) -> None:
        for space in self._spaces:
            run_ip("-n", space, "link", "set", "to-peer", state)

    async def close(self) -> None:
        await self.here.kill()
        await self.there.kill()
        for space in self._spaces:
            run_ip("netns", "delete", space)


@contextlib.asynccontextmanager
async def linked(tiny: Path, pool: Path | None = None, *, apart: bool = False) -> AsyncIterator[Pair]:
    """Two nodes with a link between them that can be cut; both see ``pool``. ``apart``: each is of a cluster of its own."""
    labs = GuestLab(tiny), GuestLab(tiny)
    pair = Pair(*labs, apart=apart)
    pair.here.pool = pair.there.pool = pool
    try:
        await pair.here.start()
        await pair.there.start()
        yield pair
    finally:
        await pair.close()
        for lab in labs:
            lab.close()


class Verifying:
    """A guest that runs the verifier, which writes its memory and its disk, and looks whether all is there still."""

    async def run(self, *argv: str, stdin: bytes = b"") -> str:
        raise NotImplementedError

    async def begin_writing(self, verifier: bytes) -> None:
        await self.run("sh", "-c", "cat > /root/verifier; chmod +x /root/verifier; sync", stdin=verifier)
        await self.go_on_writing()

    async def go_on_writing(self) -> None:
        await self.run("sh", "-c", "/root/verifier 8 4000 /root/counter /dev/shm/verdict >/dev/null 2>&1 &")
        await self.look()

    async def look(self, *, after: int = -1) -> int:
        """The rounds that it has made, once more than ``after``: nothing was lost in any."""
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                said = await self.run("sh", "-c", "cat /dev/shm/verdict 2>/dev/null || true")
                if found := re.match(r"rounds=(\d+) bad=(\d+)", said):
                    assert found[2] == "0", said
                    if int(found[1]) > after:
                        return int(found[1])
                await asyncio.sleep(0.1)


class Moving(Verifying):
    """One that goes from node to node: its allocation, the node where it is, and the other one. ``shared``: its disks that both
    see."""

    shared: tuple[str, ...] = ()

    def __init__(self, pair: Pair, web: Envelope) -> None:
        self.pair, self.web, self.here, self.there = pair, web, pair.here, pair.there

    async def begin(self, **fields: Any) -> tuple[Envelope, Envelope]:
        return await self.pair.begin(self.web, self.here, self.there, shared=self.shared, **fields)

    async def finish(self, source: Envelope, target: Envelope) -> None:
        """It is at the other node now, and nothing of it at this one."""
        self.web = await self.pair.finish(source, target, self.here, self.there)
        self.here, self.there = self.there, self.here
        self.check_alone()

    async def break_off(self, source: Envelope, target: Envelope) -> None:
        """It is where it was, and nothing of it at the other node."""
        self.web = await self.pair.break_off(source, target, self.here, self.there)
        self.check_alone()

    def check_alone(self) -> None:
        """Nothing of it is where it isn't."""
        raise NotImplementedError

    async def run(self, *argv: str, stdin: bytes = b"") -> str:
        return await self.here.run(self.web, *argv, stdin=stdin)

    async def break_by_killing(self, victim: str) -> None:
        """Begin to move it, kill one of VICTIMS on the way: it goes on where it was."""
        here, there, seen = self.here, self.there, await self.look()
        source, target = await self.begin(bytes_per_second=4 << 20)
        await here.until(source, lambda r: r.migration is not None and r.migration.sent_bytes > 1 << 20)
        if victim.endswith("agent"):
            node = here if victim == "source agent" else there
            await node.kill()
            await node.start()
        else:
            (there.kill_guest(target) if victim == "target machine" else here.kill_guest(source))
        await here.until_phase(source, "failed")
        if victim == "source machine":
            assert here.guests() == [], "nothing starts under either incarnation while it isn't known who has it"
        await self.break_off(source, target)
        if victim == "source machine":
            await self.go_on_writing()
        else:
            await self.look(after=seen + 1)


def change(envelope: Envelope, **fields: Any) -> Envelope:
    spec = msgspec.structs.replace(decode_part(envelope.spec, AllocationSpec), **fields)
    return msgspec.structs.replace(
        envelope, spec=msgspec.Raw(msgspec.json.encode(spec)), generation=envelope.generation + 1
    )


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
