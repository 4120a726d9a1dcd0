"""`weft wait vm/web --for=phase=Running`: return once an object reaches a state; exit 7 when the time is up."""

from __future__ import annotations

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.exit_codes import OK
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_targets
from weft.cli.command.target import Target, usage
from weft.cli.session import Session
from weft.cli.wait.finish import Done, finish
from weft.cli.wait.goal import READY, read_goal
from weft.cli.wait.watch import Wait
from weft.kinds.operation import plan_goal
from weft.kinds.record import Goal, Kind
from weft.objects.errors import NotFound


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        options.targets(kind),
        click.Option(
            ["--for", "goals"],
            multiple=True,
            metavar="WHAT",
            help="State to wait for: ready, phase=Running, condition=Ready[=False], FIELD=VALUE or delete. [ready]",
        ),
        options.timeout(),
        options.output(),
    ]
    return options.build(verb, "Wait until an object reaches a state.", _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], goals: tuple[str, ...]) -> int:
    targets = find_targets(session, kind, words)
    wanted = {
        target.kind.name: [goal for text in goals or (READY,) for goal in _read_goals(text, target)]
        for target in targets
    }
    done: list[Done] = []
    waits: list[Wait] = []
    for target in targets:
        chosen = wanted[target.kind.name]
        try:
            obj = session.client.get(target.kind.name, target.name)
        except NotFound:
            if all(goal.wants_gone for goal in chosen):
                print(f"{target.what}  gone")
                continue
            raise
        done.append(Done(target, obj, "wait"))
        waits += [Wait(target, goal, obj["uid"], obj.get("project")) for goal in chosen]
    return finish(session, done, waits) if waits else OK


def _read_goals(text: str, target: Target) -> list[Goal]:
    """Ready is what create waits for, but also for a VM that no node takes."""
    if text.lower() != READY:
        return [read_goal(text, target.kind)]
    goal = plan_goal(target.kind.name, "wait")
    if goal is None:
        raise usage(
            f"{target.kind.plural} are ready as soon as they exist, so there is nothing to wait for",
            f"give what to wait for: weft wait {target.what} --for=FIELD=VALUE",
        )
    return [msgspec.structs.replace(goal, ends_refused=False)]
