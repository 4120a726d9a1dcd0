"""Makes what a local Ceph cluster needs before its daemons run, and what it needs once its monitor answers.

Every step looks first and does only what is missing, so that a start that was cut off goes on; a store counts as made by a file
that is written last.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from weft.contracts.clock import Clock
from weft.launch.local.ceph.layout import USER, CephPlan, write_conf
from weft.launch.local.commands import run
from weft.launch.local.daemon import write_whole
from weft.objects.errors import DriverFailed, TimedOut

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd", "radosgw", "radosgw-admin")
HINT = "make install CEPH=1"
READY_SECONDS = 90.0
_POLL_SECONDS = 0.2


def find_missing() -> list[str]:
    """The programs of Ceph that aren't installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def check_installed() -> None:
    """Raises DriverFailed."""
    if missing := find_missing():
        raise DriverFailed(f"a local Ceph cluster needs {', '.join(missing)}, which is not installed here", hint=HINT)


def make_monitor(plan: CephPlan) -> None:
    """Configuration, keys and the monitor's store. Raises DriverFailed."""
    check_installed()
    for folder in (plan.folder, plan.log, plan.sockets, f"{plan.folder}/crash", f"{plan.folder}/data"):
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    if not plan.conf.exists():
        write_whole(plan.conf, write_conf(plan, str(uuid.uuid4())).encode())
    if plan.made("mon.a").exists():
        return
    fsid = next(line.split(" = ")[1] for line in plan.conf.read_text().splitlines() if line.startswith("fsid = "))
    fresh = plan.keyring.with_name(f"{plan.keyring.name}.new")
    run(["ceph-authtool", "-C", str(fresh), "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"])
    every = [word for part in ("mon", "osd", "mgr") for word in ("--cap", part, "allow *")]
    run(["ceph-authtool", str(fresh), "--gen-key", "-n", "client.admin", *every])
    os.chmod(fresh, 0o600)
    fresh.rename(plan.keyring)
    address = f"[v1:{plan.address}:{plan.port}]"
    run(["monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, str(plan.monmap)])
    store = plan.data("mon.a")
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(mode=0o700, parents=True)
    words = ["ceph-mon", "-c", str(plan.conf), "-i", "a", "--mkfs", "--monmap", str(plan.monmap)]
    run([*words, "--keyring", str(plan.keyring)])
    plan.made("mon.a").touch()


async def make_others(plan: CephPlan, clock: Clock) -> None:
    """Make, once the monitor answers, keys of the others, the OSDs' stores, and the pool. Raises DriverFailed, TimedOut."""
    await wait_answers(clock, "its monitor answers", lambda: ask(plan, "mon", "stat", seconds=5) is not None)
    await asyncio.to_thread(_make_others, plan)


def _make_others(plan: CephPlan) -> None:
    if not plan.made("mgr.x").exists():
        plan.data("mgr.x").mkdir(mode=0o700, parents=True, exist_ok=True)
        _give_key(plan, "mgr.x", plan.data("mgr.x") / "keyring", mon="allow profile mgr", osd="allow *", mds="allow *")
        plan.made("mgr.x").touch()
    for gateway in plan.gateways:
        if not plan.made(gateway).exists():
            plan.data(gateway).mkdir(mode=0o700, parents=True, exist_ok=True)
            _give_key(plan, f"client.{gateway}", plan.data(gateway) / "keyring", mon="allow rw", osd="allow rwx")
            plan.made(gateway).touch()
    with ThreadPoolExecutor() as several:  # making the stores is what takes long
        for made in [several.submit(_make_osd, plan, number) for number in range(plan.osds)]:
            made.result()
    if not plan.user_keyring.exists():
        ask(plan, "osd", "pool", "create", plan.pool, "8")
        ask(plan, "osd", "pool", "application", "enable", plan.pool, "rbd")
        may = f"profile rbd pool={plan.pool}"
        _give_key(plan, f"client.{USER}", plan.user_keyring, mon="profile rbd", osd=may, mgr=may)


async def wait_ready(plan: CephPlan, clock: Clock) -> None:
    """Wait until every OSD is up and all placement groups are whole. Raises TimedOut."""

    def is_ready() -> bool:
        found = json.loads(ask(plan, "status", "--format", "json", seconds=10) or "{}")
        states = [one["state_name"] for one in found.get("pgmap", {}).get("pgs_by_state", [])]
        return found.get("osdmap", {}).get("num_up_osds") == plan.osds and states == ["active+clean"]

    await wait_answers(clock, "its OSDs are up and its placement groups are clean", is_ready)


def ask(plan: CephPlan, *words: str, seconds: float = 60) -> str | None:
    """Return what `ceph` answers the administrator; None while the cluster doesn't answer."""
    argv = ["ceph", "-c", str(plan.conf), "--connect-timeout", f"{max(1, int(seconds))}", *words]
    try:
        return run(argv, timeout_seconds=seconds + 5)
    except DriverFailed:
        return None


def _give_key(plan: CephPlan, name: str, keyring: Path, **capabilities: str) -> None:
    words = [word for part, may in capabilities.items() for word in (part, may)]
    given = run(["ceph", "-c", str(plan.conf), "auth", "get-or-create", name, *words])
    fresh = keyring.with_name(f"{keyring.name}.new")
    fresh.touch(mode=0o600)
    fresh.write_text(given)
    fresh.rename(keyring)


def _make_osd(plan: CephPlan, number: int) -> None:
    name = f"osd.{number}"
    store = plan.data(name)
    if plan.made(name).exists():
        return
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(mode=0o700, parents=True)
    id_ = str(uuid.uuid4())
    secret = run(["ceph-authtool", "--gen-print-key"]).strip()
    # One whose making was cut off is known to the monitor already, by another id.
    run(["ceph", "-c", str(plan.conf), "osd", "purge-new", name, "--yes-i-really-mean-it"])
    words = ["ceph", "-c", str(plan.conf), "osd", "new", id_, str(number), "-i", "-"]
    run(words, stdin=json.dumps({"cephx_secret": secret}))
    run(["ceph-authtool", "-C", str(store / "keyring"), "-n", name, "-a", secret])
    words = ["ceph-osd", "-c", str(plan.conf), "-i", str(number), "--mkfs", "--osd-uuid", id_]
    run([*words, "--keyring", str(store / "keyring")], timeout_seconds=120)
    plan.made(name).touch()


async def wait_answers(clock: Clock, goal: str, question: Callable[[], bool]) -> None:
    deadline = clock.elapsed() + READY_SECONDS
    while not await asyncio.to_thread(question):
        if clock.elapsed() > deadline:
            raise TimedOut(f"waited {READY_SECONDS:g} s for the local Ceph cluster until {goal}", hint="see its log/")
        await clock.sleep(_POLL_SECONDS)
