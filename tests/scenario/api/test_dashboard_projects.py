"""What people of one project see of another's in a dashboard: nothing, of whatever kind, at any endpoint. Lists are the measure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect as mi
from tests.scenario.api_lab import ApiLab
from tests.scenario.dashboard_lab import Browser, add_user

from weft.contracts.journal import Event
from weft.contracts.store import Delete, Put
from weft.kinds.backup_repository import BACKUP_REPOSITORY, BackupRepositorySpec, BackupRepositoryStatus
from weft.kinds.cluster import CLUSTER, ClusterMarks, ClusterSpec
from weft.kinds.record import Kind
from weft.kinds.registry import BY_NAME, KINDS
from weft.objects.envelope import Condition, Envelope, encode_envelope

MARK = "zweiundvierzig"  # it is in each object of project blue, and nowhere else
BY_API = (
    "token",
    "user",
    "group",
    "role",
    "rolebinding",
    "project",
)  # the server keeps these in memory, so they are whole
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
READERS = ("rita", "none", "ann")  # of project red, of nothing, of everything


def fill(info: mi.Type, word: str) -> Any:
    """A value of a type, as plain data; texts are ``word``."""
    match info:
        case mi.CustomType() | mi.UnionType() | mi.RawType() | mi.AnyType() | mi.NoneType():
            return None
        case mi.StructType():
            return {
                f.encode_name: fill(f.type, word)
                for f in info.fields
                if f.required or f.encode_name in ("description", "message")
            }
        case mi.LiteralType():
            return info.values[0]
        case mi.Metadata():
            return fill(info.type, word)
        case mi.ListType() | mi.SetType() | mi.VarTupleType():
            return []
        case mi.DictType():
            return {}
        case mi.BoolType():
            return False
        case mi.IntType() | mi.FloatType():
            return 1
    return word


def make(kind: Kind, name: str, word: str, project: str | None, *shared_with: str) -> Envelope:
    """``word`` is in all that it has; if it is shared, only in what its users don't see."""
    spec = fill(mi.type_info(kind.spec), "given" if shared_with else word)
    if "cidr" in kind.spec.__struct_fields__:
        spec["cidr"] = "10.9.0.0/24"
    if shared_with:
        spec["shared_with"] = list(shared_with)
    return Envelope(
        kind=kind.name,
        name=name,
        uid=f"{kind.name}-{name}",
        project=project if kind.scope == "project" else None,
        labels={"mark": word},
        created_at=1.0,
        spec=msgspec.Raw(msgspec.json.encode(spec)),
        status=msgspec.Raw(msgspec.json.encode(fill(mi.type_info(kind.status), word))),
        report=msgspec.Raw(
            msgspec.json.encode({"images": [word], "orphans": [], "version": "1"} if kind.report else {})
        ),
        conditions=[Condition("Drained", "False", "Blocked", f"vm/{word} can't migrate")],
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path_factory.mktemp("projects"))
    for project in ("red", "blue"):
        lab.client.create({"kind": "project", "name": project, "spec": {}})
    lab.client.create({"kind": "project", "name": MARK, "spec": {"description": MARK}})
    lab.client.create({"kind": "token", "name": MARK, "spec": {"use": "access", "project": "blue"}})
    lab.client.create({"kind": "user", "name": MARK, "spec": {}})
    lab.client.create({"kind": "group", "name": MARK, "spec": {}})
    lab.client.create(
        {"kind": "rolebinding", "name": MARK, "spec": {"role": "viewer", "users": [MARK], "project": "blue"}}
    )
    add_user(lab, "rita", "admin", "red")
    add_user(lab, "none", "", None)
    add_user(lab, "ann", "fabric-admin", None)
    for kind in KINDS:
        if kind.name in BY_API:
            continue
        own = make(kind, "red", "red", "red")
        if kind.access.fabric_fields:  # which name other people's objects
            own.spec, own.status = msgspec.Raw(b"{}"), msgspec.Raw(b'{"phase": "Ready"}')
            own.actions = msgspec.Raw(b'{"drain": true}')
            own.report, own.conditions = (
                getattr(make(kind, "red", MARK, None), part) for part in ("report", "conditions")
            )
            if not any(field.startswith("conditions.") for field in kind.access.fabric_fields):
                own.conditions = []
            if kind is BACKUP_REPOSITORY:
                place = BackupRepositorySpec(url=f"s3://{MARK}", ca=MARK, credentials=MARK, sealed={MARK: MARK})
                kept = BackupRepositoryStatus(phase="Ready", id=MARK, backups=3, message=MARK)
                own.spec, own.status = (msgspec.Raw(msgspec.json.encode(part)) for part in (place, kept))
            if kind is CLUSTER:
                link = ClusterSpec(url=f"https://{MARK}", ca=MARK, projects={MARK: MARK}, sealed={MARK: MARK})
                own.spec, own.marks = (
                    msgspec.Raw(msgspec.json.encode(part)) for part in (link, ClusterMarks(peer_uid=MARK))
                )
        lab.put(own)
        if kind.scope == "project":
            lab.put(make(kind, f"x{MARK}", MARK, "blue"))
        if kind.is_shareable:
            lab.put(make(kind, "given", MARK, "blue", "red"))
    lab.journal.append(Event("Normal", "Created", MARK, make(BY_NAME["vm"], MARK, MARK, "blue").ref, "api"))
    lab.journal.flush()
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def browsers(lab: ApiLab) -> Iterator[dict[str, Browser]]:
    found = {name: Browser(lab).login(name) for name in READERS}
    yield found
    for browser in found.values():
        browser.close()


def find_listed(browser: Browser, kind: Kind) -> set[str] | None:
    """The uids that lists show, of all projects; None: they are refused."""
    if kind.scope == "fabric":
        paths = [f"/v1/{kind.plural}"]
    else:
        shared = ("", "?shared=1") if kind.is_shareable else ("",)
        paths = [
            f"/v1/projects/{p}/{kind.plural}{more}"
            for p in ("red", "blue", MARK, "default", "fabric")
            for more in shared
        ]
    replies = [browser.send("GET", path) for path in paths]
    if all(reply.status == 403 for reply in replies):
        return None
    return {item["uid"] for reply in replies if reply.status == 200 for item in reply.json()["items"]}


@EVERY_KIND
@pytest.mark.parametrize("reader", READERS)
def test_a_table_has_the_objects_that_lists_show(browsers: dict[str, Browser], kind: Kind, reader: str) -> None:
    browser = browsers[reader]
    listed = find_listed(browser, kind)
    reply = browser.send("GET", f"/v1/dashboard/table?kinds={kind.name}&ended=1&limit=500")
    assert (reply.status == 403) == (listed is None), reply.body
    if listed is not None:
        table = reply.json()
        assert {row["uid"] for row in table["rows"]} == listed
        assert table["total"] == len(listed)


@EVERY_KIND
@pytest.mark.parametrize("reader", ["rita", "none"])
def test_nothing_of_another_project_is_in_a_table_of_its_kind(
    browsers: dict[str, Browser], kind: Kind, reader: str
) -> None:
    browser = browsers[reader]
    for query in ("", f"&filter={MARK}", "&project=blue", "&project=red", "&sort=-NAME"):
        reply = browser.send("GET", f"/v1/dashboard/table?kinds={kind.name}&ended=1{query}")
        assert MARK not in reply.body.decode(), query
        if "filter" in query and reply.status == 200:
            assert reply.json()["total"] == 0 and reply.json()["phases"] == {}, "not even by counting"


@pytest.mark.parametrize("reader", ["rita", "none"])
def test_nothing_of_another_project_is_in_summary_search_and_events(browsers: dict[str, Browser], reader: str) -> None:
    browser = browsers[reader]
    answers = [
        browser.send("GET", path)
        for path in (
            "/v1/dashboard/summary",
            "/v1/dashboard/summary?project=blue",
            f"/v1/dashboard/search?q={MARK}",
            "/v1/dashboard/search?q=blue",
            "/v1/dashboard/table?kinds=" + ",".join(kind.name for kind in KINDS[:16]),
        )
    ]
    assert [reply.status for reply in answers] == [200] * 5
    assert not [reply.body for reply in answers if MARK in reply.body.decode()]
    summary = answers[1].json()
    assert {row["name"] for row in answers[4].json()["rows"] if row["project"] == "blue"} <= {"given"}, "what it shares"
    listed = summary["problems"] + summary["operations"]
    in_no_project = {"node", "backuprepository", "cluster"}
    assert {one["kind"] for one in listed} <= in_no_project and summary["queue"]["waiting"] == 0


def test_a_summary_counts_what_its_reader_sees(browsers: dict[str, Browser]) -> None:
    rita, ann = (browsers[name].get("/v1/dashboard/summary")["phases"] for name in ("rita", "ann"))
    assert sum(rita["vm"].values()) == 1 and sum(ann["vm"].values()) == 2
    assert browsers["none"].get("/v1/dashboard/summary")["phases"] == {}


@EVERY_KIND
def test_a_stream_has_no_change_of_another_project(lab: ApiLab, browsers: dict[str, Browser], kind: Kind) -> None:
    browser = Browser(lab)
    browser.cookie = browsers["rita"].cookie
    where = {"project": "blue"} if kind.scope == "project" else {}
    refused = browser.stream(object={"kind": kind.name, "name": f"x{MARK}", **where})
    assert refused.status == 403 or refused.next("object") is None
    events = browser.stream(table={"kinds": kind.name, "ended": True})
    if events.status == 403 or kind.name in BY_API:
        browser.close()
        return
    seen = [events.next("table")]
    if kind.scope == "project":
        other = make(kind, f"y{MARK}", MARK, "blue")
        lab.put(other)
        lab.run(lab.store.commit([Delete(other.key)]))
    own = make(kind, "red", "changed", "red")
    own.labels["step"] = "2"
    lab.run(lab.store.commit([Put(own.key, encode_envelope(own))]))
    while own.uid not in [row["uid"] for row in seen[-1]["rows"]] or len(seen) == 1:
        seen.append(events.next("table"))
    assert MARK not in json.dumps(seen)
    assert len(seen) == 2, "what others change is not even an event without rows"
    browser.close()


def test_a_stream_of_another_project_s_events_is_refused(browsers: dict[str, Browser]) -> None:
    rita = browsers["rita"]
    assert rita.stream(events={"project": "blue"}).status == 403
    events = rita.stream(events={"object": f"vm/blue/{MARK}"})
    assert events.next("events") == []
    assert browsers["none"].stream(events={}).status == 403
    assert MARK in json.dumps(browsers["ann"].stream(events={"project": "blue"}).next("events"))
    for name in ("rita", "ann"):
        browsers[name].close()


def test_nodes_and_joiners_have_no_dashboard(lab: ApiLab) -> None:
    node = lab.join("n1")
    for path in ("table?kinds=vm", "summary", "search?q=a", "stream?show={}"):
        assert node.client.http.request("GET", f"/v1/dashboard/{path}").status == 403
