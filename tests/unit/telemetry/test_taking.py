"""Batches of many sources in one commit: in turn, bounded, and each for itself."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from weft.contracts.journal import Event
from weft.objects.identity import Ref
from weft.telemetry.journal import SqliteJournal
from weft.telemetry.taking import MOST_EVENTS, MOST_WAITING, EventBatch, GroupedTaking


def event(message: str = "m") -> Event:
    return Event(type="Normal", reason="Started", message=message, object=Ref("vm", "web", "u"), source="test")


class SlowStore:
    """Keeps everything, once it is let."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.began, self.may = threading.Event(), threading.Event()

    def keep(self, batches: Sequence[EventBatch]) -> list[int]:
        self.groups.append([batch.source for batch in batches])
        self.began.set()
        assert self.may.wait(60)
        return [max(number for number, _ in batch.events) for batch in batches]


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def taking(store: SlowStore) -> Iterator[GroupedTaking]:
    taking = GroupedTaking(store.keep)
    taking.put("first", "box", [(1, (0.0, event()))])
    assert store.began.wait(60)
    yield taking
    store.may.set()
    taking.close()


def test_what_comes_during_a_commit_is_in_the_next_one_together(store: SlowStore, taking: GroupedTaking) -> None:
    answers = [taking.put(name, "box", [(number, (0.0, event()))]) for number, name in enumerate("abc", 5)]
    store.may.set()
    assert [answer.result(60) for answer in answers] == [5, 6, 7]
    assert store.groups == [["first"], ["a", "b", "c"]]


def test_a_source_that_sends_without_end_has_its_turn_once_a_commit(store: SlowStore, taking: GroupedTaking) -> None:
    flood = [taking.put("flood", "box", [(n, (0.0, event()))]) for n in range(1, MOST_WAITING + 3)]
    other = taking.put("other", "box", [(1, (0.0, event()))])
    store.may.set()
    assert [answer.result(60) for answer in flood] == [*range(1, MOST_WAITING + 1), 0, 0]
    assert other.result(60) == 1
    assert store.groups == [["first"], ["flood", "other"], *[["flood"]] * (MOST_WAITING - 1)]


def test_a_commit_has_an_end_and_nobody_is_passed_over(store: SlowStore, taking: GroupedTaking) -> None:
    half = [(n, (0.0, event())) for n in range(1, MOST_EVENTS // 2 + 2)]
    names = ["a", "b", "c"]
    answers = [taking.put(name, "box", half) for name in names]
    store.may.set()
    assert {answer.result(60) for answer in answers} == {len(half)}
    assert store.groups == [["first"], ["a"], ["b"], ["c"]]


def test_a_store_that_fails_leaves_nobody_waiting() -> None:
    def fail(batches: Sequence[EventBatch]) -> list[int]:
        raise RuntimeError("broken")

    taking = GroupedTaking(fail)
    assert taking.put("a", "box", [(1, (0.0, event()))]).result(60) == 0
    assert taking.put("a", "box", [(1, (0.0, event()))]).result(60) == 0
    taking.close()
    assert taking.put("a", "box", [(1, (0.0, event()))]).result(60) == 0, "it is closed"


def test_a_batch_that_cannot_be_written_takes_nothing_of_the_others(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j.db")
    other = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # so all wait for one commit

    async def bring() -> list[int]:
        bringing = [
            asyncio.ensure_future(journal.take_soon(name, "box", [(1, event(f"{name} 1")), (2, event(message))]))
            for name, message in (("n1", "n1 2"), ("n2", "\ud800"), ("n3", "n3 2"))
        ]
        await asyncio.sleep(0)
        other.execute("COMMIT")
        return await asyncio.gather(*bringing)

    try:
        assert asyncio.run(bring()) == [2, 0, 2]
        assert [one.message for one in journal.read()] == ["n1 1", "n1 2", "n3 1", "n3 2"]
        assert journal.take("n2", "box", [(1, event("n2 1")), (2, event("n2 2"))]) == 2, (
            "what was refused may come again"
        )
    finally:
        other.close()
        journal.close()
