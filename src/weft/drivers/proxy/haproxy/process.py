"""The process of a proxy: HAProxy's master with its worker, found, started, reloaded, ended. It outlives the agent, and is known by
its pid file and its whole command line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from weft.contracts.clock import Clock
from weft.drivers.cgroup.groups import ControlGroups
from weft.drivers.cgroup.limits import Limits
from weft.drivers.linux.processes import ProcessId, inspect_process, read_arguments
from weft.drivers.linux.programs import Finished, run_program
from weft.drivers.proxy.haproxy.config import CONFIG, PID
from weft.drivers.proxy.haproxy.control import ask
from weft.objects.errors import DriverFailed

PACKAGE = "haproxy"
LIMITS = Limits(memory_bytes=256 << 20, pids=64)
START_SECONDS, RELOAD_SECONDS, PAUSE_SECONDS = 10.0, 5.0, 0.02
_LOOKS = 100
# Into its control group and the namespace of the endpoints, before it is HAProxy.
_ENTER = 'while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@"'


def plan_command(folder: Path) -> list[str]:
    return [PACKAGE, "-W", "-D", "-f", str(folder / CONFIG), "-p", str(folder / PID)]


def find(folder: Path) -> ProcessId | None:
    """The master that runs on these files."""
    try:
        pid = int((folder / PID).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    process = inspect_process(pid)
    words = read_arguments(pid)
    for _ in range(_LOOKS):  # while it starts itself again, in a reload, it has no command line
        if words or process is None or inspect_process(pid) != process:
            break
        os.sched_yield()
        words = read_arguments(pid)
    return process if process is not None and str(folder / CONFIG) in words else None


async def start(folder: Path, namespace: str, groups: ControlGroups, group: str, clock: Clock) -> ProcessId:
    """Start it in a control group of its own; it listens when this returns. Raises DriverFailed."""
    await _run([PACKAGE, "-v"], "look for it")  # says what to install, where nsenter would only fail
    files = [str(path) for path in groups.create_if_possible(group, LIMITS)]
    argv = ["nsenter", f"--net={namespace}", "sh", "-c", _ENTER, "sh", *files, "--", *plan_command(folder)]
    done = await _run(argv, "start")
    until = clock.elapsed() + RELOAD_SECONDS
    while done.code == 0 and clock.elapsed() < until:
        if (process := find(folder)) is not None:
            return process
        await clock.sleep(PAUSE_SECONDS)
    raise DriverFailed(f"proxy: it doesn't start: {_shorten(done)}", details={"step": "proxy"})


async def check(folder: Path, namespace: str) -> None:
    """Whether it would take its files. Raises DriverFailed."""
    argv = ["nsenter", f"--net={namespace}", PACKAGE, "-c", "-q", "-f", str(folder / CONFIG)]
    done = await _run(argv, "check")
    if done.code != 0:
        raise DriverFailed(f"proxy: its configuration is refused: {_shorten(done)}", details={"step": "proxy"})


async def list_addresses(namespace: Path) -> set[str]:
    """The addresses in a network namespace. Raises DriverFailed."""
    done = await _run(["nsenter", f"--net={namespace}", "ip", "-o", "addr", "show"], "look for addresses")
    if done.code != 0:
        raise DriverFailed(f"proxy: its network can't be read: {_shorten(done)}", details={"step": "proxy"})
    words = [line.split() for line in done.output.splitlines()]
    return {each[3].partition("/")[0] for each in words if len(each) > 3 and each[2] in ("inet", "inet6")}


async def reload(process: ProcessId, socket_: Path, clock: Clock) -> None:
    """Have it read its files; the worker before ends with its connections. Returns when the new one takes changes at ``socket_``.
    Raises DriverFailed."""
    os.kill(process.pid, signal.SIGUSR2)
    until = clock.elapsed() + RELOAD_SECONDS
    while clock.elapsed() < until:
        await clock.sleep(PAUSE_SECONDS)
        try:
            await ask(socket_, "show info")
        except DriverFailed:
            continue  # it isn't there yet
        return
    raise DriverFailed("proxy: its reload did not end in time", details={"step": "proxy"})


async def _run(argv: list[str], step: str) -> Finished:
    return await run_program(argv, f"proxy: {step}", PACKAGE, seconds=START_SECONDS)


def _shorten(done: Finished) -> str:
    """Its complaints, without the lines that only announce. (It prints no key: it names files.)"""
    lines = [line for line in done.errors.splitlines() if "[ALERT]" in line] or done.errors.splitlines()
    return " ".join(line.partition(": ")[2] or line for line in lines)[-300:] or f"exit status {done.code}"
