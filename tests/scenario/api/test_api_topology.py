"""The network between the nodes at the real API: of reports, heartbeats and what people declared, for the fabric's viewers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab

from weft.client import Client
from weft.client.answer import raise_problem
from weft.objects.errors import Forbidden, InvalidInput, NotFound


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def show(client: Client, query: str = "") -> dict[str, Any]:
    answer = client.http.request("GET", f"/v1/topology{query}")
    raise_problem(answer)
    return dict(answer.json())


def test_links_are_told_as_the_newest_heartbeats_measured_them_and_stored_nowhere(lab: ApiLab) -> None:
    one, two = lab.join("n1"), lab.join("n2")
    one.report(node={"coordinate": [0.0, 0.0, 0.2]})
    two.report(node={"coordinate": [3.0, 4.0, 0.2]})
    declared = {"devices": [{"name": "tor"}], "links": [{"source": "n1", "target": "tor", "bandwidth_mbps": 1000}]}
    lab.client.create({"kind": "networktopology", "name": "fabric", "spec": declared})
    revision = lab.revision()
    estimated = show(lab.client)["links"]
    assert [(link["source"], link["target"], link["latency_ms"], link["measured"]) for link in estimated] == [
        ("n1", "tor", None, False),
        ("n1", "n2", 5.4, False),
    ]
    one.report(digest={"paths": {two.uid: [0.8, 3.0, 940.0, 12.0]}, "link": [94.0, 1.0, 1000.0]})
    told = show(lab.client)
    [link] = [link for link in told["links"] if link["target"] == "n2"]
    assert 12.0 <= link.pop("age_seconds") < 40.0
    assert link == {
        "source": "n1", "target": "n2", "latency_ms": 0.8, "bandwidth_mbps": 940.0, "utilisation": 0.1, "measured": True,
        "declared": False,
    }  # fmt: skip
    assert [(node["name"], node["type"]) for node in told["nodes"]] == [
        ("n1", "host"),
        ("n2", "host"),
        ("tor", "switch"),
    ]
    assert lab.revision() == revision


def test_who_may_not_see_the_whole_fabric_is_refused_and_a_wrong_question_is_explained(lab: ApiLab) -> None:
    node = lab.join("n1")
    for client in (node.client, lab.with_token(use="access", role="admin", project="default")):
        with pytest.raises(Forbidden):
            show(client)
    for query, problem in (("?by=color", InvalidInput), ("?node=nowhere", NotFound)):
        with pytest.raises(problem):
            show(lab.client, query)
    with pytest.raises(InvalidInput):
        lab.client.create({"kind": "networktopology", "name": "mine", "spec": {}})
    viewer = lab.with_token("looks", use="access", role="viewer")
    assert [node["name"] for node in show(viewer, "?node=n1")["nodes"]] == ["n1"]
