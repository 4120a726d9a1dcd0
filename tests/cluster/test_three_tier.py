"""examples/three-tier comes up by one apply, answers, and survives kill -9."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.test_bad_days import kill

pytestmark = [pytest.mark.host, pytest.mark.timeout(1200)]  # the Debian in it may have to be built first


def read_visits(url: str, seconds: float = 480) -> int:
    """How many visits the page tells of, once all three tiers are there."""
    deadline = time.monotonic() + seconds
    page = "nothing"
    while True:
        try:
            page = urllib.request.urlopen(url, timeout=60).read().decode()
        except OSError as problem:
            page = str(problem)
        if found := re.search(r"visit (\d+), counted by shop-db", page):
            return int(found[1])
        assert time.monotonic() < deadline, f"{url} said {page}"
        time.sleep(0.5)


@pytest.mark.long
def test_three_tier_comes_up_answers_and_survives_kill_9(cluster: Cluster) -> None:
    port = cluster.free_port()
    for name in ("three-tier.yaml", "three-tier.json"):
        example = cluster.folder / "examples" / name
        example.write_text(example.read_text().replace("8088:80", f"{port}:80"))
    cluster.ok("image", "build", "debian-12", timeout=900)
    cluster.ok("apply", "-f", "examples/three-tier.yaml", timeout=600)
    visits = read_visits(f"http://127.0.0.1:{port}/")
    assert cluster.run("diff", "-f", "examples/three-tier.yaml").returncode == 0
    assert cluster.run("diff", "-f", "examples/three-tier.json").returncode == 0
    kill(cluster.pids("weft server") + cluster.pids("weft agent"))
    cluster.up()
    assert read_visits(f"http://127.0.0.1:{port}/") > visits
    cluster.ok("vm", "delete", "shop-web", "shop-app", "shop-db", "--yes")
