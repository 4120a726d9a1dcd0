"""examples/three-tier comes up by one apply, answers, and survives kill -9."""

from __future__ import annotations

import time
import urllib.request

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.test_bad_days import kill

pytestmark = pytest.mark.host


def curl(url: str, seconds: float = 90) -> str:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return urllib.request.urlopen(url, timeout=10).read().decode()
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not answer"
            time.sleep(0.5)


def test_three_tier_comes_up_answers_and_survives_kill_9(cluster: Cluster) -> None:
    port = cluster.free_port()
    for name in ("three-tier.yaml", "three-tier.json"):
        example = cluster.folder / "examples" / name
        example.write_text(example.read_text().replace("8088:80", f"{port}:80"))
    cluster.ok("apply", "-f", "examples/three-tier.yaml", timeout=240)
    page = curl(f"http://127.0.0.1:{port}/")
    assert "db" in page
    assert cluster.run("diff", "-f", "examples/three-tier.yaml").returncode == 0
    assert cluster.run("diff", "-f", "examples/three-tier.json").returncode == 0
    kill(cluster.pids("weft server") + cluster.pids("weft agent"))
    cluster.up()
    assert "db" in curl(f"http://127.0.0.1:{port}/")
    for item in cluster.json("get", "vm")["items"]:
        if item["name"] != "hello":
            cluster.ok("vm", "delete", item["name"], "--yes")
