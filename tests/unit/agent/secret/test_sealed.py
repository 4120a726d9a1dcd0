"""Secrets marked offline: sealed in the node's folder for starts without the server, and gone with their mark or workload."""

from __future__ import annotations

import asyncio
import logging
import stat
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from weft.agent.secret.cache import Secrets
from weft.agent.secret.sealed import SealedSecrets
from weft.agent.state.allocation import LocalAllocation
from weft.contracts.clock import SystemClock
from weft.kinds.allocation import AllocatedContainer, AllocationSpec, Resources
from weft.objects.errors import NotFound, Unavailable, WeftError
from weft.objects.identity import Ref
from weft.protocol.report import OpenedSecrets

VALUE = "a-very-secret-value"


class Server:
    """Answers with ``answer``, once it ``may``."""

    def __init__(self) -> None:
        self.answer: OpenedSecrets | WeftError = OpenedSecrets({"db": {"password": VALUE}}, offline=["db"])
        self.may, self.asked = threading.Event(), threading.Event()
        self.may.set()

    def read_secrets(self, node: str, allocation: str) -> OpenedSecrets:
        self.asked.set()
        assert self.may.wait(60)
        if isinstance(self.answer, WeftError):
            raise self.answer
        return self.answer


def make_local(name: str = "a") -> LocalAllocation:
    spec = AllocationSpec(
        node="n1",
        node_uid="u1",
        workload=Ref(kind="container", name="till", uid="w", project="default"),
        workload_generation=1,
        incarnation=1,
        resources=Resources(cpu=1, memory=1),
        container=AllocatedContainer(image="till", env_secrets={"PASSWORD": "db/password"}),
    )
    return LocalAllocation(f"u1.{name}", name, spec)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "node.key").write_text("the node's key")
    return tmp_path


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def start(folder: Path, server: Server) -> AsyncIterator[Callable[[], Secrets]]:
    """Starts an agent's secrets."""
    yield lambda: Secrets(server, "n1", SealedSecrets(folder), SystemClock())  # type: ignore[arg-type]


def list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("secrets/*"))


async def wait_until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_container_starts_again_without_the_server_also_under_the_next_agent(
    folder: Path, server: Server, start: Callable[[], Secrets], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    local = make_local()
    await start().open(local)
    server.answer = Unavailable("the server can't be reached")
    opened = await start().open(local)
    assert opened.env == {"PASSWORD": VALUE}
    (file,) = folder.glob("secrets/*")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert VALUE.encode() not in written and b"password" not in written
    assert VALUE not in caplog.text


async def test_one_without_the_mark_is_kept_in_memory_alone(
    folder: Path, server: Server, start: Callable[[], Secrets]
) -> None:
    server.answer = OpenedSecrets({"db": {"password": VALUE}, "other": {}}, offline=["other"])
    secrets = start()
    await secrets.open(make_local())
    server.answer = Unavailable("away")
    assert (await secrets.open(make_local())).env == {"PASSWORD": VALUE}, "this agent has it"
    with pytest.raises(Unavailable):
        await start().open(make_local())
    assert list_files(folder) == [], "a part of what a start needs is of no use"


async def test_what_is_sealed_goes_with_the_mark_the_secret_and_the_workload(
    folder: Path, server: Server, start: Callable[[], Secrets]
) -> None:
    marked, secrets = server.answer, start()
    for gone in (OpenedSecrets({"db": {"password": VALUE}}), NotFound("secret db", reason="secretNotFound")):
        server.answer = marked
        await secrets.open(make_local())
        assert list_files(folder) == ["a"]
        server.answer = gone
        try:
            await secrets.open(make_local())
        except NotFound:
            assert isinstance(gone, NotFound)
        assert list_files(folder) == []
    server.answer = marked
    await secrets.open(make_local())
    secrets.drop(make_local().uid)
    assert list_files(folder) == []


async def test_what_is_sealed_follows_the_server_without_a_start(
    folder: Path, server: Server, start: Callable[[], Secrets]
) -> None:
    marked = server.answer
    secrets, here = start(), [make_local("a")]
    for name in "ab":
        await secrets.open(make_local(name))
    keeping = asyncio.ensure_future(start().keep(lambda: here))
    await wait_until(lambda: list_files(folder) == ["a"])  # the other one's workload went while no agent ran
    keeping.cancel()
    secrets = start()
    keeping = asyncio.ensure_future(secrets.keep(lambda: here))
    try:
        server.answer = OpenedSecrets({"db": {"password": VALUE}})
        secrets.wake()
        await wait_until(lambda: list_files(folder) == [])
        server.answer = marked
        secrets.wake()
        await wait_until(lambda: list_files(folder) == ["a"])
        server.answer = Unavailable("away")
        for _ in range(2):  # asked a second time, it has taken in the first silence
            server.asked.clear()
            secrets.wake()
            await wait_until(server.asked.is_set)
        assert list_files(folder) == ["a"], "silence is no answer"
    finally:
        keeping.cancel()


async def test_a_workload_that_goes_while_its_secret_is_read_leaves_nothing(
    folder: Path, server: Server, start: Callable[[], Secrets]
) -> None:
    secrets = start()
    server.may.clear()
    opening = asyncio.ensure_future(secrets.open(make_local()))
    await wait_until(server.asked.is_set)
    secrets.drop(make_local().uid)
    server.may.set()
    await opening
    assert list_files(folder) == []


def test_what_was_changed_or_sealed_with_another_key_or_for_another_is_not_taken(folder: Path) -> None:
    opened = OpenedSecrets({"db": {"password": VALUE}}, offline=["db"])
    SealedSecrets(folder).put("a", opened)
    file = folder / "secrets" / "a"
    good = file.read_bytes()
    assert SealedSecrets(folder).get("a") == opened
    (folder / "secrets" / "b").write_bytes(good)
    assert SealedSecrets(folder).get("b") is None, "it is sealed for one allocation"
    for place in (20, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert SealedSecrets(folder).get("a") is None
    for damaged in (b"", good[:-1], b"\xc1"):
        file.write_bytes(damaged)
        assert SealedSecrets(folder).get("a") is None
    file.write_bytes(good)
    (folder / "node.key").write_text("another node's key")
    assert SealedSecrets(folder).get("a") is None


def test_where_nothing_can_be_sealed_nothing_is_and_that_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = SealedSecrets(folder)
    monkeypatch.setenv("PATH", str(folder))
    sealed.put("a", OpenedSecrets({"db": {"password": VALUE}}, offline=["db"]))
    assert "openssl is not installed" in caplog.text and VALUE not in caplog.text
    assert sealed.get("a") is None and list_files(folder) == []
    sealed.put("../a", OpenedSecrets({}))
    assert not (folder / "a").exists() and sealed.get("../node.key") is None
