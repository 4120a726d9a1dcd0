"""Preview of an apply: what it creates, changes and, with ``--prune``, deletes; and an id for exactly that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from weft.cli.command.grammar import CHANGEABLE
from weft.cli.command.target import Target
from weft.cli.manifest.check import WrittenManifest
from weft.cli.session import Session
from weft.kinds.registry import BY_NAME, is_workload

Object = dict[str, Any]
_NOT_PRUNED = ("migration", "conversion")  # acts, not things: they end by themselves


class ApplyStep(msgspec.Struct, frozen=True, kw_only=True):
    """One object of a plan: ``action`` is create, update, keep or delete; ``standing`` its uid and generation as it is now."""

    target: Target
    project: str | None
    action: str
    changes: list[Object] = []
    standing: tuple[str, int] | None = None
    obj: Object = {}


_ACTIONS = {"created": "create", "updated": "update", "unchanged": "keep"}


def make_steps(
    session: Session, manifests: Sequence[WrittenManifest], results: Sequence[Object], pruned: Sequence[Object]
) -> list[ApplyStep]:
    """The steps, in the order of the files, deletions last; ``results`` are what a dry run has answered."""
    steps = []
    for manifest, result in zip(manifests, results, strict=True):
        obj, action = result["object"], _ACTIONS[result["action"]]
        standing = None
        if action != "create":
            there = session.client.get(manifest.kind.name, obj["name"], project=obj.get("project"))
            standing = (there["uid"], there.get("generation", 1))
        target = Target(manifest.kind, obj["name"])
        changes = list(result.get("changes") or [])
        steps.append(
            ApplyStep(
                target=target, project=obj.get("project"), action=action, changes=changes, standing=standing, obj=obj
            )
        )
    for obj in pruned:
        target, standing = Target(BY_NAME[obj["kind"]], obj["name"]), (obj["uid"], obj.get("generation", 1))
        steps.append(ApplyStep(target=target, project=obj.get("project"), action="delete", standing=standing, obj=obj))
    return steps


def name_plan(manifests: Sequence[WrittenManifest], steps: Sequence[ApplyStep]) -> str:
    """The plan's id: the same as long as files and objects are the same."""
    described = [
        [manifest.data for manifest in manifests],
        [[step.target.what, step.project, step.action, step.changes, step.standing] for step in steps],
    ]
    return hashlib.sha256(msgspec.json.encode(described, order="deterministic")).hexdigest()[:12]


def bind(manifests: Sequence[WrittenManifest], steps: Sequence[ApplyStep]) -> list[Object]:
    """The manifests' data with what must still stand when they are applied: that very object, in that generation."""
    bound = []
    for manifest, step in zip(manifests, steps, strict=False):
        uid, generation = step.standing or ("", 0)
        bound.append({**manifest.data, **({"uid": uid, "generation": generation} if uid else {})})
    return bound


def find_pruned(session: Session, manifests: Sequence[WrittenManifest], labels: str) -> list[Object]:
    """The objects with ``labels``, in the projects of ``manifests``, that no manifest names: workloads first, volumes last. What
    another object owns goes with that."""
    named = {(one.kind.name, _project_of(session, one), one.data["name"]) for one in manifests}
    projects = sorted({project for _, project, _ in named if project} or {session.client.project})
    found = []
    for name in sorted(_prunable(), key=lambda name: (not is_workload(name), name == "volume", name)):
        for project in projects:
            for obj in session.client.list(name, project=project, labels=labels).items:
                known = (name, obj.get("project"), obj["name"]) in named
                if not known and not obj.get("owner") and not obj.get("deleting_since"):
                    found.append(obj)
    return found


def _prunable() -> list[str]:
    return [name for name in CHANGEABLE if BY_NAME[name].scope == "project" and name not in _NOT_PRUNED]


def _project_of(session: Session, manifest: WrittenManifest) -> str | None:
    if manifest.kind.scope != "project":
        return None
    return str(manifest.data.get("project") or session.client.project)


def describe_step(step: ApplyStep) -> Object:
    """The step for programs."""
    described = {
        "action": step.action,
        "kind": step.target.kind.name,
        "name": step.target.name,
        "project": step.project,
    }
    return {**described, "changes": step.changes}
