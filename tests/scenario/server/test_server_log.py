"""The server's own log, read through the command: of all its processes, beside nodes', by the fabric's administrators only."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scenario.api_lab import ApiLab
from tests.scenario.cli_lab import Fabric, start_fabric
from tests.unit.telemetry.test_log_export import Collector

from weft.client.api import Client
from weft.client.context import read_context
from weft.contracts.clock import SystemClock
from weft.contracts.journal import Event
from weft.objects.identity import Ref
from weft.telemetry.logs.server import DepartureJournal, KeptLog, ServerLog
from weft.telemetry.logs.store import LogStore

COLLECTOR = Collector()


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with start_fabric(agent_options=("--log-otlp", f"http://127.0.0.1:{COLLECTOR.server_port}")) as made:
        yield made


def until(find: Callable[[], Any], seconds: float = 40.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
    return found


def read(fabric: Fabric, *words: str) -> list[dict[str, str]]:
    said = fabric.weft("logs", *words, "-o", "json")
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


def find_all(fabric: Fabric, sources: set[str]) -> list[dict[str, str]]:
    found = read(fabric, "--server", "node/n1")
    return found if sources <= {one["source"] for one in found} else []


def find_process(fabric: Fabric, name: str) -> int:
    """The server's process of that name."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "server" in words and words[words.index("server") + 1] == name and str(fabric.context) in words:
            return int(path.parent.name)
    raise AssertionError(f"no process {name}")


def test_all_of_the_server_s_processes_and_a_node_are_read_together_by_time(fabric: Fabric) -> None:
    assert fabric.weft("project", "create", "one").code == 0
    wanted = {"server/api", "server/controllers", "server/gateway", "node/n1"}
    until(lambda: read(fabric, "server/api", "--filter", "POST /v1/projects 201"))
    lines = until(lambda: find_all(fabric, wanted))
    assert [one["time"] for one in lines] == sorted(one["time"] for one in lines)
    assert any("POST /v1/projects 201" in one["message"] for one in lines)
    only = read(fabric, "server/gateway", "--filter", "listening on")
    assert only and {one["source"] for one in only} == {"server/gateway"}
    assert read(fabric, "server/gateway", "--regex", "^INFO listen.*[0-9]$", "--tail", "1") == only[-1:]
    assert read(fabric, "server/gateway", "--until", "1h") == []
    assert fabric.weft("logs", "server/api", "--tail", "2").out.count("\n") == 2


def test_a_collector_gets_what_nodes_log_from_their_start_on(fabric: Fabric) -> None:
    wanted = {(f"node/{node}", f"INFO node {node} has 0 allocations and 0 running guests") for node in ("n1", "n2")}
    until(lambda: wanted <= set(COLLECTOR.lines))


def test_a_killed_process_s_last_words_and_its_end_are_there(fabric: Fabric) -> None:
    before = read(fabric, "server/gateway")
    os.kill(find_process(fabric, "gateway"), signal.SIGKILL)
    lines = until(lambda: read(fabric, "server/supervisor", "--filter", "gateway exited with -9"))
    assert len(lines) == 1
    after = until(lambda: (found := read(fabric, "server/gateway", "--filter", "listening on")) and len(found) > 1)
    assert after and read(fabric, "server/gateway")[: len(before)] == before


def test_no_secret_and_nothing_that_acts_on_a_terminal_comes_into_it(fabric: Fabric) -> None:
    context = read_context(fabric.context)
    client = Client(context)
    try:
        for path in (f"/v1/{context.token}", "/v1/x%1b%5b2J%0aFORGED%20line", f"/v1/nodes?token={context.token}"):
            assert client.http.request("POST", path, {}).status >= 400
    finally:
        client.http.close()
    until(lambda: read(fabric, "server/api", "--filter", "\\x1b[2J"))
    lines = read(fabric, "--server")
    assert context.token and not any(context.token in one["message"] for one in lines)
    assert not any(one["message"].startswith("FORGED") or "\x1b" in one["message"] for one in lines)


def test_only_the_fabric_s_administrators_read_it(fabric: Fabric) -> None:
    fabric.weft("project", "create", "shop")
    roles = {"fabric-admin": True, "editor": False, "admin -p shop": False, "viewer": False}
    for number, (role, allowed) in enumerate(roles.items()):
        words = ["--role", *role.split()]
        made = json.loads(fabric.weft("token", "create", f"t{number}", *words, "-o", "json").out)
        admin = read_context(fabric.context)
        client = Client(type(admin)(server=admin.server, ca=admin.ca, token=made["secret"]))
        try:
            status = client.http.request("GET", "/v1/server/logs/api?tail=1").status
        finally:
            client.http.close()
        assert status == (200 if allowed else 403), words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["server/etcd"], "api, controllers, gateway"),
        (["--server", "--regex", "("], "not a regular expression"),
        (["--server", "--tail", "5001"], "at most 5000"),
        (["--server", "--since", "1m", "--until", "2m"], "no line is newer"),
    ],
)
def test_what_can_not_be_asked_is_refused_in_words(fabric: Fabric, words: list[str], said: str) -> None:
    done = fabric.weft("logs", *words)
    assert done.code != 0 and said in done.err


def test_a_follower_gets_what_comes_and_pages_leave_nothing_out(fabric: Fabric) -> None:
    following = fabric.spawn("logs", "server/api", "-f", "--tail", "0")
    try:
        assert following.stdout is not None
        time_begun = time.monotonic()
        names = iter(range(1000))
        found = ""
        while not found:  # until it follows
            assert time.monotonic() - time_begun < 40
            fabric.weft("project", "create", f"f{next(names)}")
            if select.select([following.stdout], [], [], 0.2)[0]:
                found = os.read(following.stdout.fileno(), 65536).decode()
        assert "/v1/projects 201" in found
    finally:
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=20)
    client = Client(read_context(fabric.context))
    try:
        whole = client.http.request("GET", "/v1/server/logs/api").json()
        middle = whole["next"] - len(whole["items"]) // 2
        rest = client.http.request("GET", f"/v1/server/logs/api?from={middle}").json()["items"]
    finally:
        client.http.close()
    assert rest[: len(whole["items"]) // 2] == whole["items"][-(len(whole["items"]) // 2) :]


SMALL = ("--image", "tiny", "--cpu", "0.1", "--memory", "64M")


def print_lines(fabric: Fabric, node: str, uid: str, what: str, *lines: str) -> None:
    """As if its agent had gathered them before it was killed: guests of these fabrics print nothing."""
    running = [one for one in fabric._processes if isinstance(one.args, list) and one.poll() is None]
    (agent,) = [one for one in running if one.args[1:3] == ["agent", node]]
    agent.kill()
    agent.wait()
    store = LogStore(fabric.folder / node / "logs", SystemClock())
    store.open()
    now = int(time.time() * 1e6)
    store.append(uid, array("q", [now] * len(lines)), "".join(f"{line}\n" for line in lines).encode(), what=what)
    store.close()
    fabric._launch(node, *map(str, agent.args[1:]))  # type: ignore[index]


def test_a_deleted_workload_s_lines_are_read_by_its_project_and_not_under_its_name_elsewhere(fabric: Fabric) -> None:
    assert fabric.weft("vm", "create", "gone", *SMALL, "--node", "n1").code == 0
    uid = json.loads(fabric.weft("vm", "get", "gone", "-o", "json").out)["uid"]
    print_lines(fabric, "n1", uid, "vm/default/gone", "its first words", "its last \x1b[2J words")
    assert fabric.weft("logs", "--vm", "gone", "--deleted").code == 3  # it is there
    assert fabric.weft("vm", "delete", "gone", "--yes", "--wait").code == 0
    said = until(lambda: (one := fabric.weft("logs", "--vm", "gone", "--deleted")).code == 0 and one)
    assert [line.split("  ", 1)[1] for line in said.out.splitlines()] == ["its first words", "its last ?[2J words"]
    only = fabric.weft("vm", "logs", "gone", "--deleted", "--filter", "first", "-o", "json")
    assert [json.loads(line)["source"] for line in only.out.splitlines()] == ["vm/gone"]
    assert fabric.weft("vm", "create", "gone", *SMALL, "--node", "n1").code == 0  # another one
    again = until(lambda: (one := fabric.weft("logs", "--vm", "gone", "--aggregate")).code == 0 and one)
    assert "words" not in again.out and "words" in fabric.weft("logs", "--vm", "gone", "--deleted").out
    fabric.weft("project", "create", "shop")
    for words in (["-p", "shop", "logs", "--vm", "gone"], ["logs", "--vm", "never"], ["logs", "--container", "gone"]):
        assert fabric.weft(*words, "--deleted").code == 3, words
    assert fabric.weft("logs", "--vm", "gone", "--deleted", "-f").code == 2


def test_a_project_with_the_name_of_a_deleted_one_reads_nothing_of_that(tmp_path: Path) -> None:
    lab = ApiLab(tmp_path)
    try:
        kept = KeptLog(tmp_path / "p" / "departed", lab.clock)
        lab.api.server_log = ServerLog(tmp_path / "s", tmp_path / "p", lab.clock)
        journal = DepartureJournal(lab.journal, kept, lab.clock)
        given = {"aggregate": True, "deleted": True}

        def ask(client: Client) -> int:
            return client.http.request("POST", "/v1/projects/shop/vms/web:logs", given).status

        for uid in ("1", "2"):
            lab.client.create({"kind": "project", "name": "shop", "spec": {}})
            assert ask(lab.client) == 404
            journal.append(Event("Normal", "Deleted", "", Ref("vm", "web", uid, "shop"), "workload", "some-node"))
            assert ask(lab.client) == 200
            assert ask(lab.with_token(use="access", role="viewer", subject="in", project="shop")) == 200
            assert ask(lab.with_token(use="access", role="admin", subject="out", project="default")) == 403
            lab.client.delete("project", "shop")
            until(lambda: lab.client.http.request("GET", "/v1/projects/shop").status == 404)
        assert lab.client.http.request("POST", "/v1/projects/default/vms/web:logs", {"deleted": True}).status == 400
        lab.api.server_log.close()
    finally:
        lab.close()
