"""`make down`: ends a clone's local cluster and removes everything it made on this machine.

Finds things by what they are called and not only by what was written down, so it also cleans up after `kill -9`, a
half-made up, or a lost `.weft`. It repeats safely, goes on past a failure and reports all of them at the end. Keeps
`.weft/cache` (images, kernels), so the next up is quick.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from weft.contracts.clock import Clock
from weft.drivers.linux.mounts import read_mounts
from weft.launch.local import cgroups, underlay
from weft.launch.local.choice import find_topology
from weft.launch.local.commands import run
from weft.launch.local.lock import FILE as LOCK_FILE
from weft.launch.local.lock import hold_lock
from weft.launch.local.processes import Process, end, inspect_processes, is_weft
from weft.launch.local.progress import Progress
from weft.launch.local.topology import Topology
from weft.objects.errors import DriverFailed, WeftError

CACHE = "cache"
WEST = "west"  # the second cluster, and its folder in the state folder of the first
GRACE_SECONDS = 5.0
ROUNDS = 20
ROUND_SECONDS = 0.1


async def down(clone: str, clock: Clock, stream: TextIO) -> None:
    """End the cluster of the clone at absolute path ``clone`` and remove its state, but for the cache; before it its second
    cluster, if it has one.

    Raises InUse while an up or down of this clone is under way, DriverFailed naming whatever could not be removed.
    """
    state = Path(clone) / ".weft"
    if (second := find_second(clone)) is not None:
        (Path(second) / ".weft").mkdir(mode=0o700, parents=True, exist_ok=True)
        if (shared := Path(second) / ".weft" / CACHE).is_symlink():
            shared.unlink()
        stream.write(f"{WEST}, the second cluster:\n")
        await down(second, clock, stream)
        stream.write("the first cluster:\n")
    progress = Progress(stream, clock)
    with hold_lock(state, "make down"):
        topology = find_topology(clone)
        failures: list[str] = []
        await progress.show("processes", _end_processes(state, topology, failures))
        if topology is not None:
            await progress.show("machine", _clear_machine(topology, clock, failures))
        _raise_if(failures)
        await progress.show("state", _remove_state(state))


def place_second(clone: str) -> str:
    """The folder that is the clone of the second cluster."""
    return f"{clone}/.weft/{WEST}"


def find_second(clone: str) -> str | None:
    """Find the folder of a second cluster that exists, or still runs. Raises InUse as ``find_topology``."""
    home = place_second(clone)
    return home if (Path(home) / ".weft").is_dir() or find_topology(home) is not None else None


async def end_former(clone: str, clock: Clock, progress: Progress) -> None:
    """End all that runs from the clone, and remove what it made but for its state folder: it was started with another state
    folder than the clone has now, so it can't go on. Shows a row if there is anything.

    Raises DriverFailed naming whatever could not be removed."""
    state, topology = Path(clone) / ".weft", find_topology(clone)
    found = find_processes(state, topology)
    if topology is None and not found:
        return

    async def perform() -> str:
        failures: list[str] = []
        await _end_processes(state, topology, failures)
        if topology is not None:
            await _clear_machine(topology, clock, failures)
        _raise_if(failures)
        return f"stopped {len(found)} processes of a cluster that ran from this clone with another .weft"

    await progress.show("former", perform())


def _raise_if(failures: list[str]) -> None:
    if failures:
        raise DriverFailed("make down left: " + "; ".join(failures), hint="check what is left, then make down again")


def find_processes(state: Path, topology: Topology | None) -> list[Process]:
    """Everything of this cluster that runs: weft's daemons, engines, and whatever is in its cgroups."""
    folders = [str(state)] if topology is None else [str(state), topology.run_dir]
    members = set() if topology is None else cgroups.find_members(topology.cgroup)
    return [p for p in inspect_processes() if p.pid != os.getpid() and (p.pid in members or is_weft(p, folders))]


async def _end_processes(state: Path, topology: Topology | None, failures: list[str]) -> str:
    ended: set[int] = set()
    servers = [p for p in find_processes(state, topology) if "server" in p.argv]
    ended |= {p.pid for p in servers}
    end(servers, signal.SIGTERM, GRACE_SECONDS)  # it closes its store; everything else is cut off
    for _ in range(ROUNDS):
        found = find_processes(state, topology)
        if not found:
            break
        ended |= {p.pid for p in found}
        if topology is not None:
            cgroups.perform_thaw(topology.cgroup)
        end(found, signal.SIGKILL, GRACE_SECONDS)
    left = find_processes(state, topology)
    failures += [f"process {p.pid} ({' '.join(p.argv[:4])}) does not exit" for p in left]
    return f"{len(ended)} stopped" if ended else "none were running"


async def _clear_machine(topology: Topology, clock: Clock, failures: list[str]) -> str:
    removers: list[Callable[[], None]] = [
        lambda: _remove_links(topology),
        lambda: _remove_named_namespaces(topology),
        lambda: _remove_firewall(topology),
        lambda: _unmount(topology),
        lambda: cgroups.perform_remove(topology.cgroup),
        lambda: underlay.perform_restore_forwarding(topology),
    ]
    for remove in removers:
        # The kernel takes namespaces and groups apart a moment after their last process.
        for attempt in range(ROUNDS):
            try:
                remove()
                break
            except (WeftError, OSError) as error:
                if attempt == ROUNDS - 1:
                    failures.append(str(error))
                await clock.sleep(ROUND_SECONDS)
    if not failures:
        shutil.rmtree(topology.run_dir, ignore_errors=True)
    return "links, namespaces, mounts, cgroups, firewall table removed"


async def _remove_state(state: Path) -> str:
    if find_mounts(str(state)):
        raise DriverFailed(f"something is mounted below {state}", hint=f"findmnt -R {state}")
    for entry in state.iterdir():
        if entry.name in (CACHE, LOCK_FILE):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (state / LOCK_FILE).unlink()
    cache = state / CACHE
    if not cache.exists():
        state.rmdir()
        return ".weft removed"
    size = sum(file.stat().st_blocks * 512 for file in cache.rglob("*") if file.is_file())
    return f"removed; kept .weft/cache ({size / 1e6:.0f} MB) for the next make up; rm -r .weft frees it"


def find_mounts(*folders: str) -> list[str]:
    """Mount points at or below ``folders`` in this mount namespace, deepest first."""
    points = [mount.point for mount in read_mounts()]
    return [
        point
        for point in reversed(points)
        if any(point == folder or point.startswith(f"{folder}/") for folder in folders)
    ]


def _remove_links(topology: Topology) -> None:
    for link in underlay.inspect_links():
        if link.startswith(topology.link_prefix):
            underlay.perform_remove_link(link)


def _remove_named_namespaces(topology: Topology) -> None:
    for line in run(["ip", "netns", "list"]).splitlines():
        name = line.split()[0]
        if name.startswith(topology.link_prefix):
            run(["ip", "netns", "del", name])


def _remove_firewall(topology: Topology) -> None:
    if f"table inet {topology.nft_table}" in run(["nft", "list", "tables"]).splitlines():
        run(["nft", "delete", "table", "inet", topology.nft_table])


def _unmount(topology: Topology) -> None:
    for point in find_mounts(topology.state_dir, topology.run_dir):
        run(["umount", "--lazy", point])
