"""A second server joins a fabric over a real etcd, and goes on alone when the first is killed with all its processes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.conformance.store.etcd_server import EtcdServer
from tests.scenario.server.servers_lab import WEFT, Server, fabric_in, make_token, run_weft
from tests.scenario.server.test_server_log import until

import weft
from weft.client.context import hash_ca, read_context
from weft.launch.server.membership.join import join
from weft.launch.server.membership.keys import read_keys
from weft.objects.errors import AlreadyExists, IllegalTransition, InUse, InvalidInput, NotAuthenticated, Unavailable


def test_a_server_joins_and_goes_on_alone_when_the_first_is_killed(
    tmp_path: Path, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fabric_in(tmp_path, etcd.url) as fabric:
        fabric.begin()
        first, client = fabric.servers["s1"], fabric.client("s1")
        digest, other = hash_ca(fabric.context.ca), tmp_path / "s2"
        token = make_token(client, "once")
        for wrong, problem, said in (
            ((token[:-1] + "!", digest, "s2"), InvalidInput, "the token is not one of weft's"),
            ((token[:-4] + "0000", digest, "s2"), NotAuthenticated, "weft token create --use server makes another"),
            ((token, "0" * 64, "s2"), NotAuthenticated, "does not belong to the CA"),
            ((token, "zz", "s2"), InvalidInput, "--ca-sha256: 'zz' is not"),
            ((token, digest, "s1"), AlreadyExists, "choose another name"),
            ((token, digest, "S 2"), InvalidInput, "'S 2'"),
        ):
            with pytest.raises(problem) as refused_join:
                join(other, first.url, *wrong)
            assert said in f"{refused_join.value.message}; {refused_join.value.hint}"
            assert not other.exists()
        with monkeypatch.context() as newer, pytest.raises(IllegalTransition, match="this fabric runs weft"):
            newer.setattr(weft, "__version__", "99.1.0")
            join(other, first.url, token, digest, "s2")
        assert join(other, first.url, token, digest, "s2") == "s2"
        with pytest.raises(NotAuthenticated, match="it lets one server join"):  # whoever has seen it since
            join(other, first.url, token, digest, "s2")
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidInput, match="can't be made a folder"):
            join(tmp_path / "file", first.url, token, digest, "s2")
        with pytest.raises(InUse, match="is called s2"):
            join(other, first.url, token, digest, "s3")
        with pytest.raises(NotAuthenticated, match="it lets one server join"):
            join(tmp_path / "three", first.url, token, digest, "s3")
        with pytest.raises(AlreadyExists, match="another fabric"):
            (tmp_path / "four").mkdir()
            (tmp_path / "four" / "ca.crt").write_text("another")
            join(tmp_path / "four", first.url, make_token(client, "again"), digest, "s4")
        assert read_keys(first.state, "etcd://x:1").files == read_keys(other, "etcd://x:1").files
        assert {oct(path.stat().st_mode & 0o777) for path in other.glob("*.key")} == {"0o600"}
        assert "files" not in json.dumps(client.get("token", "once")) and token not in first.state.name

        refused = Server(tmp_path / "foreign", "--store", etcd.url)  # with a CA of its own
        try:
            until(lambda: "the store holds the objects of another fabric, whose server s1 serves" in refused.read_log())
        finally:
            refused.kill()
        assert not (tmp_path / "foreign" / "context.json").exists()

        fabric.start(2)
        client.create({"kind": "volume", "name": "before", "spec": {"size": "1G"}})
        path = first.state / "context.json"
        assert run_weft(path, "volume", "list") == ["before"]
        assert read_context(path).others == [fabric.servers["s2"].url]  # an answer named it
        first.kill()
        client.create({"kind": "volume", "name": "after", "spec": {"size": "1G"}})  # at the second server
        assert run_weft(path, "volume", "list") == ["after", "before"]
        there = fabric.client("s2")
        assert [one["name"] for one in there.list("volume").items] == ["after", "before"]
        words = [*WEFT, "server", "delete", "s1", "--yes", "--context", str(path)]
        deleted = subprocess.run(words, capture_output=True, text=True, check=True)
        [stays] = [one["name"] for one in there.list("token", labels="weft/server=s1").items]
        assert f"made, stays valid (this command uses it): weft token delete {stays}" in deleted.stderr


def test_a_store_on_the_server_s_own_machine_takes_in_no_other(tmp_path: Path) -> None:
    for store in ("sqlite", "etcd", "etcd:///run/etcd"):
        with pytest.raises(Unavailable, match="no other server can reach them"):
            read_keys(tmp_path, store)
