"""VM create → guest answers, against the same QEMU command with the same overlay, tap and agent run bare; in turn.

weft's side is a whole ``weft vm create`` process on the local cluster: command line, API, scheduler, agent, drivers, and the
wait until the guest's agent has answered. The bare side makes an overlay and a tap, starts the very command line that weft
used (other folders), and waits for the same answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measurement import ROOT, Figure, Measurement, spread
from weft.drivers.runtime.qemu.guest_channel import GuestChannel

WEFT = str(Path(sys.executable).parent / "weft")
RUNS = 10
TAP = "weftbench0"


def weft(*words: str) -> None:
    done = subprocess.run([WEFT, *words], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"weft {' '.join(words)}: {done.stderr[-600:]}")


def command_of(name: str) -> list[str]:
    """The QEMU command line of this clone's running guest ``name``."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().decode().split("\0")[:-1]
                if f"guest={name}" in words and any(str(ROOT / ".weft") in word for word in words):
                    return words
    raise SystemExit(f"guest {name} doesn't run")


class Bare:
    """The same guest without weft."""

    def __init__(self, words: list[str], folder: Path) -> None:
        line = "\0".join(words)
        run = re.search(r"path=(/run/[^,\0]+)/qmp,", line)
        state = re.search(r"-D\0([^\0]+)/qemu.log", line)
        disk = re.search(r'"filename":"([^"]+)"', line)
        tap = re.search(r"ifname=([^,]+),", line)
        if not (run and state and disk and tap):
            raise SystemExit("the guest's command line is not as expected")
        # The guest's folder is seen from its node; the disk lies in the clone and is the same from here.
        self.folder, self.disk = folder, folder / "disk.qcow2"
        info = json.loads(
            subprocess.run(
                ["qemu-img", "info", "-U", "--output=json", disk[1]], capture_output=True, text=True, check=True
            ).stdout
        )
        self.base, self.base_format = info["full-backing-filename"], info["backing-filename-format"]
        for old, new in ((run[1], str(folder)), (state[1], str(folder)), (disk[1], str(self.disk)), (tap[1], TAP)):
            line = line.replace(old, new)
        self.words = line.split("\0")

    async def start(self) -> float:
        """Seconds from nothing to the agent's first answer."""
        begun = time.perf_counter()
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", self.base_format, str(self.disk)],
            check=True,
        )
        subprocess.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap"], check=True)
        subprocess.run(["ip", "link", "set", TAP, "up"], check=True)
        subprocess.run(self.words, check=True, stdin=subprocess.DEVNULL, capture_output=True)
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
        subprocess.run(["ip", "link", "del", TAP], capture_output=True)
        for path in self.folder.iterdir():
            path.unlink()


def measure() -> Measurement:
    ours: list[float] = []
    bare: list[float] = []
    folder = Path(tempfile.mkdtemp(prefix="wb-", dir="/run"))
    try:
        weft("vm", "create", "bench", "--image", "tiny", "--memory", "128M")
        peer = Bare(command_of("bench"), folder)
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
                "≤ 1.15× + 100 ms",
                mine <= 1.15 * its + 0.1,
            ),
        ],
    )
