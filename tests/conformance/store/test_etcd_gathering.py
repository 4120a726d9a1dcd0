"""Reads of keys and renewals of leases, many at once, share a few transactions of etcd."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from etcd_server import EtcdServer
from test_etcd_bad_days import once_it_answers

from weft.contracts.store import MAX_DIGEST_BYTES, Put
from weft.objects.errors import StoreUnavailable
from weft.store.etcd import EtcdStore


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path)
    server.start()
    yield server
    server.end()


@pytest.fixture
async def store(server: EtcdServer) -> AsyncIterator[EtcdStore]:
    store = EtcdStore([server.endpoint], timeout_seconds=4.0)
    await once_it_answers(store.open)
    yield store
    await store.close()


def count_requests(server: EtcdServer) -> int:
    """Of reads and transactions that etcd has answered."""
    with urllib.request.urlopen(f"http://{server.endpoint}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    method = re.compile(r'grpc_server_handled_total\{grpc_code="OK",grpc_method="(Range|Txn)"')
    return sum(int(float(line.split()[-1])) for line in lines if method.match(line))


async def test_many_reads_share_a_few_requests_and_each_gets_its_own_answer(
    server: EtcdServer, store: EtcdStore
) -> None:
    revisions = [await store.commit([Put(f"/a/{n}", b"%d" % n)]) for n in range(50)]
    before = count_requests(server)
    found = await asyncio.gather(*(store.get(f"/a/{n % 60}") for n in range(600)))
    assert count_requests(server) - before <= 20
    seen = [None if entry is None else (entry.key, entry.value, entry.revision) for entry in found]
    expected = [(f"/a/{n}", b"%d" % n, revisions[n]) if n < 50 else None for n in range(60)]
    assert seen == expected * 10


async def test_a_read_sees_what_was_written_before_it_was_asked_for(store: EtcdStore) -> None:
    async def write_and_read(key: str) -> list[bytes]:
        seen = []
        for n in range(20):
            await store.commit([Put(key, b"%d" % n)])
            entry = await store.get(key)
            assert entry is not None
            seen.append(entry.value)
        return seen

    for seen in await asyncio.gather(*(write_and_read(f"/a/{n}") for n in range(20))):
        assert seen == [b"%d" % n for n in range(20)]


async def test_many_renewals_share_a_few_requests_and_each_lease_has_its_own_fence(
    server: EtcdServer, store: EtcdStore
) -> None:
    names = [f"node/{n:03}" for n in range(300)]
    taken = await asyncio.gather(*(store.grant(name, name, 60.0) for name in names))
    before = count_requests(server)
    renewed = await asyncio.gather(*(store.grant(name, name, 60.0, name.encode()) for name in names))
    assert count_requests(server) - before <= 10
    assert [lease and (lease.name, lease.fence) for lease in renewed] == [
        lease and (lease.name, lease.fence) for lease in taken
    ]
    live = await store.leases("node/", digests=True)
    assert [(lease.name, lease.holder, lease.digest) for lease in live] == [(n, n, n.encode()) for n in names]
    refused = await asyncio.gather(*(store.grant(name, "another", 60.0) for name in names))
    assert refused == [None] * 300


async def test_of_many_who_want_a_lease_one_has_it(server: EtcdServer, store: EtcdStore) -> None:
    second = EtcdStore([server.endpoint])
    await second.open()
    wanting = [(one, f"h{n % 4}") for n in range(40) for one in (store, second)]
    got = await asyncio.gather(*(one.grant("controllers", holder, 60.0) for one, holder in wanting))
    await second.close()
    leases = [lease for lease in got if lease is not None]
    assert len({lease.holder for lease in leases}) == len({lease.fence for lease in leases}) == 1
    assert [lease is not None for lease in got] == [holder == leases[0].holder for _, holder in wanting]


async def test_large_digests_go_in_as_many_transactions_as_they_need(store: EtcdStore) -> None:
    digest = b"d" * MAX_DIGEST_BYTES
    taken = await asyncio.gather(*(store.grant(f"node/{n}", "me", 60.0, digest) for n in range(80)))
    assert all(lease is not None for lease in taken)
    assert [lease.digest for lease in await store.leases("node/", digests=True)] == [digest] * 80


async def test_those_that_wait_fail_with_those_that_were_asked(server: EtcdServer, store: EtcdStore) -> None:
    server.end()
    async with asyncio.timeout(20):  # not 4 s for every 90 keys of 3,000
        found = await asyncio.gather(*(store.get(f"/a/{n}") for n in range(3_000)), return_exceptions=True)
    assert {type(one) for one in found} == {StoreUnavailable}
    server.start()
    assert await once_it_answers(lambda: store.get("/a/1")) is None


async def test_who_gives_up_holds_nobody_up(store: EtcdStore) -> None:
    await store.commit([Put("/a", b"1")])
    reads = [asyncio.ensure_future(store.get("/a" if n % 2 else "/b")) for n in range(200)]
    await asyncio.sleep(0)
    for read in reads[::2]:
        read.cancel()
    found = await asyncio.gather(*reads[1::2])
    assert {entry and entry.value for entry in found} == {b"1"}
