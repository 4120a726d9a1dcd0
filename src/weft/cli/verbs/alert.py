"""`weft alert list`: what fires now, in all projects that one may see. `weft alert silence node-silent --for 2h`: nobody is
notified meanwhile. `weft alert silences`, `weft alert unsilence NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from weft.cli.alert.rows import COLUMNS, describe_gaps, draw_alerts, list_alerts
from weft.cli.command import options
from weft.cli.command.completion import complete_name
from weft.cli.command.flags import refuse_twice
from weft.cli.command.grammar import Entry
from weft.cli.command.target import Target, usage
from weft.cli.output.formats import print_items, print_list
from weft.cli.session import Session
from weft.cli.wait.finish import finish_one
from weft.kinds.alert_rule import ALERT_RULE
from weft.kinds.record import Kind, Object
from weft.kinds.silence import SILENCE
from weft.objects.errors import Forbidden, NotFound
from weft.objects.identity import cut_name, new_uid
from weft.objects.quantity import format_time

_ACTS = ("list", "silence", "silences", "unsilence")
_ACT = "weft.alert-act"


# What each act takes, for its help, and the words after it.
_OPTIONS = {
    "list": ("rule", "state", "labels"),
    "silence": ("rule", "labels", "seconds", "comment"),
    "silences": ("rule",),
    "unsilence": (),
}
_WORDS = {"list": "", "silence": "[RULE]", "silences": "", "unsilence": "NAME|RULE"}
_HELP = {
    "list": "Show what fires, or is about to.",
    "silence": "Notify nobody of a rule's alerts, or of those with labels, for a time.",
    "silences": "Show the silences.",
    "unsilence": "End a silence, or all of a rule.",
}


class _WithActs(options.Plain):
    """Shows the help of the one act that was typed, if one was."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ACT] = next((arg for arg in args if arg in _ACTS), "")
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        act = ctx.meta.get(_ACT)
        if not act:
            super().format_usage(ctx, formatter)
            return
        formatter.write_usage(f"{ctx.command_path} {act}", f"[OPTIONS] {_WORDS[act]}".strip())

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        act = ctx.meta.get(_ACT)
        if not act:
            super().format_help_text(ctx, formatter)
            return
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(_HELP[act])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        act, every = ctx.meta.get(_ACT), self.params
        others = {name for names in _OPTIONS.values() for name in names} - set(_OPTIONS.get(act or "", ()))
        try:
            self.params = [param for param in every if not act or param.name not in others]
            super().format_options(ctx, formatter)
        finally:
            self.params = every


def command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["act"], type=click.Choice(_ACTS), default="list", metavar=f"[{'|'.join(_ACTS)}]"),
        click.Argument(["words"], nargs=-1, metavar="[NAME]"),
        click.Option(["--rule"], metavar="RULE", help="Only of this rule.", shell_complete=complete_name("alertrule")),
        click.Option(
            ["--state"], type=click.Choice(["firing", "pending"]), help="With list: only alerts in this state."
        ),
        click.Option(
            ["--label", "labels"],
            multiple=True,
            metavar="NAME=VALUE",
            help="Only alerts with this label; may be repeated.",
        ),
        click.Option(
            ["--for", "seconds"],
            type=options.Duration(least=1.0, unit=True),
            help="With silence: how long it holds, like 2h.",
        ),
        click.Option(["--comment"], default="", metavar="TEXT", help="With silence: why."),
        *options.table(),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _run, kind, params, command_class=_WithActs)


def _run(session: Session, kind: Kind | None, act: str, words: tuple[str, ...], **given: Any) -> int | None:
    if act in ("list", "silences") and words:
        raise usage(f"{act} takes no name", f"weft alert {act} --rule NAME")
    if act != "silence" and (given["seconds"] or given["comment"]):
        raise usage("--for and --comment go with silence", "weft alert silence RULE --for 2h")
    labels = _read_labels(given["labels"])
    match act:
        case "silence":
            return _silence(session, [*words, *([given["rule"]] if given["rule"] else [])], labels, given)
        case "silences":
            found = [one for one in _list(session, SILENCE) if given["rule"] in (None, one["spec"].get("rule"))]
            print_list(session, found, [SILENCE])
        case "unsilence":
            return _unsilence(session, words)
        case _:
            _show(session, given["rule"], given["state"], labels)
    return None


def _read_labels(pairs: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        if "=" not in pair:
            raise usage(f"--label: {pair!r} has no =", "write it like --label node=n1")
        name, _, value = pair.partition("=")
        refuse_twice(name, labels, "--label")
        labels[name] = value
    return labels


def _list(session: Session, kind: Kind) -> Sequence[Object]:
    """Those of the project that was given, else of all that one may see."""
    if session.given_project is None:
        try:
            found: Sequence[Object] = session.client.list(kind.name, all_projects=True).items
            session.all_projects = True
            return found
        except Forbidden:
            pass
    return session.client.list(kind.name).items


def _show(session: Session, rule: str | None, state: str | None, labels: dict[str, str]) -> None:
    now, rules = session.clock.now(), [one for one in _list(session, ALERT_RULE) if rule in (None, one["name"])]
    if rule is not None and not rules:
        raise NotFound(f"there is no alert rule {rule}", hint="weft alertrule list -A")
    alerts = [
        one
        for one in list_alerts(rules, _list(session, SILENCE), now)
        if state in (None, one["state"]) and labels.items() <= one["labels"].items()
    ]
    names = [f"{one['project']}/{one['rule']}" for one in alerts]
    empty = "no alerts" if rules else "no alerts, for there are no alert rules: weft alertrule create NAME --expr …"
    first = 0 if session.all_projects else 1  # of one project, its name says nothing
    rows = [row[first:] for row in draw_alerts(alerts, now)]
    print_items(session, alerts, names, (COLUMNS[first:], rows), empty)
    for line in describe_gaps(rules):
        session.notify(line)


def _silence(session: Session, words: list[str], labels: dict[str, str], given: dict[str, Any]) -> int:
    if len(words) > 1 or not (words or labels):
        raise usage("name one rule, or labels", "weft alert silence RULE --for 2h --comment TEXT")
    if not given["seconds"]:
        raise usage("say how long: a silence has an end", f"weft alert silence {' '.join(words) or '…'} --for 2h")
    rule = words[0] if words else ""
    project = _find_project(session, rule) if rule else session.given_project
    until = session.clock.now() + given["seconds"]
    name = cut_name(rule or "labels", f"-{new_uid()[:8]}")
    spec = {"rule": rule, "labels": labels, "until": until, "comment": given["comment"]}
    manifest = {"kind": SILENCE.name, "name": name, "spec": spec} | ({"project": project} if project else {})
    made = session.client.create(manifest)
    what = " ".join([rule or "all rules", *(f"{key}={value}" for key, value in labels.items())])
    line = f"nobody is notified of {what} until {format_time(until)}"
    return finish_one(session, Target(SILENCE, name), made, "create", line)


def _find_project(session: Session, rule: str) -> str | None:
    """Find the rule's project. Raises NotFound; UsageError if it may be meant in several projects."""
    if session.given_project is not None:
        return session.given_project
    projects = sorted(str(one["project"]) for one in _list(session, ALERT_RULE) if one["name"] == rule)
    if not projects:
        raise NotFound(f"there is no alert rule {rule}", hint="weft alertrule list -A")
    if len(projects) > 1 and session.client.project not in projects:
        raise usage(f"projects {', '.join(projects)} have a rule {rule}", f"weft alert silence {rule} -p PROJECT …")
    return session.client.project if session.client.project in projects else projects[0]


def _unsilence(session: Session, words: tuple[str, ...]) -> int:
    """End a silence by its name, or all silences of a rule."""
    if len(words) != 1:
        raise usage("name one silence, or one rule", "weft alert unsilence NAME, see weft alert silences")
    silences = _list(session, SILENCE)
    found = [one for one in silences if one["name"] == words[0].removeprefix(f"{SILENCE.name}/")]
    found = found or [one for one in silences if one["spec"].get("rule") == words[0]]
    if not found:
        raise NotFound(f"no silence and no silenced rule has the name {words[0]}", hint="weft alert silences")
    for one in found:
        session.client.delete(SILENCE.name, one["name"], project=one["project"], uid=one["uid"])
        session.notify(f"silence/{one['name']}  removed")
    return 0
