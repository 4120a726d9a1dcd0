"""Traces through real servers and agents: what a write led to is found again, by those who may see it, and by no one else."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab, JoinedNode, make_allocation, make_image, make_vm
from tests.scenario.cli_lab import Fabric, start_fabric

from weft.api.request.trace import RequestTraces
from weft.client import Client
from weft.client.answer import raise_problem
from weft.contracts.trace.context import Context, new_trace, write_traceparent
from weft.contracts.trace.span import Span, Tracer
from weft.objects.errors import Forbidden, NotFound, WeftError
from weft.telemetry.spool import Spool
from weft.telemetry.traces.store import TraceStore

SMALL = ["--image", "tiny", "--cpu", "0.1", "--memory", "64M"]
Spans = list[dict[str, Any]]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiLab]:
    folder = tmp_path_factory.mktemp("api")
    lab = ApiLab(folder)
    tracer = Tracer("api", lab.clock, Spool(folder / "traces" / "api").put)
    lab.api.traces = RequestTraces(tracer, 0.0)
    lab.api.spans = TraceStore(folder / "spans", folder / "traces", lab.clock)
    for project in ("lab", "other", "default"):
        if project != "default":
            lab.client.create({"kind": "project", "name": project, "spec": {}})
        lab.client.apply([{**make_image(), "project": project}])
    yield lab
    lab.api.spans.close()
    lab.close()


def read_spans(client: Client, trace: str) -> dict[str, Any]:
    """By name."""
    answer = client.http.request("GET", f"/v1/traces/{trace}")
    if answer.status != 200:
        return {}
    return {
        span["name"]: {**span, "process": resource["resource"]["attributes"][0]["value"]["stringValue"]}
        for resource in answer.json()["resourceSpans"]
        for span in resource["scopeSpans"][0]["spans"]
    }


def create(client: Client, name: str, project: str, traceparent: str = "") -> str:
    """The trace of the VM's creation."""
    path, headers = f"/v1/projects/{project}/vms", {"traceparent": traceparent} if traceparent else {}
    answer = client.http.request("POST", path, make_vm(name, networks=[]), headers=headers)
    assert answer.status == 201, answer.body
    return str(answer.json()["trace"].partition("-")[0])


def test_a_write_begins_a_trace_or_goes_on_with_its_caller_s(lab: ApiLab) -> None:
    own = create(lab.client, "one", "lab")
    spans = read_spans(lab.client, own)
    root = spans["POST /v1/projects/lab/vms"]
    assert {"admission", "commit"} < spans.keys()
    assert all(spans[name]["parentSpanId"] == root["spanId"] for name in ("admission", "commit"))
    assert "parentSpanId" not in root and root["process"] == "weft/api"
    caller = Context(new_trace(), "5" * 16)
    for sampled in (True, False):  # people's writes are traced whether their caller samples or not
        given = write_traceparent(caller._replace(sampled=sampled))
        assert create(lab.client, f"two-{sampled}".lower(), "lab", given) == caller.trace
    assert read_spans(lab.client, caller.trace)["POST /v1/projects/lab/vms"]["parentSpanId"] == "5" * 16


@pytest.mark.parametrize(
    "forged", ["00-" + "0" * 32 + "-" + "1" * 16 + "-01", "x" * 5000, "ff-" + "a" * 32 + "-" + "1" * 16 + "-01"]
)
def test_a_forged_header_begins_a_trace_of_its_own(lab: ApiLab, forged: str) -> None:
    trace = create(lab.client, f"forged-{new_trace()[:8]}", "lab", forged)
    assert trace not in forged and read_spans(lab.client, trace)


def test_only_reads_that_their_caller_traces_are_traced_and_a_stranger_s_are_not(lab: ApiLab) -> None:
    caller = Context(new_trace(), "5" * 16)
    for path, headers in (
        ("/v1/projects/lab/vms", {"traceparent": write_traceparent(caller)}),
        ("/v1/projects/lab/images", {"traceparent": write_traceparent(caller._replace(sampled=False))}),
        ("/v1/projects/lab/volumes", {"traceparent": write_traceparent(caller), "Authorization": "Bearer nobody"}),
    ):
        lab.client.http.request("GET", path, headers=headers)
    assert set(read_spans(lab.client, caller.trace)) == {"GET /v1/projects/lab/vms"}


def test_what_streams_from_a_guest_doesn_t_hide_the_newest_write(lab: ApiLab) -> None:
    own = create(lab.client, "watched", "lab")
    for verb in ("flows", "logs", "metrics", "exec", "capture"):
        lab.client.http.request("POST", f"/v1/projects/lab/vms/watched:{verb}", {})
    found = lab.client.http.request("GET", "/v1/traces?object=vm/lab/watched").json()["items"]
    assert [one["trace"] for one in found] == [own]


def test_a_forged_id_of_another_project_s_trace_shows_nothing_of_it(lab: ApiLab) -> None:
    theirs = create(lab.client, "secret", "other")
    ann = lab.with_token(use="access", role="editor", project="lab", subject="ann")
    assert read_spans(ann, theirs) == {}
    create(ann, "mine", "lab", f"00-{theirs}-{'5' * 16}-01")
    shown = read_spans(ann, theirs)
    assert set(shown) == {"POST /v1/projects/lab/vms", "admission", "commit"}
    assert "other" not in json.dumps(shown) and "secret" not in json.dumps(shown)
    bob = lab.with_token(use="access", role="viewer", project="other", subject="bob")
    assert "mine" not in json.dumps(read_spans(bob, theirs))
    listed = ann.http.request("GET", "/v1/traces?limit=1000").json()["items"]
    assert listed and all(one["about"].split("/")[1] == "lab" for one in listed)
    with pytest.raises(Forbidden):
        check(ann, "/v1/traces?project=other")
    assert ann.http.request("GET", "/v1/traces?object=vm/other/secret").json()["items"] == []


def test_who_may_see_a_span_is_who_may_see_its_object(lab: ApiLab) -> None:
    """Every built-in role, and one that reads traces but no VMs, in its own project and in the other one."""
    lab.client.apply(
        [{"kind": "role", "name": "tracer", "spec": {"rules": {"trace": ["get", "list"], "image": ["get"]}}}]
    )
    lab.client.apply([{"kind": "role", "name": "blind", "spec": {"rules": {"vm": ["get", "list"]}}}])
    traces = {project: create(lab.client, f"matrix-{project}", project) for project in ("lab", "other")}
    for role, sees in (
        ("viewer", True),
        ("operator", True),
        ("editor", True),
        ("tracer", False),
        ("blind", False),
        ("invoker", False),
    ):
        for limited in (True, False):
            who = lab.with_token(use="access", role=role, subject="eve", **({"project": "lab"} if limited else {}))
            for project, trace in traces.items():
                found = read_spans(who, trace)
                assert bool(found) == (sees and (project == "lab" or not limited)), (role, limited, project)


@pytest.mark.parametrize("id", ["x", "AB" * 16, "0" * 32, "../../etc", "%00" * 8, "a" * 33, "ab" * 16 + "/x"])
def test_what_is_no_id_of_a_trace_is_refused(lab: ApiLab, id: str) -> None:
    assert lab.client.http.request("GET", f"/v1/traces/{id}").status in (400, 404)
    with pytest.raises(NotFound):
        check(lab.client, f"/v1/traces/{'ab' * 16}")


def test_a_node_brings_spans_of_its_own_workloads_and_of_no_others(lab: ApiLab) -> None:
    node = lab.join("n7")
    node.report(node={"capacity": {}})
    lab.client.create({**make_vm("here", networks=[]), "project": "default"})
    lab.put(make_allocation(node, lab.client.get("vm", "here", project="default")))
    trace, now = new_trace(), time.time_ns()
    spans = [
        [trace, f"{number:016x}", "", name, now, now + 10**6, "api", about]
        for number, (name, about) in enumerate(
            [
                ("image", "vm/default/here"),
                ("forged", "vm/other/secret"),
                ("run", "function/lab/any"),
                ("none", "vm/x"),
            ],
            1,
        )
    ]
    spans.append([trace, "a" * 16, "1".zfill(16), "checkout", now, now + 9, "guest/shop", "vm/default/here"])
    spans.append([trace, "b" * 16, "1".zfill(16), "forged", now, now + 9, "guest/shop", "function/lab/any"])
    assert put(node, [], None)["now"] == pytest.approx(time.time(), abs=60)
    assert put(node, spans, 0.0)["refused"] == 3
    found = read_spans(lab.client, trace)
    assert set(found) == {"image", "run", "checkout"}
    assert {span["process"] for span in found.values()} == {"weft/node/n7", "weft/guest/shop"}
    assert found["checkout"]["parentSpanId"] == found["image"]["spanId"]
    with pytest.raises(WeftError):
        put(JoinedNode("n8", node.uid, node.client, node.key, node.context), spans, 0.0)
    with pytest.raises(Forbidden):
        check(lab.client, "/v1/nodes/n7:traces", "POST", {})


def put(node: JoinedNode, spans: list[Any], offset: float | None) -> dict[str, Any]:
    return check(node.client, f"/v1/nodes/{node.name}:traces", "POST", {"spans": spans, "offset": offset})


def check(client: Client, path: str, method: str = "GET", body: Any = None) -> dict[str, Any]:
    answer = client.http.request(method, path, body)
    raise_problem(answer)
    return dict(answer.json())


# --- whole fabrics ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric() as made:
        yield made


def until(find: Callable[[], Any], seconds: float = 40.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)
    return found


def spans_of(fabric: Fabric, what: str) -> Spans:
    said = fabric.weft("trace", what, "-o", "json")
    if said.code:
        return []
    found = []
    for resource in json.loads(said.out)["resourceSpans"]:
        process = resource["resource"]["attributes"][0]["value"]["stringValue"].removeprefix("weft/")
        found += [{**span, "process": process} for span in resource["scopeSpans"][0]["spans"]]
    return found


def test_a_create_is_followed_from_the_request_to_the_running_guest(fabric: Fabric) -> None:
    said = fabric.weft("vm", "create", "web", *SMALL)
    assert said.code == 0 and "trace" not in said.out + said.err
    spans = until(lambda: (s := spans_of(fabric, "vm/web")) and any(one["name"].startswith("ready") for one in s) and
                  any(one["name"] == "boot" for one in s) and s)  # fmt: skip
    places = {one["name"]: one["process"] for one in spans}
    node = next(process for process in places.values() if process.startswith("node/"))
    assert places.items() >= {
        "POST /v1/projects/default/vms": "api", "admission": "api", "commit": "api", "scheduler": "controllers",
        "image": node, "disk": node, "network": node, "start": node, "boot": node, "report: running": "api",
    }.items()  # fmt: skip
    (root,) = [one for one in spans if "parentSpanId" not in one]
    assert root["name"].startswith("POST")
    known = {one["spanId"] for one in spans}
    assert all(one.get("parentSpanId", root["spanId"]) in known for one in spans)
    assert all(int(one["endTimeUnixNano"]) >= int(one["startTimeUnixNano"]) > 0 for one in spans)
    shown = fabric.weft("trace", "vm/web").out
    assert shown.startswith("vm/web") and "Longest: " in shown and "●" in shown
    said = fabric.weft("trace", "list", "--since", "10m", "-o", "json")
    assert root["traceId"] in [one["trace"] for one in json.loads(said.out)["items"]]
    assert root["traceId"] not in fabric.weft("trace", "list", "--slow", "1h").out
    assert root["traceId"] in fabric.weft("trace", "list", "-o", "name").out.split()
    unknown = fabric.weft("trace", "list", "-p", "nope")
    assert unknown.code == 3 and 'project "nope" not found' in unknown.err
    assert "0s is too short" in fabric.weft("trace", "list", "--since", "0s").err
    nameless = fabric.weft("network", "matrix", "-o", "name")
    assert nameless.code == 2 and "-o name is for what has names" in nameless.err
    assert "give at most 25h" in fabric.weft("network", "flows", "--vm", "x", "--since", "26h").err
    assert "give 1 KiB to 1 GiB" in fabric.weft("network", "capture", "vm/x", "--size", "2G").err
    assert "give at most 10m" in fabric.weft("network", "capture", "vm/x", "--seconds", "11m").err
    trace = json.loads(fabric.weft("vm", "get", "web", "-o", "json").out)["trace"]
    assert trace.startswith(root["traceId"])
    assert fabric.weft("trace", root["traceId"]).out.startswith("vm/web")


def test_what_is_no_trace_is_refused_with_what_to_type(fabric: Fabric) -> None:
    for words, code, said in (
        (["ab" * 16], 3, "weft trace list"),
        (["vm/no-such"], 3, "not found"),
        (["vm/web", "--slow", "1s"], 2, "weft trace list"),
    ):
        done = fabric.weft("trace", *words)
        assert (done.code, said in done.err) == (code, True), done.err


def test_a_delete_has_a_trace_of_its_own_also_once_its_object_is_gone(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "brief", *SMALL).code == 0
    assert fabric.weft("vm", "delete", "brief", "--yes", "--wait").code == 0
    spans = until(lambda: (s := spans_of(fabric, "vm/brief")) and any(one["name"] == "Removed" for one in s) and
                  any(one["name"] == "remove-disks" for one in s) and s)  # fmt: skip
    assert any(one["name"].startswith("DELETE") for one in spans)
    assert not any(one["name"] == "start" for one in spans)


def test_a_killed_agent_s_steps_are_found_and_the_one_that_it_was_in_is_not_over(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "pinned", *SMALL, "--node", "n1").code == 0
    (agent,) = [one for one in fabric._processes if isinstance(one.args, list) and one.args[1:3] == ["agent", "n1"]]
    os.kill(agent.pid, signal.SIGSTOP)  # it sends nothing of what it writes
    trace, now = new_trace(), time.time_ns()
    spool = Spool(fabric.folder / "n1" / "traces")
    for id, end in (("1" * 16, now + 10**6), ("2" * 16, 0)):
        spool.put(Span(trace, id, "", "image", now, end, "node/n1", "vm/default/pinned"))
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait()
    assert spans_of(fabric, trace) == []
    fabric._launch("n1", *map(str, agent.args[1:]))  # type: ignore[index]
    spans = until(lambda: spans_of(fabric, trace))
    assert sorted(one["endTimeUnixNano"] == "0" for one in spans) == [False, True]
    assert "has not ended" in fabric.weft("trace", trace).out
