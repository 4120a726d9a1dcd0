"""Commands of a machine with systemd and weft's packages: they start the service themselves. ``systemctl`` writes down what it was
asked; the real one runs in the guests of ``tests/host/test_packaged_machine.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from weft.launch.agent import configuration
from weft.launch.agent.configuration import parse_agent
from weft.launch.process import service
from weft.launch.server.configuration import parse_options
from weft.launch.server.membership import address
from weft.launch.server.membership.init import main as init
from weft.objects.errors import DriverFailed, InvalidInput


def test_a_new_server_listens_at_the_address_that_others_reach(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(address, "find_own_address", lambda *_: "10.1.2.3")
    assert init(["--state", str(tmp_path / "s")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"start it: weft server --state {tmp_path / 's'}",
        "then let machines join as nodes: weft token create --join",
    ]
    options = parse_options(["--state", str(tmp_path / "s")], {})
    assert options.listen == ["127.0.0.1:8443", "10.1.2.3:8443"]
    assert (options.gateway, options.functions, options.store) == (["10.1.2.3:8444"], ["10.1.2.3:8445"], "sqlite")
    given = parse_options(["--state", str(tmp_path / "s"), "--listen", "127.0.0.1:1", "--gateway", "127.0.0.1:2"], {})
    assert (given.listen, given.gateway, given.functions) == (["127.0.0.1:1"], ["127.0.0.1:2"], ["10.1.2.3:8445"])


def test_an_address_is_asked_for_where_there_is_no_default_route(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(address, "find_own_address", lambda *_: "")
    with pytest.raises(InvalidInput, match="no default route") as refusal:
        init(["--state", str(tmp_path / "s")])
    assert (
        refusal.value.hint is not None
        and refusal.value.hint.startswith("give --address")
        and not list(tmp_path.iterdir())
    )
    assert init(["--state", str(tmp_path / "s"), "--address", "fd00::1"]) == 0
    assert parse_options(["--state", str(tmp_path / "s")], {}).gateway == ["[fd00::1]:8444"]


def test_the_agent_of_the_only_node_that_has_joined_needs_no_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(configuration, "STATE", tmp_path)
    with pytest.raises(InvalidInput, match=f"no node has joined in {tmp_path}"):
        parse_agent([], {})
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "node.json").write_text("{}")
        if name == "n1":
            assert (parse_agent([], {}).node, parse_agent([], {}).state) == ("n1", tmp_path / "n1")
    with pytest.raises(InvalidInput, match="which node\\? n1, n2 have joined here"):
        parse_agent([], {})
    assert parse_agent(["n2"], {}).state == tmp_path / "n2"
    assert parse_agent(["--state", str(tmp_path / "n2")], {}).node == ""


def test_a_service_that_cannot_start_says_why(tmp_path: Path, monkeypatch) -> None:
    fake = tmp_path / "systemctl"
    fake.write_text(
        f"#!/bin/sh\necho $* >{tmp_path}/asked\n[ $4 = good.service ] || {{ echo 'Unit is masked.' >&2; exit 1; }}\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    service.start_service("good")
    assert (tmp_path / "asked").read_text() == "--quiet enable --now good.service\n"
    with pytest.raises(DriverFailed, match=r"bad can't be started: Unit is masked."):
        service.start_service("bad")


def test_a_machine_without_systemd_has_no_service(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(service, "_SYSTEMD", tmp_path / "missing")
    monkeypatch.setattr(service, "_UNITS", (tmp_path,))
    (tmp_path / "weft-server.service").touch()
    assert not service.has_service("weft-server")
    monkeypatch.setattr(service, "_SYSTEMD", tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert service.has_service("weft-server") and not service.has_service("weft-agent")
