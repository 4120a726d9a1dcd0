"""`weft explain vm web`: why it was placed where it is, or why nowhere: the scheduler's own decision, read back."""

from __future__ import annotations

import sys
import time

import click

from weft.cli import options
from weft.cli.finishing import find_decision
from weft.cli.grammar import Entry
from weft.cli.output.formats import print_object
from weft.cli.placement import explain_absence, explain_decision
from weft.cli.session import Session
from weft.cli.terminal import find_width
from weft.cli.words import read_targets
from weft.kinds.cells import dig
from weft.kinds.record import Kind
from weft.objects.errors import NotFound


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--why-not"], metavar="NODE", help="Only why it is not there."),
        options.output(),
    ]

    def run(session: Session, kind: Kind | None, words: tuple[str, ...], why_not: str | None) -> None:
        for target in read_targets(kind, words, entry.kinds):
            obj = session.client.get(target.kind.name, target.name)
            decision = find_decision(session, target)
            if decision is None:
                undecided = (
                    f"{target.what} is {dig(obj, 'status.phase', 'Pending')}: nothing was decided yet{_why(obj)}"
                )
                if session.is_data:
                    raise NotFound(undecided)
                print(undecided)
            elif session.is_data:
                print_object(session, decision)
            elif why_not is not None:
                session.client.get("node", why_not)
                print(explain_absence(decision, target.what, why_not))
            else:
                when = time.strftime("%H:%M:%S", time.localtime(decision["spec"]["at"]))
                print(explain_decision(decision, target.what, when, find_width(sys.stdout), session.paint))

    return options.build(verb, "Say why it stands where it does, or nowhere.", run, kind, params)


def _why(obj: dict[str, object]) -> str:
    conditions = obj.get("conditions") or []
    said = (
        [c["message"] or c["reason"] for c in conditions if c["status"] != "True"]
        if isinstance(conditions, list)
        else []
    )
    return f" ({'; '.join(said)})" if said else ""
