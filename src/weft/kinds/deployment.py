"""Deployment: replicas of one template, VMs or containers that it owns, and how they change to another version of it. Its revisions
are kept with their templates, so that a rollback needs nobody's files."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.container import CONTAINER
from weft.kinds.fields.alert.promql import check_balanced, check_query
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.parts.goal import is_settled, read_phase
from weft.kinds.parts.workload import check_times
from weft.kinds.record import (
    Access,
    Admission,
    Column,
    Display,
    Goal,
    Kind,
    Lifetime,
    Object,
    Operation,
    Reference,
    Verb,
)
from weft.kinds.vm import VM
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, TooLarge, WeftError
from weft.objects.identity import check_labels
from weft.objects.schema import field, read_strict

MOST_REPLICAS = 500
MOST_TEMPLATE_BYTES = 48_000
MOST_EXPRESSION = 2000
MOST_REVISIONS_BYTES = 120_000  # of all kept templates: an object has at most 256 KB
NOT_PROMOTED = "notPromoted"  # why a command ends whose rollout went back, or waits for people
LONGEST_NAME = 45  # so that NAME-REVISION-SLOT-TRY is a name
DEPLOYMENT_LABEL, REVISION_LABEL, DRAINING_LABEL = "weft/deployment", "weft/revision", "weft/draining"
OWN_LABELS = "weft/"
TEMPLATES: Mapping[str, Kind] = {kind.name: kind for kind in (CONTAINER, VM)}
# Of an instance these are its deployment's own: what only one can have, and what verbs and the server set.
FIXED: Mapping[str, Any] = {
    "publish": [],
    "force_publish": False,
    "run": "run",
    "hold": False,
    "restart_generation": 0,
    "pulls": 0,
    "gang": None,
    "lease": None,
    "type": "long-lived",
    "once": False,
    "preemptible": False,
    "mounts": [],
    "volumes": [],
    "origin": None,
    "restore": None,
    "fenced": "",
}
_INSTEAD = {
    "publish": "a Service publishes ports for all instances",
    "mounts": "a volume belongs to one workload, not to all replicas",
    "volumes": "a volume belongs to one workload, not to all replicas",
    "type": "instances wait for capacity",
}
RolloutPhase = Literal["Progressing", "Paused", "Promoted", "RolledBack", "Undecided"]
StrategyType = Literal["rolling", "blue-green", "canary"]
# test: new instances run beside all old ones; roll: they take the place of old ones; keep: all are new, and the old ones wait for
# an undo; "": no rollout is under way.
Stage = Literal["", "test", "roll", "keep"]
_INSTANCE = re.compile(r"-([1-9][0-9]{0,5})-([0-9]{1,3})(?:-([1-9][0-9]{0,4}))?")
Share = Annotated[float, field("", quantity="share")]


class RolloutStrategy(msgspec.Struct, kw_only=True):
    type: Annotated[
        StrategyType,
        field(
            "rolling: one instance after another; blue-green: a whole set beside the old one; canary: a part of the requests first"
        ),
    ] = "rolling"
    max_unavailable: Annotated[
        int, field("How many instances fewer than replicas may be healthy", ge=0, le=MOST_REPLICAS)
    ] = 1
    max_surge: Annotated[int, field("How many instances more than replicas there may be", ge=0, le=MOST_REPLICAS)] = 1
    health_check_timeout: Annotated[
        float, field("How long the rollout waits for the next healthy instance before it fails", quantity="duration")
    ] = 300.0
    rollback_on_failure: Annotated[bool, field("Go back to the old revision if the new one fails")] = False
    live_migrate: Annotated[
        bool, field("Migrate an instance live if its node lacks the capacity for a change that needs no restart")
    ] = False
    traffic_split: Annotated[
        float, field("blue-green: share of the requests for the new set until it is promoted", quantity="share")
    ] = 0.0
    canary_steps: Annotated[
        list[Share], field("canary: share of the requests for the new revision in each step, like 5%")
    ] = msgspec.field(default_factory=lambda: [0.05])
    success_threshold: Annotated[float, field("canary: share of the requests that must succeed", quantity="share")] = (
        0.999
    )
    monitor_duration: Annotated[float, field("canary: how long each step is watched", quantity="duration")] = 600.0
    auto_promote: Annotated[bool, field("Promote without a person's word once the new revision is judged good")] = False
    on_undecided: Annotated[
        Literal["hold", "promote", "revert"], field("canary: what to do when too few requests came to judge")
    ] = "hold"
    keep_old: Annotated[
        float, field("blue-green: how long the old set is kept after the switch, for a quick undo", quantity="duration")
    ] = 300.0


class Autoscale(msgspec.Struct, kw_only=True):
    min: Annotated[int, field("Fewest instances", ge=1, le=MOST_REPLICAS)] = 1
    max: Annotated[int, field("Most instances", ge=1, le=MOST_REPLICAS)]
    metric: Annotated[
        str,
        field("PromQL expression: the load of one instance, as the mean of its series", max_length=MOST_EXPRESSION),
    ]
    target: Annotated[float, field("Value of the expression that each instance should have")]
    cooldown: Annotated[float, field("Least time between two changes of the number", quantity="duration")] = 60.0


class DeploymentSpec(msgspec.Struct, kw_only=True):
    workload: Annotated[Literal["container", "vm"], field("Kind of the instances", change="never")] = "container"
    template: Annotated[dict[str, Any], field("Spec of each instance, as its kind has it", shown="fields")]
    labels: Annotated[dict[str, str], field("Labels of the instances, by which services find them")] = {}
    replicas: Annotated[int, field("Number of instances", ge=0, le=MOST_REPLICAS)] = 1
    strategy: Annotated[RolloutStrategy, field("How a change of the template reaches the instances")] = msgspec.field(
        default_factory=RolloutStrategy
    )
    autoscale: Annotated[Autoscale | None, field("Let a figure set the number of instances instead of replicas")] = None
    adopt: Annotated[
        str, field("VM that becomes the first instance; it is stopped instead of deleted", change="never", name=True)
    ] = ""
    instance: Annotated[str, field("Name of the next revision's only instance, instead of one made up", name=True)] = ""
    min_healthy: Annotated[
        float, field("How long an instance must be healthy before it counts", quantity="duration")
    ] = 5.0
    paused: Annotated[bool, field("Hold the rollout; the verbs pause and resume set it")] = False
    revision_limit: Annotated[int, field("Old revisions to keep", ge=1, le=50)] = 10
    resumes: Annotated[int, field("Counter: the rollout goes on when it grows", ge=0)] = 0
    rollout: Annotated[int, field("Counter: the template is rolled out again when it grows", ge=0)] = 0
    undos: Annotated[int, field("Counter: the template is one to go back to when it grows", ge=0)] = 0


class Revision(msgspec.Struct, kw_only=True):
    number: int
    template: dict[str, Any]
    labels: dict[str, str] = {}
    created_at: float = 0.0
    outcome: str = ""  # how its last rollout ended; "": it goes on
    instance: str = ""  # name of its instance in slot 0, if that is none that was made up


class TrafficShare(msgspec.Struct, frozen=True):
    revision: int
    per_mille: int


class DeploymentStatus(msgspec.Struct, kw_only=True):
    phase: RolloutPhase = "Progressing"
    strategy: StrategyType = "rolling"
    revision: int = 0  # that the instances shall have
    stable: int = 0  # that was promoted last, and which a rollback goes back to; 0: none yet
    stage: Stage = ""
    back: bool = False  # the rollout is a rollback
    replicas: int = 0  # instances wanted
    scaled: int | None = None  # those that ``autoscale`` wants; None: nothing was measured yet
    scaled_at: float | None = None
    scaling: str = ""  # what was measured last, as a sentence
    ready: int = 0  # healthy ones
    updated: int = 0  # healthy ones of ``revision``
    most_updated: int = 0  # of them at one time since the rollout began
    restarts: dict[str, int] = {}  # of instances, by name, that say nothing of ``revision``: they were before it
    failures: dict[str, int] = {}  # by slot, how many instances failed one after another
    verdict: str = ""
    reason: str = ""
    message: str = ""
    revisions: list[Revision] = []
    split: list[TrafficShare] = []  # of the requests; empty: all ready instances alike
    slots: list[int] = []  # the revision of each slot
    step: int = 0  # of a canary; of a rolling update 1 once requests to its first new instances were judged
    awaits: bool = False  # a person's word: weft rollout resume
    no_surge: str = ""  # why there can be no further instance
    migrated: list[str] = []  # migrations that the rollout has made
    step_since: float | None = None  # all instances of the step are healthy since then
    started_at: float | None = None
    progressed_at: float | None = None
    ended_at: float | None = None
    template: str = ""  # mark of the template that was last rolled out
    rollout: int = 0
    resumes: int = 0
    undos: int = 0
    observed_generation: int = 0


def find_since(status: DeploymentStatus) -> float | None:
    """Since when requests to the new revision are judged; None: they aren't."""
    if status.stage == "test":
        return status.step_since
    return status.started_at if status.stage == "roll" and status.stable and not status.back else None


def instance_name(deployment: str, revision: int, slot: int, attempt: int = 1) -> str:
    """``web-2-0``; a later try of it ``web-2-0-2``."""
    return f"{deployment}-{revision}-{slot}" + (f"-{attempt}" if attempt > 1 else "")


def read_instance_name(deployment: str, name: str) -> tuple[int, int, int] | None:
    """Revision, slot and try; None if it isn't named as one of the deployment's."""
    if not name.startswith(f"{deployment}-"):
        return None
    match = _INSTANCE.fullmatch(name[len(deployment) :])
    if match is None:
        return None
    found = int(match[1]), int(match[2]), int(match[3] or 1)
    return found if instance_name(deployment, *found) == name else None


def count_instances(number: int) -> str:
    """``1 instance``, ``3 instances``"""
    return f"{number} instance" + ("" if number == 1 else "s")


def mark_template(template: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The same for the same template and labels only."""
    return hashlib.sha256(msgspec.json.encode([template, labels], order="deterministic")).hexdigest()[:16]


def read_template(workload: str, template: Mapping[str, Any]) -> Any:
    """The template as a spec of its kind, with defaults. Raises InvalidInput."""
    return read_strict(dict(template), TEMPLATES[workload].spec, "spec.template")


@functools.lru_cache(maxsize=512)
def _decode(workload: str, template: bytes) -> Any:
    return msgspec.json.decode(template, type=TEMPLATES[workload].spec)


def decode_template(workload: str, template: Mapping[str, Any]) -> Any:
    """An admitted template as a spec of its kind; shared, so don't change it."""
    return _decode(workload, msgspec.json.encode(template))


def check_deployment(spec: DeploymentSpec) -> None:
    """What types can't say; the template gets its defaults. Raises InvalidInput."""
    made, kind = read_template(spec.workload, spec.template), TEMPLATES[spec.workload]
    assert kind.admission.check is not None
    _check_template(kind.admission.check, made)
    for name, value in FIXED.items():
        if getattr(made, name, value) != value and not (spec.adopt and name == "volumes"):
            raise InvalidInput(
                f"spec.template.{name}: instances of a deployment don't support it",
                field=f"spec.template.{name}",
                hint=f"leave it out; {_INSTEAD[name]}" if name in _INSTEAD else "leave it out",
            )
    if any(":" in network for network in made.networks):
        raise InvalidInput(
            "spec.template.networks: instances can't share one address",
            field="spec.template.networks",
            hint="name networks without addresses",
        )
    spec.template = msgspec.to_builtins(made)
    if len(msgspec.json.encode(spec.template)) > MOST_TEMPLATE_BYTES:
        raise TooLarge(
            f"spec.template: larger than {MOST_TEMPLATE_BYTES // 1000} kB, and every revision keeps its own",
            field="spec.template",
            hint="put large files into the image",
        )
    check_labels(spec.labels, "spec.labels")
    if own := [key for key in spec.labels if key.startswith(OWN_LABELS)]:
        raise InvalidInput(
            f"spec.labels: {own[0]} is set by weft", field=f"spec.labels.{own[0]}", hint="leave it out, or rename it"
        )
    if len(spec.labels) > 32:
        raise InvalidInput("spec.labels: at most 32 labels", field="spec.labels", hint="leave some of them out")
    _check_strategy(spec)
    _check_scale(spec)


def _check_autoscale(scale: Autoscale) -> None:
    faults = {
        "min": "must be at most max" if scale.min > scale.max else "",
        "target": "" if scale.target > 0 else "must be more than 0",
        "metric": "" if scale.metric.strip() else "must be an expression",
    }
    for name, fault in faults.items():
        if fault:
            raise InvalidInput(
                f"spec.autoscale.{name}: {fault}",
                field=f"spec.autoscale.{name}",
                hint="like min: 2, max: 10, metric: avg(weft_workload_cpu_usage), target: 0.5",
            )
    check_balanced(check_query(scale.metric, "spec.autoscale.metric"), "spec.autoscale.metric")


def _check_scale(spec: DeploymentSpec) -> None:
    scale = spec.autoscale
    if scale is not None:
        _check_autoscale(scale)
    if spec.adopt and spec.workload != "vm":
        raise InvalidInput("spec.adopt: only a VM can be adopted", field="spec.adopt", hint="set spec.workload to vm")
    if (spec.adopt or spec.instance) and (spec.replicas != 1 or scale is not None):
        raise InvalidInput(
            "spec.replicas: a deployment with an instance of a given name has only that one",
            field="spec.replicas",
            hint="set spec.replicas to 1, or leave out spec.adopt and spec.instance",
        )


def _check_strategy(spec: DeploymentSpec) -> None:
    strategy, at = spec.strategy, "spec.strategy"
    if strategy.type == "rolling" and strategy.max_surge == 0 and strategy.max_unavailable == 0:
        raise InvalidInput(
            f"{at}.max_unavailable: with max_surge 0, too, no instance could be replaced",
            field=f"{at}.max_unavailable",
            hint="set either of them to at least 1",
        )
    if strategy.health_check_timeout < max(1.0, spec.min_healthy):
        raise InvalidInput(
            f"{at}.health_check_timeout: shorter than spec.min_healthy, so that no instance could become healthy in time",
            field=f"{at}.health_check_timeout",
            hint="give a longer timeout, or set spec.min_healthy to less",
        )
    steps = strategy.canary_steps
    if not 1 <= len(steps) <= 20 or sorted(set(steps)) != steps or steps[0] <= 0:
        raise InvalidInput(
            f"{at}.canary_steps: 1 to 20 shares are needed, each larger than the one before",
            field=f"{at}.canary_steps",
            hint="like 5%, or 5%, 25% and 50%",
        )
    if not 0.5 <= strategy.success_threshold < 1:
        raise InvalidInput(
            f"{at}.success_threshold: must be at least 50 % and less than 100 %: no number of requests shows that none ever fails",
            field=f"{at}.success_threshold",
            hint="like 99.9%",
        )


def _check_template(check: Callable[..., None], made: Any, *more: Any) -> None:
    """``check`` of the template. Raises InvalidInput that names the deployment's field."""
    try:
        check(made, *more)
    except InvalidInput as problem:
        inner = problem.field or "spec"
        at = inner.replace("spec", "spec.template", 1)
        raise InvalidInput(
            problem.message.replace(inner, at, 1), reason=problem.token, field=at, hint=problem.hint
        ) from None


def _refuse_new_kind(old: DeploymentSpec, new: DeploymentSpec) -> None:
    if old.workload != new.workload:
        raise InvalidInput(
            "spec.workload: a deployment keeps the kind of its instances",
            field="spec.workload",
            hint="create another deployment",
        )


class UpdateInput(msgspec.Struct, kw_only=True):
    """Fields that change; others stay."""

    template: Annotated[dict[str, Any], field("Fields of the template that change")] = {}
    labels: Annotated[dict[str, str] | None, field("Labels of the instances; unset: as they are")] = None
    strategy: Annotated[dict[str, Any], field("Fields of the strategy that change")] = {}
    instance: Annotated[str, field("Name of the new revision's only instance; made up if unset", name=True)] = ""


class AutoscaleInput(msgspec.Struct, kw_only=True):
    """Without ``max`` the number is people's again."""

    min: Annotated[int, field("Fewest instances", ge=1, le=MOST_REPLICAS)] = 1
    max: Annotated[int, field("Most instances; 0 ends the scaling", ge=0, le=MOST_REPLICAS)] = 0
    metric: Annotated[str, field("PromQL expression", max_length=MOST_EXPRESSION)] = ""
    target: Annotated[float, field("Value of the expression that each instance should have")] = 0.0
    cooldown: Annotated[float, field("Least time between two changes of the number", quantity="duration")] = 60.0


class UndoInput(msgspec.Struct, kw_only=True):
    revision: Annotated[int, field("Revision to go back to; 0 is the one before", ge=0)] = 0


class ScaleInput(msgspec.Struct, kw_only=True):
    replicas: Annotated[int, field("Number of instances", ge=0, le=MOST_REPLICAS)]


def _is_settled(obj: Object) -> bool:
    return is_settled(obj) and dig(obj, "status.template") != ""


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
            hint=f"weft rollout status {obj['name']} --watch waits for its end; weft rollout undo {obj['name']} goes back",
            details={"phase": phase},
        )
    spec = dict(obj["spec"])
    strategy = {**spec["strategy"], **given.strategy}
    spec["strategy"] = msgspec.to_builtins(read_strict(strategy, RolloutStrategy, "input.strategy"))
    spec["template"] = {**find_base(obj), **given.template}
    spec["labels"] = spec["labels"] if given.labels is None else given.labels
    return {**spec, "paused": False, "rollout": spec["rollout"] + 1, "instance": given.instance}


def _autoscale(obj: Object, given: AutoscaleInput) -> dict[str, Any]:
    return {**obj["spec"], "autoscale": msgspec.to_builtins(given) if given.max else None}


def _undo(obj: Object, given: UndoInput) -> dict[str, Any]:
    name, status = obj["name"], obj.get("status") or {}
    kept = {one["number"]: one for one in status.get("revisions", [])}
    now = status.get("revision", 0)
    wanted: int | None = given.revision or None
    if wanted is None:
        stable = status.get("stable", 0)
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
    revision, spec = kept[wanted], obj["spec"]
    undone = {"template": revision["template"], "labels": revision.get("labels", {}), "paused": False}
    return {**spec, **undone, "rollout": spec["rollout"] + 1, "undos": spec["undos"] + 1}


def _pause(obj: Object, _: Any) -> dict[str, Any]:
    phase = read_phase(obj)
    if phase in ("Promoted", "RolledBack", "Undecided"):
        raise IllegalTransition(
            f"deployment/{obj['name']} is {phase}: there is no rollout to pause", details={"phase": phase}
        )
    return {**obj["spec"], "paused": True}


def _resume(obj: Object, _: Any) -> dict[str, Any]:
    phase, spec = read_phase(obj), obj["spec"]
    if phase in ("Promoted", "RolledBack"):
        raise IllegalTransition(
            f"deployment/{obj['name']} is {phase}: there is no rollout to resume",
            hint=f"weft deployment update {obj['name']} … begins one",
            details={"phase": phase},
        )
    waits = spec["paused"] or dig(obj, "status.awaits") or phase == "Undecided"
    return {**spec, "paused": False, "resumes": spec["resumes"] + 1} if waits else dict(spec)


def _scale(obj: Object, given: ScaleInput) -> dict[str, Any]:
    if dig(obj, "spec.autoscale"):
        raise IllegalTransition(
            f"deployment/{obj['name']} is scaled by a figure",
            hint=f"weft deployment autoscale {obj['name']} --off ends that",
        )
    return {**obj["spec"], "replicas": given.replicas}


VERBS = (
    Verb("update", "Roll out another version of the template", input=UpdateInput, change=_update, needs="write"),
    Verb("scale", "Change the number of instances", input=ScaleInput, change=_scale, needs="operate"),
    Verb(
        "autoscale",
        "Let a figure of the history set the number of instances",
        input=AutoscaleInput,
        change=_autoscale,
        needs="operate",
    ),
    Verb("pause", "Hold the rollout", change=_pause, needs="operate"),
    Verb("resume", "Let the rollout go on; promote what waits for that word", change=_resume, needs="operate"),
    Verb("undo", "Go back to an earlier revision", input=UndoInput, change=_undo, needs="operate"),
)


def _of_template(reference: Reference, kinds: Sequence[str]) -> Reference:
    """A reference that templates of these kinds have."""

    def names(spec: DeploymentSpec) -> Sequence[str]:
        if spec.workload not in kinds:
            return ()
        return reference.names(decode_template(spec.workload, spec.template))

    return Reference(
        reference.kind,
        reference.field.replace("spec.", "spec.template."),
        names,
        blocks=False,
        awaited=reference.awaited,
        else_=reference.else_,
        groups=reference.groups,
    )


def _references() -> list[Reference]:
    by_place: dict[tuple[str, str], tuple[Reference, list[str]]] = {}
    for kind in TEMPLATES.values():
        for one in kind.references:
            if one.kind not in ("volume", "snapshot"):
                # Those of all workloads are one; an image is named differently by each kind.
                own = kind.name if one.kind == "image" else ""
                by_place.setdefault((f"{own}{one.kind}", one.field), (one, []))[1].append(kind.name)
    return [_of_template(one, kinds) for one, kinds in by_place.values()]


def _has_ended(obj: Object | None) -> bool:
    return obj is not None and _is_settled(obj) and read_phase(obj) == "Promoted" and not dig(obj, "status.awaits")


def _is_back(obj: Object | None) -> bool:
    return obj is not None and _is_settled(obj) and read_phase(obj) == "RolledBack"


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    phase = read_phase(obj)
    ended = ("RolledBack", "Undecided", "Paused") if goal.words == "promoted" else ("Undecided", "Promoted")
    if not goal.ends_failed or not _is_settled(obj) or phase not in ended:
        return None
    name = obj["name"]
    hint = f"weft rollout explain {name}"
    if phase in ("Undecided", "Paused"):
        hint += f"   weft rollout undo {name}   weft rollout resume {name}"
    said = dig(obj, "status.verdict", "") or dig(obj, "status.message", "")
    return DriverFailed(f"{what} is {phase}: {said}", reason=NOT_PROMOTED, hint=hint)


def _scaled(obj: Object | None) -> bool:
    if obj is None or not is_settled(obj):
        return False
    return bool(dig(obj, "status.ready", 0) >= dig(obj, "spec.replicas", 0))


def _count(path: str) -> Callable[[Object], str]:
    return lambda obj: f"{dig(obj, path, 0)}/{_find_wanted(obj)}"


def _find_wanted(obj: Object) -> int:
    if dig(obj, "spec.autoscale"):
        return int(dig(obj, "status.replicas", 0))
    return int(dig(obj, "spec.replicas", 0))


def describe_progress(obj: Object) -> str:
    """``revision 2   updated 1/3   ready 3/3   waits for web-2-1``"""
    status = obj.get("status") or {}
    if not status.get("revision"):
        return ""
    counts = "   ".join(f"{word} {_count(f'status.{word}')(obj)}" for word in ("updated", "ready"))
    shares = [one for one in status.get("split") or () if one["revision"] == status["revision"]]
    gets = f"   gets {shares[0]['per_mille'] / 10:g} % of the requests" if shares else ""
    return f"revision {status['revision']}   {counts}{gets}   {status.get('message', '')}".rstrip()


_PROMOTED = Goal(_has_ended, "promoted", asked="phase=Promoted")


def _check_times(spec: DeploymentSpec, now: float) -> None:
    check_times(decode_template(spec.workload, spec.template), now)


DEPLOYMENT = Kind(
    name="deployment",
    plural="deployments",
    title="deployment",
    summary="Replicas of one template, and how they change to another version",
    spec=DeploymentSpec,
    status=DeploymentStatus,
    references=(
        *_references(),
        Reference("vm", "spec.adopt", lambda spec: [spec.adopt] if spec.adopt else [], blocks=False),
    ),
    verbs=VERBS,
    in_backups="renamed",
    access=Access(readers="project", status_writer="deployments"),
    admission=Admission(
        check=check_deployment,
        check_times=_check_times,
        check_change=_refuse_new_kind,
        server_fields=("paused", "resumes", "rollout", "undos", "instance"),
        longest_name=LONGEST_NAME,
    ),
    display=Display(
        topic="Workloads",
        columns=(
            NAME,
            Column("PHASE", text("status.phase", "Progressing"), keep=True),
            Column("STRATEGY", text("status.strategy")),
            Column("REVISION", text("status.revision", "0"), align="right"),
            Column("READY", _count("status.ready"), align="right"),
            Column("UPDATED", _count("status.updated"), align="right"),
            Column("IMAGE", text("spec.template.image"), flexible=True),
            AGE,
            Column("NOTE", text("status.message", ""), flexible=True),
        ),
        progress=describe_progress,
    ),
    lifetime=Lifetime(
        goals={
            "create": _PROMOTED,
            "update": _PROMOTED,
            "resume": _PROMOTED,
            "wait": _PROMOTED,
            "scale": Goal(
                _scaled,
                "scaled",
                ends_failed=False,
                answer=lambda obj: f"has {count_instances(dig(obj, 'status.ready', 0))}",
            ),
            "undo": Goal(_is_back, "rolled back", asked="phase=RolledBack"),
        },
        find_failure=_find_failure,
        operation=Operation(
            act="roll out", cancel="undo", ended=("Promoted", "RolledBack", "Undecided"), started="status.started_at"
        ),
        finalizers=("deployment",),
    ),
)
