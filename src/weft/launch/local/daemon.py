"""Starts what outlives the command that starts it, and finds it again: a pidfile with number and start, a log."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.launch.local.processes import Process, inspect_process, inspect_processes
from weft.objects.errors import DriverFailed

LOG_LIMIT_BYTES = 16 * 1024 * 1024
_LOOK_SECONDS = 0.02
NOT_INHERITED = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")


class Daemon(msgspec.Struct, frozen=True):
    """One long-running command of the cluster in ``state_dir``; ``name`` names its log and pidfile there; ``inside``: the server
    in whose namespaces it runs, "" for the host's."""

    name: str
    argv: tuple[str, ...]
    state_dir: str
    env: dict[str, str] = {}
    inside: str = ""

    @property
    def log(self) -> Path:
        return Path(self.state_dir) / "log" / f"{self.name}.log"

    @property
    def pidfile(self) -> Path:
        return Path(self.state_dir) / "run" / f"{self.name}.pid"


class KeptProcess(msgspec.Struct, frozen=True):
    """The content of a pidfile; ``boot`` because numbers and starts repeat after a reboot."""

    pid: int
    start: int
    boot: str


def find_daemon(daemon: Daemon) -> Process | None:
    """The living process that was started as this daemon, or None."""
    try:
        kept = msgspec.json.decode(daemon.pidfile.read_bytes(), type=KeptProcess)
    except (FileNotFoundError, msgspec.DecodeError):
        return find_by_command(daemon)
    process = inspect_process(kept.pid)
    return process if process is not None and kept == _identify(process) else find_by_command(daemon)


def find_by_command(daemon: Daemon) -> Process | None:
    """The daemon by its command line, which contains the state folder: a killed up may have started it without writing the pidfile.
    The newest: an init's starter, whose line is the same, is older than what it leaves behind."""
    words = len(daemon.argv)
    same = [process for process in inspect_processes() if process.argv[-words:] == daemon.argv]
    return max(same, key=lambda process: (process.start, process.pid), default=None)


def perform_start(daemon: Daemon, entry: tuple[str, ...] = ()) -> Process:
    """Start it in a session of its own, its output in its log, with ``entry`` before its command; raises DriverFailed when it can't
    even be started."""
    rotate_log(daemon.log)
    try:
        with open(daemon.log, "ab", opener=partial(os.open, mode=0o600)) as log:
            child = subprocess.Popen(
                (*entry, *daemon.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=plan_environment(daemon.env),
                start_new_session=True,
            )
    except OSError as error:
        raise DriverFailed(f"{daemon.name} can't be started: {error}", hint="make install") from error
    child.returncode = 0  # it outlives this command: nobody waits for it here
    process = inspect_process(child.pid)
    if process is None:
        raise DriverFailed(f"{daemon.name} exited as soon as it started; {tail_log(daemon.log)}")
    keep(daemon, process)
    return process


async def keep_entered(daemon: Daemon, entering: Process, clock: Clock) -> None:
    """Remember the daemon itself in the place of ``entering``, the process that enters namespaces for it and forks it there, once
    it leads its group."""
    while entering.is_same(inspect_process(entering.pid)):
        process = find_by_command(daemon)
        if process is not None and not process.is_same(entering) and _leads_its_group(process):
            keep(daemon, process)
            return
        await clock.sleep(_LOOK_SECONDS)


def _leads_its_group(process: Process) -> bool:
    try:
        return os.getpgid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def keep(daemon: Daemon, process: Process) -> None:
    """Remember that ``process`` is this daemon."""
    daemon.pidfile.parent.mkdir(parents=True, exist_ok=True)
    write_whole(daemon.pidfile, msgspec.json.encode(_identify(process)))


def plan_environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment and ``extra``, without what make tells its own children."""
    return {name: value for name, value in {**os.environ, **extra}.items() if name not in NOT_INHERITED}


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees the old or the new content, never half of it."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    fresh.rename(path)


def rotate_log(log: Path) -> None:
    """Keep one former log when this one has grown large. Only root reads them: they name people, guests and addresses."""
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.parent.chmod(0o700)
    if log.exists():
        log.chmod(0o600)
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.rename(log.with_name(f"{log.name}.1"))


def tail_log(log: Path, lines: int = 6) -> str:
    """The log's last lines, introduced by its path, for an error message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    last = "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
    return f"{log} ends with:\n{last}" if last else f"{log} is empty"


def _identify(process: Process) -> KeptProcess:
    return KeptProcess(process.pid, process.start, Path("/proc/sys/kernel/random/boot_id").read_text().strip())
