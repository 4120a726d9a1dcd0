"""Certificates out of their time, and clocks that are wrong: told with the remedy, renewed in time, never a riddle."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from tests.scenario import api_lab
from tests.scenario.api_lab import ApiLab
from tests.unit.trust.test_ca import SetClock

from weft.agent.node.enrolment import _make_request, has_ended, join, make_context, needs_renewal
from weft.client import Client, Context
from weft.client.context import hash_ca
from weft.contracts.clock import Clock
from weft.launch.agent import main as launch
from weft.launch.process.certificate import keep_certificate
from weft.objects.errors import AlreadyExists, NotAuthenticated
from weft.serving.server import make_server_tls
from weft.trust.ca import Authority, read_csr

DAY = 86400.0


def shifted(days: float) -> SetClock:
    clock = SetClock()
    clock.at += days * DAY
    return clock


@contextlib.contextmanager
def api(folder: Path, monkeypatch: pytest.MonkeyPatch, days: float = 0.0):  # type: ignore[no-untyped-def]
    """An API whose CA has a clock that is off by so many days."""
    folder.mkdir()
    monkeypatch.setattr(api_lab, "Authority", lambda state, _: Authority(state, shifted(days)))
    lab = ApiLab(folder)
    try:
        yield lab
    finally:
        lab.close()


@pytest.mark.parametrize(("days", "fact"), [(-400.0, "has expired"), (30.0, "is not valid yet")])
def test_a_server_whose_certificate_is_out_of_its_time_is_told_with_both_causes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float, fact: str
) -> None:
    with api(tmp_path / "server", monkeypatch, days) as lab, pytest.raises(NotAuthenticated, match=fact) as caught:
        lab.client.list("vm")
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    assert caught.value.token == "certificateExpired" and f"this machine's clock says {today}" in caught.value.message
    assert "timedatectl" in str(caught.value.hint) and "restart weft server" in str(caught.value.hint)


def enrol(lab: ApiLab, state: Path, **token: object) -> Context:
    made = lab.client.create({"kind": "token", "name": f"j{len(lab.clients)}", "spec": {"use": "join", **token}})
    lab.connect()
    return make_context(state, join(state, lab.context.server, made["secret"], hash_ca(lab.context.ca), "n1"))


def age_certificate(lab: ApiLab, state: Path, days: float) -> None:
    """Give the node the certificate it would have got so many days from now."""
    uid = lab.client.get("node", "n1")["uid"]
    csr = read_csr(_make_request(state / "node.key"))
    (state / "node.crt").write_text(Authority(lab.folder, shifted(days)).sign_node(csr, uid))


@pytest.mark.parametrize("days", [-400.0, 30.0])
def test_a_node_whose_certificate_is_out_of_its_time_is_told_how_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float
) -> None:
    state = tmp_path / "node"
    with api(tmp_path / "server", monkeypatch) as lab:
        context = enrol(lab, state)
        age_certificate(lab, state, days)
        for _ in range(5):
            client = Client(context)
            with pytest.raises(NotAuthenticated) as caught:
                client.get("node", "n1")
            client.close()
            assert caught.value.token == "certificateExpired"
            assert "weft token create --join --node" in str(caught.value.hint) and "clock" in str(caught.value.hint)
        if days < 0:
            assert has_ended(state) and needs_renewal(state)
            with pytest.raises(AlreadyExists):  # a token for anybody doesn't give a node's name away
                enrol(lab, state)
            client = Client(enrol(lab, state, node="n1"))
            assert client.get("node", "n1")["uid"] == launch.read_enrolment(state).node_uid
            client.close()


class SteppedClock:
    """Each sleep waits for a step."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[None] = asyncio.Queue()
        self.waiting = asyncio.Event()

    def now(self) -> float:
        return 0.0

    def elapsed(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.waiting.set()
        await self.steps.get()

    async def step(self) -> None:
        self.waiting.clear()
        self.steps.put_nowait(None)
        await self.waiting.wait()


async def test_a_running_server_shows_a_fresh_certificate_before_the_old_one_ends(tmp_path: Path) -> None:
    calendar = SetClock()
    authority = Authority(tmp_path, calendar)
    chain, key = authority.renew_server([])
    tls = make_server_tls(chain, key, authority.ca_path)
    clock = SteppedClock()
    keeping = asyncio.create_task(
        keep_certificate(tls, chain, key, cast(Clock, clock), lambda: authority.renew_server([]))
    )
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]

    async def shown() -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

    await clock.waiting.wait()
    first = await shown()
    await clock.step()
    assert await shown() == first
    calendar.at += 336 * DAY
    await clock.step()
    second = await shown()
    assert second != first
    key.write_bytes(b"not a key yet")
    chain.write_bytes(b"nor a certificate")
    calendar.at += 1.0
    await clock.step()  # both are made anew: what can't be read isn't good
    assert await shown() not in (first, second)
    keeping.cancel()
    server.close()


async def test_an_agent_whose_clock_is_years_ahead_does_not_renew_and_restart_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renewed: list[str] = []
    ends_soon: Callable[[Path], bool] = lambda state: True  # noqa: E731
    monkeypatch.setattr(launch, "has_ended", lambda state: False)
    monkeypatch.setattr(launch, "needs_renewal", ends_soon)
    monkeypatch.setattr(launch, "renew", lambda state, node, context: renewed.append(node))
    clock = SteppedClock()
    with caplog.at_level(logging.WARNING):
        renewing = asyncio.create_task(launch._renew(tmp_path, "n1", Context(server="https://x"), cast(Clock, clock)))
        await clock.waiting.wait()
        await clock.step()
    assert not renewing.done() and renewed == ["n1", "n1"]
    assert "by this machine's clock: set the clock" in caplog.text
    monkeypatch.setattr(launch, "needs_renewal", lambda state: len(renewed) < 3)
    clock.steps.put_nowait(None)
    await asyncio.wait_for(renewing, 60)
    assert len(renewed) == 3
