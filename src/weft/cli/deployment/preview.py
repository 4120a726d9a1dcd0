"""What ``weft deployment update --dry-run`` says: which instances are replaced, change while they run, or stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from weft.cli.output.formats import print_data, print_items
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.kinds.deployment import FIXED, TEMPLATES, decode_template
from weft.kinds.fields.cells import dig
from weft.kinds.fields.deployment.instance import DEPLOYMENT_LABEL, instance_name, read_instance_name
from weft.objects.spec_change import FieldChange, plan_change

Object = Mapping[str, Any]
_TITLES = ("INSTANCE!", "NODE", "WHAT", "WHY~")


def list_instances(session: Session, deployment: Object) -> list[dict[str, Any]]:
    """The deployment's VMs or containers, in the order of their names."""
    found = session.client.list(
        dig(deployment, "spec.workload"),
        project=deployment.get("project"),
        labels=f"{DEPLOYMENT_LABEL}={deployment['name']}",
    )
    return [one for one in found.items if (one.get("owner") or {}).get("uid") == deployment["uid"]]


def foresee(deployment: Object, instances: Sequence[Object], template: Mapping[str, Any]) -> list[dict[str, str]]:
    """What becomes of each instance if the deployment gets ``template``. Pure."""
    kind = TEMPLATES[dig(deployment, "spec.workload")]
    new = msgspec.to_builtins(decode_template(kind.name, template))
    known = {one["number"]: one["template"] for one in dig(deployment, "status.revisions", [])}
    same = next((number for number, kept in known.items() if kept == new), None)
    revision = same if same is not None else max(known, default=0) + 1
    rows = []
    for one in instances:
        changes = list(_find_changes(kind.spec, one, new))
        costly = [change for change in changes if change.mode != "live"]
        slot = (read_instance_name(deployment["name"], one["name"]) or (0, 0, 1))[1]
        what = "stays" if not changes else "changes while it runs"
        if (
            costly
            and one["name"] == dig(deployment, "spec.adopt")
            and {change.mode for change in costly} <= {"restart", "start"}
        ):
            what = "restarts"
        elif costly:
            what = f"is replaced by {instance_name(deployment['name'], max(revision, 2), slot)}"
        fields = ", ".join(f"{change.path.partition('.')[2]} ({change.mode})" for change in (costly or changes)[:4])
        more = len(costly or changes) - 4
        why = fields + (f" and {more} more" if more > 0 else "")
        rows.append({"instance": one["name"], "node": dig(one, "status.node") or "–", "what": what, "why": why})
    return rows


def _find_changes(type_: Any, instance: Object, new: Mapping[str, Any]) -> list[FieldChange]:
    kept = (*FIXED, "snapshots")
    old = {name: value for name, value in instance["spec"].items() if name not in kept}
    asked = {name: value for name, value in new.items() if name not in kept}
    return plan_change(old, asked, type_, dig(instance, "status.resize_limits"))


def preview_update(
    session: Session,
    deployment: Object,
    template: Mapping[str, Any],
    strategy: Mapping[str, Any],
    adopted: Object | None = None,
) -> int:
    """Print it; nothing is changed. ``adopted``: the VM of which there would be a deployment."""
    instances = [adopted] if adopted is not None else list_instances(session, deployment)
    rows = foresee(deployment, instances, template)
    chosen = {**dig(deployment, "spec.strategy", {}), **strategy}
    if session.is_document:
        print_data(session, {"strategy": chosen.get("type", "rolling"), "instances": rows})
        return 0
    cells = [[row["instance"], row["node"], row["what"], row["why"]] for row in rows]
    names = [row["instance"] for row in rows]
    print_items(session, rows, names, (make_columns(*_TITLES), cells), "there are no instances")
    if not session.is_data:
        replaced = sum(row["what"].startswith("is replaced") for row in rows)
        print(
            f"\n{chosen.get('type', 'rolling')}: {replaced} replaced, {len(rows) - replaced} stay; nothing was changed"
        )
    return 0
