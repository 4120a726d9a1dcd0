"""A small shop on two nodes, as the guide's pictures show it. Its guests only pretend, so what they would have used and printed is
answered here, to the page's own requests."""

from __future__ import annotations

import base64
import json
import math
import re
import time
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, Route, WebSocketRoute

from tests.scenario.cli_lab import Fabric

COMMANDS = (
    "network create front --cidr 10.40.0.0/24",
    "network create back --cidr 10.41.0.0/24",
    "volume create orders --size 4G",
    "deployment create web --vm --image tiny --cpu 0.5 --memory 512M --replicas 3 --label app=web --min-healthy 0s --detach",
    "service create web --selector app=web --ports 80 --readiness-type none",
    "vm create db --image tiny --cpu 2 --memory 4G --network front --network back --volume orders --label app=db --detach",
    "vm create cache --image tiny --cpu 0.5 --memory 1G --network back --label app=cache --detach",
    "vm create mail --image tiny --cpu 0.5 --memory 512M --network front --detach",
    "vm create training --image tiny --cpu 16 --memory 64G --label team=data --detach",
    "alertrule create node-down --expr weft_node_up==0 --severity critical",
    "backuprepository create safe --url dir://{folder}/safe --detach",
)
LATER = (
    "vm snapshot db --name before-update",
    "backuppolicy create nightly --of vm/db --to safe --schedule daily",
)
PRINTED = (
    ("db", "checkpoint complete: wrote 182 buffers (1.1 %)"),
    ("cache", "evicted 40 keys in 2 ms"),
    ("db", "slow query, 812 ms: SELECT * FROM orders WHERE state = 'open'"),
    ("mail", "ERROR smtp: connection to relay.shop.example refused, trying again in 30 s"),
    ("cache", "hits 9,812, misses 204"),
    ("db", "autovacuum of table orders: 312 pages removed"),
)


def furnish(fabric: Fabric) -> None:
    """Create the shop, and wait until what can run does."""
    (fabric.folder / "safe").mkdir()
    for line in COMMANDS:
        said = fabric.weft(*line.format(folder=fabric.folder).split())
        assert said.code == 0, line + said.err
    for name in ("db", "cache", "mail"):
        assert fabric.weft("wait", f"vm/{name}", "--for=phase=Running", "--timeout", "30s").code == 0
    for line in LATER:
        said = fabric.weft(*line.split())
        assert said.code == 0, line + said.err


def tell_past(page: Page) -> None:
    """Answer the page's questions about the last hour, and its streams of lines and samples."""
    page.route(re.compile(r"/api/v1/query_range\?"), _answer_range)
    page.route_web_socket(lambda url: "/v1/stream" in url, _answer_stream)


def _answer_range(route: Route) -> None:
    asked = {name: values[0] for name, values in parse_qs(urlsplit(route.request.url).query).items()}
    query, end, step = asked["query"], float(asked["end"]), float(asked["step"])
    times = [end - step * place for place in range(60, -1, -1)]
    found = []

    def add(metric: dict[str, str], seed: int, low: float, high: float) -> None:
        values = [[at, str(_wave(place, seed, low, high))] for place, at in enumerate(times)]
        found.append({"metric": metric, "values": values})

    if "label_replace" in query:
        for seed, (of, low, high) in enumerate((("cpu", 1.1, 2.6), ("memory", 3e9, 5e9), ("disk", 4e9, 4.4e9))):
            add({"of": of}, seed, low, high)
    elif "weft_node" in query:
        for seed, node in enumerate(("n1", "n2")):
            add({"__name__": "weft_node_cpu_used_cores", "node": node}, seed, 0.4, 1.9)
            add({"__name__": "weft_node_memory_used_bytes", "node": node}, seed + 2, 1.5e9, 3e9)
    elif "weft_guest" in query:
        add({"__name__": "weft_guest_cpu_cores"}, 1, 0.1, 1.4)
        add({"__name__": "weft_guest_memory_bytes"}, 2, 2.2e9, 3.1e9)
    route.fulfill(json={"data": {"result": found}})


def _wave(place: int, seed: int, low: float, high: float) -> float:
    part = 0.5 + 0.3 * math.sin(place / 7 + seed) + 0.2 * math.sin(place * 1.7 + seed * 3)
    return round(low + (high - low) * min(1.0, max(0.0, part)), 4)


def _answer_stream(socket: WebSocketRoute) -> None:
    words = parse_qs(urlsplit(socket.url).query)["ticket"][0].split(".")[0]
    claims = json.loads(base64.urlsafe_b64decode(words + "=" * (-len(words) % 4)))
    name, now = claims["workload"]["name"], time.time()
    if claims["verb"] == "logs":
        for place, (of, message) in enumerate(PRINTED * 3):
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now - 3600 + 20 * place))
            record = json.dumps({"time": f"{at}.{place:03}000Z", "source": f"vm/{of}", "message": message})
            if of == name:
                socket.send(f"{record if claims['input'].get('aggregate') else message}\n".encode())
    elif claims["verb"] == "metrics":
        socket.send(json.dumps(_make_samples(now)).encode() + b"\n")


def _make_samples(now: float) -> dict[str, object]:
    series = []
    for seed, (name, unit, low, high) in enumerate(
        (
            ("cpu", "cores", 0.1, 1.4),
            ("memory.used", "bytes", 2.2e9, 2.9e9),
            ("nic0.received", "bytes/s", 2e4, 9e5),
            ("nic0.sent", "bytes/s", 1e4, 3e5),
            ("disk0.read", "bytes/s", 0, 4e6),
            ("disk0.written", "bytes/s", 1e5, 8e6),
        )
    ):
        points = [[now - 120 + place, _wave(place, seed, low, high)] for place in range(120)]
        series.append({"name": name, "unit": unit, "points": points})
    return {"granularity": 1, "from": now - 120, "until": now, "series": series}
