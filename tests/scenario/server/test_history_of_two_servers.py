"""Two servers as processes over a real etcd, each with a database for metrics: the leader is killed, and the other one has the
same history, and what was pending; the killed one returns, and gets what was recorded without it."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.metrics_lab import fetch
from tests.scenario.server.servers_lab import Server, fabric_in, read_servers, tried
from tests.scenario.server.test_server_log import until

from weft.client import Client
from weft.client.server.endpoints import AWAY_HEADER
from weft.telemetry.metrics.database import find_database

OPTIONS = ("--metrics", "local", "--metrics-interval", "1s", "--alert-interval", "1s")
_asked = itertools.count()
pytestmark = pytest.mark.skipif(
    not shutil.which("victoria-metrics") or not shutil.which("vmalert"), reason="needs victoria-metrics"
)


def read_own(server: Server, start: float, end: float) -> set[tuple[str, int, float]]:
    """All samples that the server's own database has of this time. It answers a question from before with series of ten seconds
    ago, so each is a new one."""
    selector = f'{{__name__=~"weft_.*",asked!="{next(_asked)}"}}'
    form = urlencode({"match[]": selector, "start": f"{start:.3f}", "end": f"{end:.3f}"})
    found = set()
    for line in fetch(find_database(server.state, None), "/api/v1/export", form.encode()).splitlines():
        series = json.loads(line)
        found |= {
            (json.dumps(series["metric"], sort_keys=True), at, value)
            for at, value in zip(series["timestamps"], series["values"], strict=True)
        }
    return found


def ask(client: Client, start: float, end: float) -> tuple[Any, str]:
    """A chart of the moments that were recorded, and the servers that it says are away."""
    form = {"query": "weft_metrics_recorded_samples", "start": start, "end": end, "step": "1s"}
    answer = client.http.request("GET", f"/api/v1/query_range?{urlencode(form)}")
    assert answer.status == 200, answer.body
    result = json.loads(answer.body)["data"]["result"]
    return [value[0] for value in result[0]["values"]] if result else [], answer.headers.get(AWAY_HEADER, "")


def test_the_history_outlives_the_leader_and_is_whole_again_at_the_one_that_was_killed(
    tmp_path: Path, etcd: EtcdServer
) -> None:
    with fabric_in(tmp_path, etcd.url, OPTIONS) as fabric:
        fabric.begin()
        first, client = fabric.servers["s1"], fabric.client("s1")
        client.create(
            {
                "kind": "alertrule",
                "name": "waits",
                "project": "default",
                "spec": {"fabric": True, "expr": "weft_metrics_recorded_samples > 0", "for": "10m"},
            }
        )
        began = time.time()
        alerts = until(lambda: client.get("alertrule", "waits")["status"].get("alerts"))
        fabric.join(2)
        second, there = fabric.servers["s2"], fabric.client("s2")

        # What was recorded before it joined is copied to it, and what is recorded now is sent to it.
        before = time.time()
        until(lambda: (chart := ask(there, before, before + 4)[0]) and chart[-1] >= before + 3)
        until(lambda: tried(lambda: read_own(second, began - 5, before + 3) >= read_own(first, began - 5, before + 3)))
        whole = read_own(first, began - 5, before + 3)
        assert len({at for _, at, _ in whole}) > 5
        until(lambda: json.loads((second.state / "metrics/alerts/rules.json").read_bytes())["groups"])

        first.kill()
        killed = time.time()
        assert len(until(lambda: (found := ask(there, began, before + 3)) and not found[1] and found[0])) > 3
        assert read_own(second, began - 5, before + 3) == whole
        until(lambda: tried(lambda: read_servers(there)["s2"] == ("Ready", ["controllers"])))
        led = until(lambda: (chart := ask(there, killed, time.time())[0]) and chart[-1] > killed + 4 and chart[-1])
        rule = there.get("alertrule", "waits")
        assert [one["since"] for one in rule["status"]["alerts"]] == [one["since"] for one in alerts]

        first.start()
        until(lambda: tried(lambda: read_servers(client)["s1"][0] == "Ready"))
        assert ask(client, began, led)[0] == ask(there, began, led)[0]
        until(lambda: tried(lambda: read_own(first, killed, led) == read_own(second, killed, led)))
        assert ask(client, began, led) == ask(there, began, led)
