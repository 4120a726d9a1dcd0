"""Verbs of nodes under maintenance: drain, maintenance, power."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from weft.cli.command import options
from weft.cli.command.completion import complete_target
from weft.cli.command.exit_codes import OK, UNPLACEABLE
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one, find_targets
from weft.cli.command.target import Target
from weft.cli.output.formats import print_object
from weft.cli.output.table import Column, draw_table
from weft.cli.output.terminal import find_width
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.cli.wait.batch import each, finish_each
from weft.cli.wait.finish import Done, plan_wait
from weft.cli.wait.follow import follow_to_end, print_one
from weft.cli.wait.progress import Progress
from weft.cli.wait.watch import Result, Wait
from weft.kinds.fields.cells import dig
from weft.kinds.node import SILENT_PHASES
from weft.kinds.operation import name_operation
from weft.kinds.record import Goal, Kind
from weft.kinds.registry import BY_NAME
from weft.objects.errors import TimedOut, WeftError
from weft.objects.quantity import format_bytes

DEFAULT_TIMEOUT_SECONDS = 3600.0


def drain_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft node drain n1 --reason "new fans"`: migrate everything away from a node, and show the progress; Ctrl-C ends the
    watching only. ``--dry-run`` shows for each workload where it would go, or why it can't leave."""
    params = [
        options.targets(kind, many=False, able=("node",)),
        click.Option(["--reason"], metavar="TEXT", default="", help="Reason for the drain, for people."),
        click.Option(
            ["--in", "begins"],
            type=options.Duration(unit=True),
            help="Begin after this time; nothing new is placed there from now on.",
        ),
        click.Option(
            ["--for", "lasts"], type=options.Duration(unit=True), help="Begin no more migrations after this time."
        ),
        click.Option(["--force"], is_flag=True, help="Wait for no disruption budget."),
        click.Option(["--dry-run"], is_flag=True, help="Only show what would leave, and where to."),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _drain, kind, params)


def _drain(
    session: Session,
    kind: Kind | None,
    words: tuple[str, ...],
    reason: str,
    begins: float | None,
    lasts: float | None,
    force: bool,
    dry_run: bool,
) -> int:
    target = find_one(session, kind, words, ("node",), "give one node: nodes are drained one at a time")
    if lasts == 0:
        raise click.UsageError("--for 0 leaves no time to migrate; leave out --for to take as long as needed")
    if dry_run:
        return _preview(session, target, force)
    body: dict[str, Any] = {"reason": reason, "force": force}
    begin = session.clock.now() + (begins or 0.0)
    body |= {"not_before": begin} if begins else {}
    body |= {"not_after": begin + lasts} if lasts else {}
    node = session.client.verb("node", target.name, "drain", body)
    if session.detach:
        silent = dig(node, "status.phase") in SILENT_PHASES
        note = "; it sends no heartbeat, so nothing leaves before it is back" if silent else ""
        watch = f"watch: weft operation attach {name_operation(node)}"
        print_one(session, node, f"{target.what}  is draining{note}; {watch}")
        return OK
    if session.timeout_seconds is None:
        session.timeout_seconds = DEFAULT_TIMEOUT_SECONDS + (begins or 0.0)
    goal = Goal(
        lambda obj: (drained := _drained(obj)) is not None and drained["status"] == "True",
        "drained",
        ends_failed=False,
        ends_refused=False,
        asked="condition=Drained",
    )
    parting = f"the drain goes on; watch: weft describe {target.what}   end it: weft node uncordon {target.name}"
    result = follow_to_end(session, Wait(target, goal, node["uid"]), Draining, parting, _find_error)
    if isinstance(result, int):
        return result
    assert result.obj is not None
    print_one(session, result.obj, f"{target.what}  drained in {result.seconds:.1f} s: nothing is left on it")
    return OK


def _drained(obj: Any) -> dict[str, Any] | None:
    """The node's condition Drained; None if it is from before the newest change of its spec."""
    found = next((one for one in (obj or {}).get("conditions", []) if one["type"] == "Drained"), None)
    return None if found is None or found.get("generation", 0) < obj["generation"] else found


def _find_error(result: Result) -> WeftError | None:
    """A timeout's error names what is left on the node, and why."""
    error, drained = result.error, _drained(result.obj)
    if not isinstance(error, TimedOut) or drained is None:
        return error
    return TimedOut(f"{error.message}: {drained['message']}", hint=error.hint)


class Draining(Progress):
    """Shows a drain's progress: on a terminal in one line, off it a line for each change."""

    def show(self, target: Target, obj: Any, over: bool = False) -> None:
        drained = None if over else _drained(obj)
        if drained is None or drained["status"] == "True":
            super().show(target, None, over)
        else:
            line = f"{target.what}  {drained['reason'].lower()}: {drained['message']}"
            self.draw(target, line, drained["message"])


def _preview(session: Session, target: Target, force: bool) -> int:
    """Preview where each workload on the node would go, given those before it; nothing is stored."""
    session.client.get("node", target.name)
    answered = ask(session, "report", {"subject": "drain", "node": target.name, "force": force})
    if dig(answered, "status.phase") == "Failed":
        raise WeftError(f"{target.what} can't be drained: {dig(answered, 'status.message')}")
    leaving = dig(answered, "status.leaving") or []
    stay = sum(not one.get("to") for one in leaving)
    if session.is_data:
        print_object(session, answered)
    elif not leaving:
        session.notify(f"{target.what} is empty")
    else:
        columns = [Column(title) for title in ("WORKLOAD", "PROJECT", "MEMORY", "TO")] + [Column("NOTE", flexible=True)]
        print(draw_table(columns, [_draw(one) for one in leaving], find_width(sys.stdout), session.paint))
        ends = f"; {stay} can't, and would stay" if stay else ""
        waits = f"; {silence}" if (silence := dig(answered, "status.message")) else ""
        print(f"{len(leaving) - stay} of {len(leaving)} can leave{ends}{waits}")
    return UNPLACEABLE if stay else OK


_NOTES = {"cold": "stops meanwhile", "saved": "stops meanwhile, and goes on from there"}


def _draw(one: dict[str, Any]) -> list[str]:
    note = _NOTES.get(one.get("mode", ""), "")
    if one.get("mode") == "saved" and one["workload"].startswith("vm/"):
        note = "stays suspended, its memory goes with it"
    note = "; ".join(filter(None, [note, one.get("message")]))
    if not one.get("to"):
        note = f"{one.get('reason')}: {one.get('message')}"
    return [one["workload"], one["project"], format_bytes(one.get("memory", 0)), one.get("to") or "–", note]


def _complete(*states: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Names of nodes; after one of them, ``states`` too."""

    def complete(context: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        nodes = complete_target(BY_NAME["node"])(context, param, incomplete)
        more = states if context.params.get("words") else ()
        return [*nodes, *(CompletionItem(state) for state in more if state.startswith(incomplete))]

    return complete


def maintenance_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft node maintenance n1 on --reason "new fans"`: begin or end a node's maintenance."""
    words = click.Argument(["words"], nargs=-1, metavar="NODE... on|off", shell_complete=_complete("on", "off"))
    reason = click.Option(["--reason"], metavar="TEXT", default="", help="What is being done to the node.")

    def run(session: Session, kind: Kind | None, words: tuple[str, ...], reason: str) -> int:
        *names, state = words or ("",)
        if state not in ("on", "off") or not names:
            raise click.UsageError('give nodes, and on or off: weft node maintenance n1 on --reason "new fans"')
        done: list[Done] = []

        def act(target: Target) -> None:
            body = {"on": state == "on", "reason": reason}
            obj = session.client.verb(target.kind.name, target.name, verb, body)
            done.append(Done(target, obj, verb, f"maintenance {state}"))

        codes = each(session, find_targets(session, kind, names, entry.kinds), act)
        return finish_each(session, codes, done, [])

    return options.build(verb, f"{entry.summary}.", run, kind, [words, reason, *options.waits(), options.output()])


_ORDERS = ("off", "on", "cycle")


def power_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft node power n1 off`: have the machine switched by its BMC, and wait until that says so; without an order, ask it."""
    metavar = f"NODE... [{'|'.join(_ORDERS)}]"
    words = click.Argument(["words"], nargs=-1, metavar=metavar, shell_complete=_complete(*_ORDERS))
    force = click.Option(["--force"], is_flag=True, help="Switch off a node that is ready, whatever runs there.")

    def run(session: Session, kind: Kind | None, words: tuple[str, ...], force: bool) -> int:
        order = words[-1] if words and words[-1] in _ORDERS else "status"
        names = words if order == "status" else words[:-1]
        if not names:
            raise click.UsageError("give nodes: weft node power n1, or weft node power n1 off")
        if force and order not in ("off", "cycle"):
            raise click.UsageError(f"--force has no effect on {order}; it goes with off and cycle")
        done: list[Done] = []
        waits: list[Wait] = []

        def act(target: Target) -> None:
            obj = session.client.verb(target.kind.name, target.name, verb, {"to": order, "force": force})
            done.append(Done(target, obj, verb))
            waits.extend(wait for wait in [plan_wait(obj, target, verb)] if wait)

        codes = each(session, find_targets(session, kind, names, entry.kinds), act)
        return finish_each(session, codes, done, waits)

    return options.build(verb, f"{entry.summary}.", run, kind, [words, force, *options.waits(), options.output()])
