"""The audit log and traces of all servers are read at each of them, by time; one that is away is named."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.server.servers_lab import WEFT
from tests.scenario.two_servers_lab import TwoServers

from weft.client import Client
from weft.client.audit import read_all, read_newest, verify_servers
from weft.client.context import write_context
from weft.client.traces import list_traces, read_trace
from weft.contracts.trace.span import Span
from weft.objects.errors import InvalidInput, NotFound
from weft.telemetry.traces.store import TraceStore

TRACE, OTHER = "ab" * 16, "cd" * 16


def names_of(raws: list[msgspec.Raw]) -> list[str]:
    return [one["name"] for raw in raws for one in msgspec.json.decode(raw)["objects"] if one["kind"] == "volume"]


def make_volumes(lab: TwoServers, count: int = 7) -> list[str]:
    """At the servers in turn, in their order."""
    names = [f"v{number}" for number in range(count)]
    for name in names:
        lab.admin.create({"kind": "volume", "name": name, "spec": {"size": "1G"}})
    return names


def run_weft(lab: ApiLab, *words: str) -> subprocess.CompletedProcess[str]:
    path = lab.folder / "as-admin.json"
    write_context(path, lab.context)
    return subprocess.run([*WEFT, *words, "--context", str(path)], capture_output=True, text=True, check=False)


def test_records_of_both_servers_are_read_by_time_at_each_whatever_the_size_of_a_page(lab: TwoServers) -> None:
    names = make_volumes(lab)
    for client in lab.of_each(lab.first.client):
        assert names_of(read_newest(client.http, {"kind": "volume"})) == names
        assert names_of(read_newest(client.http, {"kind": "volume"}, 3)) == names[-3:]
        assert names_of(list(read_all(client.http, {"kind": "volume"}))) == names
        for limit in (1, 2, 5):
            found, place = list[str](), "0"
            while place != "None":
                answer = client.http.request("GET", f"/v1/audit?kind=volume&limit={limit}&after={place}").json()
                assert len(answer["items"]) <= limit
                found += [one["objects"][0]["name"] for one in answer["items"]]
                place = str(answer["continue"])
            assert found == names
        for wrong in ("s1", "s1:x", "S:1", "s1:1,,", "-1"):
            with pytest.raises(InvalidInput):
                list(read_all(client.http, {"kind": "volume"}, wrong))  # type: ignore[arg-type]


def test_what_one_server_asks_another_for_a_person_is_in_one_log_and_within_that_person_s_rights(
    lab: TwoServers,
) -> None:
    make_volumes(lab)
    lab.admin.create({"kind": "project", "name": "shop", "spec": {}})
    for client in lab.of_each(lab.first.client):
        client.create(
            {"kind": "volume", "name": f"at-{client.context.server[-3:]}", "project": "shop", "spec": {"size": "1G"}}
        )
    auditor = lab.first.with_token(use="access", role="admin", project="shop")
    for client in lab.of_each(auditor):
        found = [msgspec.json.decode(raw) for raw in read_newest(client.http, {})]
        assert {one["project"] for one in found} == {"shop"} and len(names_of(read_newest(client.http, {}))) == 2
    reads = [msgspec.json.decode(raw) for raw in read_newest(lab.first.client.http, {"kind": "audit"})]
    assert len(reads) == 4 and {one["actor"]["kind"] for one in reads} == {"person"}


def test_each_server_s_chain_is_verified_by_itself(lab: TwoServers, tmp_path: Path) -> None:
    make_volumes(lab)
    for client, name, other in zip(lab.of_each(lab.first.client), ("s1", "s2"), ("s2", "s1"), strict=True):
        verdict = verify_servers(client.http)
        assert (verdict.server, list(verdict.others), verdict.away) == (name, [other], [])
        assert verdict.chain != verdict.others[other].chain
    said = run_weft(lab.first, "audit", "verify")
    assert said.returncode == 0 and said.stdout.count(" records are whole") == 2
    assert [line.partition(":")[0] for line in said.stdout.splitlines()][::2] == ["server s1", "server s2"]
    file = tmp_path / "audit.jsonl"
    assert run_weft(lab.first, "audit", "export", str(file)).returncode == 0
    said = run_weft(lab.first, "audit", "verify", str(file))
    assert said.returncode == 0 and said.stdout.count(" records are whole") == 2
    lines = file.read_bytes().splitlines()
    chains = [json.loads(line)["chain"] for line in lines]
    at = chains.index(chains[0], 3)
    file.write_bytes(b"\n".join([*lines[:at], *lines[at + 1 :]]) + b"\n")
    said = run_weft(lab.first, "audit", "verify", str(file))
    assert said.returncode == 1 and "broken at record" in said.stdout and said.stdout.count("are whole") == 1

    (stored,) = (lab.second.folder / "audit").glob("*.jsonl")
    stored.write_bytes(stored.read_bytes().replace(b'"v1"', b'"v9"'))
    said = run_weft(lab.first, "audit", "verify")
    assert said.returncode == 1 and "server s2: broken at record" in said.stdout


def put_spans(server: ApiLab, *spans: Span) -> None:
    server.api.spans = TraceStore(server.folder / "spans", server.folder / "none", server.clock)
    server.api.spans.put(list(spans))


def make_span(
    server: ApiLab, id: str, seconds: float, about: str = "vm/default/web", trace: str = TRACE, **more: Any
) -> Span:
    begin = int((server.clock.now() - 60 + int(id[-1])) * 1e9)
    return Span(trace, id * 16, "", f"step {id}", begin, begin + int(seconds * 1e9), "api", about, **more)


def spans_of(client: Client, trace: str) -> set[str]:
    document = read_trace(client.http, trace)
    return {one["name"] for part in document["resourceSpans"] for scope in part["scopeSpans"] for one in scope["spans"]}


def test_a_trace_whose_spans_lie_on_two_servers_is_one(lab: TwoServers) -> None:
    put_spans(lab.first, make_span(lab.first, "1", 2.0), make_span(lab.first, "4", 1.0, trace=OTHER))
    put_spans(lab.second, make_span(lab.second, "3", 5.0), make_span(lab.second, "2", 1.0, "vm/shop/x"))
    for client in lab.of_each(lab.first.client):
        assert spans_of(client, TRACE) == {"step 1", "step 2", "step 3"}
        assert spans_of(client, OTHER) == {"step 4"}
        newest, oldest = list_traces(client.http, {})
        assert (newest["trace"], oldest["trace"]) == (OTHER, TRACE)
        assert (oldest["name"], oldest["spans"], round(oldest["seconds"])) == ("step 1", 3, 7)
        assert [one["trace"] for one in list_traces(client.http, {"slow": "6"})] == [TRACE]
        with pytest.raises(NotFound):
            read_trace(client.http, "ef" * 16)
    viewer = lab.first.with_token(use="access", role="viewer", project="default")
    for client in lab.of_each(viewer):
        assert spans_of(client, TRACE) == {"step 1", "step 3"}
    lab.announce(s3="")
    answer = lab.first.client.http.request("GET", f"/v1/traces/{TRACE}")
    assert answer.json()["away"] == ["s3"] and answer.headers["weft-servers-away"] == "s3"
    lab.second.run(lab.second.server.close())
    assert spans_of(lab.first.client, TRACE) == {"step 1"}
