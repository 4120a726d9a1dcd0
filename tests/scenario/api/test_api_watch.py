"""Watches over HTTP: nothing missed, nothing told twice, over selectors, restarts and forgotten history."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from tests.scenario.api_lab import ApiLab, make_image, make_vm

from weft.client import WatchEvent
from weft.contracts.store import Delete
from weft.objects.errors import CursorGone, Forbidden, InvalidInput, NotAuthenticated, NotFound, TimedOut, WeftError


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ApiLab]:
    lab = ApiLab(tmp_path)
    lab.client.create(make_image())
    yield lab
    lab.close()


def told(event: WatchEvent) -> tuple[str, str]:
    return event.type, event.object.get("name", "")


def take(events: Iterator[WatchEvent], count: int) -> list[tuple[str, str]]:
    return [told(event) for event in itertools.islice((e for e in events if e.type != "bookmark"), count)]


def test_a_watch_from_a_list_tells_all_that_comes_after_it_in_order(lab: ApiLab) -> None:
    lab.client.create(make_vm("a"))
    cursor = lab.client.list("vm").cursor
    lab.client.create(make_vm("b"))
    events = lab.client.watch("vm", cursor)
    first = next(events)
    assert (told(first), first.object) == (("put", "b"), lab.client.get("vm", "b"))
    lab.client.put(make_vm("a", grace=3))
    lab.client.create({"kind": "volume", "name": "elsewhere", "spec": {"size": "1G"}})
    lab.client.delete("vm", "b")
    assert take(events, 2) == [("put", "a"), ("put", "b")]


def test_a_watch_resumes_right_after_the_event_it_broke_off_at(lab: ApiLab) -> None:
    events = lab.client.watch("vm", lab.client.list("vm").cursor)
    for name in "abc":
        lab.client.create(make_vm(name))
    assert told(next(events)) == ("put", "a")
    cursor = next(events).cursor
    events.close()  # type: ignore[attr-defined]
    lab.client.create(make_vm("d"))
    assert take(lab.client.watch("vm", cursor), 2) == [("put", "c"), ("put", "d")]


@pytest.mark.parametrize("more", [{}, {"labels": "tier=db"}], ids=["all", "selected"])
def test_who_is_cut_off_amid_a_commit_is_told_the_whole_of_it_again(lab: ApiLab, more: dict[str, str]) -> None:
    for name in "abc":
        lab.client.create({**make_vm(name), "labels": {"tier": "web" if name == "c" else "db"}})
    cursor = lab.client.list("vm").cursor
    lab.put(*(envelope for name in "abc" if (envelope := lab.stored(f"/vm/default/{name}")) is not None))
    names = "ab" if more else "abc"
    events = lab.client.watch("vm", cursor, **more)
    for name in names[:-1]:
        event = next(events)
        assert told(event) == ("put", name)
        again = itertools.islice(lab.client.watch("vm", event.cursor, **more), len(names))
        assert [told(event) for event in again] == [("put", name) for name in names]
    lab.client.create({**make_vm("d"), "labels": {"tier": "db"}})
    assert take(lab.client.watch("vm", next(events).cursor, **more), 1) == [("put", "d")]


def test_what_stops_matching_a_selector_is_deleted_for_its_watcher(lab: ApiLab) -> None:
    lab.client.create({**make_vm("a"), "labels": {"tier": "db"}})
    events = lab.client.watch("vm", lab.client.list("vm").cursor, labels="tier=db")
    lab.client.create(make_vm("b"))
    lab.client.patch("vm", "a", {"spec": {"grace": 1}})
    lab.client.patch("vm", "a", {"labels": {"tier": "web"}})
    lab.client.patch("vm", "a", {"spec": {"grace": 2}})
    lab.client.patch("vm", "b", {"labels": {"tier": "db"}})
    assert take(events, 3) == [("put", "a"), ("delete", "a"), ("put", "b")]


def test_a_foreign_or_forgotten_cursor_gets_410(lab: ApiLab) -> None:
    with pytest.raises(InvalidInput):
        next(lab.client.watch("vm", ""))
    for cursor in ("nonsense", "0123456789ab:5"):
        answer = lab.client.http.request("GET", f"/v1/vms?watch=1&cursor={cursor}")
        assert (answer.status, answer.json()["reason"]) == (410, "cursorGone")
    cursor = lab.client.list("vm").cursor
    for i in range(3):
        lab.client.create(make_vm(f"v{i}"))
    lab.run(lab.store.compact(1))
    with pytest.raises(CursorGone):
        next(lab.client.watch("vm", cursor))


def test_a_lasting_watch_survives_a_restart_of_the_api_servers(lab: ApiLab) -> None:
    lab.client.create(make_vm("a"))
    troubles: list[WeftError] = []
    events = lab.connect().watch_forever("vm", on_trouble=troubles.append)
    assert take(events, 2) == [("put", "a"), ("synced", "")]
    lab.restart()
    lab.client.create(make_vm("b"))
    assert take(events, 1) == [("put", "b")]


def test_a_lasting_watch_lists_again_when_its_place_in_history_is_forgotten(lab: ApiLab) -> None:
    lab.client.create(make_vm("a"))
    lab.client.create({"kind": "volume", "name": "gone", "spec": {"size": "1G"}})
    events = lab.connect().watch_forever("volume")
    assert take(events, 2) == [("put", "gone"), ("synced", "")]
    lab.run(lab.shut())
    volume = lab.stored("/volume/default/gone")
    assert volume is not None
    lab.run(lab.store.commit([Delete("/volume/default/gone")]))
    for i in range(5):
        volume.name = f"v{i}"
        lab.put(volume)
    lab.run(lab.store.compact(0))
    lab.run(lab.open(lab.port))
    assert take(events, 7) == [*(("put", f"v{i}") for i in range(5)), ("delete", "gone"), ("synced", "")]


def test_closing_the_client_ends_a_watch_that_waits(lab: ApiLab) -> None:
    client = lab.connect()
    ended = threading.Event()
    synced = threading.Event()

    def follow() -> None:
        for event in client.watch_forever("vm"):
            if event.type == "synced":
                synced.set()
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert synced.wait(10)
    client.close()
    assert ended.wait(10)
    thread.join()


def test_the_api_servers_end_while_watches_are_open(lab: ApiLab) -> None:
    events = [lab.connect().watch("vm", lab.client.list("vm").cursor) for _ in range(20)]
    lab.client.create(make_vm("a"))
    assert [told(next(e)) for e in events] == [("put", "a")] * 20
    lab.run(lab.shut())
    assert [list(e) for e in events] == [[]] * 20
    lab.run(lab.open(lab.port))


def test_one_encoded_line_serves_all_watchers(lab: ApiLab) -> None:
    cursor = lab.client.list("vm").cursor
    watches = [lab.connect().watch("vm", cursor) for _ in range(5)]
    lab.client.create(make_vm("a"))
    first = [next(watch) for watch in watches]
    assert len({bytes(event.raw) for event in first}) == 1
    assert sum(key == "/vm/default/a" for _, key, _ in lab.api.lines._lines) == 1


def test_waiting_sees_what_comes_and_gives_up_in_time(lab: ApiLab) -> None:
    lab.client.create(make_vm("a"))
    seen: list[int] = []

    def change() -> None:
        for grace in (1, 2, 3):
            lab.client.patch("vm", "a", {"spec": {"grace": grace}})

    thread = threading.Thread(target=change)
    thread.start()
    found = lab.connect().wait(
        "vm",
        "a",
        lambda vm: vm is not None and vm["spec"]["grace"] == 3,
        timeout_seconds=20,
        on_change=lambda vm: seen.append(vm["generation"] if vm else 0),
    )
    thread.join()
    assert found is not None and found["spec"]["grace"] == 3
    assert seen == sorted(seen) and seen[-1] == 4
    with pytest.raises(TimedOut, match=r"did not reach that state within 0\.2 s"):
        lab.connect().wait("vm", "a", lambda vm: vm is None, timeout_seconds=0.2)
    assert lab.connect().wait("vm", "never", lambda vm: vm is None, timeout_seconds=5) is None


def test_events_can_be_followed_over_a_restart(lab: ApiLab) -> None:
    lab.journal.flush()
    newest = next(lab.client.events(limit=1))["id"]
    follower = lab.connect().events(since=newest, follow=True)
    lab.client.create(make_vm("a"))
    assert next(follower)["object"]["name"] == "a"
    lab.restart()
    lab.client.create(make_vm("b"))
    record = next(follower)
    assert (record["object"]["name"], record["reason"], record["source"]) == ("b", "Created", "api")


def test_questions_that_come_and_go_leave_no_events(lab: ApiLab) -> None:
    """A dry run makes one, and takes it away again: what it was about has an event of its own, if it changed anything."""
    for kind, spec in (
        ("recommendation", {"kind": "vm", "changes": {"image": "tiny"}}),
        ("report", {"subject": "capacity"}),
    ):
        lab.client.create({"kind": kind, "name": "asked-1", "spec": spec})
        lab.client.delete(kind, "asked-1")
    lab.client.create(make_vm("last"))
    lab.journal.flush()
    told = [(event["object"]["kind"], event["reason"]) for event in lab.client.events()]
    assert ("vm", "Created") in told
    assert not {"recommendation", "report"} & {kind for kind, _ in told}


@contextmanager
def writing(lab: ApiLab) -> Iterator[None]:
    """VMs change all the time."""
    lab.client.create(make_vm("busy"))
    ended = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if ended.wait(0.01):
                return
            lab.client.patch("vm", "busy", {"labels": {"n": str(number)}})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10)


@pytest.mark.parametrize("how", ["deleted", "expired"])
@pytest.mark.parametrize("about", [nullcontext, writing], ids=["quiet", "busy"])
def test_a_watch_ends_with_its_token_however_much_there_is_to_tell(
    lab: ApiLab,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    about: Callable[[ApiLab], AbstractContextManager[object]],
) -> None:
    monkeypatch.setattr("weft.api.watch.stream.BOOKMARK_SECONDS", 0.1)
    monkeypatch.setattr("weft.api.watch.events.BOOKMARK_SECONDS", 0.1)
    viewer = lab.with_token(use="access", subject="eve", expires_at=time.time() + 3600)
    with about(lab):
        events = viewer.watch("vm", viewer.list("vm").cursor)
        next(events)
        journal = viewer.http.stream("GET", "/v1/events?follow=1")
        next(journal.lines())
        if how == "deleted":
            [token] = [t for t in lab.client.list("token").items if t["spec"]["subject"] == "eve"]
            lab.client.delete("token", token["name"])
        else:
            monkeypatch.setattr(lab.api.clock, "now", lambda: time.time() + 3601)
        with pytest.raises(NotAuthenticated):
            for _ in itertools.islice(events, 500):
                pass
        assert len(list(itertools.islice(journal.lines(), 500))) < 500
        journal.close()


def test_a_bookmark_resumes_without_loss(lab: ApiLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.api.watch.stream.BOOKMARK_SECONDS", 0.05)
    monkeypatch.setattr("weft.api.state.store_position._BEAT_SECONDS", 0.02)
    lab.restart()
    start = lab.client.list("volume").cursor
    events = lab.client.watch("volume", start)
    lab.client.create(make_vm("a"))
    bookmark = next(e for e in events if e.type == "bookmark" and e.cursor != start)
    lab.client.create({"kind": "volume", "name": "v", "spec": {"size": "1G"}})
    assert take(lab.client.watch("volume", bookmark.cursor), 1) == [("put", "v")]


def test_only_those_who_may_read_may_watch(lab: ApiLab) -> None:
    viewer = lab.with_token(use="access", subject="eve")
    cursor = lab.client.list("token").cursor
    with pytest.raises(Forbidden):
        next(viewer.watch("token", cursor))
    with pytest.raises(NotFound):
        next(lab.client.watch("vm", cursor, project="nope"))


def test_a_follower_lists_and_watches_over_one_connection_and_a_stale_one_is_no_trouble(lab: ApiLab) -> None:
    client = lab.connect()
    for _ in range(2):
        events = client.watch_forever("image")
        assert [next(events).type for _ in range(2)] == ["put", "synced"]
        lab.client.put({**make_image(), "labels": {"seen": "yes"}})
        assert next(events).type == "put"
        assert len(client.http._open) == 1
        events.close()  # type: ignore[attr-defined]
        client.list("image")
        lab.restart()  # what the list kept open is dead now
        lab.client.put({**make_image(), "labels": {}})
