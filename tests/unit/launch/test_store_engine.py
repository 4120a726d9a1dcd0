"""Which store a URL names, and what a local cluster on etcd starts."""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path

import msgspec
import pytest
from tests.scenario.controllers_lab import VirtualClock

from weft.contracts.clock import SystemClock
from weft.launch.local.fabric import plan_daemons
from weft.launch.local.processes import Process, is_weft
from weft.launch.local.topology import ETCD, Taken, plan_topology
from weft.launch.server.configuration import parse_options
from weft.launch.server.main import main
from weft.launch.store.engine import find_endpoints, make_store
from weft.launch.store.etcd import QUOTA_BYTES, find_socket, plan_etcd
from weft.launch.store.etcd_log import EtcdLog
from weft.launch.store.member import begin_member, plan_member, read_member, write_member
from weft.objects.errors import InUse, InvalidInput, Unavailable
from weft.protocol.server.join import MemberPlace
from weft.store.etcd import EtcdStore
from weft.store.sqlite import SqliteStore


def test_a_url_names_every_endpoint_of_an_etcd_cluster_or_a_socket() -> None:
    assert find_endpoints("etcd://127.0.0.1:2379") == ["127.0.0.1:2379"]
    assert find_endpoints("etcd://a:1,[::1]:2,c:3/") == ["a:1", "[::1]:2", "c:3"]
    assert find_endpoints("etcds://a:1,b:2") == ["a:1", "b:2"]
    assert find_endpoints("etcd:///run/weft-x/etcd/client:0") == ["/run/weft-x/etcd/client:0"]


@pytest.mark.parametrize("url", ["", "mysql", "postgres://a:1", "etcd://", "etcd://a:1,", "etcd:a:1"])
def test_what_names_no_store_is_refused_where_it_is_typed(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidInput):
        find_endpoints(url)
    with contextlib.suppress(SystemExit):
        main(["--state", "/s", "--store", url])
    assert ("is not a store" if url else "--store must not be empty") in capsys.readouterr().err


def test_the_store_is_sqlite_unless_another_is_named(tmp_path: Path) -> None:
    assert isinstance(make_store(parse_options(["--state", "/s"]).store, tmp_path, SystemClock()), SqliteStore)
    assert isinstance(make_store("etcd://127.0.0.1:1", tmp_path, SystemClock()), EtcdStore)


def test_etcd_over_tls_needs_the_authority_in_the_state_folder(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"ca\.crt"):
        make_store("etcds://a:1", tmp_path, SystemClock())
    (tmp_path / "etcd").mkdir()
    (tmp_path / "etcd" / "ca.crt").write_text("any")
    assert isinstance(make_store("etcds://a:1", tmp_path, SystemClock()), EtcdStore)


def test_an_etcd_of_the_servers_own_is_found_by_make_down_and_by_no_others() -> None:
    topology = plan_topology("/clone", Taken(), store=ETCD)
    [server] = plan_daemons(topology)
    assert "--store etcd" in " ".join(server.argv)
    command = plan_etcd(Path("/clone/.weft/server"), QUOTA_BYTES)
    assert command[command.index("--quota-backend-bytes") + 1] == str(4 << 30)  # as the table of what grows has it
    running = Process(7, 1, tuple(command[4:]))  # what the shell becomes
    assert is_weft(running, [topology.state_dir]) and not is_weft(running, ["/other/.weft"])


def test_an_etcd_of_the_servers_own_needs_a_path_that_a_socket_can_have(tmp_path: Path) -> None:
    assert find_socket(Path("/srv/weft")) == "/srv/weft/etcd/client:0"
    with pytest.raises(Unavailable, match="longer than 107 bytes"):
        find_socket(Path("/srv") / ("x" * 100))


def test_the_folder_of_an_etcd_that_runs_is_never_put_aside(tmp_path: Path) -> None:
    begin_member(tmp_path, "s1", MemberPlace("127.0.0.1"))
    first, data = read_member(tmp_path), tmp_path / "etcd" / "data"
    (data / "member" / "snap").mkdir(parents=True)
    with (data / "member" / "snap" / "db").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as etcd does
        with pytest.raises(InUse, match="still runs"):
            begin_member(tmp_path, "s1", MemberPlace("127.0.0.2"))
        assert data.exists() and read_member(tmp_path) == first
    begin_member(tmp_path, "s1", MemberPlace("127.0.0.2"))
    assert not data.exists() and (data.parent / "data.replaced").exists()


def test_a_server_that_alone_had_the_objects_is_not_sent_to_join_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.launch.store.member.find_etcd", lambda: "etcd")
    begin_member(tmp_path, "s1", MemberPlace("127.0.0.1"))
    begun = msgspec.structs.replace(read_member(tmp_path), has_begun=True)
    for others, said in (({}, "weft server restore FILE"), ({"s2": MemberPlace("127.0.0.2")}, "join again")):
        write_member(tmp_path, msgspec.structs.replace(begun, others=others))
        with pytest.raises(Unavailable, match="is gone") as refused:
            plan_member(tmp_path, SystemClock(), 0)
        assert said in refused.value.hint


def test_lines_of_an_etcd_that_anyone_can_cause_pass_once_a_minute_with_the_count_of_the_others() -> None:
    clock, passed = VirtualClock(), list[str]()
    log = EtcdLog(clock, passed.append)
    for number in range(20):
        log.take(f'2026-11-30 19:32:21 I | embed: rejected connection from "10.0.0.9:{number}" (error "EOF")')
        log.take(f"raft: term {number}")
    clock.advance(61.0)
    log.take('{"level":"warn","msg":"rejected connection","remote-addr":"[::1]:1"}')
    assert len(passed) == 22 and passed[0].endswith('"10.0.0.9:0" (error "EOF")')
    assert passed[-1] == '{"level":"warn","msg":"rejected connection","remote-addr":"[::1]:1"} (19 more like it before)'


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-30 19:32:22.3 C | etcdmain: the disk is gone",
        '{"level":"fatal","ts":"2026","caller":"etcdmain/etcd.go:204","msg":"discovery failed","error":"the disk is gone"}',
        "panic: the disk is gone",
        "weft server: etcd can't be started: the disk is gone; restarting in 0.2 s",
    ],
)
def test_why_an_etcd_ended_is_known(line: str) -> None:
    log = EtcdLog(SystemClock())
    log.take(line)
    log.take("raft: term 5")
    assert log.fatal.startswith("the disk is gone")
