"""Lists: the objects of one kind, or all that runs, once or (`-w`) as they change."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_kind
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.target import find_noun, refuse_project, usage
from weft.cli.output.formats import (
    MANIFEST,
    make_rows,
    name_kinds,
    print_data,
    print_line,
    print_list,
    print_names,
    print_pages,
    takes_pages,
    write_page,
)
from weft.cli.output.rows import draw_rows
from weft.cli.output.terminal import CLEAR, find_width, is_terminal
from weft.cli.session import Session
from weft.client.listing import read_objects
from weft.client.usage import fetch_usage
from weft.client.watch import WatchEvent
from weft.kinds.fields.cells import dig
from weft.kinds.job import ENDED
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.kinds.volume import VOLUME
from weft.objects.errors import Forbidden, WeftError

Object = dict[str, Any]
_POLL_SECONDS = 0.2


def list_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft vm list`, `weft list vm`: the objects of one kind, once or (`-w`) as they change."""
    params: list[click.Parameter] = [
        *options.selectors(kind),
        options.all_projects(),
        *options.shared(kind),
        *options.listing(),
        *options.table(),
        options.output(MANIFEST),
    ]
    if kind is VOLUME:
        params.insert(0, click.Option(["--orphans"], is_flag=True, help="Root disks that returned nodes kept."))
    if kind is None:
        params.insert(0, click.Argument(["word"], metavar="KIND", shell_complete=complete_kind))
    return options.build(verb, f"List {kind.plural if kind else 'objects'}.", _list, kind, params)


def _list(
    session: Session,
    kind: Kind | None,
    labels: tuple[str, ...],
    fields: tuple[str, ...],
    every: bool,
    watch: bool,
    word: str = "",
    shared: bool = False,
    orphans: bool = False,
) -> None:
    fields = (*fields, "phase=Orphaned") if orphans else fields
    if shared:
        kind = kind or find_noun(word)
        if watch or session.all_projects:
            raise usage("--shared lists what is shared with one project, once", "leave out --watch and --all-projects")
        if not kind.is_shareable:
            raise usage(f"{kind.plural} can't be shared", "leave out --shared")
        list_shared(session, kind, labels, fields)
        return
    list_kind(session, kind or find_noun(word), labels, fields, every=every, watch=watch)


def list_shared(session: Session, kind: Kind, labels: tuple[str, ...], fields: tuple[str, ...]) -> None:
    """Print what other projects share with this one, as specs name it."""
    query = {"shared": "true"}
    found = session.client.list(kind.name, labels=",".join(labels), fields=",".join(fields), query=query).items
    if session.is_data:
        print_list(session, found, [kind])
    elif not found:
        session.notify(f"no {kind.plural} that other projects share with project {session.client.project}")
    else:
        print_list(session, [{**item, "name": f"{item['project']}/{item['name']}"} for item in found], [kind])


def list_kind(
    session: Session, kind: Kind, labels: tuple[str, ...], fields: tuple[str, ...], *, every: bool, watch: bool
) -> None:
    """Print the objects of ``kind`` that match; the server does the matching. Without a selector, tasks that have ended are left
    out unless ``every`` is set."""
    refuse_project(session, [kind])
    selected = read_selection(session, labels, fields)
    hides = not (every or labels or fields)
    if watch:
        watch_kinds(session, [kind], selected, lambda item: not hides or bool(leave_out(kind, [item])))
        return
    if session.output == "json" and kind.display.over is None:  # as they came: nothing in them is needed
        if takes_pages(session):
            print_pages(session.client.list(kind.name, read=write_page, **selected).pages)
        else:
            session.listed = (kind.name,)
            print_data(session, {"items": session.client.list(kind.name, **selected).raws})
        return
    pages = session.client.list(kind.name, read=read_objects, **selected).pages
    items = [item for page in pages for item in page]
    shown = leave_out(kind, items) if hides else items
    print_list(session, with_use(session, kind, shown), [kind])
    report_left_out(session, len(items) - len(shown))


def read_selection(session: Session, labels: tuple[str, ...], fields: tuple[str, ...]) -> dict[str, Any]:
    """The requested objects, as arguments of the client's ``list`` and ``watch_forever``."""
    return {"all_projects": session.all_projects, "labels": ",".join(labels), "fields": ",".join(fields)}


def leave_out(kind: Kind, items: Sequence[Object]) -> list[Object]:
    """``items`` without those that have ended."""
    return [item for item in items if kind.display.over is None or not kind.display.over(item)]


def report_left_out(session: Session, count: int) -> None:
    if count:
        session.notify(f"not shown: {count} finished (--all)")


def with_use(session: Session, kind: Kind, items: Sequence[Object]) -> list[Object]:
    """Nodes that are shown in all columns with what they use now: it stands in no object."""
    if not kind.lifetime.runs_workloads or not (
        session.output == "wide" or "used" in " ".join(session.columns).lower()
    ):
        return list(items)
    used = {each["node"]: each["use"] for each in fetch_usage(session.client.http)}
    return [{**item, "use": used.get(item["uid"])} for item in items]


def watch_kinds(
    session: Session, kinds: Sequence[Kind], selected: dict[str, Any], shows: Callable[[Object], bool]
) -> None:
    """The list of ``kinds``, then its changes, until Ctrl-C: on a terminal the list anew, off it a line for each change."""
    redraws = is_terminal(sys.stdout) and not session.is_data
    known: dict[str, Object] = {}
    synced = reported = False
    for type_, item in follow_kinds(session, kinds, selected):
        if type_ == "synced":
            synced = True
        elif type_ == "put" and shows(item):
            known[item["uid"]] = item
        else:
            known.pop(item["uid"], None)
        if session.is_document and item:
            print_line(session, {"type": type_, "object": item})
        elif session.output == "name" and type_ == "put":
            print_names([item])
        elif synced and redraws:
            print(CLEAR, end="")
            _print_known(session, kinds, known)
        elif synced and not session.is_data | reported:
            _print_known(session, kinds, known)
            reported = True
        elif synced and type_ == "put":
            _print_row(session, kinds, item)
        elif synced and type_ == "delete":
            session.notify(f"{item['kind']}/{item['name']} was deleted")
        sys.stdout.flush()


def follow_kinds(session: Session, kinds: Sequence[Kind], selected: dict[str, Any]) -> Iterator[tuple[str, Object]]:
    """The objects of all ``kinds``, then once a mark that the list is complete, then the changes. Raises WeftError."""
    client, news = session.make_client(), queue.Queue[tuple[str, WatchEvent | WeftError]]()

    def listen(kind: str) -> None:
        try:
            for event in client.watch_forever(kind, **selected):
                news.put((kind, event))
        except WeftError as problem:
            news.put((kind, problem))

    for kind in kinds:
        threading.Thread(target=listen, args=(kind.name,), daemon=True).start()
    unread = {kind.name for kind in kinds}
    try:
        while True:
            name, event = _next(news)
            if isinstance(event, WeftError):
                raise event
            if event.type in ("put", "delete"):
                yield event.type, event.object
            elif event.type == "synced":
                unread.discard(name)
                if not unread:
                    yield event.type, {}
    finally:
        client.close()


def _next(news: queue.Queue[tuple[str, WatchEvent | WeftError]]) -> tuple[str, WatchEvent | WeftError]:
    while True:
        try:
            return news.get(timeout=_POLL_SECONDS)  # Ctrl-C doesn't interrupt a wait without end
        except queue.Empty:
            continue


def _print_known(session: Session, kinds: Sequence[Kind], known: dict[str, Object]) -> None:
    items = list(known.values())
    there = {item["kind"] for item in items}
    shown = [kind for kind in kinds if kind.name in there] or kinds[:1]
    print_list(session, with_use(session, kinds[0], items), shown, named=len(kinds) > 1)


def _print_row(session: Session, kinds: Sequence[Kind], item: Object) -> None:
    (kind,) = (kind for kind in kinds if kind.name == item["kind"])
    items = with_use(session, kind, [item])
    columns, rows = make_rows(session, name_kinds(items) if len(kinds) > 1 else items, kind)
    print(draw_rows(session.form.without_header(), columns, rows, find_width(sys.stdout), session.paint))


KINDS = (*PLACED, "job")


def ps_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft ps`: all that runs, of every kind that can."""
    params = [
        *options.selectors(),
        options.all_projects(),
        *options.listing(),
        *options.table(),
        options.output(MANIFEST),
    ]
    return options.build(verb, "List VMs, containers and jobs.", _ps, kind, params)


def _ps(
    session: Session, kind: Kind | None, labels: tuple[str, ...], fields: tuple[str, ...], every: bool, watch: bool
) -> None:
    selected = read_selection(session, labels, fields)
    shows_all = bool(every or labels or fields)
    if watch:
        watch_kinds(session, [BY_NAME[name] for name in KINDS], selected, lambda item: shows_all or _goes_on(item))
        return
    items, refused = list_allowed(session, KINDS, selected)
    shown = [item for item in items if shows_all or _goes_on(item)]
    if shown or session.is_data:
        print_list(
            session, shown, [BY_NAME[name] for name in dict.fromkeys(item["kind"] for item in shown)], named=True
        )
    else:
        session.notify("nothing runs" + ("" if session.all_projects else f" in project {session.client.project}"))
    report_left_out(session, len(items) - len(shown))
    for problem in refused:
        session.notify(f"not shown: {problem.message}")


def list_allowed(
    session: Session, kinds: Sequence[str], selected: Mapping[str, Any]
) -> tuple[list[Object], list[Forbidden]]:
    """List the objects of those of ``kinds`` that the caller may see, and why not of the others. Raises Forbidden if it sees
    none."""
    items: list[Object] = []
    refused: list[Forbidden] = []
    for name in kinds:
        try:
            items += session.client.list(name, **selected).items
        except Forbidden as problem:
            refused.append(problem)
    if len(refused) == len(kinds):
        raise refused[0]
    return items, refused


def _goes_on(item: dict[str, Any]) -> bool:
    """Whether it has not ended. A list of jobs shows ended ones; ``ps`` shows what runs."""
    ended = item["kind"] == "job" and dig(item, "status.phase") in ENDED
    return not ended and bool(leave_out(BY_NAME[item["kind"]], [item]))
