"""Decides what to do for one allocation: its wish, what was done and what is true now in, an ordered list of steps out.
Pure: reads and writes nothing, knows no driver. Woken by the worker whenever one of the three may have changed.

A guest is ended only because its allocation was read with wish stop or suspend, with a deletion, with a higher start
counter, or because a higher incarnation of its workload was placed here. That an allocation is no longer listed is no
reason: then nothing is begun and nothing is ended.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from weft.agent.state.allocation import AllocationState, MigrationState, PlanInput, Run, StepFailure
from weft.agent.state.departure import is_back
from weft.agent.workload.shape import is_shaped
from weft.contracts.driver.container import COMPLETED, NEVER_BEGAN
from weft.contracts.driver.runtime import GuestFacts
from weft.kinds.allocation import AllocatedMigration, AllocationPhase

POWERED_OFF, UNHEALTHY = "guestPoweredOff", "unhealthy"
GOOD_ENDS = {POWERED_OFF: "the guest shut itself down", COMPLETED: "the command completed with exit code 0"}
NEVER_RAN = "startInterrupted"
NOT_SAVED = "notSaved"
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
SETTLED_SECONDS = 600.0
_ALIVE = ("starting", "running", "paused")


class Step(StrEnum):
    """One thing to do. Each may be repeated at any time; what it needs stands in the allocation."""

    IMAGE = "image"  # fetch the image, or find it in the cache
    DISK = "disk"  # clone the root disk from it
    VOLUMES = "volumes"
    SEED = "seed"  # the disk with user data
    NETWORK = "network"  # segments and taps
    START = "start"  # or resume, or adopt
    ADJUST = "adjust"  # CPUs, memory, disks and NICs of the running guest
    TIDY = "tidy"  # taps of NICs that the guest has no more
    STOP = "stop"
    END = "end"  # it isn't well: as if it had ended by itself
    SUSPEND = "suspend"
    SAVE = "save"  # what goes on elsewhere: as suspended, in place of a stop
    REMOVE = "remove"  # the runtime forgets the guest, its saved memory too
    UNPLUG = "unplug"  # taps, and segments nobody here uses any more
    REMOVE_DISKS = "remove-disks"  # root disk and seed; volumes stay
    ROOM = "room"  # for the volumes of a guest that comes: none of their data may be here
    OPEN = "open"  # the door for a guest that comes
    SEND = "send"  # the guest to the node that waits for it
    GIVE_UP = "give-up"  # a guest that was to come
    LEAVE = "leave"  # a guest that has gone
    CANCEL = "cancel"  # its going: it stays
    SETTLE = "settle"  # its coming: it is here
    RELOCATE = "relocate"  # a disk to another pool
    REMOVE_VOLUMES = "remove-volumes"  # data that is on the other node of a move
    FORGET = "forget"  # the durable copy


BRING_UP = (Step.IMAGE, Step.DISK, Step.VOLUMES, Step.SEED, Step.NETWORK, Step.START)
ADJUST = (*BRING_UP[:-1], Step.ADJUST)
RECEIVE = (*BRING_UP[:-1], Step.OPEN)
TAKE_AWAY = (Step.REMOVE, Step.UNPLUG, Step.REMOVE_DISKS, Step.FORGET)
_OF_MACHINES = (Step.DISK, Step.SEED, Step.REMOVE_DISKS)  # disks that a container has none of


class Plan(msgspec.Struct, frozen=True):
    """What to do now, what to report meanwhile, and when to look again even if nothing happens (elapsed seconds)."""

    steps: tuple[Step, ...]
    state: AllocationPhase
    reason: str = ""
    message: str = ""
    look_at: float | None = None


def is_alive(guest: GuestFacts) -> bool:
    return guest.state in _ALIVE


def observe(memory: AllocationState, guest: GuestFacts, *, once: bool = False) -> AllocationState:
    """``memory`` with what ``guest`` shows: a begun run that is there, one that has ended by itself, a first answer. What runs
    ``once`` may have ended before anybody could write down that it had begun: then that was its run."""
    if memory.part is not None and memory.part.side == "target" and not memory.part.taken:
        return memory  # it hasn't begun to run here
    if is_alive(guest):
        run: Run = "up" if memory.run in ("new", "starting", "ended") else memory.run
        answered = memory.answered or guest.ready is True or guest.boot_id is not None
        return msgspec.structs.replace(memory, run=run, ended="", answered=answered, made=True)
    if guest.state == "suspended":
        return msgspec.structs.replace(memory, run="up", ended="", made=True)
    ran = once and memory.run == "starting" and guest.state in ("stopped", "failed") and guest.reason != NEVER_RAN
    if memory.run == "up" or ran:
        reason = guest.reason or ("lost" if guest.state == "absent" else "ended")
        return msgspec.structs.replace(memory, run="ended", ended=reason)
    return memory


def plan_allocation(known: PlanInput, guest: GuestFacts, now: float) -> Plan:
    """The steps that bring ``known.wanted`` towards its wish from where ``guest`` is at ``now`` (elapsed seconds)."""
    plan = _plan(known, guest, now)
    if known.wanted.spec.container is not None:
        without = (*_OF_MACHINES, *(() if known.wanted.spec.volumes else (Step.VOLUMES,)))
        plan = msgspec.structs.replace(plan, steps=tuple(step for step in plan.steps if step not in without))
    trouble = known.trouble
    if trouble is None or not plan.steps:
        return plan
    if trouble.retry_at is not None and now >= trouble.retry_at:
        return plan
    state = _state(known, guest) if is_alive(guest) else "failed"
    return Plan((), state, trouble.reason, trouble.message, trouble.retry_at)


def _plan(known: PlanInput, guest: GuestFacts, now: float) -> Plan:
    spec = known.wanted.spec
    stop = (Step.STOP,) if is_alive(guest) else ()
    tidy = (Step.TIDY,) if known.memory.leftover else ()
    if known.wanted.deleting:
        return _plan_deletion(known, stop, tidy)
    if known.memory.orphan:
        return _plan_orphan(known, guest, stop, tidy)
    if known.superseded:
        steps = (Step.STOP, Step.UNPLUG) if is_alive(guest) else ()
        return Plan(steps, "stopped", "superseded", "a later incarnation of it is placed on this node")
    if spec.role == "source":
        return _plan_source(known, guest)
    if spec.role == "target":
        return _plan_target(known, guest)
    if spec.role != "active":
        return Plan((), _state(known, guest))
    if known.memory.part is not None:  # before anything else may be done with it
        return _plan_after_move(known, guest, known.memory.part)
    if (relocation := _plan_relocation(known, guest)) is not None:
        return relocation
    if spec.desired == "stop":
        return _plan_stop(guest, tidy)
    if spec.desired == "suspend":
        return _plan_suspend(known, guest)
    return _plan_run(known, guest, now)


def _plan_deletion(known: PlanInput, stop: tuple[Step, ...], tidy: tuple[Step, ...]) -> Plan:
    """A guest that is on its way is let go of first, as its side has to; data that the other node has goes with it."""
    part, made = known.memory.part, known.memory.made
    waits = part is None and made and known.wanted.spec.role == "target"
    if waits or (part is not None and part.side == "target" and not (part.taken or part.over)):
        return Plan((Step.GIVE_UP,), "stopping")
    if part is not None and part.side == "source" and not part.over:
        return Plan((Step.LEAVE,), "stopping")
    elsewhere = part is not None and part.over and part.taken == (part.side == "source")
    volumes = (Step.REMOVE_VOLUMES,) if elsewhere and made else ()
    return Plan((*stop, *tidy, *TAKE_AWAY[:-1], *volumes, Step.FORGET), "stopping")


def _plan_relocation(known: PlanInput, guest: GuestFacts) -> Plan | None:
    """A disk that moves to another pool is seen to before its guest is started, since only then is it known which file it is."""
    order, store, state = known.wanted.spec.storage, known.memory.store, _state(known, guest)
    if not known.storing:
        if order is None:
            begun = store is not None and store.state in ("copying", "there")
        else:
            begun = store is None or store.key != order.key or store.state in ("copying", "there")
        return Plan((Step.IMAGE, Step.RELOCATE), state) if begun and known.memory.made else None
    return None if is_alive(guest) else Plan((), state, "storage", "its disk is being relocated to another pool")


def _plan_orphan(known: PlanInput, guest: GuestFacts, stop: tuple[Step, ...], tidy: tuple[Step, ...]) -> Plan:
    """Nothing is ended but on evidence. A side of a move breaks it off as far as that is its own to do: then it is certain here
    where the guest is, or that only the other side can know."""
    part, state = known.memory.part, _state(known, guest)
    breaking = _break_off(known)
    if not known.superseded:
        return Plan(breaking, state)
    why = "a later incarnation of it is placed elsewhere, or it was deleted"
    if part is not None and part.side == "source" and not part.over:
        return Plan((Step.LEAVE,), "stopping", "superseded", why)
    if breaking:
        return Plan(breaking, "stopping", "superseded", why)
    volumes = (Step.REMOVE_VOLUMES,) if known.stale_volumes else ()
    return Plan((*stop, *tidy, *TAKE_AWAY[:-1], *volumes, Step.FORGET), "stopping", "superseded", why)


def _break_off(known: PlanInput) -> tuple[Step, ...]:
    part = known.memory.part
    if part is None:
        return (Step.GIVE_UP,) if known.wanted.spec.role == "target" else ()
    if part.taken or part.over:
        return ()
    return (Step.CANCEL,) if part.side == "source" else (Step.GIVE_UP,)


def _plan_after_move(known: PlanInput, guest: GuestFacts, part: MigrationState) -> Plan:
    """One that is its workload's own place, and has a part in a move still. A guest that the target took over isn't here any
    more, whatever an older store says."""
    if part.side == "target":
        return Plan((Step.SETTLE,), _state(known, guest))
    if (part.taken or part.over) and not is_back(known.wanted.spec, part):
        return _plan_moved(part)
    return Plan((Step.CANCEL,), _state(known, guest))


def _plan_moved(part: MigrationState) -> Plan:
    return Plan((), "stopped", "moved", f"it was taken over by node {part.node or 'that it migrated to'}")


def _plan_source(known: PlanInput, guest: GuestFacts) -> Plan:
    """A guest that goes: sent once the other node waits for it; nothing of it is started here meanwhile."""
    move, part, state = known.wanted.spec.move, known.memory.part, _state(known, guest)
    if move is None:
        return Plan((), state)
    if part is not None and part.over and part.taken and not is_back(known.wanted.spec, part):
        return _plan_moved(part)
    if part is not None and (move.never_ran or (part.key, part.peer) != (move.key, move.peer_allocation)):
        return Plan(() if part.over else (Step.CANCEL,), state)
    if part is not None and part.over:
        return _plan_moved(part)
    if known.moving or not move.address or move.never_ran or (part is None and known.unheard):
        return Plan((), state)
    stop = (_end_for(move, known.trouble),) if move.mode == "cold" and is_alive(guest) else ()
    return Plan((*stop, Step.SEND), state)


def _end_for(move: AllocatedMigration, trouble: StepFailure | None) -> Step:
    """How a guest that runs ends here to go elsewhere."""
    tried = trouble is not None and trouble.reason == NOT_SAVED
    return Step.SAVE if move.saves and not (tried and move.saves == "may") else Step.STOP


def _plan_target(known: PlanInput, guest: GuestFacts) -> Plan:
    """A guest that comes: all that it needs is made, and a door opened. It is never started here, only taken over."""
    spec, part = known.wanted.spec, known.memory.part
    if part is not None and part.side == "source":
        return _plan_moved(part)  # it came, and has gone on since
    if part is not None and part.taken and part.over:
        return Plan((), "stopped", "moved", "it arrived on this node and was removed since")
    if part is not None and part.over:
        return Plan((), "stopped", "givenUp", "it stays on the source node")
    if part is not None and part.taken:
        return Plan((), _state(known, guest))
    if spec.desired != "run":
        return Plan((Step.GIVE_UP,), "stopping")
    if known.moving or spec.move is None or (part is None and known.unheard):
        return Plan((), "preparing")
    return Plan(RECEIVE if known.memory.made else (Step.ROOM, *RECEIVE), "preparing")


def _plan_stop(guest: GuestFacts, tidy: tuple[Step, ...]) -> Plan:
    if is_alive(guest):
        return Plan((Step.STOP,), "stopping")
    if guest.state == "suspended":
        return Plan((Step.REMOVE,), "stopping")
    return Plan(tidy, "stopped")  # another may have the address by now


def _plan_suspend(known: PlanInput, guest: GuestFacts) -> Plan:
    if guest.state == "suspended":
        return Plan((), "suspended")
    if not is_alive(guest):
        return Plan((), "stopped")
    if not known.can_suspend:
        return Plan((), _state(known, guest), "unsupported", "this node's runtime can't suspend workloads")
    return Plan((Step.SUSPEND,), _state(known, guest))


def _plan_run(known: PlanInput, guest: GuestFacts, now: float) -> Plan:
    spec, memory = known.wanted.spec, known.memory
    fresh = spec.restart_generation > memory.restart_generation and memory.run != "new"
    if is_alive(guest):
        if fresh:
            return Plan((Step.STOP, *BRING_UP), "stopping")
        return _plan_alive(known, guest)
    if known.unheard:
        return Plan((), "pending", "waiting", "waits for the server to confirm that it still runs on this node")
    if known.blocked:
        return Plan((), "pending", "blocked", known.blocked)
    if spec.held_by is not None:
        return Plan((), "pending", "held", f"waits for gate {spec.held_by}")
    if spec.waits_for is not None:
        return Plan((), "pending", "waiting", "waits for the workloads that it preempted to end")
    if guest.state == "suspended" and fresh:
        return Plan((Step.REMOVE, *BRING_UP), "preparing")
    if memory.run == "ended" and not fresh:
        return _plan_ended(known, guest, now)
    return Plan(BRING_UP, "preparing")


def _plan_alive(known: PlanInput, guest: GuestFacts) -> Plan:
    if guest.state == "paused":
        return Plan((), "running", "paused", guest.message or "the machine is paused")
    if known.can_adjust and guest.shape is not None and not is_shaped(known.wanted.spec, guest.shape):
        return Plan(ADJUST, _state(known, guest), "changing", "the running workload is being changed to match its spec")
    if known.unwell:
        return Plan((Step.END,), "stopping", UNHEALTHY, known.unwell)
    if known.memory.leftover:
        return Plan((Step.TIDY,), _state(known, guest))
    return Plan((), _state(known, guest))


def _plan_ended(known: PlanInput, guest: GuestFacts, now: float) -> Plan:
    """A guest that ended by itself: rests, has failed, or starts again when its pause is over."""
    memory, policy = known.memory, known.wanted.spec.restart
    if memory.ended in GOOD_ENDS and policy != "always":
        return Plan((), "stopped", memory.ended, GOOD_ENDS[memory.ended])
    why = f"{memory.ended}: {guest.message}" if guest.message and guest.reason == memory.ended else memory.ended
    if known.wanted.spec.once:
        return Plan((), "failed", memory.ended, guest.message or memory.why or "it ended")
    if memory.ended in NEVER_BEGAN and policy != "always":
        return Plan((), "failed", memory.ended, guest.message or "its command can't be started")
    if policy == "never":
        return Plan((), "failed", memory.ended, f"it ended ({why}); its restart policy is never")
    if now >= known.restart_at:
        return Plan(BRING_UP, "starting")
    message = f"it ended ({why}) and is restarting, restart {memory.restarts + 1}"
    return Plan((), "starting", "restarting", message, known.restart_at)


def _state(known: PlanInput, guest: GuestFacts) -> AllocationPhase:
    """What to call it when there is nothing to do."""
    if guest.state == "suspended":
        return "suspended"
    if guest.state == "starting":
        return "starting"
    if is_alive(guest):
        return "starting" if guest.ready is False and not known.memory.answered else "running"
    if known.memory.run == "ended":
        return "stopped" if known.memory.ended in GOOD_ENDS else "failed"
    return "pending" if known.memory.run == "new" else "stopped"


def pause_after(tries: int) -> float:
    """Seconds to wait after the ``tries``-th failure in a row: 1, 2, 4 … 60."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(tries - 1, 10))
