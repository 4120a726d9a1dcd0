"""`weft device set fridge-1 setpoint=4 --expires 30s`: which values a device's properties shall have. With flags of fields in
place of values, it changes the device's own fields as every ``set`` does. `weft device watch`: what devices report, as it
changes."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from weft.cli.command import options
from weft.cli.command.flags import make_flags, read_scalar
from weft.cli.command.grammar import Entry
from weft.cli.command.lookup import find_one, find_targets
from weft.cli.command.target import usage
from weft.cli.output.formats import print_line
from weft.cli.output.local_time import render_time
from weft.cli.output.terminal import clean
from weft.cli.session import Session
from weft.cli.verbs.list import follow_kinds
from weft.cli.verbs.set import change, change_options
from weft.cli.wait.finish import Done, finish
from weft.kinds.device import DEVICE
from weft.kinds.device_model import DEVICE_MODEL
from weft.kinds.fields.cells import dig
from weft.kinds.fields.device.affordance import Value
from weft.kinds.record import Kind
from weft.objects.errors import InvalidInput, NotFound
from weft.objects.quantity import parse_duration

_OF_VALUES = re.compile(r"^(?:spec|input)\.desired(?:\.|: )")


def set_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    fields = make_flags(DEVICE)
    params: list[click.Parameter] = [
        click.Argument(["words"], nargs=-1, metavar="NAME [PROPERTY=VALUE|PROPERTY-]..."),
        click.Option(["--expires"], metavar="DURATION", help="After so long the values are desired no more, like 30s."),
        *fields,
        *change_options(DEVICE, fields),
    ]
    summary = "Say which values a device's properties shall have (PROPERTY- takes one away), or change its own fields."
    return options.build(verb, summary, _set, kind, params)


def _set(session: Session, kind: Kind | None, words: tuple[str, ...], expires: str | None, **given: Any) -> int:
    pairs = [word for word in words if "=" in word or word.endswith("-")]
    target = find_one(session, kind or DEVICE, [word for word in words if word not in pairs], (), "give one device")
    dry_run, fields = given.pop("dry_run"), {key: value for key, value in given.items() if value not in (None, ())}
    if not pairs:
        if expires is not None:
            raise usage(
                "--expires: no value is given that could expire", "weft device set NAME property=value --expires 30s"
            )
        return change(session, target, given, dry_run=dry_run, restart=False)
    if fields:
        raise usage("values of properties and the device's own fields are set apart", "write two commands")
    if dry_run:
        raise usage("--dry-run goes with the device's own fields", "leave it out: a value that won't do is refused")
    if twice := find_twice(pairs):
        raise usage(f"{twice}: it is given twice", "give each property once")
    if nameless := next((pair for pair in pairs if pair[0] in "=-"), ""):
        raise usage(f"{nameless[:60]}: it names no property", "write PROPERTY=VALUE, or PROPERTY- to take a value away")
    types = _find_types(session, target.name)
    body: dict[str, Any] = {"desired": dict(read_pair(pair, types) for pair in pairs)}
    if expires is not None:
        body["expires_seconds"] = parse_duration(expires, "--expires")
    try:
        made = session.client.verb(DEVICE.name, target.name, "set", body)
    except InvalidInput as problem:
        problem.message = _OF_VALUES.sub("", problem.message)  # properties were typed, no field
        raise
    wanted, ended = ([pair for pair in pairs if ("=" in pair) is is_set] for is_set in (True, False))
    said = [f"desired: {', '.join(wanted)}"] if wanted else []
    said += [f"no longer desired: {', '.join(pair[:-1] for pair in ended)}"] if ended else []
    return finish(session, [Done(target, made, "set", "; ".join(said))], [])


def read_pair(pair: str, types: dict[str, str]) -> tuple[str, Value | None]:
    """A property and its value: JSON, or text where it is none or the property is a string; None for ``PROPERTY-``."""
    name, equals, written = pair.partition("=")
    if not equals:
        return name[:-1], None
    return name, written if types.get(name) == "string" else read_scalar(written)


def find_twice(pairs: Sequence[str]) -> str:
    """The first property that several of the ``pairs`` are about; "" if there is none."""
    names = [read_pair(pair, {})[0] for pair in pairs]
    return next((name for at, name in enumerate(names) if name in names[:at]), "")


def _find_types(session: Session, name: str) -> dict[str, str]:
    """The types of the device's properties; none where its model can't be read: the server checks the values anyhow."""
    device = session.client.get(DEVICE.name, name)
    model = dig(device, "spec.model", "")
    try:
        found = session.client.get(DEVICE_MODEL.name, model) if model else {}
    except NotFound:
        return {}
    return {name: str(one.get("type", "")) for name, one in (dig(found, "spec.properties") or {}).items()}


def watch_command(verb: str, entry: Entry, kind: Kind | None) -> click.Command:
    params: list[click.Parameter] = [
        click.Argument(["names"], nargs=-1, metavar="[NAME]..."),
        *options.selectors(kind),
        options.output(),
    ]
    summary = "Show what devices (all, or those named) report, a line for each value that changes, until Ctrl-C."
    return options.build(verb, summary, _watch, kind, params)


def _watch(
    session: Session, kind: Kind | None, names: tuple[str, ...], labels: tuple[str, ...], fields: tuple[str, ...]
) -> None:
    chosen = {target.name for target in find_targets(session, kind or DEVICE, names)} if names else set()
    for name in chosen:
        session.client.get(DEVICE.name, name)  # one that isn't there would be waited for in silence
    selected = {"all_projects": session.all_projects, "labels": ",".join(labels), "fields": ",".join(fields)}
    known: dict[str, dict[str, Any]] = {}
    for type_, item in follow_kinds(session, [DEVICE], selected):
        if not item or (chosen and item["name"] not in chosen):
            continue
        if type_ == "delete":
            known.pop(item["uid"], None)
            session.notify(f"device/{item['name']} was deleted")
            continue
        for one in find_changes(known.get(item["uid"], {}), item):
            if session.is_document:
                print_line(session, one)
            else:
                name, value = one["property"], clean(msgspec.json.encode(one["value"]).decode())
                seen = value if one["value"] is not None else "is not reported any more"
                what = f"{name}  {seen}" if name else f"is {one['phase']}"
                print(f"{_show_seen(one['last_seen'])}  {one['device']}  {what}")
        known[item["uid"]] = item
        sys.stdout.flush()


def find_changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A device's properties whose reported values are others than ``before`` (an object; {}: not known), null for one that isn't
    reported any more; before them its phase, with the property null, if that changed."""
    old, new = dig(before, "status") or {}, dig(now, "status") or {}
    was, reported = old.get("reported") or {}, new.get("reported") or {}
    shown = {"device": now["name"], "last_seen": new.get("last_seen"), "phase": new.get("phase")}
    if new.get("phase") != old.get("phase"):
        yield {**shown, "property": None, "value": None}
    for name in (*reported, *(name for name in was if name not in reported)):
        if name not in was or was[name] != reported.get(name):
            yield {**shown, "property": name, "value": reported.get(name)}


def _show_seen(at: float | None) -> str:
    return "not yet seen" if at is None else render_time(at, seconds=True)
