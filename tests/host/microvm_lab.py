"""A node for tests of containers in machines of their own: the folders, images and plans of those that share its kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from container_lab import MIB, ContainerLab

from weft.contracts.driver.container import ContainerPlan, User
from weft.drivers.runtime.qemu.microvm.driver import MicrovmDriver
from weft.images.microvm.build import ensure_microvm

CACHE = Path(__file__).resolve().parents[2] / ".weft" / "cache"


class MicrovmLab(ContainerLab):
    def __init__(self) -> None:
        super().__init__("microvm")
        self.folder.chmod(0o755)
        self.microvm_dir = ensure_microvm(CACHE)
        self.drivers: list[MicrovmDriver] = []  # type: ignore[assignment]

    def driver(self) -> MicrovmDriver:  # type: ignore[override]
        driver = MicrovmDriver(self.host, self.microvm_dir)
        self.drivers.append(driver)
        return driver

    def plan(self, name: str, *argv: str, user: User | None = None, **more: Any) -> ContainerPlan:
        return super().plan(name, *argv, user=user, **{"memory_bytes": 128 * MIB, **more})

    def leftovers(self) -> list[str]:
        """What there is on the node that has to do with any container; images stay."""
        state, run = Path(self.host.state_dir, "microvm"), Path(self.host.run_dir, "microvm")
        found = [f"process {pid}" for pid in self.processes()]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        for folder in (state / "guests", state / "containers", run):
            found += [str(path) for path in folder.glob("*/")]
        found += [str(path) for path in (state / "images").glob("*") if path.suffix != ".ext4"]
        return found + [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{self.host.cgroup}/*/")]
