"""One list in every form that -o, -c, --sort, --json and --jq can give it."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec
import pytest

from weft.cli.output.ascii import make_plain, show_plainly
from weft.cli.output.form import read_form
from weft.cli.output.formats import print_line, print_list, print_object, print_rows
from weft.cli.output.jsonpath import write_jsonpath
from weft.cli.output.table import Column
from weft.cli.output.timestamp import render_moments
from weft.cli.session import Session
from weft.cli.verbs.list import list_kind
from weft.cli.verbs.top import choose_shown
from weft.client.listing import Listing, Read
from weft.contracts.clock import SystemClock
from weft.kinds.registry import BY_NAME
from weft.objects.errors import InvalidInput, WeftError
from weft.objects.quantity import sort_key

VM = BY_NAME["vm"]


def make(name: str, memory: int, node: str, created_at: float, **labels: str) -> dict[str, Any]:
    spec = {"image": "tiny", "cpu": 1, "memory": memory << 20, "networks": ["default"]}
    status = {"phase": "Running", "node": node, "address": f"10.0.0.{memory % 250}", "message": ""}
    about = {"kind": "vm", "name": name, "project": "default", "uid": name, "labels": labels}
    return {**about, "created_at": created_at, "spec": spec, "status": status}


ITEMS = [
    make("web-10", 512, "n2", 1795279033.0, app="shop"),
    make("web-9", 2048, "n1", 1795279035.5),
    make("db|1", 96, "n1", 1795279034.0),
]
Shown = Callable[..., str]


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Shown:
    def run(form: str = "table", items: list[dict[str, Any]] = ITEMS, **settings: Any) -> str:
        session = Session(SystemClock, {})
        session.given_form = read_form(form)
        for name, value in settings.items():
            setattr(session, name, value)
        print_list(session, items, [VM])
        return capsys.readouterr().out

    return run


def test_csv_and_markdown_have_whole_cells_and_titles_unless_they_are_not_wanted(show: Shown) -> None:
    rows = show("csv", columns=("name,memory",)).splitlines()
    assert rows == ["NAME,MEMORY", "web-10,512 MiB", "web-9,2.0 GiB", "db|1,96 MiB"]
    assert show("csv,noheader", columns=("name",)).splitlines() == ["web-10", "web-9", "db|1"]
    assert show("markdown", columns=("name", "memory")).splitlines() == [
        "| NAME | MEMORY |",
        "| --- | ---: |",
        "| web-10 | 512 MiB |",
        "| web-9 | 2.0 GiB |",
        "| db\\|1 | 96 MiB |",
    ]
    assert show(no_header=True, columns=("name,node",)).splitlines() == ["web-10  n2", "web-9   n1", "db|1    n1"]


def names(text: str) -> list[str]:
    return text.split()


def test_rows_are_sorted_by_what_cells_mean_not_by_their_letters(show: Shown) -> None:
    def order(by: str) -> list[str]:
        return names(show(no_header=True, columns=("name",), sort=by))

    assert order("memory") == ["db|1", "web-10", "web-9"]
    assert order("-memory") == order("-spec.memory") == ["web-9", "web-10", "db|1"]
    assert order("name") == ["db|1", "web-9", "web-10"]
    assert order("age") == ["web-9", "db|1", "web-10"]
    assert order("labels.app") == ["web-10", "web-9", "db|1"], "what has none comes last"
    assert sort_key("1.5 GiB") > sort_key("900 MiB") and sort_key("10.0.0.9") < sort_key("10.0.0.11")


def test_any_field_can_be_a_column(show: Shown) -> None:
    rows = show("csv", columns=("name,labels.app,spec.image,project",)).splitlines()
    assert rows[:2] == ["NAME,LABELS.APP,SPEC.IMAGE,PROJECT", "web-10,shop,tiny,default"]
    assert rows[2] == "web-9,,tiny,default"


@pytest.mark.parametrize(("setting", "value"), [("columns", ("nmae",)), ("sort", "nmae"), ("sort", "-spec.memroy")])
@pytest.mark.parametrize("items", [ITEMS, []])
def test_a_column_that_is_not_there_is_refused_with_the_one_that_was_meant(
    show: Shown, items: list[dict[str, Any]], setting: str, value: Any
) -> None:
    with pytest.raises(click.UsageError) as refused:
        show("csv", items, **{setting: value})
    assert "no such column" in refused.value.message
    assert "name" in refused.value.message


def test_jsonpath_reads_as_kubectls(show: Shown) -> None:
    assert show("jsonpath={.items[*].name}") == "web-10 web-9 db|1\n"
    lines = show('jsonpath={range .items[?(@.status.node=="n1")]}{.name}{"\\t"}{.spec.memory}{"\\n"}{end}')
    assert lines == f"web-9\t{2048 << 20}\ndb|1\t{96 << 20}\n"
    assert show("jsonpath=.items[-1].created_at") == "2026-11-21T16:37:14.000Z\n"
    for expression, wanted in (
        ("{.items[0,2].name}", "web-10 db|1"),
        ("{.items[1:].name}", "web-9 db|1"),
        ("{..address}", "10.0.0.12 10.0.0.48 10.0.0.96"),
        ("{.items[0].labels['app']}", "shop"),
        ("{.items[0].spec.networks}", '["default"]'),
        ("{.items[?(@.spec.memory>=536870912)].name}", "web-10 web-9"),
        ("{.items[?(@.labels.app)].name}", "web-10"),
        ("name: {.items[0].name}, {.items[0].deleting_since}", "name: web-10, "),
        ("{$.items[0].status.*}", "Running n2 10.0.0.12 "),
        ("{@.items[0].name}", "web-10"),
    ):
        assert write_jsonpath(expression, {"items": ITEMS}) == wanted, expression


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "{.a",
        ".a}",
        "{range .items[*]}{.a}",
        "{end}",
        "{.a[}",
        "{.a[x]}",
        "{[?(@.a=b)]}",
        "{.items[?(.a==1)]}",
        '{"\\q"}',
    ],
)
def test_a_jsonpath_that_cannot_be_read_says_how_to_write_one(wrong: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        write_jsonpath(wrong, {"items": ITEMS, "a": [{}]})
    assert refused.value.hint and "{.items[*].name}" in refused.value.hint


@pytest.mark.parametrize("wrong", ["jsonpath={.items[0].nope}", "template={nope}", "template={status.nope}"])
def test_a_field_that_no_object_of_a_kind_has_is_refused_of_an_empty_list_too(wrong: str) -> None:
    session = Session(SystemClock, {"WEFT_OUTPUT": wrong})
    with pytest.raises(click.UsageError, match="nope: no such field"):
        print_list(session, [], [BY_NAME["vm"]])


def test_a_part_of_an_object_that_was_looked_for_in_its_status_is_named_where_it_is() -> None:
    item = {"kind": "vm", "name": "web", "status": {"phase": "Running"}, "conditions": [{"status": "True"}]}
    with pytest.raises(click.UsageError, match=r"did you mean conditions\.status\?"):
        write_jsonpath("{.status.conditions.status}", item)


def test_a_template_gives_a_line_for_each_object(show: Shown) -> None:
    lines = show("template={name}\\t{status.node} {{{labels.app}}}").splitlines()
    assert lines == ["web-10\tn2 {shop}", "web-9\tn1 {}", "db|1\tn1 {}"]
    with pytest.raises(InvalidInput):
        show("template={name")


@pytest.mark.parametrize(
    ("form", "settings", "meant"),
    [
        ("template={nme}", {}, "did you mean name?"),
        ("template={name} {status.phse}", {}, "did you mean status.phase?"),
        ("template={spec.publish.prot}", {}, "spec.publish"),
        ("jsonpath={.items[*].nme}", {}, "did you mean name?"),
        ("jsonpath={.name}", {}, "begin with .items[*]"),
        ('jsonpath={range .items[?(@.name=="db|1")]}{.status.phse}{end}', {}, "did you mean status.phase?"),
        ("json", {"json_fields": "name,status.phse"}, "did you mean status.phase?"),
        ("json", {"json_fields": "name,phase"}, "did you mean status.phase?"),
    ],
)
def test_a_misspelt_field_is_refused_and_one_that_is_only_unset_is_empty(
    show: Shown, form: str, settings: dict[str, Any], meant: str
) -> None:
    with pytest.raises(click.UsageError) as refused:
        show(form, **settings)
    assert "no such field" in refused.value.message and meant in refused.value.message
    assert refused.value.exit_code == 2
    unset = "template={owner.name}{status.lease.state}{conditions.type}{spec.publish}{labels.x}"
    assert show(unset) == "\n\n\n"
    assert show("jsonpath={range .items[*]}{.conditions[*].type}{.spec.publish[0]}{..nme}{end}") == "\n"
    assert show("csv,noheader", columns=("lease.state",)) == "\n".join(3 * ['""']) + "\n"


@pytest.mark.parametrize("foreign", ["{{range .items}}{{.name}}{{end}}", "{{ .name }}", "{{- if .status}}x{{end}}"])
def test_a_template_of_gos_is_refused_with_what_to_write(show: Shown, foreign: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        show(f"template={foreign}")
    assert "{name} is on {status.node}" in str(refused.value.hint)


def test_fields_are_picked_and_a_field_that_nothing_has_is_refused(show: Shown) -> None:
    told = json.loads(show("json", json_fields="name,status.node,labels.app"))
    assert told["items"][0] == {"name": "web-10", "status": {"node": "n2"}, "labels": {"app": "shop"}}
    assert told["items"][1]["labels"] == {"app": None}
    with pytest.raises(click.UsageError, match="did you mean status"):
        show("json", json_fields="statsu")


def test_jq_runs_over_the_json_and_prints_text_without_quotes(show: Shown) -> None:
    assert show("json", jq='.items[] | select(.status.node == "n1") | .name') == "web-9\ndb|1\n"
    assert show("json", jq="[.items[].spec.memory] | add") == f"{(512 + 2048 + 96) << 20}\n"
    assert (
        show("json", jq=".items[0] | {name, at: .created_at}")
        == '{"name": "web-10", "at": "2026-11-21T16:37:13.000Z"}\n'
    )
    assert show("json", json_fields="name", jq=".items | length") == "3\n"
    with pytest.raises(click.UsageError, match="syntax error"):
        show("json", jq=".items[")
    with pytest.raises(InvalidInput, match="Cannot index"):
        show("json", jq=".items.name")


def test_jq_without_its_library_says_what_to_install_and_what_does_without(
    show: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jq", None)
    with pytest.raises(WeftError) as refused:
        show("json", jq=".")
    assert "pip install jq" in str(refused.value.hint)


def test_a_stream_is_a_line_for_each_piece(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(SystemClock, {})
    session.given_form = read_form("json")
    print_line(session, {"at": 1795279033.0, "name": "web"})
    session.jq = ".name"
    print_line(session, {"at": 1795279033.0, "name": "web"})
    assert capsys.readouterr().out == '{"at":"2026-11-21T16:37:13.000Z","name":"web"}\nweb\n'


def test_a_document_is_out_before_the_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """`weft top --watch -o json` shows one, waits, and clears the screen for the next."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    session = Session(SystemClock, {})
    session.given_form = read_form("json")
    with open(write_end, "w", encoding="utf-8") as out, open(read_end, "rb", buffering=0) as seen:
        monkeypatch.setattr(sys, "stdout", out)
        print_object(session, ITEMS[0])
        assert json.loads(seen.read() or b"null")["name"] == "web-10"


def test_one_object_is_itself_as_a_document_and_one_row_as_rows(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(SystemClock, {"WEFT_OUTPUT": "yaml"})
    print_object(session, ITEMS[0])
    assert "created_at: '2026-11-21T16:37:13.000Z'" in capsys.readouterr().out
    session.given_form = read_form("csv")
    print_object(session, ITEMS[0])
    assert capsys.readouterr().out.splitlines()[1].startswith("web-10,Running,n2")


def test_tables_that_are_not_of_objects_can_do_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(SystemClock, {})
    session.given_form, session.sort, session.columns = read_form("csv"), "-tries", ("tries,id",)
    print_rows(session, [Column("ID"), Column("TRIES", right=True)], [["a", "2"], ["b", "11"]])
    assert capsys.readouterr().out == "TRIES,ID\n11,b\n2,a\n"


def test_a_form_from_the_environment_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidInput) as refused:
        _ = Session(SystemClock, {"WEFT_OUTPUT": "jsn"}).output
    assert refused.value.field == "WEFT_OUTPUT" and refused.value.hint == "did you mean json?"


def test_a_terminal_that_knows_only_ascii_gets_bars_and_no_question_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    show_plainly(stream)
    stream.write("2/8 ██▌  – …✓ → web\n")
    stream.flush()
    assert raw.getvalue() == b"2/8 ###  - ~+ > web\n"
    assert make_plain("⠙▏é") == "/|?"


class Standing:
    """Answers a list with what there is."""

    project = "default"

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self._items = items

    def list(self, kind: str, *, read: Read | None = None, **selected: Any) -> Listing:
        raws = [msgspec.Raw(msgspec.json.encode(item)) for item in self._items]
        return Listing(raws, "", [read(raws[:2]), read(raws[2:])] if read else [])


@pytest.mark.parametrize("items", [[], ITEMS[:2], [*ITEMS, make("é…", 64, "n1", 1795279033.0)]])
def test_a_list_made_page_by_page_is_the_same_json_as_one_made_at_once(
    items: list[dict[str, Any]], show: Shown, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(SystemClock, {})
    session.given_form = read_form("json")
    session.client = Standing(items)  # type: ignore[assignment]

    def listed() -> str:
        list_kind(session, VM, (), (), every=False, watch=False)
        return capsys.readouterr().out

    told = json.dumps({"items": json.loads(render_moments(msgspec.json.encode(items)))}, indent=2, ensure_ascii=False)
    assert listed() == show("json", items) == told + "\n"
    session.json_fields = "name"
    assert json.loads(listed()) == {"items": [{"name": item["name"]} for item in items]}
    session.json_fields, raw = "", io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    show_plainly(stream)
    monkeypatch.setattr(sys, "stdout", stream)
    listed()
    stream.flush()
    assert raw.getvalue().decode() == make_plain(told) + "\n"


def make_containers() -> list[dict[str, Any]]:
    phases = {
        "sums-0": ("Stopped", True),
        "sums-1": ("Failed", True),
        "sums-2": ("Running", True),
        "web": ("Stopped", False),
    }
    return [
        {"kind": "container", "name": name, "uid": name, "spec": {"once": once}, "status": {"phase": phase}}
        for name, (phase, once) in phases.items()
    ]


def test_ended_tasks_are_left_out_of_what_is_used_too() -> None:
    shown = choose_shown(BY_NAME["container"], make_containers(), selected=False)
    assert [item["name"] for item in shown] == ["sums-2", "web"]
    assert len(choose_shown(BY_NAME["container"], make_containers(), selected=True)) == 4


def test_tasks_that_have_ended_are_left_out_unless_all_are_wanted_or_some_are_selected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def listed(form: str, *labels: str, every: bool = False) -> tuple[list[str], str]:
        session = Session(SystemClock, {})
        session.given_form = read_form(form)
        session.client = Standing(containers)  # type: ignore[assignment]
        list_kind(session, BY_NAME["container"], labels, (), every=every, watch=False)
        out, err = capsys.readouterr()
        return out.split(), err

    containers = make_containers()
    told = "not shown: 2 finished (--all)\n"
    assert listed("name") == (["container/sums-2", "container/web"], told)
    assert listed("jsonpath={.items[*].name}") == (["sums-2", "web"], told)
    assert (
        listed("name", every=True)
        == listed("name", "job=sums")
        == ([f"container/{one['name']}" for one in containers], "")
    )


def test_rows_of_several_kinds_are_named_as_they_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(SystemClock, {})
    session.columns = ("name",)
    items = [{**one, "kind": kind} for one in make_containers()[2:] for kind in ("container", "job")]
    print_list(session, items, [BY_NAME["container"], BY_NAME["job"]])
    assert [line for line in capsys.readouterr().out.split() if line != "NAME"] == [
        "container/sums-2",
        "container/web",
        "job/sums-2",
        "job/web",
    ]
    print_list(session, items[::2], [BY_NAME["container"]])
    assert capsys.readouterr().out.split() == ["NAME", "sums-2", "web"], (
        "what is of one kind needs no more than its name"
    )
