"""A machine joins real API servers over TLS, and its agent works with them."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.scenario.agent_lab import ADDRESS, BUNDLE, DIGEST, Lab, change, make_allocation, make_published_port
from tests.scenario.api_lab import GATEWAY, ApiLab, make_image, make_vm

from weft.agent.agent import Agent
from weft.agent.node.enrolment import Enrolment, join, make_context, needs_renewal, read_enrolment, renew
from weft.agent.server.client import RemoteServer
from weft.agent.server.line import ServerLine
from weft.agent.workload.runtimes import Runtimes
from weft.client.api import Client
from weft.client.context import hash_ca
from weft.contracts.driver.network import Held
from weft.kinds.allocation import AllocationReport, allocation_name
from weft.kinds.node import NodeReport
from weft.launch.agent import main as launch
from weft.launch.agent.host import make_host
from weft.launch.agent.parts import AgentParts
from weft.objects.envelope import Envelope, decode_part
from weft.objects.errors import AlreadyExists, Forbidden, InUse, NotAuthenticated, NotFound, Unavailable
from weft.trust.ca import Authority


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiLab]:
    folder = tmp_path / "server"
    folder.mkdir()
    lab = ApiLab(folder)
    yield lab
    lab.close()


def make_token(api: ApiLab, **spec: Any) -> str:
    name = f"j{len(api.client.list('token').items)}"
    return str(api.client.create({"kind": "token", "name": name, "spec": {"use": "join", **spec}})["secret"])


def join_as(api: ApiLab, state: Path, node: str = "n1", token: str | None = None) -> Enrolment:
    secret = token if token is not None else make_token(api)
    return join(state, api.context.server, secret, hash_ca(api.context.ca), node)


def test_a_machine_joins_and_its_key_stays_its_own(api: ApiLab, tmp_path: Path) -> None:
    state = tmp_path / "node"
    enrolment = join_as(api, state)
    assert enrolment == read_enrolment(state)
    assert (enrolment.node, enrolment.gateway) == ("n1", GATEWAY)
    assert api.client.get("node", "n1")["uid"] == enrolment.node_uid
    assert stat.S_IMODE((state / "node.key").stat().st_mode) == 0o600
    assert join_as(api, state, token="not needed any more") == enrolment


def test_a_wrong_digest_ends_the_join_before_anything_is_sent(tmp_path: Path) -> None:
    """The server that is asked records what it gets after the handshake."""
    folder = tmp_path / "false"
    folder.mkdir()
    chain, key = Authority(folder, launch.SystemClock()).renew_server(["127.0.0.1"])
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(chain, key)
    got: list[bytes] = []

    def serve(server: socket.socket) -> None:
        plain, _ = server.accept()
        with tls.wrap_socket(plain, server_side=True) as sock:
            got.append(sock.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        with pytest.raises(NotAuthenticated, match="SHA-256"):
            join(tmp_path / "node", f"https://127.0.0.1:{server.getsockname()[1]}", "secret", "0" * 64, "n1")
        thread.join(10)
    assert got == [b""]
    assert not (tmp_path / "node").exists()


def test_a_wrong_token_and_a_taken_name_are_told_apart(api: ApiLab, tmp_path: Path) -> None:
    with pytest.raises(NotAuthenticated) as refused:
        join_as(api, tmp_path / "a", token="weft_nope_" + "0" * 64)
    assert refused.value.hint == "weft token create --join makes another token"
    join_as(api, tmp_path / "b")
    with pytest.raises(AlreadyExists, match="n1"):
        join_as(api, tmp_path / "c")
    with pytest.raises(Forbidden, match="n7"):
        join_as(api, tmp_path / "d", "n8", make_token(api, node="n7"))
    with pytest.raises(Forbidden, match="lets a server join"):
        join_as(api, tmp_path / "d", "n8", make_token(api, use="server"))
    assert {path.name for path in tmp_path.iterdir()} == {"server", "b"}
    with pytest.raises(NotFound):
        read_enrolment(tmp_path / "c")


def test_a_joined_folder_refuses_another_name(api: ApiLab, tmp_path: Path) -> None:
    join_as(api, tmp_path / "node")
    with pytest.raises(AlreadyExists, match="belongs to node n1"):
        join_as(api, tmp_path / "node", "n2")


def test_a_join_whose_answer_was_lost_may_be_repeated(api: ApiLab, tmp_path: Path) -> None:
    state, token = tmp_path / "node", make_token(api)
    first = join_as(api, state, token=token)
    for name in ("node.json", "node.crt", "ca.crt"):
        (state / name).unlink()
    assert join_as(api, state, token=token) == first


def test_no_server_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no weft server answers"):
        join(tmp_path / "node", "https://127.0.0.1:9", "t", "0" * 64, "n1")


def test_a_certificate_is_renewed_with_the_same_key(api: ApiLab, tmp_path: Path) -> None:
    state = tmp_path / "node"
    enrolment = join_as(api, state)
    before = (state / "node.crt").read_text()
    assert not needs_renewal(state)
    renew(state, "n1", make_context(state, enrolment))
    assert (state / "node.crt").read_text() != before
    client = Client(make_context(state, enrolment))
    assert client.get("node", "n1")["uid"] == enrolment.node_uid
    client.close()


def test_the_agent_refuses_another_nodes_folder_and_an_unjoined_one(
    api: ApiLab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["n1", "--state", str(tmp_path / "none")]) == 3
    assert "weft token create --join" in capsys.readouterr().err
    join_as(api, tmp_path / "node")
    assert launch.main(["n2", "--state", str(tmp_path / "node")]) == 2
    assert "belongs to node n1, not n2" in capsys.readouterr().err


class Joined:
    """A joined node's lab: fake drivers, a real server."""

    def __init__(self, api: ApiLab, folder: Path) -> None:
        self.api, self.folder = api, folder
        self.enrolment = join_as(api, folder)
        self.lab = Lab(folder)
        self.lab.host = msgspec.structs.replace(self.lab.host, node_uid=self.enrolment.node_uid)

    def agent(self) -> Agent:
        self.lab.make_drivers()
        server = RemoteServer(Client(make_context(self.folder, self.enrolment)), ServerLine(launch.SystemClock()))
        lab = self.lab
        return Agent(AgentParts(lab.host, server, Runtimes({"vm": lab.runtime}), lab.network, lab.volumes, lab.clock))

    def allocation(self, name: str = "web", **fields: Any) -> Envelope:
        envelope = change(make_allocation(name, **fields), node_uid=self.enrolment.node_uid)
        return msgspec.structs.replace(envelope, name=allocation_name(self.enrolment.node_uid, envelope.uid))

    async def stored(self, envelope: Envelope) -> Envelope:
        found = await asyncio.to_thread(self.api.stored, envelope.key)
        assert found is not None
        return found

    async def until_state(self, envelope: Envelope, state: str) -> AllocationReport:
        for _ in range(6000):
            report = decode_part((await self.stored(envelope)).report, AllocationReport)
            if report.state == state:
                return report
            await asyncio.sleep(0.01)
        raise AssertionError(f"never {state}: {report}")


async def test_an_agent_brings_an_allocation_of_real_api_servers_to_run_and_back(api: ApiLab, tmp_path: Path) -> None:
    node = await asyncio.to_thread(Joined, api, tmp_path / "node")
    (api.folder / "images" / DIGEST).write_bytes(BUNDLE)
    agent = node.agent()
    await agent.start()
    try:
        web = node.allocation()
        await asyncio.to_thread(api.put, web, make_published_port(8080, "10.20.0.11", ADDRESS))
        first = await node.until_state(web, "running")
        await node.lab.until(lambda: [f.port for f in node.lab.wire.forwards] == [8080])
        stored = await asyncio.to_thread(api.client.get, "node", "n1")
        report = msgspec.convert(stored["report"], NodeReport)
        assert (report.hypervisor, report.images, report.orphans) == ("fake 1", [DIGEST], [])

        await asyncio.to_thread(api.restart)
        await asyncio.to_thread(api.put, change(await node.stored(web), desired="stop"))
        await node.until_state(web, "stopped")
        await asyncio.to_thread(api.put, change(await node.stored(web), desired="run"))
        assert (await node.until_state(web, "running")).boot_id != first.boot_id

        gone = await node.stored(web)
        gone.deleting_since = 1.0
        await asyncio.to_thread(api.put, gone)
        await node.until_state(web, "released")
        assert node.lab.guest(web) is None
    finally:
        await agent.close()


async def test_a_port_that_a_node_s_program_listens_on_is_refused_with_the_node_s_name(
    api: ApiLab, tmp_path: Path
) -> None:
    node = await asyncio.to_thread(Joined, api, tmp_path / "node")
    await asyncio.to_thread(api.client.create, make_image())
    node.lab.wire.held = [Held("tcp", 8080)]

    def create(publish: str, **spec: Any) -> str:
        try:
            api.client.create(make_vm("web", publish=[publish], **spec), dry_run=True)
        except InUse as problem:
            return problem.message
        return ""

    agent = node.agent()
    await agent.start()
    try:
        for _ in range(6000):
            if said := await asyncio.to_thread(create, "8080:80"):
                break
            await asyncio.sleep(0.02)
        assert said == "port 8080/tcp is held by another program on node n1"
        assert await asyncio.to_thread(create, "8080:80/udp") == ""
        assert await asyncio.to_thread(create, "8080:80", force_publish=True) == ""
    finally:
        await agent.close()


async def test_an_image_whose_content_is_wrong_is_named_by_its_digest(api: ApiLab, tmp_path: Path) -> None:
    node = await asyncio.to_thread(Joined, api, tmp_path / "node")
    (api.folder / "images" / DIGEST).write_bytes(BUNDLE[:-1] + b"x")
    agent = node.agent()
    await agent.start()
    try:
        web = node.allocation()
        await asyncio.to_thread(api.put, web)
        report = await node.until_state(web, "failed")
        assert report.reason == "sha256Mismatch" and "sha256" in report.message
        assert [path.name for path in (tmp_path / "node" / "images").iterdir()] == []
    finally:
        await agent.close()


def test_the_agents_process_is_small_survives_killing_and_runs_once_per_folder(api: ApiLab, tmp_path: Path) -> None:
    state = tmp_path / "node"
    join_as(api, state)
    drivers = ["--runtime", "fake", "--network", "fake", "--run-dir", str(tmp_path / "run")]
    argv = [sys.executable, "-c", "import sys; from weft.launch.agent.main import main; sys.exit(main(sys.argv[1:]))"]
    argv += ["n1", "--state", str(state), *drivers]
    heavy = "cryptography numpy rich click starlette yaml uvicorn weft.kinds.registry weft.agent.function.instances"
    check = f"import weft.launch.agent.main, sys; print([m for m in {heavy.split()} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"
    for end in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            assert "node n1 has 0 allocations" in process.stderr.readline()
            api.client.wait(
                "node", "n1", lambda node: bool(node and (node.get("report") or {}).get("version")), timeout_seconds=20
            )
            second = subprocess.run(argv, capture_output=True, text=True, timeout=60)
            assert second.returncode == 5 and "runs on" in second.stderr
            status = Path(f"/proc/{process.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            assert resident < 45 * 1024, f"{resident} KiB"
        finally:
            process.send_signal(end)
            code = process.wait(15)
            process.communicate()
        assert code == (0 if end == signal.SIGTERM else -signal.SIGKILL)


def test_the_machine_is_found_out_where_nothing_is_told(tmp_path: Path) -> None:
    enrolment = Enrolment("https://127.0.0.1:8443", "127.0.0.1:8444", "n1", "uid-1")
    options = argparse.Namespace(
        server=None,
        run_dir=tmp_path / "run",
        link_prefix=None,
        underlay_address=None,
        underlay_link=None,
        cgroup=None,
        cpu=1.5,
        memory=None,
        disk=2 << 30,
        vxlan_port=4789,
        echo_port=8445,
        sysfs="/sys",
        devices=True,
    )
    for folder in ("guests", "run/network"):  # as an earlier version left them
        (tmp_path / folder).mkdir(mode=0o755, parents=True)
    host = make_host(options, tmp_path, enrolment)
    closed = [tmp_path / "guests", tmp_path / "microvm" / "guests", Path(host.run_dir) / "network"]
    assert [folder.stat().st_mode & 0o777 for folder in closed] == [0o700] * 3
    assert (host.underlay_address, host.underlay_link) == ("127.0.0.1", "lo")
    assert (host.capacity.cpu, host.capacity.disk_bytes) == (1.5, 2 << 30)
    assert 0 < host.capacity.memory_bytes < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert len(host.link_prefix) == 4


def test_the_digest_people_copy_is_of_the_certificate_itself(api: ApiLab) -> None:
    der = ssl.PEM_cert_to_DER_cert(api.context.ca)
    assert hash_ca(api.context.ca) == hashlib.sha256(der).hexdigest()
