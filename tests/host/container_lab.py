"""A node for tests of real containers: folders, a root of busybox, plans, and what may befall a container."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import msgspec
from lab_node import make_node

from weft.contracts.driver.container import ContainerPlan, ContainerProcess, User
from weft.contracts.driver.runtime import GuestFacts
from weft.drivers.runtime.oci.driver import OciDriver

MIB = 1 << 20
BUSYBOX = "/bin/busybox"
# As people's tools have it by default, without the one for raw packets.
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
        *("NET_BIND_SERVICE", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP"),
    )
]


def make_layers(folder: Path) -> list[str]:
    """Two layers, the upper first: what the upper one says of a file wins."""
    lower, upper = folder / "lower", folder / "upper"
    for name in ("bin", "etc", "tmp", "root", "data", "www"):
        (lower / name).mkdir(parents=True)
    (lower / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, lower / "bin" / "busybox")
    for applet in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            (lower / "bin" / applet).symlink_to("busybox")
    (lower / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/www:/bin/sh\n")
    (lower / "etc" / "issue").write_text("lower\n")
    os.chown(lower / "www", 1000, 1000)
    (upper / "etc").mkdir(parents=True)
    (upper / "etc" / "issue").write_text("upper\n")
    return [str(upper), str(lower)]


class ContainerLab:
    """One node. ``close`` ends what is left on it."""

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime
        self.drivers: list[OciDriver] = []
        self.folder = Path(tempfile.mkdtemp(prefix="weft-cont-"))
        self.folder.chmod(0o711)
        self.layers = make_layers(self.folder / "layers")
        self.host = make_node(self.folder)

    def driver(self) -> OciDriver:
        driver = OciDriver(self.host, runtime=self.runtime)
        self.drivers.append(driver)
        return driver

    async def close_drivers(self) -> None:
        for driver in self.drivers:
            await driver.close()
        self.drivers.clear()

    def plan(self, name: str, *argv: str, user: User | None = None, **more: Any) -> ContainerPlan:
        uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.folder}/{name}"))
        process = ContainerProcess(list(argv) or ["sleep", "1000"], user=user or User(home="/root"))
        plan = ContainerPlan(
            id=hashlib.sha256(uid.encode()).hexdigest()[:10],
            uid=uid,
            name=name,
            incarnation=1,
            layers=self.layers,
            process=process,
            cpu=1.0,
            memory_bytes=64 * MIB,
            capabilities=CAPABILITIES,
        )
        return msgspec.structs.replace(plan, **more)

    def script(self, name: str, text: str, **more: Any) -> ContainerPlan:
        return self.plan(name, "sh", "-c", text, **more)

    def kill(self, facts: GuestFacts) -> None:
        assert facts.pid is not None
        os.kill(facts.pid, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """What there is on the node that has to do with any container."""
        found = [
            f"mount {line}"
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(self.folder) in line
        ]
        found += [f"process {pid}" for pid in self.processes()]
        group = self.host.cgroup.split("/")[0]  # others' come and go meanwhile, which a walk takes and a glob doesn't
        found += [f"cgroup {folder}/{group}" for folder, names, _ in os.walk("/sys/fs/cgroup") if group in names]
        for top in (Path(self.host.run_dir, "containers"), Path(self.host.state_dir, "containers")):
            kept = {"runtime", "probe-oci.json"}
            found += [str(path) for path in top.glob("*") if path.name not in kept]
        found += [str(path) for path in Path(self.host.run_dir, "containers", "runtime").glob("*")]
        return found

    def processes(self) -> list[int]:
        """Live ones that belong to a container of this node, by command line or control group."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes().decode(errors="replace")
                    group = (entry / "cgroup").read_text()
                except OSError:
                    continue
                if words and (str(self.folder) in words or self.host.cgroup in group):
                    found.append(int(entry.name))
        return found

    def close(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for top in Path("/sys/fs/cgroup").glob(f"*/{self.host.cgroup.split('/')[0]}"):
            for path, _, _ in os.walk(top, topdown=False):
                for _ in range(100):
                    try:
                        os.rmdir(path)
                        break
                    except OSError:
                        subprocess.run(["sleep", "0.02"], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)
