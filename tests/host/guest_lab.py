"""A node for tests of real guests: folders, the tiny image, plans, and what may befall a guest.

tiny is built once per state of its sources, into ``WEFT_CACHE`` (or the clone's own cache), and unpacked for each run:
``make down`` of the clone ends whatever runs from below its ``.weft``, and tests must not mind.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import uuid
from pathlib import Path

import msgspec
from lab_node import make_node

from weft.contracts.driver.runtime import BootKernel, ExecRequest, GuestDisk, GuestFacts, GuestPlan
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.images.tiny.build import build_tiny
from weft.images.tiny.recipe import digest_recipe
from weft.objects.image.bundle import MANIFEST_NAME, BundleManifest

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def bring_tiny() -> Path:
    """Builds tiny's bundle, unless the cache has it."""
    cache = Path(os.environ.get("WEFT_CACHE", ROOT / ".weft" / "cache"))
    bundle = cache / "tests" / f"tiny-{digest_recipe()[:16]}.tar"
    if not bundle.exists():
        build_tiny(bundle, cache)
    return bundle


def unpack_tiny(folder: Path) -> Path:
    """Unpacks tiny's bundle into ``folder``."""
    with tarfile.open(bring_tiny()) as archive:
        archive.extractall(folder)  # our own bundle; Debian 12's Python 3.11.2 knows no filter yet
    return folder


class GuestLab:
    """One node. ``close`` ends what is left on it."""

    def __init__(self, tiny: Path) -> None:
        self.tiny = tiny
        self.manifest = msgspec.json.decode((tiny / MANIFEST_NAME).read_bytes(), type=BundleManifest)
        self.drivers: list[QemuDriver] = []
        self.folder = Path(tempfile.mkdtemp(prefix="weft-guests-"))
        self.folder.chmod(0o711)  # as /run is: guests' users go through, and see nothing
        self.host = make_node(self.folder)

    def driver(self) -> QemuDriver:
        driver = QemuDriver(self.host)
        self.drivers.append(driver)
        return driver

    async def close_drivers(self) -> None:
        """In the loop they were used in."""
        for driver in self.drivers:
            await driver.close()
        self.drivers.clear()

    def plan(self, name: str, *, machine: str = "q35", memory_bytes: int = 128 * MIB, disks: int = 0) -> GuestPlan:
        uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.folder}/{name}"))
        root = self.folder / f"{name}.qcow2"
        if not root.exists():
            make_disk(root, backing=self.tiny / self.manifest.disk)
        all_disks = [GuestDisk(str(root), "qcow2", "root", base=str(self.tiny / self.manifest.disk))]
        for number in range(disks):
            path = self.folder / f"{name}-{number}.qcow2"
            if not path.exists():
                make_disk(path, size_bytes=64 * MIB)
            all_disks.append(GuestDisk(str(path), "qcow2", f"data-{number}"))
        assert self.manifest.kernel and self.manifest.initrd
        return GuestPlan(
            id=hashlib.sha256(uid.encode()).hexdigest()[:10],
            uid=uid,
            name=name,
            incarnation=1,
            machine="microvm" if machine == "microvm" else "q35",
            cpu=1.0,
            vcpus=1,
            memory_bytes=memory_bytes,
            boot=BootKernel(
                str(self.tiny / self.manifest.kernel), str(self.tiny / self.manifest.initrd), self.manifest.cmdline
            ),
            disks=all_disks,
            nics=[],
            hostname=name,
        )

    def break_start(self, driver: QemuDriver, plan: GuestPlan) -> GuestPlan:
        missing = GuestDisk(str(self.folder / "missing.qcow2"), "qcow2", "lost")
        return msgspec.structs.replace(plan, disks=[*plan.disks, missing])

    def kill(self, driver: QemuDriver, facts: GuestFacts) -> None:
        assert facts.pid is not None
        os.kill(facts.pid, signal.SIGKILL)

    async def power_off(self, driver: QemuDriver, facts: GuestFacts) -> None:
        """A little later, so that whoever asked may be gone by then."""
        session = await driver.exec(facts.id, ExecRequest(argv=["sh", "-c", "(sleep 0.3; poweroff) >/dev/null 2>&1 &"]))
        async for _ in session.output():
            pass

    def leftovers(self, guest_id: str) -> list[str]:
        mounts = Path("/sys/fs/cgroup").glob(f"*/{self.host.cgroup}/{guest_id}")
        folders = [Path(self.host.run_dir, guest_id), Path(self.host.state_dir, "guests", guest_id), *mounts]
        return [str(folder) for folder in folders if folder.exists()] + [
            f"process {pid}" for pid in self.processes(guest_id)
        ]

    def processes(self, mark: str = "") -> list[int]:
        """QEMU processes of this node (whose command line also has ``mark``)."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    line = (entry / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                if str(self.folder) in line and "qemu-system" in line and mark in line:
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        for top in Path("/sys/fs/cgroup").glob(f"*/{self.host.cgroup.split('/')[0]}"):
            for folder in sorted((path for path in [top, *top.rglob("*")] if path.is_dir()), reverse=True):
                remove_group(folder)
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_group(folder: Path) -> None:
    """A killed process may take a moment to leave its group."""
    for _ in range(100):
        try:
            folder.rmdir()
            return
        except OSError:
            subprocess.run(["sleep", "0.02"], check=True)


async def crash(lab: GuestLab, plan: GuestPlan, verb: str, step: int) -> bool:
    """Do ``verb`` in a process that is killed before its ``step``-th effect. False: it was done earlier."""
    words = [msgspec.json.encode(lab.host).decode(), msgspec.json.encode(plan).decode(), verb, str(step)]
    program = str(Path(__file__).with_name("crashing_driver.py"))
    process = await asyncio.create_subprocess_exec(sys.executable, program, *words)
    status = await asyncio.wait_for(process.wait(), 60)
    assert status in (0, -signal.SIGKILL)
    return status != 0


def make_disk(path: Path, *, backing: Path | None = None, size_bytes: int = 0) -> None:
    more = ["-b", str(backing), "-F", "qcow2", str(path)] if backing else [str(path), str(size_bytes)]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *more], check=True)
