"""A node whose containers a containerd of the test's own holds: with its own root, state and address, ended and started at will."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from container_lab import ContainerLab

from weft.drivers.runtime.oci.driver import OciDriver

CONFIG = """version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{folder}/s"
[ttrpc]
  address = "{folder}/t"
"""


class Containerd:
    """``address`` is its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, str(folder / "s")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(CONFIG.format(folder=folder))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["containerd", "-c", str(self.folder / "config.toml")], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while subprocess.run(self.words("version"), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def words(self, *words: str, namespace: str = "weft") -> list[str]:
        return ["ctr", "-a", self.address, "-n", namespace, *words]

    def say(self, *words: str, namespace: str = "weft") -> str:
        return subprocess.run(
            self.words(*words, namespace=namespace), capture_output=True, text=True, check=True
        ).stdout

    def kill(self) -> None:
        """As the kernel does it; its shims and what they hold go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()


class ContainerdLab(ContainerLab):
    def __init__(self, runtime: str = "crun") -> None:
        super().__init__(runtime)
        self.containerd = Containerd(self.folder / "ctd")
        self.containerd.start()

    def driver(self) -> OciDriver:
        driver = OciDriver(self.host, runtime=self.runtime, containerd=self.containerd.address)
        self.drivers.append(driver)
        return driver

    def processes(self) -> list[int]:
        """Beside containerd itself."""
        own = self.containerd._process
        return [pid for pid in super().processes() if own is None or pid != own.pid]

    def leftovers(self) -> list[str]:
        found: list[Any] = super().leftovers()
        if self.containerd.runs:
            found += [
                f"in containerd's books: {name}" for name in self.containerd.say("containers", "list", "-q").split()
            ]
            found += [f"task {name}" for name in self.containerd.say("tasks", "list", "-q").split()]
        found += [str(path) for path in Path("/run/containerd/runc/weft").glob("*") if self._is_ours(path.name)]
        return found

    def _is_ours(self, name: str) -> bool:
        return os.path.exists(os.path.join(self.host.state_dir, "containers", name))

    def close(self) -> None:
        self.containerd.end()
        super().close()
        shutil.rmtree(self.folder, ignore_errors=True)
