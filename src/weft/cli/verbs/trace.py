"""`weft trace ID`, `weft trace vm/web`, `weft trace list`: what took how long, across all of weft's processes and nodes."""

from __future__ import annotations

import re
import sys

import click

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import usage
from weft.cli.output.formats import age_of, print_data, print_items
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import find_width
from weft.cli.session import Session
from weft.cli.trace.tree import read_tree
from weft.cli.trace.waterfall import draw, format_time
from weft.cli.verbs.events import about
from weft.client.traces import list_traces, read_trace
from weft.kinds.project import PROJECT
from weft.kinds.record import Kind
from weft.objects.errors import NotFound

_COLUMNS = make_columns("TRACE!", "AGE", "OBJECT!", "TIME>!", "SPANS>", "WHAT~", "ERROR~")
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_RECENT_SECONDS, _OLD_SECONDS = 3600.0, 7 * 86400.0


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    ago = options.Duration(least=0.001)
    params = [
        click.Argument(["words"], nargs=-1, required=True, metavar="ID|KIND/NAME|list"),
        click.Option(["--slow"], type=ago, metavar="TIME", help="list: only those that took so long, like 1s."),
        click.Option(["--since"], type=ago, metavar="AGO", help="list: only those of the last 10m, 1h (1h), 7d."),
        click.Option(
            ["-n", "--tail"],
            type=click.IntRange(1, 1000),
            default=50,
            metavar="N",
            help="list: only the newest N (50).",
        ),
        *options.table(),
        options.output(),
    ]
    summary = "Show what a request took its time for, across API, controllers, scheduler, nodes and functions, as a waterfall."
    return options.build(verb, summary, _run, kind, params)


def _run(
    session: Session, kind: Kind | None, words: tuple[str, ...], slow: float | None, since: float | None, tail: int
) -> None:
    if words == ("list",):
        _list(session, slow or 0.0, since or _RECENT_SECONDS, tail)
        return
    if slow is not None or since is not None:
        raise usage("--slow and --since choose from the list", "weft trace list --slow 1s")
    document = read_trace(session.client.http, _find_id(session, words))
    if session.is_document:
        print_data(session, document)
        return
    tree = read_tree(document, session.clock.now())
    print(draw(tree, find_width(sys.stdout), session.paint))


def _find_id(session: Session, words: tuple[str, ...]) -> str:
    """The trace that is named, or the newest of the object that is. Raises NotFound, UsageError."""
    if len(words) == 1 and _ID.fullmatch(words[0].lower()):
        return words[0].lower()
    if len(words) == 1 and "/" not in words[0]:
        raise usage(f"{words[0][:40]!r} is not the ID of a trace", "weft trace list shows them; or give KIND/NAME")
    targets = find_targets(session, None, words)
    if len(targets) != 1:
        raise usage("a waterfall shows one trace", "give one ID or KIND/NAME")
    target = targets[0]
    for seconds in (_RECENT_SECONDS, _OLD_SECONDS):
        query = {"object": about(session, target), "since": str(session.clock.now() - seconds), "limit": "1"}
        if found := list_traces(session.client.http, query):
            return str(found[0]["trace"])
    session.client.get(target.kind.name, target.name)  # raises, if it isn't there
    raise NotFound(
        f"there is no trace of {target.what}",
        hint="what people change is traced, and kept for 7 days at most: weft trace list",
    )


def _list(session: Session, slow: float, since: float, tail: int) -> None:
    query = {"since": str(session.clock.now() - since), "slow": str(slow), "limit": str(tail)}
    if session.project:
        query["project"] = session.project
    found = list_traces(session.client.http, query)
    if not found and session.given_project is not None:
        session.client.get(PROJECT.name, session.given_project)  # raises, if it isn't there
    rows = [
        [
            one["trace"],
            age_of(session, one["began_at"]),
            _show_object(one["about"]),
            format_time(int(one["seconds"] * 1e9)) + ("" if one["over"] else " …"),
            str(one["spans"]),
            one["name"],
            one["error"],
        ]
        for one in found
    ]
    empty = "no traces: give a longer --since, or a shorter --slow"
    print_items(session, found, [one["trace"] for one in found], (_COLUMNS, rows), empty)


def _show_object(name: str) -> str:
    """``default/vm/web`` or ``node/n1``, of KIND/PROJECT/NAME."""
    kind, _, rest = name.partition("/")
    project, _, last = rest.partition("/")
    if last in ("-", ""):
        return f"{project} {kind}" if project not in ("-", "") else kind
    return f"{kind}/{last}" if project in ("-", "") else f"{project}/{kind}/{last}"
