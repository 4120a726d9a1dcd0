"""Objects on standard output in the format that was asked for: table, wide, json, yaml, name, manifest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from weft.cli.output.table import Column, draw_table
from weft.cli.session import Session
from weft.cli.terminal import find_width
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.quantity import format_age

Object = Mapping[str, Any]
MANIFEST = "manifest"  # for commands that show objects: what people wrote of them, to be applied again
MANIFEST_PARTS = ("kind", "name", "project", "labels", "spec")


def print_list(session: Session, items: Sequence[Object], kinds: Sequence[Kind]) -> None:
    """``items``, of ``kinds``, as a list: also one is ``{"items": […]}`` as data."""
    if session.output in ("json", "yaml"):
        print_data({"items": list(items)}, session.output)
    elif session.output == "name":
        print_names(items)
    elif session.output == MANIFEST:
        print("---\n".join(map(write_manifest, items)), end="")
    else:
        for index, kind in enumerate(kinds):
            if index:
                print()
            print_table(session, [item for item in items if item["kind"] == kind.name], kind)


def print_object(session: Session, item: Object) -> None:
    """One whole object."""
    if session.output in ("json", "yaml"):
        print_data(item, session.output)
    else:
        print_list(session, [item], [BY_NAME[item["kind"]]])


def write_manifest(item: Object) -> str:
    """The YAML that makes ``item`` once more: what is its own, without uid, revision and status."""
    return _write_yaml({part: item[part] for part in MANIFEST_PARTS if item.get(part)})


def print_data(value: Any, form: str) -> None:
    """Any plain data as JSON or YAML."""
    if form == "yaml":
        sys.stdout.write(_write_yaml(value))
    else:
        print_json(value)


def print_json(value: Any) -> None:
    """Plain data, or what is JSON already (``msgspec.Raw``), as JSON that people can read."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _write_yaml(value: Any) -> str:
    text: str = importlib.import_module("weft.cli.manifest.yaml_text").write_yaml(value)
    return text


def print_names(items: Sequence[Object]) -> None:
    for item in items:
        print(f"{item['kind']}/{item['name']}")


def print_table(session: Session, items: Sequence[Object], kind: Kind) -> None:
    """``items`` of one kind in its own columns; with objects of all projects, each one's project in front."""
    if not items:
        where = "" if session.all_projects or kind.scope == "fabric" else f" in project {session.client.project}"
        session.say(f"no {kind.plural}{where}")
        return
    shown = [column for column in kind.columns if not column.wide or session.output == "wide"]
    columns = [Column(c.title, c.align == "right", c.flexible) for c in shown]
    rows = [[_cell(session, c.title, c.value(item)) for c in shown] for item in items]
    if session.all_projects and kind.scope == "project":
        columns.insert(0, Column("PROJECT"))
        rows = [[item.get("project") or "–", *row] for item, row in zip(items, rows, strict=True)]
    print(draw_table(columns, rows, find_width(sys.stdout), session.paint))


def _cell(session: Session, title: str, text: str) -> str:
    return age_of(session, float(text)) if title == "AGE" else text


def age_of(session: Session, since: float) -> str:
    """How long ago ``since`` (unix seconds) was, in one unit."""
    return format_age(session.clock.now() - since) if since else "–"
