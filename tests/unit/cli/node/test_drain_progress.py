"""What `weft node drain` makes of a node's condition."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from weft.cli.command.target import Target
from weft.cli.output.terminal import Paint
from weft.cli.verbs import node as verbs
from weft.cli.verbs.node import _drained
from weft.kinds.registry import BY_NAME


def test_a_condition_from_before_the_drain_is_passed_over() -> None:
    condition = {"type": "Drained", "status": "False", "message": "drain with --force", "generation": 2}
    node = {"generation": 3, "conditions": [condition]}
    assert _drained(node) is None
    condition["generation"] = 3
    assert _drained(node) == condition
    assert _drained(None) is None and _drained({"generation": 3}) is None


@pytest.mark.parametrize("phase", ["Ready", "Autonomous", "NotReady"])
def test_a_drain_of_a_silent_node_that_nobody_watches_says_that_nothing_leaves_yet(
    phase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"kind": "node", "name": "n3", "generation": 4, "status": {"phase": phase}}
    client = SimpleNamespace(verb=lambda *_: node)
    clock = SimpleNamespace(now=lambda: 1.0)
    session: Any = SimpleNamespace(client=client, clock=clock, detach=True, output="", is_data=False, given_project="")
    assert verbs._drain(session, BY_NAME["node"], ("n3",), "", None, None, False, False) == 0
    said = capsys.readouterr().out
    assert said.startswith("node/n3  is draining") and said.endswith("; watch: weft operation attach node/n3@4\n")
    assert ("sends no heartbeat, so nothing leaves before it is back" in said) is (phase != "Ready")


@pytest.mark.parametrize("silence", ["", "the node sends no heartbeat, so nothing migrates before it is back"])
def test_a_preview_of_a_silent_node_says_that_nothing_leaves_yet(
    silence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leaving = [{"workload": "vm/web", "project": "default", "to": "n2", "mode": "live"}]
    answer = {"status": {"phase": "Done", "leaving": leaving, "message": silence}}
    monkeypatch.setattr(verbs, "ask", lambda *_: answer)
    session: Any = SimpleNamespace(client=SimpleNamespace(get=lambda *_: {}), is_data=False, paint=Paint(False))
    assert verbs._preview(session, Target(BY_NAME["node"], "n3"), False) == 0
    ends = f"; {silence}" if silence else ""
    assert capsys.readouterr().out.splitlines()[-1] == f"1 of 1 can leave{ends}"
