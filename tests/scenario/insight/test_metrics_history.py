"""The history of metrics over the API: a real VictoriaMetrics answers, and nobody sees another project's."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.metrics_lab import OwnDatabase, run_prometheus

from weft.cli.metrics.samples import draw_rows
from weft.cli.metrics.storage_history import OF_OSDS, OF_POOLS, OF_REPOSITORIES, fetch_storage
from weft.client import Client
from weft.telemetry.metrics.sample import Sample

STORAGE = (
    *(("osd_used_bytes", (("node", node), ("pool", "fast"), ("osd", "osd.0")), 300.0) for node in ("n1", "n2")),
    ("osd_used_bytes", (("node", "n1"), ("pool", "fast"), ("osd", "osd.1")), 200.0),
    ("osd_used_bytes", (("node", "n1"), ("pool", "slow"), ("osd", "osd.2")), 100.0),
    ("osd_latency_seconds", (("node", "n1"), ("pool", "fast"), ("osd", "osd.0"), ("operation", "write")), 0.004),
    ("backuprepository_used_bytes", (("repository", "safe"),), 50.0),
    ("backuprepository_used_bytes", (("repository", "other"),), 51.0),
    ("backuprepository_free_bytes", (("repository", "safe"),), 70.0),
    ("backuprepository_backups", (("repository", "safe"),), 3.0),
)


class History:
    def __init__(self, lab: ApiLab, own: OwnDatabase) -> None:
        self.lab, self.own = lab, own
        for project in ("a", "b", "a-b"):
            lab.client.create({"kind": "project", "name": project, "spec": {}})
        self.limited = lab.with_token(use="access", role="viewer", project="a")
        # A range's points of the last second repeat the point before, as the newest may be incomplete (VictoriaMetrics).
        now = int(time.time() * 1000) - 2_000
        samples = [
            Sample(name, (("project", project), ("kind", "vm"), ("name", f"{project}{n}"), ("node", "n1")), at, n + 0.5)
            for project in ("a", "b", "a-b")
            for name in ("weft_guest_cpu_cores", "weft_guest_memory_bytes")
            for n in (1, 2, 3)
            for at in (now - 20_000, now - 10_000, now)
        ]
        samples += [Sample("weft_node_cpu_cores", (("node", "n1"),), at, 8.0) for at in (now - 10_000, now)]
        samples += [
            Sample(f"weft_pool_{part}_bytes", (("pool", pool),), at, float(size))
            for pool, sizes in (("fast", (100, 10, 20)), ("slow", (7, 7, 7)))
            for part, size in zip(("capacity", "used", "given"), sizes, strict=True)
            for at in (now - 10_000, now)
        ]
        samples += [
            Sample(f"weft_{name}", labels, at, value) for name, labels, value in STORAGE for at in (now - 10_000, now)
        ]
        samples += [
            Sample("other_cores", (("project", "a"), ("name", "foreign")), at, 1.0) for at in (now - 10_000, now)
        ]
        own.send(samples)
        self.now = now / 1000


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    own = OwnDatabase(tmp_path_factory.mktemp("server"))
    lab = ApiLab(tmp_path_factory.mktemp("api"), find_metrics=own.find)
    yield History(lab, own)
    lab.close()
    own.close()


def ask(client: Client, path: str, **parameters: Any) -> Any:
    answer = client.http.request("GET", f"/api/v1/{path}?{urlencode(parameters, doseq=True)}")
    return json.loads(answer.body)


def names(answer: Any) -> set[str]:
    """The guests in the answer to a query."""
    assert answer["status"] == "success", answer
    return {series["metric"].get("name", "") for series in answer["data"]["result"]}


def test_an_administrator_sees_nodes_and_all_projects(history: History) -> None:
    nodes = ask(history.lab.client, "query", query="weft_node_cpu_cores")
    assert [series["value"][1] for series in nodes["data"]["result"]] == ["8"]
    assert len(names(ask(history.lab.client, "query", query="weft_guest_cpu_cores"))) == 9
    values = ask(history.lab.client, "label/project/values")
    assert values["data"] == ["a", "a-b", "b"]


def test_a_range_has_the_values_that_were_sent(history: History) -> None:
    given = {"start": history.now - 20, "end": history.now, "step": "10s"}
    answer = ask(history.limited, "query_range", query='weft_guest_cpu_cores{name="a2"}', **given)
    (series,) = answer["data"]["result"]
    assert series["metric"] == {
        "__name__": "weft_guest_cpu_cores",
        "project": "a",
        "kind": "vm",
        "name": "a2",
        "node": "n1",
    }
    assert [value for _, value in series["values"]] == ["2.5", "2.5", "2.5"]


@pytest.mark.parametrize("count", [30, 151])
def test_the_points_of_a_range_begin_at_its_start_however_many_they_are(history: History, count: int) -> None:
    start = (history.now - 200_000) // 60 * 60 + 21
    given = {"start": start, "end": start + (count - 1) * 60 + 59, "step": 60}
    (series,) = ask(history.lab.client, "query_range", query="vector(1)", **given)["data"]["result"]
    assert [moment for moment, _ in series["values"]] == [start + 60 * number for number in range(count)]


OWN = {"a1", "a2", "a3"}
QUERIES = [  # each an attempt to see more than project a
    'weft_guest_cpu_cores{project="b"}',
    'weft_guest_cpu_cores{project=~".*"}',
    'weft_guest_cpu_cores{project!="a"}',
    'weft_guest_cpu_cores or weft_guest_cpu_cores{project="b"}',
    '{project="b"} or {name="b1"} or {__name__=~".+"}',
    "weft_guest_cpu_cores and on() vector(1) or weft_node_cpu_cores",
    'max_over_time(weft_guest_cpu_cores{project=~"a|b"}[5m:10s])',
    'weft_guest_cpu_cores{project="b"} offset 5s',
    'weft_guest_cpu_cores{project="b"} @ end()',
    'label_replace(weft_guest_cpu_cores{project="b"}, "project", "a", "", "")',
    'label_replace(weft_guest_cpu_cores, "project", "b", "", "")',
    'union(weft_guest_cpu_cores{project="b"}, weft_node_cpu_cores)',
    '{__graphite__="weft_guest_cpu_cores"}',
    'weft_guest_cpu_cores{__graphite__="*"}',
    '{"__name__"=~".*", "project"="b"}',
    "last_over_time({__name__!='', project='b'}[1h])",
    'sort_desc(weft_guest_cpu_cores{project="a"} + on(kind) group_right weft_guest_cpu_cores{project="b"})',
    'weft_guest_cpu_cores{project="a|b"}',
    'weft_guest_cpu_cores{project="a",}#"} or weft_guest_cpu_cores{project="b"}',
    "other_cores",
]


def test_pools_are_seen_over_time(history: History) -> None:
    series, step = fetch_storage(history.lab.client, OF_POOLS, ["fast"], 600, history.now)
    assert step == 10 and [one["name"] for one in series] == ["fast.used", "fast.given", "fast.capacity"]
    assert [{value for _, value in one["points"]} for one in series] == [{10.0}, {20.0}, {100.0}]
    assert draw_rows(series, step, 80)[0][2:4] == ["10 B", "10 B"]


def test_osds_and_backup_repositories_are_seen_over_time(history: History) -> None:
    series, step = fetch_storage(history.lab.client, OF_OSDS, ["fast"], 600, history.now)
    values = {one["name"]: {value for _, value in one["points"]} for one in series}
    assert values == {"fast.osd.0.used": {300.0}, "fast.osd.1.used": {200.0}, "fast.osd.0.write": {0.004}}
    assert [row[1] for row in draw_rows(series, step, 80)] == ["300 B", "200 B", "4.00 ms"]
    series, _ = fetch_storage(history.lab.client, OF_REPOSITORIES, ["safe"], 600, history.now)
    values = {one["name"]: {value for _, value in one["points"]} for one in series}
    assert values == {"safe.used": {50.0}, "safe.free": {70.0}, "safe.backups": {3.0}}


@pytest.mark.parametrize("query", QUERIES)
def test_no_query_gets_out_of_a_project(history: History, query: str) -> None:
    for path, given in (
        ("query", {}),
        ("query_range", {"start": history.now - 60, "end": history.now + 10, "step": 10}),
    ):
        answer = ask(history.limited, path, query=query, **given)
        assert answer["status"] == "error" or names(answer) <= OWN, answer
        assert "b1" not in json.dumps(answer.get("data", ""))


def test_sums_and_counts_are_of_the_project_alone(history: History) -> None:
    def value(query: str) -> float:
        return float(ask(history.limited, "query", query=query)["data"]["result"][0]["value"][1])

    assert value("sum(weft_guest_cpu_cores)") == 1.5 + 2.5 + 3.5
    assert value('count({__name__=~".+"})') == 6
    assert value('sum(count_over_time({__name__=~"weft_guest_cpu_cores"}[1h]))') == 9
    # What an administrator has just asked is kept by the database; a limited person doesn't get that.
    asked = {
        "query": "sum(sum_over_time(weft_guest_cpu_cores[1m]))",
        "start": history.now - 60,
        "end": history.now,
        "step": 20,
    }
    everything = ask(history.lab.client, "query_range", **asked)["data"]["result"]
    assert ask(history.limited, "query_range", **asked)["data"]["result"] != everything


@pytest.mark.parametrize(
    "parameters",
    [
        {"extra_label": "project=b"},
        {"extra_filters[]": '{project="b"}'},
        {"extra_filters": '{project="b"}'},
        {"extra_filters%5B%5D": '{project="b"}'},
        {"EXTRA_LABEL": "project=b"},
        {"query": ["weft_guest_cpu_cores", 'weft_guest_cpu_cores{project="b"}']},
        {"round_digits": 1},
    ],
)
def test_parameters_that_are_not_known_are_refused(history: History, parameters: dict[str, Any]) -> None:
    answer = ask(history.limited, "query", **{"query": "weft_guest_cpu_cores", **parameters})
    assert answer["status"] == "error" and answer["errorType"] == "bad_data"
    form = urlencode({"query": "weft_guest_cpu_cores", **parameters}, doseq=True).encode()
    assert post(history.limited, "query", form)["status"] == "error"


def post(client: Client, path: str, form: bytes) -> Any:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return json.loads(client.http.request("POST", f"/api/v1/{path}", form, headers=headers).body)


def test_a_form_is_bound_as_an_address_is(history: History) -> None:
    assert names(post(history.limited, "query", b"query=%7B__name__%3D~%22.%2B%22%7D")) == OWN
    answer = history.limited.http.request(
        "POST",
        "/api/v1/query?query=weft_guest_cpu_cores",
        b"query=weft_node_cpu_cores",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert json.loads(answer.body)["error"].startswith("parameter query is given twice")


def test_series_labels_and_values_are_the_project_s_own(history: History) -> None:
    everything = {
        "match[]": ['{__name__=~".+"}', '{project="b"}'],
        "start": history.now - 3600,
        "end": history.now + 60,
    }
    series = ask(history.limited, "series", **everything)["data"]
    assert {one["name"] for one in series} == OWN and {one["project"] for one in series} == {"a"}
    for given in ({}, everything):
        assert ask(history.limited, "label/name/values", **given)["data"] == sorted(OWN)
        assert ask(history.limited, "label/project/values", **given)["data"] == ["a"]
        assert set(ask(history.limited, "label/__name__/values", **given)["data"]) == {
            "weft_guest_cpu_cores",
            "weft_guest_memory_bytes",
        }
        assert "foreign" not in json.dumps(ask(history.limited, "labels", **given))


OTHERS = [
    *("export", "import", "admin/tsdb/delete_series", "status/tsdb", "write", "federate", "targets", "query/../export"),
    *("label/a%2Fb/values", "label/../values", "label/a%0A/values", "label/name/values/x"),
    "label/name%3Fextra_label%3Dproject%3Db/values",
]


@pytest.mark.parametrize("path", OTHERS)
def test_nothing_else_of_the_database_is_within_reach(history: History, path: str) -> None:
    answer = history.limited.http.request("GET", f"/api/v1/{path}?query=1&match[]=up")
    assert answer.status in (400, 404), answer.body


def test_who_may_see_no_metrics_sees_none(history: History) -> None:
    lab = history.lab
    lab.client.create({"kind": "role", "name": "no-metrics", "spec": {"rules": {"vm": ["get"]}}})
    refused = ask(lab.with_token(use="access", role="no-metrics"), "query", query="1")
    assert refused["status"] == "error" and "metric:list" in refused["error"]
    stranger = lab.connect(msgspec.structs.replace(lab.context, token=""))
    unknown = stranger.http.request("GET", "/api/v1/query?query=1")
    assert unknown.status == 401
    assert msgspec.json.decode(unknown.body)["status"] == "error"  # as Prometheus' clients expect it
    assert lab.join("n7").client.http.request("GET", "/api/v1/query?query=1").status == 403


_PHIS = ",".join(f".{n}" for n in range(10, 99))
MANY_SERIES = f'quantiles_over_time("b",{_PHIS},quantiles_over_time("a",{_PHIS},{{__name__=~"weft_.*"}}[5m])[5m:1m])'


@pytest.mark.parametrize(
    ("path", "given", "told"),
    [
        ("query_range", {"start": 0, "end": 3600, "step": "1ms"}, "3600001 points"),
        ("query_range", {"start": 0, "end": "1e10", "step": "1d"}, "400 days"),
        ("query_range", {"start": 5, "end": 1, "step": "1s"}, "end is before start"),
        ("query_range", {"start": 0, "end": "NaN", "step": "1s"}, "is not a valid time"),
        ("query_range", {"start": 0, "end": 1, "step": "-1"}, "is not a valid duration"),
        ("query_range", {"start": 0, "end": 1}, "step is missing"),
        ("query", {"query": "a" * 5000}, "5000 characters"),
        ("query", {"query": "WITH (f(x) = x) f(weft_guest_cpu_cores)"}, "WITH templates"),
        ("query", {"query": 'label_join(' * 4 + "x" + ',"a","","b")' * 4}, "makes labels"),
        ("query", {"query": 'label_replace(x, "a", "' + "$1" * 60 + '", "a", "(.*)")'}, "makes labels"),
        ("query", {"query": 'l\\abel_join(x, "a", "", "b")'}, "backslash"),
        ("query_range", {"query": MANY_SERIES, "start": 0, "end": 10_999, "step": 1}, "'quantiles_over_time'"),
        ("query", {"query": ""}, "query is missing"),
        ("query", {"timeout": "soon"}, "is not a valid duration"),
        ("series", {}, "selector is missing"),
    ],
)  # fmt: skip
def test_a_bomb_is_refused_with_a_remedy(history: History, path: str, given: dict[str, Any], told: str) -> None:
    answer = ask(history.limited, path, **({"query": "weft_guest_cpu_cores"} if path != "series" else {}) | given)
    assert answer["status"] == "error" and told in answer["error"] and "; " in answer["error"], answer


BOMBS = [
    "sum_over_time(vector(1)[365d:1ms])",
    "(" * 1500 + "1" + ")" * 1500,
    "weft_guest_cpu_cores" + " + weft_guest_cpu_cores" * 150,
    "{__name__=~'(((.+)+)+)+$'}",
    "quantile_over_time(0.5, weft_guest_cpu_cores[300d:1s])",
]


@pytest.mark.parametrize("query", BOMBS)
def test_what_the_database_refuses_or_answers_leaves_it_alive(history: History, query: str) -> None:
    pid = history.own.pid
    assert ask(history.limited, "query", query=query)["status"] in ("success", "error")
    assert names(ask(history.limited, "query", query="weft_guest_cpu_cores")) == OWN
    assert history.own.pid == pid


def test_each_query_of_the_dashboard_is_answered_and_names_what_is_recorded(history: History) -> None:
    reference = Path(__file__).parents[3] / "docs" / "reference"
    board = json.loads((reference / "grafana.json").read_text())
    told = set(re.findall(r"`(weft_\w+)`", (reference / "metrics.md").read_text()))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(expressions) > 8
    for expression in expressions:
        assert set(re.findall(r"weft_\w+", expression)) <= told, expression
        given = {"start": history.now - 60, "end": history.now + 1, "step": 15}
        answer = ask(history.lab.client, "query_range", query=expression.replace("$project", "a|b"), **given)
        assert answer["status"] == "success", answer


def test_a_prometheus_takes_the_samples_and_answers_only_who_may_see_everything(
    tmp_path_factory: pytest.TempPathFactory, history: History
) -> None:
    with run_prometheus(tmp_path_factory.mktemp("prometheus")) as database:
        # A range's points of the last second repeat the point before, as the newest may be incomplete (VictoriaMetrics).
        now = int(time.time() * 1000) - 2_000
        samples = [Sample("weft_guest_cpu_cores", (("name", quote(f"v ü{n}")),), now, n / 3) for n in range(3000)]
        assert history.own.send(samples, lambda: database) == 0
        lab = ApiLab(tmp_path_factory.mktemp("api"), find_metrics=lambda: database)
        try:
            answer = ask(lab.client, "query", query="count(weft_guest_cpu_cores)")
            assert answer["data"]["result"][0]["value"][1] == "3000"
            limited = lab.with_token(use="access", role="viewer", project="default")
            refused = ask(limited, "query", query="weft_guest_cpu_cores")
            assert refused["status"] == "error" and "can't tell projects apart" in refused["error"]
        finally:
            lab.close()


def test_without_a_database_the_answer_says_what_to_do(tmp_path: Any) -> None:
    lab = ApiLab(tmp_path)
    try:
        assert "--metrics" in ask(lab.client, "query", query="weft_node_up")["error"]
    finally:
        lab.close()
