"""A node whose containerd runs containers by one of its runtimes alone, as it would by Kata's: given an image's layers with the
task, a network namespace and folders, and asked by its API for all else. Here that runtime is runc's.
"""

from __future__ import annotations

from pathlib import Path

from containerd_lab import ContainerdLab

from weft.drivers.runtime.oci.kata.driver import KataDriver

RUNC = "io.containerd.runc.v2"


class KataLab(ContainerdLab):
    def __init__(self) -> None:
        super().__init__()
        self.folder.chmod(0o755)
        self.drivers: list[KataDriver] = []  # type: ignore[assignment]

    def driver(self, runtime_class: str = RUNC) -> KataDriver:  # type: ignore[override]
        driver = KataDriver(self.host, None, self.containerd.address, runtime_class)
        self.drivers.append(driver)
        return driver

    @property
    def state(self) -> Path:
        return Path(self.host.state_dir, "kata", "containers")

    @property
    def run(self) -> Path:
        return Path(self.host.run_dir, "kata", "containers")

    def leftovers(self) -> list[str]:
        found = super().leftovers()
        for top in (self.state, self.run, self.run.with_name("volumes")):
            found += [str(path) for path in top.glob("*")]
        return found
