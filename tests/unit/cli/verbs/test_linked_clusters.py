"""What is said of links with other clusters: what isn't linked, what stays as it is, and what hangs on a link that is deleted."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import click
import pytest

from weft.cli.command.flag_names import name_flags
from weft.cli.command.grammar import load, verbs_of
from weft.cli.preview.unlinking import describe_unlinking
from weft.cli.verbs import delete, migrate, replication, stream
from weft.kinds.registry import BY_NAME
from weft.objects.errors import IllegalTransition, InvalidInput, NotFound, WeftError


class Server:
    """It has vm/shop, which is replicated to west, and links with west and south. ``kept``: the field that it refuses to change."""

    project = "default"
    there = ""

    def __init__(self, kept: str = "", **lists: list[dict[str, Any]]) -> None:
        self.kept, self.lists, self.changed = kept, lists, list[str]()
        self.status: dict[str, Any] = {"attempt": 1}

    def get(self, kind: str, name: str, **_: Any) -> dict[str, Any]:
        if kind == "cluster" and name not in ("west", "south"):
            raise NotFound(f'cluster "{name}" not found', details={"kind": "cluster", "name": name})
        spec = {"cluster": "west", "pool": "local", "project_there": self.there, "replica": ""}
        return {"name": name, "spec": spec, "status": self.status}

    def list(self, kind: str, **_: Any) -> Any:
        return SimpleNamespace(items=self.lists[kind])

    def patch(self, kind: str, name: str, changes: dict[str, Any], **_: Any) -> dict[str, Any]:
        if self.kept:
            raise InvalidInput(f"{self.kept} can never change", field=self.kept, details={"change": "never"})
        self.changed.append(name)
        return {"name": name, **changes}

    def verb(self, kind: str, name: str, verb: str, given: Any) -> dict[str, Any]:
        raise IllegalTransition(f"vm/{name} can't migrate to another cluster: spec.guard")

    def delete(self, kind: str, name: str, **_: Any) -> dict[str, Any]:
        return {"kind": kind, "name": name, "uid": "u", "spec": {}, "status": {}}


def make_session(server: Server) -> Any:
    said: list[str] = []
    return SimpleNamespace(
        client=server,
        project=None,
        given_project=None,
        in_project="",
        is_data=False,
        recorder=None,
        said=said,
        notify=said.append,
    )


def replicate(server: Server, *words: str, destination: str = "west", session: Any = None) -> int:
    return replication._replicate(
        session or make_session(server), None, words, destination, None, "async", None, None, None, False
    )


@pytest.mark.parametrize(
    ("kept", "destination", "said", "remedy"),
    [
        ("spec.cluster", "nope", '--destination: no cluster "nope" is linked', "weft cluster list"),
        ("spec.cluster", "south", "vm/shop is replicated to west already", "create NAME --of vm/shop --cluster south"),
        ("spec.pool", "west", "to west already, and --pool stays local", "weft replication delete shop, at west weft"),
        (
            "spec.project_there",
            "west",
            "to west already, and --project-there stays as it is",
            "weft replica delete shop",
        ),
    ],
)
def test_what_stays_as_it_is_of_a_replication_is_said_in_the_words_of_who_typed_it(
    kept: str, destination: str, said: str, remedy: str
) -> None:
    context = click.Context(load("replicate", verbs_of("cluster")["replicate"], BY_NAME["cluster"]))
    with pytest.raises(WeftError) as refused:
        replicate(Server(kept), "vm/shop", destination=destination)
    told = name_flags(context, refused.value)
    assert said in told.message and remedy in str(told.hint), (told.message, told.hint)


@pytest.mark.parametrize(
    ("status", "there", "freed"),
    [
        ({"attempt": 3, "reason": "notFound"}, "", ""),  # it was refused, so there is nothing to delete
        ({"attempt": 0}, "", ""),
        ({"attempt": 3}, "", ", at west weft replica delete shop"),
        ({"attempt": 3, "reason": "notFound", "point": {"number": 1}}, "", ", at west weft replica delete shop"),
        ({"attempt": 3}, "lab", ", at west weft replica delete shop -p lab"),
    ],
)
def test_a_replica_that_was_never_made_is_not_said_to_be_deleted(
    status: dict[str, Any], there: str, freed: str
) -> None:
    server = Server("spec.pool")
    server.status, server.there = status, there
    with pytest.raises(InvalidInput) as refused:
        replicate(server, "vm/shop")
    assert refused.value.hint == f"to send all of it again: weft replication delete shop{freed}, then this again"


def test_the_remedy_for_a_second_replica_is_a_command_that_exists() -> None:
    command = load("create", verbs_of("replication")["create"], BY_NAME["replication"])
    flags = {name for param in command.params for name in param.opts}
    assert {"--of", "--cluster"} <= flags


def test_ssh_of_a_vm_that_migrated_to_another_cluster_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/ssh")
    monkeypatch.setattr(stream.options, "read_argv", lambda: ["true"])
    server = Server()
    monkeypatch.setattr(
        server,
        "get",
        lambda kind, name: {"kind": kind, "name": name, "spec": {}, "marks": {"departed": "west/default/gone"}},
    )
    with pytest.raises(IllegalTransition, match="vm/gone migrated to cluster west, where it is default/gone"):
        stream._ssh(make_session(server), BY_NAME["vm"], ("root@gone",), "")


def test_only_vms_are_replicated_and_of_a_project_those_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replication, "finish_one", lambda *_: 0)
    with pytest.raises(click.UsageError, match="container/x: only VMs are replicated"):
        replicate(Server(), "container/x")
    vms = [
        {"name": "shop", "spec": {}},
        {"name": "gone", "spec": {}, "marks": {"departed": "west/default/gone"}},
        {"name": "shop-1", "spec": {}, "owner": {"kind": "deployment", "name": "shop"}},
    ]
    server = Server(vm=vms)
    server.status = {"incarnation": 1}
    session = make_session(server)
    assert replicate(server, session=session) == 0 and server.changed == ["shop"]
    assert session.said == [
        "vm/gone  left out: it migrated to west/default/gone: replicate it from there",
        "vm/shop-1  left out: it belongs to deployment/shop, which would start it again beside its copy",
    ]
    assert replicate(server, "vms/shop") == 0  # any word for the kind


def test_a_vm_that_has_not_run_yet_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows when it will; others are waited for all the same."""
    waited, printed = list[str](), list[str]()
    monkeypatch.setattr(replication, "finish_one", lambda _, target, *__: waited.append(target.name) or 0)
    monkeypatch.setattr(
        replication, "finish", lambda _, done, waits: printed.extend(one.line for one in done) or len(waits)
    )
    statuses = {
        "db": {"phase": "Pending", "reason": "insufficientResources", "message": "no node has 64 CPUs"},
        "web": {"phase": "Running", "incarnation": 2},
    }
    server = Server()
    monkeypatch.setattr(
        server, "get", lambda kind, name, **_: {"kind": kind, "name": name, "spec": {}, "status": statuses[name]}
    )
    assert replicate(server, "db", "web") == 0
    assert waited == ["web"]
    assert printed == [
        "waits for vm/db, which has not run yet (Pending: insufficientResources: no node has 64 CPUs); its first point is taken "
        "once it runs"
    ]


@pytest.mark.parametrize(
    ("cluster", "error", "said"),
    [
        ("nope", NotFound, 'no cluster "nope" is linked'),
        ("west", IllegalTransition, "spec.guard"),
        ("", click.UsageError, "--to-cluster is empty"),
    ],
)
def test_a_cluster_that_is_not_linked_is_named_before_what_keeps_a_vm_here(
    cluster: str, error: type[Exception], said: str
) -> None:
    given: dict[str, Any] = dict.fromkeys(("to", "bandwidth", "at", "within", "reason", "timeout"))
    with pytest.raises(error, match=said):
        migrate._run(
            make_session(Server()), BY_NAME["vm"], ("web",), to_cluster=cluster, dry_run=False, detach=False, **given
        )


def replica(name: str, creator: str = "cluster:east", project: str = "default", **marks: Any) -> dict[str, Any]:
    return {"name": name, "project": project, "created_by": creator, "spec": {}, "marks": marks}


def test_what_hangs_on_a_link_is_said_before_it_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delete, "finish_each", lambda *_: 0)
    replicas = [replica("web", automatic=True), replica("db", project="lab"), replica("old", role="primary")]
    server = Server(replica=[*replicas, replica("other", "cluster:south", automatic=True)])
    session = make_session(server)
    assert delete._run(session, BY_NAME["cluster"], ("east",), True, (), ()) == 0
    assert session.said == [
        "replicas from east that stay, and get no points any more: lab/db, web",
        "replicas that take over no more: web; while the witness doesn't answer east, the VMs of these end there within half a "
        "minute",
    ]
    assert describe_unlinking("east", [], "default") == []
    (line,) = describe_unlinking("east", [replica(f"r{count:02}") for count in range(12)], "default")
    assert line.endswith("r09 and 2 more")
