"""Preview of ``weft deployment update --dry-run``: which instances are replaced, change while they run, or stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from weft.cli.output.formats import print_data, print_items
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.kinds.deployment import OWN, TEMPLATES, read_template
from weft.kinds.fields.cells import dig
from weft.kinds.fields.deployment.instance import (
    DEPLOYMENT_LABEL,
    PARKED_LABEL,
    instance_name,
    list_kept,
    read_instance_name,
)
from weft.kinds.parts.deployment.spread import DEFAULTS, names_places
from weft.kinds.parts.deployment.verbs import find_base
from weft.kinds.parts.goal import read_phase
from weft.kinds.parts.nic import networks_of
from weft.objects.spec_change import FieldChange, plan_change

Object = Mapping[str, Any]
_MOST_NAMED, STAYS = 10, "stays"
_TITLES = ("INSTANCE!", "NODE", "WHAT", "WHY~")


def list_instances(session: Session, deployment: Object) -> list[dict[str, Any]]:
    """The deployment's VMs or containers, in the order of their names."""
    found = session.client.list(
        dig(deployment, "spec.workload"),
        project=deployment.get("project"),
        labels=f"{DEPLOYMENT_LABEL}={deployment['name']}",
    )
    return [one for one in found.items if (one.get("owner") or {}).get("uid") == deployment["uid"]]


def describe_end(session: Session, deployment: Object) -> list[str]:
    """Describe what a deletion of the deployment does with its instances, as sentences."""
    revisions = dig(deployment, "status.revisions", [])
    kept = list_kept(dig(deployment, "spec.adopt", ""), (one.get("instance", "") for one in revisions))
    there = list_instances(session, deployment)
    stay = [one for one in there if one["name"] in kept or PARKED_LABEL in (one.get("labels") or {})]
    goes = [f"{one['kind']}/{one['name']}" for one in there if one not in stay]
    lines = [f"{_list(goes)} {'goes' if len(goes) == 1 else 'go'} with deployment/{deployment['name']}"] if goes else []
    stays = [f"{one['kind']}/{one['name']} ({dig(one, 'status.phase', 'Pending')})" for one in stay]
    return [*lines, *([f"{_list(stays)} {'stays' if len(stays) == 1 else 'stay'}"] if stays else [])]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def list_serving(session: Session, deployment: Object) -> list[dict[str, Any]]:
    """Those that aren't only kept, stopped, for an undo."""
    return [one for one in list_instances(session, deployment) if PARKED_LABEL not in (one.get("labels") or {})]


def foresee(
    deployment: Object,
    instances: Sequence[Object],
    template: Mapping[str, Any],
    strategy: str = "rolling",
    instance: str = "",
) -> list[dict[str, str]]:
    """Foresee what becomes of each instance if the deployment has ``template``; ``new`` is what takes its place, "" if it stays.
    ``instance``: the name of the next one. Pure."""
    kind = TEMPLATES[dig(deployment, "spec.workload")]
    new = msgspec.to_builtins(read_template(kind.name, template))
    revisions = dig(deployment, "status.revisions", [])
    same = next((one for one in revisions if one["template"] == new and instance in ("", one.get("instance"))), None)
    number = same["number"] if same else max((one["number"] for one in revisions), default=0) + 1
    kept = list_kept(dig(deployment, "spec.adopt", ""), (one.get("instance", "") for one in revisions))
    rows = []
    for one in instances:
        changes = find_changes(kind.spec, one, new)
        modes = {"live", "restart", "start"} if one["name"] in kept else {"live"}
        costly = [change for change in changes if change.mode != "live"]
        slot = (read_instance_name(deployment["name"], one["name"]) or (0, 0, 1))[1]
        what, successor = STAYS if not changes else "changes while it runs", ""
        if {change.mode for change in costly} - modes or (strategy != "rolling" and (changes or instance)):
            known = (same or {}).get("instance") if slot == 0 else ""
            successor = instance or known or instance_name(deployment["name"], max(number, 2), slot)
            what = f"is replaced by {successor}"
        elif costly:
            what = "restarts"
        fields = ", ".join(f"{change.path.partition('.')[2]} ({change.mode})" for change in (costly or changes)[:4])
        more = len(costly or changes) - 4
        why = fields + (f" and {more} more" if more > 0 else "")
        where = dig(one, "status.node") or "–"
        rows.append({"instance": one["name"], "node": where, "what": what, "why": why, "new": successor})
    return rows


def is_unchanged(
    deployment: Object, rows: Sequence[Mapping[str, str]], template: Mapping[str, Any], more: Mapping[str, Any]
) -> bool:
    """Whether an update to ``template`` changes nothing of a deployment that has ended its last one, or that isn't made yet (no
    ``uid``); ``rows`` as ``foresee`` made them. ``more``: other fields of its spec, as they would be. Pure."""
    if not rows or any(row["what"] != STAYS for row in rows):
        return False
    if not deployment["uid"]:
        return True
    kind, spec = dig(deployment, "spec.workload"), deployment["spec"]
    had, new = read_template(kind, find_base(deployment)), read_template(kind, template)
    return read_phase(deployment) == "Promoted" and had == new and all(spec.get(name) == more[name] for name in more)


def find_changes(type_: Any, instance: Object, new: Mapping[str, Any]) -> list[FieldChange]:
    """The fields of an instance that ``new``, a template, changes."""
    old = {name: value for name, value in instance["spec"].items() if name not in OWN}
    asked = {name: value for name, value in new.items() if name not in OWN}
    if not names_places(asked):  # else its revision decides
        old |= {name: asked[name] for name in DEFAULTS if name in asked}
    old["networks"] = networks_of(old.get("networks", []))  # the addresses stay
    if "disk" in asked:
        asked["disk"] = max(asked["disk"], old.get("disk", 0))  # a disk never shrinks
    return plan_change(old, asked, type_, dig(instance, "status.resize_limits"))


def print_preview(
    session: Session, rows: Sequence[dict[str, str]], strategy: Mapping[str, Any], more: Sequence[str] = ()
) -> int:
    """``more``: sentences on what is replaced."""
    chosen = strategy.get("type", "rolling")
    if session.is_document:
        print_data(session, {"strategy": chosen, "instances": rows, "notes": [line.strip() for line in more]})
        return 0
    cells = [[row["instance"], row["node"], row["what"], row["why"]] for row in rows]
    names = [row["instance"] for row in rows]
    print_items(session, rows, names, (make_columns(*_TITLES), cells), "there are no instances")
    if not session.is_data:
        replaced = sum(bool(row["new"]) for row in rows)
        print("".join(f"\n{line}" for line in more))
        print(f"{chosen}: {replaced} replaced, {len(rows) - replaced} stay; nothing was changed")
    return 0
