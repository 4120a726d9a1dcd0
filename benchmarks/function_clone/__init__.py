"""A function in a machine of its own, to its first answer: from the pool, as a fresh copy, against the same copy made by hand
(QEMU started directly, as root, in no group, its network made before), and against booting the same guest. In turn, in one run.
Every answer is checked: the clock, and that no two have the same name or random numbers.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.contracts.driver.function import Blob, Recipe, Roots
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.runtime.qemu.function.driver import SnapshotInstances
from weft.drivers.runtime.qemu.function.messages import ASKS, WOKEN, decode_message, encode_fresh, encode_short
from weft.drivers.runtime.qemu.function.network import PrivateNet, make_net
from weft.drivers.runtime.qemu.function.snapshots import SnapshotStore, Template
from weft.drivers.runtime.qemu.function.translate import SnapshotFds, translate_clone, translate_template
from weft.images.recipes import ensure_bundle
from weft.objects.image.bundle import read_bundle

RUNS, BOOTS = int(os.environ.get("FUNCTION_CLONE_RUNS", "15")), int(os.environ.get("FUNCTION_CLONE_BOOTS", "3"))
POOL_SECONDS, HAND_RATIO, BOOT_RATIO, OWN_BYTES = 0.040, 1.2, 10.0, 35 << 20
CLOCK_SECONDS = 1.0  # between the guest's time in its answer and ours when it arrives, at most
PATIENCE_SECONDS = 60.0
HANDLER = """
import os, random, socket, time, uuid
def handler(event, context):
    return {"echo": event, "host": socket.gethostname(), "uuid": str(uuid.uuid4()), "rand": random.random(),
            "urandom": os.urandom(8).hex(), "time": time.time(), "left": context.get_remaining_time_in_millis()}
"""


class Caller:
    """Serves the Runtime API of an instance as plainly as can be, and sees that each answer is fresh."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    async def call(self, listener: socket.socket) -> None:
        """The first call of an instance, answered."""
        loop = asyncio.get_running_loop()
        connection, _ = await asyncio.wait_for(loop.sock_accept(listener), PATIENCE_SECONDS)
        with connection:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line, _ = await self._receive(connection)
            if "/invocation/next" not in line:
                raise SystemExit(f"an instance asks {line!r}")
            deadline = int((time.time() + 30.0) * 1000)
            head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: 1\r\n"
            head += f"Lambda-Runtime-Deadline-Ms: {deadline}\r\nLambda-Runtime-Invoked-Function-Arn: a\r\n"
            await loop.sock_sendall(connection, f'{head}Content-Length: 7\r\n\r\n{{"n":1}}'.encode())
            line, body = await self._receive(connection)
        self._check(line, json.loads(body))

    def _check(self, line: str, said: dict[str, Any]) -> None:
        own = {f"{name} {said[name]}" for name in ("host", "uuid", "rand", "urandom")}
        if (
            not line.endswith("/response HTTP/1.1")
            or own & self._seen
            or abs(time.time() - said["time"]) > CLOCK_SECONDS
        ):
            raise SystemExit(f"an answer that isn't fresh: {line} {said}")
        self._seen |= own

    @staticmethod
    async def _receive(connection: socket.socket) -> tuple[str, bytes]:
        loop, data = asyncio.get_running_loop(), b""
        while b"\r\n\r\n" not in data:
            data += await asyncio.wait_for(loop.sock_recv(connection, 65536), PATIENCE_SECONDS)
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        while lengths and len(body) < int(lengths[0].partition(b":")[2]):
            body += await asyncio.wait_for(loop.sock_recv(connection, 65536), PATIENCE_SECONDS)
        return head.split(b"\r\n")[0].decode(), body


def own_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


async def from_pool(driver: SnapshotInstances, recipe: Recipe, roots: Roots, caller: Caller) -> tuple[float, int]:
    """Seconds, and bytes of its own."""
    await driver.keep_ready(recipe, roots, 1)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    clone = await driver.start(secrets.token_hex(5), recipe, roots)
    await caller.call(clone.runtime_api)
    took = time.monotonic() - began
    if clone.started != "pool":
        raise SystemExit("the pool was empty")
    await driver.keep_ready(recipe, roots, 0)  # or its successor takes CPU from what is measured next
    memory = own_bytes(clone.pid)
    await clone.stop()
    return took, memory


async def copied(driver: SnapshotInstances, recipe: Recipe, roots: Roots, caller: Caller) -> tuple[float, int]:
    began = time.monotonic()
    clone = await driver.start(secrets.token_hex(5), recipe, roots)
    await caller.call(clone.runtime_api)
    took, memory = time.monotonic() - began, own_bytes(clone.pid)
    await clone.stop()
    return took, memory


class Monitor:
    """Three commands to QEMU, and what it says to them."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._rest = line, b""

    async def until(self, word: bytes) -> None:
        while word not in self._rest:
            data = await asyncio.get_running_loop().sock_recv(self._line, 65536)
            if not data:
                raise SystemExit("QEMU by hand has gone")
            self._rest += data
        self._rest = self._rest.partition(word)[2]

    async def say(self, command: str, arguments: dict[str, Any]) -> None:
        line = json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        await asyncio.get_running_loop().sock_sendall(self._line, line)


@asynccontextmanager
async def by_hand(words: Callable[[int], list[str]], descriptors: list[int]) -> AsyncIterator[Monitor]:
    """A QEMU of one's own."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        words(theirs.fileno()), stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=(theirs.fileno(), *descriptors)
    )
    theirs.close()
    try:
        yield Monitor(ours)
    finally:
        process.kill()
        process.wait()
        ours.close()


async def freshen(net: PrivateNet) -> None:
    """Wake the guest, and tell it what it asks."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(net.wake, encode_short(WOKEN, 1))
    while True:
        said = decode_message(await asyncio.wait_for(loop.sock_recv(net.wake, 256), PATIENCE_SECONDS))
        if said is not None and said.kind == ASKS:
            break
    fresh = encode_fresh(1, time.time_ns(), secrets.token_bytes(32), secrets.token_hex(5))
    await loop.sock_sendall(net.wake, fresh)


async def copied_by_hand(templates: SnapshotStore, template: Template, caller: Caller) -> float:
    net = await make_net()
    try:
        with templates.open(template) as (named, disks):
            began = time.monotonic()

            def words(qmp: int) -> list[str]:
                handed = SnapshotFds(
                    qmp, net.tap, named["ram"], named["state"], named["kernel"], named["initrd"], disks
                )
                return translate_clone(template.machine, handed, "by-hand")

            async with by_hand(words, [net.tap, *named.values(), *disks]) as monitor:
                capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
                await monitor.say("qmp_capabilities", {})
                await monitor.say("migrate-set-capabilities", {"capabilities": capabilities})
                await monitor.say("migrate-incoming", {"uri": f"file:/dev/fdset/{named['state']}"})
                await monitor.until(b'"completed"')
                await freshen(net)
                await caller.call(net.runtime_api)
                return time.monotonic() - began
    finally:
        await net.close()


async def booted(templates: SnapshotStore, template: Template, caller: Caller, folder: Path) -> float:
    """The same guest from its kernel on: the runtime loaded, the code imported, and one call."""
    net = await make_net()
    ram = folder / "boot-ram"
    ram.unlink(missing_ok=True)
    memory = os.open(ram, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(memory, template.machine.memory)
    loop = asyncio.get_running_loop()
    try:
        with templates.open(template) as (named, disks):
            began = time.monotonic()

            def words(qmp: int) -> list[str]:
                handed = SnapshotFds(qmp, net.tap, memory, named["state"], named["kernel"], named["initrd"], disks)
                return translate_template(template.machine, handed, "by-hand")

            async with by_hand(words, [net.tap, memory, *named.values(), *disks]):
                reports, _ = await asyncio.wait_for(loop.sock_accept(net.reports), PATIENCE_SECONDS)
                with reports:
                    reports.setblocking(False)
                    said = await asyncio.wait_for(loop.sock_recv(reports, 4096), PATIENCE_SECONDS)
                if said[:1] != b"r":
                    raise SystemExit(f"the guest doesn't come up: {said!r}")
                await freshen(net)
                await caller.call(net.runtime_api)
                return time.monotonic() - began
    finally:
        os.close(memory)
        ram.unlink(missing_ok=True)
        await net.close()


def lay_out(folder: Path) -> tuple[Recipe, Roots]:
    """The python3-11 base unpacked, and a function."""
    bundle = ensure_bundle("python3-11", ROOT / ".weft" / "cache", lambda what: None)
    with open(bundle, "rb") as file:
        read_bundle(file, bundle.stat().st_size)
    with tarfile.open(bundle) as archive:
        archive.extractall(folder / "base")  # our own; Debian 12's Python 3.11.2 knows no filter yet
    with tarfile.open(folder / "base" / "root.tar") as archive:
        archive.extractall(folder / "base" / "root")
    (folder / "code").mkdir()
    (folder / "code" / "app.py").write_text(HANDLER)
    recipe = Recipe(
        digest=secrets.token_hex(32), function="bench", project="default", name="bench", isolation="vm",
        runtime="python3.11", base=Blob(secrets.token_hex(32), 0), code=Blob(secrets.token_hex(32), 0),
        handler="app.handler", memory=128 << 20, timeout=30.0,
    )  # fmt: skip
    command = ["/usr/bin/python3.11", "-m", "awslambdaric", "{handler}"]
    env = {"PYTHONPATH": "/opt/ric:/var/task"}
    roots = Roots([str(folder / "base/root")], str(folder / "code"), command, env, bundle=str(folder / "base"))
    return recipe, roots


async def run(folder: Path) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    host = Host(
        node="bench", node_uid=secrets.token_hex(16), state_dir=str(folder / "state"), run_dir=str(folder / "run"),
        link_prefix="wb", underlay_address="127.0.0.1", underlay_link="lo", cgroup=f"weft-bench-{folder.name[-6:]}",
        capacity=Capacity(os.cpu_count() or 1, 4 << 30, 10 << 30),
    )  # fmt: skip
    (folder / "run").mkdir(mode=0o755)
    recipe, roots = lay_out(folder)
    driver, caller = SnapshotInstances(host), Caller()
    if problem := await driver.probe():
        raise SystemExit(problem)
    seconds: dict[str, list[float]] = {"pool": [], "copy": [], "hand": [], "boot": []}
    memory: dict[str, list[int]] = {"pool": [], "copy": []}
    try:
        templates = await driver._working()
        template, _ = await templates.ensure(recipe, roots)
        await copied(driver, recipe, roots, caller)  # files are in the page cache from here on
        for number in range(RUNS):
            for name, way in (("pool", from_pool), ("copy", copied)):
                took, own = await way(driver, recipe, roots, caller)
                seconds[name].append(took)
                memory[name].append(own)
            seconds["hand"].append(await copied_by_hand(templates, template, caller))
            if number < BOOTS:
                seconds["boot"].append(await booted(templates, template, caller, folder))
    finally:
        await driver.close()
        for tree in Path("/sys/fs/cgroup").glob(f"*/{host.cgroup}"):
            tree.rmdir()
    return seconds, memory


def measure() -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix="weft-functions-"))
    folder.chmod(0o711)
    try:
        seconds, memory = asyncio.run(run(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    pool, copy, hand, boot = (statistics.median(seconds[name]) for name in ("pool", "copy", "hand", "boot"))
    own = max(memory["pool"] + memory["copy"])
    return Measurement(
        "function_clone",
        "A Python function in a machine of its own (128 MiB, emulated where there is no KVM) to its first answer, with a clock,"
        " randomness and name of its own before any of its code runs, which every answer was checked for. By hand: the same"
        " template, QEMU started directly as root. Own memory: what its QEMU has that no other shares, after its first answer.",
        [
            Figure("paused copy from the pool → first answer", spread(seconds["pool"], digits=1), goal="≤ 40 ms p50",
                   kept=pool <= POOL_SECONDS),
            Figure("fresh copy → first answer", spread(seconds["copy"]), f"by hand {spread(seconds['hand'])}",
                   f"{copy / hand:.2f}×", f"≤ {HAND_RATIO}×", copy <= HAND_RATIO * hand),
            Figure("the same against booting the guest", spread(seconds["copy"]), f"boot {spread(seconds['boot'])}",
                   f"{boot / copy:.1f}× faster", f"≥ {BOOT_RATIO:g}×", boot >= BOOT_RATIO * copy),
            Figure("own memory of a copy, the largest", f"{own / (1 << 20):.1f} MiB", goal="≤ 35 MB",
                   kept=own <= OWN_BYTES),
        ],
    )  # fmt: skip
