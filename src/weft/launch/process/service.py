"""Services that weft's Debian packages bring: whether systemd runs them here, and their start."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from weft.objects.errors import DriverFailed

_SYSTEMD = Path("/run/systemd/system")  # there while it is this machine's first process: sd_booted(3)
_UNITS = (Path("/etc/systemd/system"), Path("/lib/systemd/system"))
_SECONDS = 120.0


def has_service(name: str) -> bool:
    """Whether this machine's systemd has the service, and this process may start it."""
    there = any((folder / f"{name}.service").exists() for folder in _UNITS)
    return os.geteuid() == 0 and _SYSTEMD.is_dir() and there


def start_service(name: str) -> None:
    """Start it now and at each boot; nothing changes if it runs. Raises DriverFailed."""
    argv = ["systemctl", "--quiet", "enable", "--now", f"{name}.service"]
    run = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if run.returncode:
        said = run.stderr.strip().splitlines()
        raise DriverFailed(
            f"{name} can't be started: {said[0] if said else f'exit code {run.returncode}'}",
            hint=f"journalctl -u {name} says why; then: systemctl start {name}",
        )
