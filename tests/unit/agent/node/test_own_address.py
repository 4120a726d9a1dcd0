"""The node's own address: on the route to the server, and the last one where there is no route."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.agent.node import facts
from weft.agent.node.facts import ADDRESS_FILE, find_link, recall_own_address


def test_without_a_route_the_last_good_address_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {"address": "10.0.0.4"}
    monkeypatch.setattr(facts, "find_own_address", lambda host, port: routes["address"])
    assert recall_own_address(tmp_path, "10.0.0.1", 8443) == "10.0.0.4"
    routes["address"] = ""
    assert recall_own_address(tmp_path, "10.0.0.1", 8443) == "10.0.0.4"
    routes["address"] = "10.0.0.5"
    assert recall_own_address(tmp_path, "10.0.0.1", 8443) == "10.0.0.5"
    assert (tmp_path / ADDRESS_FILE).read_text() == "10.0.0.5\n"


@pytest.mark.parametrize("text", [None, "", "nonsense\n", "10.0.0.4.5"])
def test_a_node_that_never_had_a_route_is_on_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    monkeypatch.setattr(facts, "find_own_address", lambda host, port: "")
    if text is not None:
        (tmp_path / ADDRESS_FILE).write_text(text)
    assert recall_own_address(tmp_path, "10.0.0.1", 8443) == "127.0.0.1"


def test_a_machine_without_ip_has_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_link("127.0.0.1") == ""


def test_an_ip_that_cannot_run_here_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ip").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_link("127.0.0.1") == ""
