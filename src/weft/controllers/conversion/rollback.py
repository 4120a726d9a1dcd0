"""Why a Conversion goes back, and how: the new one stops, the old one gets all back in one commit, and runs again if it ran
before. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from weft.controllers.conversion.facts import ConversionFacts, ConversionOutcome, WorkloadFacts, end, is_well, strip
from weft.kinds.parts.goal import STARTING
from weft.kinds.parts.placement_spec import REFUSALS
from weft.objects.lifecycle import Phase, describe_phase

PLACE_PATIENCE_SECONDS = 20.0
RETURN_SECONDS = 60.0  # for the old one to run again
MOST_ENDS = 3  # of a new one that restarts each time


def find_end(facts: ConversionFacts) -> dict[str, str]:
    """Why it goes back, as fields of its status; empty if it doesn't."""
    status, spec, new = facts.status, facts.spec, facts.new
    if facts.actions.undo or facts.deleting:
        return why("Undone", "undone", "undone on request")
    if facts.old is None or facts.old.deleting:
        return why("Failed", "workloadDeleted", f"{spec.workload} was deleted")
    if status.new_uid and (new is None or new.deleting):
        return why("Failed", "workloadDeleted", f"{status.new} was deleted")
    if status.phase == "AwaitingConfirmation":
        return {}
    if status.phase == "Starting" and new is not None and new.status.ended:
        code = "" if new.status.exit_code is None else f", exit code {new.status.exit_code}"
        return why("Failed", "ended", f"{status.new} ended on its own{code}: {new.status.message}".rstrip(": "))
    if status.phase == "Starting" and new is not None and new.status.restarts >= MOST_ENDS:
        detail = new.status.message or new.status.reason
        message = f"{status.new} has ended on its own {new.status.restarts} times" + (f": {detail}" if detail else "")
        return why("Failed", "ended", message)
    if new is not None and finds_no_place(facts, new) and patience_left(facts) <= 0:
        return why("Failed", new.status.reason, f"no node can take {status.new}: {new.status.message}")
    if time_left(facts) <= 0:
        stuck = f" ({status.message})" if status.message else ""
        lacks = "does not answer everywhere" if new is not None and is_well(new) else "is not running"
        return why("Failed", "timedOut", f"{status.new} {lacks} after {spec.timeout_seconds:g} s{stuck}")
    return {}


def why(ending: str, reason: str, message: str) -> dict[str, str]:
    return {"ending": ending, "reason": reason, "message": message}


def time_left(facts: ConversionFacts) -> float:
    return (facts.status.began_at or 0.0) + facts.spec.timeout_seconds - facts.now


def finds_no_place(facts: ConversionFacts, new: WorkloadFacts) -> bool:
    """Whether no node can take the new one. Nothing runs meanwhile, so capacity that may come some day isn't waited for."""
    return facts.status.phase == "Starting" and new.status.phase == Phase.PENDING and new.status.reason in REFUSALS


def patience_left(facts: ConversionFacts) -> float:
    return min(facts.status.stopped_at or facts.now, facts.now) + PLACE_PATIENCE_SECONDS - facts.now


def hand_back(facts: ConversionFacts) -> ConversionOutcome:
    """Stop the new one; then give all back to the old one, in one commit."""
    status, old, new = replace(facts.status, phase="Undoing"), facts.old, facts.new
    assert old is not None and status.kept is not None
    given_back = replace(status, kept=None)
    has_again = msgspec.convert({**msgspec.to_builtins(old.spec), **status.kept}, type(old.spec))
    if new is None:
        return ConversionOutcome(status=given_back, old=has_again, claims="old")
    if not new.deleting and new.spec.run != "stop":
        return ConversionOutcome(status=status, new=replace(new.spec, run="stop"))
    if new.deleting or not all(place.rests for place in new.places):
        return ConversionOutcome(status=status)
    return ConversionOutcome(status=given_back, old=has_again, new=strip(new.spec), claims="old")


def clear(facts: ConversionFacts) -> ConversionOutcome:
    """The new one has nothing of the old one's (any more): delete it, and start the old one if it ran before."""
    status, old, new = facts.status, facts.old, facts.new
    if status.returned_at is not None:
        return _await_old(facts)
    if new is not None and any(place.holds for place in new.places):
        return ConversionOutcome(status=replace(status, phase="Undoing"))
    runs_again = status.was == "run" and old is not None and not old.deleting
    status = replace(status, phase="Undoing", returned_at=facts.now)
    outcome = ConversionOutcome(status=status, requeue_after=RETURN_SECONDS) if runs_again else _end(facts)
    if status.was and old is not None and not old.deleting and old.spec.run != status.was:
        outcome.old = replace(old.spec, run=status.was)
    outcome.new_goes = new is not None and not new.deleting
    image = next((one for one in facts.images if one.name == status.image), None)
    outcome.image_goes = status.made_image and image is not None and image.phase != "Available"
    return outcome


def _await_old(facts: ConversionFacts) -> ConversionOutcome:
    """End when the old one runs again, or clearly doesn't."""
    status, old = facts.status, facts.old
    if old is None or old.deleting or old.spec.run != "run" or is_well(old):
        return _end(facts)
    known = old.status.observed_generation >= old.generation
    starts = old.status.reason == STARTING  # until then its node still reports the stop
    failed = known and not starts and (old.status.ended or old.status.phase == Phase.FAILED)
    left = min(status.returned_at or 0.0, facts.now) + RETURN_SECONDS - facts.now
    if not failed and left > 0:
        return ConversionOutcome(status=status, requeue_after=left)
    detail = old.status.message or old.status.reason
    return _end(
        facts,
        f"{old.what} has not recovered: it is {describe_phase(old.status.phase)}" + (f": {detail}" if detail else ""),
    )


def _end(facts: ConversionFacts, also: str = "") -> ConversionOutcome:
    status = facts.status
    ending: Literal["Undone", "Failed"] = "Undone" if status.ending == "Undone" else "Failed"
    return end(status, ending, status.reason, "; ".join(filter(None, (status.message, also))), facts.now)
