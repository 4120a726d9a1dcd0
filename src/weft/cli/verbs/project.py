"""`weft project create lab`: a project with a network, so that workloads can be created in it immediately; `weft project delete lab
--everything`: with all that is in it."""

from __future__ import annotations

import ipaddress
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import ERROR, INTERRUPTED, OK
from weft.cli.command.flags import make_flags
from weft.cli.command.grammar import VERBS, Entry
from weft.cli.command.target import Target, one_target, read_targets, usage
from weft.cli.preview.deletion import ask_to_delete
from weft.cli.session import Session
from weft.cli.verbs.create import create_one
from weft.cli.wait.finish import Done, finish, finish_one, plan_wait
from weft.cli.wait.watch import Wait
from weft.kinds.network import NETWORK, NetworkSpec, check_new_network
from weft.kinds.project import PROJECT, refuse_deletion
from weft.kinds.quota import QUOTA
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS, WORKLOADS
from weft.objects.errors import InUse, NotAuthenticated, NotFound, Unavailable, WeftError

RANGES = [ipaddress.IPv4Network(f"10.{second}.0.0/16") for second in range(214, 255)]
PREFIX = 20
NETWORK_NAME = "default"  # what workloads join that name none
OWN = ((NETWORK.name, NETWORK_NAME), (QUOTA.name, "project"))  # what goes with a project that has nothing else
USERS = ("deployment", *WORKLOADS, "job", "function")  # they use other objects, so they are deleted first
DELETABLE = VERBS["delete"].kinds
_SHOWN = 5


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    assert kind is not None
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME"),
        *make_flags(kind),
        click.Option(
            ["--cidr"], metavar="RANGE", help="Addresses of its network default. [a range that no network has]"
        ),
        click.Option(["--no-network"], is_flag=True, help="Create no network in it."),
        *options.making(),
        *options.dry_runs(),
        *options.waits(),
        options.output(),
    ]
    return options.build(
        verb, "Create a project, with a network.", _create, kind, params, command_class=options.WithCommand
    )


def _create(
    session: Session, kind: Kind, words: tuple[str, ...], cidr: str | None, no_network: bool, **given: Any
) -> int:
    if cidr is not None:  # before the project is made: a range that won't do leaves none
        if no_network:
            raise usage("--cidr can't be given with --no-network", "leave one of them out")
        check_new_network(NetworkSpec(cidr=cidr))
    code, name = create_one(session, kind, words, **given)
    if not given["dry_run"]:
        session.notify(f"nothing limits what it takes: weft quota set -p {name} --cpu 8 --memory 32G sets a limit")
    if no_network or given["dry_run"]:
        return code
    spec = {"cidr": cidr or _find_range(session)}
    session.client.create({"kind": NETWORK.name, "name": NETWORK_NAME, "project": name, "spec": spec})
    session.notify(f"network/{NETWORK_NAME}  created in project {name}, {spec['cidr']}")
    return code


def _find_range(session: Session) -> str:
    """A range that overlaps no network's: a guest may be in networks of several projects."""
    listed = session.client.list(NETWORK.name, all_projects=True).items
    taken = [ipaddress.IPv4Network(str(one["spec"]["cidr"])) for one in listed]
    ranges = (range_ for pool in RANGES for range_ in pool.subnets(new_prefix=PREFIX))
    return str(next((one for one in ranges if not any(one.overlaps(other) for other in taken)), RANGES[0]))


def delete_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        options.targets(kind, able=entry.kinds, many=False),
        click.Option(["--everything"], is_flag=True, help="Delete all that is in it, too."),
        click.Option(["-y", "--yes"], is_flag=True, help="Don't ask for confirmation."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, "Delete a project and wait until it is gone.", _delete, kind, params)


def _delete(session: Session, kind: Kind | None, words: tuple[str, ...], everything: bool, yes: bool) -> int:
    target = one_target(read_targets(kind or PROJECT, words), "give one project: weft project delete NAME")
    refuse_deletion(target.name)
    project = session.client.get(PROJECT.name, target.name)
    found = _list_content(session, target.name)
    others = [one for one in found if (one["kind"], one["name"]) not in OWN]
    if others and not everything:
        shown = ", ".join(_name(one) for one in others[:_SHOWN]) + (" and more" if len(others) > _SHOWN else "")
        raise InUse(
            f'project "{target.name}" is in use by {shown}',
            hint=f"weft project delete {target.name} --everything lists all that is in it, and deletes it",
        )
    if others and session.detach:
        raise usage(
            "--everything can't be given with --detach: what others use is deleted after them", "leave out --detach"
        )
    if not yes and not ask_to_delete(session, [*found, project]):
        session.notify("nothing was deleted")
        return ERROR
    try:
        code = _empty(session, target.name, found)
    except KeyboardInterrupt:
        session.unfinished = False
        session.notify(
            "interrupted: what was requested so far is still being deleted, and the rest stays; "
            f"weft project delete {target.name} --everything goes on"
        )
        return INTERRUPTED
    if code != OK:
        return code
    gone = session.client.delete(PROJECT.name, target.name, uid=project["uid"])
    return finish_one(session, target, gone, "delete")


def clear_own(session: Session, project: str) -> None:
    """Delete what goes with a project, if there is nothing else in it. Raises IllegalTransition for one that can't be deleted."""
    refuse_deletion(project)
    found = _list_content(session, project)
    if all((one["kind"], one["name"]) in OWN for one in found):
        _empty(session, project, found)


def _empty(session: Session, project: str, found: list[dict[str, Any]]) -> int:
    """Delete ``found``, in rounds; the exit code of the first that didn't end well."""
    while found:
        code, left = _delete_round(session, project, found)
        if code != OK:
            return code
        found = left
    return OK


def _name(obj: dict[str, Any]) -> str:
    return f"{obj['kind']}/{obj['name']}"


def _list_content(session: Session, project: str) -> list[dict[str, Any]]:
    """The objects of a project that people delete, users of others first; without those that go with their owner."""
    found = []
    for one in sorted(KINDS, key=lambda one: one.name not in USERS):
        if one.name not in DELETABLE:
            continue
        if one.scope == "project":
            items = session.client.list(one.name, project=project).items
        elif one.access.readers == "administered":  # rights and tokens in this project alone
            items = session.client.list(one.name, fields=f"spec.project={project}").items
        else:
            continue
        found += [{"kind": one.name, **item} for item in items if not item.get("owner")]
    return found


def _delete_round(session: Session, project: str, found: list[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
    """Delete what nothing else uses any more; the exit code, and what is left."""
    done: list[Done] = []
    waits: list[Wait] = []
    left: list[dict[str, Any]] = []
    refused: WeftError | None = None
    for one in found:
        target = Target(BY_NAME[one["kind"]], one["name"])
        try:
            gone = session.client.delete(one["kind"], one["name"], project=project, uid=one["uid"])
        except NotFound:
            continue  # it went with another one
        except (Unavailable, NotAuthenticated):
            raise
        except WeftError as problem:
            refused = problem
            left.append(one)
            continue
        done.append(Done(target, gone, "delete"))
        waits += [wait for wait in [plan_wait(gone, target, "delete")] if wait]
    code = finish(session, done, waits, is_last=False) if done else OK
    if code != OK:
        return code, found  # time is up: the deletions go on
    if not done and refused is not None:
        raise refused
    return code, left
