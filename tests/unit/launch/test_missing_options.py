"""Processes that are started without what they need: a sentence that says what, and nothing on the disk."""

from pathlib import Path

import pytest

from weft.launch.agent.main import main as agent
from weft.launch.edge.main import main as edge
from weft.launch.gateway.main import main as gateway
from weft.launch.witness import configuration
from weft.launch.witness.main import main as witness


def test_a_process_without_what_it_needs_says_what_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(configuration._DEFAULTS, "state", tmp_path / "default")
    monkeypatch.setattr("weft.launch.gateway.main.WAIT_SECONDS", 0.0)
    none, join = str(tmp_path / "none"), ["join", "https://127.0.0.1:1", "--ca-sha256", "a" * 64, "--token-file"]
    for main, argv, said in (
        (witness, ["add-site", "east"], "--config FILE"),
        (witness, [], "--config FILE"),
        (witness, ["remove-site", "east", "--state", none], "none doesn't exist"),
        (edge, [], "the command is missing"),
        (edge, ["gateway"], "node_state is missing"),
        (agent, [*join, none], "weft token create --join"),
        (gateway, ["--state", none], "is the server running?"),
    ):
        assert main(argv) != 0
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
