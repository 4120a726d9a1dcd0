"""Two servers as processes over a real etcd: their logs, events, traces and audit logs are read of both by the command line, and
the one that was killed is named."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.server.servers_lab import WEFT, fabric_in, tried
from tests.scenario.server.test_server_log import until

from weft.client.context import read_context


def test_what_both_wrote_down_is_read_at_either_and_the_killed_one_is_named(tmp_path: Path, etcd: EtcdServer) -> None:
    with fabric_in(tmp_path, etcd.url) as fabric:
        fabric.begin()
        fabric.join(2)
        client, there, path = fabric.client("s1"), fabric.client("s2"), tmp_path / "s2" / "context.json"

        def weft(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run([*WEFT, *words, "--context", str(path)], capture_output=True, text=True, check=False)

        def read_sources(*words: str) -> set[str]:
            said = weft("logs", *words, "-o", "json")
            lines = [json.loads(line) for line in said.stdout.splitlines()]
            assert [one["time"] for one in lines] == sorted(one["time"] for one in lines)
            return {one["source"] for one in lines}

        until(lambda: tried(lambda: read_context(path)))
        client.create({"kind": "project", "name": "at-first", "spec": {}})
        there.create({"kind": "project", "name": "at-second", "spec": {}})
        until(
            lambda: (
                read_sources("server/api", "--filter", "POST /v1/projects 201") == {"server/s1/api", "server/s2/api"}
            )
        )
        assert read_sources("server/s1/api", "--filter", "POST /v1/projects 201") == {"server/s1/api"}
        wanted = {f"server/s{n}/{name}" for n in (1, 2) for name in ("api", "gateway")} | {"server/s1/controllers"}
        until(lambda: wanted <= read_sources("--server"))
        assert "the fabric has no server 's9'" in weft("logs", "server/s9/api").stderr
        assert weft("logs", "server/s1/nothing").returncode == 2
        verified = weft("audit", "verify")
        assert verified.returncode == 0 and verified.stdout.count("are whole") == 2
        for word in ("audit", "events"):
            until(lambda word=word: all(name in weft(word).stdout for name in ("at-first", "at-second")))  # type: ignore[misc]
        traces = json.loads(weft("trace", "list", "-o", "json").stdout)
        assert {one["about"] for one in traces["items"]} >= {"project/-/at-first", "project/-/at-second"}

        fabric.servers["s1"].kill()
        said = until(lambda: (said := weft("audit", "list")).stderr and said)
        assert said.stderr == "warning: server s1 is away: what lies only there is missing\n"
        assert said.returncode == 0 and "at-second" in said.stdout and "at-first" not in said.stdout
        assert json.loads(weft("audit", "list", "-o", "json").stdout)["away"] == ["s1"]
        said = until(lambda: (said := weft("events")).stderr and said)  # it is asked once a second
        assert "at-first" in said.stdout and "server s1 is away" in said.stderr  # it was copied in time
        said = weft("logs", "server/api", "--filter", "POST /v1/projects 201")
        assert "server/s1/api: server s1 is away" in said.stderr and "server/s2/api" in said.stdout
