"""Backups that a repository has already become Backups of this fabric: `weft backuprepository import safe`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain, count
from typing import Any

import msgspec

from weft.cli.command.exit_codes import OK
from weft.cli.command.target import Target
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.local_time import render_time
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import clean
from weft.cli.session import Session
from weft.cli.stream.client import Stream, open_stream
from weft.cli.wait.finish import Done, finish, plan_wait
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import Wait, follow
from weft.kinds.backup import BACKUP, SET
from weft.kinds.fields.cells import dig
from weft.kinds.parts.goal import GONE
from weft.objects.errors import NotFound
from weft.objects.identity import cut_name
from weft.objects.quantity import format_bytes

Entry = Mapping[str, Any]
_COLUMNS = make_columns("PROJECT", "NAME!", "OF", "TAKEN", "SIZE>", "HERE~")


def read_stream(session: Session, kind: str, name: str, verb: str, asked: Mapping[str, Any]) -> bytes:
    """All that a node answers. Raises the error that it sent."""
    found = bytearray()

    def take(descriptor: int, data: bytes) -> None:
        found.extend(data) if descriptor == 1 else session.notify(data.decode(errors="replace"))

    with open_stream(session.client, kind, name, verb, dict(asked)) as sock:
        Stream(sock, write=take).run(None)
    return bytes(found)


def list_contents(session: Session, repository: str) -> list[Entry]:
    lines = read_stream(session, "backuprepository", repository, "contents", {}).splitlines()
    return [one for one in map(msgspec.json.decode, lines) if one.get("uid") and one.get("of") and one.get("project")]


def import_all(session: Session, repository: str, *, of: str, into: str, dry_run: bool) -> int:
    """Adopt what is there: all, or that ``of`` one project; each in the project of its name, or ``into`` another."""
    entries = [one for one in list_contents(session, repository) if not of or one["project"] == of]
    if of and not entries:
        raise NotFound(f"backuprepository/{repository} has no backups of project {of}", hint="leave --of out")
    known = {_id_of(one): one for one in _list_known(session, repository)}
    if dry_run:
        _show(session, entries, known)
        return OK
    new, failed = plan_import(entries, _list_known(session, repository), into)
    projects = {str(one["name"]) for one in session.client.list("project").items}
    for project in sorted({into or str(one["project"]) for one in new} - projects):
        session.client.create({"kind": "project", "name": project, "spec": {}})
        session.notify(f"project/{project}  created")
    _drop(session, failed)
    if len(new) < len(entries):
        session.notify(f"{len(entries) - len(new)} of {len(entries)} backups are known already")
    taken = {(str(one["project"]), str(one["name"])) for one in session.client.list("backup", all_projects=True).items}
    return adopt(session, repository, new, lambda one: into or str(one["project"]), taken)


def plan_import(entries: Iterable[Entry], known: Iterable[Entry], into: str) -> tuple[list[Entry], list[Entry]]:
    """Plan what to adopt, and the Backups to delete first: those that failed to adopt the same, which are tried again. Pure."""
    own = list(known)
    failed = [one for one in own if dig(one, "spec.adopts", "") and dig(one, "status.phase") == "Failed"]
    here = {(_id_of(one), str(one["project"])) for one in own if one not in failed}
    new = [one for one in entries if (one["uid"], into or one["project"]) not in here]
    again = {(one["uid"], into or one["project"]) for one in new}
    return new, [one for one in failed if (_id_of(one), str(one["project"])) in again]


def name_new(entry: Entry, project: str, taken: Collection[tuple[str, str]]) -> str:
    """The backup's name, or one that is free and begins with it. Pure."""
    name, ends = str(entry["name"]), [f"-{str(entry['uid'])[:8]}"]
    names = (cut_name(name, end) for end in chain(("", *ends), (f"{ends[0]}-{n}" for n in count(2))))
    return next(one for one in names if (project, one) not in taken)


def _drop(session: Session, failed: Iterable[Entry]) -> None:
    """Nothing is removed from the repository: of these it has nothing that they stand for."""
    waits = list[Wait]()
    for one in failed:
        name, project, uid = str(one["name"]), str(one["project"]), str(one["uid"])
        session.client.delete(BACKUP.name, name, project=project, uid=uid)
        waits.append(Wait(Target(BACKUP, name), GONE, uid, project))
        session.notify(f"backup/{name}  failed before, and is tried again")
    if waits:
        progress = Progress(session.clock.elapsed, color=session.color, only_live=True)
        for result in follow(session, waits, progress):
            if result.error is not None:
                raise result.error


def adopt(
    session: Session,
    repository: str,
    entries: Iterable[Entry],
    project_of: Callable[[Entry], str],
    taken: set[tuple[str, str]],
) -> int:
    """Make a Backup for each, and wait for them: the exit code. ``taken``: projects and names that are in use."""
    done = list(begin_adoption(session, repository, entries, project_of, taken))
    return finish(session, done, list_waits(done)) if done else OK


def begin_adoption(
    session: Session,
    repository: str,
    entries: Iterable[Entry],
    project_of: Callable[[Entry], str],
    taken: set[tuple[str, str]],
    note: Callable[[str], object] = lambda what: None,
) -> Iterator[Done]:
    """Make a Backup for each, in order. ``note`` is called with each one's name before that; ``taken``: see ``adopt``."""
    for one in entries:
        project = project_of(one)
        name = name_new(one, project, taken)
        taken.add((project, name))
        target = Target(BACKUP, name)
        note(target.what)
        made = session.client.create(
            {
                "kind": BACKUP.name,
                "project": project,
                "name": name,
                "labels": {SET: one["set"]} if one.get("set") else {},
                "spec": {"of": one["of"], "to": repository, "adopts": one["uid"]},
            }
        )
        yield Done(target, made, "create")


def list_waits(done: Iterable[Done]) -> list[Wait]:
    return [wait for one in done if (wait := plan_wait(one.obj, one.target, one.verb))]


def _list_known(session: Session, repository: str) -> list[Mapping[str, Any]]:
    found = session.client.list("backup", all_projects=True).items
    return [one for one in found if dig(one, "spec.to") == repository and not one.get("deleting_since")]


def _id_of(backup: Mapping[str, Any]) -> str:
    return str(dig(backup, "spec.adopts", "") or backup["uid"])


def _show(session: Session, entries: list[Entry], known: Mapping[str, Mapping[str, Any]]) -> None:
    if session.is_document:
        print_data(session, {"items": [dict(one) for one in entries]})
        return
    rows = []
    for one in entries:
        own = known.get(one["uid"])
        here = f"backup/{own['name']} in {own['project']}" if own is not None else "–"
        words = [clean(str(one[word])) for word in ("project", "name", "of")]
        rows.append([*words, render_time(one["taken_at"]), format_bytes(one["bytes"]), here])
    print_rows(session, _COLUMNS, rows)
