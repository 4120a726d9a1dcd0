"""A deployment's revisions, and why a rollout is where it is, as text. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from weft.cli.output.local_time import render_time
from weft.cli.output.table import Column, draw_table, make_columns
from weft.cli.output.terminal import Paint
from weft.kinds.deployment import TEMPLATES, DeploymentSpec
from weft.kinds.fields.cells import dig
from weft.kinds.fields.deployment.instance import DRAINING_LABEL, PARKED_LABEL, REVISION_LABEL, count_instances
from weft.kinds.fields.deployment.status import DeploymentStatus
from weft.kinds.fields.deployment.strategy import RolloutStrategy
from weft.objects.quantity import format_duration

Object = Mapping[str, Any]
_MOST_FIELDS = 4
_TITLES = ("REVISION>", "OUTCOME!", "CREATED", "AUTHOR", "IMAGE~", "CHANGES~")
_ALWAYS = ("workload", "replicas", "phase", "strategy", "revision", "stable", "ready", "updated")
_ALWAYS_OF_INSTANCES = ("image", "cpu", "memory")
# What its controller counts by, and what the section of the revisions shows.
_OWN = ("revisions", "slots", "observed_generation", "most_updated", "resumes", "rollout", "undos")


def describe_revisions(deployment: Object) -> list[dict[str, Any]]:
    """One row for each kept revision, newest first: whether instances run it, and the fields that differ from the one before."""
    kept = sorted(dig(deployment, "status.revisions", []), key=lambda one: one["number"])
    rows, before = [], None
    for one in kept:
        template = one["template"]
        changed = sorted(name for name, value in template.items() if before is not None and before.get(name) != value)
        more = f" and {len(changed) - _MOST_FIELDS} more" if len(changed) > _MOST_FIELDS else ""
        rows.append(
            {
                "revision": one["number"],
                "outcome": one.get("outcome") or "in progress",
                "runs": one["number"] in dig(deployment, "status.slots", []),
                "created_at": one.get("created_at", 0.0),
                "author": one.get("author", ""),
                "image": template.get("image", ""),
                "changes": ", ".join(changed[:_MOST_FIELDS]) + more,
            }
        )
        before = template
    return rows[::-1]


def tabulate_revisions(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Column], list[list[str]]]:
    """The columns and cells of what ``describe_revisions`` gives."""
    cells = [
        [
            str(row["revision"]),
            f"{row['outcome']}{', runs' * row['runs']}",
            render_time(row["created_at"]),
            row["author"] or "–",
            row["image"],
            row["changes"],
        ]
        for row in rows
    ]
    return list(make_columns(*_TITLES)), cells


def leave_out_revisions(deployment: Object) -> dict[str, Any]:
    """``deployment`` without its revisions, what is as ever, and what is only its controller's."""
    spec = _changed(deployment["spec"], msgspec.to_builtins(DeploymentSpec(template={})))
    spec["strategy"] = _changed(
        deployment["spec"].get("strategy") or {}, msgspec.to_builtins(RolloutStrategy()), ("type",)
    )
    kind = TEMPLATES[spec["workload"]]
    plain = msgspec.to_builtins(kind.spec(image=""))
    spec["template"] = _changed(deployment["spec"].get("template") or {}, plain, _ALWAYS_OF_INSTANCES)
    if spec["template"].get("command"):
        spec["template"]["command"] = " ".join(spec["template"]["command"])
    return {
        **deployment,
        "spec": spec,
        "status": _changed(deployment.get("status") or {}, msgspec.to_builtins(DeploymentStatus())),
    }


def _changed(part: Mapping[str, Any], plain: Mapping[str, Any], always: Sequence[str] = _ALWAYS) -> dict[str, Any]:
    return {k: v for k, v in part.items() if k not in _OWN and (k in always or v != plain.get(k))}


def show_revisions(deployment: Object, width: int | None, paint: Paint) -> str:
    """The revisions as a table; "" if there are none yet."""
    rows = describe_revisions(deployment)
    if not rows:
        return ""
    hint = f"weft rollout history {deployment['name']} --revision N shows the whole template of one"
    return f"{draw_table(*tabulate_revisions(rows), width, paint)}\n{hint}"


def explain_rollout(deployment: Object, instances: Sequence[Object]) -> str:
    """Explain what the rollout does, what it waits for, and where each instance stands."""
    status, strategy = deployment.get("status") or {}, dig(deployment, "spec.strategy", {})
    name, phase = deployment["name"], status.get("phase", "Progressing")
    doing = "goes back to" if status.get("back") else "is at" if phase in ("Promoted", "RolledBack") else "goes to"
    lines = [f"deployment/{name} {doing} revision {status.get('revision', 0)} ({status.get('strategy')}): {phase}"]
    if status.get("stable") and status["stable"] != status.get("revision"):
        lines.append(f"  a rollback goes to revision {status['stable']}")
    lines.append(f"  {_describe_rule(deployment, strategy)}")
    if dig(deployment, "spec.autoscale"):
        lines.append(
            f"  scaled by {dig(deployment, 'spec.autoscale.metric')}: {status.get('scaling') or 'no value yet'}"
        )
    shares = status.get("split") or ()
    lines += [f"  revision {one['revision']} gets {one['per_mille'] / 10:g} % of the requests" for one in shares]
    said = [word for word in ("no_surge", "message", "verdict") if status.get(word)]
    lines += [f"  {word.replace('_', ' ')}: {status[word]}" for word in said]
    lines.append("")
    for one in instances:
        revision = (one.get("labels") or {}).get(REVISION_LABEL, "?")
        drains = ", finishes its connections" if DRAINING_LABEL in (one.get("labels") or {}) else ""
        leaves = ", is being deleted" if one.get("deleting_since") else ""
        kept = ", kept for an undo" if PARKED_LABEL in (one.get("labels") or {}) else ""
        why = "" if kept else dig(one, "status.message") or dig(one, "status.reason") or ""
        where = f" on {node}" if (node := dig(one, "status.node")) else ""
        lines.append(
            f"  {one['name']}  revision {revision}  {dig(one, 'status.phase', 'Pending')}{where}{kept}{drains}{leaves}"
            + (f": {why}" if why else "")
        )
    return "\n".join(lines)


def _describe_rule(deployment: Object, strategy: Mapping[str, Any]) -> str:
    is_scaled = dig(deployment, "spec.autoscale") is not None
    replicas = dig(deployment, "status.replicas" if is_scaled else "spec.replicas", 0)
    kind = strategy.get("type", "rolling")
    timeout = format_duration(float(strategy.get("health_check_timeout", 0.0)))
    least = max(0, replicas - strategy.get("max_unavailable", 1))
    back = "goes back" if strategy.get("rollback_on_failure") or kind == "canary" else "waits for people"
    return (
        f"{count_instances(replicas)}, never fewer than {least} healthy, at most {replicas + strategy.get('max_surge', 1)} "
        f"in a rolling update; a failure, or {timeout} without progress: it {back}"
    )
