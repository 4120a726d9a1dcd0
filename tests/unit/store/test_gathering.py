"""Steps that share transactions: none waits for somebody else to come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from weft.store.etcd.connection import EtcdConnection
from weft.store.etcd.gathering import Gathering
from weft.store.etcd.wire import RangeRequest, RequestOp


class Etcd:
    """One that answers all transactions under way in one turn of the loop."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.sizes: list[int] = []

    async def transact(self, compare: object, steps: Sequence[Any], otherwise: object) -> Any:
        self.sizes.append(len(steps))
        await self.answers.wait()
        return SimpleNamespace(header=SimpleNamespace(revision=7), responses=[b"" for _ in steps])


def read(key: bytes) -> Any:
    return RequestOp(range=RangeRequest(key=key))


async def test_a_step_that_comes_as_all_transactions_end_is_sent() -> None:
    etcd = Etcd()
    gathering = Gathering(cast(EtcdConnection, etcd))

    async def ask_twice() -> int:
        await gathering.do(b"a", read(b"a"))
        return (await gathering.do(b"b", read(b"b"))).revision

    twice = asyncio.create_task(ask_twice())
    await asyncio.sleep(0.01)
    once = asyncio.create_task(gathering.do(b"c", read(b"c")))
    await asyncio.sleep(0.01)
    assert etcd.sizes == [1, 1]
    etcd.answers.set()
    await once
    assert await asyncio.wait_for(twice, 5.0) == 7
    assert etcd.sizes == [1, 1, 1]


async def test_steps_that_come_while_two_are_under_way_share_the_next() -> None:
    etcd = Etcd()
    gathering = Gathering(cast(EtcdConnection, etcd))
    asked = list[asyncio.Task[Any]]()
    for number in range(12):
        asked.append(asyncio.create_task(gathering.do(b"%d" % number, read(b"%d" % number))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    etcd.answers.set()
    await asyncio.gather(*asked)
    assert etcd.sizes == [1, 1, 10]
