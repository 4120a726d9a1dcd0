"""Deployment: replicas of one template, VMs or containers that it owns, and how they change to another version of it. Its revisions
are kept with their templates, so that a rollback needs nobody's files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from weft.kinds.container import CONTAINER
from weft.kinds.fields.cells import AGE, NAME, dig, text
from weft.kinds.fields.deployment.instance import LONGEST_NAME, OWN_LABELS, count_instances
from weft.kinds.fields.deployment.scaling import MOST_REPLICAS, Autoscale, check_autoscale
from weft.kinds.fields.deployment.status import DeploymentStatus, mark_template
from weft.kinds.fields.deployment.strategy import RolloutStrategy, check_strategy
from weft.kinds.parts.deployment.verbs import ROLLOUT_VERBS
from weft.kinds.parts.goal import is_settled, read_phase
from weft.kinds.parts.workload import check_times, leave_out_starts
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
    Signed,
)
from weft.kinds.vm import VM
from weft.objects.envelope import take_from_spec
from weft.objects.errors import DriverFailed, IllegalTransition, InvalidInput, TooLarge, WeftError
from weft.objects.identity import check_labels
from weft.objects.schema import field, read_strict

MOST_TEMPLATE_BYTES = 48_000
NOT_PROMOTED = "notPromoted"  # why a command ends whose rollout went back, or waits for people
TEMPLATES: Mapping[str, Kind] = {kind.name: kind for kind in (CONTAINER, VM)}
# Of an instance these are its deployment's own: what only one can have, and what verbs and the server set.
FIXED: Mapping[str, Any] = {
    "publish": [],
    "force_publish": False,
    "run": "run",
    "hold": False,
    "gang": None,
    "lease": None,
    "type": "long-lived",
    "once": False,
    "preemptible": False,
    "mounts": [],
    "volumes": [],
    "origin": None,
}
OWN = (*FIXED, "snapshots", "boot")  # fields that an instance keeps in an update in place
_INSTEAD = {
    "publish": "a Service publishes ports for all instances",
    "mounts": "a volume belongs to one workload, not to all replicas",
    "volumes": "a volume belongs to one workload, not to all replicas",
    "type": "instances wait for capacity",
}


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


class DeploymentActions(msgspec.Struct, kw_only=True):
    resumes: Annotated[int, field("Counter: the rollout goes on when it grows", ge=0)] = 0
    rollout: Annotated[int, field("Counter: the template is rolled out again when it grows", ge=0)] = 0
    undos: Annotated[int, field("Counter: the template is one to go back to when it grows", ge=0)] = 0


class DeploymentMarks(msgspec.Struct, kw_only=True):
    author: Annotated[str, field("Who asked for the template")] = ""


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
    """Check what types can't say; the template gets its defaults. Raises InvalidInput."""
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
    check_strategy(spec.strategy, spec.min_healthy)
    _check_scale(spec)


def _check_scale(spec: DeploymentSpec) -> None:
    scale = spec.autoscale
    if scale is not None:
        check_autoscale(scale)
    if spec.adopt and spec.workload != "vm":
        raise InvalidInput("spec.adopt: only a VM can be adopted", field="spec.adopt", hint="set spec.workload to vm")
    if (spec.adopt or spec.instance) and (spec.replicas != 1 or scale is not None):
        raise InvalidInput(
            "spec.replicas: a deployment with an instance of a given name has only that one",
            field="spec.replicas",
            hint="set spec.replicas to 1, or leave out spec.adopt and spec.instance",
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


def _is_settled(obj: Object) -> bool:
    return is_settled(obj) and dig(obj, "status.template") != ""


def _of_template(reference: Reference, kinds: Sequence[str]) -> Reference:
    """A reference that templates of these kinds have."""

    def names(spec: DeploymentSpec) -> Sequence[str]:
        if spec.workload not in kinds:
            return ()
        return reference.names(decode_template(spec.workload, spec.template))

    def asks(spec: DeploymentSpec) -> Any:
        if reference.asks is None or spec.workload not in kinds:
            return None
        return reference.asks(decode_template(spec.workload, spec.template))

    def suffices(spec: DeploymentSpec, named: Mapping[str, Any]) -> None:
        assert reference.suffices is not None
        _check_template(reference.suffices, decode_template(spec.workload, spec.template), named)

    return Reference(
        reference.kind,
        reference.field.replace("spec.", "spec.template."),
        names,
        blocks=False,
        awaited=reference.awaited,
        else_=reference.else_,
        groups=reference.groups,
        suffices=None if reference.suffices is None else suffices,
        asks=None if reference.asks is None else asks,
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


def _awaits_word(obj: Object | None) -> bool:
    """Whether it has come as far as people asked for, and waits for them."""
    if obj is None or not _is_settled(obj) or read_phase(obj) != "Paused":
        return False
    return bool(dig(obj, "status.awaits")) and not dig(obj, "spec.strategy.auto_promote", False)


def _describe_word(obj: Object) -> str:
    if read_phase(obj) != "Paused":
        return ""
    name = obj["name"]
    return (
        f"{dig(obj, 'status.verdict', '')}. Nothing is promoted yet: weft rollout resume {name} goes on, "
        f"weft rollout undo {name} goes back"
    )


def _is_back(obj: Object | None) -> bool:
    return obj is not None and _is_settled(obj) and read_phase(obj) == "RolledBack"


BLOCKED = NAME_TAKEN, IS_REPLICATED = "nameTaken", "isReplicated"  # reasons for which it can't adopt its VM


def _find_failure(obj: Object, what: str, goal: Goal) -> WeftError | None:
    phase, reason = read_phase(obj), dig(obj, "status.reason", "")
    if goal.ends_refused and reason in BLOCKED:
        hint = f"It goes on when that is resolved.  weft wait {what} | weft delete {what}"
        return IllegalTransition(f"{what} can't begin: {dig(obj, 'status.message', '')}", reason=reason, hint=hint)
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


def _describe_note(obj: Object) -> str:
    """The step that goes on, or the reason why the rollout didn't come to its end."""
    judged = dig(obj, "status.verdict", "") if read_phase(obj) in ("RolledBack", "Undecided") else ""
    return judged or dig(obj, "status.message", "") or ""


def _find_least_seconds(obj: Object) -> float:
    """How long a rollout watches before it can be promoted."""
    strategy = msgspec.convert(dig(obj, "spec.strategy") or {}, RolloutStrategy)
    steps = len(strategy.canary_steps) if strategy.type == "canary" else int(strategy.traffic_split > 0)
    return strategy.health_check_timeout + steps * strategy.monitor_duration


_PROMOTED = Goal(_has_ended, "promoted", asked="phase=Promoted")
_ROLLED_OUT = Goal(
    lambda obj: _has_ended(obj) or _awaits_word(obj),
    "promoted",
    asked="phase=Promoted",
    takes=_find_least_seconds,
    remark=_describe_word,
)


def _check_times(spec: DeploymentSpec, now: float) -> None:
    check_times(decode_template(spec.workload, spec.template), now)


def _leave_out_starts(stored: dict[str, Any]) -> dict[str, Any]:
    """The upgrade of one whose templates have what is no longer in a workload's spec. They stay the same: nothing is rolled out."""
    spec, status = dict(stored["spec"]), dict(stored.get("status") or {})
    labels, template = spec.get("labels") or {}, leave_out_starts(spec.get("template") or {})
    if status.get("template") == mark_template(spec.get("template") or {}, labels):
        status["template"] = mark_template(template, labels)
    if "revisions" in status:
        kept = [{**one, "template": leave_out_starts(one["template"])} for one in status["revisions"]]
        status["revisions"] = kept
    return {**stored, "spec": {**spec, "template": template}, "status": status}


DEPLOYMENT = Kind(
    name="deployment",
    plural="deployments",
    title="deployment",
    summary="Replicas of one template, and how they change to another version",
    spec=DeploymentSpec,
    actions=DeploymentActions,
    marks=DeploymentMarks,
    status=DeploymentStatus,
    schema=3,
    upgrades=(_leave_out_starts, take_from_spec(actions=DeploymentActions, marks=DeploymentMarks)),
    references=(
        *_references(),
        Reference("vm", "spec.adopt", lambda spec: [spec.adopt] if spec.adopt else [], blocks=False),
    ),
    verbs=ROLLOUT_VERBS,
    in_backups="renamed",
    access=Access(readers="project", status_writer="deployments", mark_writers={"author": ("api",)}),
    admission=Admission(
        check=check_deployment,
        check_times=_check_times,
        check_change=_refuse_new_kind,
        kept_fields=("paused", "instance"),
        signed=Signed("author", of=("spec.template", "spec.labels", "actions.rollout")),
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
            Column("NOTE", _describe_note, flexible=True),
        ),
        progress=describe_progress,
    ),
    lifetime=Lifetime(
        goals={
            "create": _PROMOTED,
            "update": _ROLLED_OUT,
            "resume": _ROLLED_OUT,
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
