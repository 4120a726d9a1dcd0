"""`weft deployment create web --replicas 3 --image I -- COMMAND`, `update`, `scale`: replicas of one template, and their next
version."""

from __future__ import annotations

import math
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.exit_codes import ERROR
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.deployment.flags import (
    check_asked,
    check_template,
    check_update,
    make_strategy_flags,
    make_template_flags,
    read_labels,
    read_strategy,
    read_template,
    read_workload_config,
)
from weft.cli.deployment.preview import foresee, is_unchanged, list_serving, print_preview
from weft.cli.deployment.replacement import (
    REPLACE,
    describe_replaced,
    find_current,
    make_template,
    settle_replacement,
)
from weft.cli.manifest.config import read_config
from weft.cli.session import Session
from weft.cli.verbs.create import read_words
from weft.cli.wait.finish import finish_one
from weft.cli.wait.follow import print_one
from weft.kinds.container import CONTAINER
from weft.kinds.deployment import DEPLOYMENT, FIXED, TEMPLATES
from weft.kinds.fields.cells import dig
from weft.kinds.fields.deployment.scaling import MOST_REPLICAS
from weft.kinds.parts.deployment.verbs import find_base
from weft.kinds.record import Kind
from weft.kinds.vm import VM
from weft.objects.schema import read_strict


def create_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME [IMAGE] [-- COMMAND...]"),
        click.Option(
            ["--replicas"], type=click.IntRange(0, MOST_REPLICAS), metavar="N", help="Number of instances. [1]"
        ),
        click.Option(["--vm", "vm"], is_flag=True, help="The instances are VMs instead of containers."),
        click.Option(
            ["--min-healthy"], type=options.Duration(), help="How long an instance must be healthy to count. [5s]"
        ),
        *make_strategy_flags(),
        *make_template_flags(CONTAINER, VM),
        *options.making(),
        *options.dry_runs(),
        *options.waits(),
        options.output(),
    ]
    summary = "Create a deployment: replicas of a container, or with --vm of a VM."
    return options.build(verb, summary, _create, kind, params, command_class=options.WithCommand)


def _create(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    replicas: int | None,
    vm: bool,
    min_healthy: float | None,
    dry_run: str | None,
    **given: Any,
) -> int:
    document: dict[str, Any] = read_config(given["config"], DEPLOYMENT).value if given["config"] else {"spec": {}}
    spec = dict(document["spec"])
    workload = TEMPLATES["vm"] if vm or spec.get("workload") == "vm" else CONTAINER
    names = _read_words(session, workload, words, given)
    name = next(iter(names), None) or given["named"] or document.get("name")
    if not name:
        raise usage("the name is missing: give NAME")
    template = read_template(workload, given, spec.get("template") or {})
    check_template(workload, template)
    labels = {**(spec.get("labels") or {}), **read_labels(given)}
    spec |= {"workload": workload.name, "template": template, "labels": labels}
    if strategy := read_strategy(given):
        spec["strategy"] = {**(spec.get("strategy") or {}), **strategy}
    for field, value in (("replicas", replicas), ("min_healthy", min_healthy)):
        spec |= {field: value} if value is not None else {}
    check_asked(spec)
    manifest: dict[str, Any] = {"kind": DEPLOYMENT.name, "name": name, "labels": labels, "spec": spec}
    if project := session.project or document.get("project"):
        manifest["project"] = project
    target = Target(DEPLOYMENT, name)
    if dry_run == "client":
        print_one(session, manifest, f"{target.what}  would be created; no server was contacted")
        return 0
    made = session.client.create(manifest, dry_run=bool(dry_run))
    if dry_run:
        count = dig(made, "spec.replicas", 1)
        print_one(session, made, f"{target.what}  would be created, with {count} instance{'s' if count != 1 else ''}")
        return 0
    return finish_one(session, target, made, "create")


def _read_words(session: Session, workload: Kind, words: tuple[str, ...], given: dict[str, Any]) -> tuple[str, ...]:
    """The name in NAME [IMAGE] [-- COMMAND]."""
    if workload is CONTAINER:
        return read_words(session, CONTAINER, words, given)
    if options.read_argv():
        raise usage("a VM has no command; leave out -- and what follows")
    if len(words) > 1 and not given["spec__image"]:
        given["spec__image"], words = words[1], (words[0], *words[2:])
    if len(words) > 1:
        raise usage(f"{words[1]!r}: give one NAME", "weft deployment create NAME --vm --image IMAGE")
    return words


def update_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME [-- COMMAND...]"),
        *make_strategy_flags(),
        *make_template_flags(CONTAINER, VM),
        click.Option(
            ["-f", "--config"], metavar="FILE", help="A file with the instances' whole spec, or a VM or container."
        ),
        click.Option(
            ["-l", "--label", "labels"],
            multiple=True,
            metavar="KEY=VALUE",
            help="A label of the instances; may be repeated.",
        ),
        click.Option(["--replace-root-disk"], is_flag=True, help=REPLACE),
        click.Option(
            ["--dry-run"], is_flag=True, help="Show which instances would restart, change or stay; change nothing."
        ),
        *options.waits(),
        options.output(),
    ]
    summary = "Roll out another version: only the fields that are given change."
    return options.build(verb, summary, _update, kind, params, command_class=options.WithCommand)


def _update(session: Session, kind: Kind | None, words: tuple[str, ...], dry_run: bool, **given: Any) -> int:
    target = find_one(session, kind, words, (DEPLOYMENT.name,), "give one NAME; a command comes after --")
    deployment = session.client.get(DEPLOYMENT.name, target.name)
    return update(session, target, deployment, given, dry_run=dry_run)


def update(
    session: Session, target: Target, deployment: dict[str, Any], given: dict[str, Any], *, dry_run: bool
) -> int:
    """Roll out what the flags change; the exit code."""
    workload = TEMPLATES[dig(deployment, "spec.workload", CONTAINER.name)]
    argv = options.read_argv()
    if argv and workload is not CONTAINER:
        raise usage("a VM has no command; leave out -- and what follows")
    command: tuple[str, ...] = given.get("spec__command") or ()
    if command and argv:
        raise usage("the command is given twice: use --command or --, not both")
    if argv or command:
        given["spec__command"] = tuple(argv or command)
    base: dict[str, Any] = {}
    if given["config"]:
        base = _read_base(session, deployment, read_workload_config(given["config"], workload))
    changes = read_template(workload, given, base)
    strategy, labels = read_strategy(given), read_labels(given)
    if not changes and not labels and not strategy:
        raise usage(
            "nothing to update: give --image, another field, --config or -- COMMAND",
            f"weft deployment update {target.name} --image IMAGE",
        )
    merged = {**find_base(deployment), **changes}
    check_template(workload, merged)
    check_update(deployment, merged, strategy, {**dig(deployment, "spec.labels", {}), **labels})
    chosen = {**dig(deployment, "spec.strategy", {}), **strategy}
    rows = foresee(deployment, list_serving(session, deployment), merged, chosen.get("type", "rolling"))
    replaced, current = list[str](), dict[str, Any]()
    if rows and dig(deployment, "spec.adopt"):
        current = find_current(session, deployment)
        replaced = describe_replaced(session, deployment, current, merged, chosen, rows)
    if dry_run:
        return print_preview(session, rows, chosen, replaced)
    all_labels = {**dig(deployment, "spec.labels", {}), **labels}
    if is_unchanged(deployment, rows, merged, {"strategy": chosen, "labels": all_labels}):
        return finish_one(session, target, deployment, "unchanged")
    replaces = given["replace_root_disk"]
    if replaced and not settle_replacement(
        session, current, merged, chosen, rows[0]["new"], replaced, replaces=replaces
    ):
        session.notify("nothing was changed")
        return ERROR
    body: dict[str, Any] = {"template": changes, "strategy": strategy}
    if labels:
        body["labels"] = all_labels
    made = session.client.verb(DEPLOYMENT.name, target.name, "update", body)
    return finish_one(session, target, made, "update")


def _read_base(session: Session, deployment: dict[str, Any], file: dict[str, Any]) -> dict[str, Any]:
    """The template in a file with the whole spec of an instance. What no instance can have is left in: the check of the template
    refuses it by its name."""
    if dig(deployment, "spec.adopt"):
        return make_template(file, find_current(session, deployment))
    whole = msgspec.to_builtins(read_strict(file, TEMPLATES[dig(deployment, "spec.workload", CONTAINER.name)].spec))
    own = [name for name in FIXED if name not in file or whole[name] == FIXED[name]]
    return {name: value for name, value in whole.items() if name not in own}


def scale_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME N"),
        click.Option(["--replicas"], type=click.IntRange(0, MOST_REPLICAS), metavar="N", help="Number of instances."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, "Change the number of instances.", _scale, kind, params)


def _scale(session: Session, kind: Kind | None, words: tuple[str, ...], replicas: int | None) -> int:
    if replicas is None:
        if len(words) < 2 or not words[-1].isdigit() or int(words[-1]) > MOST_REPLICAS:
            raise usage(f"give NAME and the number of instances, 0 to {MOST_REPLICAS}", "weft deployment scale web 5")
        words, replicas = words[:-1], int(words[-1])
    target = find_one(session, kind, words, (DEPLOYMENT.name,), "give one NAME")
    made = session.client.verb(DEPLOYMENT.name, target.name, "scale", {"replicas": replicas})
    return finish_one(session, target, made, "scale")


def autoscale_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME"),
        click.Option(
            ["--min", "least"], type=click.IntRange(1, MOST_REPLICAS), default=1, metavar="N", help="Fewest. [1]"
        ),
        click.Option(["--max", "most"], type=click.IntRange(1, MOST_REPLICAS), metavar="N", help="Most instances."),
        click.Option(["--metric"], metavar="EXPR", help="PromQL expression: the load of one instance, as a mean."),
        click.Option(["--target"], type=float, metavar="V", help="The value that the expression should have."),
        click.Option(["--cooldown"], type=options.Duration(), help="Least time between two changes. [60s]"),
        click.Option(["--off"], is_flag=True, help="End the scaling; the number of instances stays."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, "Let a figure of the history set the number of instances.", _autoscale, kind, params)


def _autoscale(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    least: int,
    most: int | None,
    metric: str | None,
    target: float | None,
    cooldown: float | None,
    off: bool,
) -> int:
    deployment = find_one(session, kind, words, (DEPLOYMENT.name,), "give one NAME")
    if not off and (most is None or metric is None or target is None):
        example = f"weft deployment autoscale {deployment.name} --min 2 --max 10 --metric EXPR --target 0.5"
        raise usage("give --max, --metric and --target, or --off", example)
    if target is not None and not math.isfinite(target):
        raise usage(
            f"--target: must be a number, not {target}", "give the value that each instance should have, like 0.5"
        )
    body: dict[str, Any] = {} if off else {"min": least, "max": most, "metric": metric, "target": target}
    if cooldown is not None and not off:
        body["cooldown"] = cooldown
    made = session.client.verb(DEPLOYMENT.name, deployment.name, "autoscale", body)
    return finish_one(session, deployment, made, "autoscale", "is no longer scaled" if off else "is scaled")
