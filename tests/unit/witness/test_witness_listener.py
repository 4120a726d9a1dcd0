"""The witness's HTTP, when its callers hang up."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

from weft.contracts.clock import SystemClock
from weft.protocol.failover.claim import ClaimRefused
from weft.protocol.failover.witness import PATH, WitnessAnswer
from weft.serving.request import Request
from weft.witness.listener import WitnessListener
from weft.witness.service import Witness
from weft.witness.sites import SiteFile


class SlowWitness:
    """Whose disk takes as long as the test wants."""

    def __init__(self) -> None:
        self.go_on, self.begun, self.inside, self.most = threading.Event(), threading.Event(), 0, 0

    def find_site(self, secret: str) -> str:
        return secret

    def answer(self, secret: str, body: bytes) -> WitnessAnswer:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.begun.set()
        self.go_on.wait(60.0)
        self.inside -= 1
        return WitnessAnswer(answer=ClaimRefused("promised"), epoch="e", is_armed=False)


class NoSites:
    def has_changed(self) -> bool:
        return False


class Asked:
    method, path, address = "POST", PATH, "192.0.2.1"

    def header(self, name: bytes) -> str:
        return "Bearer east"

    async def read(self) -> bytes:
        return b""


def test_a_caller_that_hangs_up_lets_nobody_in_before_its_change_is_written() -> None:
    async def hang_up() -> int:
        slow = SlowWitness()
        listener = WitnessListener(cast(Witness, slow), cast(SiteFile, NoSites()), SystemClock(), 1000)
        first = asyncio.create_task(listener.answer(cast(Request, Asked())))
        await asyncio.to_thread(slow.begun.wait, 60.0)
        first.cancel()
        await asyncio.wait([first])
        slow.begun.clear()
        second = asyncio.create_task(listener.answer(cast(Request, Asked())))
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert not second.done()
        slow.go_on.set()
        await second
        return slow.most

    assert asyncio.run(hang_up()) == 1
