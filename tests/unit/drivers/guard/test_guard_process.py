"""The guard of a node, with real processes: it ends them in time, whatever is killed before."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.driver.host import Capacity, Host
from weft.drivers.guard.driver import GuestGuard
from weft.drivers.guard.holds import MOST_HOLDS, MOST_PATH
from weft.objects.errors import DriverFailed

PATIENCE = 60.0
FAR = 10_000.0


class LooseGroups:
    """Stands in for control groups: folders whose ``cgroup.procs`` names the processes, as in a tree of version 1."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def list_folders(self, name: str) -> list[Path]:
        return [self._folder / name]

    def leave_agent(self) -> list[Path]:
        return []

    def put(self, name: str, pid: int) -> None:
        (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / name / "cgroup.procs").write_text(f"{pid}\n")


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.groups = folder, LooseGroups(folder / "groups")
        self.guests: list[subprocess.Popen[bytes]] = []
        self.guard = self.make()

    def make(self) -> GuestGuard:
        """As of an agent that has just started."""
        host = Host(
            "n1", "u1", str(self.folder), str(self.folder), "wtgd", "127.0.0.1", "lo", "weft/t", Capacity(1, 1 << 30, 1)
        )
        guard = GuestGuard(host, SystemClock())
        guard._groups = self.groups  # type: ignore[assignment]
        return guard

    def start(self, name: str) -> subprocess.Popen[bytes]:
        guest = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.guests.append(guest)
        self.groups.put(name, guest.pid)
        return guest

    def find_guards(self) -> list[int]:
        """The guard's processes, of which the first is the parent."""
        parents = dict[int, int]()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):  # it may end meanwhile
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                if str(self.folder / "guard").encode() in words and state != "Z":
                    parents[int(entry.name)] = int(parent)
        return sorted(parents, key=lambda pid: parents[pid] in parents)


def wait(holds: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    try:
        yield place
    finally:
        for pid in place.find_guards():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)  # else each begins the other one
        for pid in place.find_guards():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for guest in place.guests:
            guest.kill()
            guest.wait()


def soon(guard: GuestGuard, seconds: float) -> float:
    return guard.read_time() + seconds


async def test_a_guest_whose_time_is_over_is_ended_and_the_others_run_on(place: Place) -> None:
    ends, stays = place.start("ends"), place.start("stays")
    held = await place.guard.renew({"ends": soon(place.guard, 0.2), "stays": soon(place.guard, FAR)})
    assert sorted(held) == ["ends", "stays"]
    wait(lambda: ends.poll() is not None, "it was not ended")
    assert stays.poll() is None
    after = (await place.guard.read())["ends"]
    assert after.ended_at >= after.until


async def test_all_whose_time_is_over_end_though_the_disk_hangs_that_it_writes_to(place: Place) -> None:
    guests = [place.start(name) for name in ("a", "b", "c")]
    await place.guard.renew(dict.fromkeys(("a", "b", "c"), soon(place.guard, 1.0)))
    os.mkfifo(place.folder / "guard" / "guard.json.new")  # who opens it for writing waits for a reader
    for guest in guests:
        wait(lambda guest=guest: guest.poll() is not None, "it was not ended")


async def test_no_page_of_it_has_to_be_read_from_a_disk(place: Place) -> None:
    await place.guard.renew({"guest": soon(place.guard, FAR)})

    def read(pid: int, field: str) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    for pid in place.find_guards():
        wait(lambda pid=pid: read(pid, "VmLck:") >= read(pid, "VmRSS:") * 0.9 > 0, "its memory is not locked")


async def test_a_guest_that_is_started_after_its_time_is_ended(place: Place) -> None:
    await place.guard.renew({"late": soon(place.guard, 0.0)})
    guest = place.start("late")
    wait(lambda: guest.poll() is not None, "it was not ended")


async def test_kill_9_of_either_process_loses_nothing(place: Place) -> None:
    """Neither the one that serves nor the one that watches it: the guest still ends in time, though no agent does anything."""
    guest = place.start("guest")
    await place.guard.renew({"guest": soon(place.guard, 4.0)})
    for which in (1, 0):
        wait(lambda: len(place.find_guards()) == 2, "there are not two of them")
        os.kill(place.find_guards()[which], signal.SIGKILL)
    wait(lambda: guest.poll() is not None, "it was not ended")


async def test_a_process_that_serves_and_is_stopped_is_replaced(place: Place) -> None:
    guest = place.start("guest")
    await place.guard.renew({"guest": soon(place.guard, 1.0)})
    wait(lambda: len(place.find_guards()) == 2, "there are not two of them")
    os.kill(place.find_guards()[1], signal.SIGSTOP)
    wait(lambda: guest.poll() is not None, "it was not ended")
    assert (await place.guard.read())["guest"].ended_at > 0


async def test_an_agent_that_starts_again_finds_what_was_done_also_without_a_guard(place: Place) -> None:
    guest = place.start("guest")
    await place.guard.renew({"guest": soon(place.guard, 0.1)})
    wait(lambda: guest.poll() is not None, "it was not ended")
    for pid in (guards := place.find_guards()):
        os.kill(pid, signal.SIGSTOP)
    for pid in guards:
        os.kill(pid, signal.SIGKILL)
    wait(lambda: not place.find_guards(), "they are still there")
    again = place.make()
    assert (await again.read())["guest"].ended_at > 0
    other = place.start("guest")
    held = await again.renew({"other": soon(again, FAR)})  # a new one goes on from what the former held
    assert sorted(held) == ["guest", "other"]
    wait(lambda: other.poll() is not None, "what the former guard held was forgotten")


async def test_a_guard_that_holds_nothing_ends(place: Place) -> None:
    await place.guard.renew({"guest": soon(place.guard, FAR)})
    assert len(place.find_guards()) == 2
    await place.guard.drop(["guest"])
    wait(lambda: not place.find_guards(), "it is still there")
    assert await place.guard.read() == {}


async def test_what_the_guard_refuses_is_an_error_with_its_words(place: Place) -> None:
    with pytest.raises(DriverFailed, match="at most 64 characters"):
        await place.guard.renew({"x" * 65: 1.0})
    assert await place.guard.read() == {}


async def test_as_many_guests_as_it_holds_are_answered_with_the_longest_paths(place: Place) -> None:
    """Of three trees of version 1. An empty answer would say that there is no guard, and the agent would end the guests."""
    trees = [f"/{tree}/{'p' * (MOST_PATH - 20)}" for tree in ("cpu", "memory", "pids")]
    place.groups.list_folders = lambda name: [Path(f"{tree}/{name}") for tree in trees]  # type: ignore[method-assign]
    names = [f"g{number:09}" for number in range(MOST_HOLDS)]
    until = soon(place.guard, FAR)
    assert sorted(await place.guard.renew(dict.fromkeys(names, until))) == names
    held = await place.guard.read()
    assert {one.until for one in held.values()} == {until} and sorted(held) == names
    with pytest.raises(DriverFailed, match="at most 1000 guests"):
        await place.guard.renew({"one-more": until})
    await place.guard.drop(names)


async def test_both_processes_take_little_memory(place: Place) -> None:
    await place.guard.renew({"guest": soon(place.guard, FAR)})
    sizes = []
    for pid in place.find_guards():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes.append(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
    assert len(sizes) == 2
    assert sum(sizes) < 20_000, sizes


async def test_it_ends_once_its_folder_is_gone_and_all_that_it_held_has_ended(place: Place) -> None:
    guest = place.start("guest")
    await place.guard.renew({"guest": soon(place.guard, 1.0)})
    wait(lambda: len(place.find_guards()) == 2, "there are not two of them")
    shutil.rmtree(place.folder / "guard")
    wait(lambda: guest.poll() is not None, "it was not ended")
    guest.wait()
    shutil.rmtree(place.folder / "groups")  # as its control group is
    wait(lambda: not place.find_guards(), "it stays for ever")
