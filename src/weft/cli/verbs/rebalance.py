"""`weft rebalance plan`: which VMs to migrate so that load is even, kept under a name. `weft rebalance apply PLAN` carries it out,
`undo PLAN` brings everything back, `list` shows what there is."""

from __future__ import annotations

import secrets
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.output.formats import print_data, print_items, print_list
from weft.cli.output.table import make_columns
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.cli.wait.finish import finish_one
from weft.kinds.rebalance_plan import MOST_CONCURRENT, MOST_MIGRATIONS, REBALANCE_PLAN
from weft.kinds.record import Kind
from weft.objects.quantity import format_bytes, format_duration, parse_bytes

_ACTS = ("plan", "apply", "undo", "list")
_TITLES = ("WORKLOAD!", "PROJECT", "FROM", "TO", "BYTES>", "TIME>", "WHY~")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["names"], nargs=-1, metavar="[PLAN]", shell_complete=complete_name("rebalanceplan")),
        click.Option(
            ["--moves"],
            type=click.IntRange(1, MOST_MIGRATIONS),
            metavar="N",
            help="With plan: the most migrations. [20]",
        ),
        click.Option(["--bytes"], metavar="SIZE", help="With plan: the most that they transfer together, like 200G."),
        click.Option(
            ["--concurrent"],
            type=click.IntRange(1, MOST_CONCURRENT),
            metavar="N",
            help="With plan: how many migrate at the same time. [2]",
        ),
        *options.table(),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(
    session: Session,
    kind: Kind | None,
    act: str,
    names: tuple[str, ...],
    moves: int | None,
    bytes: str | None,
    concurrent: int | None,
) -> int | None:
    if act != "plan" and (moves, bytes, concurrent) != (None, None, None):
        raise usage("--moves, --bytes and --concurrent go with plan", "weft rebalance plan --moves 10")
    if act in ("apply", "undo"):
        if len(names) != 1:
            raise usage(f"{act} takes the name of a plan", "weft rebalance list shows them")
        word = "start" if act == "apply" else "undo"
        obj = session.client.verb(REBALANCE_PLAN.name, names[0], word, {})
        return finish_one(session, Target(REBALANCE_PLAN, names[0]), obj, word)
    if act == "list":
        if names:
            raise usage("list takes no name", f"weft describe rebalanceplan/{names[0]}")
        print_list(session, session.client.list(REBALANCE_PLAN.name).items, [REBALANCE_PLAN])
        return None
    return _plan(session, names, moves, bytes, concurrent)


def _plan(
    session: Session, names: tuple[str, ...], moves: int | None, size: str | None, concurrent: int | None
) -> int | None:
    if len(names) > 1:
        raise usage("plan takes one name at most", "weft rebalance plan")
    if size is not None and not parse_bytes(size, "--bytes"):
        raise usage("--bytes 0 would leave nothing to migrate", "leave it out for no limit")
    asked: dict[str, Any] = {"subject": "rebalance"}
    asked |= {"migrations": moves} if moves is not None else {}
    asked |= {"bytes": parse_bytes(size, "--bytes")} if size is not None else {}
    found = ask(session, "report", asked)["status"]
    scores = {field: found[field] for field in ("score_before", "score_after")}
    answer = {**scores, "moves": found["steps"]}
    name = ""
    if answer["moves"]:
        name = names[0] if names else f"plan-{secrets.token_hex(3)}"
        spec = {**scores, "steps": found["steps"], **({"concurrent": concurrent} if concurrent is not None else {})}
        session.client.create({"kind": REBALANCE_PLAN.name, "name": name, "spec": spec})
    if session.is_document:
        print_data(session, {"plan": name or None, **answer})
        return None
    rows = [
        [
            one["workload"],
            one["project"],
            one["from"],
            one["to"],
            format_bytes(one["bytes"]),
            format_duration(one["seconds"]),
            one["reason"],
        ]
        for one in answer["moves"]
    ]
    nothing = "within these limits no migration evens out load" if len(asked) > 1 else "load is even enough"
    print_items(session, answer["moves"], [name] if name else [], (make_columns(*_TITLES), rows), nothing)
    if session.is_data:
        return None
    before, after = answer["score_before"], answer["score_after"]
    if name:
        print(f"\nrebalanceplan/{name}: score {before:.2f} → {after:.2f} (lower is better)")
        session.notify(f"weft rebalance apply {name}   carries it out; undo {name} brings everything back")
    return None
