"""`weft apply -f FILE|DIR|-`: create or change objects to match files; all files are checked before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import ERROR, OK, UNPLACEABLE, join_codes
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.function.code import Packed, bring, pack_documents
from weft.cli.manifest.check import WrittenManifest, locate_refusal, read_manifests
from weft.cli.manifest.files import read_documents
from weft.cli.preview.apply import bind, find_pruned, make_steps, name_plan
from weft.cli.preview.deletion import ask_to_delete
from weft.cli.preview.dry_run import Foreseen, describe_refusal, foresee_each
from weft.cli.preview.pools import warn_of_pools
from weft.cli.preview.ranges import warn_of_ranges
from weft.cli.runtime_image import has_code, provide_bases
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.cli.wait.watch import Wait
from weft.kinds.parts.function_code import DIGEST
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, is_workload
from weft.kinds.vm import VM
from weft.objects.errors import StaleRevision, WeftError
from weft.objects.quantity import format_bytes, format_duration, format_moment
from weft.objects.schema import describe_fields

COSTS = {
    "live": "immediately",
    "restart": "at its next restart",
    "start": "at its next start",
    "replace": "by a new one",
    "never": "never",
}
SHOWN_WITH_OTHERS = ("spec.code_size",)  # it goes with the code
VERBS = {"created": "create", "updated": "update", "unchanged": "unchanged"}


def files() -> list[click.Parameter]:
    """``paths`` and ``files``: what to read, as arguments or by -f."""
    return [
        click.Argument(["paths"], nargs=-1, metavar="[FILE|DIR|-]..."),
        file_option(),
    ]


def file_option() -> click.Option:
    """``files``."""
    help_ = "A file or folder to read; may be repeated."
    return click.Option(["-f", "--filename", "files"], multiple=True, metavar="FILE|DIR|-", help=help_)


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        *files(),
        *options.dry_runs(),
        click.Option(["--plan"], metavar="ID", help="Do exactly what weft plan showed under this id, or nothing."),
        *prunes(),
        click.Option(["-y", "--yes"], is_flag=True, help="With --prune: don't ask for confirmation."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, "Create or change objects to match files, and wait until they do.", _run, kind, params)


def prunes() -> list[click.Parameter]:
    return [
        click.Option(["--prune"], is_flag=True, help="Delete objects with the labels of -l that are in no file."),
        click.Option(
            ["-l", "--selector", "labels"],
            multiple=True,
            metavar="KEY=VALUE",
            help="With --prune: only objects with these labels.",
        ),
    ]


def read_labels(labels: tuple[str, ...]) -> str:
    """The selector of objects to prune. Raises UsageError without one: it would delete everything."""
    if not any(label.strip() for label in labels):
        raise click.UsageError("--prune needs -l KEY=VALUE: objects with these labels that are in no file are deleted")
    return ",".join(labels)


def _run(
    session: Session,
    kind: Kind | None,
    paths: tuple[str, ...],
    files: tuple[str, ...],
    dry_run: str | None,
    plan: str | None,
    prune: bool,
    labels: tuple[str, ...],
    yes: bool,
) -> int:
    if labels and not prune:
        raise click.UsageError("-l limits what --prune deletes: give --prune too")
    selector = read_labels(labels) if prune else ""
    files = (*files, *paths)
    if dry_run == "client":
        for manifest in read_files(files, session.project):
            print(f"{manifest.what}  is valid; no server was contacted")
        return OK
    manifests = read_all(session, files)
    pruned = find_pruned(session, manifests, selector) if prune else []
    bound = [one.data for one in manifests]
    if plan is not None:
        steps = make_steps(session, manifests, send(session, manifests, dry_run=True), pruned)
        if name_plan(manifests, steps) != plan:
            raise StaleRevision(
                f"plan {plan} is out of date: the files or the objects have changed since",
                hint=f"weft plan {' '.join(f'-f {file}' for file in files)}{' --prune …' * prune} shows what apply would do now",
            )
        bound = bind(manifests, steps)
    if pruned and not dry_run and plan is None and not yes and not ask_to_delete(session, pruned):
        session.notify("nothing was applied or deleted")
        return ERROR
    if not dry_run:
        specs = [one.data["spec"] for one in manifests if has_code(one.kind)]
        provide_bases(session, specs, lambda: send(session, manifests, True, bound))
    results = send(session, manifests, bool(dry_run), bound)
    foreseen = foresee_each(session, find_new(manifests, results)) if dry_run else {}
    done: list[Done] = []
    waits: list[Wait] = []
    # Beside a change, what is unchanged may owe its state to what was just changed, or is deleted below.
    is_idle = not pruned and all(result["action"] == "unchanged" for result in results)
    for manifest, result in zip(manifests, results, strict=True):
        obj, verb = result["object"], VERBS[result["action"]]
        target = Target(manifest.kind, obj["name"])
        outcome = f"{'would be ' * (dry_run is not None and verb != 'unchanged')}{_describe_result(result)}"
        outcome += foreseen.get(target.what, Foreseen()).words
        done.append(Done(target, obj, verb, outcome))
        wait = None if dry_run or (verb == "unchanged" and not is_idle) else plan_wait(obj, target, verb)
        waits += [wait] if wait else []
    if dry_run:
        done += [Done(Target(BY_NAME[obj["kind"]], obj["name"]), obj, "delete", "would be deleted") for obj in pruned]
    created = [one.obj for one in done if one.verb == "create"]
    warn_of_ranges(session, created)
    excess = warn_of_pools(session, created)
    code = finish(session, done, waits) or excess
    refused = [line for what, one in foreseen.items() if (line := describe_refusal(one, what))]
    for line in refused:
        session.notify(line)
    if refused:
        return UNPLACEABLE
    return code if dry_run or not pruned or code != OK else _delete(session, pruned)


def find_new(manifests: list[WrittenManifest], results: list[dict[str, Any]]) -> list[tuple[Target, dict[str, Any]]]:
    """Find what a dry run would create."""
    pairs = zip(manifests, results, strict=True)
    return [
        (Target(one.kind, result["object"]["name"]), result["object"])
        for one, result in pairs
        if result["action"] == "created"
    ]


def _delete(session: Session, pruned: list[dict[str, Any]]) -> int:
    """Delete workloads first, then the objects that they used; the exit code."""
    codes: list[int] = []
    for of_workloads in (True, False):
        some = [obj for obj in pruned if is_workload(obj["kind"]) is of_workloads]
        done: list[Done] = []
        waits: list[Wait] = []
        for obj in some:
            target = Target(BY_NAME[obj["kind"]], obj["name"])
            left = session.client.delete(target.kind.name, target.name, project=obj.get("project"), uid=obj["uid"])
            done.append(Done(target, left, "delete"))
            wait = plan_wait(left, target, "delete")
            waits += [wait] if wait and left.get("uid") else []
        codes += [finish(session, done, waits)] if done else []
    return join_codes(codes)


def read_all(session: Session, files: tuple[str, ...]) -> list[WrittenManifest]:
    """The manifests in ``files``, checked as far as one can without asking the server; functions' code is brought there."""
    packed: list[Packed] = []
    manifests = read_files(files, session.project, packed)
    for code in packed:
        bring(session, code)
    return manifests


def read_files(
    files: tuple[str, ...], project: str | None, packed: list[Packed] | None = None
) -> list[WrittenManifest]:
    """The manifests in ``files``, checked, with functions' code put into ``packed``. Raises UsageError where there is none."""
    if not files:
        raise usage("no file given", f"{click.get_current_context().command_path} FILE, or - for standard input")
    documents = read_documents(files)
    code = pack_documents(documents)
    manifests = read_manifests(documents, project)
    if not manifests:
        raise click.UsageError(f"{', '.join(files)}: no objects in it")
    if packed is not None:
        packed += code
    return manifests


def send(
    session: Session, manifests: list[WrittenManifest], dry_run: bool, bound: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Send the manifests. Returns what the server did, or would do, for each manifest (``bound``: their data, with the versions
    that they must still have); its refusal names the place in the file."""
    try:
        return session.client.apply(bound or [manifest.data for manifest in manifests], dry_run=dry_run)
    except WeftError as refusal:
        raise locate_refusal(refusal, manifests) from None


def _describe_result(result: dict[str, Any]) -> str:
    changes = result.get("changes") or []
    if result["action"] != "updated" or not changes:
        return str(result["action"])
    kind = BY_NAME[result["object"]["kind"]]
    return "updated: " + ", ".join(
        describe_change(change, kind) for change in changes if change["path"] not in SHOWN_WITH_OTHERS
    )


def describe_change(change: dict[str, Any], kind: Kind) -> str:
    """``spec.memory 1.0 GiB → 2.0 GiB (at its next restart)``"""
    old, new = show_change(change, kind)
    return f"{change['path']} {old} → {new} ({name_cost(change, kind)})"


def name_cost(change: dict[str, Any], kind: Kind, costs: Mapping[str, str] = COSTS) -> str:
    """When a change takes effect, in the words of ``costs``."""
    cost = costs.get(str(change.get("mode")), costs["live"])
    if kind is VM and change["path"] == "spec.cpu" and change.get("mode") == "live":
        fewer = math.ceil(float(change["new"])) < math.ceil(float(change["old"]))
        return f"{cost} as a limit, but the guest sees fewer CPUs only after a restart" if fewer else cost
    return cost


def show_change(change: dict[str, Any], kind: Kind) -> tuple[str, str]:
    """A field's old and new value, as people write them."""
    type_ = next((doc.type for doc in describe_fields(kind.spec) if doc.path == change["path"]), "")
    return show_value(change.get("old"), type_), show_value(change.get("new"), type_)


def show_value(value: Any, type_: str = "") -> str:
    """A field's value in one short piece; ``type_`` as the schema calls it."""
    if value in (None, [], ""):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if type_ == "size":
        return format_bytes(value)
    if type_ == "duration" and isinstance(value, float):
        return format_duration(value)
    if type_ == "time" and isinstance(value, (int, float)):
        return format_moment(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        text = f"[{', '.join(map(show_value, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{name}: {show_value(one)}' for name, one in value.items())}}}"
    else:
        text = next(iter(str(value).splitlines()), "")
    if DIGEST.fullmatch(text):
        return f"{text[:12]}…"
    return text if len(text) <= 60 else text[:59] + "…"
