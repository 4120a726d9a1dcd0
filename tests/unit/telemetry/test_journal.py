"""The journal: folded, ordered, forgotten in time, open in several processes at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from weft.contracts.clock import SystemClock
from weft.contracts.journal import Event
from weft.objects.identity import Ref
from weft.telemetry.journal import SqliteJournal


class SetClock:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def now(self) -> float:
        return self.at

    def elapsed(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


def event(name: str = "web", reason: str = "Started", message: str = "m", kind: str = "vm") -> Event:
    project = "default" if kind == "vm" else None
    return Event(
        type="Normal",
        reason=reason,
        message=message,
        object=Ref(kind=kind, name=name, uid=f"uid-{name}", project=project),
        source="test",
    )


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def journal(tmp_path: Path, clock: SetClock) -> Iterator[SqliteJournal]:
    journal = SqliteJournal(tmp_path / "journal.db", clock)
    yield journal
    journal.close()


def test_events_are_read_in_order_from_any_place(journal: SqliteJournal) -> None:
    for name in "abc":
        journal.append(event(name))
    journal.flush()
    a, b, c = journal.read()
    assert [r.object.name for r in (a, b, c)] == ["a", "b", "c"]
    assert [r.object.name for r in journal.read(since=a.id)] == ["b", "c"]
    assert [r.object.name for r in journal.read(limit=2)] == ["b", "c"]
    assert [r.object.name for r in journal.read(since=0, limit=2)] == ["a", "b"]
    assert journal.read(since=c.id) == []


def test_the_same_event_soon_after_only_counts_and_is_seen_again(journal: SqliteJournal, clock: SetClock) -> None:
    journal.append(event())
    journal.append(event("other"))
    journal.flush()
    seen = journal.read()[-1].id
    clock.at += 60
    journal.append(event())
    journal.flush()
    [again] = journal.read(since=seen)
    assert (again.count, again.at, again.first_at) == (2, clock.at, clock.at - 60)
    assert len(journal.read()) == 2


def test_what_comes_again_before_it_is_written_is_written_once(journal: SqliteJournal, clock: SetClock) -> None:
    for name in ("web", "other", "web", "web"):
        journal.append(event(name))
        clock.at += 1
    journal.flush()
    assert [(r.id, r.object.name, r.count) for r in journal.read()] == [(1, "other", 1), (2, "web", 3)]
    journal.append(event())
    journal.append(event())
    journal.flush()
    [again] = journal.read(since=2)
    assert (again.count, again.first_at, again.at) == (5, clock.at - 4, clock.at)


def test_another_message_object_or_a_later_time_is_another_event(journal: SqliteJournal, clock: SetClock) -> None:
    journal.append(event())
    journal.append(event(message="other"))
    journal.append(event("db"))
    journal.append(event(reason="Stopped"))
    clock.at += 601
    journal.append(event())
    journal.flush()
    assert [r.count for r in journal.read()] == [1] * 5


def test_events_are_found_by_what_they_are_about(journal: SqliteJournal) -> None:
    for made in (event("web"), event("db"), event("n1", kind="node")):
        journal.append(made)
    journal.flush()
    for about, names in (
        ("vm", ["web", "db"]),
        ("vm/web", ["web"]),
        ("vm/default/web", ["web"]),
        ("vm/other/web", []),
        ("node/-/n1", ["n1"]),
        ("node/n1", ["n1"]),
        ("nothing", []),
        ("a/b/c/d", []),
    ):
        assert [r.object.name for r in journal.read(about=about)] == names, about


def test_old_events_are_forgotten_by_age_and_by_count(tmp_path: Path, clock: SetClock) -> None:
    journal = SqliteJournal(tmp_path / "j.db", clock, keep_seconds=100, keep_events=700)
    journal.append(event("old"))
    journal.flush()
    newest = journal.read()[-1].id
    clock.at += 200
    for number in range(1500):
        journal.append(event(f"n{number}"))
    journal.flush()
    kept = journal.read(limit=5000)
    journal.close()
    assert kept[-1].object.name == "n1499" and kept[-1].id == newest + 1500
    assert 700 <= len(kept) <= 1200 and kept[0].object.name != "old"


def test_what_nodes_send_alone_is_forgotten_by_count_too(tmp_path: Path, clock: SetClock) -> None:
    journal = SqliteJournal(tmp_path / "j.db", clock, keep_events=100)
    for first in range(0, 2000, 100):
        assert journal.take("n1", "box", [(n, event(f"n{n}")) for n in range(first + 1, first + 101)]) == first + 100
    kept = journal.read(limit=5000)
    journal.close()
    assert 100 <= len(kept) <= 700 and kept[-1].object.name == "n2000"


def test_one_that_is_closed_again_and_again_forgets_too(tmp_path: Path, clock: SetClock) -> None:
    for run in range(30):
        journal = SqliteJournal(tmp_path / "j.db", clock, keep_events=100)
        for number in range(20):
            journal.append(event(f"n{run}-{number}"))
        journal.close()
    journal = SqliteJournal(tmp_path / "j.db", clock, keep_events=100)
    kept = journal.read(limit=5000)
    journal.close()
    assert 100 <= len(kept) <= 120 and kept[-1].object.name == "n29-19"


def test_what_is_said_at_great_length_is_kept_in_short_and_counted_as_one(journal: SqliteJournal) -> None:
    for end in ("a", "b"):
        journal.append(event(message="x" * 100_000 + end))
    journal.flush()
    [kept] = journal.read()
    assert len(kept.message) == 2048 and kept.count == 2


def test_the_log_of_its_file_is_cut_back_when_a_long_reader_is_gone(
    tmp_path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.telemetry.journal._LOG_FILE_BYTES", 1 << 20)
    journal = SqliteJournal(tmp_path / "j.db", clock)
    log = tmp_path / "j.db-wal"

    def fill(name: str) -> None:
        for number in range(2000):
            journal.append(event(f"{name}-{number}", message="x" * 2000))
        journal.flush()

    reader = sqlite3.connect(tmp_path / "j.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM event").fetchall()
    fill("one")
    fill("two")
    assert log.stat().st_size > 8 << 20
    reader.close()
    fill("three")  # all of it goes into the file
    journal.append(event("last"))  # and it begins anew
    journal.flush()
    size = log.stat().st_size
    journal.close()
    assert size <= 1 << 20


OTHER = """
import sys
from weft.contracts.journal import Event
from weft.objects.identity import Ref
from weft.telemetry.journal import SqliteJournal
journal = SqliteJournal(sys.argv[1])
for n in range(int(sys.argv[2])):
    journal.append(Event(type="Normal", reason="R", message=str(n), object=Ref("vm", "x", "u"), source="other"))
journal.close()
"""


def test_two_processes_write_one_journal(journal: SqliteJournal, clock: SetClock, tmp_path: Path) -> None:
    clock.at = SystemClock().now()  # the other's, or it forgets what is so old
    other = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path / "journal.db"), "200"])
    for number in range(200):
        journal.append(event(message=str(number)))
        if number % 20 == 0:
            journal.flush()
    assert other.wait(60) == 0
    journal.flush()
    records = journal.read()
    for source in ("test", "other"):
        assert [r.message for r in records if r.source == source] == [str(n) for n in range(200)]
    # A process that ends, as the last one that seems to have it open, removes the log: not from under this one.
    clock.at += 3600.0
    assert journal.take("n1", "box", [(1, event())]) == 1
    subprocess.run([sys.executable, "-c", OTHER, str(tmp_path / "journal.db"), "201"], check=True)
    subprocess.run([sys.executable, "-c", OTHER, str(tmp_path / "journal.db"), "202"], check=True)
    assert [r.message for r in journal.read() if r.source == "other"][-2:] == ["200", "201"]


def test_what_was_appended_before_the_end_is_kept(tmp_path: Path) -> None:
    first = SqliteJournal(tmp_path / "j.db")
    first.append(event("last"))
    first.close()
    first.append(event("too late"))
    second = SqliteJournal(tmp_path / "j.db")
    assert [r.object.name for r in second.read()] == ["last"]
    second.close()


def test_a_damaged_journal_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_bytes(b"this is not a database " * 1000)
    journal = SqliteJournal(tmp_path / "j.db")
    journal.append(event("new"))
    journal.flush()
    assert [r.object.name for r in journal.read()] == ["new"]
    journal.close()
    assert (tmp_path / "j.db.damaged").exists()


def test_an_event_that_cannot_be_kept_does_not_end_the_journal(journal: SqliteJournal) -> None:
    journal.append(event(message="\ud800"))
    journal.flush()
    journal.append(event("next"))
    journal.flush()
    assert [r.object.name for r in journal.read()] == ["next"]


def test_a_journal_that_is_locked_for_a_while_waits(journal: SqliteJournal, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    journal.append(event("patient"))
    other.execute("COMMIT")
    other.close()
    journal.flush()
    assert [r.object.name for r in journal.read()] == ["patient"]


def test_people_of_a_project_read_nothing_of_an_earlier_one_with_its_name(journal: SqliteJournal) -> None:
    journal.append(event("default", "Created", kind="project"))
    journal.append(event("secret"))
    journal.append(event("default", "Deleted", kind="project"))
    journal.append(event("default", "Created", kind="project"))
    journal.flush()
    assert journal.read(projects=["default"]) == [] == journal.read(about="vm/default/secret", projects=["default"])
    journal.append(event("web"))
    journal.flush()
    assert [record.object.name for record in journal.read(projects=["default", "other"])] == ["web"]
    assert [record.object.name for record in journal.read(about="vm")] == ["secret", "web"]


def test_numbered_events_of_a_node_are_kept_once_with_their_own_times(journal: SqliteJournal, clock: SetClock) -> None:
    old = msgspec.structs.replace(event(message="alone"), at=clock.at - 3600.0)
    numbered = [(7, old), (9, event("other"))]
    assert journal.take("n1", "box", numbered) == 9
    assert journal.take("n1", "box", numbered) == 9, "its answer was lost: it comes again"
    assert journal.take("n1", "box", [*numbered, (10, event("third"))]) == 10
    assert [(one.object.name, one.at, one.count) for one in journal.read()] == [
        ("web", clock.at - 3600.0, 1),
        ("other", clock.at, 1),
        ("third", clock.at, 1),
    ]
    assert journal.take("n1", "another box", [(1, event("fourth"))]) == 1, "the node began a new outbox"
    assert journal.take("n2", "box", [(1, event("fifth"))]) == 1
    assert len(journal.read()) == 5


def test_an_event_of_yesterday_is_not_folded_into_one_of_today(journal: SqliteJournal, clock: SetClock) -> None:
    assert journal.take("n1", "box", [(1, event())]) == 1
    assert journal.take("n1", "box", [(2, msgspec.structs.replace(event(), at=clock.at - 86_400.0))]) == 2
    assert sorted(one.at for one in journal.read()) == [clock.at - 86_400.0, clock.at]


def test_a_journal_that_cannot_be_written_takes_nothing_for_good(tmp_path: Path, clock: SetClock) -> None:
    journal = SqliteJournal(tmp_path / "j.db", clock)
    with sqlite3.connect(tmp_path / "j.db") as other:
        other.execute("DROP TABLE event")
        other.execute("CREATE TABLE event(id INTEGER)")
    assert journal.take("n1", "box", [(1, event())]) == 0
    journal.close()


def test_looking_for_the_same_event_reads_no_others_of_its_object(tmp_path: Path, clock: SetClock) -> None:
    """A node's full outbox may have fifty thousand of one container that restarts, each with another number."""
    path, steps = tmp_path / "j.db", list[None]()
    journal = SqliteJournal(path, clock)
    with sqlite3.connect(path) as former:  # as the release before left it
        former.executescript("DROP INDEX event_by_message; CREATE INDEX event_by_object ON event(uid, reason)")
    journal.take("n1", "box", [(n, event(message=f"restart {n}")) for n in range(1, 2001)])
    with sqlite3.connect(path) as connection:
        connection.set_progress_handler(lambda: steps.append(None), 100)
        journal._insert(connection, [(clock.at, event(message="restart 2001")), (clock.at, event(message="restart 7"))])
    journal.close()
    assert len(steps) < 10, f"{len(steps)} hundred steps of SQLite for two events"
    with sqlite3.connect(path) as now:
        indexes = [name for (name,) in now.execute("SELECT name FROM sqlite_schema WHERE type = 'index' ORDER BY name")]
        assert now.execute("SELECT count FROM event WHERE message = 'restart 7'").fetchall() == [(2,)]
    assert [one for one in indexes if one.startswith("event")] == ["event_by_message", "event_by_name", "event_by_time"]


def test_a_place_in_time_misses_no_event_though_copies_come_late(tmp_path: Path, clock: SetClock) -> None:
    own, other = (SqliteJournal(tmp_path / f"{name}.db", clock) for name in ("own", "other"))
    for journal, message in ((other, "early"), (own, "middle"), (own, "late")):
        clock.at += 10
        journal.append(event(message=message))
        journal.flush()
    middle = own.read()[0].at
    own.copy("s2", other.read_id(), other.read())
    assert [one.message for one in own.read()] == ["early", "middle", "late"]
    assert [one.message for one in own.read(since=own.find_place(middle)) if one.at >= middle] == ["middle", "late"]
    assert own.find_place(clock.at + 1) == own.find_newest()
    assert [one.message for one in own.read(own=True)] == ["middle", "late"]
    assert own.find_copied("s2") == (other.read_id(), 1) and own.find_copied("s3") == ("", 0)
    clock.at += 1
    other.append(event(message="early"))
    other.flush()
    own.copy("s2", other.read_id(), other.read(since=1))
    assert [(one.message, one.count) for one in own.read()] == [("middle", 1), ("late", 1), ("early", 2)]
    own.append(event(message="early"))  # at this server
    own.flush()
    assert sorted((one.message, one.count) for one in own.read()) == [
        ("early", 1),
        ("early", 2),
        ("late", 1),
        ("middle", 1),
    ]
    for journal in (own, other):
        journal.close()
