"""A container whose processes are saved: runc has CRIU write them into files, and they go on from there, on this node or
another.

Saving is one rename: either the container runs, or its folder ``saved`` has all of it and the processes have ended. A program
of its own does it, so an agent that is killed meanwhile changes nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import msgspec

from weft.contracts.clock import Clock
from weft.contracts.driver.container import ContainerPlan
from weft.drivers.linux.processes import ProcessId, find_by_argument
from weft.drivers.linux.syscalls import CLONE_NEWNET, CLONE_NEWNS, enter, unshare
from weft.drivers.runtime.oci.checkpoint.probe import find_error
from weft.drivers.runtime.oci.checkpoint.socket_marks import forget_marks
from weft.drivers.runtime.oci.paths import ContainerPaths
from weft.drivers.runtime.oci.record import ContainerRecord, read_record
from weft.drivers.runtime.oci.runtime import Runtime, read_error
from weft.objects.errors import DriverFailed

SAVE_SECONDS = 600.0
LOOK_SECONDS = 0.05
# Connections end, as in a cold migration: requests on them have time limits of their own.
CRIU_WORDS = "network-lock nftables\ntcp-close\nfile-locks\nlink-remap\nghost-limit 16M\n"
DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"
_SAVE = 'saving=$1 saved=$2; shift 2; "$@" && sync -f "$saving" && mv "$saving" "$saved"'


def plan_save(container_id: str, paths: ContainerPaths, runtime: Runtime) -> list[str]:
    """Pure. The command line that saves it."""
    words = runtime.words(
        "checkpoint",
        "--image-path",
        str(paths.saved.begun),
        "--work-path",
        str(paths.run),
        container_id,
    )
    return ["/bin/sh", "-c", _SAVE, "sh", str(paths.saved.begun), str(paths.saved.whole), *words]


def _join_network(netns: str) -> None:
    """Put this thread into the container's network. CRIU takes its own network as given; another one it would save, and make
    anew."""
    if netns:
        inside = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(inside, CLONE_NEWNET)
        finally:
            os.close(inside)


def save_in_mounts(plan: ContainerPlan, paths: ContainerPaths, runtime: Runtime, shim: ProcessId) -> None:
    """Save the container in a thread of its own, among the mounts that its shim sees. It has ended when this returns. Raises
    DriverFailed: it runs."""
    drop_saved(paths)
    paths.saved.begun.mkdir()
    paths.saved.begun.chmod(
        0o711
    )  # those who go on from there read it as users of their own; beyond the folder above nobody else comes
    unshare(CLONE_NEWNS)  # one may only enter others' alone
    mounts = os.open(f"/proc/{shim.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(mounts, CLONE_NEWNS)
    finally:
        os.close(mounts)
    _join_network(plan.netns)
    words, log = plan_save(plan.id, paths, runtime), paths.run / DUMP_LOG
    log.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, timeout=SAVE_SECONDS, cwd="/", check=False,
            env={**os.environ, **configure_criu(paths)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:  # it may be done yet: then it is found saved
        raise DriverFailed(f"it was not saved within {SAVE_SECONDS:.0f} s", reason="notSaved") from None
    if done.returncode != 0:
        shutil.rmtree(paths.saved.begun, ignore_errors=True)
        why = read_log(log) or read_error(done.stderr.decode(errors="replace"))
        raise DriverFailed(
            f"it can't be checkpointed while it runs: {why}", reason="notSaved", details={"step": "save"}
        )


def configure_criu(paths: ContainerPaths, group: str = "") -> dict[str, str]:
    """The variable that names CRIU's configuration file, beside runc's own options. (The annotation for it is not for options
    with a value: CRIU 3.17 crashes.) ``group``: the control group to go on in, whichever it was saved in."""
    paths.saved.words.write_text(CRIU_WORDS + (f"cgroup-root /{group}\n" if group else ""))
    return {"CRIU_CONFIG_FILE": str(paths.saved.words)}


def read_log(path: Path) -> str:
    """The first error in CRIU's log, which is the cause of the others; empty without one."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    why = find_error(text)
    return f"criu: {why}" if why else ""


async def wait_for_saver(paths: ContainerPaths, clock: Clock) -> None:
    """Return when no process is saving it any more."""
    deadline = clock.elapsed() + SAVE_SECONDS
    while paths.saved.begun.exists() and clock.elapsed() < deadline and find_by_argument(str(paths.saved.begun)):
        await clock.sleep(LOOK_SECONDS)


def begin_resuming(paths: ContainerPaths) -> None:
    """Begin resuming: from now on the container may run, so the saved state is no longer its state."""
    shutil.rmtree(paths.saved.resuming, ignore_errors=True)
    paths.saved.whole.rename(paths.saved.resuming)


def prepare_resuming(plan: ContainerPlan, paths: ContainerPaths) -> None:
    """Prepare resuming in a thread of its own, whose mounts are the container's. Raises DriverFailed."""
    _join_network(plan.netns)
    try:
        forget_marks(paths.saved.resuming)
    except (OSError, ValueError) as problem:
        raise DriverFailed(f"its saved state can't be read: {problem}", details={"step": "resume"}) from None


def settle_resuming(paths: ContainerPaths, *, runs: bool) -> None:
    """Settle a resume: if the container ``runs``, or did, the saved state is dropped; else the container is as saved as before."""
    if runs:
        drop_saved(paths)
    elif paths.saved.resuming.exists():
        paths.saved.resuming.rename(paths.saved.whole)


def drop_saved(paths: ContainerPaths) -> None:
    for folder in (paths.saved.whole, paths.saved.begun, paths.saved.resuming):
        shutil.rmtree(folder, ignore_errors=True)
    paths.saved.carried.unlink(missing_ok=True)


def pack(paths: ContainerPaths) -> None:
    """Write everything that goes to another node into one file; volumes go by themselves. Blocks. Raises DriverFailed."""
    shutil.copy(paths.record, paths.saved.whole / paths.record.name)
    written = paths.disk if paths.disk.exists() else paths.upper
    names = [str(path.relative_to(paths.state)) for path in (paths.saved.whole, written)]
    _run_tar(["--create", "--sparse", "--file", str(paths.saved.carried), "-C", str(paths.state), *names], "packed")


def unpack(paths: ContainerPaths) -> ContainerRecord:
    """Read another node's packed file, with its record of the container. Blocks. Raises DriverFailed."""
    _run_tar(["--extract", "--file", str(paths.saved.carried), "-C", str(paths.state)], "unpacked")
    record = read_record(msgspec.structs.replace(paths, state=paths.saved.whole))
    if record is None or not is_saved(record):
        raise DriverFailed("the received data is not a saved container", details={"step": "carry"})
    return record


def _run_tar(words: list[str], what: str) -> None:
    """Overlayfs keeps deletions as devices, and more in attributes that only the node's root may set."""
    also = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls"]
    done = subprocess.run(["tar", *also, *words], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise DriverFailed(
            f"a saved container can't be {what}: {why[-1] if why else done.returncode}", details={"step": "carry"}
        )


def is_saved(record: ContainerRecord) -> bool:
    return record.end is not None and record.end.state == "suspended"
