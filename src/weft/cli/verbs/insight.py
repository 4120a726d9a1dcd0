"""`weft insight vm/web [--plot]`: what the history of a workload or a node says of it. `weft insight list`: of all."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.completion import complete_target
from weft.cli.command.grammar import PLACED, Entry
from weft.cli.command.lookup import find_one
from weft.cli.command.target import Target, usage
from weft.cli.insight.description import describe_profile
from weft.cli.insight.history import WEEK_SECONDS, fetch_week
from weft.cli.insight.plot import draw_fold, draw_week
from weft.cli.metrics.plot import format_value
from weft.cli.output.formats import print_data, print_items
from weft.cli.output.table import make_columns
from weft.cli.output.terminal import find_width
from weft.cli.session import Session
from weft.kinds.profile import CLASSES, NODE_PROFILE, WORKLOAD_PROFILE, name_profile
from weft.kinds.record import Kind, Object
from weft.objects.errors import Forbidden, NotFound, WeftError
from weft.objects.quantity import format_age

ABLE = (*PLACED, "function", "node")
WIDTH, HEIGHT, FOLD_HEIGHT = 80, 8, 5
_TITLES = ("WORKLOAD!", "CLASS!", "CYCLES~", "STABILITY>", "IN 1 H>", "UNUSUAL>", "LOOKED AT>")


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params = [
        click.Argument(["words"], nargs=-1, metavar="list|KIND/NAME", shell_complete=complete_target(None, ABLE)),
        click.Option(["--plot"], is_flag=True, help="Draw the last week, the day that is expected, and each cycle."),
        click.Option(["--class", "class_"], type=click.Choice(CLASSES), help="With list: only of this class."),
        options.all_projects(),
        *options.table(),
        options.output(),
    ]
    summary = f"{entry.summary}: its class, cycles, forecasts, what goes with it, and what was unusual."
    return options.build(verb, summary, _run, kind, params)


def _run(session: Session, kind: Kind | None, words: tuple[str, ...], plot: bool, class_: str | None) -> None:
    if words in ((), ("list",)):
        if plot:
            raise usage("--plot draws one workload", "weft insight vm/web --plot")
        _list(session, class_)
        return
    if words[0] == "list":
        raise usage(
            "list takes no names", f"weft insight {words[1]} shows one; --class and --sort narrow and order the list"
        )
    _refuse_flags_of_list(session, class_)
    if plot and len(words) > 1 and words[-1].endswith((".svg", ".png", ".pdf")):
        raise usage("--plot draws on the terminal: it takes no file", f"weft insight {words[0]} --plot")
    if plot and session.is_data:
        raise usage("--plot draws, and -o prints data", "leave one of them out")
    target = find_one(session, kind, words, ABLE, "give one workload or node", "weft insight list shows all")
    if ":" in target.name:
        whole = target.name.partition(":")[0]
        raise usage(f"{target.what}: a profile is of all versions together", f"weft insight {target.kind.name}/{whole}")
    obj = session.client.get(target.kind.name, target.name)
    profile = _get(session, target, obj)
    answer = read_profile(profile)
    if session.is_data:
        print_data(session, answer)
        return
    now = session.clock.now()
    print("\n".join(describe_profile(target.what, answer, now)))
    if plot:
        _draw(session, target, obj, answer, now)


def _refuse_flags_of_list(session: Session, class_: str | None) -> None:
    if class_ is not None:
        raise usage("--class goes with list", f"weft insight list --class {class_}")
    for flag, given in (
        ("--columns", session.columns),
        ("--sort", session.sort),
        ("--no-header", session.no_header),
        ("--all-projects", session.all_projects),
    ):
        if given:
            raise usage(f"{flag} goes with list", f"weft insight list {flag}")


def _get(session: Session, target: Target, obj: Object) -> Object:
    """Raises NotFound for one that has no profile yet; the same as everywhere for what there isn't, or what one may not see."""
    kind = WORKLOAD_PROFILE if obj.get("project") else NODE_PROFILE
    try:
        return session.client.get(kind.name, name_profile(target.kind.name, target.name))
    except NotFound:
        age = format_age(session.clock.now() - obj["created_at"])
        raise NotFound(
            f"{target.what} has no profile yet: it is {age} old",
            hint="a profile comes when it is five minutes old; tasks of jobs have none",
        ) from None


def read_profile(profile: Object) -> dict[str, Any]:
    """The answer for programs: whose it is, and all that its status has."""
    of = profile["spec"].get("workload") or profile["spec"]["node"]
    project = {"project": profile["project"]} if profile.get("project") else {}
    return {"kind": of["kind"], "name": of["name"], **project, **profile["status"]}


def _draw(session: Session, target: Target, obj: Object, answer: dict[str, Any], now: float) -> None:
    width = min(find_width(sys.stdout) or WIDTH, WIDTH)
    since = float(obj["created_at"])
    try:
        points = fetch_week(session.client, obj.get("project") or "", target.kind.name, target.name, since, now)
    except WeftError as problem:
        session.notify(f"no picture of the last week: {problem.message}")
        points = []
    if points:
        start = max(now - WEEK_SECONDS, min(since, points[0][0]), points[0][0])
        ahead = ", then what is expected (× with 80 % between ░)" if answer["prediction"] else ""
        print(f"\n{format_age(now - start)} until now{ahead}; {answer['unit']}")
        prediction = answer["prediction"] if now - start > 43_200 else _leave_out_day(answer["prediction"])
        print("\n".join(draw_week(points, start, now, prediction, answer["unit"], width, HEIGHT)))
    for pattern in answer["patterns"]:
        print(f"\n{pattern['type']}, folded: the median of all cycles; {answer['unit']}")
        print("\n".join(draw_fold(pattern, answer["unit"], width, FOLD_HEIGHT)))


def _leave_out_day(prediction: dict[str, Any]) -> dict[str, Any]:
    """Leave out the day: beside a few hours a day would take all the width."""
    return {name: one for name, one in prediction.items() if name != "24h"}


def _list(session: Session, class_: str | None) -> None:
    items = list(session.client.list(WORKLOAD_PROFILE.name, all_projects=session.all_projects).items)
    if session.all_projects:
        with contextlib.suppress(Forbidden):  # nodes are for those who may see all projects
            items += session.client.list(NODE_PROFILE.name).items
    found = [one for one in map(read_profile, items) if class_ in (None, one["signature"]["class"])]
    titles = ("PROJECT", *_TITLES) if session.all_projects else _TITLES
    now = session.clock.now()
    rows = [[*([one.get("project", "–")] if session.all_projects else []), *_row(one, now)] for one in found]
    empty = f"no workload is {class_}" if class_ else "no profiles yet: they come when workloads are five minutes old"
    print_items(session, found, [f"{one['kind']}/{one['name']}" for one in found], (make_columns(*titles), rows), empty)


def _row(one: dict[str, Any], now: float) -> Sequence[str]:
    signature, hour = one["signature"], one["prediction"].get("1h")
    sure = f" {signature['probability']:.0%}" if signature["class"] != "unknown" else ""
    return (
        f"{one['kind']}/{one['name']}",
        f"{signature['class']}{sure}",
        ", ".join(pattern["type"] for pattern in one["patterns"]) or "–",
        "–" if one["stability"] is None else f"{one['stability']:.2f}",
        format_value(hour["value"], one["unit"]) if hour else "–",
        f"{format_age(now - one['anomalies'][0]['at'])} ago" if one["anomalies"] else "–",
        f"{format_age(now - one['looked_at'])} ago" if one["looked_at"] else "–",
    )
