"""Questions about placement: why there, where now, how full."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.exit_codes import OK, UNPLACEABLE
from weft.cli.command.flags import make_flags, read_assignments, read_flags
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import resolve_one
from weft.cli.command.target import Target
from weft.cli.output.formats import print_object
from weft.cli.output.local_time import localize, render_time
from weft.cli.output.terminal import find_width
from weft.cli.placement.answer import explain_node, render_capacity, render_recommendation
from weft.cli.placement.decision import explain_absence, explain_decision
from weft.cli.placement.question import ask
from weft.cli.placement.whereabouts import explain_whereabouts
from weft.cli.session import Session
from weft.cli.verbs.create import create_one
from weft.cli.wait.finish import find_decision
from weft.kinds.fields.cells import dig
from weft.kinds.fields.lease import PREEMPTED
from weft.kinds.migration import ENDED
from weft.kinds.parts.convert_verb import refuse_departed
from weft.kinds.record import Kind
from weft.objects.errors import NotFound, WeftError
from weft.objects.lifecycle import describe_phase


def recommend_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft recommend vm/web`, `weft vm recommend --image tiny --cpu 4`: where the scheduler would place it now, as it is or with
    other fields, and the least change if it fits on no node. Nothing is placed."""
    fields = make_flags(kind) if kind else []
    params = [
        options.targets(kind, many=False, able=entry.kinds, required=kind is None),
        *fields,
        options.answer_timeout(),
        options.output(),
    ]
    summary = "Show where a workload would be placed now, or with other values of its fields."
    return options.build(verb, summary, _recommend, kind, params)


def _recommend(session: Session, kind: Kind | None, words: tuple[str, ...], **given: Any) -> int:
    spec = read_flags(kind, given, {}) if kind else {}
    if not words:
        if not spec:
            raise click.UsageError("give a name, or fields of a possible workload: --image tiny --cpu 4")
        return answer_question(
            session,
            {"changes": spec, **({"kind": kind.name} if kind else {})},
            f"such a {kind.title if kind else 'workload'}",
        )
    target = resolve_one(session, kind, words, PLACED, "give one workload")
    refuse_departed(session.client.get(target.kind.name, target.name))
    return answer_question(session, {"workload": target.what, "changes": spec}, target.what)


def create_recommendation_command(verb: str, entry: Entry, kind: Kind) -> click.Command:
    """`weft recommendation create vm/web`: where it would be better, and why; the answer stays for ten minutes."""
    flags = make_flags(kind)
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="KIND/NAME"),
        *flags,
        *options.making(),
        *options.dry_runs(),
        *options.waits(flags),
        options.output(),
    ]
    return options.build(
        verb, "Ask where a workload would be better, and why; see also recommend.", _create, kind, params
    )


def _create(session: Session, kind: Kind, words: tuple[str, ...], **given: Any) -> int:
    if len(words) != 1 or "/" not in words[0] or given["dry_run"]:
        return create_one(session, kind, words, **given)[0]
    target = resolve_one(session, None, words, PLACED, "give one workload")
    refuse_departed(session.client.get(target.kind.name, target.name))
    return answer_question(session, {"workload": target.what, "suggest": True}, target.what, keep=True)


def answer_question(session: Session, question: dict[str, Any], what: str, *, keep: bool = False) -> int:
    """Ask, and print the answer about ``what``; the exit code says whether a node fits."""
    answered = ask(session, "recommendation", question, keep=keep)
    status = answered["status"]
    if session.is_data:
        print_object(session, answered)
    elif status["phase"] == "Failed":
        raise WeftError(f"{what} can't be placed as it is: {status['message']}", reason=status["reason"])
    else:
        print(localize(render_recommendation(answered, what, find_width(sys.stdout), session.paint)))
    return OK if status.get("best") else UNPLACEABLE


def explain_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft explain vm web`: why it was placed where it is, or why it wasn't placed: the scheduler's own decision."""
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
    return options.build(verb, "Explain why a workload was placed, or why it wasn't.", _explain, kind, params)


def _explain(
    session: Session, kind: Kind | None, words: tuple[str, ...], why_not: str | None, what_if: tuple[str, ...]
) -> int:
    target = resolve_one(session, kind, words, (*PLACED, "migration"), "give one object")
    obj = session.client.get(target.kind.name, target.name)
    if what_if and target.kind.workload is None:
        raise click.UsageError("--what-if needs a workload")
    if what_if or why_not is not None:
        refuse_departed(obj)
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
        _explain_undecided(session, target, obj)
    elif session.is_data:
        print_object(session, decision)
    elif why_not is not None:
        print(localize(explain_absence(decision, target.what, why_not, _render_time(decision))))
        if target.kind.workload is not None:
            _add_present(session, target, why_not)
    else:
        _explain_place(session, target, obj, decision)
    return OK


def _explain_undecided(session: Session, target: Target, obj: dict[str, Any]) -> None:
    phase, said = dig(obj, "status.phase", "Pending"), dig(obj, "status.message")
    undecided = f"{target.what} is {describe_phase(phase)}: no placement decided yet{_why(obj)}"
    if said and target.kind.workload is None and phase in ENDED:  # nothing will be decided of a migration that is over
        undecided = f"{target.what} is {describe_phase(phase)}: {said}"
    if session.is_data:
        refuse_departed(obj)
        raise NotFound(undecided)
    print(localize(explain_whereabouts(session, target.what, obj) or undecided))


def _explain_place(session: Session, target: Target, obj: dict[str, Any], decision: Mapping[str, Any]) -> None:
    """Explain where it is now, if it can't be used there, and why it was placed on its node."""
    if whereabouts := explain_whereabouts(session, target.what, obj):
        print(localize(whereabouts))
    if dig(obj, "marks.departed"):
        return  # the decision is about a node that it has left
    if suspension := _explain_suspension(session, target, obj):
        print(localize(suspension))
    when = _render_time(decision)
    print(localize(explain_decision(decision, target.what, when, find_width(sys.stdout), session.paint)))


def _explain_suspension(session: Session, target: Target, obj: Mapping[str, Any]) -> str:
    """Explain for whom a workload was suspended, and when it may resume; "" if it isn't suspended."""
    if dig(obj, "status.phase") != "Suspended":
        return ""
    if dig(obj, "status.reason") != PREEMPTED:
        return f"{target.what} is suspended until you resume it: weft {target.kind.name} resume {target.name}"
    queue = dig(ask(session, "recommendation", {"subject": "queue"}), "status.queue") or []
    start = next((one["expected_start"] for one in queue if one["workload"] == target.what), None)
    when = f"at {render_time(start)}, as it looks now" if start else "when it fits again"
    return f"{target.what} is {dig(obj, 'status.message') or 'suspended'}; it resumes {when}\nit ran here before:"


def _render_time(decision: Mapping[str, Any]) -> str:
    return time.strftime("%H:%M:%S", time.localtime(decision["spec"]["at"]))


def _add_present(session: Session, target: Target, node: str) -> None:
    """A verdict is as old as its decision: beside it, the node's verdict now."""
    try:
        answered = ask(session, "recommendation", {"workload": target.what, "nodes": [node]})
    except WeftError as problem:
        session.notify(f"the scheduler can't be asked now: {problem.message}")
        return
    if answered["status"]["phase"] != "Failed":
        print(explain_node(answered, target.what, node))


def _has_verdict(decision: Mapping[str, Any], node: str) -> bool:
    return any(verdict["node"] == node for verdict in decision["spec"].get("verdicts") or ())


def _explain_now(session: Session, target: Target, node: str) -> int:
    """A decision keeps the verdicts of only some of many nodes; for any other node the scheduler is asked now."""
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
    parts = (
        [c["message"] or c["reason"] for c in conditions if c["status"] != "True"]
        if isinstance(conditions, list)
        else []
    )
    return f" ({'; '.join(dict.fromkeys(parts))})" if parts else ""


def capacity_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft capacity`: how full the fabric is and where, what waits and why, how long deciding takes."""
    summary = "Show how full the nodes are, what waits and why, and how placement decides."
    return options.build(verb, summary, _capacity, kind, [options.answer_timeout(), options.output()])


def _capacity(session: Session, kind: Kind | None) -> None:
    answered = ask(session, "report", {"subject": "capacity"})
    if session.is_data:
        print_object(session, answered)
    else:
        print(render_capacity(answered, find_width(sys.stdout), session.paint))
