"""Attempts of a call to etcd end in ways that a real one shows once in thousands of elections."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from weft.objects.errors import StoreUnavailable
from weft.store.etcd import wire
from weft.store.etcd.connection import EtcdConnection


class Words(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers each read with the next of these codes and words, then with the revision 7."""

    def __init__(self, *said: tuple[grpc.StatusCode, str]) -> None:
        self.said = list(said)

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            self._answer, wire.RangeRequest.FromString, wire.RangeResponse.SerializeToString
        )

    async def _answer(self, request: Any, context: Any) -> Any:
        if self.said:
            await context.abort(*self.said.pop(0))
        answer = wire.RangeResponse()
        answer.header.revision = 7
        return answer


async def read(words: Words) -> int:
    server = grpc.aio.server(handlers=[words])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = EtcdConnection([f"127.0.0.1:{port}"], None, 5.0)
    await connection.open()
    try:
        return int((await connection.range(key=b"k")).header.revision)
    finally:
        await connection.close()
        await server.stop(None)


async def test_an_attempt_whose_end_etcd_saw_first_is_made_again() -> None:
    late = (grpc.StatusCode.UNKNOWN, "context deadline exceeded")
    assert await read(Words(late, (grpc.StatusCode.UNAVAILABLE, "etcdserver: no leader"), late)) == 7


async def test_an_attempt_at_a_member_that_ends_is_made_again_at_another() -> None:
    assert await read(Words((grpc.StatusCode.UNKNOWN, "raft: stopped"))) == 7  # one that was removed from the store


async def test_what_etcd_refuses_for_another_reason_is_not_asked_again() -> None:
    words = Words((grpc.StatusCode.UNKNOWN, "something else"))
    with pytest.raises(StoreUnavailable, match="something else"):
        await read(words)
    assert not words.said
