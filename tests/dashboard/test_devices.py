"""The page of devices: found ones are approved there, and what a stranger wrote stays text. No gateway runs: the test brings what
devices would have said."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, Route, expect

from tests.cluster.cluster import ROOT

Open = Callable[..., Page]
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE = "<img src=x onerror=alert(1)>\u202e"


def make(kind: str, name: str, spec: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "name": name, "project": "default", "uid": f"{kind}-{name}", "spec": spec, "status": status}


def list_devices() -> list[dict[str, Any]]:
    at = time.time()
    found = make(
        "device",
        "door-7",
        {"node": "n1", "protocol": "mqtt", "address": HOSTILE * 5, "approved": False},
        {"phase": "Found", "found": {"manufacturer": HOSTILE * 50, HOSTILE: "x"}},
    )
    cold = make(
        "device",
        "fridge-1",
        {"node": "n1", "model": "cold", "desired": {"setpoint": 4}},
        {
            **{"phase": "Online", "last_seen": at - 5, "drift": ["setpoint"], "problem": HOSTILE * 200},
            "reported": {"temperature": -18.5, "setpoint": 2, "note": HOSTILE * 40},
        },
    )
    calm = make("device", "fridge-2", {"node": "n1", "model": "cold"}, {"phase": "Stale", "reported": {"setpoint": 4}})
    return [calm, cold, found]


def answer(route: Route, asked: list[Any]) -> None:
    """As the API server would; what is asked of it is kept."""
    request, path = route.request, urlsplit(route.request.url).path
    if path.endswith(":approve"):
        asked.append((path, request.post_data_json))
        route.fulfill(json={})
    elif path.endswith("/query_range"):
        span = {name: value[0] for name, value in parse_qs(urlsplit(request.url).query).items()}
        asked.append(span["query"])
        end = float(span["end"])
        values = [[end - 10 * n, str(-18.5 + n / 100)] for n in range(200)]
        route.fulfill(json={"status": "success", "data": {"result": [{"metric": {}, "values": values}]}})
    elif path.endswith("/devicemodels"):
        properties = {"temperature": {"type": "number", "unit": "celsius"}, "setpoint": {"type": "number"}}
        route.fulfill(json={"items": [make("devicemodel", "cold", {"properties": properties}, {})]})
    elif path.endswith("/rules"):
        fired = {"fired": 3, "last_fired": time.time() - 60, "problem": HOSTILE}
        route.fulfill(json={"items": [make("rule", "too-warm", {"when": "temperature > 8"}, fired)]})
    else:
        route.fulfill(json={"items": list_devices()})


def test_a_found_device_is_approved_and_twins_plots_and_rules_show_a_strangers_words_as_text(open_page: Open) -> None:
    asked: list[Any] = []
    page = open_page("", color_scheme="light")
    page.route(
        re.compile(r"/(devices|devicemodels|rules|devices/[^/]+:approve|query_range)(\?|$)"),
        lambda route: answer(route, asked),
    )
    page.evaluate("location.hash = '#/devices?device=default/fridge-1&property=temperature'")
    found = page.get_by_role("region", name="Found devices").get_by_role("row").nth(1)
    expect(found).to_contain_text("onerror")
    assert len(found.inner_text()) < 500
    button = found.get_by_role("button", name="Approve")
    expect(button).to_be_disabled()  # no device is used without a model
    found.get_by_label("Model of door-7").select_option("cold")
    button.click()
    expect(page.get_by_text("Approve: door-7 accepted")).to_be_visible()
    assert ("/v1/projects/default/devices/door-7:approve", {"model": "cold"}) in asked
    twins = page.get_by_role("region", name="Twins").get_by_role("row")
    expect(twins.nth(1)).to_contain_text("setpoint: 2 → 4")  # what differs comes first
    expect(twins.nth(2)).to_contain_text("fridge-2")
    assert len(twins.nth(1).inner_text()) < 1500
    expect(page.get_by_text("1 device isn’t as desired.")).to_be_visible()
    figure = page.get_by_role("figure", name=re.compile("^fridge-1 temperature: temperature -18.5 celsius"))
    expect(figure.locator("canvas")).to_be_visible()
    assert "weft_device_property{project='default',device='fridge-1',property='temperature'}" in asked
    expect(page.locator(".command").first).to_contain_text("weft device metrics fridge-1 --property temperature --plot")
    expect(page.get_by_role("region", name="Rules that fired").get_by_role("row").nth(1)).to_contain_text("too-warm")
    page.evaluate(AXE.read_text())
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("axe.run()")["violations"] == []
