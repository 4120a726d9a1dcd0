"""A machine of Debian 12 with what containers need, to run tests in that this machine's kernel can't: control groups of version 2
alone, and a kernel that Debian's CRIU knows. Its image is built once; the tree's source comes on a disk of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from guest_lab import MIB, ROOT, GuestLab

from weft.contracts.driver.runtime import ExecRequest, GuestDisk
from weft.drivers.runtime.qemu.driver import QemuDriver
from weft.images.debian import build
from weft.images.parts import AGENT

PACKAGES = (
    *("criu", "runc", "crun", "conmon", "golang-github-containers-common", "busybox-static", "nftables", "strace"),
    *("skopeo", "python3"),
)
# What tests of drivers import beside weft; the rest of the environment is twenty times as large.
NEEDED = (
    *("msgspec", "pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pytest_asyncio", "pytest_timeout", "xdist"),
    *("execnet", "hypothesis", "_hypothesis", "sortedcontainers", "pygments", "typing_extensions", "py.py"),
)
TREE = "/mnt/tree"
BOOT_SECONDS = 240.0


def find_bundle() -> Path:
    """The folder of the unpacked image, built first unless the cache has it."""
    cache = Path(os.environ.get("WEFT_CACHE", ROOT / ".weft" / "cache"))
    sources = [*Path(str(build.__file__)).parent.glob("*.[pc]*"), AGENT]
    digest = hashlib.sha256(" ".join(PACKAGES).encode())
    for source in sorted(path for path in sources if path.is_file()):
        digest.update(source.read_bytes())
    folder = cache / "tests" / f"machine-{digest.hexdigest()[:12]}"
    if not folder.exists():
        bundle = folder.with_suffix(".tar")
        build.build_debian(bundle, cache, lambda word: None, PACKAGES)
        pending = folder.with_suffix(".new")
        shutil.rmtree(pending, ignore_errors=True)
        with tarfile.open(bundle) as archive:
            archive.extractall(pending)
        bundle.unlink()
        pending.rename(folder)
    return folder


def make_tree_disk(path: Path) -> None:
    """Source, tests and what they import, as an ext4 disk."""
    tree, packages = path.with_suffix(""), Path(sysconfig.get_path("purelib"))
    tree.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tree)
    for found in packages.iterdir():
        if found.name.startswith(NEEDED):
            put = shutil.copytree if found.is_dir() else shutil.copy
            put(found, tree / "src" / found.name, **({"ignore": skip} if found.is_dir() else {}))
    with open(path, "wb") as file:
        file.truncate(256 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(tree), str(path)], check=True)
    shutil.rmtree(tree)


class Machine:
    def __init__(self, driver: QemuDriver, guest_id: str) -> None:
        self._driver, self._guest_id = driver, guest_id

    async def run(self, script: str) -> tuple[int | None, str]:
        """A shell's exit code, and what it printed."""
        session = await self._driver.exec(self._guest_id, ExecRequest(argv=["sh", "-c", f"exec 2>&1\n{script}"]))
        said = bytearray()
        async for chunk in session.output():
            if chunk.channel == "exit":
                return chunk.code, said.decode(errors="replace")
            said += chunk.data
        return None, said.decode(errors="replace")


@asynccontextmanager
async def open_machine() -> AsyncIterator[Machine]:
    """One that runs until the block ends, with the tree at TREE, which is a scratch copy of its own."""
    lab = GuestLab(find_bundle())
    try:
        make_tree_disk(lab.folder / "tree.img")
        plan = lab.plan("machine", memory_bytes=1536 * MIB)
        disks = [*plan.disks, GuestDisk(str(lab.folder / "tree.img"), "raw", "tree")]
        plan = msgspec.structs.replace(plan, cpu=2.0, vcpus=2, disks=disks)
        driver = lab.driver()
        await driver.start(plan)
        async with asyncio.timeout(BOOT_SECONDS):
            while not (await driver.inspect(plan.id)).ready:
                await asyncio.sleep(1.0)
        machine = Machine(driver, plan.id)
        code, said = await machine.run(
            f"mkdir -p {TREE} && mount /dev/disk/by-id/virtio-tree {TREE} && modprobe overlay && modprobe veth && "
            f"echo {TREE}/src > /usr/lib/python3/dist-packages/tree.pth"
        )
        assert code == 0, said
        yield machine
    finally:
        await lab.close_drivers()
        lab.close()
