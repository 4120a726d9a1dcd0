"""Verbs of a deployment and its rollout: update, scale, pause, resume and undo. Pure."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from weft.kinds.fields.cells import dig
from weft.kinds.fields.deployment.scaling import MOST_EXPRESSION, MOST_REPLICAS
from weft.kinds.fields.deployment.strategy import RolloutStrategy
from weft.kinds.parts.goal import read_phase
from weft.kinds.record import Object, Verb
from weft.objects.errors import IllegalTransition
from weft.objects.schema import field, read_strict


class UpdateInput(msgspec.Struct, kw_only=True):
    """Fields that change; others stay."""

    template: Annotated[dict[str, Any], field("Fields of the template that change")] = {}
    labels: Annotated[dict[str, str] | None, field("Labels of the instances; unset: as they are")] = None
    strategy: Annotated[dict[str, Any], field("Fields of the strategy that change")] = {}
    instance: Annotated[str, field("Name of the new revision's only instance; made up if unset", name=True)] = ""


class AutoscaleInput(msgspec.Struct, kw_only=True):
    """Input of the autoscaling: without ``max`` people set the number again."""

    min: Annotated[int, field("Fewest instances", ge=1, le=MOST_REPLICAS)] = 1
    max: Annotated[int, field("Most instances; 0 ends the scaling", ge=0, le=MOST_REPLICAS)] = 0
    metric: Annotated[str, field("PromQL expression", max_length=MOST_EXPRESSION)] = ""
    target: Annotated[float, field("Value of the expression that each instance should have")] = 0.0
    cooldown: Annotated[float, field("Least time between two changes of the number", quantity="duration")] = 60.0


class UndoInput(msgspec.Struct, kw_only=True):
    revision: Annotated[int, field("Revision to go back to; 0 is the one before", ge=0)] = 0


class ScaleInput(msgspec.Struct, kw_only=True):
    replicas: Annotated[int, field("Number of instances", ge=0, le=MOST_REPLICAS)]


def find_base(obj: Object) -> dict[str, Any]:
    """The template that an update changes: that of the spec, but after a rollback what runs, not what was rolled back."""
    kept = {one["number"]: one["template"] for one in dig(obj, "status.revisions", [])}
    template = kept.get(dig(obj, "status.revision", 0)) if read_phase(obj) == "RolledBack" else None
    return dict(template if template is not None else obj["spec"]["template"])


def _update(obj: Object, given: UpdateInput) -> dict[str, Any]:
    """One rollout at a time: the other would take away what the first one is judged by."""
    what, phase = f"deployment/{obj['name']}", read_phase(obj) or "Progressing"
    if phase in ("Progressing", "Paused") and dig(obj, "status.stable", 0):
        raise IllegalTransition(
            f"{what} is being updated to revision {dig(obj, 'status.revision')} ({phase}), and takes one update at a time",
            hint=(
                f"weft rollout status {obj['name']} --watch waits for its end"
                if phase == "Progressing"
                else f"weft rollout resume {obj['name']} lets it go on"
            )
            + f"; weft rollout undo {obj['name']} goes back",
            details={"phase": phase},
        )
    spec = dict(obj["spec"])
    strategy = {**spec["strategy"], **given.strategy}
    spec["strategy"] = msgspec.to_builtins(read_strict(strategy, RolloutStrategy, "input.strategy"))
    spec["template"] = {**find_base(obj), **given.template}
    spec["labels"] = spec["labels"] if given.labels is None else given.labels
    return {**spec, "paused": False, "instance": given.instance}


def _ask_rollout(obj: Object, _: Any) -> dict[str, Any]:
    return {"rollout": dig(obj, "actions.rollout", 0) + 1}


def _autoscale(obj: Object, given: AutoscaleInput) -> dict[str, Any]:
    return {**obj["spec"], "autoscale": msgspec.to_builtins(given) if given.max else None}


def _undo(obj: Object, given: UndoInput) -> dict[str, Any]:
    name, status = obj["name"], obj.get("status") or {}
    kept = {one["number"]: one for one in status.get("revisions", [])}
    now = status.get("revision", 0)
    wanted: int | None = given.revision or None
    if wanted is None:
        stable = status.get("stable", 0)
        if stable == now and (read_phase(obj) == "RolledBack" or status.get("back")):
            raise IllegalTransition(
                f"deployment/{name} {'is going' if status.get('back') else 'has gone'} back to revision {now} already",
                hint=f"weft rollout history {name} shows the revisions; weft rollout undo {name} --to N goes back further",
                details={"revision": now},
            )
        earlier = [number for number, one in kept.items() if number != now and one.get("outcome") == "Promoted"]
        wanted = stable if stable and stable != now else max(earlier, default=None)
    if wanted is None or wanted not in kept:
        shown = ", ".join(map(str, sorted(kept))) or "none"
        raise IllegalTransition(
            f"deployment/{name} has no earlier revision"
            if not given.revision
            else f"deployment/{name} keeps no revision {wanted}",
            hint=f"revisions that are kept: {shown} (weft rollout history {name})",
        )
    if wanted == now == status.get("stable"):
        raise IllegalTransition(
            f"deployment/{name} runs revision {wanted} already",
            hint=f"revisions that are kept: {', '.join(map(str, sorted(kept)))} (weft rollout history {name})",
        )
    revision = kept[wanted]
    undone = {"template": revision["template"], "labels": revision.get("labels", {}), "paused": False}
    return {**obj["spec"], **undone}


def _ask_undo(obj: Object, given: UndoInput) -> dict[str, Any]:
    return {**_ask_rollout(obj, given), "undos": dig(obj, "actions.undos", 0) + 1}


def _pause(obj: Object, _: Any) -> dict[str, Any]:
    phase = read_phase(obj)
    if phase in ("Promoted", "RolledBack", "Undecided"):
        raise IllegalTransition(
            f"deployment/{obj['name']} is {phase}: there is no rollout to pause",
            hint=f"weft deployment update {obj['name']} … begins one",
            details={"phase": phase},
        )
    return {**obj["spec"], "paused": True}


def _resume(obj: Object, _: Any) -> dict[str, Any]:
    phase = read_phase(obj)
    if phase in ("Promoted", "RolledBack"):
        raise IllegalTransition(
            f"deployment/{obj['name']} is {phase}: there is no rollout to resume",
            hint=f"weft deployment update {obj['name']} … begins one",
            details={"phase": phase},
        )
    return {**obj["spec"], "paused": False}


def _ask_resume(obj: Object, _: Any) -> dict[str, Any]:
    waits = dig(obj, "spec.paused") or dig(obj, "status.awaits") or read_phase(obj) == "Undecided"
    return {"resumes": dig(obj, "actions.resumes", 0) + 1} if waits else {}


def _scale(obj: Object, given: ScaleInput) -> dict[str, Any]:
    if dig(obj, "spec.autoscale"):
        raise IllegalTransition(
            f"deployment/{obj['name']} is scaled by a figure",
            hint=f"weft deployment autoscale {obj['name']} --off ends that",
        )
    return {**obj["spec"], "replicas": given.replicas}


ROLLOUT_VERBS = (
    Verb(
        "update",
        "Roll out another version of the template",
        input=UpdateInput,
        change=_update,
        act=_ask_rollout,
        needs="write",
    ),
    Verb("scale", "Change the number of instances", input=ScaleInput, change=_scale, needs="operate"),
    Verb(
        "autoscale",
        "Let a figure of the history set the number of instances",
        input=AutoscaleInput,
        change=_autoscale,
        needs="operate",
    ),
    Verb("pause", "Hold the rollout", change=_pause, needs="operate"),
    Verb(
        "resume",
        "Let the rollout go on; promote what waits for that word",
        change=_resume,
        act=_ask_resume,
        needs="operate",
    ),
    Verb("undo", "Go back to an earlier revision", input=UndoInput, change=_undo, act=_ask_undo, needs="operate"),
)
