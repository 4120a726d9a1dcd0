"""Open streams and function keys end with the rights of those who opened them: through a real gateway, and its real copy of the
store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError
from tests.scenario.agent_lab import NODE_UID, Lab, make_allocation
from tests.scenario.function_api_lab import api_lab, do
from tests.scenario.gateway.test_gateway_streams import plan_guest
from tests.scenario.gateway_lab import Client, ConsoleRuntime, GatewayLab

from weft.contracts.store import Delete, Put, Store
from weft.gateway.stream import rights
from weft.gateway.stream.rights import CheckHolder, OpenStreams, make_check
from weft.informer.accounts import KINDS, make_directory
from weft.informer.cache import Cache
from weft.informer.view import View
from weft.kinds.cluster import CLUSTER, ClusterSpec, ClusterStatus
from weft.kinds.fields.cluster.link import GRANTS
from weft.kinds.record import Kind
from weft.kinds.role import ROLE, RoleSpec
from weft.kinds.rolebinding import ROLE_BINDING, RoleBindingSpec
from weft.kinds.token import TOKEN, TokenSpec
from weft.kinds.user import USER, UserSpec
from weft.objects.envelope import Envelope, decode_envelope, encode_envelope
from weft.objects.errors import Forbidden, NotAuthenticated, WeftError
from weft.objects.identity import Ref, object_key
from weft.protocol.claims import Claims
from weft.protocol.frames import FrameType
from weft.store.memory import MemoryStore

WEB = make_allocation("web")
WORKLOAD = {"kind": "vm", "project": "lab", "name": "web", "uid": "u"}


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rights, "CHECK_SECONDS", 0.1)


async def put(store: Store, kind: Kind, name: str, spec: msgspec.Struct, owner: Ref | None = None) -> Envelope:
    envelope = kind.make(name, spec, 1.0, owner=owner)
    await store.commit([Put(envelope.key, encode_envelope(envelope))])
    return envelope


async def add_ann(store: Store, **token: Any) -> Envelope:
    """The user ann, operator of the project lab, with a token."""
    ann = await put(store, USER, "ann", UserSpec())
    await put(store, ROLE_BINDING, "ann-lab", RoleBindingSpec(role="operator", project="lab", users=["ann"]))
    await put(store, TOKEN, "hers", TokenSpec(use="access", role="", **token), owner=ann.ref)
    return ann


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[MemoryStore]:
    store = MemoryStore(Lab(tmp_path / "clock").clock)
    await store.open()
    yield store
    await store.close()


class Looks:
    """What the gateway asks of open streams, counted."""

    def __init__(self) -> None:
        self.check: CheckHolder | None = None
        self.count = 0

    def __call__(self, claims: Claims, project: str | None) -> None:
        assert self.check is not None
        self.check(claims, project)
        self.count += 1

    async def pass_by(self, streams: int = 1) -> None:
        """Two looks at rights that are there."""
        before = self.count
        async with asyncio.timeout(30):
            while self.count < before + 2 * streams:
                await asyncio.sleep(0.02)


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
async def gateway(tmp_path: Path, store: MemoryStore, looks: Looks) -> AsyncIterator[GatewayLab]:
    """A gateway with a node, on which a guest runs commands, and a copy of the store's users."""
    lab = GatewayLab(tmp_path)
    cache = Cache(store, View(("token", *KINDS)), lab.clock)
    looks.check = make_check(cache, make_directory(cache, cache.view), lab.clock)
    clients = OpenStreams(lab.clock, looks)
    runtime = ConsoleRuntime(tmp_path, Lab(tmp_path / "node").host)
    await runtime.start(plan_guest())
    async with lab.serving():
        await lab.restart(clients=clients)
        working = asyncio.gather(cache.run(), clients.run())
        async with lab.node(NODE_UID, runtime, [WEB]):
            yield lab
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
    await runtime.close()


async def open_stream(gateway: GatewayLab, token: str, right: str = "vm:exec") -> Client:
    """A command that repeats what it is told, as it does at once."""
    held = {"token": token, "right": right, "workload": WORKLOAD}
    client = await gateway.connect(gateway.ticket(WEB, "exec", {"argv": ["cat"]}, **held))
    await client.send(FrameType.DATA_IN, b"hello")
    frame = await client.receive()
    assert frame is not None and frame.payload == b"hello"
    return client


async def drop(store: Store, kind: str, name: str) -> None:
    await store.commit([Delete(object_key(kind, None, name))])


async def disable(store: Store) -> None:
    entry = await store.get(object_key("user", None, "ann"))
    assert entry is not None
    await store.commit([Put(entry.key, entry.value.replace(b'"disabled":false', b'"disabled":true'))])


ENDS: dict[str, tuple[Callable[[Store], Awaitable[None]], type[WeftError]]] = {
    "token": (lambda store: drop(store, "token", "hers"), NotAuthenticated),
    "binding": (lambda store: drop(store, "rolebinding", "ann-lab"), Forbidden),
    "user": (lambda store: drop(store, "user", "ann"), NotAuthenticated),
    "disabled": (disable, NotAuthenticated),
}


@pytest.mark.parametrize("end", list(ENDS))
async def test_a_stream_ends_with_its_client_s_right_and_others_go_on(
    gateway: GatewayLab, store: MemoryStore, looks: Looks, end: str
) -> None:
    await add_ann(store)
    await put(store, TOKEN, "other", TokenSpec(use="access", role="operator", project="lab"))
    hers, others = await open_stream(gateway, "hers"), await open_stream(gateway, "other")
    await looks.pass_by(streams=2)
    await others.send(FrameType.DATA_IN, b"still")
    await hers.send(FrameType.DATA_IN, b"still")
    for client in (hers, others):
        frame = await client.receive()
        assert frame is not None and frame.payload == b"still"
    act, error = ENDS[end]
    await act(store)
    _, _, last = await hers.rest()
    assert last is not None and isinstance(last.error(), error)
    await others.send(FrameType.DATA_IN, b"on")
    frame = await others.receive()
    assert frame is not None and frame.payload == b"on"
    for client in (hers, others):
        client.close()


@pytest.mark.parametrize("end", ["deleted", "suspect"])
async def test_a_linked_cluster_s_stream_ends_with_its_link(
    gateway: GatewayLab, store: MemoryStore, looks: Looks, end: str
) -> None:
    east = ClusterSpec(url="https://10.0.0.1", ca="c", grants=["replicate"], projects={"lab": "lab"})
    made = await put(store, CLUSTER, "east", east)
    await put(store, TOKEN, "theirs", TokenSpec(use="cluster", role=""), owner=made.ref)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GRANTS, "replicate", {"vm": ["exec"]})  # a verb whose stream there is here
        client = await open_stream(gateway, "theirs")
        await looks.pass_by()
        await client.send(FrameType.DATA_IN, b"still")
        frame = await client.receive()
        assert frame is not None and frame.payload == b"still"
        began = asyncio.get_running_loop().time()
        if end == "deleted":
            await drop(store, "cluster", "east")
        else:
            made.status = msgspec.Raw(msgspec.json.encode(ClusterStatus(phase="Suspect")))
            await store.commit([Put(made.key, encode_envelope(made))])
        _, _, last = await client.rest()
    assert last is not None and isinstance(last.error(), NotAuthenticated if end == "deleted" else Forbidden)
    assert asyncio.get_running_loop().time() - began < 2.0  # a promise: within a second
    client.close()


async def test_a_token_that_expires_ends_its_stream(gateway: GatewayLab, store: MemoryStore) -> None:
    await add_ann(store, expires_at=gateway.clock.now() + 2.0)
    client = await open_stream(gateway, "hers")
    _, _, last = await client.rest()
    assert last is not None and "has expired" in last.error().message
    client.close()


async def test_a_user_s_key_for_functions_ends_with_the_user_s_role(tmp_path: Path) -> None:
    async with api_lab(tmp_path) as api:
        await api.lab.agent("n1")
        await api.lab.function("thumb")
        ann = await put(api.lab.store, USER, "ann", UserSpec())
        binding = RoleBindingSpec(role="invoker", project="default", users=["ann"])
        await put(api.lab.store, ROLE_BINDING, "ann-default", binding)
        client = api.boto(await api.key("hers", owner=ann.ref))
        assert (await do(lambda: client.invoke(FunctionName="thumb")))["StatusCode"] == 200
        key = object_key("rolebinding", None, "ann-default")
        await api.lab.store.commit([Delete(key)])
        await api.lab.until(lambda: api.lab.functions.cache.view.get(key) is None)
        with pytest.raises(ClientError, match="ann has no role: ann can't invoke functions"):
            await do(lambda: client.invoke(FunctionName="thumb"))
        await drop(api.lab.store, "user", "ann")
        await api.lab.until(lambda: api.lab.functions.cache.view.get(ann.key) is None)
        with pytest.raises(ClientError, match="user ann was deleted or disabled"):
            await do(lambda: client.invoke(FunctionName="thumb"))


async def change_role(store: Store, name: str, **rules: list[str]) -> None:
    entry = await store.get(object_key("role", None, name))
    assert entry is not None
    envelope = decode_envelope(entry.value)
    envelope.spec = msgspec.Raw(msgspec.json.encode(RoleSpec(rules=rules)))
    await store.commit([Put(entry.key, encode_envelope(envelope))])


@pytest.mark.parametrize("holder", ["user", "program"])
async def test_a_stream_ends_when_an_own_role_loses_its_verb(
    gateway: GatewayLab, store: MemoryStore, looks: Looks, holder: str
) -> None:
    await put(store, ROLE, "shell", RoleSpec(rules={"vm": ["exec", "get"]}))
    if holder == "user":
        ann = await put(store, USER, "ann", UserSpec())
        await put(store, ROLE_BINDING, "ann-lab", RoleBindingSpec(role="shell", project="lab", users=["ann"]))
        await put(store, TOKEN, "hers", TokenSpec(use="access", role=""), owner=ann.ref)
    else:
        await put(store, TOKEN, "hers", TokenSpec(use="access", role="shell", project="lab"))
    client = await open_stream(gateway, "hers")
    await change_role(store, "shell", vm=["exec", "list"])  # it keeps the one that the stream takes
    await looks.pass_by()
    await client.send(FrameType.DATA_IN, b"still")
    frame = await client.receive()
    assert frame is not None and frame.payload == b"still"
    changed = asyncio.get_running_loop().time()
    await change_role(store, "shell", vm=["get", "list"])
    _, _, last = await client.rest()
    assert last is not None and isinstance(problem := last.error(), Forbidden)
    assert problem.details == {"permission": "vm:exec"} and "vm:exec" in (problem.hint or "")
    assert asyncio.get_running_loop().time() - changed < 2.0
    client.close()


async def test_a_key_for_functions_has_what_its_own_role_lists_and_no_more(tmp_path: Path) -> None:
    async with api_lab(tmp_path) as api:
        await api.lab.agent("n1")
        await api.lab.function("thumb")
        await put(api.lab.store, ROLE, "reader", RoleSpec(rules={"function": ["get"]}))
        key = object_key("role", None, "reader")
        await api.lab.until(lambda: api.lab.functions.cache.view.get(key) is not None)
        client = api.boto(await api.key("reads", role="reader"))
        found = await do(lambda: client.get_function(FunctionName="thumb"))
        assert found["Configuration"]["FunctionName"] == "thumb"
        with pytest.raises(ClientError, match="it can't invoke functions"):
            await do(lambda: client.invoke(FunctionName="thumb"))
        with pytest.raises(ClientError, match="it can't list functions"):
            await do(client.list_functions)
        await change_role(api.lab.store, "reader", function=["invoke"])
        view = api.lab.functions.cache.view
        await api.lab.until(lambda: (item := view.get(key)) is not None and b"invoke" in bytes(item.envelope.spec))
        assert (await do(lambda: client.invoke(FunctionName="thumb")))["StatusCode"] == 200


async def test_a_user_s_token_reads_functions_only_if_its_own_role_may(tmp_path: Path) -> None:
    async with api_lab(tmp_path) as api:
        await api.lab.agent("n1")
        await api.lab.function("thumb")
        ann = await put(api.lab.store, USER, "ann", UserSpec())
        await put(api.lab.store, ROLE, "starter", RoleSpec(rules={"vm": ["start"]}))
        binding = RoleBindingSpec(role="editor", project="default", users=["ann"])
        await put(api.lab.store, ROLE_BINDING, "ann-default", binding)
        whole = api.boto(await api.key("whole", owner=ann.ref, role=""))
        limited = api.boto(await api.key("limited", owner=ann.ref, role="starter"))
        assert len((await do(whole.list_functions))["Functions"]) == 1
        for work in (lambda: limited.get_function(FunctionName="thumb"), limited.list_functions):
            with pytest.raises(ClientError, match="this token allows starter at most"):
                await do(work)
