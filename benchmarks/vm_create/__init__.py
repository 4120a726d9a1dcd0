"""VM create → guest answers, against the same QEMU command with the same overlay, tap and agent run bare; in turn.

weft's side is a whole ``weft vm create`` process on the local cluster: command line, API, scheduler, agent, drivers, and the
wait until the guest's agent has answered. The bare side makes an overlay and a tap, starts the very command line that weft
used (other folders), and waits for the same answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.contracts.clock import SystemClock
from weft.drivers.runtime.qemu.devices.inherited_fds import open_inherited_fds, plan_inherited_fds
from weft.drivers.runtime.qemu.guest_agent.channel import GuestChannel
from weft.drivers.runtime.qemu.probe import probe_qemu
from weft.drivers.runtime.qemu.record import GuestRecord
from weft.drivers.runtime.qemu.translate import GuestPaths, QemuHostFacts, translate_guest

WEFT = str(Path(sys.executable).parent / "weft")
RUNS = 20
TAP = "weftbench0"


def weft(*words: str) -> None:
    done = subprocess.run([WEFT, *words], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"weft {' '.join(words)}: {done.stderr[-600:]}")


def record_of(name: str) -> GuestRecord:
    """What this clone's running guest ``name`` was started from."""
    for record in (ROOT / ".weft" / "nodes").glob("*/guests/*/guest.json"):
        found = msgspec.json.decode(record.read_bytes(), type=GuestRecord)
        if found.plan.name == name:
            return found
    raise SystemExit(f"guest {name} doesn't run")


class Bare:
    """The same guest without weft: the same command, run as root in no group."""

    def __init__(self, record: GuestRecord, facts: QemuHostFacts, folder: Path, tap: str = TAP) -> None:
        self.folder, self.facts, self.tap, self.record = folder, facts, tap, record
        plan, self.frame = record.plan, record.frame
        assert self.frame is not None
        root = plan.disks[0]
        self.disk, self.base, self.base_format = folder / "disk.qcow2", str(root.base), root.base_format
        self.plan = msgspec.structs.replace(
            plan,
            disks=[msgspec.structs.replace(root, path=str(self.disk))],
            nics=[msgspec.structs.replace(nic, ifname=tap) for nic in plan.nics],
        )

    async def start(self) -> float:
        """Seconds from nothing to the agent's first answer."""
        begun = time.perf_counter()
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", self.base_format, str(self.disk)],
            check=True,
        )
        subprocess.run(["ip", "tuntap", "add", "dev", self.tap, "mode", "tap"], check=True)
        subprocess.run(["ip", "link", "set", self.tap, "up"], check=True)
        paths = GuestPaths(run=self.folder, state=self.folder)
        with open_inherited_fds(plan_inherited_fds(self.plan, paths)) as handed:
            words = translate_guest(self.plan, self.frame, paths, self.facts, handed)
            nowhere = subprocess.DEVNULL
            subprocess.Popen(words, stdin=nowhere, stdout=nowhere, stderr=nowhere, pass_fds=tuple(handed.values()))
        hello = asyncio.Event()
        transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: GuestChannel(lambda _: hello.set(), lambda: None), str(self.folder / "agent")
        )
        await asyncio.wait_for(hello.wait(), 120)
        took = time.perf_counter() - begun
        transport.close()
        return took

    def stop(self) -> None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = int((self.folder / "pid").read_text())
            os.kill(pid, 9)
            while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
                time.sleep(0.01)
        subprocess.run(["ip", "link", "del", self.tap], capture_output=True)
        for path in self.folder.iterdir():
            path.unlink()


def measure() -> Measurement:
    ours: list[float] = []
    bare: list[float] = []
    folder = Path(tempfile.mkdtemp(prefix="wb-", dir="/run"))
    folder.chmod(0o711)
    try:
        weft("vm", "create", "bench", "--image", "tiny", "--memory", "128M")
        _, facts = asyncio.run(probe_qemu(folder, SystemClock()))
        assert facts is not None
        peer = Bare(record_of("bench"), facts, folder)
        weft("vm", "delete", "bench", "--yes")
        for _ in range(RUNS + 1):
            begun = time.perf_counter()
            weft("vm", "create", "bench", "--image", "tiny", "--memory", "128M")
            ours.append(time.perf_counter() - begun)
            weft("vm", "delete", "bench", "--yes")
            try:
                bare.append(asyncio.run(peer.start()))
            finally:
                peer.stop()
    finally:
        subprocess.run([WEFT, "vm", "delete", "bench", "--yes"], cwd=ROOT, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
    ours, bare = ours[1:], bare[1:]
    mine, its = statistics.median(ours), statistics.median(bare)
    return Measurement(
        "vm_create",
        "One VM of image tiny, 1 core, 128 MiB, alternating with the same QEMU command run bare.",
        [
            Figure(
                "create → guest answers",
                spread(ours),
                "bare " + spread(bare),
                f"{mine / its:.2f}× ({(mine - its) * 1000:+.0f} ms)",
                "≤ 1.10×; at the least ≤ 1.15× + 100 ms",
                mine <= 1.10 * its,
            ),
        ],
    )
