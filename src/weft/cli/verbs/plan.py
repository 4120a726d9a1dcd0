"""The plan of an apply: as a plan under an id, or as a difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.errors import complain
from weft.cli.command.exit_codes import ERROR, OK, USAGE
from weft.cli.command.grammar import Entry
from weft.cli.manifest.check import WrittenManifest
from weft.cli.output.formats import print_data
from weft.cli.preview.apply import ApplyStep, describe_step, find_pruned, make_steps, name_plan
from weft.cli.preview.deletion import describe_loss
from weft.cli.preview.dry_run import Foreseen, describe_refusal, foresee_each
from weft.cli.session import Session
from weft.cli.verbs.apply import (
    SHOWN_WITH_OTHERS,
    describe_change,
    files,
    find_new,
    name_cost,
    prunes,
    read_all,
    read_labels,
    send,
    show_change,
    show_value,
)
from weft.kinds.record import Kind
from weft.objects.errors import WeftError

_MOST_FIELDS = 6  # of a new object, that are shown


def plan_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft plan -f FILE`: what apply would do, and an id with which `apply --plan ID` does exactly that, or nothing."""
    params = [*files(), *prunes(), options.output()]
    return options.build(verb, "Show what apply would do, under an id for weft apply --plan.", _plan, kind, params)


def _plan(
    session: Session,
    kind: Kind | None,
    paths: tuple[str, ...],
    files: tuple[str, ...],
    prune: bool,
    labels: tuple[str, ...],
) -> int:
    files = (*files, *paths)
    manifests = read_all(session, files)
    results = send(session, manifests, dry_run=True)
    pruned = find_pruned(session, manifests, read_labels(labels)) if prune else []
    steps = make_steps(session, manifests, results, pruned)
    id_ = name_plan(manifests, steps)
    if session.output == "name":
        print(id_)
        return 0
    foreseen = foresee_each(session, find_new(manifests, results))
    if session.is_document:
        print_data(session, {"id": id_, "items": [{**describe_step(step), **_place(step, foreseen)} for step in steps]})
        return 0
    for step, manifest in zip(steps, [*manifests, *([None] * len(pruned))], strict=True):
        print("\n".join(_render_step(step, manifest, foreseen.get(step.target.what, Foreseen()))))
    how = " ".join(
        ["weft apply", *(f"-f {file}" for file in files), *(["--prune", f"-l {','.join(labels)}"] if prune else [])]
    )
    print(f"\nplan {id_}: {_count(steps)}")
    if any(step.action != "keep" for step in steps):
        session.notify(f"{how} --plan {id_}   does exactly this, or nothing if something has changed by then")
    return 0


def _place(step: ApplyStep, foreseen: Mapping[str, Foreseen]) -> dict[str, Any]:
    """The placement of a step, for programs: the node and the policy, or why on none."""
    forecast = foreseen.get(step.target.what)
    if forecast is None or forecast.answer is None:
        return {}
    status = forecast.answer["status"]
    return {
        "placement": {"node": status.get("best") or None, **{k: status.get(k) for k in ("policy", "reason", "message")}}
    }


def _render_step(step: ApplyStep, manifest: WrittenManifest | None, foreseen: Foreseen) -> list[str]:
    what = step.target.what
    if step.action == "create":
        why = describe_refusal(foreseen, what)
        return [f"+ {what}  will be created{foreseen.words}{_list_fields(manifest)}", *([f"    {why}"] if why else [])]
    if step.action == "delete":
        return [f"- {what}  will be deleted: it is in no file  ({describe_loss(step.obj)})"]
    if step.action == "keep":
        return [f"  {what}  stays as it is"]
    lines = [f"~ {what}  will be changed"]
    for change in step.changes:
        path = str(change["path"])
        if path not in SHOWN_WITH_OTHERS:
            old, new = show_change(change, step.target.kind)
            lines.append(f"    {path.removeprefix('spec.')} {old} → {new}, {name_cost(change, step.target.kind)}")
    return lines


def _list_fields(manifest: WrittenManifest | None) -> str:
    spec: dict[str, Any] = manifest.data["spec"] if manifest is not None else {}
    plain = [f"{name} {show_value(value)}" for name, value in spec.items() if not isinstance(value, dict)]
    more = f" and {len(plain) - _MOST_FIELDS} fields more" if len(plain) > _MOST_FIELDS else ""
    return f": {', '.join(plain[:_MOST_FIELDS])}{more}" if plain else ""


def _count(steps: Sequence[ApplyStep]) -> str:
    words = {"create": "to create", "update": "to change", "delete": "to delete", "keep": "as they are"}
    counts = {action: sum(step.action == action for step in steps) for action in words}
    return ", ".join(f"{count} {words[action]}" for action, count in counts.items() if count)


DIFFERS = 1


def diff_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft diff -f FILE`: what apply would change. Exit 0: nothing; 1: something; more: it failed."""
    return options.build(
        verb, "Show what apply would change; exit 1 if anything would.", _diff, kind, [*files(), options.output()]
    )


def _diff(session: Session, kind: Kind | None, paths: tuple[str, ...], files: tuple[str, ...]) -> int:
    try:
        manifests = read_all(session, (*files, *paths))
        results = send(session, manifests, dry_run=True)
    except WeftError as problem:
        code = complain(problem, session.output, session.color, session.debug)
        return USAGE if code == ERROR else code  # 1 already means: it differs
    differing = [(m, r) for m, r in zip(manifests, results, strict=True) if r["action"] != "unchanged"]
    if session.is_document:
        print_data(
            session,
            {"items": [{"action": r["action"], "changes": r.get("changes", []), **_ref(m.data)} for m, r in differing]},
        )
    for manifest, result in differing if not session.is_document else ():
        print(manifest.what if session.output == "name" else f"{manifest.what}  would be {result['action']}")
        for change in result.get("changes") or () if session.output != "name" and result["action"] == "updated" else ():
            print(f"  {describe_change(change, manifest.kind)}")
    return DIFFERS if differing else OK


def _ref(data: dict[str, Any]) -> dict[str, Any]:
    return {key: data[key] for key in ("kind", "name", "project") if key in data}
