"""Where a server listens: what is refused before it starts, and where it says that others reach it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import free_ports

from weft.contracts.clock import SystemClock
from weft.launch.process import listener
from weft.launch.process.address import find_shown_place
from weft.launch.process.listener import check_listeners
from weft.launch.server.main import main


@pytest.mark.parametrize(
    ("listeners", "own", "shown"),
    [
        (["127.0.0.1:8444"], ["10.0.0.1"], "127.0.0.1:8444"),
        (["127.0.0.1:8444", "10.0.0.2:9444"], ["10.0.0.1"], "10.0.0.2:9444"),
        (["0.0.0.0:8444"], ["10.0.0.1", "10.0.0.2"], "10.0.0.1:8444"),
        (["0.0.0.0:8444"], [], "127.0.0.1:8444"),
        (["localhost:8444", "gate.example:8444"], [], "gate.example:8444"),
        (["[fd00::1]:8444"], [], "[fd00::1]:8444"),
        ([], ["10.0.0.1"], ""),
    ],
)
def test_others_are_given_an_address_that_they_reach(listeners: list[str], own: list[str], shown: str) -> None:
    assert find_shown_place(listeners, own) == shown


@pytest.mark.parametrize(
    ("words", "said", "remedy"),
    [
        (
            ["--listen", "192.0.2.7:9443"],
            "--listen 192.0.2.7:9443 can't be listened at: Cannot assign",
            "of this machine: ",
        ),
        (["--functions", "192.0.2.7:9443"], "--functions 192.0.2.7:9443 can't be listened at", "of this machine: "),
        (["--gateway", "none.invalid:9443"], "--gateway none.invalid:9443 can't be listened at", "of this machine: "),
        (
            ["--gateway", "127.0.0.1:{taken}"],
            "127.0.0.1:{taken} can't be listened at: another process",
            "sport = :{taken}",
        ),
        (["--listen", "0.0.0.0:7", "--gateway", "127.0.0.1:7"], "--gateway 127.0.0.1:7 and --listen have the same", ""),
    ],
)
def test_a_server_is_not_started_where_it_could_not_listen(
    words: list[str],
    said: str,
    remedy: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "PATIENCE_SECONDS", 0.3)
    flags = ("--listen", "--gateway", "--functions")
    free = [word for flag, port in zip(flags, free_ports(3), strict=True) for word in (flag, f"127.0.0.1:{port}")]
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        words = [word.format(taken=taken) for word in words]
        code = main(["--state", str(tmp_path), "--metrics", "off", *free, *words])
        told = capsys.readouterr().err
        assert said.format(taken=taken) in told and remedy.format(taken=taken) in told
        assert ("weft server: another process has the port of --gateway" in told) is ("{taken}" in said)
    assert code == (5 if "another process" in said else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["server.lock"]


@pytest.mark.parametrize("flag", ["--listen", "--gateway", "--functions"])
def test_a_server_is_not_started_at_no_port(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--state", str(tmp_path / "server"), flag, "127.0.0.1:0"])
    assert ended.value.code == 2 and "has port 0" in capsys.readouterr().err
    assert not (tmp_path / "server").exists()


async def test_one_port_of_both_families_is_no_conflict() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    await check_listeners([("--listen", f"0.0.0.0:{port}"), ("--listen", f"[::]:{port}")], SystemClock(), print)


async def test_a_port_that_a_killed_server_still_has_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        place = f"127.0.0.1:{holder.getsockname()[1]}"
        said = asyncio.Queue[str]()
        checking = asyncio.create_task(check_listeners([("--listen", place)], SystemClock(), said.put_nowait))
        assert await said.get() == f"another process has the port of --listen {place}: waiting 10 s at most for its end"
        await asyncio.sleep(0.2)
        assert not checking.done()
    await checking
    assert said.empty()
