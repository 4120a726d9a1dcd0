"""`weft rollout status web`: how an update of a deployment goes; pause, resume or undo it, and explain it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.deployment.description import describe_revisions, explain_rollout, tabulate_revisions
from weft.cli.deployment.preview import list_instances
from weft.cli.output.formats import print_data, print_items, write_yaml
from weft.cli.output.local_time import render_time
from weft.cli.session import Session
from weft.cli.wait.finish import finish_one, plan_wait
from weft.cli.wait.follow import follow_to_end
from weft.cli.wait.progress import Progress
from weft.kinds.deployment import DEPLOYMENT, describe_progress
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.kinds.vm import VM
from weft.objects.errors import IllegalTransition, NotFound

_ACTS = ("status", "pause", "resume", "undo", "history", "explain")
_NOT_PROMOTED = 1
_FIELDS = ("phase", "strategy", "revision", "ready", "updated", "verdict")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["act"], type=click.Choice(_ACTS), metavar="|".join(_ACTS)),
        click.Argument(["names"], nargs=-1, metavar="NAME", shell_complete=complete_name(DEPLOYMENT.name)),
        click.Option(
            ["--watch", "-w"], is_flag=True, help="With status: show the progress until the rollout has ended."
        ),
        _to(),
        click.Option(
            ["--revision"], type=click.IntRange(1), metavar="N", help="With history: show that revision's template."
        ),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def undo_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [options.targets(kind, many=False), _to(), *options.waits(), options.output()]
    return options.build(verb, "Go back to an earlier revision.", _undo, kind, params)


def _to() -> click.Option:
    return click.Option(
        ["--to", "--to-revision", "to"],
        type=click.IntRange(1),
        metavar="N",
        help="With undo: the revision to go back to. [the one before]",
    )


def _undo(session: Session, kind: Kind | None, words: tuple[str, ...], to: int | None) -> int | None:
    target = find_one(session, kind, words, (DEPLOYMENT.name,), "give one NAME")
    return _run(session, None, "undo", (target.name,), watch=False, to=to, revision=None)


def _run(
    session: Session,
    kind: Kind | None,
    act: str,
    names: tuple[str, ...],
    watch: bool,
    to: int | None,
    revision: int | None,
) -> int | None:
    if len(names) != 1:
        raise usage(f"{act} takes the name of one deployment", f"weft rollout {act} NAME   weft deployment list")
    if to is not None and act != "undo":
        raise usage("--to goes with undo", f"weft rollout undo {names[0]} --to {to}")
    if revision is not None and act != "history":
        raise usage("--revision goes with history", f"weft rollout history {names[0]} --revision {revision}")
    kind_name, _, name = names[0].rpartition("/")
    if kind_name not in ("", DEPLOYMENT.name):
        raise usage(f"{names[0]} is not a deployment", "weft deployment list shows them")
    target = Target(DEPLOYMENT, _find_name(session, name))
    if act in ("pause", "resume", "undo"):
        body = {"revision": to} if to is not None else {}
        if act == "undo":
            _refuse_lost(session, session.client.verb(DEPLOYMENT.name, target.name, act, body, dry_run=True))
        obj = session.client.verb(DEPLOYMENT.name, target.name, act, body)
        return finish_one(session, target, obj, act, "paused" if act == "pause" else "")
    obj = session.client.get(DEPLOYMENT.name, target.name)
    if act == "status":
        return _watch(session, target, obj) if watch else show_status(session, target, obj)
    if revision is not None:
        return _show_template(session, target, obj, revision)
    if act == "history":
        rows = describe_revisions(obj)
        print_items(session, rows, [target.name], tabulate_revisions(rows), "there are no revisions yet")
        return OK
    instances = list_instances(session, obj)
    if session.is_document:
        print_data(session, {**read_status(obj), "message": dig(obj, "status.message", "")})
    else:
        print(explain_rollout(obj, instances))
    return OK


def _show_template(session: Session, target: Target, obj: Mapping[str, Any], number: int) -> int:
    """Print the spec that a revision's instances have, as a file for ``--config`` has it."""
    revisions = dig(obj, "status.revisions", [])
    found = next((one for one in revisions if one["number"] == number), None)
    if found is None:
        known = ", ".join(str(one["number"]) for one in revisions) or "none"
        raise NotFound(
            f"{target.what} has no revision {number}; there are: {known}", hint=f"weft rollout history {target.name}"
        )
    document = {"kind": dig(obj, "spec.workload", "container"), "spec": found["template"]}
    author, created_at = found.get("author", ""), found.get("created_at", 0.0)
    if session.is_document:
        print_data(session, {**document, "created_by": author, "created_at": created_at})
    else:
        print(f"# revision {number}, made by {author or 'an unknown author'} at {render_time(created_at)}")
        print(write_yaml(document), end="")
    return OK


def _refuse_lost(session: Session, undone: Mapping[str, Any]) -> None:
    """Raises IllegalTransition if the VM that an undo starts again was deleted: another one would have none of its data."""
    template, revisions = dig(undone, "spec.template"), dig(undone, "status.revisions", [])
    name = next((one.get("instance") for one in revisions if one["template"] == template and one.get("instance")), "")
    if not name or not dig(undone, "spec.adopt"):
        return
    try:
        session.client.get(VM.name, name)
    except NotFound:
        raise IllegalTransition(
            f"vm/{name}, which had that version, was deleted: an undo would start another VM without its disks",
            hint=f"weft vm update {undone['name']} --config FILE rolls the version out again, and says what goes along",
        ) from None


def _find_name(session: Session, name: str) -> str:
    """The deployment's: of one of its VMs, as ``vm deploy`` names it, that of the deployment that has it."""
    try:
        return str(session.client.get(DEPLOYMENT.name, name)["name"])
    except NotFound:
        with contextlib.suppress(NotFound):
            owner = session.client.get(VM.name, name).get("owner") or {}
            if owner.get("kind") == DEPLOYMENT.name:
                return str(owner["name"])
        raise


def read_status(obj: Mapping[str, Any]) -> dict[str, Any]:
    """Read the status of a rollout for programs. Pure."""
    status = obj.get("status") or {}
    found = {name: status.get(name, "") for name in _FIELDS}
    if dig(obj, "status.observed_generation", 0) < obj.get("generation", 1) and not status.get("message"):
        found |= {"phase": "Progressing", "verdict": ""}  # nothing was done about the newest change yet
    return found


def show_status(session: Session, target: Target, obj: Mapping[str, Any]) -> int:
    """Print how it is now; OK only if its last update ended promoted."""
    status = read_status(obj)
    if session.is_document:
        print_data(session, status)
    else:
        print(f"{target.what}  {status['phase']} ({status['strategy']})   {describe_progress(obj)}".rstrip())
        if status["verdict"]:
            print(status["verdict"])
    return OK if status["phase"] == "Promoted" else _NOT_PROMOTED


def _watch(session: Session, target: Target, obj: dict[str, Any]) -> int:
    wait = plan_wait(obj, target, "wait")
    assert wait is not None
    result = follow_to_end(session, wait, Progress, f"the rollout goes on; undo: weft rollout undo {target.name}")
    return result if isinstance(result, int) else show_status(session, target, result.obj or obj)
