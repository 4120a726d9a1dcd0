"""conmon, which holds a container while the agent comes and goes: it creates the container through the runtime, keeps its
output, waits for its end and writes the exit code to a file."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import ContainerPlan
from weft.drivers.linux.log_files import keep_end
from weft.drivers.linux.processes import ProcessId, find_by_argument, inspect_process, read_arguments
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.runtime import Runtime, read_error
from weft.objects.errors import DriverFailed

PROGRAM = "conmon"
INSTALL_HINT = "apt-get install conmon"
LOG_LIMIT_BYTES = 64 << 20  # while no agent turns the log over
COMPLAINTS_BYTES, COMPLAINTS_KEPT_BYTES = 1 << 20, 64 << 10
CREATE_SECONDS = 60.0
DEFAULT_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENTER = 'for group in $1; do echo 0 >"$group"; done; shift; exec "$@"'


class _Created(msgspec.Struct):
    data: int
    message: str = ""


def plan_shim(
    plan: ContainerPlan, paths: ContainerPaths, runtime: Runtime, groups: Collection[str], *, resumes: bool = False
) -> list[str]:
    """Pure. Its command line; ``groups`` are the files by which it enters its control groups first. ``resumes``: its processes
    go on where they were saved."""
    shim = [PROGRAM, "--api-version", "1", "-c", plan.id, "-u", plan.id, "-n", plan.id, "-r", runtime.program]
    shim += ["-b", str(paths.run), "-p", str(paths.pid), "-P", str(paths.shim_pid), "--exit-dir", str(paths.exits)]
    shim += ["-l", f"k8s-file:{paths.log}", "--log-size-max", str(LOG_LIMIT_BYTES), "--no-sync-log", "--full-attach"]
    shim += [f"--runtime-arg={option}" for option in runtime.options]
    shim += ["-t"] if plan.terminal else []
    shim += ["--restore", str(paths.saved.resuming)] if resumes else []
    return ["/bin/sh", "-c", _ENTER, "sh", " ".join(groups), *shim]


def run_shim(words: list[str], complaints: Path, clock: Clock, environment: Mapping[str, str] | None = None) -> None:
    """Start it in this thread's mounts, with ``environment`` beside its own; returns when the container has been created.
    Raises DriverFailed with the runtime's error."""
    ours, theirs = os.pipe()
    try:
        complaints.unlink(missing_ok=True)
        with open(complaints, "ab") as log, open(theirs, "wb"):  # appended to: it may be shortened meanwhile
            subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=(theirs,),
                env={"PATH": os.environ.get("PATH", DEFAULT_PATH), "_OCI_SYNCPIPE": str(theirs), **(environment or {})},
                cwd="/",
                check=False,
            )
        line = _read_line(ours, clock)
    finally:
        os.close(ours)
    try:
        created = msgspec.json.decode(line, type=_Created)
    except msgspec.DecodeError:
        words_left = complaints.read_text(errors="replace").strip()
        raise _failed(
            words_left.splitlines()[-1] if words_left else "conmon ended before it created the container"
        ) from None
    if created.data < 0:
        raise _failed(read_error(created.message))


def shorten_complaints(complaints: Path) -> None:
    """Keep what a shim complains of while its container runs from filling the node's disk. Raises OSError."""
    if complaints.stat().st_size > COMPLAINTS_BYTES:
        keep_end(complaints, COMPLAINTS_KEPT_BYTES)


def find_shim(paths: ContainerPaths) -> ProcessId | None:
    """The live shim that this container's run folder names."""
    pid = _read_pid(paths.shim_pid)
    return inspect_process(pid) if pid is not None and str(paths.run) in read_arguments(pid) else None


def find_first_process(paths: ContainerPaths, members: Collection[int]) -> ProcessId | None:
    """The container's first process, which must be one of its control group's ``members``."""
    pid = _read_pid(paths.pid)
    return inspect_process(pid) if pid is not None and pid in members else None


def search_starters(paths: ContainerPaths) -> list[ProcessId]:
    """Shims and runtimes that work on this container just now, by a search of all processes."""
    return find_by_argument(str(paths.run))


def read_exit_code(paths: ContainerPaths, container_id: str) -> int | None:
    try:
        return int((paths.exits / container_id).read_text())
    except (OSError, ValueError):
        return None


def write_exit_code(paths: ContainerPaths, container_id: str, code: int) -> None:
    """Write the file that the shim writes, for a container whose shim didn't."""
    (paths.exits / container_id).write_text(str(code))


def reopen_log(paths: ContainerPaths) -> None:
    """Have the shim go on in a new file under the log's name. Raises OSError where none listens."""
    descriptor = os.open(paths.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"2 0 0\n")
    finally:
        os.close(descriptor)


def _failed(what: str) -> DriverFailed:
    return DriverFailed(what, details={"step": "create"})


def _read_line(descriptor: int, clock: Clock) -> bytes:
    line, deadline = b"", clock.elapsed() + CREATE_SECONDS
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - clock.elapsed()))
        if not ready:
            raise _failed(f"the container was not created within {CREATE_SECONDS:.0f} s")
        piece = os.read(descriptor, 65536)
        if not piece:
            break
        line += piece
    return line


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
