"""A node for tests of containers in machines of their own: the folders, images and plans of those that share its kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from container_lab import MIB, ContainerLab

from weft.contracts.driver.container import ContainerPlan, User
from weft.drivers.runtime.qemu.microvm.driver import MicrovmDriver
from weft.images.enclosed.build import ensure_enclosure

CACHE = Path(__file__).resolve().parents[2] / ".weft" / "cache"


class EnclosedLab(ContainerLab):
    def __init__(self) -> None:
        super().__init__("enclosed")
        self.folder.chmod(0o755)
        self.enclosure = ensure_enclosure(CACHE)
        self.drivers: list[MicrovmDriver] = []  # type: ignore[assignment]

    def driver(self) -> MicrovmDriver:  # type: ignore[override]
        driver = MicrovmDriver(self.host, self.enclosure)
        self.drivers.append(driver)
        return driver

    def plan(self, name: str, *argv: str, user: User | None = None, **more: Any) -> ContainerPlan:
        return super().plan(name, *argv, user=user, **{"memory_bytes": 128 * MIB, **more})

    def leftovers(self) -> list[str]:
        """What there is on the node that has to do with any container; images stay."""
        state, run = Path(self.host.state_dir, "enclosed"), Path(self.host.run_dir, "enclosed")
        found = [f"process {pid}" for pid in self.processes()]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        for folder in (state / "guests", state / "containers", run):
            found += [str(path) for path in folder.glob("*/")]
        found += [str(path) for path in (state / "images").glob("*") if path.suffix != ".ext4"]
        return found + [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{self.host.cgroup}/*/")]
