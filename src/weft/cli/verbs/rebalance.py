"""`weft rebalance plan`: which VMs to migrate so that load is even, kept under a name. `weft rebalance apply PLAN` carries it out,
`undo PLAN` brings everything back, `list` shows what there is. `auto on|off|status`: weft does it without being asked."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.output.formats import print_data, print_items, print_list
from weft.cli.output.local_time import localize
from weft.cli.output.table import make_columns
from weft.cli.placement.question import ask
from weft.cli.session import Session
from weft.cli.wait.finish import finish_one
from weft.kinds.fields.cells import dig
from weft.kinds.rebalance_plan import MOST_CONCURRENT, MOST_MIGRATIONS, REBALANCE_PLAN
from weft.kinds.rebalance_policy import ONLY_NAME, REBALANCE_POLICY, describe_budget
from weft.kinds.record import Kind, Object
from weft.objects.errors import Forbidden, NotFound
from weft.objects.quantity import format_bytes, format_duration, parse_bytes

_ACTS = ("plan", "apply", "undo", "list", "auto")
_EXAMPLE = "weft rebalance plan --moves"
_ON = "weft rebalance auto on"
_TITLES = ("WORKLOAD!", "PROJECT", "FROM", "TO", "BYTES>", "TIME>", "WHY~")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(
            ["names"], nargs=-1, metavar="[PLAN|on|off|status]", shell_complete=complete_name("rebalanceplan")
        ),
        click.Option(
            ["--moves", "migrations"],
            type=click.IntRange(0, MOST_MIGRATIONS),
            metavar="N",
            help="The most migrations of a plan [20], or with auto on those that begin within an hour [10].",
        ),
        click.Option(
            ["--bytes"],
            metavar="SIZE",
            help="The most that they transfer together, or with auto on within an hour, like 200G.",
        ),
        click.Option(
            ["--concurrent"],
            type=click.IntRange(1, MOST_CONCURRENT),
            metavar="N",
            help="How many migrate at the same time. [2, with auto 1]",
        ),
        click.Option(
            ["--per-hour"],
            type=click.IntRange(1, MOST_MIGRATIONS),
            metavar="N",
            help="With plan: the most migrations that begin within an hour.",
        ),
        *options.table(),
        *options.waits(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params)


def _run(session: Session, kind: Kind | None, act: str, names: tuple[str, ...], **limits: Any) -> int | None:
    given = {name: value for name, value in limits.items() if value is not None}
    if act == "auto":
        return _automate(session, names, given)
    if act != "plan" and given:
        raise usage(f"{act} takes no limits: they go with plan and auto on", f"{_EXAMPLE} 10")
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
    return _plan(session, names, given)


def _automate(session: Session, words: tuple[str, ...], given: dict[str, Any]) -> int | None:
    word = words[0] if words else "status"
    if len(words) > 1 or word not in ("on", "off", "status"):
        raise usage(f"auto takes on, off or status, not {' '.join(words)}", _ON)
    if word != "on" and given:
        raise usage(f"auto {word} takes no limits", _ON)
    if "per_hour" in given:
        raise usage("with auto, --moves is for each hour: leave out --per-hour", _ON)
    if word == "off":
        _switch_off(session)
        return None
    policy = _switch_on(session, given) if word == "on" else _find_policy(session)
    if session.is_document:
        print_data(session, {"on": policy is not None, **(policy or {})})
    elif policy is None:
        print("off: nothing is rebalanced automatically")
        session.notify("weft rebalance auto on   switches it on")
    else:
        print(f"on: at most {describe_budget(policy)}, {policy['spec']['concurrent']} at the same time")
        print(dig(policy, "status.message", "") or "the scheduler has not been asked yet")
    return None


def _find_policy(session: Session) -> Object | None:
    with contextlib.suppress(NotFound):
        return session.client.get(REBALANCE_POLICY.name, ONLY_NAME)
    return None


def _switch_on(session: Session, given: dict[str, Any]) -> Object:
    spec: dict[str, Any] = {
        name: given[flag]
        for name, flag in (("migrations_per_hour", "migrations"), ("concurrent", "concurrent"))
        if flag in given
    }
    if "bytes" in given:
        spec["bytes_per_hour"] = parse_bytes(given["bytes"], "--bytes")
    if spec.get("migrations_per_hour") == 0:
        raise usage("--moves 0 would leave nothing to migrate", "weft rebalance auto off   switches it off")
    if spec.get("bytes_per_hour") == 0:  # which in the spec means no limit: the opposite of what it says here
        hint = "weft rebalance auto off switches it off; without a limit: auto off, and auto on without --bytes"
        raise usage("--bytes 0 would leave nothing to migrate", hint)
    if _find_policy(session) is not None:
        return session.client.patch(REBALANCE_POLICY.name, ONLY_NAME, {"spec": spec})
    return session.client.create({"kind": REBALANCE_POLICY.name, "name": ONLY_NAME, "spec": spec})


def _switch_off(session: Session) -> None:
    with contextlib.suppress(NotFound):
        session.client.delete(REBALANCE_POLICY.name, ONLY_NAME)
    if session.is_document:
        print_data(session, {"on": False})
    else:
        print("off: nothing is rebalanced automatically; a plan that runs goes on (weft rebalance list)")


def _plan(session: Session, names: tuple[str, ...], given: dict[str, Any]) -> int | None:
    if len(names) > 1:
        raise usage("plan takes one name at most", "weft rebalance plan")
    asked: dict[str, Any] = {"subject": "rebalance"}
    if "bytes" in given:
        asked["bytes"] = parse_bytes(given["bytes"], "--bytes")
    for flag, limit in (("--moves", given.get("migrations")), ("--bytes", asked.get("bytes"))):
        if limit == 0:
            raise usage(f"{flag} 0 would leave nothing to migrate", "leave it out for the usual limit")
    if "migrations" in given:
        asked["migrations"] = given["migrations"]
    try:
        found = ask(session, "report", asked)["status"]
    except Forbidden as problem:
        hint = "it names workloads of all projects: it takes the role fabric-admin, which an administrator gives"
        raise Forbidden(f"you may not plan a rebalancing: {problem.message}", hint=hint) from None
    scores: dict[str, Any] = {field: found[field] for field in ("score_before", "score_after")}
    answer: dict[str, Any] = {**scores, "moves": found["steps"]}
    name = ""
    if answer["moves"]:
        name = names[0] if names else f"plan-{secrets.token_hex(3)}"
        limits: dict[str, Any] = {field: given[field] for field in ("concurrent", "per_hour") if field in given}
        spec = {**scores, "steps": found["steps"], "loads": found["loads"], **limits}
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
    if found.get("message"):
        nothing = "no migration of another VM evens out load"
        session.notify(f"{localize(found['message'])}   weft vm migrate NAME --to NODE   migrates it all the same")
    print_items(session, answer["moves"], [name] if name else [], (make_columns(*_TITLES), rows), nothing)
    if session.is_data:
        return None
    before, after = answer["score_before"], answer["score_after"]
    if name:
        print(f"\nrebalanceplan/{name}: score {before:.2f} → {after:.2f} (lower is better)")
        session.notify(f"weft rebalance apply {name}   carries it out; undo {name} brings everything back")
    return None
