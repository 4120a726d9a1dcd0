"""Reboots this machine through systemd, and finds whether its packages ask for that.

Debian's packages ask by ``/run/reboot-required``, and list themselves in ``reboot-required.pkgs``, where a helper of
unattended-upgrades or needrestart does so; a newer kernel is found in ``/boot`` without them.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from weft.drivers.linux.processes import host_boot_id
from weft.objects.errors import DriverFailed

SYSTEMD = Path("/run/systemd/system")
BOOT = Path("/boot")
RUN = Path("/run")
PROC = Path("/proc")
_KERNEL = re.compile(r"(\d+(?:\.\d+)*(?:-\d+)?)(.*)")  # 6.1.0-28-amd64: its version, its flavour
_NAMED = 3  # packages
_START = 19  # of a process, among the fields after its name in its stat; see proc_pid_stat(5)


class SystemdReboot:
    """Reboot of this machine, where systemd is its first process."""

    def __init__(
        self, systemd: Path = SYSTEMD, boot: Path = BOOT, run: Path = RUN, kernel: str = "", proc: Path = PROC
    ) -> None:
        self._systemd, self._boot, self._run, self._proc = systemd, boot, run, proc
        self._kernel = kernel or platform.release()

    def find_need(self) -> str:
        if not self._systemd.is_dir():
            return ""
        in_container = (self._run / "systemd/container").exists()  # its kernel is its host's
        files = [path.name for path in self._boot.glob("vmlinuz-*")] if not in_container else []
        if newer := find_newer_kernel(self._kernel, files):
            return f"kernel {newer} is installed, and {self._kernel} runs"
        if not (self._run / "reboot-required").exists():
            return ""
        packages = self._list_packages()
        return f"packages ask for it: {', '.join(packages)}" if packages else "its packages ask for it"

    def _list_packages(self) -> list[str]:
        try:
            found = (self._run / "reboot-required.pkgs").read_text(errors="replace")[:10_000].split()
        except OSError:
            return []
        return sorted({one for one in found if one.isprintable()})[:_NAMED]

    def read_boot(self) -> str:
        """The kernel's boot id, and when the first process began: a container has its host's id."""
        stat = (self._proc / "1/stat").read_text().rsplit(")", 1)[1].split()
        return f"{host_boot_id()}/{stat[_START]}"

    def begin(self) -> None:
        try:
            subprocess.run(
                ["systemctl", "--no-block", "reboot"],
                check=True,
                capture_output=True,
                text=True,
                timeout=30,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.CalledProcessError as problem:
            raise DriverFailed(f"systemctl reboot failed: {problem.stderr.strip()[:200]}") from problem
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise DriverFailed(f"systemctl reboot failed: {problem}") from problem


def find_newer_kernel(running: str, files: Iterable[str]) -> str:
    """The newest installed kernel of the running one's flavour, if that is newer; "" is none. ``files``: names like
    vmlinuz-6.1.0-28-amd64."""
    here = _KERNEL.fullmatch(running)
    found = (_KERNEL.fullmatch(name.removeprefix("vmlinuz-")) for name in files)
    alike = [one for one in found if one is not None and here is not None and one[2] == here[2]]
    newest = max(alike, key=_read_version, default=None)
    return newest[0] if newest is not None and here is not None and _read_version(newest) > _read_version(here) else ""


def _read_version(kernel: re.Match[str]) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", kernel[1])]
