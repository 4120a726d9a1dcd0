"""Which of a node's certificates counts: one whose key was replaced is worth nothing at once, at the API and at the gateway,
and nobody who renews is locked out, whenever it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from tests.node_key import make_node_key
from tests.scenario.api_lab import ApiLab, JoinedNode
from tests.scenario.gateway_lab import GatewayLab

from weft.agent.node import enrolment as enrol
from weft.client import Client, Context
from weft.client.answer import raise_problem
from weft.client.context import hash_ca
from weft.client.tls import make_tls
from weft.contracts.clock import SystemClock
from weft.contracts.store import Put
from weft.gateway.gateway import Gateway
from weft.informer.enrolments import Enrolments
from weft.launch.gateway.main import make_tls as make_server_tls
from weft.objects.errors import Forbidden, NotAuthenticated, WeftError
from weft.protocol.frames import FrameType, encode_hello
from weft.store.memory import MemoryStore
from weft.trust.ca import digest_of_key
from weft.trust.enrolment import Enrolment, enrolment_key


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    yield lab
    lab.close()


def refused(client: Client) -> WeftError:
    with pytest.raises(NotAuthenticated, match="n1 was enrolled again") as caught:
        client.get("node", "n1")
    return caught.value


def renew(node: JoinedNode, key: Path) -> Client:
    """The client of the node with a certificate for the key in ``key``."""
    answer = node.client.http.request("POST", f"/v1/nodes/{node.name}:renew", {"csr": make_node_key(key)})
    raise_problem(answer)
    certificate = key.with_suffix(".crt")
    certificate.write_text(answer.json()["certificate"])
    return Client(msgspec.structs.replace(node.context, certificate=str(certificate), key=str(key)))


def test_a_node_enrolled_anew_leaves_the_old_certificate_worth_nothing_at_once(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.api.watch.stream.BOOKMARK_SECONDS", 0.1)
    old = lab.join("n1")
    old.report()
    path = f"/v1/allocations?node={old.uid}"
    cursor = old.client.http.request("GET", path).json()["cursor"]
    watch = old.client.http.stream("GET", f"{path}&watch=1&cursor={cursor}")
    new = lab.join("n1", node="n1")
    assert new.uid == old.uid
    assert "weft token create --join --node n1" in str(refused(old.client).hint)
    for method, what in (
        ("POST", "/v1/nodes/n1:report"),
        ("POST", "/v1/nodes/n1:secrets"),
        ("POST", "/v1/nodes/n1:renew"),
        ("POST", "/v1/nodes/n1:egress"),
        ("POST", "/v1/nodes/n1:certificate"),
        ("GET", path),
        ("GET", f"{path}&watch=1&cursor={cursor}"),
        ("GET", "/v1/blobs/" + "ab" * 32),
        ("GET", "/v1/healthz"),
    ):
        answer = old.client.http.request(method, what, {"csr": make_node_key(old.key)} if method == "POST" else None)
        assert (answer.status, answer.json()["reason"]) == (401, "certificateReplaced"), what
    assert b"certificate is not valid any more" in b"".join(watch.lines())
    new.report()
    lab.restart()
    new.report()
    refused(old.client)


def test_a_request_that_was_begun_before_gets_no_certificate_after(lab: ApiLab) -> None:
    """Who holds its body back until the node was enrolled anew is asked again."""
    old = lab.join("n1")
    body = msgspec.json.encode({"csr": make_node_key(old.key)})
    held = http.client.HTTPSConnection("127.0.0.1", lab.port, context=make_tls(old.context))
    held.putrequest("POST", "/v1/nodes/n1:renew")
    held.putheader("Content-Length", str(len(body)))
    held.endheaders(body[:1])
    other = Client(old.context)
    other.get("node", "n1")
    new = lab.join("n1", node="n1")
    held.send(body[1:])
    assert held.getresponse().status == 401
    held.close()
    new.report()
    refused(other)
    other.close()


def test_a_key_that_was_renewed_for_replaces_the_old_one_when_it_is_used(lab: ApiLab, tmp_path: Path) -> None:
    node = lab.join("n1")
    lost = renew(node, tmp_path / "lost.key")  # killed before it was written down: never used
    node.report()
    kept = renew(node, tmp_path / "kept.key")
    node.report()  # killed again, and back with what it has
    assert kept.get("node", "n1")["uid"] == node.uid
    refused(node.client)
    refused(lost)
    again = renew(
        JoinedNode("n1", node.uid, kept, node.key, node.context), node.key
    )  # back to the first key: one like another
    assert again.get("node", "n1")["uid"] == node.uid
    refused(kept)
    for client in (lost, kept, again):
        client.close()


def test_an_agent_that_is_killed_before_it_has_written_its_new_certificate_goes_on_with_the_old(
    lab: ApiLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = lab.client.create({"kind": "token", "name": "j", "spec": {"use": "join"}})
    state = tmp_path / "node"
    joined = enrol.join(state, lab.context.server, made["secret"], hash_ca(lab.context.ca), "n1")
    context = enrol.make_context(state, joined)
    before = (state / "node.crt").read_text()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(enrol, "write_durably", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        enrol.renew(state, "n1", context)
    assert (state / "node.crt").read_text() == before
    for _ in range(2):
        client = Client(enrol.make_context(state, joined))
        assert client.get("node", "n1")["uid"] == joined.node_uid
        client.close()
        enrol.renew(state, "n1", context)
    assert (state / "node.crt").read_text() != before


def test_a_machine_whose_certificate_was_replaced_joins_again_with_what_it_has(lab: ApiLab, tmp_path: Path) -> None:
    """As it is told to: the same command, the same state folder, and another token."""

    def join(**token: Any) -> enrol.Enrolment:
        made = lab.client.create({"kind": "token", "name": f"j{len(lab.clients)}", "spec": {"use": "join", **token}})
        lab.connect()
        return enrol.join(tmp_path / "node", lab.context.server, made["secret"], hash_ca(lab.context.ca), "n1")

    joined = join()
    other = lab.join("n1", node="n1")
    client = Client(enrol.make_context(tmp_path / "node", joined))
    refused(client)
    assert join(node="n1").node_uid == joined.node_uid
    assert client.get("node", "n1")["uid"] == joined.node_uid
    refused(other.client)
    lab.client.delete("node", "n1")
    with pytest.raises(Forbidden, match="was removed"):
        client.get("node", "n1")
    client.close()
    anew = join()
    assert anew.node_uid != joined.node_uid
    client = Client(enrol.make_context(tmp_path / "node", anew))
    assert client.get("node", "n1")["uid"] == anew.node_uid
    client.close()


def test_a_store_older_than_a_certificate_takes_the_younger_one_for_the_right_one(
    lab: ApiLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = iter((0.0, 1.0))
    begin = lab.authority.begin
    monkeypatch.setattr(lab.authority, "begin", lambda day=days: begin() - 50_000 + 20_000 * next(day))
    old = lab.join("n1")
    backup = lab.run(lab.store.get(enrolment_key(old.uid)))
    assert backup is not None
    new = lab.join("n1", node="n1")
    for forgotten in (backup.value, msgspec.json.encode(Enrolment(name="n1"))):
        lab.run(lab.store.commit([Put(backup.key, forgotten)]))
        lab.restart()
        old.client.get("node", "n1")  # nobody knows better
        new.report()
        refused(old.client)
        new.report()


class Api:
    """A gateway that reads a store."""

    def __init__(self, folder: Path) -> None:
        self.lab = GatewayLab(folder)
        self.store = MemoryStore(SystemClock())
        self.enrolments = Enrolments(self.store, self.lab.clock, lambda uid: self.lab.gateway.check_again(uid))
        self.lab.gateway = Gateway(make_server_tls(folder), b"k" * 32, self.lab.clock, check_node=self.enrolments.check)

    def certify(self, key: Path) -> tuple[Context, str]:
        """What a node with the key in ``key`` connects with, and the digest of that."""
        csr = x509.load_pem_x509_csr(make_node_key(key).encode())
        certificate = key.with_suffix(".crt")
        certificate.write_text(self.lab.authority.sign_node(csr, "u1"))
        context = Context(
            server="https://127.0.0.1", ca=self.lab.authority.ca, certificate=str(certificate), key=str(key)
        )
        return context, digest_of_key(csr)

    async def enrol(self, **enrolment: Any) -> None:
        value = Enrolment(name="n1", latest=self.lab.authority.begin(), **enrolment)
        await self.store.commit([Put(enrolment_key("u1"), msgspec.json.encode(value))])


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    api = Api(tmp_path)
    await api.store.open()
    following = asyncio.ensure_future(api.enrolments.run())
    async with api.lab.serving():
        yield api
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_the_gateway_lets_go_of_an_agent_whose_key_was_replaced_and_takes_it_no_more(
    api: Api, tmp_path: Path
) -> None:
    (old, old_key), (new, new_key) = api.certify(tmp_path / "old.key"), api.certify(tmp_path / "new.key")
    await api.enrol(key_sha256=old_key)
    agent = await api.lab.dial(old)
    agent.writer.write(encode_hello(role="agent", node_uid="u1"))
    await api.lab.until_connected("u1")
    await api.enrol(key_sha256=new_key)
    with contextlib.suppress(OSError):
        while await asyncio.wait_for(agent.reader.read(4096), 60):  # pings until then
            pass
    for problem in (
        await _hear(api, old, role="agent", node_uid="u1"),
        await _hear(api, old, role="stream", stream="x"),
    ):
        assert isinstance(problem, NotAuthenticated) and problem.token == "certificateReplaced"
    agent = await api.lab.dial(new)
    agent.writer.write(encode_hello(role="agent", node_uid="u1"))
    await api.lab.until_connected("u1")
    await api.enrol(key_sha256=new_key, removed_at=1.0)
    with contextlib.suppress(OSError):
        while await asyncio.wait_for(agent.reader.read(4096), 60):
            pass
    assert isinstance(await _hear(api, new, role="agent", node_uid="u1"), Forbidden)


async def _hear(api: Api, context: Context, **hello: str) -> WeftError:
    client = await api.lab.dial(context)
    client.writer.write(encode_hello(**hello))
    frame = await client.receive()
    assert frame is not None and frame.type == FrameType.ERROR
    client.close()
    return frame.error()
