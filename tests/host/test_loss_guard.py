"""A node that its servers hear no more ends real containers in time, whatever is stopped or killed, and starts them again only once
they were listed anew. With times a tenth as long as in use."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from container_lab import ContainerLab
from guarded_node import TIMING
from test_guard_guests import find_guards

from weft.contracts.clock import SystemClock, read_boot_time
from weft.drivers.guard.driver import ANSWER_SECONDS, GuestGuard
from weft.kinds.allocation import AllocatedContainer, AllocationReport, AllocationSpec, Resources, allocation_name
from weft.objects.envelope import Envelope
from weft.objects.identity import Ref, short_id

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("crun") is None, reason="needs root and crun"),
]
MOST_SECONDS = TIMING.lease + TIMING.kill + 1.0  # of a machine that others use, too

FAULTS = ("cut", "agent stands still", "agent is killed", "guard stands still")


class Node:
    def __init__(self, lab: ContainerLab) -> None:
        self.lab, self.folder = lab, lab.folder / "server"
        for name in ("wishes", "reports"):
            (self.folder / name).mkdir(parents=True)
        Path(lab.host.state_dir).mkdir()
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        words = (msgspec.json.encode(self.lab.host).decode(), str(self.folder), *self.lab.layers)
        program = str(Path(__file__).with_name("guarded_node.py"))
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, program, *words),
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    def put(self, name: str, **fields: int) -> Envelope:
        uid = str(uuid.uuid4())
        spec = AllocationSpec(
            node="n1",
            node_uid=self.lab.host.node_uid,
            workload=Ref("container", name, f"uid-of-{name}", "default"),
            workload_generation=1,
            incarnation=1,
            resources=Resources(cpu=1, memory=64 << 20),
            container=AllocatedContainer(image="busybox", command=["sleep", "1000"]),
            runtime="oci",
            restart="always",
            **fields,  # type: ignore[arg-type]
        )
        full = allocation_name(self.lab.host.node_uid, uid)
        raw = msgspec.Raw(msgspec.json.encode(spec))
        envelope = Envelope(kind="allocation", name=full, uid=uid, spec=raw, finalizers=["node"], generation=1)
        (self.folder / "wishes" / f"{uid}.json").write_bytes(msgspec.json.encode(envelope))
        return envelope

    def report(self, allocation: Envelope) -> AllocationReport:
        path = self.folder / "reports" / f"{allocation.name}.json"
        return msgspec.json.decode(path.read_bytes(), type=AllocationReport) if path.exists() else AllocationReport()

    def find(self, allocation: Envelope) -> list[int]:
        """The container's own processes."""
        group = f"{self.lab.host.cgroup}/{short_id(allocation.uid)}"
        return [pid for pid in self.lab.processes() if self._is_sleep(pid, group)]

    def _is_sleep(self, pid: int, group: str) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return words[:2] == [b"sleep", b"1000"] and group in Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            return False

    def cut(self) -> None:
        (self.folder / "cut").touch()

    def join(self) -> None:
        (self.folder / "cut").unlink()

    def read_said(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "said").read_text().splitlines()]

    @property
    def answered_at(self) -> float:
        return max(float(words[1]) for words in self.read_said() if words[0] == "report")

    async def until(self, holds: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    assert self.process.returncode in (None, -signal.SIGKILL), (self.folder / "log").read_text()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"never: {what}\n{(self.folder / 'log').read_text()[-4000:]}") from None

    async def until_guarded(self, allocation: Envelope) -> int:
        """The container's process."""
        await self.until(
            lambda: len(self.find(allocation)) == 1 and self.report(allocation).guarded == 1, "it is guarded"
        )
        return self.find(allocation)[0]

    async def until_ended(self, allocation: Envelope, later: float = 0.0) -> None:
        """It ends, in time after the newest answer."""
        await self.until(lambda: not self.find(allocation), "it ends", MOST_SECONDS + 5.0)
        assert read_boot_time() - self.answered_at < MOST_SECONDS + later


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    lab = ContainerLab("crun")
    node = Node(lab)
    try:
        await node.start()
        yield node
    finally:
        await node.kill()
        guard = GuestGuard(lab.host, SystemClock())
        await guard.drop(await guard.read())
        await node.until(lambda: not find_guards(lab.host.run_dir), "its guard ends")
        lab.close()


async def test_a_node_that_is_cut_off_ends_in_time_what_may_start_elsewhere_and_nothing_else(node: Node) -> None:
    web, other = node.put("web", loss_guard=1), node.put("other", loss_guard=2)
    await node.until_guarded(web)
    await node.until(lambda: node.find(other), "the other one runs")
    stays, lines = node.find(other), len(node.read_said())
    node.cut()
    await node.until_ended(web)
    await node.kill()  # and its agent starts again, still cut off
    await node.start()
    await asyncio.sleep(1.5)
    assert not node.find(web)
    node.join()
    await node.until_guarded(web)
    assert node.find(other) == stays
    since = node.read_said()[lines:]
    tokens = [words[2] for words in since if words[0] == "report"]
    assert ["list"] in since[next(n for n, words in enumerate(since) if words[-1] == tokens[-1]) :]


@pytest.mark.long
async def test_it_ends_in_time_whatever_is_stopped_or_killed(node: Node) -> None:
    web = node.put("web", loss_guard=1)
    before = await node.until_guarded(web)
    node.cut()
    await asyncio.sleep(TIMING.lease - 2.0)
    node.join()  # just in time
    await asyncio.sleep(TIMING.lease)
    assert node.find(web) == [before]
    node.process.send_signal(signal.SIGSTOP)
    await node.until_ended(web)
    node.process.send_signal(signal.SIGCONT)
    await node.until_guarded(web)
    await node.kill()
    await node.until_ended(web)
    await node.start()
    await node.until_guarded(web)
    node.cut()
    guards = find_guards(node.lab.host.run_dir)
    try:
        for pid in guards:
            os.kill(pid, signal.SIGSTOP)
        await node.until_ended(web, ANSWER_SECONDS)  # by the agent itself, which asks the guard first
    finally:
        for pid in guards:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
async def test_it_never_runs_once_it_may_have_started_elsewhere_in_whatever_order_faults_come(
    node: Node, seed: int
) -> None:
    chance, outlived = random.Random(seed), list[float]()
    web = node.put("web", loss_guard=1)
    await node.until_guarded(web)

    async def watch() -> None:
        while True:  # a server counts the promise from the last report that it answered
            now = read_boot_time()
            if node.find(web) and (silence := now - node.answered_at) > TIMING.promise:
                outlived.append(silence)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    for _ in range(3):
        ends = [await begin(node, kind, chance) for kind in chance.sample(FAULTS, chance.choice((1, 1, 2)))]
        await asyncio.sleep(chance.choice((TIMING.lease - 1.0, TIMING.lease + 1.0, TIMING.promise + 1.0)))
        chance.shuffle(ends)
        for end in ends:
            await end()
            await asyncio.sleep(chance.choice((0.0, 0.5, 2.0)))
        await node.until_guarded(web)
    assert not watching.done(), watching.exception()
    watching.cancel()
    assert outlived == []


async def begin(node: Node, kind: str, chance: random.Random) -> Callable[[], Awaitable[None]]:
    """Let it begin; what ends it."""
    if kind == "cut":
        node.cut()
    elif kind == "agent is killed":
        await node.kill()
    stopped = [node.process.pid] if kind == "agent stands still" else []
    if kind == "guard stands still":
        stopped = [chance.choice(find_guards(node.lab.host.run_dir))]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)

    async def end() -> None:
        if kind == "cut":
            node.join()
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):  # the other one has replaced it, or its agent was killed
                os.kill(pid, signal.SIGCONT)
        if node.process.returncode is not None:
            await node.start()

    return end
