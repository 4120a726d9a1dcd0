"""Three servers with a member of the store each: any one may be killed, given up and replaced."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import PROGRAM
from tests.scenario.server.servers_lab import WEFT, Fabric, Server, fabric_in, make_token, read_servers, tried
from tests.scenario.server.test_server_log import until

from weft.cli.command.exit_codes import CONFLICT, USAGE
from weft.client.answer import raise_problem
from weft.client.context import Context, hash_ca
from weft.client.http import Http
from weft.launch.server.membership.init import begin
from weft.launch.server.membership.join import join
from weft.launch.store.member import read_member
from weft.objects.errors import AlreadyExists, IllegalTransition, InUse, InvalidInput, Unavailable, WeftError
from weft.protocol.server.join import PATH, MemberPlace, ServerJoinInput

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="etcd is not installed (apt-get install etcd-server)")


class Writer:
    """Creates volumes one after the other, at whichever server answers, until it is ended."""

    def __init__(self, fabric: Fabric) -> None:
        self._client, self._ending = fabric.follow(), threading.Event()
        self.made, self.longest = list[str](), 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        last = time.monotonic()
        for number in itertools.count():
            if self._ending.wait(0.05):
                return
            name = f"v{number}"
            while not self._ending.is_set():
                try:
                    volume = {"kind": "volume", "name": name, "spec": {"size": "1G"}}
                    self._client.create(volume, idempotency_key=name)
                except WeftError:
                    continue
                self.made.append(name)
                self.longest, last = max(self.longest, time.monotonic() - last), time.monotonic()
                break

    def go_on(self) -> None:
        """Return once it has created more."""
        count = len(self.made)
        until(lambda: len(self.made) > count + 20)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()


def test_a_killed_server_of_three_is_given_up_and_replaced(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric:
        fabric.begin()
        fabric.join(2)
        fabric.join(3, by="s2")
        first, frozen = fabric.client("s1"), fabric.servers["s2"].find_process("etcd")
        os.kill(frozen, signal.SIGSTOP)
        until(lambda: "its member of the store at" in first.get("server", "s2")["status"]["message"])
        assert read_servers(first)["s2"][0] == "NotReady"
        os.kill(frozen, signal.SIGCONT)
        until(lambda: read_servers(first)["s2"][0] == "Ready")
        with Writer(fabric) as writer:
            until(lambda: len(writer.made) > 20)
            fabric.servers["s1"].kill()  # it leads
            writer.go_on()
            third = fabric.client("s3")
            token, digest = make_token(third, "while-one-is-away"), hash_ca(fabric.context.ca)
            with pytest.raises(IllegalTransition, match="member of the store: one of its members is away"):
                join(tmp_path / "s4", fabric.servers["s3"].url, token, digest, "s4", fabric.place(4))
            until(lambda: tried(lambda: read_servers(third)["s1"] == ("NotReady", [])))
            assert sum(leads == ["controllers"] for _, leads in read_servers(third).values()) == 1
            third.delete("server", "s1")
            fabric.join(4, by="s3")
            writer.go_on()
        assert {one["name"] for one in fabric.client("s4").list("volume").items} >= set(writer.made)
        assert set(read_member(tmp_path / "s4").others) == {"s2", "s3"}

        fabric.servers["s1"].start()  # it was removed while it was away: nobody takes it back
        assert_removed(fabric.servers["s1"])
        assert "s1" not in read_servers(third)


@pytest.mark.long
def test_any_of_three_servers_may_be_killed_in_turn(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric:
        fabric.begin()
        fabric.join(2)
        fabric.join(3)
        with Writer(fabric) as writer:
            for number in range(9):
                name = f"s{number % 3 + 1}"
                fabric.servers[name].kill()
                writer.go_on()
                fabric.servers[name].start()
                until(lambda name=name: tried(lambda: read_servers(fabric.client(name))))
                writer.go_on()
        for name in fabric.servers:
            assert {one["name"] for one in fabric.client(name).list("volume").items} >= set(writer.made)


def assert_removed(server: Server) -> None:
    """It has said so once, and ended with all its processes."""
    assert server.process.wait(60) == CONFLICT
    assert server.read_log().count("was removed from its fabric, and has stopped") == 1
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(server.state).encode() in read_bytes(path)]


@pytest.mark.long
def test_a_server_that_runs_is_removed_also_from_two(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric:
        fabric.begin()
        fabric.join(2)
        with Writer(fabric) as writer:
            until(lambda: len(writer.made) > 20)
            fabric.client("s1").delete("server", "s1")  # it answers, and leads
            writer.go_on()
            assert_removed(fabric.servers["s1"])
            second = fabric.client("s2")
            until(lambda: tried(lambda: read_servers(second)) == {"s2": ("Ready", ["controllers"])})
        assert {one["name"] for one in second.list("volume").items} >= set(writer.made)
        until(lambda: not read_member(tmp_path / "s2").others)
        fabric.servers["s1"].start()
        assert fabric.servers["s1"].process.wait(60) == CONFLICT  # it knows, and asks nobody


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def run_restore(state: Path, file: Path) -> subprocess.CompletedProcess[str]:
    words = [*WEFT, "server", "restore", str(file), "--state", str(state)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.long
def test_a_backup_comes_back_with_one_server_and_the_others_join_it_again(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric:
        fabric.begin()
        fabric.join(2)
        fabric.client("s1").create({"kind": "volume", "name": "before", "spec": {"size": "1G"}})
        file = tmp_path / "saved"
        subprocess.run([*WEFT, "server", "backup", str(file), "--state", str(tmp_path / "s2")], check=True)
        fabric.client("s1").create({"kind": "volume", "name": "after", "spec": {"size": "1G"}})
        fabric.servers["s1"].kill()
        refused = run_restore(tmp_path / "s1", file)
        assert refused.returncode and "server s2 runs: its member of the store answers" in refused.stderr
        fresh = tmp_path / "fresh"  # of a machine that lost its disk: only the backup knows of s2
        words = ["server", "init", "--state", str(fresh), "--server", "s1", "--member", fabric.place(1).client]
        subprocess.run([*WEFT, *words], check=True)
        refused = run_restore(fresh, file)
        assert refused.returncode and "server s2 runs: its member of the store answers" in refused.stderr
        fabric.servers["s2"].kill()
        done = run_restore(tmp_path / "s1", file)
        assert done.returncode == 0, done.stderr
        assert "etcd/data.replaced:" in done.stderr
        again = run_restore(tmp_path / "s1", file)
        assert "etcd/data.replaced-2:" in again.stderr
        for said in (done, again):  # and nothing of what the etcd says
            first, *lines = (said.stdout + said.stderr).splitlines()
            assert first.endswith(f"← {file}") and [line[:11] for line in lines] == [
                "What was th",
                "Start the s",
                "The store h",
            ]
            assert "Let s2 join it again" in lines[-1]
        fabric.servers["s1"].start()
        first = fabric.client("s1")
        until(lambda: tried(lambda: read_servers(first)["s2"][0] == "NotReady"))
        fabric.servers["s2"].start()  # it still has the former store, which would be another fabric
        assert fabric.servers["s2"].process.wait(60) in (USAGE, CONFLICT)
        said = fabric.servers["s2"].read_log()  # by whether its own etcd answers when it looks
        assert "are of different clusters" in said or "was removed from its fabric" in said
        assert [one["name"] for one in first.list("volume").items] == ["before"]
        first.delete("server", "s2")
        shutil.rmtree(tmp_path / "s2")
        fabric.join(2)
        assert [one["name"] for one in fabric.client("s2").list("volume").items] == ["before"]


def test_a_backup_of_members_in_a_new_folder_says_which_store_it_has_and_how_to_get_members(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric:
        fabric.begin()
        state, place, file = tmp_path / "s1", fabric.place(1), tmp_path / "saved"
        fabric.servers["s1"].kill()
        words = [*WEFT, "server", "backup", str(file), "--state", str(state)]
        said = subprocess.run(words, capture_output=True, text=True, check=True)  # by an etcd of its own
        assert len((said.stdout + said.stderr).splitlines()) == 2
        done = run_restore(tmp_path / "new", file)
        assert done.returncode == 0 and "Objects are in sqlite now; in the backup s1 " in done.stderr
        assert f"weft server move-store members --member ADDRESS --state {tmp_path / 'new'}" in done.stderr
        with socket.create_server((place.host, place.port)):
            done = run_restore(state, file)
        assert done.returncode == 1 and done.stderr.splitlines() == [
            f"error: the store can't be started: listen tcp {place.client}: bind: address already in use",
            "mend that, then try again",
        ]
        assert run_restore(state, file).returncode == 0


@pytest.mark.long
def test_silent_connections_to_a_member_are_logged_once_a_minute(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric:
        fabric.begin()
        place, server = fabric.place(1), fabric.servers["s1"]
        for _ in range(20):
            socket.create_connection((place.host, place.port)).close()
        until(lambda: "rejected connection" in server.read_log())
        server.kill(signal.SIGTERM)
        server.process.wait()
        log = server.read_log()
        assert log.count("rejected connection") == 1 and "ready to serve client requests" in log


def test_of_servers_that_join_together_one_is_taken_in(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric, ThreadPoolExecutor(4) as threads:
        fabric.begin()
        first, url = fabric.client("s1"), fabric.servers["s1"].url

        def ask(number: int) -> str:
            token = make_token(first, f"t{number}-{time.monotonic_ns()}")
            joiner = Http(
                Context(server=url, ca=fabric.context.ca, token=token, server_name=fabric.context.server_name)
            )
            given = ServerJoinInput(f"s{number}", f"u{number}", fabric.place(number).client)
            try:
                raise_problem(joiner.request("POST", PATH, given))
                return given.name
            except InUse as problem:
                assert "is joining" in problem.message, problem
                return ""
            finally:
                joiner.close()

        for _ in range(6):
            taken = [name for name in threads.map(ask, range(2, 6)) if name]
            assert len(taken) == 1
            assert ask(6) == ""  # its member is still there
            first.delete("server", taken[0])


def test_what_a_fabric_of_members_refuses(tmp_path: Path) -> None:
    with fabric_in(tmp_path) as fabric:
        fabric.begin()
        first, digest, url = fabric.client("s1"), hash_ca(fabric.context.ca), fabric.servers["s1"].url
        token = make_token(first, "t")
        for member, problem, said in (
            (None, InvalidInput, "it isn't said where the new one will be"),
            (fabric.place(1), InUse, "another process has 2379"),
            (MemberPlace("192.0.2.1"), InvalidInput, "--member 192.0.2.1:2379 can't be listened at"),
            (MemberPlace(fabric.place(1).host, 2380), InUse, "another process has 2380"),
        ):
            with pytest.raises(problem, match=said):
                join(tmp_path / "s2", url, token, digest, "s2", member)
            assert not (tmp_path / "s2").exists()
        joiner = Http(Context(server=url, ca=fabric.context.ca, token=token, server_name=fabric.context.server_name))
        host, has_it = fabric.place(1).host, "is the member of server s1, which has the next port, too"
        for given, problem, said in (  # as of another machine that took the address for its own
            *((f"{host}:{port}", AlreadyExists, has_it) for port in (2378, 2379, 2380)),
            ("0.0.0.0", InvalidInput, "can be reached"),
            ("255.255.255.255", InvalidInput, "can be reached"),
            ("127.0.0.1:65535", InvalidInput, "can be reached"),
            ("192.0.2.1", InvalidInput, "the members can.t reach each other"),
        ):
            with pytest.raises(problem, match=said):
                raise_problem(joiner.request("POST", PATH, ServerJoinInput("s2", "u", given)))
        joiner.close()
        for name in ("notes.txt", ".git"):
            (tmp_path / "s2" / name).mkdir(parents=True)
        for attempt in (
            lambda: join(tmp_path / "s2", url, token, digest, "s2", fabric.place(2)),
            lambda: begin(tmp_path / "s2", "s2", fabric.place(2)),
        ):
            with pytest.raises(InvalidInput, match=r"isn't empty: it has \.git, notes\.txt"):
                attempt()
        assert {path.name for path in (tmp_path / "s2").iterdir()} == {".git", "notes.txt"}
        shutil.rmtree(tmp_path / "s2")
        assert join(tmp_path / "s2", url, token, digest, "s2", fabric.place(2)) == "s2"
        said = next(one for one in first.list("server").items if one["name"] == "s2")
        assert said["status"]["message"] == "server s2 has joined, and was never started"
        with pytest.raises(InUse, match="server s2 is joining"):
            join(tmp_path / "s3", url, make_token(first, "u"), digest, "s3", fabric.place(3))
        with pytest.raises(InUse, match="no other server is Ready"):
            first.delete("server", "s1")
        first.delete("server", "s2")  # given up before it was ever started
        with pytest.raises(AlreadyExists, match="keeps its objects in members"):
            begin(tmp_path / "s2", "s2", fabric.place(2))

        fabric.join(3)
        assert json.loads((tmp_path / "s1" / "etcd" / "member.json").read_bytes())["has_vote"]
        fabric.servers["s3"].kill()
        with pytest.raises(Unavailable) as refused:  # one of two is no majority
            first.create({"kind": "volume", "name": "v", "spec": {"size": "1G"}})
        assert refused.value.hint == "more than half of its members must run: start the servers that are away"
        data = tmp_path / "s3" / "etcd" / "data"
        data.rename(tmp_path / "lost")
        fabric.servers["s3"].start()
        until(lambda: "the data of this server's member of the store, is gone" in fabric.servers["s3"].read_log())
        (tmp_path / "lost").rename(data)
        until(lambda: tried(lambda: read_servers(first)["s3"][0] == "Ready"))
        assert first.create({"kind": "volume", "name": "v", "spec": {"size": "1G"}})["name"] == "v"
