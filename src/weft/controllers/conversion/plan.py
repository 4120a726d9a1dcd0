"""Next step of a Conversion: its spec, its status and facts of both workloads in; their new specs and its new status out. Pure and
without memory: after a crash the next process decides the same.

The order: the image is there, a node has capacity, the new workload is made and the old one stopped, in one commit · the old one
has stopped: the new one gets all that it had, in one commit · the old allocation has released it: the new one starts · it stays
well, and answers on the published ports on which the old one answered: people confirm or undo. Until then a failure goes back the
same way: the new one is stopped, and gives all back in one
commit; the Conversion ends when the old one runs again."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from weft.controllers.conversion.facts import (
    ConversionFacts,
    ConversionOutcome,
    KnownImage,
    end,
    is_well,
    keep,
    list_silent,
    strip,
)
from weft.controllers.conversion.prepare import prepare, translate
from weft.controllers.conversion.rollback import (
    clear,
    find_end,
    finds_no_place,
    hand_back,
    patience_left,
    time_left,
    why,
)
from weft.controllers.workload.ports import LOOK_SECONDS, describe_silence
from weft.kinds.conversion import ENDED, read_new
from weft.objects.lifecycle import Phase, describe_phase

STEADY_SECONDS = 2.0  # for which it runs before it counts as running: what fails at once has failed by then


def plan_conversion(facts: ConversionFacts) -> ConversionOutcome:
    """Plan what to write now."""
    status, now = facts.status, facts.now
    if status.phase in ENDED:
        return ConversionOutcome(status=status)
    if status.began_at is None:
        status = replace(status, phase="Preparing", began_at=now, old_uid=facts.old_uid)
        status.new = "/".join(read_new(facts.spec))
        if facts.rival:
            return end(
                status,
                "Failed",
                "alreadyConverting",
                f"conversion/{facts.rival} of the same workload is already under way",
                now,
            )
    status = replace(status, began_at=min(status.began_at or now, now))  # a clock may have been set back
    facts = replace(facts, status=status)
    handed_over = status.kept is not None
    if handed_over and (facts.old is None or facts.old.deleting):
        return _keep_new(facts)
    if not status.ending:
        status = replace(status, **find_end(facts))
        facts = replace(facts, status=status)
    if status.ending:
        return hand_back(facts) if handed_over else clear(facts)
    steps = {"Preparing": prepare, "Stopping": _stop, "HandingOver": _start, "Starting": _watch}
    outcome = steps.get(status.phase, _await)(facts)
    if outcome.status.phase in steps:
        refused = facts.new is not None and finds_no_place(facts, facts.new)
        waits = [time_left(facts), *([patience_left(facts)] if refused else [])]
        waits += [outcome.requeue_after] if outcome.requeue_after is not None else []
        outcome.requeue_after = max(0.1, min(waits))
    return outcome


def _stop(facts: ConversionFacts) -> ConversionOutcome:
    """Wait for the old one to stop; then give all that it had to the new one, in one commit."""
    status, old, new = facts.status, facts.old, facts.new
    assert old is not None and new is not None
    if old.spec.run != "stop":  # somebody started it meanwhile
        return ConversionOutcome(status=status, old=replace(old.spec, run="stop"))
    if not all(place.rests for place in old.places):
        message = f"waiting for {old.what} to stop"
        if old.status.phase == Phase.UNKNOWN:
            message += f": {old.status.message}"
        return ConversionOutcome(status=replace(status, message=message))
    image = next((one for one in facts.images if one.name == status.image), KnownImage(status.image, "", "Failed"))
    translated = translate(facts, status, old, image)
    if isinstance(translated, str):
        facts = replace(facts, status=replace(status, **why("Failed", "untranslatable", translated)))
        return clear(facts)
    status = replace(status, phase="HandingOver", kept=keep(old.spec), message="")
    status.stopped_at = facts.now if status.was == "run" else None
    taken = replace(new.spec, **keep(translated.spec))
    return ConversionOutcome(status=status, old=strip(old.spec), new=taken, claims="new")


def _start(facts: ConversionFacts) -> ConversionOutcome:
    """Wait for the old allocation to release volumes and NICs; then start the new one."""
    status, old, new = facts.status, facts.old, facts.new
    assert old is not None and new is not None
    if any(place.holds for place in old.places):
        return ConversionOutcome(
            status=replace(status, message=f"waiting for {old.what} to release its volumes and addresses")
        )
    if status.was != "run":
        return _ask(facts, f"{status.new} is stopped, as {old.what} was")
    return ConversionOutcome(status=replace(status, phase="Starting", message=""), new=replace(new.spec, run="run"))


def _watch(facts: ConversionFacts) -> ConversionOutcome:
    """Wait until the new one runs; the message names what it waits for."""
    status, new = facts.status, facts.new
    assert new is not None
    if not is_well(new):
        detail = new.status.message or new.status.reason
        message = f"{status.new} is {describe_phase(new.status.phase)}" + (f": {detail}" if detail else "")
        return ConversionOutcome(status=replace(status, running_at=None, message=message))
    if silent := list_silent(facts):
        message = f"{status.new} runs, and {describe_silence(silent, new.ports, facts.spec.workload)}"
        return ConversionOutcome(status=replace(status, running_at=None, message=message), requeue_after=LOOK_SECONDS)
    since = min(status.running_at or facts.now, facts.now)
    if new.status.restarts != status.restarts:
        since = facts.now
    status = replace(status, running_at=since, restarts=new.status.restarts, message=f"{status.new} runs")
    left = since + STEADY_SECONDS - facts.now
    if left > 0:
        return ConversionOutcome(status=status, requeue_after=left)
    return _ask(replace(facts, status=status), f"{status.new} runs")


def _ask(facts: ConversionFacts, fact: str) -> ConversionOutcome:
    message = f"{fact}; {facts.spec.workload} is kept, stopped, until you confirm the conversion"
    return ConversionOutcome(status=replace(facts.status, phase="AwaitingConfirmation", reason="", message=message))


def _await(facts: ConversionFacts) -> ConversionOutcome:
    status = facts.status
    if not (facts.spec.confirm or facts.actions.confirmed):
        return ConversionOutcome(status=status)
    message = f"{facts.spec.workload} was deleted; {status.new} continues"
    outcome = end(replace(status, kept=None), "Confirmed", "", message, facts.now)
    outcome.old_goes = True
    return outcome


def _keep_new(facts: ConversionFacts) -> ConversionOutcome:
    """The old one is gone: the new one keeps all."""
    status, new = facts.status, facts.new
    if new is None:
        return end(
            status, "Failed", "workloadDeleted", f"{facts.spec.workload} and {status.new} were deleted", facts.now
        )
    message = f"{facts.spec.workload} was deleted; {status.new} continues"
    outcome = end(replace(status, kept=None), "Confirmed", "workloadDeleted", message, facts.now)
    wanted: Literal["run", "stop"] = "run" if status.was == "run" else "stop"
    if not new.deleting and new.spec.run != wanted:
        outcome.new = replace(new.spec, run=wanted)
    return outcome
