"""Decides what to do for one allocation: all its facts in, an ordered list of steps out. Pure: knows no driver.

A guest is ended only because its allocation was read with ``desired`` stop or suspend, with a lease that is over or suspended
for another workload, with a deletion or a higher restart generation, or because a higher incarnation of its workload was placed
here. An allocation that is merely no longer listed is left alone: nothing is begun and nothing is ended.
"""

from __future__ import annotations

import msgspec

from weft.agent.allocation.facts import Plan, PlanInput, is_alive
from weft.agent.allocation.snapshots import plan_snapshots
from weft.agent.allocation.steps.names import StepName
from weft.agent.state.allocation import Checkpoint, MigrationState, Run, StepFailure
from weft.agent.state.departure import is_back, locate_guest
from weft.agent.state.snapshots import find_restore
from weft.agent.workload.kinds import kind_of
from weft.agent.workload.shape import lacks_devices
from weft.contracts.driver.container import COMPLETED, NEVER_BEGAN
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import DISK_FAILED, LEFT_CLUSTER, LOCAL, AllocationPhase, AllocationSpec, is_lost
from weft.kinds.fields.allocated_migration import AllocatedMigration
from weft.kinds.fields.allocated_snapshot import AllocatedOrigin
from weft.kinds.fields.lease import LEASE_ENDED, LEASE_WAITS, PREEMPTED, AllocatedLease
from weft.objects.quantity import format_time

POWERED_OFF, UNHEALTHY = "guestPoweredOff", "unhealthy"
GOOD_ENDS = {POWERED_OFF: "the guest shut itself down", COMPLETED: "the command completed with exit code 0"}
NEVER_RAN = "startInterrupted"
NOT_SAVED = "notSaved"
NOT_PRIMARY = "notPrimary"
NOT_CONFIRMED = "placeNotConfirmed"
ASKS = "waits while its cluster asks the other one whether its replica there was promoted; without an answer it starts all the same"
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
SETTLED_SECONDS = 600.0


BRING_UP = (StepName.IMAGE, StepName.DISK, StepName.VOLUMES, StepName.SEED, StepName.NETWORK, StepName.START)
ADJUST = (*BRING_UP[:-1], StepName.ADJUST)
RECEIVE = (*BRING_UP[:-1], StepName.OPEN)
TAKE_AWAY = (StepName.REMOVE, StepName.UNPLUG, StepName.REMOVE_DISKS, StepName.FORGET)
_ROOT_DISK = (StepName.DISK, StepName.SEED, StepName.KEEP_DISK, StepName.REMOVE_DISKS)


def observe(checkpoint: Checkpoint, guest: GuestFacts, *, once: bool = False, lacks: bool = False) -> Checkpoint:
    """``checkpoint`` updated with the facts of ``guest``: a run has begun, it has ended by itself, a first answer, once it doesn't
    lack devices any more. A workload that runs ``once`` may have ended before its start was saved: that counts as its run."""
    if checkpoint.migration is not None and checkpoint.migration.role == "target" and not checkpoint.migration.taken:
        return checkpoint  # it hasn't begun to run here
    if is_alive(guest):
        run: Run = "up" if checkpoint.run in ("new", "starting", "ended") else checkpoint.run
        answered = checkpoint.answered or (not lacks and (guest.ready is True or guest.boot_id is not None))
        return msgspec.structs.replace(checkpoint, run=run, ended="", answered=answered, made=True)
    if guest.state == "suspended":
        return msgspec.structs.replace(checkpoint, run="up", ended="", made=True)
    ran = once and checkpoint.run == "starting" and guest.state in ("stopped", "failed") and guest.reason != NEVER_RAN
    if checkpoint.run == "up" or ran:
        reason = guest.reason or ("lost" if guest.state == "absent" else "ended")
        return msgspec.structs.replace(checkpoint, run="ended", ended=reason)
    return checkpoint


def plan_allocation(facts: PlanInput) -> Plan:
    """The steps that bring the guest towards its spec."""
    plan = plan_snapshots(facts, _plan(facts))
    if not kind_of(facts.local.spec).has_root_disk:
        without = (*_ROOT_DISK, *(() if facts.local.spec.volumes else (StepName.VOLUMES,)))
        plan = msgspec.structs.replace(plan, steps=tuple(step for step in plan.steps if step not in without))
    failure = facts.failure
    if failure is None or not plan.steps or (failure.retry_at is not None and facts.now >= failure.retry_at):
        return plan
    if plan.steps == (StepName.FETCH,):  # nothing has failed yet that is due
        return Plan((), plan.state, plan.reason, f"{plan.message}; {failure.message}", failure.retry_at)
    state = _state(facts) if is_alive(facts.guest) else "failed"
    return Plan((), state, failure.reason, failure.message, failure.retry_at)


def _plan(facts: PlanInput) -> Plan:
    spec, guest = facts.local.spec, facts.guest
    stop = (StepName.STOP,) if is_alive(guest) else ()
    tidy = (StepName.TIDY,) if facts.checkpoint.leftover else ()
    if facts.local.deleting:
        return _plan_deletion(facts, stop, tidy)
    if facts.checkpoint.orphan:
        return _plan_orphan(facts, stop, tidy)
    if facts.superseded:
        steps = (StepName.STOP, StepName.UNPLUG) if is_alive(guest) else ()
        return Plan(steps, "stopped", "superseded", "a later incarnation of it is placed on this node")
    if facts.checkpoint.restoring is not None:
        return _plan_restore(facts, facts.checkpoint.restoring, stop)
    if spec.role == "source":
        return _note_rest(facts, _plan_source(facts))
    if spec.role == "target":
        return _note_rest(facts, _plan_target(facts))
    if spec.role != "active":
        return Plan((), _state(facts))
    if facts.checkpoint.migration is not None:  # before anything else
        return _note_rest(facts, _plan_after_migration(facts, facts.checkpoint.migration))
    if (relocation := _plan_relocation(facts)) is not None:
        return relocation
    restore = find_restore(spec, facts.checkpoint)
    if restore is not None and not (facts.unconfirmed or facts.relocating or spec.storage is not None):
        return _plan_restore(facts, restore, (StepName.CHECK_ORIGIN, *stop))
    if facts.stage == "over":
        return _plan_over(facts, tidy)
    if facts.stage == "suspended":
        return _plan_preempted(facts, tidy)
    if spec.desired == "stop":
        return _plan_stop(guest, tidy)
    if spec.desired == "suspend":
        return _plan_suspend(facts)
    return _plan_run(facts)


def _plan_deletion(facts: PlanInput, stop: tuple[StepName, ...], tidy: tuple[StepName, ...]) -> Plan:
    """A migrating guest is released first, according to its role; data that the other node has goes with it."""
    migration, made = facts.checkpoint.migration, facts.checkpoint.made
    waits = migration is None and made and facts.local.spec.role == "target"
    if waits or (migration is not None and migration.role == "target" and not (migration.taken or migration.over)):
        return Plan((StepName.GIVE_UP,), "stopping")
    if migration is not None and migration.role == "source" and not migration.over:
        return Plan((StepName.LEAVE,), "stopping")
    elsewhere = migration is not None and migration.over and migration.taken == (migration.role == "source")
    volumes = (StepName.REMOVE_VOLUMES,) if elsewhere and made else ()
    return Plan((*stop, *tidy, *TAKE_AWAY[:-1], *volumes, StepName.FORGET), "stopping", find_rest(facts))


def find_rest(facts: PlanInput) -> str:
    """Why the capacity of an allocation that is deleted isn't its own any more: its guest had been ended with its lease, or was
    suspended for another workload."""
    if is_alive(facts.guest):
        return ""
    return {"over": LEASE_ENDED, "suspended": PREEMPTED}.get(facts.stage, "")


def _plan_relocation(facts: PlanInput) -> Plan | None:
    """A relocation is settled before the guest starts: until then the disk's file isn't known."""
    order, relocation, state = facts.local.spec.storage, facts.checkpoint.relocation, _state(facts)
    if not facts.relocating:
        if order is None:
            begun = relocation is not None and relocation.state in ("copying", "there")
        else:
            begun = relocation is None or relocation.key != order.key or relocation.state in ("copying", "there")
        return Plan((StepName.IMAGE, StepName.RELOCATE), state) if begun and facts.checkpoint.made else None
    return None if is_alive(facts.guest) else Plan((), state, "storage", "its disk is being relocated to another pool")


def _plan_restore(facts: PlanInput, origin: AllocatedOrigin, before: tuple[StepName, ...]) -> Plan:
    """The guest ends, its disks become those of the snapshot, and what its spec desires comes after that."""
    if facts.blocked:
        return Plan((), _state(facts), "blocked", facts.blocked)
    message = f"its disks go back to snapshot/{origin.name}"
    state: AllocationPhase = "stopping" if is_alive(facts.guest) else "preparing"
    return Plan((*before, StepName.REMOVE, StepName.RESTORE), state, "restoring", message)


def _plan_orphan(facts: PlanInput, stop: tuple[StepName, ...], tidy: tuple[StepName, ...]) -> Plan:
    """Nothing is ended without evidence. A migration is cancelled as far as this end may: then this node is certain where the
    guest is, or that only the other end can know."""
    migration, state = facts.checkpoint.migration, _state(facts)
    breaking = _break_off(facts)
    nothing = not facts.checkpoint.made and facts.guest.state == "absent" and facts.local.spec.pool == LOCAL
    if is_lost(facts.local.spec) and nothing:
        return Plan((StepName.FORGET,), "stopping")
    if not facts.superseded:
        return Plan(breaking, state)
    why = "a later incarnation of it is placed elsewhere, or it was deleted"
    if migration is not None and migration.role == "source" and not migration.over:
        return Plan((StepName.LEAVE,), "stopping", "superseded", why)
    if breaking:
        return Plan(breaking, "stopping", "superseded", why)
    here = _is_here(facts.checkpoint, facts.local.spec)
    volumes = (StepName.KEEP_VOLUMES if here else StepName.REMOVE_VOLUMES,) if facts.stale_volumes else ()
    keep = (StepName.KEEP_DISK,) if keeps_disk(facts.checkpoint, facts.local.spec) else ()
    away = (StepName.REMOVE, StepName.UNPLUG, *keep, StepName.REMOVE_DISKS, *volumes, StepName.FORGET)
    return Plan((*stop, *tidy, *away), "stopping", "superseded", why)


def keeps_disk(checkpoint: Checkpoint, spec: AllocationSpec) -> bool:
    """Whether the root disk of an orphan that is ended is the only one with its data: its guest was here, and didn't migrate on."""
    if is_lost(spec) and spec.pool != LOCAL:
        return False  # its workload went on with it
    return checkpoint.made and _is_here(checkpoint, spec)


def _is_here(checkpoint: Checkpoint, spec: AllocationSpec) -> bool:
    return spec.role in ("active", "lost") and locate_guest(checkpoint, spec) == "here"


def _break_off(facts: PlanInput) -> tuple[StepName, ...]:
    migration = facts.checkpoint.migration
    if migration is None:
        return (StepName.GIVE_UP,) if facts.local.spec.role == "target" else ()
    if migration.taken or migration.over:
        return ()
    return (StepName.CANCEL,) if migration.role == "source" else (StepName.GIVE_UP,)


def _plan_after_migration(facts: PlanInput, migration: MigrationState) -> Plan:
    """The allocation is active again, and this node hasn't finished its migration. A guest that the target took over isn't here
    any more, whatever an older store has."""
    if migration.role == "target":
        return Plan((StepName.SETTLE,), _state(facts))
    if (migration.taken or migration.over) and not is_back(facts.local.spec, migration):
        return _plan_departed(migration)
    return Plan((StepName.CANCEL,), _state(facts))


def _plan_departed(migration: MigrationState) -> Plan:
    """One that another cluster has says so by a reason of its own: a server with an older store must not place it anew."""
    if migration.between_clusters:
        return Plan((), "stopped", LEFT_CLUSTER, f"node {migration.node} of another cluster took it over")
    return Plan(
        (), "stopped", "migrated", f"{f'node {migration.node}' if migration.node else 'its target'} took it over"
    )


def _plan_source(facts: PlanInput) -> Plan:
    """A source: the guest is sent once the target waits for it; nothing is started here meanwhile."""
    allocated, migration, state = facts.local.spec.migration, facts.checkpoint.migration, _state(facts)
    if allocated is None:
        return Plan((), state)
    if migration is not None and migration.over and migration.taken and not is_back(facts.local.spec, migration):
        return _plan_departed(migration)
    if migration is not None and (
        allocated.never_ran or (migration.key, migration.peer) != (allocated.key, allocated.peer_allocation)
    ):
        return Plan(() if migration.over else (StepName.CANCEL,), state)
    if migration is not None and migration.over:
        return _plan_departed(migration)
    if migration is not None and migration.failed:
        return Plan((), state)
    if facts.migrating or not allocated.address or allocated.never_ran or (migration is None and facts.unconfirmed):
        return Plan((), state)
    stop = (_end_for(allocated, facts.failure),) if allocated.mode == "cold" and is_alive(facts.guest) else ()
    return Plan((*stop, StepName.SEND), state)


def _end_for(migration: AllocatedMigration, failure: StepFailure | None) -> StepName:
    """The step that ends a running guest here, for a cold migration."""
    tried = failure is not None and failure.reason == NOT_SAVED
    return StepName.SAVE if migration.saves and not (tried and migration.saves == "may") else StepName.STOP


def _plan_target(facts: PlanInput) -> Plan:
    """A target: all that the guest needs is made, and a listener opened. It is never started here, only taken over."""
    spec, migration = facts.local.spec, facts.checkpoint.migration
    if migration is not None and migration.role == "source":
        return _plan_departed(migration)  # it came, and has left since
    if migration is not None and migration.taken and migration.over:
        return Plan((), "stopped", "migrated", "it arrived on this node and was removed later")
    if migration is not None and migration.over:
        return Plan((), "stopped", "givenUp", "it stays on the source node")
    if migration is not None and migration.taken:
        return Plan((), _state(facts))
    if spec.desired != "run":
        return Plan((StepName.GIVE_UP,), "stopping")
    if facts.migrating or spec.migration is None or (migration is None and facts.unconfirmed):
        return Plan((), "preparing")
    if facts.unheld:
        return Plan((), "preparing", _name_wait(facts), facts.unheld)
    return Plan(RECEIVE if facts.checkpoint.made else (StepName.CHECK_VOLUMES, *RECEIVE), "preparing")


def _plan_stop(guest: GuestFacts, tidy: tuple[StepName, ...]) -> Plan:
    if is_alive(guest):
        return Plan((StepName.STOP,), "stopping")
    if guest.state == "suspended":
        return Plan((StepName.REMOVE,), "stopping")
    return Plan(tidy, "stopped")  # another guest may have the address by now


def _plan_over(facts: PlanInput, tidy: tuple[StepName, ...]) -> Plan:
    """Its lease has ended: the guest shuts down, and its disks stay."""
    stop, lease = _plan_stop(facts.guest, tidy), facts.local.spec.lease
    if stop.state != "stopped":
        return stop
    return msgspec.structs.replace(stop, reason=LEASE_ENDED, message=_describe_over(lease))


def _describe_over(lease: AllocatedLease | None) -> str:
    why = "was cancelled" if lease is None or lease.cancelled else f"ended at {format_time(lease.end or 0.0)}"
    return f"its lease {why}"


def _plan_ahead(facts: PlanInput) -> Plan | None:
    """Plan what happens before the lease begins: a machine boots and is then held, everything else is made but for the start. None:
    go on."""
    guest, lease = facts.guest, facts.local.spec.lease
    if lease is None or facts.stage not in ("waits", "ahead", "imminent"):
        return None
    why = f"its lease begins at {format_time(lease.start)}"
    if not facts.in_contact:
        why = "its lease begins when the server hears this node again: it may have been given to another"
    elif facts.postponed and facts.stage == "waits":  # the answer is on its way
        return None if is_alive(guest) else Plan((), "pending")
    if facts.stage == "waits":
        fetches = facts.soon and not facts.fetched and facts.local.spec.image is not None and facts.in_contact
        steps = (StepName.FETCH,) if fetches and kind_of(facts.local.spec).has_root_disk else ()
        return None if is_alive(guest) else Plan(steps, "pending", LEASE_WAITS, why)
    if is_alive(guest):
        ready = guest.ready is not False and guest.state != "starting" and not guest.held
        hold = ready and facts.can_hold and facts.stage == "imminent"
        return Plan((StepName.HOLD,) if hold else (), "preparing", LEASE_WAITS, why)
    if facts.prepared:
        return Plan((), "preparing", LEASE_WAITS, why)
    return Plan(BRING_UP if facts.can_hold else BRING_UP[:-1], "preparing")


def _plan_suspend(facts: PlanInput) -> Plan:
    if facts.guest.state == "suspended":
        return Plan((), "suspended")
    if not is_alive(facts.guest):
        return Plan((), "stopped")
    if not facts.can_suspend:
        return Plan((), _state(facts), "unsupported", "this node's runtime can't suspend workloads")
    return Plan((StepName.SUSPEND,), _state(facts))


def _plan_preempted(facts: PlanInput, tidy: tuple[StepName, ...]) -> Plan:
    """Its cores and memory are another workload's: its guest is suspended, and nothing is started."""
    return _note_rest(
        facts, _plan_stop(facts.guest, tidy) if facts.local.spec.desired == "stop" else _plan_suspend(facts)
    )


def _note_rest(facts: PlanInput, plan: Plan) -> Plan:
    """``plan`` with why the guest rests, also while it migrates: by that its cores and memory are free for others. Not yet while it
    stops."""
    lease, checkpoint = facts.local.spec.lease, facts.checkpoint
    if plan.reason or (plan.state == "stopping" and is_alive(facts.guest)):
        return plan
    if facts.stage == "suspended" and lease is not None:
        planned = "as planned, for what was promised to others"
        why = planned if lease.suspension is None else f"for {lease.suspension.winner}"
        return msgspec.structs.replace(plan, reason=PREEMPTED, message=f"suspended {why}")
    if plan.state != "stopped":
        return plan
    if facts.stage == "over":
        return msgspec.structs.replace(plan, reason=LEASE_ENDED, message=_describe_over(lease))
    if facts.local.spec.desired == "run" and checkpoint.run == "ended" and checkpoint.ended in GOOD_ENDS:
        return msgspec.structs.replace(plan, reason=checkpoint.ended, message=GOOD_ENDS[checkpoint.ended])
    return plan


def _plan_run(facts: PlanInput) -> Plan:
    spec, checkpoint, guest = facts.local.spec, facts.checkpoint, facts.guest
    fresh = spec.restart_generation > checkpoint.restart_generation and checkpoint.run != "new"
    ahead = _plan_ahead(facts)
    if is_alive(guest):
        if fresh:
            return Plan((StepName.STOP, *BRING_UP), "stopping")
        if guest.held and facts.stage == "active" and spec.lease is not None:
            return Plan((StepName.GO,), "starting")
        return ahead or _plan_alive(facts)
    if facts.unconfirmed:
        return Plan((), "pending", "waiting", "waits for the server to confirm that it still runs on this node")
    ended = _plan_ended(facts) if checkpoint.run == "ended" and not fresh else None
    if facts.blocked and ended is not None and not ended.steps and ended.review_at is None:
        return ended  # who has its volume now doesn't change how it ended
    if facts.blocked:
        return Plan((), "pending", "blocked", facts.blocked)
    if facts.unheld:
        return Plan((), "pending", _name_wait(facts), facts.unheld)
    if facts.asks_until > facts.now:
        return Plan((), "pending", NOT_PRIMARY, ASKS, review_at=facts.asks_until)
    if spec.held_by is not None:
        return Plan((), "pending", "held", f"waits for gate {spec.held_by}")
    if spec.waits_for is not None:
        return Plan((), "pending", "waiting", "waits for the workloads that it preempted to end or to be suspended")
    if ahead is not None:
        return ahead
    if guest.state == "suspended" and fresh:
        return Plan((StepName.REMOVE, *BRING_UP), "preparing")
    return ended or Plan(BRING_UP, "preparing")


def _name_wait(facts: PlanInput) -> str:
    return NOT_PRIMARY if facts.local.spec.guard == "hold" else NOT_CONFIRMED


def _plan_alive(facts: PlanInput) -> Plan:
    guest, spec = facts.guest, facts.local.spec
    if guest.state == "paused":
        reason = DISK_FAILED if guest.message else "paused"
        return Plan((), "running", reason, guest.message or "the machine is paused")
    if facts.can_adjust and guest.shape is not None and not kind_of(spec).is_shaped(spec, guest.shape):
        return Plan(ADJUST, _state(facts), "changing", "the running workload is being changed to match its spec")
    if facts.unwell:
        return Plan((StepName.END,), "stopping", UNHEALTHY, facts.unwell)
    if facts.checkpoint.leftover:
        return Plan((StepName.TIDY,), _state(facts))
    return Plan((), _state(facts))


def _plan_ended(facts: PlanInput) -> Plan:
    """A guest that ended by itself: it stays stopped, has failed, or restarts after its pause."""
    checkpoint, policy, guest = facts.checkpoint, facts.local.spec.restart, facts.guest
    if checkpoint.ended in GOOD_ENDS and policy != "always":
        return Plan((), "stopped", checkpoint.ended, GOOD_ENDS[checkpoint.ended])
    why = (
        f"{checkpoint.ended}: {guest.message}"
        if guest.message and guest.reason == checkpoint.ended
        else checkpoint.ended
    )
    if facts.local.spec.once:
        return Plan((), "failed", checkpoint.ended, guest.message or checkpoint.why or "it ended")
    if checkpoint.ended in NEVER_BEGAN and policy != "always":
        return Plan((), "failed", checkpoint.ended, guest.message or "its command can't be started")
    if policy == "never":
        return Plan((), "failed", checkpoint.ended, f"it ended ({why}); its restart policy is never")
    if facts.now >= facts.restart_at:
        return Plan(BRING_UP, "starting")
    message = f"it ended ({why}) and is restarting, restart {checkpoint.restarts + 1}"
    return Plan((), "starting", "restarting", message, facts.restart_at)


def _state(facts: PlanInput) -> AllocationPhase:
    """The phase when there is nothing to do."""
    guest = facts.guest
    if guest.state == "suspended":
        return "suspended"
    if guest.state == "starting":
        return "starting"
    if is_alive(guest):
        lacks = bool(guest.ready) and lacks_devices(facts.local.spec, guest.shape)
        return "starting" if (guest.ready is False or lacks) and not facts.checkpoint.answered else "running"
    if facts.checkpoint.run == "ended":
        return "stopped" if facts.checkpoint.ended in (*GOOD_ENDS, LEASE_ENDED) else "failed"
    return "pending" if facts.checkpoint.run == "new" else "stopped"


def pause_after(tries: int) -> float:
    """Seconds to wait after the ``tries``-th failure in a row: 1, 2, 4 … 60."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(tries - 1, 10))
