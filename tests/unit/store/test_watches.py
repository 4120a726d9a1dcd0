from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from weft.contracts.store import Batch, Change
from weft.objects.errors import StoreUnavailable
from weft.store.cursors import check_reach
from weft.store.watches import Watches


class Log:
    """An engine's log: what was made durable, of which the watches are told later."""

    def __init__(self, **bounds: int) -> None:
        self.made: list[Batch] = []
        self.replays = 0
        self.watches = Watches("e", 0, self.replay, **bounds)

    def make(self, key: str) -> Batch:
        revision = len(self.made) + 1
        self.made.append(Batch(revision, f"e:{revision}", [Change(key, b"%d" % revision)]))
        return self.made[-1]

    def publish(self, batch: Batch) -> None:
        self.watches.publish(batch.revision, batch.changes)

    async def replay(self, prefix: str, position: int, until: int) -> tuple[list[Batch], int]:
        self.replays += 1
        check_reach(position, 0, len(self.made))
        reached = min(until, position + 10)
        await asyncio.sleep(0)
        return [b for b in self.made[position:reached] if b.changes[0].key.startswith(prefix)], reached


async def test_a_cursor_ahead_of_what_was_published_repeats_nothing() -> None:
    """A list may show a commit before the watches are told of it; a watch from there must not deliver it."""
    log = Log()
    unpublished, later = log.make("/a"), log.make("/a")
    async with asyncio.timeout(60), aclosing(log.watches.follow("/", unpublished.cursor)) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.01)
        log.publish(unpublished)
        log.publish(later)
        assert (await waiting).revision == later.revision


async def test_what_is_published_during_the_replay_comes_after_it_and_once() -> None:
    log = Log()
    for _ in range(35):
        log.publish(log.make("/a"))
    async with asyncio.timeout(60), aclosing(log.watches.follow("/", "e:0")) as watch:
        seen = []
        while len(seen) < 60:
            seen.append((await anext(watch)).revision)
            if len(log.made) < 60:
                log.publish(log.make("/a"))
    assert seen == list(range(1, 61))


@pytest.mark.parametrize("bounds", [{"max_batches": 5}, {"max_bytes": 12}], ids=str)
async def test_an_overflowing_watcher_goes_back_to_the_log_and_the_publisher_never_waits(
    bounds: dict[str, int],
) -> None:
    log = Log(**bounds)
    async with asyncio.timeout(60), aclosing(log.watches.follow("/a", "e:0")) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        while not log.watches._by_prefix:  # from here on it has a queue
            await asyncio.sleep(0)
        log.publish(log.make("/a"))
        seen, replays = [(await waiting).revision], log.replays
        for _ in range(100):
            log.publish(log.make("/a"))
            log.publish(log.make("/b"))
        assert not log.watches._by_prefix, "it has fallen behind"
        while seen[-1] < 200:
            seen.append((await anext(watch)).revision)
        assert seen == [1, *range(2, 202, 2)] and log.replays > replays
        waiting = asyncio.ensure_future(anext(watch))
        while not log.watches._by_prefix:
            await asyncio.sleep(0)
        log.publish(log.make("/a"))
        assert (await waiting).revision == len(log.made)


async def test_a_batch_larger_than_the_whole_queue_is_still_delivered() -> None:
    log = Log(max_bytes=1)
    async with asyncio.timeout(60), aclosing(log.watches.follow("/", "e:0")) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.01)
        log.publish(log.make("/a"))
        assert (await waiting).revision == 1


async def test_watchers_that_left_cost_nothing_any_more() -> None:
    log = Log()
    for prefix in ("/a", "/a", "/b/c", "/"):
        async with aclosing(log.watches.follow(prefix, "e:0")) as watch:
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.01)
            assert log.watches._by_prefix
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    assert not log.watches._by_prefix and not log.watches._lengths


async def test_closing_lets_watchers_read_what_they_have_and_then_ends_them() -> None:
    log = Log()
    async with asyncio.timeout(60), aclosing(log.watches.follow("/", "e:0")) as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.01)
        log.publish(log.make("/a"))
        log.publish(log.make("/a"))
        log.watches.close()
        assert (await waiting).revision == 1
        assert (await anext(watch)).revision == 2
        with pytest.raises(StoreUnavailable):
            await anext(watch)


async def test_a_watch_does_not_keep_what_it_has_replayed() -> None:
    """A watch lasts for minutes, and there are thousands: each would hold megabytes of history."""
    log, given = Log(), list[list[Batch]]()
    replay = log.replay

    async def noted(prefix: str, position: int, until: int) -> tuple[list[Batch], int]:
        batches, reached = await replay(prefix, position, until)
        given.append(batches)
        return batches, reached

    log.watches = Watches("e", 0, noted)
    for _ in range(35):
        log.publish(log.make("/a"))
    async with asyncio.timeout(60), aclosing(log.watches.follow("/", "e:0")) as watch:
        assert [(await anext(watch)).revision for _ in range(35)] == list(range(1, 36))
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.01)
        assert given and not any(given)
        log.publish(log.make("/a"))
        assert (await waiting).revision == 36


async def test_who_lists_and_then_watches_is_served_from_memory_until_that_history_is_forgotten() -> None:
    log = Log(recent_bytes=1_000)
    for _ in range(20):
        log.publish(log.make("/a"))
    log.publish(log.make("/b"))
    async with asyncio.timeout(60), aclosing(log.watches.follow("/a", "e:5")) as watch:
        assert [(await anext(watch)).revision for _ in range(15)] == list(range(6, 21))
        assert log.replays == 0
    log.watches.forget(10)
    async with asyncio.timeout(60), aclosing(log.watches.follow("/a", "e:9")) as watch:
        assert (await anext(watch)).revision == 10  # the engine's to answer, or to refuse
        assert log.replays > 0


async def test_what_no_longer_fits_into_memory_is_read_from_the_log() -> None:
    log = Log(recent_bytes=40)
    for _ in range(30):
        log.publish(log.make("/a"))
    async with asyncio.timeout(60), aclosing(log.watches.follow("/", "e:0")) as watch:
        assert [(await anext(watch)).revision for _ in range(30)] == list(range(1, 31))
        assert log.replays > 0


async def test_who_reads_on_when_the_store_is_closed_meanwhile_is_told_so_and_waits_for_nothing() -> None:
    log = Log(recent_bytes=0)
    log.publish(log.make("/a"))
    async with aclosing(log.watches.follow("/", "e:0")) as watch:
        assert (await anext(watch)).revision == 1
        log.watches.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await asyncio.wait_for(anext(watch), 60)


async def follow_some(log: Log, prefix: str, position: int, count: int) -> list[tuple[int, list[str]]]:
    async with asyncio.timeout(60), aclosing(log.watches.follow(prefix, f"e:{position}")) as watch:
        batches = [await anext(watch) for _ in range(count)]
    return [(batch.revision, [change.key for change in batch.changes]) for batch in batches]


async def test_what_is_found_in_memory_by_key_is_what_the_log_has() -> None:
    """Commits of many keys, in any order, of which the oldest have been forgotten."""
    draw, log = random.Random(5), Log(recent_bytes=6_000)
    for revision in range(1, 401):
        keys = draw.choices([f"/{kind}/{n}" for kind in "abc" for n in range(12)], k=draw.randint(1, 4))
        log.made.append(Batch(revision, f"e:{revision}", [Change(key, b"%d" % revision) for key in keys]))
        log.publish(log.made[-1])
    log.watches.forget(200)
    for prefix in ("/", "/a/", "/a/1", "/b/7", "/c/11"):
        for position in (200, 201, 300, 390):
            has = [(b.revision, [c.key for c in b.changes if c.key.startswith(prefix)]) for b in log.made[position:]]
            wanted = [one for one in has if one[1]]
            assert await follow_some(log, prefix, position, len(wanted)) == wanted
    assert log.replays == 0


async def test_a_watch_from_before_a_thousand_commits_of_others_reads_few_of_them() -> None:
    """A thousand nodes come back at once: each follows its own, out of what all have changed."""
    read = 0

    class Key(str):
        def startswith(self, *of: object) -> bool:
            nonlocal read
            read += 1
            return super().startswith(*of)  # type: ignore[arg-type]

    log = Log(recent_bytes=1_000_000)
    for n in range(1_000):
        log.publish(log.make(Key(f"/allocation/n{n:04}.web")))
    assert await follow_some(log, "/allocation/n0007.", 0, 1) == [(8, ["/allocation/n0007.web"])]
    assert read < 20
