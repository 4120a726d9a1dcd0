"""Lines of several workloads, from their nodes' stores of logs, merged by time."""

from __future__ import annotations

import heapq
import json
import queue
import re
import sys
import threading
from collections.abc import Sequence
from typing import Any

from weft.cli.command.exit_codes import INTERRUPTED, partial_code
from weft.cli.command.target import usage
from weft.cli.logs.reader import JournalLine, Named, Reader
from weft.cli.logs.server import ServerProcess, ServerReader
from weft.cli.output.formats import print_line
from weft.cli.output.terminal import clean
from weft.cli.session import Session
from weft.objects.quantity import format_duration

MOST_TARGETS = 100
MOST_SORTED = 50_000  # lines of a followed log that are sorted together
SETTLE_SECONDS = 0.3  # lines of several nodes come a little apart
_UNSEEN = re.compile(
    "[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)  # what a terminal may act on, and JSON leaves as it is


def show_aggregate(session: Session, targets: Sequence[Named], asked: dict[str, Any], *, prefix: bool) -> int:
    """Print the lines that are ``asked`` for as the verb takes it; with its ``follow``, until Ctrl-C or until all have ended. The
    exit code; a failure of one of several is reported and doesn't end the others. Raises UsageError, and WeftError of a
    single one."""
    refuse_what_does_not_go_together(session, asked)
    if len(targets) > MOST_TARGETS:
        raise usage(
            f"{len(targets)} workloads are too many to show together", f"name at most {MOST_TARGETS}, or use -l"
        )
    readers = [
        (ServerReader if isinstance(target, ServerProcess) else Reader)(
            session, target, {**asked, "aggregate": True}, alone=len(targets) == 1
        )
        for target in targets
    ]
    for reader in readers:
        threading.Thread(target=reader.run, daemon=True).start()
    shown = False
    try:
        if asked["follow"]:
            _show_as_they_come(session, readers, prefix=prefix)
        else:
            for line in heapq.merge(*readers, key=lambda line: line["time"]):
                _print(session, line, prefix=prefix)
                shown = True
    except KeyboardInterrupt:
        return INTERRUPTED  # enough was seen
    finally:
        sys.stdout.flush()
    for reader in readers:
        if reader.problem is not None:
            raise reader.problem
    if not (shown or asked["follow"] or session.is_data):
        session.notify("no line matches" if asked.get("filter") or asked.get("regex") else "no lines")
    return partial_code([reader.code for reader in readers if reader.code is not None])


def refuse_what_does_not_go_together(session: Session, asked: dict[str, Any]) -> None:
    """Said before anything is asked, in the words of the command line. Raises UsageError."""
    if session.given_form is not None and not session.is_document and session.output not in ("table", "wide"):
        raise usage(f"lines have no form {session.output}", "give -o json, -o yaml, or no -o for plain lines")
    if asked["follow"] and asked.get("until"):
        raise usage("--until can't be given with -f: what follows is later", "leave one of them out")
    if asked.get("filter") and asked.get("regex"):
        raise usage("--filter can't be given with --regex", "leave one of them out")
    since, until = asked.get("since") or 0.0, asked.get("until") or 0.0
    if 0 < since <= until:
        shown = format_duration(since), format_duration(until)
        raise usage(f"no line is newer than {shown[0]} and older than {shown[1]}", "give --since the longer time")


def _show_as_they_come(session: Session, readers: Sequence[Reader], *, prefix: bool) -> None:
    going = list(readers)
    while going:
        found: list[JournalLine] = []
        for reader in list(going):
            while len(found) < MOST_SORTED:
                try:
                    line = reader.lines.get_nowait()
                except queue.Empty:
                    break
                if line is None:
                    going.remove(reader)
                    break
                found.append(line)
        for line in sorted(found, key=lambda line: line["time"]):
            _print(session, line, prefix=prefix)
        sys.stdout.flush()
        if going and len(found) < MOST_SORTED:
            session.client.http.closed.wait(SETTLE_SECONDS)


def _print(session: Session, line: JournalLine, *, prefix: bool) -> None:
    """Guests must not change what the terminal shows, in any form."""
    if session.output == "json" and session.jq is None and not session.json_fields:
        document = json.dumps(line, ensure_ascii=False)
        sys.stdout.write(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", document) + "\n")
    elif session.is_document:
        print_line(session, line)
    else:
        source = f"{line['source']}  " if prefix else ""
        sys.stdout.write(f"{line['time'][:23]}Z  {source}{clean(line['message'])}\n")
