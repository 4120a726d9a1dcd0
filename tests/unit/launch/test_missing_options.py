"""Processes that are started without what they need: a sentence that says what, and nothing on the disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from weft.launch.agent.main import main as agent
from weft.launch.edge.main import main as edge
from weft.launch.gateway.main import main as gateway
from weft.launch.server.main import main as server
from weft.launch.witness import configuration
from weft.launch.witness.main import main as witness


def test_a_process_without_what_it_needs_says_what_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(configuration, "STATE", tmp_path / "default")
    monkeypatch.setattr("weft.launch.server.configuration.FILE", tmp_path / "server.yaml")
    monkeypatch.setattr("weft.launch.gateway.main.WAIT_SECONDS", 0.0)
    none, join = str(tmp_path / "none"), ["join", "https://127.0.0.1:1", "--ca-sha256", "a" * 64, "--token-file"]
    for main, argv, said in (
        (witness, ["add-site", "east"], "--config FILE"),
        (witness, [], "--config FILE"),
        (witness, ["remove-site", "east", "--state", none], "none doesn't exist"),
        (server, [], "the folder for its data is missing"),
        (edge, [], "the command is missing"),
        (edge, ["gateway"], "node_state is missing"),
        (agent, [*join, none], "weft token create --join"),
        (gateway, ["--state", none], "is the server running?"),
    ):
        assert main(argv) != 0
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "words", "said"),
    [
        (server, ["--publish-on", "foo"], "--publish-on: 'foo' is not an IP address"),
        (server, ["--oidc-issuer", "foo"], "--oidc-issuer: 'foo' is not the URL of an OIDC provider"),
        (server, ["--plain-registry", "a/b"], "--plain-registry: 'a/b' is not a host"),
        (server, ["--listen", "fo!o:1"], "--listen: 'fo!o:1' is not an address and a port"),
        (server, ["--listen", ""], "--listen must not be empty"),
        (server, ["--state="], "--state must not be empty"),
        (gateway, ["--server", "foo"], "--server: server 'foo' is not an https URL"),
        (agent, ["n1", "--server", "foo"], "--server: server 'foo' is not an https URL"),
        (agent, ["n1", "--gateway", "foo"], "--gateway: 'foo' is not an address and a port"),
        (agent, ["n1", "--address", "foo"], "'foo' is not an IP address"),
        (agent, ["join", "foo", "--token", "a", "--ca-sha256", "b"], "server 'foo' is not an https URL"),
        (server, ["restore", ""], "FILE|REPOSITORY must not be empty"),
    ],
)
def test_a_flag_that_can_not_be_is_refused_before_anything_is_made(
    main: Callable[[Sequence[str]], int],
    words: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = [] if words[0] in ("join", "restore", "--state=") else ["--state", str(tmp_path / "state")]
    with pytest.raises(SystemExit) as ended:
        main([*words, *state])
    assert ended.value.code == 2 and said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("main", [server, agent])
def test_a_token_is_not_sought_in_a_file_that_has_no_end(
    main: Callable[[Sequence[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2 << 20)
    name, state = ["--server", "s2"] if main is server else ["--node", "n1"], str(tmp_path / "state")
    for path in (str(tmp_path / "large"), "/dev/zero"):
        words = ["--token-file", path, "--ca-sha256", "a" * 64, "--state", state]
        assert main(["join", "https://127.0.0.1:1", *name, *words]) == 2
        assert f"--token-file {path} can't be read: it has more than a million characters" in capsys.readouterr().err
    assert not Path(state).exists()
