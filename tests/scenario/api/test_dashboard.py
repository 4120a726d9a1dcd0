"""The dashboard's endpoints over the real API server: sessions, tables, the summary, and one stream per tab."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm
from tests.scenario.dashboard_lab import Browser, add_user

from weft.api.dashboard.boards import MOST_STREAMS
from weft.contracts.store import Delete, Entry, Put
from weft.kinds.node import NODE, NodeReport
from weft.objects.envelope import encode_envelope
from weft.objects.errors import StoreUnavailable


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("dashboard"))
    for name in ("red", "blue"):
        lab.client.create({"kind": "project", "name": name, "spec": {}})
        lab.client.apply([{**make_image(), "project": name}])
    add_user(lab, "rita", "admin", "red")
    add_user(lab, "bob", "admin", "blue")
    add_user(lab, "ann", "fabric-admin", None)
    for project, names in (("red", ("web-1", "web-10", "web-9")), ("blue", ("db",))):
        for name in names:
            lab.client.create(
                {**make_vm(name, memory="512M", networks=[]), "project": project, "labels": {"tier": name[:2]}}
            )
    yield lab
    lab.close()


@pytest.fixture
def rita(lab: ApiLab) -> Iterator[Browser]:
    browser = Browser(lab).login("rita")
    yield browser
    browser.close()


def names_of(table: dict[str, Any]) -> list[str]:
    return [row["name"] for row in table["rows"]]


def test_a_table_is_sorted_as_people_count_filtered_and_paged(rita: Browser) -> None:
    table = rita.get("/v1/dashboard/table", kinds="vm", sort="-NAME", limit=2)
    assert names_of(table) == ["web-10", "web-9"]
    assert table["total"] == 3 and table["phases"] == {"Pending": 3}
    assert names_of(rita.get("/v1/dashboard/table", kinds="vm", sort="-NAME", limit=2, offset=2)) == ["web-1"]
    assert names_of(rita.get("/v1/dashboard/table", kinds="vm", filter="WEB 512", where="Pending")) == [
        "web-1",
        "web-9",
        "web-10",
    ]
    assert rita.get("/v1/dashboard/table", kinds="vm", where="Running")["phases"] == {"Pending": 3}
    row = table["rows"][0]
    titles = [head["title"] for head in table["columns"]]
    assert row["health"] == "waiting" and row["cells"][titles.index("MEMORY")] == "512 MiB"
    assert row["cells"][titles.index("AGE")] == "" and row["created_at"] > 0


def test_several_kinds_share_one_table(rita: Browser) -> None:
    table = rita.get("/v1/dashboard/table", kinds="vm,image")
    assert [head["title"] for head in table["columns"]][:2] == ["KIND", "NAME"]
    assert {row["cells"][0] for row in table["rows"]} == {"vm", "image"}
    assert all(len(row["cells"]) == len(table["columns"]) for row in table["rows"])


def test_a_stream_begins_with_whole_states_and_then_has_what_changes(lab: ApiLab, rita: Browser) -> None:
    events = rita.stream(
        table={"kinds": "vm", "filter": "web"},
        summary={"project": "red"},
        object={"kind": "vm", "project": "red", "name": "web-1"},
        events={"object": "vm/red/web-1"},
    )
    assert events.status == 200
    assert events.next("hello")["version"]
    table = events.next("table")
    assert len(table["rows"]) == 3 and len(table["order"]) == 3 and table["columns"]
    assert events.next("summary")["phases"]["vm"] == {"Pending": 3}
    assert events.next("object")["spec"]["memory"] == 512 << 20
    assert events.next("events") is not None
    lab.client.apply([{**make_vm("web-1", memory="1G", networks=[]), "project": "red"}])
    change = events.next("table")
    assert [row["name"] for row in change["rows"]] == ["web-1"] and "order" not in change
    assert events.next("object")["spec"]["memory"] == 1 << 30
    lab.client.create({**make_vm("web-2", networks=[]), "project": "red"})
    change = events.next("table")
    assert [row["name"] for row in change["rows"]] == ["web-2"] and change["order"][1] == change["rows"][0]["uid"]
    lab.run(lab.store.commit([Delete("/vm/red/web-2")]))
    change = events.next("table")
    assert len(change["gone"]) == 1 and not change["rows"]
    assert change["total"] == 3 and len(change["order"]) == 3


def test_a_token_has_a_bounded_number_of_streams(rita: Browser) -> None:
    streams = [rita.stream(table={"kinds": "vm"}) for _ in range(MOST_STREAMS)]
    assert {one.next("hello")["version"] for one in streams}
    assert rita.stream(table={"kinds": "vm"}).status == 429


def test_a_stream_outlives_a_store_that_is_away_and_then_has_the_newest_state(
    lab: ApiLab, rita: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = rita.stream(object={"kind": "vm", "project": "red", "name": "web-1"}, summary={})
    assert events.next("object")["name"] == "web-1"
    real, asked = lab.store.get, list[str]()

    async def away(key: str) -> Entry | None:
        asked.append(key)
        if key == "/vm/red/web-1" and len(asked) < 5:
            raise StoreUnavailable("the store doesn't answer")
        return await real(key)

    envelope = lab.stored("/vm/red/web-1")
    assert envelope is not None
    envelope.labels = {"turn": "2"}
    monkeypatch.setattr(lab.store, "get", away)
    lab.put(envelope)
    assert events.next("object")["labels"] == {"turn": "2"} and len(asked) >= 5


def test_a_search_finds_by_name_and_by_word(rita: Browser) -> None:
    assert [row["name"] for row in rita.get("/v1/dashboard/search", q="web-1")["items"]][:2] == ["web-1", "web-10"]
    assert {row["kind"] for row in rita.get("/v1/dashboard/search", q="tiny")["items"]} == {"vm", "image"}


def test_a_burst_of_changes_of_one_object_is_one_event_with_the_newest_state(lab: ApiLab, rita: Browser) -> None:
    events = rita.stream(table={"kinds": "vm", "filter": "web-9"})
    assert len(events.next("table")["rows"]) == 1
    envelope = lab.stored("/vm/red/web-9")
    assert envelope is not None

    async def burst() -> None:
        for number in range(100):
            envelope.labels = {"step": f"s{number}"}
            await lab.store.commit([Put(envelope.key, encode_envelope(envelope))])

    lab.run(burst())
    changes = []
    while not changes or changes[-1]["rows"][0]["revision"] < lab.revision():
        changes.append(events.next("table"))
    assert len(changes) <= 2, "one at the first change, one for all that came meanwhile"


def test_a_stream_that_is_cut_begins_again_with_whole_states(lab: ApiLab, rita: Browser) -> None:
    first = rita.stream(table={"kinds": "vm", "filter": "web"}, summary={})
    before = first.next("table")
    rita.close()
    lab.restart()
    second = rita.stream(table={"kinds": "vm", "filter": "web"}, summary={})
    after = second.next("table")
    assert after["order"] == before["order"] and len(after["rows"]) == len(before["rows"])
    assert second.next("summary")["phases"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("table", "kinds"),
        ("table?kinds=" + ",".join(["vm"] * 17), "kinds"),
        ("table?kinds=vm&limit=501", "limit"),
        ("table?kinds=vm&offset=x", "offset"),
        ("table?kinds=vm&sort=COLOR", "sort"),
        ("table?kinds=vm&filter=" + "x" * 201, "filter"),
        ("table?kinds=vm&filter=" + "a+" * 11, "filter"),
        ("table?kinds=vm&project=A!", "project"),
        ("search", "q"),
        ("search?q=" + "x" * 201, "q"),
        ("stream", "show"),
        ("stream?show=%5B", "show"),
        ("stream?show=" + "%5B" * 2000, "show"),
        ("stream?show=" + "x" * 5000, "show"),
        ("stream?show=%7B%22table%22%3A%7B%7D%7D", "show.table.kinds"),
        ("stream?show=%7B%22what%22%3A1%7D", "show.what"),
    ],
)
def test_what_is_asked_for_has_bounds_and_a_refusal_names_the_parameter(rita: Browser, path: str, field: str) -> None:
    reply = rita.send("GET", f"/v1/dashboard/{path}")
    assert reply.status == 400 and reply.json()["field"] == field, reply.body


def test_the_kinds_say_what_can_be_done_with_them(rita: Browser) -> None:
    kinds = {kind["name"]: kind for kind in rita.get("/v1/kinds")["items"]}
    short = {kind["name"]: kind for kind in rita.get("/v1/kinds?short=1")["items"]}
    assert short.keys() == kinds.keys() and not any(kind["spec"] or kind["columns"] for kind in short.values())
    assert [one["needs"] for one in short["vm"]["actions"]] == [one["needs"] for one in kinds["vm"]["actions"]]
    vm = kinds["vm"]
    assert vm["create"] == "vm:create" and kinds["allocation"]["create"] is None
    start = vm["actions"][0]
    assert start.keys() == {"name", "summary", "needs", "input", "phases"} and start["phases"] == [
        "Failed",
        "Stopped",
        "Suspended",
    ]
    assert "vm:stop" in [action["needs"] for action in vm["actions"]] and "exec" in [
        one["name"] for one in vm["streams"]
    ]
    fields = {field["path"]: field for field in vm["spec"]}
    assert fields["spec.memory"]["type"] == "size" and fields["spec.memory"]["change"] and fields["spec.memory"]["help"]
    assert "run" not in {path.partition(".")[2] for path in fields}, "the server sets it"
    assert any(field["choices"] for field in vm["spec"])


def test_a_problem_says_what_to_do_and_a_node_how_full_it_is(lab: ApiLab) -> None:
    ann = Browser(lab).login("ann")
    node = NODE.make("n1", NODE.spec(), 1.0, report=NodeReport(cpu=8, memory=16 << 30))
    lab.put(node)
    envelope = lab.stored("/vm/red/web-9")
    assert envelope is not None
    envelope.status = msgspec.Raw(b'{"phase": "Failed", "reason": "driverFailed", "message": "no disk"}')
    lab.put(envelope)
    summary = ann.stream(summary={}).next("summary")
    worst = summary["problems"][0]
    assert (worst["kind"], worst["name"], worst["health"]) == ("vm", "web-9", "failed")
    assert "no disk" in worst["note"] and worst["hint"].startswith("weft describe vm/web-9")
    assert summary["problems_total"] >= 1
    n1 = next(one for one in summary["nodes"] if one["name"] == "n1")
    assert n1["cpu"]["capacity"] == 8 and n1["memory"]["capacity"] == 16 << 30 and n1["cpu"]["used"] is None
    ann.close()


def test_a_table_that_few_may_read_is_in_the_audit_log_as_its_list_would_be(lab: ApiLab) -> None:
    ann = Browser(lab).login("ann")
    for kinds in ("vm", "token", "vm,secret"):
        ann.get("/v1/dashboard/table", kinds=kinds)
    ann.stream(object={"kind": "user", "name": "rita"}).next("object")
    ann.close()
    records = lab.client.http.request("GET", "/v1/audit?actor=ann&limit=1000").json()["items"]
    read = [(one["objects"][0]["kind"], one["verb"]) for one in records if one["path"].startswith("/v1/dashboard")]
    assert read == [("token", "read"), ("secret", "read"), ("user", "read")]
