"""A machine's memory on its way to another machine: the commands for QEMU at either end, and what its answers mean.

Speaks to the monitor of one guest; what a migration has come to is read from QEMU each time, nothing of it is kept here.
QEMU resumes a source whose migration fails by itself, and calls a migration ``completed`` only when it never will again. So a
target that stands still until its source reports ``completed`` is never the second one that runs.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from weft.contracts.driver.migration import MigrationFacts, MigrationSettings, MigrationStage
from weft.contracts.driver.runtime import GuestPlan
from weft.drivers.runtime.qemu.devices.ids import disk_name, find_served
from weft.drivers.runtime.qemu.guest import HANDED_OVER, Guest
from weft.drivers.runtime.qemu.machine_shape import Frame, find_live_bar
from weft.drivers.runtime.qemu.qmp import Qmp
from weft.drivers.runtime.qemu.record import MigrationRecord
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, Unavailable

CANCEL_SECONDS = 30.0
_CAPABILITIES = (
    "events", "return-path", "auto-converge", "xbzrle", "multifd", "pause-before-switchover", "late-block-activate",
    "background-snapshot", "x-ignore-shared",
)  # fmt: skip
RAM_STAYS = "x-ignore-shared"  # RAM that is a file is left out of what is saved, and of what is loaded
_ALWAYS = {"events", "return-path", "late-block-activate", "auto-converge"}  # what is to work later is armed beforehand
_OF_MODE = {"xbzrle": {"xbzrle"}, "multifd-zstd": {"multifd"}}
COPY = "copy-"  # jobs and nodes that copy disks begin so
_LEAST_SLOWDOWN = 1  # percent: what an armed auto-converge does until it gets another limit
_NO_LIMIT = 1 << 40  # bytes per second; without a word QEMU takes 128 MiB/s
_UNDER_WAY = ("setup", "active", "device", "pre-switchover", "wait-unplug", "cancelling")

_SOURCE: dict[str, MigrationStage] = {
    "none": "waiting", "setup": "migrating", "active": "migrating", "wait-unplug": "migrating", "device": "switching",
    "pre-switchover": "switching", "completed": "handedOver",
}  # fmt: skip
_TARGET: dict[str, MigrationStage] = {
    "none": "waiting", "setup": "waiting", "active": "migrating", "completed": "arrived",
}  # fmt: skip


async def choose_capabilities(qmp: Qmp, wanted: set[str]) -> None:
    """Exactly these of what weft uses, whatever a migration before has left."""
    states = [{"capability": name, "state": name in wanted} for name in _CAPABILITIES]
    await qmp.execute("migrate-set-capabilities", capabilities=states)


async def arm_migration(qmp: Qmp, settings: MigrationSettings) -> None:
    """Both ends alike, before the first byte."""
    held = {"pause-before-switchover"} if settings.copied_disks else set()
    await choose_capabilities(qmp, _ALWAYS | held | _OF_MODE.get(settings.mode, set()))
    parameters = plan_limits(
        bytes_per_second=settings.bytes_per_second, pause_ms=settings.pause_ms, slowdown=settings.slowdown
    )
    parameters["xbzrle-cache-size"] = settings.cache_bytes
    if settings.mode == "multifd-zstd":
        parameters |= {"multifd-channels": settings.streams, "multifd-compression": "zstd"}
    await qmp.execute("migrate-set-parameters", **parameters)


async def begin_waiting(guest: Guest, settings: MigrationSettings) -> None:
    """The target listens; QEMU makes the socket in the guest's run folder, since it may write nowhere else."""
    qmp = guest.monitor()
    guest.paths.migration_socket("incoming").unlink(missing_ok=True)
    await arm_migration(qmp, settings)
    await qmp.execute(
        "migrate-incoming", uri=f"unix:{guest.paths.migration_socket('incoming')}", **{"exit-on-error": False}
    )


def link_socket(guest: Guest, to: str, link: Path, user: int) -> None:
    """The source's QEMU may enter no folder but its own, so a socket that it sends to gets a second name there."""
    name = guest.record.plan.name
    link.unlink(missing_ok=True)
    try:
        os.link(to, link)
        os.chown(link, -1, user)
        link.chmod(0o770)
    except OSError as problem:
        raise DriverFailed(
            f"vm/{name}: {to} can't be reached: {problem.strerror}",
            hint="it must be a unix socket on the file system of the node's run folder",
            details={"step": "send"},
        ) from problem


async def begin_sending(guest: Guest, settings: MigrationSettings) -> None:
    """The source sends its memory."""
    qmp = guest.monitor()
    await arm_migration(qmp, settings)
    if settings.mode == "stop-and-copy":
        await qmp.execute("stop")
    await qmp.execute("migrate", uri=f"unix:{guest.paths.migration_socket('outgoing')}")


def plan_limits(*, bytes_per_second: int | None, pause_ms: int | None, slowdown: float | None) -> dict[str, Any]:
    """Pure. QEMU's parameters for those that are given. It begins to slow a guest down when passes don't shrink, at
    ``initial`` percent, and goes on by ``increment`` up to ``max``; a lower one than before is never gone back to."""
    parameters: dict[str, Any] = {}
    if bytes_per_second is not None:
        parameters["max-bandwidth"] = bytes_per_second or _NO_LIMIT
    if pause_ms is not None:
        parameters["downtime-limit"] = pause_ms
    if slowdown is not None:
        percent = min(99, max(_LEAST_SLOWDOWN, round(slowdown * 100)))
        parameters["cpu-throttle-initial"] = parameters["cpu-throttle-increment"] = percent
        parameters["max-cpu-throttle"] = percent if slowdown == 0 else max(percent, 99)
    return parameters


async def inspect_migration(guest: Guest) -> MigrationFacts:
    """Ask QEMU about the guest's migration; one that has ended counts as failed. Raises Unavailable."""
    migration = guest.record.migration
    assert migration is not None
    if not guest.running:
        end = guest.record.end
        return MigrationFacts(
            migration.key,
            migration.role,
            "handedOver" if migration.left else "failed",
            f"QEMU has ended: {end.reason if end else '?'}",
        )
    if migration.taken:
        return MigrationFacts(migration.key, migration.role, "takenOver")
    try:
        qmp = guest.monitor()
        if migration.role == "source" and not migration.sending:
            return describe_copies(migration, await inspect_copies(qmp))
        answer, state = await asyncio.gather(qmp.execute("query-migrate"), qmp.execute("query-status"))
        facts = describe_migration(migration, answer, state["status"], _find_absent(guest))
        message, reason = _explain_copies(guest.copy_errors)
        if facts.phase == "failed" and message is not None and (reason or facts.message is None):
            return msgspec.structs.replace(facts, message=message, reason=reason)
        return facts
    except Unavailable:
        await guest.settle()
        if guest.running:
            raise
        return await inspect_migration(guest)


def _find_absent(guest: Guest) -> int:
    """Memory that could be plugged in and isn't: QEMU counts it, and nothing of it is sent."""
    frame, plan = guest.record.frame, guest.record.plan
    return max(0, frame.memory_bytes + frame.pluggable_bytes - plan.memory_bytes) if frame is not None else 0


def describe_migration(
    migration: MigrationRecord, answer: dict[str, Any], run_state: str, absent_bytes: int = 0
) -> MigrationFacts:
    """Pure. QEMU's answer to query-migrate in our words, without ``absent_bytes`` that only it takes for memory. It may speak of
    a migration before: a machine that migrated here is ``completed`` too, but only one that another goes on for is in the
    state after it."""
    status, memory = str(answer.get("status", "none")), answer.get("ram", {})
    if migration.role == "source" and status == "completed" and run_state != HANDED_OVER:
        status = "none"
    page = int(memory.get("page-size", 4096))
    return MigrationFacts(
        key=migration.key,
        role=migration.role,
        phase=(_SOURCE if migration.role == "source" else _TARGET).get(status, "failed"),
        message=answer.get("error-desc"),
        sent_bytes=int(memory.get("transferred", 0)),
        remaining_bytes=int(memory.get("remaining", 0)),
        total_bytes=max(0, int(memory.get("total", 0)) - absent_bytes),
        passes=int(memory.get("dirty-sync-count", 0)),
        dirty_bytes_per_second=int(memory.get("dirty-pages-rate", 0)) * page,
        bytes_per_second=int(memory.get("mbps", 0) * 125_000),
        expected_pause_ms=int(answer.get("expected-downtime", 0)),
        elapsed_ms=int(answer.get("total-time", 0)),
    )


async def inspect_copies(qmp: Qmp) -> dict[str, dict[str, Any]]:
    """QEMU's jobs that copy disks, by name."""
    return {job["id"]: job for job in await qmp.execute("query-jobs") if job["id"].startswith(COPY)}


def describe_copies(migration: MigrationRecord, jobs: dict[str, dict[str, Any]]) -> MigrationFacts:
    """Pure. A migration whose memory waits for its disks. Fewer jobs than disks: their driver didn't come to the end."""
    errors = [str(job["error"]) for job in jobs.values() if "error" in job]
    whole = len(jobs) == len(migration.settings.copied_disks)
    done, total = (sum(int(job[f"{part}-progress"]) for job in jobs.values()) for part in ("current", "total"))
    phase: MigrationStage = "failed" if errors else "migrating" if whole else "waiting"
    facts = MigrationFacts(migration.key, migration.role, phase, *_explain_copies(errors))
    return msgspec.structs.replace(facts, sent_bytes=done, remaining_bytes=max(0, total - done), total_bytes=total)


def _explain_copies(errors: list[str]) -> tuple[str | None, str]:
    """Why copying a disk failed, as message and reason: reading is the guest's own business, so it is the other end that
    is full."""
    if not errors:
        return None, ""
    full = next((error for error in errors if "No space left" in error), "")
    return f"a disk couldn't be copied there: {full or errors[0]}", "noSpace" if full else ""


async def end_sending(guest: Guest) -> MigrationStage:
    """Break the source's migration off, unless it is through: ``failed``, ``waiting`` or ``handedOver``. Raises DriverFailed."""
    qmp, deadline = guest.monitor(), guest.clock.elapsed() + CANCEL_SECONDS
    while (status := (await qmp.execute("query-migrate")).get("status", "none")) in _UNDER_WAY:
        if guest.clock.elapsed() > deadline:
            raise DriverFailed(
                f"vm/{guest.record.plan.name}: QEMU doesn't cancel its migration", details={"step": "cancel"}
            )
        if status != "cancelling":
            await qmp.execute("migrate_cancel")
        await guest.clock.sleep(0.01)
    return (await inspect_migration(guest)).phase


async def run_on(guest: Guest) -> None:
    """The guest runs here, if it doesn't already; QEMU itself may be about to let it."""
    qmp, deadline = guest.monitor(), guest.clock.elapsed() + CANCEL_SECONDS
    while (status := (await qmp.execute("query-status"))["status"]) == "finish-migrate":
        if guest.clock.elapsed() > deadline:
            raise DriverFailed(f"vm/{guest.record.plan.name}: QEMU doesn't resume it", details={"step": "cont"})
        await guest.clock.sleep(0.005)
    if status in ("paused", "prelaunch", HANDED_OVER):
        await _go_on(guest, qmp)
        status = "running"
    guest.status = status


async def _go_on(guest: Guest, qmp: Qmp) -> None:
    """Returns when QEMU says that the guest runs: its answer has to wait for a word beside a guest that does."""
    resumed, answered = qmp.expect("RESUME"), guest.keep(_continue(qmp))
    await asyncio.wait((resumed, answered), return_when=asyncio.FIRST_COMPLETED)
    if answered.done():
        resumed.cancel()
        answered.result()
    else:
        resumed.result()


async def _continue(qmp: Qmp) -> None:
    await qmp.execute("cont")


async def settle_migration(guest: Guest) -> None:
    """Settle the migration after a driver that died: what is under way goes on, and a guest that was stopped to be sent and never
    was runs on. All else waits for who leads the migration."""
    migration = guest.record.migration
    if migration is None or migration.role != "source" or not guest.has_monitor():
        return
    if (await inspect_migration(guest)).phase in ("waiting", "failed"):
        await run_on(guest)


def check_start(guest: Guest, plan: GuestPlan) -> None:
    """Raises IllegalTransition for a guest that may run elsewhere. A later incarnation was decided on since."""
    name, migration = guest.record.plan.name, guest.record.migration
    if not guest.migrating or migration is None or plan.incarnation > guest.record.plan.incarnation:
        return
    if migration.role == "target":
        raise IllegalTransition(f"vm/{name} is expected here, but still runs on its source node")
    if not guest.running:
        raise IllegalTransition(
            f"vm/{name} was migrating to another node and may run there",
            hint="remove it here, or cancel the migration once the target confirms that it never ran there",
        )


def check_stays(guest: Guest) -> None:
    """Raises IllegalTransition for a guest whose machine must stay as it is, because it migrates, its memory is being saved for a
    snapshot, or it is about to become another one."""
    record, name = guest.record, guest.record.plan.name
    if guest.migrating:
        raise IllegalTransition(f"vm/{name} is migrating", hint="wait for the migration to end, or cancel it")
    if record.snapshot is not None and not record.snapshot.is_over:
        raise IllegalTransition(f"vm/{name}: a snapshot of it is being taken", hint="wait until that is done")
    if record.renewal is not None and record.renewal.identity is not None:
        raise IllegalTransition(f"vm/{name} is about to get its own identity", hint="wait until it is ready")


def check_alone(guest: Guest, so: str) -> None:
    """Raises IllegalTransition for a guest whose disks are still read from a backup; ``so``: what can't be done to it."""
    if any(find_served(disk) is not None for disk in guest.record.plan.disks):
        raise IllegalTransition(
            f"vm/{guest.record.plan.name} still reads its disks from a backup, so {so}",
            reason="standsOnBackup",
            hint="wait until they are copied: weft snapshot list",
        )


def check_movable(plan: GuestPlan, what: str) -> None:
    """Raises InvalidInput for a guest that has devices of its host: their state stays in them."""
    if plan.devices:
        raise InvalidInput(
            f"vm/{plan.name} uses GPUs of its node, so it can't be {what}",
            field="gpus",
            hint="stop it, then start it",
        )


def check_mode(plan: GuestPlan, frame: Frame, accelerator: str, settings: MigrationSettings) -> None:
    """Pure. Raises InvalidInput for an unknown mode, or one in which QEMU would lose what the guest writes while it migrates:
    see translate."""
    if settings.mode == "post-copy":
        raise InvalidInput(
            f"vm/{plan.name}: its QEMU runs confined, without the userfaultfd that post-copy needs",
            field="mode",
            hint="choose another mode: stop-and-copy always completes",
        )
    if settings.mode != "stop-and-copy" and (bar := find_live_bar(frame.plugged_bytes, accelerator)):
        raise InvalidInput(f"vm/{plan.name}: {bar}", field="mode", hint="use stop-and-copy")


def check_same(plan: GuestPlan, there: GuestPlan) -> None:
    """Pure. Raises InvalidInput naming the field in which ``plan`` is another machine than the one that comes."""
    pairs = {
        "name": (plan.name, there.name),
        "machine": (plan.machine, there.machine),
        "boot": (type(plan.boot), type(there.boot)),
        "disks": (
            [(disk_name(d), d.read_only) for d in plan.disks],
            [(disk_name(d), d.read_only) for d in there.disks],
        ),
        "nics": ([nic.mac for nic in plan.nics], [nic.mac for nic in there.nics]),
        "has_agent": (plan.has_agent, there.has_agent),
        "qemu_agent": (plan.qemu_agent, there.qemu_agent),
        "screen": (plan.screen, there.screen),
    }
    for field, (here, coming) in pairs.items():
        if here != coming:
            raise InvalidInput(
                f"vm/{plan.name}: the arriving machine has another {field} than its plan",
                field=field,
                hint="give the target what the source has: compare both allocations",
            )
