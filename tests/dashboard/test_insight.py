"""What weft knows of a workload, and the map of the network. Nodes here have neither past nor network: the test brings both."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from tests.cluster.cluster import ROOT
from tests.scenario.cli_lab import Fabric

Open = Callable[..., Page]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
TINY = ("--image", "tiny", "--cpu", "1", "--memory", "128M")
HOSTILE = "<img src=x onerror=alert(1)>\u202e"
PROFILE = re.compile(r"/workloadprofiles/")
HISTORY = re.compile(r"/api/v1/query_range")
TOPOLOGY = re.compile(r"/v1/topology")
DAY = 86_400


@pytest.fixture(scope="module", autouse=True)
def known(fabric: Fabric) -> None:
    said = fabric.weft("vm", "create", "known", *TINY)
    assert said.code == 0, said.err


def make_profile(at: float) -> dict[str, object]:
    peak = {"at": at + 7200, "start": at + 3600, "end": at + 9000, "value": 1.75}
    pattern = {
        **{"type": "diurnal", "cycle_seconds": DAY, "confidence": 0.93, "peaks": [peak], "troughs": [], "fold_at": at},
        "fold": [1 + math.sin(part / 48 * 2 * math.pi) for part in range(48)],
    }
    forecast = {"low": 0.5, "high": 1.5, "method": HOSTILE}
    return {
        **{
            "looked_at": at,
            "sampled_at": at,
            "history_seconds": 7 * DAY,
            "resource": "cpu",
            "unit": "cores",
            "full": 2,
        },
        "patterns": [pattern, {**pattern, "type": HOSTILE, "fold": []}],
        "prediction": {
            "24h": {"seconds": DAY, "value": 0.9, **forecast},
            "5m": {"seconds": 300, "value": 1.1, **forecast},
        },
        "signature": {"class": "cyclic", "probability": 0.97},
        "stability": 0.42,
        "correlations": [{"resource": "cpu", "other": "network", "workload": "vm/peer", "correlation": 0.61}],
        "anomalies": [
            {"at": at - DAY, "channel": channel, "value": 1.9, "low": 0.1, "high": 1.2, "score": 4.5}
            for channel in ("jump", HOSTILE)
        ],
        "missing": {},
    }


def make_history(route: Route) -> None:
    asked = {
        name: float(value[0]) for name, value in parse_qs(urlsplit(route.request.url).query).items() if name != "query"
    }
    moments = np.arange(asked["end"] - 7 * DAY, asked["end"] + 1, asked["step"])
    values = [[at, str(1 + math.sin(at / DAY * 2 * math.pi))] for at in moments.tolist() if at % 40_000 > 4000]
    route.fulfill(json={"status": "success", "data": {"result": [{"metric": {}, "values": values}]}})


def check_both_schemes(page: Page) -> None:
    page.evaluate(AXE.read_text())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("axe.run()")["violations"] == []


def test_a_workload_shows_its_week_what_comes_its_cycles_and_what_was_unusual(open_page: Open) -> None:
    page = open_page("o/vm/default/known", color_scheme="light")
    page.route(PROFILE, lambda route: route.fulfill(json={"status": make_profile(time.time())}))
    page.route(HISTORY, make_history)
    page.get_by_role("link", name="Insight").click()
    main = page.get_by_role("main")
    for words in (
        "cyclic, 97 % sure",
        "0.42",
        "peak at",
        "93 % sure",
        "it jumped",
        "1.9 cores",
        "31,623 samples",
        "0.61",
    ):
        expect(main).to_contain_text(words)
    expect(main).to_contain_text("onerror")
    expect(page.get_by_role("figure").filter(has_text="Used, and what comes").locator("canvas")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^One cycle"))).to_be_visible()
    expect(main.get_by_role("row").nth(1)).to_contain_text("5m")
    expect(page.locator(".command")).to_contain_text("weft insight vm/known --plot")
    check_both_schemes(page)


def test_young_and_without_history_it_says_why_nothing_is_known(open_page: Open) -> None:
    page = open_page("o/vm/default/known")
    told: list[dict[str, object]] = []
    page.route(PROFILE, lambda route: route.fulfill(json=told[0]) if told else route.fulfill(status=404, json={}))
    refusal = {"message": "no history of metrics is kept", "hint": "weft server --metrics local"}
    page.route(HISTORY, lambda route: route.fulfill(status=503, json=refusal))
    page.get_by_role("link", name="Insight").click()
    main = page.get_by_role("main")
    expect(main).to_contain_text("Nothing is known of it yet")
    reason = "patterns take three days of history; there are 2 h"
    told.append({"status": {"signature": {"class": "unknown", "probability": 0}, "missing": {"patterns": reason}}})
    page.reload()
    for words in (reason, "no history of metrics is kept; weft server --metrics local", "Nothing is forecast yet"):
        expect(main).to_contain_text(words)


def make_node(name: str, zone: str, rack: str) -> dict[str, object]:
    return {"name": name, "type": "host", "zone": zone, "rack": rack, "online": True, "nodes": 1, "sent_mbps": 12.5}


def test_the_map_groups_nodes_and_says_what_their_links_have(open_page: Open) -> None:
    nodes = [make_node(f"n{at}", "west", f"r{at // 10}") for at in range(20)] + [make_node(HOSTILE, HOSTILE, "")]
    names = [str(node["name"]) for node in nodes]
    links = [
        {
            **{"source": one, "target": other, "latency_ms": 0.25 + at, "bandwidth_mbps": 940 if at else None},
            **{"utilisation": 0.125, "age_seconds": 30 if at else None, "measured": bool(at), "declared": False},
        }
        for place, one in enumerate(names)
        for at, other in enumerate(names[place + 1 :])
    ]
    page = open_page("map", color_scheme="light")
    page.route(TOPOLOGY, lambda route: route.fulfill(json={"nodes": nodes, "links": links, "left_out": 7}))
    page.reload()
    drawing = page.get_by_role("group", name="21 nodes in 3 places with 210 links")
    expect(drawing).to_contain_text("west / r1")
    expect(page.get_by_text("Choose a node to see its links")).to_be_visible()
    table = page.get_by_role("region", name="Links")
    expect(table.get_by_role("row")).to_have_count(201)
    expect(page.get_by_text("and 17 more")).to_be_visible()
    drawing.get_by_role("link", name="n0", exact=True).click()
    expect(table.get_by_role("row")).to_have_count(21)
    expect(table.get_by_role("row").nth(1)).to_contain_text("onerror")
    expect(table.get_by_role("row").nth(1)).to_contain_text("940 Mbit/s")
    expect(table.get_by_role("row").last).to_contain_text("estimated")
    expect(drawing.locator("line")).to_have_count(20)
    check_both_schemes(page)


def test_who_may_not_see_the_network_is_told_and_asks_for_nothing(open_page: Open) -> None:
    asked: list[str] = []
    page = open_page()

    def limit(route: Route) -> None:
        who = route.fetch().json()
        who["permissions"] = {"everywhere": [], "projects": {"default": ["vm:list", "vm:flows"]}}
        route.fulfill(json=who)

    page.route(re.compile("/v1/whoami"), limit)
    page.route(TOPOLOGY, lambda route: (asked.append(route.request.url), route.abort())[1])
    page.reload()
    page.evaluate("location.hash = '#/map'")
    expect(page.get_by_role("main")).to_contain_text("networktopology:get")
    expect(page.get_by_role("heading", name="Who sends how much to whom")).to_be_visible()
    assert asked == []
