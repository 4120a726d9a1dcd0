"""Verbs of functions: versions, aliases, dead letters, endpoints, figures."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from weft.cli.command import options
from weft.cli.command.flags import refuse_twice
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one, find_targets
from weft.cli.output.formats import age_of, print_data, print_items, print_names, print_object
from weft.cli.output.table import Column, draw_table, make_columns
from weft.cli.session import Session
from weft.cli.stream.client import exchange
from weft.client.function_endpoint import act_on_dead_letters, find_endpoint, keep_ca, list_dead_letters
from weft.kinds.record import Kind
from weft.kinds.registry import find_kind
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.quantity import format_age, format_bytes


def alias_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft function alias thumb prod 3`, `… prod 3=0.9 4=0.1`, `… prod --remove`; alone it lists them."""
    metavar = "NAME [ALIAS [VERSION | VERSION=SHARE...]]"
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar=metavar if kind else f"function/{metavar}"),
        click.Option(["--remove"], is_flag=True, help="Remove the alias."),
        options.output(),
    ]
    return options.build(
        verb, "Name versions of a function: list aliases, set one, or remove one.", _alias, kind, params
    )


def _alias(session: Session, kind: Kind | None, words: tuple[str, ...], remove: bool) -> int:
    (target,) = find_targets(session, kind, words[:1], ("function",))
    name, *weights = words[1:] or ("",)
    if remove and (not name or weights):
        raise click.UsageError("--remove needs the function and one alias")
    if name and not weights and not remove:
        raise click.UsageError("the version is missing: give its number, or two with shares: 3=0.9 4=0.1")
    function = session.client.get("function", target.name)
    if not name:
        return _show(session, function)
    if remove and name not in function["spec"]["aliases"]:
        raise NotFound(f'{target.what} has no alias "{name}"', hint=f"weft function alias {target.name}")
    aim = None if remove else _read_weights(weights)
    # Maps of a spec are merged: keys to remove are set to null.
    before = function["spec"]["aliases"].get(name) or {}
    change = aim if aim is None else {**dict.fromkeys(before), **aim}
    spec = {"generation": function["generation"], "spec": {"aliases": {name: change}}}
    changed = session.client.patch("function", target.name, spec)
    if session.is_data:
        return _show(session, changed)
    print(
        f"{target.what}  {name} " + ("removed" if aim is None else f"is {_describe(changed['spec']['aliases'][name])}")
    )
    return 0


def _read_weights(words: list[str]) -> dict[str, float]:
    """``3``, or ``3=0.9 4=0.1``: shares by number. Raises UsageError."""
    if len(words) == 1 and "=" not in words[0]:
        return {words[0].lstrip(":"): 1.0}
    shares: dict[str, float] = {}
    for word in words:
        number, _, share = word.partition("=")
        refuse_twice(number, shares, "versions")
        try:
            shares[number] = float(share.removesuffix("%")) / (100 if share.endswith("%") else 1)
        except ValueError:
            raise click.UsageError(f"{word!r}: write VERSION=SHARE, like 3=0.9 4=0.1") from None
    return shares


def _describe(weights: dict[str, float]) -> str:
    if len(weights) == 1:
        return f"version {next(iter(weights))}"
    return ", ".join(f"version {number} for {share:.0%}" for number, share in weights.items())


def _show(session: Session, function: dict[str, Any]) -> int:
    aliases: dict[str, dict[str, float]] = function["spec"]["aliases"]
    items = [{"alias": alias, "versions": aliases[alias]} for alias in sorted(aliases)]
    names = [f"{function['name']}:{alias}" for alias in sorted(aliases)]
    rows = [[alias, _describe(aliases[alias])] for alias in sorted(aliases)]
    columns = make_columns("ALIAS", "STANDS FOR~")
    print_items(session, items, names, (columns, rows), f"function/{function['name']} has no aliases")
    return 0


def publish_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft function publish thumb`: keep its present state as thumb:1, thumb:2, …"""
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--description"], metavar="TEXT", default="", help="What is new in this version."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}: NAME:1, NAME:2, …", _publish, kind, params)


def _publish(session: Session, kind: Kind | None, words: tuple[str, ...], description: str) -> int:
    target = find_one(session, kind, words, (find_kind("function").name,), "give one function")
    made = session.client.verb(target.kind.name, target.name, "publish", {"description": description})
    if session.output == "name":
        print_names([made])
    elif session.is_data:
        print_object(session, made)
    else:
        print(f"{target.what}  published as {target.name}:{made['spec']['number']}")
    return 0


_SHOWN = 60  # characters of an error or an event


def dead_letters_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft function dead-letters thumb`: events that failed for good; `--redrive` runs them again, `--purge` deletes them."""
    params: list[click.Parameter] = [
        options.targets(kind, many=False, able=entry.kinds),
        click.Option(["--redrive"], is_flag=True, help="Retry all of them, as new invocations."),
        click.Option(["--purge"], is_flag=True, help="Delete all of them."),
        options.output(),
    ]
    return options.build(verb, f"{entry.summary}.", _dead_letters, kind, params)


def _dead_letters(session: Session, kind: Kind | None, words: tuple[str, ...], redrive: bool, purge: bool) -> int:
    target = find_one(session, kind, words, ("function",), "give one function")
    if redrive and purge:
        raise click.UsageError("give either --redrive or --purge, not both")
    if redrive or purge:
        count = act_on_dead_letters(session.client, target.name, "redrive" if redrive else "purge")
        if session.is_document:
            print_data(session, {"count": count})
        else:
            print(f"{target.what}  {count} " + ("run again" if redrive else "purged"))
        return 0
    letters = list_dead_letters(session.client, target.name)
    names = [letter["id"] for letter in letters]
    rows = [[one["id"], age_of(session, one["dead_at"]), str(one["tries"]), *_describe_event(one)] for one in letters]
    columns = make_columns("ID", "AGE>", "TRIES>", "ERROR", "EVENT")
    print_items(session, letters, names, (columns, rows), f"{target.what} has no dead letters")
    return 0


def _describe_event(letter: dict[str, Any]) -> tuple[str, str]:
    return _cut(f"{letter['error_type']}: {letter['error']}"), _cut(letter.get("payload", "(binary)"))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def endpoint_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft function endpoint`: where functions are invoked; `-o env`: as variables for AWS's SDKs; with a NAME: that function's
    URL."""
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="[NAME]"),
        options.output("env"),
    ]
    return options.build(verb, "Show where functions are invoked over HTTP and by AWS SDKs.", _endpoint, kind, params)


def _endpoint(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    targets = find_targets(session, kind, words, ("function",)) if words else []
    if len(targets) > 1:
        raise click.UsageError("give one function")
    client = session.client
    endpoint = find_endpoint(client)
    if targets:
        name = targets[0].name
        http = client.get("function", name)["spec"]["http"]
        if http == "none":
            raise InvalidInput(
                f"function/{name} has no HTTP trigger",
                field="spec.http",
                hint=f"weft function set {name} --http token, or --http open",
            )
        reply = {"url": f"{endpoint.url}/url/{client.project}/{name}/", "http": http}
        return _print(session, reply, reply["url"])
    variables = {
        "AWS_ENDPOINT_URL_LAMBDA": endpoint.url,
        "AWS_DEFAULT_REGION": endpoint.region,
        "AWS_CA_BUNDLE": str(keep_ca(client.context.ca, session.environ)),
    }
    if session.output == "env":
        for variable, value in variables.items():
            print(f"{variable}={shlex.quote(value)}")
        return 0
    return _print(session, {"url": endpoint.url, "region": endpoint.region, "variables": variables}, endpoint.url)


def _print(session: Session, shown: dict[str, object], line: object) -> int:
    if session.is_document:
        print_data(session, shown)
    else:
        print(line)
    return 0


_TIMES = (("duration", "its code"), ("latency", "round trip"), ("init", "starting"))


def metrics_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    """`weft function metrics thumb`: its invocations, errors, durations and starts."""
    params: list[click.Parameter] = [options.targets(kind, many=False, able=entry.kinds), options.output()]
    return options.build(verb, "Show a function's invocations, errors, durations and starts.", _metrics, kind, params)


def _metrics(session: Session, kind: Kind | None, words: tuple[str, ...]) -> int:
    target = find_one(session, kind, words, ("function",), "give one function")
    answer, _ = exchange(session, "function", target.name, "metrics", {})
    reply: dict[str, Any] = json.loads(answer)
    session.client.http.on_away(reply["away"])
    if session.is_data:
        print_data(session, reply)
        return 0
    print("\n".join(describe_metrics(reply, session.clock.now())))
    return 0


def describe_metrics(figures: dict[str, Any], now: float) -> list[str]:
    """The lines for people."""
    invocations, errors = figures["invocations"], sum(figures["errors"].values())
    lines = [
        f"{figures['function']}  in the last {format_age(now - figures['since'])}",
        f"  invocations  {invocations}, {figures['concurrent']} running now, {figures['most_concurrent']} at most",
        f"  errors       {errors}{_kinds(figures['errors'])}",
        f"  throttled    {figures['throttles']}",
        f"  refused      {sum(figures['refused'].values())}{_kinds(figures['refused'])}",
        f"  lost         {figures['lost']}",
        f"  starts       {_list(figures['starts']) or 'none'}{_share_cold(figures['starts'])}",
        f"  most memory  {format_bytes(figures['most_memory'])}",
    ]
    columns = (Column("MILLISECONDS"), *(Column(title, right=True) for title in ("MEAN", "P50", "P90", "P99", "MOST")))
    rows = [
        [words, *(f"{figures[name][part]:.1f}" for part in ("mean", "p50", "p90", "p99", "most"))]
        for name, words in _TIMES
    ]
    lines += ["", draw_table(columns, rows)]
    if figures["instances"]:
        columns = (
            Column("NODE"),
            *(Column(title, right=True) for title in ("RUNNING", "IDLE", "READY")),
            Column("PREPARED"),
        )
        rows = [
            [
                there["node"],
                *(str(there[part]) for part in ("busy", "idle", "ready")),
                "yes" if there["prepared"] else "no",
            ]
            for there in figures["instances"]
        ]
        lines += ["", draw_table(columns, rows)]
    return lines


def _share_cold(starts: dict[str, int]) -> str:
    """How many of them waited for an instance to come up."""
    cold, whole = starts.get("cold", 0) + starts.get("clone", 0), sum(starts.values())
    return f" ({100 * cold / whole:.0f} % waited for an instance to start)" if cold else ""


def _kinds(counts: dict[str, int]) -> str:
    return f": {_list(counts)}" if counts else ""


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda one: -one[1]) if count)
