"""`weft explain vm web`: why it was placed where it is, or why nowhere: the scheduler's own decision, read back."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import OK
from weft.cli.command.flags import read_assignments
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import look_up_one
from weft.cli.command.target import Target
from weft.cli.output.formats import print_object
from weft.cli.output.terminal import find_width
from weft.cli.placement.answer import explain_node
from weft.cli.placement.decision import explain_absence, explain_decision
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.cli.verbs.recommend import answer_question
from weft.cli.wait.finish import find_decision
from weft.kinds.fields.cells import dig
from weft.kinds.record import Kind
from weft.objects.errors import NotFound, WeftError


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--why-not"], metavar="NODE", help="Explain only why the workload isn't on this node."),
        click.Option(
            ["--what-if"],
            multiple=True,
            metavar="FIELD=VALUE",
            help="Show where the workload would go with these fields, and the smallest change that would make it fit.",
        ),
        options.output(),
    ]
    return options.build(verb, "Explain why a workload was placed, or why it wasn't.", _run, kind, params)


def _run(
    session: Session, kind: Kind | None, words: tuple[str, ...], why_not: str | None, what_if: tuple[str, ...]
) -> int:
    target = look_up_one(session, kind, words, (*PLACED, "migration"), "give one object")
    obj = session.client.get(target.kind.name, target.name)
    if what_if and target.kind.workload is None:
        raise click.UsageError("--what-if needs a workload")
    if what_if:
        asked_for = ", ".join(what_if)
        spec = read_assignments(target.kind, what_if)
        return answer_question(session, {"workload": target.what, "changes": spec}, f"{target.what} with {asked_for}")
    decision = find_decision(session, target)
    if why_not is not None:
        session.client.get("node", why_not)
        if target.kind.workload is not None and (decision is None or not _has_verdict(decision, why_not)):
            return _explain_now(session, target, why_not)
    if decision is None:
        undecided = f"{target.what} is {dig(obj, 'status.phase', 'Pending')}: no placement decided yet{_why(obj)}"
        if session.is_data:
            raise NotFound(undecided)
        print(undecided)
    elif session.is_data:
        print_object(session, decision)
    elif why_not is not None:
        print(explain_absence(decision, target.what, why_not, _render_time(decision)))
        if target.kind.workload is not None:
            _add_present(session, target, why_not)
    else:
        when = _render_time(decision)
        print(explain_decision(decision, target.what, when, find_width(sys.stdout), session.paint))
    return OK


def _render_time(decision: Mapping[str, Any]) -> str:
    return time.strftime("%H:%M:%S", time.localtime(decision["spec"]["at"]))


def _add_present(session: Session, target: Target, node: str) -> None:
    """A verdict is of the moment when it was decided: beside it, how it is now."""
    try:
        answered = ask(session, "recommendation", {"workload": target.what, "nodes": [node]})
    except WeftError as problem:
        session.say(f"the state now is unknown: {problem.message}")
        return
    if answered["status"]["phase"] != "Failed":
        print(explain_node(answered, target.what, node))


def _has_verdict(decision: Mapping[str, Any], node: str) -> bool:
    return any(verdict["node"] == node for verdict in decision["spec"].get("verdicts") or ())


def _explain_now(session: Session, target: Target, node: str) -> int:
    """Of thousands of nodes a decision keeps the verdicts of some; of another the scheduler is asked as things are."""
    answered = ask(session, "recommendation", {"workload": target.what, "nodes": [node]})
    if session.is_data:
        print_object(session, answered)
    elif answered["status"]["phase"] == "Failed":
        print(f"{target.what} can't be placed anywhere: {answered['status']['message']}")
    else:
        print(explain_node(answered, target.what, node))
    return OK


def _why(obj: dict[str, object]) -> str:
    conditions = obj.get("conditions") or []
    said = (
        [c["message"] or c["reason"] for c in conditions if c["status"] != "True"]
        if isinstance(conditions, list)
        else []
    )
    return f" ({'; '.join(dict.fromkeys(said))})" if said else ""
