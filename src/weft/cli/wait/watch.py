"""Waits for objects to reach a state: one thread for each kind reads changes, this one draws, counts and decides.

Nothing is polled: the client's watch delivers every change. Woken by it, by the deadline, and ten times a second
while something is drawn on a terminal. Ctrl-C ends the watching only.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from weft.cli.command.target import Target
from weft.cli.session import Session, in_project_of
from weft.cli.wait.goal import gone, is_past
from weft.cli.wait.progress import Progress
from weft.kinds.fields.cells import note
from weft.kinds.operation import find_failure
from weft.kinds.record import Goal
from weft.objects.errors import TimedOut, WeftError

if TYPE_CHECKING:
    from weft.client import Client

FRAME_SECONDS = 0.1
Object = dict[str, Any]


class Wait(NamedTuple):
    """One object and what it should become. ``uid`` tells it from a later one of the same name."""

    target: Target
    goal: Goal
    uid: str = ""
    project: str | None = None
    takes: float = 0.0  # seconds that it takes at least


class Result(NamedTuple):
    """How one wait ended: the object as it was then (None: gone), or what ended it; and after how long."""

    wait: Wait
    obj: Object | None
    error: WeftError | None = None
    seconds: float = 0.0


class _News(NamedTuple):
    """``wait`` is None for an error: one that ends everything, or, as ``trouble``, one after which weft tries again."""

    wait: Wait | None
    obj: Object | None
    error: WeftError | None = None
    trouble: WeftError | None = None


def follow(session: Session, waits: Sequence[Wait], progress: Progress) -> list[Result]:
    """Watch until every wait is over, or the session's time is. Results come in the order of ``waits``.

    Raises KeyboardInterrupt as it is, with the progress tidied up."""
    if len(waits) > 1:
        waits = [wait._replace(goal=msgspec.structs.replace(wait.goal, ends_alone=False)) for wait in waits]
    client = session.make_client()
    news: queue.Queue[_News] = queue.Queue()
    for kind, project in dict.fromkeys((wait.target.kind.name, wait.project) for wait in waits):
        mine = [wait for wait in waits if (wait.target.kind.name, wait.project) == (kind, project)]
        threading.Thread(target=_listen, args=(client, kind, project, mine, news), daemon=True).start()
    open_: dict[int, Wait] = dict(enumerate(waits))
    last: dict[int, Object | None] = {}
    results: dict[int, Result] = {}
    printed = ""
    patience = session.wait_seconds
    if session.timeout_seconds is None:
        patience += max((wait.takes for wait in waits), default=0.0)
    deadline = session.clock.elapsed() + patience
    try:
        while open_:
            item = _next(session, news, deadline, progress)
            if item is None:
                for index, wait in open_.items():
                    results[index] = Result(wait, last.get(index), _late(session, wait, last.get(index), patience))
                break
            if item.error is not None:
                raise item.error
            if item.trouble is not None and item.trouble.message != printed:
                printed = item.trouble.message
                progress.notify(f"{printed}; trying again")
            for index, wait in list(open_.items()):
                if wait is item.wait:
                    last[index] = item.obj
                    result = judge(wait, item.obj)
                    progress.show(wait.target, item.obj, over=result is not None)
                    if result is not None:
                        results[index] = result._replace(seconds=progress.seconds)
                        del open_[index]
    finally:
        progress.end()
        client.close()
    return [results[index] for index in sorted(results)]


def judge(wait: Wait, obj: Object | None) -> Result | None:
    """How ``wait`` ended now that its object is ``obj``; None while it goes on."""
    if obj is not None and wait.uid and obj["uid"] != wait.uid:
        obj = None  # another one has taken its name
    if wait.goal.reached(obj):
        return Result(wait, obj)
    if wait.goal.wants_gone:
        return None
    if obj is None or obj.get("deleting_since"):
        return Result(wait, obj, gone(wait.target.what))
    failure = find_failure(obj, wait.target.what, wait.goal)
    if failure is None and wait.goal.is_past is not None and wait.goal.is_past(obj):
        failure = is_past(wait.target.what, obj, wait.goal)
    return Result(wait, obj, failure) if failure else None


def _next(session: Session, news: queue.Queue[_News], deadline: float, progress: Progress) -> _News | None:
    while True:
        left = deadline - session.clock.elapsed()
        if left <= 0:
            return None
        try:
            due = FRAME_SECONDS if progress.animated else progress.due_seconds
            return news.get(timeout=left if due is None else min(left, due))
        except queue.Empty:
            progress.tick()


def _late(session: Session, wait: Wait, obj: Object | None, patience: float) -> WeftError:
    what, where = wait.target.what, in_project_of(session, wait.project)
    why = f" ({said})" if (said := note(obj or {})) else ""
    return TimedOut(
        f"{what} was not {wait.goal.words} within {patience:g} s{why}; the work goes on",
        hint=f"{describe_wait(wait)}{where}   weft describe {what}{where}",
    )


def describe_wait(wait: Wait, *others: Wait) -> str:
    """The command that waits for the same; ``others`` are for the same too."""
    names = " ".join(one.target.what for one in (wait, *others))
    return f"weft wait {names}" + (f" --for={wait.goal.asked}" if wait.goal.asked else "")


def _listen(client: Client, kind: str, project: str | None, waits: Sequence[Wait], news: queue.Queue[_News]) -> None:
    """Put every state of the waited-for objects into ``news``; for missing ones None, once the list is complete."""
    by_name = {wait.target.name: wait for wait in waits}
    fields = f"name={waits[0].target.name}" if len(by_name) == 1 else ""
    seen: set[str] = set()
    try:
        events = client.watch_forever(
            kind,
            project=project,
            fields=fields,
            on_trouble=lambda trouble: news.put(_News(None, None, trouble=trouble)),
        )
        for event in events:
            if event.type == "synced":
                for name in set(by_name) - seen:
                    news.put(_News(by_name[name], None))
                continue
            if event.type not in ("put", "delete"):
                continue
            obj = event.object
            for wait in _waits_for(waits, obj):
                seen.add(wait.target.name)
                news.put(_News(wait, obj if event.type == "put" else None))
    except WeftError as problem:
        news.put(_News(None, None, problem))


def _waits_for(waits: Sequence[Wait], obj: Object) -> Iterator[Wait]:
    return (wait for wait in waits if wait.target.name == obj["name"])
