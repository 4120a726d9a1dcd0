"""`weft audit list`, `verify [FILE...]`, `export [FILE]`: who did what, from where, allowed or refused."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.grammar import Entry
from weft.cli.command.target import find_noun
from weft.cli.output.formats import print_data, print_rows
from weft.cli.output.local_time import render_time
from weft.cli.output.table import make_columns
from weft.cli.session import Session
from weft.cli.stream.whole_file import refuse_existing
from weft.client.audit import ServerVerdicts, read_all, read_newest, verify_servers
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput
from weft.objects.quantity import parse_moment
from weft.trust.audit_chain import AuditRecord, AuditVerdict, ChainCheck, read_link

_ACTS = ("list", "verify", "export")
_COLUMNS = make_columns("TIME!", "ACTOR!~", "VERB!", "OBJECT!~", "OUTCOME!", "REASON", "ADDRESS", "CHANGE~")
_NEWEST = 100
_LONGEST_LINE = 1 << 20
_BEGINS = b'{"sequence":'  # each record


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    ago = options.Duration()
    params = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["files"], nargs=-1, metavar="[FILE...]", type=click.Path(path_type=Path, dir_okay=False)),
        click.Option(["--since"], type=ago, metavar="AGO", help="Only records of the last 30s, 5m, 1h, 7d."),
        click.Option(["--until"], type=ago, metavar="AGO", help="Only records older than that."),
        click.Option(
            ["--actor"],
            default="",
            metavar="NAME",
            help="Only what NAME did: a user, a token (token:ID), or a node (node:UID).",
        ),
        click.Option(["--kind", "of_kind"], default="", metavar="KIND", help="Only what was done to objects of KIND."),
        options.replace(),
        click.Option(["--outcome"], type=click.Choice(["allowed", "refused", "failed"]), help="Only these."),
        click.Option(
            ["-n", "--tail"],
            type=click.IntRange(1, 1000),
            metavar="N",
            help=f"List only the newest N ({_NEWEST}, or with --since all).",
        ),
        *options.table(),
        options.output(),
    ]
    summary = "List, verify or export the audit log: who did what, allowed or refused. export writes JSON lines."
    return options.build(verb, summary, _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    act: str,
    files: tuple[Path, ...],
    since: float | None,
    until: float | None,
    actor: str,
    of_kind: str,
    force: bool,
    outcome: str | None,
    tail: int | None,
) -> int | None:
    query = {
        "since": "" if since is None else str(session.clock.now() - since),
        "until": "" if until is None else str(session.clock.now() - until),
        "actor": actor,
        "kind": find_noun(of_kind).name if of_kind else "",
        "project": session.project or "",
        "outcome": outcome or "",
    }
    query = {name: value for name, value in query.items() if value}
    if act == "verify":
        return _verify(session, files)
    if act == "export":
        _export(session, files, query, force=force)
        return None
    if files:
        raise click.UsageError("list takes no file: weft audit verify FILE")
    if since is not None and tail is None:
        raws = list(read_all(session.client.http, query))
    else:
        raws = read_newest(session.client.http, query, tail or _NEWEST)
    if session.is_document:
        print_data(session, {"items": raws} | ({"away": session.away} if session.away else {}))
    elif raws:
        print_rows(session, _COLUMNS, [_row(msgspec.json.decode(raw, type=AuditRecord)) for raw in raws])
    else:
        session.notify("no records")
    return None


def _row(record: AuditRecord) -> list[str]:
    first, more = (record.objects[0] if record.objects else None), len(record.objects) - 1
    about = "" if first is None else f"{first.kind}/{first.name}".rstrip("/") + (f" and {more} more" if more else "")
    change = ", ".join(one.field for one in first.changes) if first is not None else ""
    return [
        render_time(parse_moment(record.at), seconds=True),
        record.actor.name or record.actor.kind,
        record.verb,
        f"{record.project}/{about}" if record.project and about else about or "–",
        record.outcome,
        record.reason or "–",
        record.address or "–",
        change or record.message,
    ]


def _export(session: Session, files: tuple[Path, ...], query: dict[str, str], *, force: bool) -> None:
    if len(files) > 1:
        raise click.UsageError("export takes one FILE, or none for standard output")
    for file in files:
        refuse_existing(file, "FILE", force=force)
    records = read_all(session.client.http, query)
    first = list(itertools.islice(records, 1))  # what the server refuses leaves no file
    count = 0
    with files[0].open("wb") if files else contextlib.nullcontext(sys.stdout.buffer) as out:
        for raw in itertools.chain(first, records):
            out.write(bytes(raw) + b"\n")
            count += 1
        out.flush()
    session.notify(f"{count} records" + (f" → {files[0]}" if files else ""))


def _verify(session: Session, files: tuple[Path, ...]) -> int:
    if files:
        verdict, *more = _verify_files(files)
        others, where = {one.chain: one for one in more}, "in the files"
    else:
        verdict = verify_servers(session.client.http)
        others, where = verdict.others, "kept"
    if session.is_document:
        shown = msgspec.to_builtins(verdict)
        print_data(session, shown | {"others": msgspec.to_builtins(others)} if others else shown)
    elif isinstance(verdict, ServerVerdicts) and others:
        for name, one in sorted({verdict.server: verdict, **others}.items()):
            print(f"server {name}: {_describe(one, where)}")
    else:
        for one in (verdict, *others.values()):
            print(_describe(one, where))
    return 0 if all(one.broken is None for one in (verdict, *others.values())) else 1


def _describe(verdict: AuditVerdict, where: str) -> str:
    if verdict.broken is not None:
        return f"broken at record {verdict.broken.sequence}: {verdict.broken.problem}"
    begins = "" if verdict.first == 1 else f" (older ones are not {where})"
    return (
        f"{verdict.records} records are whole: {verdict.first} to {verdict.last}{begins}\nchain {verdict.chain},"
        f" record {verdict.last} has hash {verdict.hash}"
    )


def _verify_files(files: Iterable[Path]) -> list[AuditVerdict]:
    """The verdict on each server's chain in the files, which follow each other."""
    checks: dict[str, ChainCheck] = {}
    chain = ""
    for file in files:
        with contextlib.ExitStack() as stack:
            try:
                lines: BinaryIO = stack.enter_context(file.open("rb"))
            except OSError as problem:
                raise InvalidInput(
                    f"{file}: {(problem.strerror or str(problem)).lower()}",
                    hint="give a file that exists and that you may read; weft audit export FILE writes one",
                ) from None
            while line := lines.readline(_LONGEST_LINE):
                if not checks and not line.startswith(_BEGINS):
                    raise InvalidInput(
                        f"{file} is not an export of the audit log", hint="weft audit export FILE writes one"
                    )
                link = read_link(line.rstrip(b"\n"))
                chain = link.chain if link is not None else chain  # one that can't be read breaks the chain before it
                checks.setdefault(chain, ChainCheck()).take(line.rstrip(b"\n"))
    if not checks:
        raise InvalidInput("there are no records in these files", hint="weft audit export FILE writes them")
    return [check.verdict for check in checks.values()]
