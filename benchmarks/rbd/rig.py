"""A Ceph cluster, one image in it, and guests that run fio on that: of weft's driver, and of a plain QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tests.conformance.runtime_contract import ready, run

from benchmarks.measurement import ROOT
from weft.contracts.clock import SystemClock
from weft.contracts.driver.layers import KeptDisk, KeptSnapshot
from weft.contracts.driver.runtime import GuestDisk, GuestPlan
from weft.contracts.driver.snapshot import SnapshotPlan
from weft.contracts.driver.volume import VolumeFacts
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import limit_guest
from weft.drivers.runtime.qemu.start import CPU_HEADROOM
from weft.drivers.volume.rbd.driver import RbdVolumes
from weft.launch.local.ceph.layout import CephPlan

sys.path.insert(0, str(ROOT / "tests" / "host"))

from ceph_lab import place_of, run_ceph
from guest_lab import GuestLab, unpack_tiny

MIB = 1 << 20
SIZE = 256 * MIB
OTHER_BYTES = 2048 * MIB  # far more than it needs
SECONDS = 3
VOLUME, OTHER = "bench", "by-hand"
JOBS = {
    "randread": ("read 4 KiB at random, 16 at once", "op/s"),
    "randwrite": ("write 4 KiB at random, 16 at once", "op/s"),
    "read": ("read 1 MiB in order", "MiB/s"),
    "write": ("write 1 MiB in order", "MiB/s"),
}
# The kernel's names follow from the order in which it finds the disks.
NAMES = "for one in /sys/block/vd*; do ln -sf /dev/${one##*/} /dev/disk-$(cat $one/serial); done"
MOUNT = f"{NAMES}; mkdir -p /tools; mount -t ext4 -o ro /dev/disk-tools /tools"
END = "end-of-fio"


def command(job: str) -> str:
    shape = "--bs=4k --iodepth=16" if job.startswith("rand") else "--bs=1M --iodepth=4"
    words = f"--name={job} --rw={job} {shape} --filename=/dev/disk-data --direct=1 --ioengine=libaio --thread=1 --time_based"
    loader = "LD_LIBRARY_PATH=/tools/lib /tools/lib/ld-linux-x86-64.so.2 /tools/fio"
    return f"{loader} {words} --runtime={SECONDS} --output-format=json 2>&1"


def read_rate(job: str, said: str) -> float:
    """Operations or MiB in a second. Raises RuntimeError with what fio said instead."""
    if "{" not in said:
        raise RuntimeError(f"fio: {said.strip()[-500:]}")
    found = json.loads(said[said.index("{") : said.rindex("}") + 1])["jobs"][0]["read" if "read" in job else "write"]
    return float(found["iops"]) if job.startswith("rand") else float(found["bw_bytes"]) / MIB


class Rig:
    def __init__(self, folder: Path, ceph: CephPlan) -> None:
        self.folder, self.lab = folder, GuestLab(unpack_tiny(folder))
        self.volumes = RbdVolumes(self.lab.host, SystemClock(), "ceph", place_of(ceph))
        self.ceph, self.driver, self.tools = ceph, self.lab.driver(), _make_tools(folder)
        self._guest, self._asked, self._groups = "", 0, ControlGroups(self.lab.host.cgroup)
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    @classmethod
    @contextlib.contextmanager
    def begin(cls) -> Iterator[Rig]:
        if shutil.which("fio") is None:
            sys.exit("the benchmark rbd needs fio: apt-get install fio")
        with tempfile.TemporaryDirectory(prefix="weft-bench-") as folder, run_ceph() as ceph:
            rig = cls(Path(folder), ceph)
            try:
                yield rig
            finally:
                rig.end_other()
                rig.lab.close()

    async def fill(self, volume: str) -> VolumeFacts:
        """All of the image is there before anything is measured."""
        facts = await self.volumes.ensure(volume, size_bytes=SIZE)
        node = f"driver=rbd,pool={self.ceph.pool},image={_image(facts)},conf={self.ceph.conf},user=weft"
        argv = ["qemu-io", "-c", f"write -P 1 0 {SIZE}", "--image-opts", node]
        subprocess.run(argv, check=True, capture_output=True)
        return facts

    def plan(self, name: str, facts: VolumeFacts) -> GuestPlan:
        plan = self.lab.plan(name, memory_bytes=256 * MIB)
        data = GuestDisk(facts.path, "raw", "data", rbd=facts.rbd)
        tools = GuestDisk(str(self.tools), "raw", "tools", read_only=True)
        return msgspec.structs.replace(plan, cpu=float(os.cpu_count() or 1), disks=[*plan.disks, data, tools])

    async def begin_guests(self) -> None:
        """One of weft's, and one as people start it, whose console has a shell. Each has an image of its own."""
        plan = self.plan("fio", await self.fill(VOLUME))
        await ready(self.driver, plan)
        self._guest, accelerator = plan.id, (await self.driver.probe()).accelerator
        await self.ask_weft(MOUNT)
        other = self.plan("by-hand", await self.fill(OTHER))
        console = self.folder / "console"
        words = self._words(other, console, accelerator)
        for file in self._groups.create(OTHER, limit_guest(other.cpu * CPU_HEADROOM, OTHER_BYTES)):
            words = ["sh", "-c", f'echo $$ >{file} && exec "$@"', "sh", *words]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        self._line = await asyncio.to_thread(_connect, console)
        await self.ask_qemu(f"stty -echo; {MOUNT}")

    async def ask_weft(self, script: str) -> str:
        """Raises RuntimeError."""
        out, err, code = await run(self.driver, self._guest, "sh", "-c", script)
        if code:
            raise RuntimeError((out + err).decode(errors="replace"))
        return out.decode()

    async def ask_qemu(self, script: str) -> str:
        self._asked += 1
        return await asyncio.to_thread(_ask, self._line, self._asked, script)

    async def end_guests(self) -> None:
        await self.driver.stop(self._guest, grace_seconds=0)
        await self.driver.remove(self._guest)
        self.end_other()

    def end_other(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._groups.remove(OTHER)
        self._line = self._process = None

    def _words(self, plan: GuestPlan, console: Path, accelerator: str) -> list[str]:
        boot = self.lab.manifest
        assert boot.kernel and boot.initrd
        own = plan.disks[-2].rbd
        assert own is not None
        there = {"pool": self.ceph.pool, "image": own.image, "conf": str(self.ceph.conf), "user": "weft"}
        data = json.dumps({"driver": "rbd", "node-name": "data", "discard": "unmap", **there})
        root, tools = plan.disks[0].path, str(self.tools)
        words = [
            "qemu-system-x86_64",
            "-M",
            "q35",
            "-accel",
            accelerator,
            "-cpu",
            "max",
            "-m",
            "256",
            "-smp",
            "1",
            "-nodefaults",
        ]
        words += ["-display", "none", "-serial", f"unix:{console},server=on,wait=off"]
        words += ["-kernel", str(self.lab.tiny / boot.kernel), "-initrd", str(self.lab.tiny / boot.initrd)]
        words += ["-append", boot.cmdline, "-drive", f"file={root},format=qcow2,if=none,id=root", "-blockdev", data]
        words += ["-drive", f"file={tools},format=raw,if=none,id=tools,read-only=on"]
        for number, disk in enumerate(("root", "data", "tools")):
            words += ["-device", f"virtio-blk-pci,drive={disk},serial={disk},addr={number + 4:#x}"]
        return words

    async def take_snapshots(self, count: int) -> tuple[list[float], list[float]]:
        """Seconds: how long a guest that runs stood still for each, and how long a clone took."""
        facts = await self.volumes.inspect(VOLUME)
        assert facts is not None
        plan, pauses, clones = self.plan("snapshots", facts), [], []
        await ready(self.driver, plan)
        for number in range(count):
            layer = f"s{number}"
            inside = await self.volumes.layers.begin_layer(VOLUME, layer)
            taken = await self.driver.snapshots.take(plan.id, SnapshotPlan(layer, {"data": inside}, freeze=False))
            pauses.append(taken.pause_ms / 1000)
            await self.driver.snapshots.forget(plan.id, layer)
            await self.volumes.layers.finish_layer(VOLUME, layer)
            await self.volumes.layers.keep(KeptSnapshot(layer, layer, {"data": KeptDisk((layer,), SIZE)}))
            began = time.perf_counter()
            await self.volumes.layers.clone(f"new-{number}", layer, "data")
            clones.append(time.perf_counter() - began)
        await self.driver.stop(plan.id, grace_seconds=0)
        await self.lab.close_drivers()
        return pauses, clones


def _image(facts: VolumeFacts) -> str:
    assert facts.rbd is not None
    return facts.rbd.image


def _make_tools(folder: Path) -> Path:
    """A disk with fio and the libraries that it needs."""
    root, disk = folder / "tools", folder / "tools.ext4"
    (root / "lib").mkdir(parents=True)
    fio = str(shutil.which("fio"))
    shutil.copy(fio, root / "fio")
    listed = subprocess.run(["ldd", fio], check=True, capture_output=True, text=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            shutil.copy(word, root / "lib")
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(disk), "160M"], check=True)
    return disk


def _connect(console: Path) -> socket.socket:
    deadline = time.monotonic() + 120
    line = socket.socket(socket.AF_UNIX)
    while True:
        with contextlib.suppress(OSError):
            line.connect(str(console))
            break
        time.sleep(0.1)
        assert time.monotonic() < deadline
    _ask(line, 0, "true", patience=3)
    return line


def _ask(line: socket.socket | None, number: int, script: str, patience: float = 60) -> str:
    """What the guest's shell prints for ``script``. It is typed until somebody answers, since the shell begins some time after
    the kernel; ``number`` tells its answer from those of what was typed before."""
    assert line is not None
    said, end = b"", f"{END}-{number}."
    # The quotes keep the echo of what is typed from looking like the answer.
    typed = f"{script}; echo {END[:3]}''{end[3:]}\n".encode()
    line.sendall(typed)
    line.settimeout(patience)
    while end.encode() not in said:
        try:
            data = line.recv(65536)
            if not data:
                raise RuntimeError(f"QEMU has ended: {said[-500:].decode(errors='replace')}")
            said += data
        except TimeoutError:
            line.sendall(typed)
    return said.decode(errors="replace")
