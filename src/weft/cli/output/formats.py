"""Objects on standard output in the chosen form: rows, names, whole documents or parts of them."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
import msgspec

from weft.cli.output import rows as sheet
from weft.cli.output.table import Column
from weft.cli.output.terminal import find_width
from weft.cli.output.timestamp import render_moments
from weft.cli.session import Session
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME
from weft.objects.quantity import NONE, format_age, sort_key
from weft.objects.selector import Fields

Object = Mapping[str, Any]
MANIFEST = "manifest"  # for commands that show objects: their manifests, to be applied again
MANIFEST_PARTS = ("kind", "name", "project", "labels", "spec")
_AGES = ("AGE", "LAST USE")  # their cells are moments, in unix seconds; "" for never
_BEFORE_ITEMS, _AFTER_ITEMS = b'{\n  "items": [\n', b"\n  ]\n}"


def print_list(session: Session, items: Sequence[Object], kinds: Sequence[Kind], named: bool = False) -> None:
    """``items``, of ``kinds``, as a list: also one is ``{"items": […]}`` as data. Rows of several kinds, or
    with ``named``, name each object's kind."""
    if session.is_document:
        session.listed = [kind.name for kind in kinds]
        print_data(session, {"items": list(items)})
    elif session.output == "name":
        print_names(items)
    elif session.output == MANIFEST:
        print("---\n".join(map(write_manifest, items)), end="")
    else:
        for index, kind in enumerate(kinds):
            if index:
                print()
            shown = [item for item in items if item["kind"] == kind.name]
            print_table(session, name_kinds(shown) if named or len(kinds) > 1 else shown, kind)


def name_kinds(items: Sequence[Object]) -> list[Object]:
    """``items`` for rows that show no kind otherwise."""
    return [{**item, "name": f"{item['kind']}/{item['name']}"} for item in items]


def print_object(session: Session, item: Object) -> None:
    """One whole object."""
    if session.is_document:
        print_data(session, item)
    else:
        print_list(session, [item], [BY_NAME[item["kind"]]])


def write_manifest(item: Object) -> str:
    """The YAML that makes ``item`` once more: what is its own, without uid, revision and status."""
    own = {part: item[part] for part in MANIFEST_PARTS if item.get(part)}
    return write_yaml(msgspec.json.decode(render_moments(msgspec.json.encode(own))))


def print_data(session: Session, value: Any) -> None:
    """Any plain data, or lists of JSON (``msgspec.Raw``), as the requested document, JSON by default. Raises UsageError if rows
    were requested."""
    if session.output in ("csv", "markdown"):
        raise click.UsageError(f"-o {session.output} is for lists; this answer is one object: use -o json or yaml")
    document = _take_parts(session, render_moments(msgspec.json.encode(value)))
    if session.jq is None and session.output not in ("yaml", "jsonpath", "template"):
        _print_bytes([msgspec.json.format(document, indent=2), b"\n"])
    else:
        _print_document(session, document)


def takes_pages(session: Session) -> bool:
    """Whether a list is printed as JSON that can be made page by page, by ``write_page``."""
    return session.output == "json" and session.jq is None and not session.json_fields


def write_page(raws: Sequence[msgspec.Raw]) -> bytes:
    """Objects as JSON, as they stand in a list; nothing of what is around them."""
    if not raws:
        return b""
    page = msgspec.json.format(render_moments(msgspec.json.encode({"items": raws})), indent=2)
    return page[len(_BEFORE_ITEMS) : -len(_AFTER_ITEMS)]


def print_pages(pages: Sequence[bytes]) -> None:
    """A list, of the pages that ``write_page`` made, as ``print_data`` would."""
    full = [page for page in pages if page]
    if not full:
        _print_bytes([b'{\n  "items": []\n}\n'])
        return
    between = [piece for page in full for piece in (b",\n", page)]
    _print_bytes([_BEFORE_ITEMS, *between[1:], _AFTER_ITEMS, b"\n"])


def _print_bytes(pieces: Sequence[bytes]) -> None:
    """JSON on standard output, at once; a long one isn't made text and bytes again, where that is the same."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.encoding.lower() == "utf-8":
        out.flush()
        out.buffer.writelines(pieces)
    else:
        out.write(b"".join(pieces).decode())
    out.flush()


def print_line(session: Session, value: Any) -> None:
    """One of many pieces of data as it comes: a line of JSON, or the requested form."""
    document = _take_parts(session, render_moments(msgspec.json.encode(value)))
    if session.output == "yaml":
        print("---")
    if session.jq is None and session.output not in ("yaml", "jsonpath", "template"):
        print(document.decode(), flush=True)
    else:
        _print_document(session, document)
        sys.stdout.flush()


def _take_parts(session: Session, document: bytes) -> bytes:
    if not session.json_fields:
        return document
    select = importlib.import_module("weft.cli.output.select")
    return msgspec.json.encode(
        select.pick_fields(msgspec.json.decode(document), select.read_fields(session.json_fields), session.listed)
    )


def _print_document(session: Session, document: bytes) -> None:
    if session.jq is not None:
        for line in importlib.import_module("weft.cli.output.select").run_jq(session.jq, document):
            print(line)
        return
    value = msgspec.json.decode(document)
    if session.output == "yaml":
        sys.stdout.write(write_yaml(value))
    elif session.output == "template":
        module = importlib.import_module("weft.cli.output.select")
        sys.stdout.write(module.write_template(session.form.expression, value, session.listed))
    else:
        text = importlib.import_module("weft.cli.output.jsonpath").write_jsonpath(
            session.form.expression, value, session.listed
        )
        print(text, end="" if text.endswith("\n") else "\n")


def write_yaml(value: Any) -> str:
    text: str = importlib.import_module("weft.cli.manifest.yaml_text").write_yaml(value)
    return text


def list_names(items: Sequence[Object]) -> list[str]:
    return [f"{item['kind']}/{item['name']}" for item in items]


def print_names(items: Sequence[Object]) -> None:
    print("".join(f"{name}\n" for name in list_names(items)), end="")


def print_rows(session: Session, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """A table that is not of objects, with the requested columns and order. Raises UsageError for names, which its rows lack."""
    if session.output == "name":
        raise click.UsageError("-o name is for what has names; use -o csv -c COLUMN, or -o json")
    titles = [column.title for column in columns]
    if session.sort:
        word, backwards = _read_sort(session)
        (place,) = sheet.choose([word], titles, "--sort")
        rows = sorted(rows, key=lambda row: sort_key(row[place]), reverse=backwards)
    places = sheet.choose(sheet.split_words(session.columns), titles, "-c") or list(range(len(titles)))
    shown = [msgspec.structs.replace(columns[i], flexible=False) if session.columns else columns[i] for i in places]
    _print_rows(session, shown, [[row[i] for i in places] for row in rows])


def print_items(
    session: Session,
    items: Sequence[Any],
    names: Sequence[str],
    table: tuple[Sequence[Column], Sequence[Sequence[str]]],
    empty: str,
) -> None:
    """Print items that are not objects, as a list in the chosen form. ``table``: its columns and rows. ``empty`` is for people
    where there is nothing."""
    if session.is_document:
        print_data(session, {"items": items})
    elif session.output == "name":
        print("".join(f"{name}\n" for name in names), end="")
    elif not items and not session.is_data:
        session.notify(empty)
    else:
        print_rows(session, *table)


def print_table(session: Session, items: Sequence[Object], kind: Kind) -> None:
    """``items`` of one kind in its own columns; with objects of all projects, each one's project in front."""
    columns, rows = make_rows(session, items, kind)
    if not items:
        where = "" if session.all_projects or kind.scope == "fabric" else f" in project {session.client.project}"
        more = "; --shared lists those that other projects share" if where and kind.is_shareable else ""
        session.notify(f"no {kind.plural}{where}{more}")
        if not session.is_data:
            return
    _print_rows(session, columns, rows)


def make_rows(session: Session, items: Sequence[Object], kind: Kind) -> tuple[list[Column], list[list[str]]]:
    """The requested columns and rows of ``items``, in the requested order."""
    items = _sort_items(session, items, kind)
    known = {sheet.as_word(column.title): column for column in kind.display.columns}
    words = sheet.split_words(session.columns)
    if not words:
        words = [word for word, column in known.items() if not column.wide or session.output == "wide"]
        words = [*(["project"] if session.all_projects and kind.scope == "project" else []), *words]
    columns: list[Column] = []
    cells: list[list[str]] = []
    for word in words:
        column = known.get(sheet.as_word(word))
        if column is not None:
            flexible = column.flexible and not session.columns
            columns.append(Column(column.title, column.align == "right", flexible, column.keep))
            cells.append([_cell(session, column.title, column.value(item)) for item in items])
        else:
            columns.append(Column(word.upper()))
            cells.append([_find_field(item, word) for item in items])
            if set(cells[-1]) <= {NONE} and not _is_field(word, items, kind):
                raise sheet.no_column(word, [column.title for column in kind.display.columns], "-c")
    return columns, [list(row) for row in zip(*cells, strict=True)]


def _print_rows(session: Session, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    text = sheet.draw_rows(session.form, columns, rows, find_width(sys.stdout), session.paint)
    if text:
        print(text)


def _sort_items(session: Session, items: Sequence[Object], kind: Kind) -> Sequence[Object]:
    if not session.sort:
        return items
    word, backwards = _read_sort(session)
    column = next((each for each in kind.display.columns if sheet.as_word(each.title) == sheet.as_word(word)), None)
    if column is None:
        if not _is_field(word, items, kind):
            raise sheet.no_column(word, [each.title for each in kind.display.columns], "--sort")
        return sorted(items, key=lambda item: sort_key(_find_field(item, word)), reverse=backwards)
    if column.title in _AGES:  # the least age is the latest moment
        return sorted(items, key=lambda item: float(column.value(item) or 0), reverse=not backwards)
    return sorted(items, key=lambda item: sort_key(column.value(item)), reverse=backwards)


def _read_sort(session: Session) -> tuple[str, bool]:
    """Read the word to sort by, and whether the largest comes first: a ``-`` stands before it then."""
    return session.sort.removeprefix("-"), session.sort.startswith("-")


def _find_field(item: Object, path: str) -> str:
    return Fields(item).get(path.lstrip("."), "") or NONE


def _is_field(path: str, items: Sequence[Object], kind: Kind) -> bool:
    """Whether a path can lead somewhere in ``items``, of ``kind``, although none of them may have anything there just now."""
    path = path.lstrip(".")
    if any(path in Fields(item) for item in items):
        return True
    known: bool = importlib.import_module("weft.kinds.fields.path").is_short_path(kind, path)
    return known


def _cell(session: Session, title: str, text: str) -> str:
    return age_of(session, float(text or 0)) if title in _AGES else text


def age_of(session: Session, since: float) -> str:
    """How long ago ``since`` (unix seconds) was, in one unit."""
    return format_age(session.clock.now() - since) if since else NONE
